"""What figures share: checked numbers, outputs with their maps, axes with images, colour bars and captions."""

from __future__ import annotations

import io
import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from torch import Tensor

from dinoneck.data.decoding import ImageInput, as_list, decode
from dinoneck.errors import DataError, ShapeError, missing_extra, printable
from dinoneck.tasks import Task, columns_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

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
    """One number that a head predicts for an image, and the map that shows where it comes from.

    Attributes:
        key: its column, see :func:`dinoneck.tasks.columns_of`.
        task: name of the task whose number it is.
        place: which of the task's outputs.
        map: name of the task whose map shows it; another one where the number is the mean of a map (``from_cells``).
        channel: which of the map's outputs.
        dim: how many outputs the map has.
        unit: of the values.
        floor: below which no cell is possible; None = unknown.
        is_amount: whether 0 means nothing, so that colours start there.
        is_share: whether it is a part of one whole, or a probability, from 0 to 1.
    """

    key: str
    task: str
    place: int
    map: str
    channel: int
    dim: int
    unit: str = ""
    floor: float | None = None
    is_amount: bool = False
    is_share: bool = False

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

    def text(self, value: float) -> str:
        """Return a number as pictures show it: with its unit, a share as percent."""
        shown, unit = (100.0 * value, "%") if self.is_share else (value, self.unit)
        return f"{minus(f'{shown:.3g}')} {unit}".rstrip()


class Scale(NamedTuple):
    """How the maps of one output are drawn.

    Attributes:
        maps: (rows, cols) per result, the cells as drawn; None where a result has no map.
        low: the value of the darkest colour.
        high: the value of the brightest colour.
        note: what was changed for the picture, for the colour bar; empty where cells are as predicted.
    """

    maps: list[Floats | None]
    low: float
    high: float
    note: str


def scales(listed: Sequence[Output], results: Sequence[Mapping[str, Any]]) -> list[Scale]:
    """Return how the maps of results are drawn, one scale per output; the outputs of a map share low and high.

    Shares span 0 to 1; their cells are clipped to it, and those of several outputs divided by their sum. Other cells
    are clipped at the floor, and amounts start at 0. The results themselves stay as they are.

    Raises:
        ShapeError: if maps are not (outputs, rows, cols).
        DataError: if they are not finite.
    """
    found: dict[Output, Scale] = {}
    for name in dict.fromkeys(output.map for output in listed):
        members = [output for output in listed if output.map == name]
        given = [(result.get("maps") or {}).get(name) for result in results]
        axes = f"{members[0].dim}, rows, cols"
        maps = [m if m is None else numbers(m, f"the maps of {name!r}", axes) for m in given]
        found |= _shares(members, maps) if members[0].is_share else _values(members, maps)
    return [found[output] for output in listed]


def _shares(members: Sequence[Output], maps: Sequence[Floats | None]) -> dict[Output, Scale]:
    """The scales of maps (outputs, rows, cols) of shares."""
    drawn = [m if m is None else np.clip(m, 0.0, 1.0) for m in maps]
    if members[0].dim > 1:
        drawn = [m if m is None else m / np.where((whole := m.sum(axis=0)) > 0, whole, 1.0) for m in drawn]
    gaps = [np.abs(m - own).max() for m, own in zip(maps, drawn, strict=True) if m is not None and own is not None]
    note = " (clipped, normalised)" if max(gaps, default=0.0) > _ROUNDING else ""
    return {one: Scale([m if m is None else m[one.channel] for m in drawn], 0.0, 1.0, note) for one in members}


def _values(members: Sequence[Output], maps: Sequence[Floats | None]) -> dict[Output, Scale]:
    """The scales of maps (outputs, rows, cols) of other numbers."""
    found = {}
    for one in members:
        cells = [m if m is None else m[one.channel] for m in maps]
        floor = -math.inf if one.floor is None else one.floor
        is_clipped = any(m is not None and (m < floor).any() for m in cells)
        note = f" (clipped at {minus(f'{floor:g}')})" if is_clipped else ""
        found[one] = Scale([m if m is None else np.maximum(m, floor) for m in cells], 0.0, 0.0, note)
    present = [m for scale in found.values() for m in scale.maps if m is not None] or [np.zeros(1)]
    low, high = span(present)
    if any(one.is_amount for one in members):
        low, high = min(0.0, *(float(m.min()) for m in present)), max(0.0, *(float(m.max()) for m in present))
        high = high if high > low else low + 1.0
    return {one: scale._replace(low=low, high=high) for one, scale in found.items()}


