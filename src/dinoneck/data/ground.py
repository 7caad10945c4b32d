"""Where images and labels lie on the ground, by the coordinates that their files state.

A mask of another tile has the size of its image, and so has one whose first row is in the south: the
coordinates alone tell. They are in the tags of a GeoTIFF, in GDAL's ``.aux.xml``, or in a world file
such as ``0.pgw``. Neither pandas nor torch is imported.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dinoneck.atomic import open_regular
from dinoneck.data import xml_notes
from dinoneck.errors import DataError
from dinoneck.images.pixels import read_picture
from dinoneck.images.tiff import numbers_of, size_of_bands, tiff_pages
from dinoneck.text import counted

logger = logging.getLogger(__name__)

# GeoTIFF, OGC 19-008r4
_PIXEL_SCALE = 33550
_TIEPOINT = 33922
_TRANSFORMATION = 34264
_GEO_KEYS = 34735
_RASTER_TYPE = 1025
_PIXEL_IS_POINT = 2
_SYSTEMS = (3072, 2048)  # projected, geographic
_USER_DEFINED = 32767

_TIFF_SUFFIXES = (".tif", ".tiff")
_LARGEST_NOTE = 1 << 26  # bytes of an .aux.xml, see label_notes
_LARGEST_WORLD_FILE = 1000  # bytes of six numbers
# programs that take the middle of a pixel for its corner differ by half a pixel
_MOST_SHIFT = 1.0
_EQUAL_SIZE = 0.01  # of two pixels, as a share
# neighbours of one grid touch, and may share a row of pixels
_LEAST_OVERLAP = 0.1  # of the smaller image
_NAME_GROUPS = "Name the field or the flight of each image in a table, as its group (--group)"


@dataclass(frozen=True)
class Place:
    """Where the pixels of a file lie: column and row -> x and y.

    x = x_per_column * column + x_per_row * row + x, and y likewise; column 0 and row 0 are the upper
    left corner of the first pixel.

    Attributes:
        x_per_column: ground units.
        x_per_row: 0 unless the file is turned.
        x: of the corner.
        y_per_column: 0 unless the file is turned.
        y_per_row: negative where the first row is in the north.
        y: of the corner.
        system: of the coordinates, such as ``EPSG 32632``; "" = the file does not say.
    """

    x_per_column: float
    x_per_row: float
    x: float
    y_per_column: float
    y_per_row: float
    y: float
    system: str = ""

    @property
    def area(self) -> float:
        """The area of a pixel, negative where the first row is in the north."""
        return self.x_per_column * self.y_per_row - self.x_per_row * self.y_per_column

    @property
    def is_usable(self) -> bool:
        """Whether the numbers are those of a place, not of pixels counted from 0."""
        across = (self.x_per_column, self.x_per_row, self.x)
        along = (self.y_per_column, self.y_per_row, self.y)
        if not all(map(math.isfinite, across + along)) or self.area == 0:
            return False
        # as programs write for pictures without coordinates
        counts_pixels = abs(self.x_per_column) == 1 and abs(self.y_per_row) == 1
        return not (counts_pixels and abs(self.x) <= 1)

    def at(self, column: float, row: float) -> tuple[float, float]:
        """Return x and y of a corner between pixels."""
        x = self.x_per_column * column + self.x_per_row * row + self.x
        y = self.y_per_column * column + self.y_per_row * row + self.y
        return x, y


def read_place(path: Path) -> Place | None:
    """Return where the pixels of a file lie; None if it does not say, or in a form that is not read."""
    for read in (_of_note, _of_tags, _of_world_file):
        place = read(path)
        if place is not None:
            return place if place.is_usable else None
    return None


def _of_note(path: Path) -> Place | None:
    """The place that GDAL's ``.aux.xml`` states."""
    note = Path(f"{path}.aux.xml")
    content = _content_of(note, _LARGEST_NOTE)
    if not content:
        return None
    root = xml_notes.parse(content)
    numbers = _numbers_in(root.first_text("geotransform").replace(",", " ") if root else "")
    if numbers is None:
        return None
    x, x_per_column, x_per_row, y, y_per_column, y_per_row = numbers
    return Place(
        x_per_column=x_per_column,
        x_per_row=x_per_row,
        x=x,
        y_per_column=y_per_column,
        y_per_row=y_per_row,
        y=y,
    )


