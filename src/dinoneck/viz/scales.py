"""What is predicted and known of an image: numbers, and maps with the scale of their colours."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from dinoneck.data.decoding import ImageInput
from dinoneck.errors import DataError, some_of
from dinoneck.tasks import Task, columns_of
from dinoneck.viz.drawing import Floats, minus, numbers, span

_ROUNDING = 1e-4  # a smaller change of a cell is not worth a note


@dataclass(frozen=True, eq=False)
class ReportEntry:
    """One image of a report.

    Attributes:
        name: the file, or another name that differs from those of the other images.
        result: the Predictor's result, with ``maps="patch"`` for an image that is drawn; or that of
            ``Detector.predict``.
        image: the image as the model saw it (``Predictor.picture``), so that maps lie where they
            belong, or a function that returns it, so that many need not be in memory at once; None
            = the image is listed in the table only.
        tokens: (rows, cols, 3) colours in 0 ... 1 of its patches, see :func:`dinoneck.viz.pca_rgb`;
            None = not shown.
        known: column -> known value, where there is one; columns are those of ``dinoneck predict``:
            the task's name, or ``task:label``. For a classification the task's name -> the known
            class. For a detector ``boxes`` (n, 4) and ``names``, and ``classes`` where boxes of
            these alone are known.
    """

    name: str
    result: Mapping[str, Any]
    image: ImageInput | Callable[[], ImageInput] | None = None
    tokens: Floats | None = None
    known: Mapping[str, Any] = field(default_factory=dict)


class Output(NamedTuple):
    """One number that a head predicts for an image, and the map that shows where it comes from.

    Attributes:
        key: its column, see :func:`dinoneck.tasks.columns_of`.
        task: the task whose number it is.
        place: which of the task's outputs.
        map: the task whose map shows it; another one where the number is the mean of a map
            (``from_map``).
        channel: which of the map's outputs.
    """

    key: str
    task: Task
    place: int
    map: Task
    channel: int

    @property
    def is_sum(self) -> bool:
        """Whether the number is the sum of the map's cells, so that 0 means nothing."""
        return self.map.kind == "density" and self.map.aggregate == "sum"

    @property
    def floor(self) -> float:
        """The smallest possible cell; minus infinity where it is unknown."""
        minimum = -math.inf if self.task.minimum is None else self.task.minimum
        if self.is_sum:  # a minimum of the sum bounds a cell where it is not negative
            return 0.0 if minimum >= 0 else -math.inf
        return minimum

    def value(self, result: Mapping[str, Any]) -> float:
        """Return the number in a Predictor's result for one image.

        Raises:
            ShapeError: if the result has another number of outputs.
            DataError: if it is missing, or not finite.
        """
        if self.task.name not in result:
            raise DataError(
                f"a result has no prediction of {self.task.name!r}; it holds "
                f"{some_of(map(str, result), 5) or 'nothing'}"
            )
        given = np.reshape(result[self.task.name], -1)
        return float(
            numbers(given, f"the predictions of {self.task.name!r}", f"{self.task.dim}")[self.place]
        )

    def text(self, value: float) -> str:
        """Return a number as pictures show it: with its unit, a share as percent."""
        shown, unit = (100.0 * value, "%") if self.map.is_share else (value, self.task.unit)
        return f"{minus(f'{shown:.3g}')} {unit}".rstrip()


class Scale(NamedTuple):
    """How a map is drawn: one scale for all of its outputs and all images.

    Attributes:
        low: the value of the darkest colour.
        high: the value of the brightest colour.
        note: what was changed for the picture, for the colour bar; empty where cells are as
            predicted.
    """

    low: float
    high: float
    note: str


def outputs(tasks: Sequence[Task]) -> list[Output]:
    """Return the outputs of tasks, in their order and each number once."""
    by_name: dict[str | None, Task] = {task.name: task for task in tasks}
    found = []
    for key, task, place in columns_of(tasks):
        shown = by_name.get(task.from_map, task)
        channel = shown.labels.index(task.name) if shown is not task and shown.dim > 1 else place
        found.append(Output(key, task, place, shown, channel))
    return found


def scales(listed: Sequence[Output], results: Sequence[Mapping[str, Any]]) -> dict[str, Scale]:
    """Return name of a map -> how it is drawn.

    Shares span 0 to 1; their cells are clipped to it, and those of several outputs divided by their
    sum. Other cells are clipped at the floor, and amounts start at 0. The results themselves stay
    as they are.

    Raises:
        ShapeError: if maps are not (outputs, rows, cols).
        DataError: if they are not finite.
    """
    names = dict.fromkeys(output.map.name for output in listed)
    return {
        name: _scale([output for output in listed if output.map.name == name], results)
        for name in names
    }


def _scale(members: Sequence[Output], results: Sequence[Mapping[str, Any]]) -> Scale:
    task = members[0].map
    every = [
        maps[task.name]
        for maps in (result.get("maps") or {} for result in results)
        if task.name in maps
    ]
    given = [
        numbers(maps, f"the maps of {task.name!r}", f"{task.dim}, rows, cols") for maps in every
    ]
    drawn = [shown_cells(members, maps) for maps in given]
    is_changed = any(
        np.abs(one - own).max() > _ROUNDING for one, own in zip(given, drawn, strict=True)
    )
    if task.is_share:
        return Scale(0.0, 1.0, " (clipped, normalised)" if is_changed else "")
    low, high = span(drawn or [np.zeros(1)])
    if any(output.is_sum or output.floor >= 0 for output in members):
        ends = [0.0, *(float(end) for maps in drawn for end in (maps.min(), maps.max()))]
        low, high = min(ends), max(ends) if any(ends) else 1.0
    return Scale(low, high, " (clipped)" if is_changed else "")


def shown_cells(members: Sequence[Output], maps: Floats) -> Floats:
    """Return maps (outputs, rows, cols) as pictures show them: shares of one whole, amounts above their floor."""
    if members[0].map.is_share:
        clipped: Floats = np.clip(maps, 0.0, 1.0)
        whole = clipped.sum(axis=0)
        return clipped / np.where(whole > 0, whole, 1.0) if len(maps) > 1 else clipped
    floors = np.full((len(maps), 1, 1), -math.inf)
    for output in members:
        floors[output.channel] = output.floor
    drawn: Floats = np.maximum(maps, floors)
    return drawn