def minus(text: str) -> str:
    """Return a text whose negative numbers have the minus sign of print."""
    return re.sub(r"(?<![^\s(])-(?=\d)", "\N{MINUS SIGN}", text)


def outputs(tasks: Sequence[Task]) -> list[Output]:
    """Return the outputs of tasks, in their order and each number once."""
    by_name = {task.name: task for task in tasks}
    found = []
    for key, task, place in columns_of(tasks):
        cells = by_name.get(task.from_cells or task.name, task)
        channel = cells.labels.index(task.name) if cells is not task and cells.dim > 1 else place
        adds_up = task.kind == "density" and task.aggregate == "sum"
        is_positive = task.minimum is not None and task.minimum >= 0
        floor = task.minimum if not adds_up else 0.0 if is_positive else None
        own = (floor, is_positive or adds_up, cells.is_share)
        found.append(Output(key, task.name, place, cells.name, channel, cells.dim, task.unit, *own))
    return found


def outputs_of(task: Task, tasks: Sequence[Task]) -> list[Output]:
    """Return those of the outputs of tasks that are a task's own."""
    return [output for output in outputs(tasks) if output.task == task.name]


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
    listed = [output for output in outputs(tasks) if output.map in maps]
    for name in () if tasks else maps:
        keys = [name] if len(maps[name]) == 1 else [f"{name} {place}" for place in range(len(maps[name]))]
        listed += [Output(key, name, place, name, place, len(keys)) for place, key in enumerate(keys)]
    if not listed:
        raise DataError("there are no maps to draw; these heads have none, or tasks= names none")
    return [output._replace(unit=(units or {}).get(output.task, output.unit)) for output in listed]


SCALE = "viridis"
# for colour-blind readers, each with a mark of its own
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000", "#8c6bb1")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_WIDTH, _HEIGHT = 16.0, 2.4  # inches of a row of images at most
_MARGIN = 0.05  # inches
_TEXT: dict[str, Any] = {"fontsize": 9.0, "parse_math": False}
_LUMINANCE = np.array([[0.299], [0.587], [0.114]])
_DPI = 120
_ROUNDING = 1e-4  # of shares: a smaller change is not worth a note


def new_figure(width: float, height: float, layout: Literal["constrained", "compressed"] = "constrained") -> Figure:
    """Return an empty figure of this size in inches.

    Raises:
        ImportError: if matplotlib is missing, naming the extra.
    """
    need_matplotlib()
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=_DPI, layout=layout)


def need_matplotlib() -> None:
    """Check that matplotlib is installed.

    Raises:
        ImportError: naming the extra.
    """
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError as error:
        raise missing_extra("matplotlib", "viz") from error


def fitted(text: str, inches: float, lines: int = 3) -> str:
    """Break a text into lines of about ``inches``, cut after the last; control characters are spelled out."""
    return textwrap.fill(printable(text, keep="\n"), max(8, int(13 * inches)), max_lines=lines, placeholder=" …")


def describe(axes: Axes, title: str | None = None, x: str = "", y: str = "") -> None:
    """Set title and axis labels; dollar signs are text."""
    inches = 1.3 * axes.get_position().width * axes.figure.bbox.width / _DPI
    axes.set_title(fitted(title or "", inches), **_TEXT)
    axes.set_xlabel(fitted(x, inches, 2), **_TEXT)
    axes.set_ylabel(fitted(y, inches, 2), **_TEXT)
    axes.tick_params(labelsize=8.0)


