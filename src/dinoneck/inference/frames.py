"""Predictions as rows of a table: the columns of ``dinoneck predict`` and of a DataFrame."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from dinoneck.errors import ConfigError
from dinoneck.tasks import Task


def table_row(result: Mapping[str, Any], tasks: Sequence[Task], **known: str) -> dict[str, float | str]:
    """Return one image's result as column -> value.

    The columns are a task's name, ``name:label`` per output where it has several, and the names alone of composed
    outputs. A classification has the most probable class as ``name``, then a probability per class.

    Args:
        result: of a :class:`dinoneck.Predictor`.
        tasks: the predictor's.
        **known: columns before those of the tasks.

    Raises:
        ConfigError: if two columns have one name.
    """
    pairs = [*known.items(), *(pair for task in tasks for pair in _cells(task, result[task.name]))]
    row = dict(pairs)
    if len(row) < len(pairs):
        names = [name for name, _ in pairs]
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ConfigError(f"several columns are named {', '.join(twice)}; give tasks, labels and sums different names")
    return row


def to_frame(results: Sequence[Mapping[str, Any]], tasks: Sequence[Task], names: Sequence[str] | None = None) -> Any:
    """Return results as a ``pandas.DataFrame`` with a row per image and the columns of ``dinoneck predict``.

    Args:
        results: of a :class:`dinoneck.Predictor`.
        tasks: the predictor's, which have the labels.
        names: the index, such as the images' file names; None = 0, 1, ...

    Raises:
        ConfigError: if two columns have one name.
        ImportError: if pandas is not installed.

    Examples:
        >>> frame = to_frame([{"mass": 3.5, "soil": np.array([0.2, 0.8])}], [
        ...     Task("mass"), Task("soil", dim=2, kind="classification", labels=("wet", "dry")),
        ... ], names=["a.jpg"])
        >>> frame.loc["a.jpg"].to_dict()
        {'mass': 3.5, 'soil': 'dry', 'soil:wet': 0.2, 'soil:dry': 0.8}
    """
    rows = [table_row(result, tasks) for result in results]
    return importlib.import_module("pandas").DataFrame(rows, index=names)  # not a dependency: users install pandas


def _cells(task: Task, values: Any) -> Iterator[tuple[str, float | str]]:
    numbers = [float(value) for value in np.asarray(values).reshape(-1)]
    columns = task.columns
    if task.kind == "classification":
        labels = task.labels or tuple(map(str, range(task.dim)))
        yield task.name, labels[int(np.argmax(numbers))]
        columns = tuple(f"{task.name}:{label}" for label in labels)
    yield from zip(columns, numbers, strict=True)
