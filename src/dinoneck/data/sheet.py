"""The picture of a data set: up to sixteen images with their labels drawn as they were read.

Images are decoded one after the other, a JPEG at a smaller scale. Nothing is kept of them but their
tiles.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageColor, ImageDraw

from dinoneck.errors import DataError
from dinoneck.images.bit_depth import FILE_BITS
from dinoneck.images.colours import NODATA, RGB, heat_colours
from dinoneck.images.fonts import font_of
from dinoneck.images.pixels import decode, read_by_rasterio, read_picture, read_planes
from dinoneck.text import printable

Array = np.ndarray[Any, Any]
Colour = RGB | None
"""None: the class has no colour, and the image shows through."""

MOST_IMAGES = 16
_COLUMNS = 3
_WIDTH = 360  # px of a tile
_HEIGHT = 420  # px of the highest picture in a tile
_GAP = 12
_LETTERS = 27  # px; 9 where the sheet is as wide as a phone, 390 px
_SMALL_LETTERS = 22  # of the classes of boxes
_LINE = 34  # px from one line of text to the next
_MOST_LINES = 4  # of text below a picture
_MOST_IN_LEGEND = 40
_OPACITY = 0.3  # of the fill of classes and objects
_HEAT_OPACITY = 0.7
_FRAME = 4  # px of the frame of a box
_HATCH = 14  # px from one line of a hatch to the next
_PAPER = "white"
_INK = (30, 30, 30)
_GREY = (89, 99, 111)


@dataclass(frozen=True, eq=False)
class Regions:
    """The classes, or the objects, that pixels are of.

    Attributes:
        ids: (H, W), the class or the object of each pixel; -1 = none.
        colours: of each class or object.
        hatched: whether pixels of none are hatched, as they are unlabelled.
    """

    ids: Array
    colours: Sequence[Colour]
    hatched: bool


@dataclass(frozen=True, eq=False)
class Heat:
    """Numbers per pixel (H, W), NaN = unknown; ``low`` is dark violet, ``high`` yellow."""

    values: Array
    low: float
    high: float


@dataclass(frozen=True, eq=False)
class Painting:
    """Colours per pixel (H, W, 3), 0 ... 255; NaN = unknown."""

    colours: Array


@dataclass(frozen=True)
class Box:
    """Left, top, right and bottom in pixels of the upright image, with the name of its class and its colour."""

    corners: Sequence[float]
    name: str
    colour: str


@dataclass(frozen=True)
class Sample:
    """An image of the sheet.

    Attributes:
        image: a file, or an image in memory.
        name: of the image.
        texts: what is known of it, each begins a line.
        size: (height, width) of the upright image that the boxes are on; None without boxes.
        boxes: of its objects.
        overlay: returns what is drawn over the image, where it has such labels.
    """

    image: Any
    name: str
    texts: Sequence[str] = ()
    size: tuple[int, int] | None = None
    boxes: Sequence[Box] = ()
    overlay: Callable[[], Regions | Heat | Painting] | None = None


def choose_rows(
    num_rows: int, shown: Mapping[str, Mapping[int, int]], extremes: Sequence[int]
) -> list[int]:
    """Return the rows of the images that are drawn, at most sixteen.

    First the image that shows most of each class, the rarest class first, unless an image before it
    shows that class too; then the rows of the smallest and largest values; then rows at equal
    distances.

    Args:
        num_rows: of the data set.
        shown: class -> row -> how much of the class it shows, such as the number of pixels or boxes.
        extremes: rows of the smallest and the largest value of each target.
    """
    rows: dict[int, None] = {}
    for amounts in sorted(shown.values(), key=lambda amounts: sum(amounts.values())):
        if amounts and rows.keys().isdisjoint(amounts):
            rows[max(amounts, key=lambda row: (amounts[row], -row))] = None
    rows |= dict.fromkeys(extremes)
    chosen = list(rows)[:MOST_IMAGES]
    spread = np.linspace(0, num_rows - 1, min(num_rows, MOST_IMAGES)).round().astype(int)
    for row in spread.tolist():
        if len(chosen) < MOST_IMAGES and row not in chosen:
            chosen.append(row)
    for row in range(min(num_rows, 2 * MOST_IMAGES)):  # of few images every one
        if len(chosen) < min(num_rows, MOST_IMAGES) and row not in chosen:
            chosen.append(row)
    return chosen


def draw_sheet(
    samples: Sequence[Sample],
    *,
    title: str,
    legend: Mapping[str, Colour],
    bits: int | None = None,
) -> Image.Image:
    """Draw the samples side by side, below the title and above the legend.

    Args:
        samples: one or more.
        title: how many images there are.
        legend: name of a class -> its colour.
        bits: how many bits images of 16 bits use; None = all.
    """
    tiles = [draw_tile(sample, bits) for sample in samples]
    columns = min(_COLUMNS, len(tiles))
    width = max(2, columns) * (_WIDTH + _GAP) + _GAP
    strips = [_text_strip([title], width)]
    for first in range(0, len(tiles), columns):
        strips.append(_row_of(tiles[first : first + columns], width))
    if legend:
        strips.append(_legend_strip(legend, width))
    sheet = Image.new("RGB", (width, sum(strip.height for strip in strips)), _PAPER)
    top = 0
    for strip in strips:
        sheet.paste(strip, (0, top))
        top += strip.height
    return sheet


def _row_of(tiles: Sequence[Image.Image], width: int) -> Image.Image:
    row = Image.new("RGB", (width, max(tile.height for tile in tiles) + _GAP), _PAPER)
    for number, tile in enumerate(tiles):
        row.paste(tile, (_GAP + number * (_WIDTH + _GAP), 0))
    return row


def draw_tile(sample: Sample, bits: int | None) -> Image.Image:
    """A picture with its labels, and the text below it."""
    name = shortened_name(printable(sample.name), _WIDTH)
    texts = wrapped([printable(text) for text in sample.texts], _WIDTH, _MOST_LINES)
    try:
        picture = _read_small(sample.image, bits)
    except DataError:
        picture = Image.new("RGB", (_WIDTH, _WIDTH * 3 // 4), NODATA)
        texts = ["it cannot be drawn", *texts]
    else:
        if sample.overlay is not None:
            picture = _with_overlay(picture, sample.overlay())
        if sample.size is not None:
            _draw_boxes(picture, sample.boxes, sample.size)
    height = picture.height + _LINE * (1 + len(texts)) + 6
    tile = Image.new("RGB", (_WIDTH, height), _PAPER)
    tile.paste(picture, ((_WIDTH - picture.width) // 2, 0))
    draw = ImageDraw.Draw(tile)
    draw.text((0, picture.height + 4), name, _GREY, font_of(_LETTERS))
    for number, text in enumerate(texts, 1):
        draw.text((0, picture.height + 4 + number * _LINE), text, _INK, font_of(_LETTERS))
    return tile


# The photo and what is drawn on it
# ----------------------------------------------------------------------------------------------------


def _read_small(image: Any, bits: int | None) -> Image.Image:
    """An image of 8 bits, upright, as large as a tile."""
    bits = bits or FILE_BITS
    if isinstance(image, str | os.PathLike):

        def read(opened: Image.Image, name: str) -> Array:
            opened.draft(None, (2 * _WIDTH, 2 * _WIDTH))
            return decode(opened, name, bits)

        planes = read_by_rasterio(Path(image), bits)
        if planes is None:
            planes = read_picture(Path(image), read)
    else:
        planes = read_planes(_as_picture(image), bits)
    if planes.dtype != np.uint8:
        planes = np.rint(planes * 255).astype(np.uint8)
    pixels = np.moveaxis(np.broadcast_to(planes, (3, *planes.shape[1:])), 0, -1)
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    scale = min(_WIDTH / picture.width, _HEIGHT / picture.height)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(size, Image.Resampling.BICUBIC, reducing_gap=2.0)


def _as_picture(image: Any) -> Any:
    """An image in memory as Pillow or NumPy has it; a tensor (3, H, W) has its channels last."""
    if isinstance(image, np.ndarray | Image.Image):
        return image
    array = np.asarray(image)
    return np.moveaxis(array, 0, -1) if array.ndim == 3 else array


def _with_overlay(picture: Image.Image, overlay: Regions | Heat | Painting) -> Image.Image:
    pixels: Array = np.asarray(picture, np.float32)
    if isinstance(overlay, Regions):
        pixels = _with_regions(pixels, overlay)
    elif isinstance(overlay, Heat):
        values = _nearest(overlay.values, picture.size)
        colours = heat_colours(np.nan_to_num(values), overlay.low, overlay.high)
        pixels = _blended(_greyed(pixels), colours, ~np.isnan(values))
    else:
        painted = _nearest(overlay.colours, picture.size)
        is_known = np.isfinite(painted[..., 0])
        pixels = _blended(_greyed(pixels), np.nan_to_num(painted), is_known)
    return Image.fromarray(np.rint(pixels).astype(np.uint8))


def _with_regions(pixels: Array, regions: Regions) -> Array:
    """A light fill and an outline in the colour of each region; hatches where nothing is labelled."""
    height, width, _ = pixels.shape
    ids = _nearest(regions.ids, (width, height))
    # the last colour is that of no region: its id is -1
    has_colour = np.array([colour is not None for colour in (*regions.colours, None)])
    colours = np.array([colour or (0, 0, 0) for colour in (*regions.colours, None)], np.float32)
    opacity = np.where(_is_at_edge(ids), 1.0, _OPACITY) * has_colour[ids]
    drawn: Array = pixels + opacity[..., None].astype(np.float32) * (colours[ids] - pixels)
    if regions.hatched:
        across, down = np.meshgrid(np.arange(width), np.arange(height))
        drawn[(ids < 0) & ((across + down) % _HATCH < 4)] = NODATA
    return drawn


def _is_at_edge(ids: Array) -> Array:
    """Whether pixels are at most two from one of another region; nothing is beyond the border."""
    height, width = ids.shape
    padded = np.pad(ids, 2, mode="edge")
    is_edge = np.zeros(ids.shape, bool)
    for step in (-2, -1, 1, 2):
        is_edge |= ids != padded[2 + step : 2 + step + height, 2:-2]
        is_edge |= ids != padded[2:-2, 2 + step : 2 + step + width]
    return is_edge


def _nearest(values: Array, size: tuple[int, int]) -> Array:
    """Values (H, W, ...) at (width, height) pixels, each of the nearest one."""
    width, height = size
    rows = ((np.arange(height) + 0.5) * values.shape[0] / height).astype(int)
    cols = ((np.arange(width) + 0.5) * values.shape[1] / width).astype(int)
    nearest: Array = values[rows[:, None], cols]
    return nearest


def _greyed(pixels: Array) -> Array:
    grey: Array = np.repeat(pixels.mean(axis=2, keepdims=True), 3, axis=2)
    return grey


def _blended(pixels: Array, colours: Array, where: Array) -> Array:
    blended = pixels.copy()
    blended[where] += _HEAT_OPACITY * (colours[where] - blended[where])
    return blended


def _draw_boxes(picture: Image.Image, boxes: Sequence[Box], size: tuple[int, int]) -> None:
    """Frames, and the classes of those whose names do not cover one another."""
    draw = ImageDraw.Draw(picture)
    across = picture.width / size[1]
    down = picture.height / size[0]
    font = font_of(_SMALL_LETTERS)
    names: list[tuple[float, float, float, float]] = []
    for box in boxes:
        left, top, right, bottom = box.corners
        frame = (left * across, top * down, max(left, right) * across, max(top, bottom) * down)
        draw.rectangle(frame, outline="white", width=_FRAME + 2)
        draw.rectangle(frame, outline=box.colour, width=_FRAME)
    for box in boxes:
        text = printable(box.name)
        text_width = draw.textlength(text, font) + 8
        x = min(box.corners[0] * across, picture.width - text_width)
        y = box.corners[1] * down - _SMALL_LETTERS - 6
        place = (max(0, x), max(0, y), max(0, x) + text_width, max(0, y) + _SMALL_LETTERS + 6)
        if text_width <= picture.width and not any(_overlap(place, other) for other in names):
            names.append(place)
            draw.rectangle(place, fill=box.colour)
            draw.text((place[0] + 4, place[1] + 1), text, _ink_on(box.colour), font)


def _overlap(first: Sequence[float], second: Sequence[float]) -> bool:
    is_beside = first[2] < second[0] or second[2] < first[0]
    is_above = first[3] < second[1] or second[3] < first[1]
    return not (is_beside or is_above)


def _ink_on(colour: str) -> str:
    red, green, blue = ImageColor.getrgb(colour)[:3]
    return "black" if 0.3 * red + 0.6 * green + 0.1 * blue > 140 else "white"


# Text
# ----------------------------------------------------------------------------------------------------


def _length(text: str) -> float:
    length: float = font_of(_LETTERS).getlength(text)
    return length


def shortened_name(name: str, width: int) -> str:
    """A name that fits in a line; of a long one the end."""
    if _length(name) <= width:
        return name
    while name and _length(f"…{name}") > width:
        name = name[1:]
    return f"…{name}"


def wrapped(texts: Sequence[str], width: int, most_lines: int) -> list[str]:
    """Texts broken at blanks into lines; what does not fit is left out, and an ellipsis says so."""
    lines: list[str] = []
    for text in texts:
        line = ""
        for word in text.split(" "):
            longer = f"{line} {word}" if line else word
            if line and _length(longer) > width:
                lines.append(line)
                line = word
            else:
                line = longer
        lines.append(line)
    is_cut = len(lines) > most_lines
    lines = [_cut(line, width) for line in lines[:most_lines]]
    if is_cut:
        lines[-1] = _cut(f"{lines[-1].removesuffix('…')} …", width)
    return lines


def _cut(line: str, width: int) -> str:
    if _length(line) <= width:
        return line
    while line and _length(f"{line}…") > width:
        line = line[:-1]
    return f"{line}…"


def _text_strip(texts: Sequence[str], width: int) -> Image.Image:
    lines = wrapped([printable(text) for text in texts], width - 2 * _GAP, most_lines=3)
    strip = Image.new("RGB", (width, _LINE * len(lines) + 2 * _GAP), _PAPER)
    draw = ImageDraw.Draw(strip)
    for number, line in enumerate(lines):
        draw.text((_GAP, _GAP + number * _LINE), line, _INK, font_of(_LETTERS))
    return strip


def _legend_strip(legend: Mapping[str, Colour], width: int) -> Image.Image:
    """A swatch for each class; a class without a colour has an empty one."""
    side = _LETTERS - 3
    entries = list(legend.items())[:_MOST_IN_LEGEND]
    places = []
    x, y = _GAP, 0
    for name, colour in entries:
        text = _cut(printable(name), width - 3 * _GAP - side)
        entry_width = side + 8 + round(_length(text)) + 2 * _GAP
        if x + entry_width > width and x > _GAP:
            x, y = _GAP, y + _LINE + 4
        places.append((x, y, text, colour))
        x += entry_width
    rest = len(legend) - len(entries)
    if rest:
        places.append((_GAP, y + _LINE + 4, f"and {rest} more classes", _GREY))
        y += _LINE + 4
    strip = Image.new("RGB", (width, y + _LINE + 2 * _GAP), _PAPER)
    draw = ImageDraw.Draw(strip)
    for left, top, text, colour in places:
        swatch = (left, top + 5, left + side, top + 5 + side)
        draw.rectangle(swatch, fill=colour, outline=_GREY if colour is None else None, width=2)
        draw.text((left + side + 8, top), text, _INK, font_of(_LETTERS))
    return strip
