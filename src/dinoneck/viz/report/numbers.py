"""The numbers of a report: one column per output, and how they are written."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from dinoneck.errors import DataError
from dinoneck.tasks import Task
from dinoneck.viz.arrays import numbers

_Array = np.ndarray[Any, Any]


class Output(NamedTuple):
    """One number that a task predicts.

    Attributes:
        key: its column in tables: the task's name, or ``task:label`` where a task has several.
        task: the task.
        place: which of its outputs.
    """

    key: str
    task: Task
    place: int

    @property
    def heading(self) -> str:
        """The key with the unit."""
        return f"{self.key} ({self.task.unit})" if self.task.unit else self.key

    def value(self, result: Mapping[str, Any]) -> float:
        """Return it from what a Predictor says of one photo.

        Raises:
            DataError: if it is not there, or not finite.
        """
        try:
            value = float(np.asarray(result[self.task.name], np.float64).reshape(-1)[self.place])
        except (LookupError, TypeError, ValueError) as error:
            raise DataError(
                f"a result has no number for {self.key!r}; it holds {', '.join(map(str, result)) or 'nothing'}"
            ) from error
        if not math.isfinite(value):
            raise DataError(f"a prediction of {self.key!r} is {value}; leave that photo out, and name it in unread=")
        return value

    def map(self, result: Mapping[str, Any]) -> _Array | None:
        """Return its map (rows, cols); None where the task has none.

        Raises:
            ShapeError: if the task's maps are not (outputs, rows, cols).
            DataError: if they are not finite.
        """
        maps = (result.get("maps") or {}).get(self.task.name)
        if maps is None:
            return None
        found: _Array = numbers(maps, f"the maps of {self.task.name!r}", f"{self.task.dim}, rows, cols")[self.place]
        return found


def outputs(tasks: Sequence[Task]) -> list[Output]:
    """Return the columns of a table of predictions, in the order of the tasks."""
    return [Output(key, task, place) for task in tasks for place, key in enumerate(task.columns)]


def number(value: float, digits: int = 6) -> str:
    """Return a number as tables show it; a dash for none."""
    return "–" if math.isnan(value) else f"{value:.{digits}g}"


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Return round numbers within a span, 1, 2 or 5 times a power of ten apart.

    Examples:
        >>> ticks(0.0, 23.0)
        [0.0, 5.0, 10.0, 15.0, 20.0]
    """
    wide = high - low
    if not wide > 0:
        return [low]
    raw = wide / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1.0, 2.0, 5.0, 10.0) if factor * power >= raw * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]
