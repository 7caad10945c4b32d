"""What every patch contributes to a prediction, over the photos, in units."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from dinoneck.data.photos import Photo
from dinoneck.errors import DataError, did_you_mean
from dinoneck.tasks import Task
from dinoneck.viz.arrays import clip_note, clipped, numbers
from dinoneck.viz.gate_maps import checked_alpha
from dinoneck.viz.sheet import SCALE, Sheet, checked_names, grey, pictures_of, show, span

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_Floats = np.ndarray[Any, Any]


class _Column(NamedTuple):
    """One output of one task."""

    task: str
    output: int
    label: str
    unit: str
    minimum: float | None = None

    def of(self, answer: Any) -> float:
        """This output of a photo's value."""
        try:
            values = np.asarray(answer, np.float64).reshape(-1)
        except (TypeError, ValueError) as error:
            raise DataError(f"a value of {self.task!r} is {answer!r}; expected one number per output") from error
        if self.output >= len(values):
            raise DataError(
                f"a value of {self.task!r} has {len(values)} outputs, its map more; expected one number each"
            )
        return float(values[self.output])


def heat_figure(
    photos: Photo | Sequence[Photo],
    results: Sequence[Mapping[str, Any]],
    *,
    units: Mapping[str, str] | None = None,
    tasks: Sequence[str | Task] | None = None,
    truths: Sequence[Mapping[str, Any]] | None = None,
    names: Sequence[str] | None = None,
    alpha: float = 0.65,
) -> Figure:
    """Draw every photo beside the map of every task: a column per output, captioned with the photo's value.

    A map lies over the photo in grey; cell (r, c) covers exactly the pixels of patch (r, c). Colours span each output's
    values over all photos, so rows compare; the bar below tells which value a colour is. With ``alpha=1`` the colours
    are those of the bar. Cells below the ``minimum`` of a task are drawn at it, and the bar states it.

    Args:
        photos: what was predicted from, as the backbone saw it (``Preprocessing.picture``), so that cropping and
            padding do not shift the maps.
        results: the Predictor's output for them, made with ``maps=True``.
        units: task name -> unit; those of ``tasks`` need not be told.
        tasks: which to draw, in this order: names, or the predictor's ``tasks``, which know units, labels and minimum.
            None = all that have maps.
        truths: task name -> known value or values, per photo, shown beside the prediction; NaN = not known.
        names: one per photo, shown above it.
        alpha: opacity of the maps over the photo, 0 ... 1.

    Returns:
        a ``matplotlib.figure.Figure``: one row per photo.

    Raises:
        DataError: if results lack maps or a task, or there are more or fewer of them than photos, or values are not
            finite.
        ShapeError: if a map is not (outputs, rows, cols).
        ImportError: if matplotlib is missing.

    Examples:
        >>> result = {"mass": 6.0, "maps": {"mass": np.array([[[1.0, 2.0, 3.0]]])}}
        >>> figure = heat_figure(np.zeros((16, 48, 3), np.uint8), [result], units={"mass": "g"})
        >>> figure.axes[1].texts[0].get_text(), figure.axes[2].get_xlabel()
        ('mass 6 g', 'mass of one patch [g]')
    """
    pictures = pictures_of(photos)
    named, opacity = checked_names(names, len(pictures)), checked_alpha(alpha)
    known = [{}] * len(pictures) if truths is None else truths
    _check_counts(len(pictures), results, known)
    maps = [_maps(result, i) for i, result in enumerate(results)]
    columns = _columns(maps, tasks, units or {})
    captions = [
        [name, *(_caption(column, result, truth) for column in columns)]
        for name, result, truth in zip(named, results, known, strict=True)
    ]
    sheet = Sheet([picture.shape[:2] for picture in pictures], captions, bars=True)
    for row, picture in enumerate(pictures):
        show(sheet.picture(row, 0), picture)
    for place, column in enumerate(columns, start=1):
        _draw(sheet, place, column, pictures, [found[column.task][column.output] for found in maps], opacity)
    return sheet.figure


def _draw(
    sheet: Sheet, place: int, column: _Column, pictures: Sequence[_Floats], maps: Sequence[_Floats], alpha: float
) -> None:
    """One column of maps over grey photos, on one scale, and its bar."""
    shown = [clipped(cells, column.minimum) for cells in maps]
    low, high = span(shown)
    for row, (picture, cells) in enumerate(zip(pictures, shown, strict=True)):
        axes = sheet.picture(row, place)
        show(axes, grey(picture))
        image = show(axes, cells, cmap=SCALE, vmin=low, vmax=high, alpha=alpha, interpolation="nearest")
    unit = f" [{column.unit}]" if column.unit else ""
    sheet.bar(place, image, f"{column.label} of one patch{unit}{clip_note(maps, column.minimum)}")


def _check_counts(photos: int, results: Sequence[Mapping[str, Any]], truths: Sequence[Any]) -> None:
    if len(results) != photos or any(result.get("maps") is None for result in results):
        raise DataError(f"{photos} photos with {len(results)} results; each result needs maps (maps=True)")
    if len(truths) != photos:
        raise DataError(f"{photos} photos with {len(truths)} truths; expected one of each, or None")


def _maps(result: Mapping[str, Any], place: int) -> dict[str, _Floats]:
    return {
        name: numbers(values, f"the maps of {name!r} of photo {place + 1}", "outputs, rows, cols")
        for name, values in result["maps"].items()
    }


def _columns(
    maps: Sequence[Mapping[str, _Floats]], tasks: Sequence[str | Task] | None, units: Mapping[str, str]
) -> list[_Column]:
    """What is drawn, checked to be there for every photo."""
    found: list[_Column] = []
    for task in maps[0] if tasks is None else tasks:
        name = task.name if isinstance(task, Task) else task
        counts = {len(one[name]) if name in one else 0 for one in maps}
        if isinstance(task, Task) and counts == {0}:
            continue  # of a predictor's tasks those that have no map
        if len(counts) > 1 or 0 in counts:
            raise DataError(
                f"results have no map of {name!r} of the same outputs for every photo; the first has "
                f"{', '.join(maps[0]) or 'none'}.{did_you_mean(name, maps[0])}"
            )
        labels = task.labels if isinstance(task, Task) else ()
        unit = units.get(name, task.unit if isinstance(task, Task) else "")
        minimum = task.minimum if isinstance(task, Task) else None
        for output in range(count := counts.pop()):
            part = labels[output] if output < len(labels) else str(output)
            found.append(_Column(name, output, name if count == 1 else f"{name}: {part}", unit, minimum))
    if not found:
        raise DataError("there are no maps to draw; these heads have none, or tasks= names none")
    return found


def _caption(column: _Column, result: Mapping[str, Any], truth: Mapping[str, Any]) -> str:
    if column.task not in result:
        return column.label
    told = f"{column.label} {column.of(result[column.task]):.3g} {column.unit}".rstrip()
    known = column.of(truth[column.task]) if column.task in truth else float("nan")
    return told if np.isnan(known) else f"{told} (true {known:.3g})"
