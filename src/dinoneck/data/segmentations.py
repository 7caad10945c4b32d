"""Masks of COCO JSON: polygons and run lengths, which pycocotools encodes, and their pixels.

pycocotools does not check run lengths: of some that end early it decodes memory that nobody wrote. So
their total is counted here before it sees them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import msgspec
import numpy as np
from msgspec import Meta, Raw, Struct

from dinoneck.data.coco_checks import BEYOND_PX, BBox
from dinoneck.errors import DataError
from dinoneck.extras import missing_extra
from dinoneck.text import shorten

Array = np.ndarray[Any, Any]
Extent = tuple[float, float, float, float]
"""Left, top, right and bottom of a mask in pixels."""
FEWEST_NUMBERS = 6  # of a polygon: three points
CORNER_PX = 1  # by which tools round corners
_BITS = 5  # of a number in COCO's text per character
_MORE = 1 << _BITS  # set in a character unless it is the last one of its number
_SIGN = 1 << (_BITS - 1)  # set in the last character of a negative number
_ZERO = ord("0")  # the character of the value 0
_LONGEST_NUMBER = 7  # characters, 35 bits: more than any image has pixels
# NaN is refused too; beyond this pycocotools overflows
Polygon = list[Annotated[float, Meta(ge=-1e6, le=1e6)]]


class RunLengths(Struct):
    """A run-length encoded mask (height, width): the counts, or COCO's text."""

    size: tuple[Annotated[int, Meta(ge=1)], Annotated[int, Meta(ge=1)]]
    # the last character of the text ends a number
    counts: list[Annotated[int, Meta(ge=0)]] | Annotated[str, Meta(pattern=r"^([0-o]*[0-O])?\Z")]


class Mask(NamedTuple):
    """A mask as pycocotools encodes it: (height, width) of its image, and COCO's text."""

    size: tuple[int, int]
    counts: bytes


def read_mask(segmentation: Raw, size: tuple[int, int], where: str) -> Mask | None:
    """Return the mask of an annotation; None if it has none.

    A flat list of numbers is one polygon. A polygon of fewer than three points covers no area and is
    left out.

    Args:
        segmentation: JSON: polygons, or run lengths with ``size`` and ``counts``.
        size: (height, width) of the image, which run lengths must have.
        where: what messages call the annotation.

    Raises:
        DataError: if it is written in another way, or the run lengths do not add up to the image.
        ImportError: if pycocotools is not installed.
    """
    polygons = read_polygons(segmentation, where)
    if polygons is None:
        return _read_runs(segmentation, size, where)
    if not polygons:
        return None
    return _drawn(polygons, size)


def is_rectangle(segmentation: Raw, bbox: BBox) -> bool:
    """Whether a segmentation without a mask says that the box is the mask.

    It is ``[]``, as CVAT writes a rectangle that somebody drew, or two points, the corners of the box.
    """
    text = bytes(segmentation)
    if text in (b"", b"null"):
        return False
    values = msgspec.json.decode(text)
    numbers = values[0] if len(values) == 1 and isinstance(values[0], list) else values
    if not numbers:
        return True
    x, y, width, height = bbox
    corners = (x, y, x + width, y + height)
    if len(numbers) != len(corners) or not all(isinstance(value, int | float) for value in numbers):
        return False
    differences = [abs(a - b) for a, b in zip(numbers, corners, strict=True)]
    return bool(max(differences) <= CORNER_PX)


def rectangle(bbox: BBox, size: tuple[int, int]) -> Mask:
    """Return the mask of a box, given as x, y, width and height, in an image of ``size``."""
    x, y, width, height = bbox
    return _drawn([[x, y, x + width, y, x + width, y + height, x, y + height]], size)


def _drawn(polygons: list[Polygon], size: tuple[int, int]) -> Mask:
    """The mask of polygons."""
    pycocotools = _pycocotools()
    encoded = pycocotools.merge(pycocotools.frPyObjects(polygons, *size))
    return Mask(size, encoded["counts"])


