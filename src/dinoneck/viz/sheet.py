"""Sheets of pictures with captions and colour bars: the only file that imports matplotlib, when the first is drawn.

Figures are made through matplotlib's objects, never through pyplot: nothing is global, no display is needed, threads do
not disturb each other, and a figure goes when its last name goes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from dinoneck.data.photos import Photo, as_list, decode
from dinoneck.errors import DataError, missing_extra, printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_Floats = np.ndarray[Any, Any]

SCALE = "viridis"
CAPTION_PT, TICK_PT = 9.0, 8.0
LARGEST = 48  # rows; more would not be looked at, and far more cannot be rendered
_WIDEST_ROW = 200  # pictures, likewise
_DPI = 120
_MARGIN, _GUTTER, _LINE = 0.12, 0.16, 0.165  # inches
_BAR, _BAR_BAND, _INSET = 0.1, 0.55, 0.22
_HEIGHT, _NARROWEST, _WIDEST, _SHEET_WIDTH = 2.4, 1.9, 5.0, 16.0
_LINES = 3


class Sheet:
    """Rows of pictures, one column per kind of picture, each with a caption above it; colour bars under columns.

    Places are worked out before anything is drawn, in inches, so that captions have room, and a picture's axes cover
    it exactly: x runs from 0 to its width and y from 0 to its height, in its pixels.

    Args:
        sizes: (height, width) in pixels of the pictures of each row.
        captions: one per picture, row by row; those too long for their column are wrapped, then cut.
        bars: whether there is a row of colour bars at the bottom.
        longest: inches of a picture's longer side; None = as fits several beside each other.

    Raises:
        DataError: if there are no rows or more than 48, or more than 200 pictures in a row.
        ImportError: if matplotlib is missing.
    """

    def __init__(
        self,
        sizes: Sequence[tuple[int, ...]],
        captions: Sequence[Sequence[str]],
        *,
        bars: bool = False,
        longest: float | None = None,
    ) -> None:
        if not 0 < len(sizes) <= LARGEST:
            raise DataError(f"{len(sizes)} rows of pictures; one figure takes 1 ... {LARGEST}")
        columns = len(captions[0])
        if columns > _WIDEST_ROW:
            raise DataError(f"{columns} pictures beside each other; one figure takes {_WIDEST_ROW} at most. Name fewer")
        _need_matplotlib()
        tallest, widest = (_HEIGHT, _WIDEST) if longest is None else (longest, longest)
        wished = max(tallest * width / height for height, width in sizes)
        roomy = max(_NARROWEST, (_SHEET_WIDTH - 2 * _MARGIN) / columns - _GUTTER)
        self.column = min(max(wished, _NARROWEST), widest, roomy)
        self.captions = [[wrapped(text, self.column) for text in row] for row in captions]
        bands = [_LINE * max(text.count("\n") + 1 for text in row) + 0.06 for row in self.captions]
        scales = [min(self.column / width, tallest / height) for height, width in sizes]
        boxes = [(max(h * s, 0.02), max(w * s, 0.02)) for (h, w), s in zip(sizes, scales, strict=True)]
        self._sizes, self._boxes, self._tops = list(sizes), boxes, []
        top = _MARGIN
        for band, (height, _) in zip(bands, boxes, strict=True):
            self._tops.append(top + band)
            top += band + height + _GUTTER
        self._bar_top = top
        self.width = 2 * _MARGIN + columns * self.column + (columns - 1) * _GUTTER
        self.height = top + (_BAR_BAND if bars else 0.0)
        self.figure = new_figure(self.width, self.height)

    def picture(self, row: int, column: int) -> Axes:
        """Add the axes of one picture with its caption, in the picture's pixels, without ticks."""
        (height, width), size = self._boxes[row], self._sizes[row]
        left = self._left(column) + (self.column - width) / 2
        axes = self._axes(left, self._tops[row], width, height)
        axes.set_xlim(0, size[1])
        axes.set_ylim(size[0], 0)
        axes.set_autoscale_on(False)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.spines[:].set_linewidth(0.4)
        middle = (self._left(column) + self.column / 2 - left) / width
        axes.text(
            middle, 1.0 + 0.05 / height, self.captions[row][column], transform=axes.transAxes, fontsize=CAPTION_PT,
            ha="center", va="bottom", parse_math=False, gid="caption",
        )  # fmt: skip
        return axes

    def bar(self, column: int, image: Any, label: str) -> None:
        """Add the colour bar of an image under a column."""
        from matplotlib.ticker import FuncFormatter, MaxNLocator

        axes = self._axes(self._left(column) + _INSET, self._bar_top, self.column - 2 * _INSET, _BAR)
        self.figure.colorbar(image, cax=axes, orientation="horizontal")
        axes.xaxis.set_major_locator(MaxNLocator(max(2, int(self.column / 0.8)), steps=[1, 2, 2.5, 5, 10]))
        axes.xaxis.set_major_formatter(FuncFormatter(_number(*image.get_clim())))
        axes.tick_params(labelsize=TICK_PT, length=2, pad=1)
        axes.set_xlabel(wrapped(label, self.column, 1), fontsize=CAPTION_PT, labelpad=1, parse_math=False)

    def _left(self, column: int) -> float:
        return _MARGIN + column * (self.column + _GUTTER)

    def _axes(self, left: float, top: float, width: float, height: float) -> Axes:
        place = (left / self.width, 1.0 - (top + height) / self.height, width / self.width, height / self.height)
        return self.figure.add_axes(place)