def image_rows(images: ImageInput | Sequence[ImageInput], captions: Sequence[Sequence[str]]) -> tuple[Figure, Any]:
    """Return a figure with a row per image and a column per caption, and its axes as an array (rows, columns).

    The axes of a row span x = 0 ... width and y = 0 ... height, the pixels of its image. The first column shows it,
    the others show it in grey, so that the colours of a map over it can be read.

    Args:
        images: in any form that can be decoded.
        captions: of each row, one per column.

    Raises:
        DataError: if one cannot be read.
    """
    pictures = [decode(image).permute(1, 2, 0).numpy() for image in as_list(images)]
    columns = len(captions[0])
    wide = [picture.shape[1] / picture.shape[0] for picture in pictures]
    column = min(max(1.9, _HEIGHT * max(wide)), 5.0, max(1.9, _WIDTH / columns))
    heights = [max(0.1, min(_HEIGHT, column / ratio)) for ratio in wide]
    figure = new_figure(columns * column, sum(heights) + 0.4 * len(pictures) + 0.5, "compressed")
    axes = figure.subplots(len(pictures), columns, squeeze=False, gridspec_kw={"height_ratios": heights})
    for row, picture in enumerate(pictures):
        height, width = picture.shape[:2]
        for place, caption in enumerate(captions[row]):
            own = axes[row, place]
            own.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[], autoscale_on=False)
            own.set_title(fitted(caption, heights[row] * wide[row]), **_TEXT)
            show(own, picture if place == 0 else np.repeat(picture @ _LUMINANCE, 3, axis=-1))
    return figure, axes


def names_of(images: ImageInput | Sequence[ImageInput], names: Sequence[str] | None, *counts: int) -> list[str]:
    """Return one name per image.

    Raises:
        DataError: if there are no images, or not one name, and one of all that ``counts`` counts, per image.
    """
    count = len(as_list(images))
    if not count:
        raise DataError("there are no images to draw")
    if any(other != count for other in counts):
        raise DataError(f"{count} images with {' and '.join(map(str, counts))} of what is drawn; expected one of each")
    if names is None:
        return ["image"] if count == 1 else [f"image {i + 1}" for i in range(count)]
    if isinstance(names, str) or len(names) != count:
        raise DataError(f"names are {names!r}; expected {count}, one per image")
    return [str(name) for name in names]


def show(axes: Axes, values: Floats, size: tuple[float, float] | None = None, **how: Any) -> Any:
    """Draw an image or a map over the whole of the axes, or over (height, width) px, without blending of cells."""
    height, width = size or (axes.get_ylim()[0], axes.get_xlim()[1])
    return axes.imshow(values, extent=(0, width, height, 0), interpolation="nearest", **how)


def trim(figure: Figure) -> None:
    """Set the height of a figure of images to what they and their captions take, at its width."""
    figure.draw_without_rendering()
    figure.set_figheight(figure.get_tightbbox().height + 2 * _MARGIN)


def colour_bar(image: Any, axes: Sequence[Axes], label: str) -> None:
    """Add the colour bar of an image below its axes."""
    bar = axes[0].figure.colorbar(image, ax=list(axes), location="bottom", fraction=0.05, aspect=40)
    bar.set_label(fitted(label, 4.0, 2), **_TEXT)
    bar.ax.tick_params(labelsize=8.0)


def legend(axes: Axes, names: Sequence[str], marks: Sequence[Any], place: Literal["upper left", "upper right"]) -> None:
    """Name marks exactly as they are called: with underscores and dollar signs."""
    box = axes.legend(marks, [fitted(name, 2.0, 1) for name in names], fontsize=8.0, loc=place, framealpha=0.8)
    for text in box.get_texts():
        text.set_parse_math(False)


def outline(axes: Axes, box: Floats, colour: str, line: str) -> Any:
    """Draw the edges of a box (x0, y0, x1, y1), with a dark rim that shows on any ground."""
    from matplotlib.patches import Rectangle
    from matplotlib.patheffects import withStroke

    x0, y0, x1, y1 = box.tolist()
    rim = [withStroke(linewidth=3.0, foreground="black", alpha=0.6)]
    style: dict[str, Any] = {"fill": False, "edgecolor": colour, "linewidth": 1.5, "linestyle": line}
    return axes.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, path_effects=rim, **style))


class Chart(NamedTuple):
    """A chart of a page: what it is about, what it shows, and the attributes and content of its svg element."""

    name: str
    what: str
    svg: str


def chart(figure: Figure, name: str, what: str) -> Chart:
    """Return a figure as SVG: text stays text, black is the colour of the page's text, ids are unique in the page."""
    from matplotlib import rc_context

    buffer = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": f"{name!a} {what}"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    own = r'(?s)^.*?<svg |<metadata>.*?</metadata>| id="[A-Za-z.]+\d*[A-Za-z]*_\d+"'
    content = re.sub(own, "", buffer.getvalue()).replace(PALETTE[0], "var(--link)")
    return Chart(name, what, re.sub("#000000|#4d4d4d", "currentColor", content))