def _of_world_file(path: Path) -> Place | None:
    """The place that a world file states, whose corner is the middle of the first pixel."""
    letters = path.suffix.lower().lstrip(".")
    if not letters:
        return None
    for ending in (f".{letters[0]}{letters[-1]}w", f".{letters}w", ".wld"):
        content = _content_of(path.with_suffix(ending), _LARGEST_WORLD_FILE)
        numbers = _numbers_in(content.decode("ascii", "replace"))
        if numbers is not None:
            x_per_column, y_per_column, x_per_row, y_per_row, x, y = numbers
            middle = Place(
                x_per_column=x_per_column,
                x_per_row=x_per_row,
                x=x,
                y_per_column=y_per_column,
                y_per_row=y_per_row,
                y=y,
            )
            return _from_middle(middle)
    return None


def _from_middle(place: Place) -> Place:
    """A place whose x and y are those of the middle of the first pixel, by its corner."""
    x, y = place.at(-0.5, -0.5)
    return replace(place, x=x, y=y)


def _content_of(path: Path, most: int) -> bytes:
    """The bytes of a file beside another one; none if it is not there, or longer than such files are."""
    if not os.path.isfile(path):  # noqa: PTH113 - twice as fast as Path.is_file
        return b""
    try:
        with open_regular(path) as file:
            content = file.read(most + 1)
    except OSError:
        return b""  # nobody asked for it
    return content if len(content) <= most else b""


def _numbers_in(text: str) -> list[float] | None:
    """The six numbers of a text; None if it holds others."""
    try:
        numbers = [float(word) for word in text.split()]
    except ValueError:
        return None
    return numbers if len(numbers) == 6 else None


def _of_tags(path: Path) -> Place | None:
    """The place that the tags of a GeoTIFF state; None for several points and other files."""
    if path.suffix.lower() not in _TIFF_SUFFIXES:
        return None
    try:
        with open_regular(path) as file:
            tags = next(tiff_pages(file), None)
            return None if tags is None else _place_of(tags)
    # damaged files raise many kinds of errors; whoever reads the pixels names them
    except Exception:
        return None


def _place_of(tags: Any) -> Place | None:
    keys = _geo_keys(numbers_of(tags, _GEO_KEYS))
    codes = [keys[key] for key in _SYSTEMS if keys.get(key, _USER_DEFINED) != _USER_DEFINED]
    system = f"EPSG {codes[0]}" if codes else ""
    scale = tags.get(_PIXEL_SCALE)
    point = tags.get(_TIEPOINT)
    matrix = tags.get(_TRANSFORMATION)
    if scale is not None and point is not None and len(point) == 6:
        column, row, _, x, y, _ = map(float, point)
        width = float(scale[0])
        height = -float(scale[1])
        place = Place(
            x_per_column=width,
            x_per_row=0.0,
            x=x - column * width,
            y_per_column=0.0,
            y_per_row=height,
            y=y - row * height,
            system=system,
        )
    elif matrix is not None and len(matrix) == 16:
        numbers = [float(number) for number in matrix]
        x_per_column, x_per_row, _, x = numbers[:4]
        y_per_column, y_per_row, _, y = numbers[4:8]
        place = Place(
            x_per_column=x_per_column,
            x_per_row=x_per_row,
            x=x,
            y_per_column=y_per_column,
            y_per_row=y_per_row,
            y=y,
            system=system,
        )
    else:
        return None
    return _from_middle(place) if keys.get(_RASTER_TYPE) == _PIXEL_IS_POINT else place


def _geo_keys(numbers: Sequence[int]) -> dict[int, int]:
    """Key -> value, of those that are stored in the directory itself."""
    keys = {}
    for start in range(4, len(numbers) - 3, 4):
        key, stored_in, _, value = numbers[start : start + 4]
        if stored_in == 0:
            keys[key] = value
    return keys


# Masks and their images
# ----------------------------------------------------------------------------------------------------


def warn_of_other_places(
    images: Sequence[Any], labels: Sequence[Any], sizes: Sequence[tuple[int, int]], noun: str
) -> None:
    """Count the labels that lie elsewhere on the ground than their images, in one line.

    Args:
        images: of each label; what is no path states no place.
        labels: files, or arrays, which state no place.
        sizes: (height, width) in pixels of the images.
        noun: what messages call the labels, such as ``mask``.
    """
    others = []
    num_compared = 0
    for image, label, size in zip(images, labels, sizes, strict=True):
        if not isinstance(image, str | os.PathLike) or not isinstance(label, str | os.PathLike):
            continue
        place_of_label = read_place(Path(label))
        place_of_image = None if place_of_label is None else read_place(Path(image))
        if place_of_image is None or place_of_label is None:
            continue
        num_compared += 1
        difference = _difference(place_of_image, place_of_label, size)
        if difference:
            others.append((label, image, difference))
    if others:
        label, image, difference = others[0]
        logger.warning(
            "%d of %s with coordinates lie elsewhere than their images, such as %s, which is %s "
            "%s: by the coordinates of both files they are no pairs, and they are read pixel by "
            "pixel all the same. Give each image its own %s, on its pixels (gdalwarp)",
            len(others),
            counted(num_compared, noun),
            label,
            difference,
            image,
            noun,
        )


