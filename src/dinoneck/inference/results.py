"""Predictions of many images, as dictionaries and as rows of a table."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from dinoneck.errors import ConfigError, DataError, DinoneckError, printable
from dinoneck.heads.head import recompute_derived
from dinoneck.progress import progress
from dinoneck.tasks import Task, columns_of

GATE = ":gate"  # no name of a task holds a colon
logger = logging.getLogger(__name__)


class BatchPredictions(NamedTuple):
    """Predictions in original units for a batch of B images.

    Attributes:
        values: task name -> (B, dim).
        maps: task name -> (B, dim, rows, cols), and :data:`GATE` -> (B, 1, rows, cols), what gated heads looked at;
            empty where none was asked for.
    """

    values: dict[str, Tensor]
    maps: dict[str, Tensor]

    def derived(self, tasks: Sequence[Task]) -> BatchPredictions:
        """Return these averages with the outputs that follow from others recomputed."""
        return self._replace(values=recompute_derived(tasks, self.values))

    def rows(self, maps: bool) -> list[dict[str, Any]]:
        """Return one plain dict per image: floats or arrays, with ``"maps"`` (and ``"gate"``) if asked for.

        Raises:
            ConfigError: if maps are asked for and a task is named as their entries are.
            DataError: if a value is not finite.
        """
        check_finite(self.values)
        if maps and "maps" in self.values:
            raise ConfigError("a task is named 'maps', as an entry of results with maps; rename it, or maps=False")
        rows: list[dict[str, Any]] = []
        for i in range(len(next(iter(self.values.values())))):
            row: dict[str, Any] = {
                name: value[i].item() if value.shape[1] == 1 else value[i].numpy()
                for name, value in self.values.items()
            }
            if maps:
                row["maps"] = {name: picture[i].numpy() for name, picture in self.maps.items() if name != GATE}
                row |= {"gate": self.maps[GATE][i, 0].numpy()} if GATE in self.maps else {}
            rows.append(row)
        return rows


def check_finite(values: Mapping[str, Tensor]) -> None:
    """Refuse values that are not finite.

    Raises:
        DataError: naming the task.
    """
    for name, value in values.items():
        if not bool(value.isfinite().all()):
            raise DataError(
                f"the prediction of {name!r} is {value[~value.isfinite()][0].item()}; the head or image is unfit"
            )


def table_row(result: Mapping[str, Any], tasks: Sequence[Task], **known: str) -> dict[str, float | str]:
    """Return one image's result as column -> value.

    The columns are those of :func:`dinoneck.tasks.columns_of`. A classification has the most probable class as
    ``name``, then a probability per class as ``name:label``.

    Args:
        result: of a :class:`dinoneck.Predictor`.
        tasks: the predictor's.
        **known: columns before those of the tasks.

    Raises:
        ConfigError: if two columns have one name.
    """
    pairs = [*known.items(), *_cells(tasks, result)]
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


def _cells(tasks: Sequence[Task], result: Mapping[str, Any]) -> Iterator[tuple[str, float | str]]:
    numbers = {task.name: [float(value) for value in np.asarray(result[task.name]).reshape(-1)] for task in tasks}
    for name, task, place in columns_of(tasks):
        if task.kind == "classification":
            labels = task.labels or tuple(map(str, range(task.dim)))
            if place == 0:
                yield task.name, labels[int(np.argmax(numbers[task.name]))]
            name = f"{task.name}:{labels[place]}"
        yield name, numbers[task.name][place]


def predict_many(
    predict: Callable[[list[Path]], list[dict[str, Any]]],
    images: Sequence[Path],
    places: Sequence[int] | None = None,
    *,
    at_once: int = 32,
    unusable: dict[int, str] | None = None,
) -> dict[int, dict[str, Any]]:
    """Return place among the images -> prediction.

    Args:
        predict: a predictor or detector, which splits images into batches and decodes ahead of the model.
        images: files.
        places: which of them; None = all.
        at_once: images per call; if one of them cannot be used, they are predicted one by one.
        unusable: place -> why the image cannot be used, filled in by this call; None = such an image is an error.

    Raises:
        DinoneckError: the first unusable image, if ``unusable`` is None.
    """
    places = range(len(images)) if places is None else places
    results: dict[int, dict[str, Any]] = {}
    if not places:
        return results
    bar = progress(total=len(places), desc="images", unit="image")
    for begin in range(0, len(places), at_once):
        batch = places[begin : begin + at_once]
        try:
            results |= dict(zip(batch, predict([images[place] for place in batch]), strict=True))
        except (DinoneckError, OSError):
            if unusable is None:
                raise
            logger.info("an image of %d cannot be used; they are predicted one by one", len(batch), exc_info=True)
            for place in batch:
                try:
                    results[place] = predict([images[place]])[0]
                except (DinoneckError, OSError) as error:
                    unusable[place] = printable(str(error))
        bar.update(len(batch))
    bar.close()
    return results