def read_polygons(segmentation: Raw, where: str) -> list[Polygon] | None:
    """Return the polygons of a segmentation, ``[x, y, x, y, ...]`` each; None of run lengths.

    Raises:
        DataError: if they are written in another way.
    """
    text = bytes(segmentation)
    if text in (b"", b"null"):
        return []
    if text.startswith(b"{"):
        return None
    values = msgspec.json.decode(text)
    is_flat = isinstance(values, list) and not any(isinstance(part, list) for part in values)
    try:
        parts = msgspec.convert([values] if is_flat else values, list[Polygon], strict=False)
    except msgspec.ValidationError as error:
        raise _unreadable(text, where, error) from None
    if any(len(part) % 2 for part in parts):
        raise DataError(
            f"{where} has a polygon of an odd number of values; expected pairs of x and y"
        )
    return [part for part in parts if len(part) >= FEWEST_NUMBERS]


def _unreadable(text: bytes, where: str, error: Exception) -> DataError:
    shown = shorten(text.decode("utf-8", "replace"))
    return DataError(
        f"{where} has the segmentation {shown}; expected polygons of three points or more in pixels, "
        f"[[x, y, x, y, x, y, ...]], or run lengths with size and counts ({error})"
    )


def _read_runs(segmentation: Raw, size: tuple[int, int], where: str) -> Mask:
    """Run lengths of the size of their image that add up to all its pixels."""
    try:
        runs = msgspec.json.decode(segmentation, type=RunLengths, strict=False)
    except msgspec.ValidationError as error:
        raise _unreadable(bytes(segmentation), where, error) from None
    if runs.size != size:
        raise DataError(
            f"{where} has a mask of {runs.size} (height, width), and its image has {size}"
        )
    total = count_pixels(runs.counts)
    if total != size[0] * size[1]:
        raise DataError(
            f"{where} has a mask whose run lengths add up to {total} pixels; expected the "
            f"{size[0] * size[1]} of an image of {size} (height, width): write the mask again"
        )
    if isinstance(runs.counts, str):
        return Mask(size, runs.counts.encode())
    plain = {"size": list(size), "counts": runs.counts}
    return Mask(size, _pycocotools().frPyObjects(plain, *size)["counts"])


def count_pixels(counts: Sequence[int] | str) -> int:
    """Return the sum of run lengths; -1 if one is negative or longer than any image."""
    if not isinstance(counts, str):
        return sum(counts)
    lengths = _lengths_in(counts.encode())
    if lengths is None or (lengths < 0).any():
        return -1
    return int(lengths.sum())


def _lengths_in(counts: bytes) -> Array | None:
    """The run lengths that a text of COCO spells, int64; None if one is longer than any image."""
    if not counts:
        return np.zeros(0, np.int64)
    # a number has 5 bits per character, the lowest first; from the fourth number on it is the
    # difference to the last number but one
    characters = np.frombuffer(counts, np.uint8).astype(np.int64) - _ZERO
    ends = np.flatnonzero(characters < _MORE)
    starts = np.append(0, ends[:-1] + 1)
    num_characters = ends - starts + 1
    if num_characters.max() > _LONGEST_NUMBER:
        return None
    index_in_number = np.arange(len(characters)) - np.repeat(starts, num_characters)
    shifts = _BITS * index_in_number
    numbers = np.add.reduceat((characters & (_MORE - 1)) << shifts, starts)
    is_negative = (characters[ends] & _SIGN) > 0
    numbers -= np.where(is_negative, np.int64(1) << (_BITS * num_characters), 0)
    numbers[1::2] = np.cumsum(numbers[1::2])
    numbers[2::2] = np.cumsum(numbers[2::2])
    return numbers


# A mask and its box
# ----------------------------------------------------------------------------------------------------


def area_of(mask: Mask) -> int:
    """Return how many pixels a mask has."""
    return int(_pycocotools().area(_encoded(mask)))