def _difference(image: Place, label: Place, size: tuple[int, int]) -> str:
    """How a label lies otherwise than its image, to be followed by its name; "" = it does not."""
    if image.system and label.system and image.system != label.system:
        return f"in {label.system} and not in {image.system} as"
    pixel = math.sqrt(abs(image.area))
    height, width = size
    shift = 0.0
    for column, row in ((0, 0), (width, 0), (0, height), (width, height)):
        shift = max(shift, math.dist(image.at(column, row), label.at(column, row)) / pixel)
    if shift <= _MOST_SHIFT:
        return ""
    if image.area * label.area < 0:
        return "mirrored, its first row south and not north, against"
    sizes = math.sqrt(abs(label.area)) / pixel
    if abs(sizes - 1) > _EQUAL_SIZE:
        return f"of pixels {sizes:.3g} times as large as those of"
    return f"shifted by {shift:.3g} px against"


# Images that show the same ground
# ----------------------------------------------------------------------------------------------------


def warn_of_overlaps(
    files: Iterable[Path], part_of: Mapping[Path, object] = {}, remedy: str = _NAME_GROUPS
) -> None:
    """Count the images that show ground of another one by their coordinates, in one line.

    Args:
        files: the images.
        part_of: file -> the group or fold that it is kept in; images of one part are not compared.
            A file that it lacks is compared with all.
        remedy: what keeps images of one ground out of two folds, as a sentence.
    """
    by_system: dict[str, list[_Extent]] = {}
    for file in files:
        place = read_place(file)
        extent = None if place is None else _extent(file, place)
        if place is not None and extent is not None:
            by_system.setdefault(place.system, []).append(extent)
    pairs = []
    for extents in by_system.values():
        pairs += _overlaps(extents, part_of)
    if pairs:
        first, second = pairs[0]
        logger.warning(
            "%s ground that another one shows too, by their coordinates, such as %s and %s: unless "
            "both are in one fold, a head is scored on ground that it was trained on. %s",
            "1 image shows" if len(pairs) == 1 else f"{len(pairs)} images show",
            first,
            second,
            remedy,
        )


@dataclass(frozen=True)
class _Extent:
    file: Path
    left: float
    right: float
    low: float
    high: float


def _extent(file: Path, place: Place) -> _Extent | None:
    """What the stored pixels of an image cover; None if it is turned, or cannot be read."""
    if place.x_per_row or place.y_per_column:
        return None
    try:
        width, height = read_picture(file, lambda opened, _: opened.size)
    except DataError:
        size = size_of_bands(file)
        if size is None:
            return None  # whoever reads the pixels names it
        height, width = size
    first = place.at(0, 0)
    last = place.at(width, height)
    low, high = sorted((first[1], last[1]))
    left, right = sorted((first[0], last[0]))
    return _Extent(file, left, right, low, high)


def _overlaps(
    extents: Sequence[_Extent], part_of: Mapping[Path, object]
) -> list[tuple[Path, Path]]:
    """For each image that covers much of what others of other parts do, itself and one of those."""
    in_order = sorted(extents, key=lambda extent: extent.left)
    left, right, low, high = np.array(
        [(extent.left, extent.right, extent.low, extent.high) for extent in in_order]
    ).T
    areas = (right - left) * (high - low)
    pairs = []
    for row, extent in enumerate(in_order):
        # only those after this one that begin before its right side; each pair is compared once
        rest = slice(row + 1, int(np.searchsorted(left, extent.right)))
        widths = np.minimum(right[rest], extent.right) - left[rest]
        heights = np.minimum(high[rest], extent.high) - np.maximum(low[rest], extent.low)
        shared = widths * np.maximum(heights, 0)
        is_much = shared >= _LEAST_OVERLAP * np.minimum(areas[rest], areas[row])
        for offset in np.flatnonzero(is_much).tolist():
            other_file = in_order[row + 1 + offset].file
            if not _are_kept_together(extent.file, other_file, part_of):
                pairs.append((extent.file, other_file))
                break
    return pairs


def _are_kept_together(file: Path, other: Path, part_of: Mapping[Path, object]) -> bool:
    return file in part_of and other in part_of and part_of[file] == part_of[other]