def new_figure(width: float, height: float, *, layout: Literal["constrained"] | None = None) -> Figure:
    """Return an empty figure of this size in inches.

    Raises:
        ImportError: if matplotlib is missing, naming the extra.
    """
    _need_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=_DPI, layout=layout, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _need_matplotlib() -> None:
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError as error:
        raise missing_extra("matplotlib", "viz") from error


def wrapped(text: str, width: float, lines: int = _LINES, size: float = CAPTION_PT) -> str:
    """Break a text into lines of at most ``width`` inches, and cut it with an ellipsis after the last one."""
    found: list[str] = []
    for paragraph in _shown(text).split("\n"):
        line = ""
        for word in paragraph.split(" "):
            longer = f"{line} {word}" if line else word
            if line and _inches(longer, size) > width:
                found.append(line)
                longer = word
            line = longer
        found.append(line)
    kept = found[:lines]
    if len(found) > lines:
        kept[-1] += " …"
    return "\n".join(_cut(line, width, size) for line in kept)


def _shown(text: str) -> str:
    """A text without signs that no font has: controls and halves of signs are spelled out."""
    return printable(text, keep="\n")


def pictures_of(photos: Photo | Sequence[Photo]) -> list[_Floats]:
    """Decode photos to (height, width, 3) in 0 ... 1.

    Raises:
        DataError: if there are none, more than 48, or one cannot be read.
    """
    listed = as_list(photos)
    if not 0 < len(listed) <= LARGEST:
        raise DataError(f"{len(listed)} photos; one figure takes 1 ... {LARGEST}")
    return [decode(photo).permute(1, 2, 0).numpy() for photo in listed]


def grey(picture: _Floats) -> _Floats:
    """Return a picture without its colours, so that those of a map over it can be read."""
    luminance = picture @ np.array([0.299, 0.587, 0.114])
    return np.repeat(luminance[..., None], 3, axis=-1)


def show(axes: Axes, picture: _Floats, **how: Any) -> Any:
    """Draw an image over the whole of a picture's axes, one cell beside the other without blending."""
    right, bottom = axes.get_xlim()[1], axes.get_ylim()[0]
    return axes.imshow(picture, extent=how.pop("extent", (0, right, bottom, 0)), aspect="auto", **how)


def rectangle(axes: Axes, box: _Floats, colour: str, line: str) -> Any:
    """Draw the edges of a box (x0, y0, x1, y1), with a dark rim that lets them be seen on any ground."""
    from matplotlib.patches import Rectangle
    from matplotlib.patheffects import withStroke

    x0, y0, x1, y1 = (float(end) for end in box)
    rim = [withStroke(linewidth=3.0, foreground="black", alpha=0.6)]
    patch = Rectangle(
        (x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=colour, linewidth=1.5, linestyle=line, path_effects=rim
    )
    return axes.add_patch(patch)


def legend(axes: Axes, names: Sequence[str], marks: Sequence[Any], place: Literal["upper left", "upper right"]) -> None:
    """Name marks as they are called: one that begins with an underscore, or holds dollar signs, too."""
    if names:
        box = axes.legend(marks, [*map(_shown, names)], fontsize=TICK_PT, loc=place, framealpha=0.8)
        for text in box.get_texts():
            text.set_parse_math(False)


def span(values: Sequence[_Floats]) -> tuple[float, float]:
    """Return the lowest and the highest value; where they differ by rounding only, a range with them in its middle."""
    low, high = min(float(v.min()) for v in values), max(float(v.max()) for v in values)
    if high - low <= 1e-5 * max(abs(low), abs(high)):
        half = 0.5 * (abs(low) or 1.0)
        return low - half, high + half
    return low, high


def checked_names(names: Sequence[str] | None, count: int) -> list[str]:
    """Return one name per photo.

    Raises:
        DataError: if there are more or fewer.
    """
    if names is None:
        return ["photo"] if count == 1 else [f"photo {i + 1}" for i in range(count)]
    if isinstance(names, str) or len(names) != count:
        raise DataError(f"names are {names!r}; expected {count}, one per photo")
    return [str(name) for name in names]


def _number(low: float, high: float) -> Callable[[float, int | None], str]:
    """What writes a tick's label, with as many digits as tell the ticks apart."""
    largest = max(abs(low), abs(high))
    digits = max(3, 2 + math.ceil(math.log10(largest / (high - low))))
    return lambda value, _: f"{0.0 if abs(value) < 1e-9 * largest else value:.{digits}g}"


def _cut(line: str, width: float, size: float) -> str:
    if _inches(line, size) <= width:
        return line
    kept = len(line)
    while kept > 1 and _inches(line[:kept] + "…", size) > width:
        kept -= 1
    return line[:kept].rstrip(" …") + "…"


def _inches(text: str, size: float) -> float:
    return sum(_advance(sign) for sign in text) * size / 72.0


@lru_cache(maxsize=4096)
def _advance(sign: str) -> float:
    """How far a sign moves the pen, as a share of the font's size."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    font = get_font(findfont(FontProperties()))
    if not font.get_char_index(ord(sign)):  # drawn as a box; asked for its width, some versions raise
        return 1.0
    font.set_size(100.0, 72.0)
    return float(font.load_char(ord(sign)).linearHoriAdvance) / 65536.0 / 100.0