def extent_of(mask: Mask) -> Extent:
    """Return the extent of the pixels of a mask."""
    x, y, width, height = _pycocotools().toBbox(_encoded(mask)).tolist()
    return x, y, x + width, y + height


def polygon_extent(polygons: Sequence[Sequence[float]]) -> Extent:
    """Return the extent of polygons."""
    xs = [x for polygon in polygons for x in polygon[0::2]]
    ys = [y for polygon in polygons for y in polygon[1::2]]
    return min(xs), min(ys), max(xs), max(ys)


def reaches_beyond(mask: Mask, bbox: BBox, where: str) -> bool:
    """Return whether a mask reaches more than 2 px beyond its box.

    Args:
        mask: of an object, not empty.
        bbox: x, y, width and height of its box.
        where: what messages call it.

    Raises:
        DataError: if no pixel of the mask lies in the box.
    """
    left, top, right, bottom = extent_of(mask)
    x, y, width, height = bbox
    reach = max(x - left, y - top, right - x - width, bottom - y - height)
    if reach <= BEYOND_PX:
        return False
    pycocotools = _pycocotools()
    box = rectangle(bbox, mask.size)
    shared = pycocotools.merge([_encoded(mask), _encoded(box)], intersect=True)
    if not pycocotools.area(shared):
        raise DataError(
            f"{where} has the bbox {list(bbox)}, and no pixel of its mask lies in it: the mask spans x "
            f"{left:g} ... {right:g}, y {top:g} ... {bottom:g}. Correct one of them; counts of run "
            "lengths go down the columns"
        )
    return True


# Pixels
# ----------------------------------------------------------------------------------------------------


def pixel_extent(pixels: Array) -> Extent | None:
    """Return the extent of the pixels (H, W) that are not 0; None if there is none."""
    ys, xs = np.nonzero(pixels)
    if not len(xs):
        return None
    return float(xs.min()), float(ys.min()), float(xs.max() + 1), float(ys.max() + 1)


def decode(mask: Mask) -> Array:
    """Return a mask as (height, width) uint8, 1 inside."""
    pixels: Array = _pycocotools().decode(_encoded(mask))
    return pixels


@dataclass(frozen=True)
class MaskCrop:
    """The part of a mask around its pixels.

    Attributes:
        top: the first row, in pixels of the image.
        left: the first column.
        pixels: bool (height, width); without rows and columns if the mask shows nothing.
    """

    top: int
    left: int
    pixels: Array


def crop_mask(mask: Mask) -> MaskCrop:
    """Return the pixels of :func:`decode` around a mask, without memory for those of the whole image."""
    lengths = _lengths_in(mask.counts)
    if lengths is None or not lengths[1::2].sum():
        return MaskCrop(top=0, left=0, pixels=np.zeros((0, 0), bool))
    ends = np.cumsum(lengths)
    shown_lengths = lengths[1::2]  # zeros first
    firsts = ends[1::2] - shown_lengths
    before = np.cumsum(shown_lengths) - shown_lengths
    places = np.arange(shown_lengths.sum()) + np.repeat(firsts - before, shown_lengths)
    rows = places % mask.size[0]  # column by column
    cols = places // mask.size[0]
    top = int(rows.min())
    left = int(cols.min())
    pixels = np.zeros((int(rows.max()) + 1 - top, int(cols.max()) + 1 - left), bool)
    pixels[rows - top, cols - left] = True
    return MaskCrop(top=top, left=left, pixels=pixels)


def _encoded(mask: Mask) -> dict[str, Any]:
    """A mask as pycocotools takes it."""
    return {"size": list(mask.size), "counts": mask.counts}


def check_pycocotools() -> None:
    """Raise the ImportError of masks if pycocotools is not installed."""
    _pycocotools()


def _pycocotools() -> Any:
    try:
        from pycocotools import mask
    except ImportError as error:
        raise missing_extra("pycocotools", "masks") from error
    return mask
