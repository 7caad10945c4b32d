"""Checked numbers for figures: finite float64 arrays, and what a head's outputs are called, worth and drawn as."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from dinoneck.errors import DataError, ShapeError
from dinoneck.tasks import Task

Floats = np.ndarray[Any, Any]


def numbers(values: Any, name: str, axes: str, *, missing: bool = False) -> Floats:
    """Return values as float64, checked.

    Args:
        values: a tensor (of any dtype and device), an array or nested lists.
        name: what the message calls them.
        axes: names of the axes, comma-separated; a number is the length that an axis must have.
        missing: whether NaN stands for a missing value.

    Raises:
        ShapeError: if the shape does not fit, or is empty.
        DataError: if they are not numbers, or not finite.
    """
    try:
        array = np.asarray(values.detach().cpu().double() if isinstance(values, Tensor) else values, np.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"{name} are not numbers: {error}") from error
    sides = axes.split(", ")
    fits = len(sides) == array.ndim and all(a.isalpha() or int(a) == n for a, n in zip(sides, array.shape, strict=True))
    if not fits or not array.size:
        raise ShapeError(f"{name} have shape {array.shape}; expected ({axes}), not empty")
    unfit = np.isinf(array) if missing else ~np.isfinite(array)
    if unfit.any():
        raise DataError(f"{name} hold {array[unfit][0]} ({int(unfit.sum())} of {array.size} values are not finite)")
    return array


def span(values: Sequence[Floats]) -> tuple[float, float]:
    """Return the lowest and the highest value; where they differ by rounding only, a range with them in its middle."""
    low, high = min(float(v.min()) for v in values), max(float(v.max()) for v in values)
    if high - low <= 1e-5 * max(abs(low), abs(high)):
        half = 0.5 * (abs(low) or 1.0)
        return low - half, high + half
    return low, high


class Output(NamedTuple):
    """One number that a head predicts for an image.

    Attributes:
        key: its column in tables: the task's name, or ``task:label`` where a task has several outputs.
        task: name of the task.
        place: which of the task's outputs.
        dim: how many outputs the task has.
        unit: of the values.
        minimum: below which no value is possible; maps are drawn clipped there.
    """

    key: str
    task: str
    place: int
    dim: int
    unit: str = ""
    minimum: float | None = None

    @property
    def heading(self) -> str:
        """The key with the unit."""
        return f"{self.key} ({self.unit})" if self.unit else self.key

    def value(self, result: Mapping[str, Any]) -> float:
        """Return the number in a Predictor's result for one image.

        Raises:
            DataError: if it is missing, or not finite.
        """
        try:
            value = float(np.asarray(result[self.task], np.float64).reshape(-1)[self.place])
        except (LookupError, TypeError, ValueError) as error:
            raise DataError(
                f"a result has no number for {self.key!r}; it holds {', '.join(map(str, result)) or 'nothing'}"
            ) from error
        if not math.isfinite(value):
            raise DataError(f"a prediction of {self.key!r} is {value}; leave that image out")
        return value

    def scaled(self, results: Sequence[Mapping[str, Any]]) -> tuple[list[Floats | None], tuple[float, float], str]:
        """Return the maps (rows, cols) as drawn, the values that their colours span, and a note for the colour bar.

        Cells below the ``minimum`` are drawn at it, which the note states. A result without a map gives None.

        Raises:
            ShapeError: if maps are not (outputs, rows, cols).
            DataError: if they are not finite.
        """
        given = [(result.get("maps") or {}).get(self.task) for result in results]
        axes = f"{self.dim}, rows, cols"
        maps = [m if m is None else numbers(m, f"the maps of {self.task!r}", axes)[self.place] for m in given]
        low = -math.inf if self.minimum is None else self.minimum
        shown = [m if m is None else np.maximum(m, low) for m in maps]
        note = f", clipped at {low:g}" if any(m is not None and (m < low).any() for m in maps) else ""
        return shown, span([m for m in shown if m is not None] or [np.zeros(1)]), note


def outputs(tasks: Sequence[Task]) -> list[Output]:
    """Return the outputs of tasks, in their order."""
    return [
        Output(key, task.name, place, task.dim, task.unit, task.minimum)
        for task in tasks
        for place, key in enumerate(task.columns)
    ]


def outputs_with_maps(
    results: Sequence[Mapping[str, Any]], tasks: Sequence[Task], units: Mapping[str, str] | None
) -> list[Output]:
    """Return the outputs to draw: those of the tasks, or of all maps of the first result.

    Raises:
        DataError: if a result has no maps, or none is left.
    """
    if not results or any(result.get("maps") is None for result in results):
        raise DataError(f"there are {len(results)} results; each result needs maps (maps=True)")
    maps = results[0]["maps"]
    listed = outputs([task for task in tasks if task.name in maps])
    for name in () if tasks else maps:
        keys = [name] if len(maps[name]) == 1 else [f"{name}:{place}" for place in range(len(maps[name]))]
        listed += [Output(key, name, place, len(keys)) for place, key in enumerate(keys)]
    if not listed:
        raise DataError("there are no maps to draw; these heads have none, or tasks= names none")
    return [output._replace(unit=(units or {}).get(output.task, output.unit)) for output in listed]
