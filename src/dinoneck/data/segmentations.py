"""Masks of COCO JSON: the forms that tools write, their extents, and their pixels.

pycocotools decodes run lengths. It does not check them: of run lengths that end early it returns
memory that nobody wrote, and a comparison with them never returns. So their total is counted here
before it sees them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from operator import mul
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta, Struct

from dinoneck.data.coco_entries import CocoBox, Repairs, Side, is_number
from dinoneck.data.coco_repairs import TEXT_NUMBERS, WHOLE_FLOATS, number_of_text, whole_number
from dinoneck.errors import DataError
from dinoneck.extras import missing_extra
from dinoneck.text import shorten

Array = np.ndarray[Any, Any]
Extent = tuple[float, float, float, float]
"""Left, top, right and bottom of a mask in pixels."""

FEWEST_NUMBERS = 6  # of a polygon: three points
# NaN is refused too; beyond this pycocotools overflows
Polygon = Annotated[list[Annotated[float, Meta(ge=-1e6, le=1e6)]], Meta(min_length=FEWEST_NUMBERS)]
_BITS = 5  # of a number in COCO's text per character
_MORE = 1 << _BITS  # set in a character unless it is the last one of its number
_SIGN = 1 << (_BITS - 1)  # set in the last character of a negative number
_ZERO = ord("0")  # the character of the value 0
_MOST_MASKS = 255  # whose area pycocotools 2.0 gives in one call, with NumPy 2
_LONGEST_NUMBER = 7  # characters, 35 bits: more than any image has pixels
_EQUAL_PX = 1  # by which four numbers may differ from the box that they repeat
# points of a polygon that is looked at for edges that cross, and the share of its area that is left
_FEWEST_CROSSING = 4
_MOST_CROSSING = 12
_MOST_LEFT = 0.75
_ROTATION = "rotation"  # an attribute, in any case
_SMALLEST_AREA = 1.0  # square pixels of a polygon that is sure to show a pixel

# kinds of repairs, as they are logged
RECTANGLES = "objects without polygons or run lengths, read as the rectangles of their boxes"
FLAT = "polygons written as one flat list"
POINTS = "polygons written as lists of points"
SINGLE = "run lengths in a list of their own"
TINY = "parts of masks with fewer than three points, dropped"


class _Polygons(Struct):
    """Polygons as COCO writes them: flat lists x, y, x, y, ..."""

    parts: Annotated[list[Polygon], Meta(min_length=1)]


class RunLengths(Struct):
    """A run-length encoded mask, (height, width), as counts or as COCO's text."""

    size: tuple[Side, Side]
    # the last character of the text ends a number
    counts: list[Annotated[int, Meta(ge=0)]] | Annotated[str, Meta(pattern=r"^([0-o]*[0-O])?\Z")]


Shape = list[list[float]] | RunLengths
"""Polygons as flat lists x, y, x, y, ..., or run lengths."""


def read_shape(
    box: CocoBox, image_size: tuple[int, int], where: str, repairs: Repairs
) -> Shape | None:
    """Return the mask of an annotation; None if it has no part that covers an area.

    Args:
        box: the annotation.
        image_size: (height, width) of its image, which run lengths must have.
        where: what messages call the annotation.
        repairs: is filled with what was repaired.

    Raises:
        DataError: if there is no mask, or it cannot be read in exactly one way.
    """
    segmentation = box.segmentation
    if segmentation is None:
        raise DataError(
            f"{where} has no segmentation; draw its mask, or take the annotation out. An empty "
            "list, [], is read as the rectangle of its box"
        )
    if isinstance(segmentation, list) and len(segmentation) == 1:
        if isinstance(segmentation[0], dict):
            repairs[SINGLE] += 1
            segmentation = segmentation[0]
    if isinstance(segmentation, dict):
        return _read_run_lengths(segmentation, image_size, where, repairs)
    if not isinstance(segmentation, list):
        raise _unreadable(where, segmentation)
    if not segmentation:
        return _read_rectangle(box, where, repairs)
    return _read_polygons(segmentation, box, where, repairs)


def rotation_of(box: CocoBox) -> float:
    """Return the degrees by which an annotation tool turned the rectangle of a box, 0 if it did not.

    CVAT and Datumaro write the box as it was before, and the angle among the attributes; other tools
    write it next to the box.
    """
    values = [box.rotation]
    if isinstance(box.attributes, dict):
        values += [value for key, value in box.attributes.items() if key.lower() == _ROTATION]
    for value in values:
        degrees = degrees_of(value)
        if degrees:
            return degrees
    return 0.0


def degrees_of(value: Any) -> float:
    """Return the degrees below 180 by which a rectangle is turned, also of a text; 0 of other values."""
    degrees = number_of_text(value) if isinstance(value, str) else value
    if not is_number(degrees) or not math.isfinite(degrees):
        return 0.0
    return float(degrees) % 180.0


def _read_rectangle(box: CocoBox, where: str, repairs: Repairs) -> Shape | None:
    """The rectangle of a box as a polygon."""
    if box.bbox is None:
        return None
    if rotation_of(box):
        raise DataError(
            f"{where} is a rectangle that is turned by {rotation_of(box):g} degrees "
            "(rotation), and its bbox is that of the rectangle before; export it as a "
            "polygon"
        )
    repairs[RECTANGLES] += 1
    x, y, width, height = box.bbox
    return [[x, y, x + width, y, x + width, y + height, x, y + height]]


def _read_polygons(
    segmentation: list[Any], box: CocoBox, where: str, repairs: Repairs
) -> Shape | None:
    """Polygons of three points or more; four numbers that repeat the box are a rectangle."""
    try:
        shape = msgspec.convert({"parts": segmentation}, _Polygons).parts
    except msgspec.ValidationError:
        parts = _flat_parts(_with_numbers(segmentation, repairs), repairs)
        if _are_short_axes(parts, box):
            raise _unreadable(
                where, segmentation, "it seems to be all x and then all y: write x, y, x, y, ..."
            ) from None
        polygons = [part for part in parts if not _is_tiny(part)]
        if not polygons and any(_repeats_box(part, box) for part in parts):
            return _read_rectangle(box, where, repairs)
        if len(polygons) < len(parts):
            repairs[TINY] += len(parts) - len(polygons)
        if not polygons:
            return None
        try:
            shape = msgspec.convert({"parts": polygons}, _Polygons).parts
        except msgspec.ValidationError as error:
            raise _unreadable(where, segmentation, str(error).partition(" - at ")[0]) from None
    for polygon in shape:
        if len(polygon) % 2:
            raise DataError(
                f"{where} has a polygon of {len(polygon)} numbers; expected pairs of x and y, an "
                "even number"
            )
    return shape


def _with_numbers(values: list[Any], repairs: Repairs) -> list[Any]:
    """Nested lists with numbers in the place of texts that spell them."""
    read: list[Any] = []
    for value in values:
        if isinstance(value, list):
            read.append(_with_numbers(value, repairs))
            continue
        number = number_of_text(value) if isinstance(value, str) else None
        if number is not None:
            repairs[TEXT_NUMBERS] += 1
            value = number
        read.append(value)
    return read


def _are_short_axes(parts: Sequence[Any], box: CocoBox) -> bool:
    """Whether two lists that are too short for polygons are all x and all y of three points or more.

    They span the width and the height of the box, if there is one.
    """
    if len(parts) != 2 or not all(map(_is_tiny, parts)):
        return False
    xs, ys = parts
    if len(xs) != len(ys) or len(xs) < FEWEST_NUMBERS // 2:
        return False
    if box.bbox is None:
        return True
    x, y, width, height = box.bbox
    corners = (x, y, x + width, y + height)
    return _are_close((min(xs), min(ys), max(xs), max(ys)), corners)


def _flat_parts(segmentation: list[Any], repairs: Repairs) -> list[Any]:
    """The parts of a mask as flat lists of numbers, whichever way they are nested."""
    if _is_numbers(segmentation):
        repairs[FLAT] += 1
        return [segmentation]
    if _is_points(segmentation):
        repairs[POINTS] += 1
        return [_flattened(segmentation)]
    parts = []
    for part in segmentation:
        if isinstance(part, list) and _is_points(part):
            repairs[POINTS] += 1
            part = _flattened(part)
        parts.append(part)
    return parts


def _is_numbers(values: list[Any]) -> bool:
    return all(map(is_number, values))


def _is_tiny(part: Any) -> bool:
    """Whether a part of a mask has fewer than three points, and so no area."""
    return isinstance(part, list) and len(part) < FEWEST_NUMBERS and _is_numbers(part)


def _is_points(values: list[Any]) -> bool:
    """Whether a list holds three points or more, [x, y] each; fewer may be parts of two numbers."""
    if len(values) < FEWEST_NUMBERS // 2:
        return False
    return all(isinstance(point, list) and len(point) == 2 for point in values) and all(
        _is_numbers(point) for point in values
    )


def _flattened(points: list[list[Any]]) -> list[Any]:
    return [number for point in points for number in point]


def _repeats_box(part: Any, box: CocoBox) -> bool:
    """Whether four numbers are the box again, as its corners or with its width and height."""
    if box.bbox is None or not isinstance(part, list) or len(part) != 4 or not _is_numbers(part):
        return False
    x, y, width, height = box.bbox
    corners = (x, y, x + width, y + height)
    return _are_close(part, corners) or _are_close(part, box.bbox)


def _are_close(numbers: Sequence[float], others: Sequence[float]) -> bool:
    return all(abs(a - b) <= _EQUAL_PX for a, b in zip(numbers, others, strict=True))


def _unreadable(where: str, segmentation: Any, reason: str = "") -> DataError:
    note = f" ({reason})" if reason else ""
    return DataError(
        f"{where} has the segmentation {shorten(segmentation)}{note}; expected polygons of three "
        "points or more in pixels, [[x, y, x, y, x, y, ...]], or run lengths with size and counts"
    )


# Run lengths
# ------------------------------------------------------------------------------------------------


def _read_run_lengths(
    segmentation: dict[str, Any], image_size: tuple[int, int], where: str, repairs: Repairs
) -> RunLengths:
    """Run lengths of the size of their image that add up to all its pixels."""
    values = dict(segmentation)
    for key in ("size", "counts"):
        numbers = values.get(key)
        if isinstance(numbers, list) and float in map(type, numbers):
            whole = [whole_number(number) for number in numbers]
            values[key] = numbers if None in whole else whole
            repairs[WHOLE_FLOATS] += 1
    counts = values.get("counts")
    if isinstance(counts, str) and counts.startswith(("b'", 'b"')):
        raise DataError(
            f"{where} has the counts {shorten(counts)}, bytes that str() wrote; write "
            "counts.decode()"
        )
    if isinstance(counts, str):
        _check_text(counts, segmentation, where)
    try:
        runs = msgspec.convert(values, RunLengths)
    except msgspec.ValidationError as error:
        raise _unreadable(where, segmentation, str(error)) from None
    if runs.size != image_size:
        swapped = "; its sides are exchanged" if runs.size == image_size[::-1] else ""
        raise DataError(
            f"{where} has a mask of {runs.size} (height, width), and its image has "
            f"{image_size}{swapped}"
        )
    total = count_pixels(runs)
    pixels = image_size[0] * image_size[1]
    if total != pixels:
        raise DataError(
            f"{where} has a mask whose run lengths add up to {total} pixels; expected the {pixels} "
            f"of an image of {image_size} (height, width): write the mask again"
        )
    return runs


def _check_text(counts: str, segmentation: Any, where: str) -> None:
    """Raise a DataError for a text that COCO's run lengths never are."""
    for character in counts:
        if not _ZERO <= ord(character) < _ZERO + 2 * _MORE:
            raise _unreadable(where, segmentation, f"{character!r} is none of COCO's characters")
    if counts and ord(counts[-1]) - _ZERO >= _MORE:
        raise _unreadable(where, segmentation, "the text ends within a number: it was cut")


def count_pixels(runs: RunLengths) -> int:
    """Return the sum of the run lengths; -1 if one is negative or longer than any image."""
    if isinstance(runs.counts, list):
        return sum(runs.counts)
    if not runs.counts:
        return 0
    lengths = _lengths_in(runs.counts)
    if lengths is None or (lengths < 0).any():
        return -1
    return int(lengths.sum())


def _lengths_in(counts: str) -> Array | None:
    """The run lengths that a text of COCO spells, int64; None if one is longer than any image."""
    # a number has 5 bits per character, the lowest first; from the fourth number on it is the
    # difference to the last number but one
    characters = np.frombuffer(counts.encode(), np.uint8).astype(np.int64) - _ZERO
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


# Extents and pixels
# ------------------------------------------------------------------------------------------------


def polygon_extent(polygons: Sequence[Sequence[float]]) -> Extent:
    """Return the extent of polygons."""
    if len(polygons) == 1:
        numbers = polygons[0]
    else:
        numbers = [number for polygon in polygons for number in polygon]
    xs = numbers[0::2]
    ys = numbers[1::2]
    return min(xs), min(ys), max(xs), max(ys)


def polygon_area(polygons: Sequence[Sequence[float]]) -> float:
    """Return the area of one mask's polygons in square pixels, each by the shoelace formula."""
    total = 0.0
    for polygon in polygons:
        xs = polygon[0::2]
        ys = polygon[1::2]
        next_xs = [*xs[1:], xs[0]]
        next_ys = [*ys[1:], ys[0]]
        total += abs(sum(map(mul, xs, next_ys)) - sum(map(mul, ys, next_xs))) / 2
    return total


def find_crossing(shapes: Sequence[Sequence[Sequence[float]]]) -> list[int]:
    """Return which masks have a polygon of few points that crosses itself, and loses area by it.

    Such a polygon covers much less than its points in the order of their angles. Outlines of many
    points are drawn along an edge, and cross themselves by a pixel at most.

    Args:
        shapes: the polygons of each mask.
    """
    polygons: dict[int, list[Sequence[float]]] = {}  # number of values -> polygons
    rows: dict[int, list[int]] = {}  # and their masks
    for row, shape in enumerate(shapes):
        for polygon in shape:
            values = polygon[:-2] if polygon[:2] == polygon[-2:] else polygon
            if _FEWEST_CROSSING <= len(values) // 2 <= _MOST_CROSSING:
                polygons.setdefault(len(values), []).append(values)
                rows.setdefault(len(values), []).append(row)
    found = set()
    for length, group in polygons.items():
        points = np.array(group, np.float64).reshape(len(group), -1, 2)
        centred = points - points.mean(axis=1, keepdims=True)
        order = np.argsort(np.arctan2(centred[..., 1], centred[..., 0]), axis=1)
        areas_in_order = _shoelace(np.take_along_axis(points, order[..., None], axis=1))
        # most outlines are in this order, and need no comparison of their edges
        is_smaller = _shoelace(points) < _MOST_LEFT * areas_in_order
        is_smaller &= areas_in_order >= _SMALLEST_AREA
        for k in np.flatnonzero(is_smaller).tolist():
            if _crosses_itself(points[k].tolist()):
                found.add(rows[length][k])
    return sorted(found)


def _shoelace(points: Array) -> Array:
    """The areas (n,) of polygons of equally many points (n, points, 2)."""
    following = np.roll(points, -1, axis=1)
    crosses = points[..., 0] * following[..., 1] - following[..., 0] * points[..., 1]
    areas: Array = np.abs(crosses.sum(axis=1)) / 2
    return areas


def _crosses_itself(points: Sequence[Sequence[float]]) -> bool:
    """Whether two edges of a closed polygon cross each other between their ends."""
    count = len(points)
    edges = [(points[i], points[(i + 1) % count]) for i in range(count)]
    for i in range(count):
        for j in range(i + 2, count):
            start, end = edges[i]
            other_start, other_end = edges[j]
            is_other_apart = _side(start, end, other_start) * _side(start, end, other_end) < 0
            is_apart = _side(other_start, other_end, start) * _side(other_start, other_end, end) < 0
            if is_other_apart and is_apart:
                return True
    return False


def _side(start: Sequence[float], end: Sequence[float], point: Sequence[float]) -> float:
    """On which side of a line a point lies: above 0, below 0, or 0 on it."""
    along = (end[0] - start[0], end[1] - start[1])
    return along[0] * (point[1] - start[1]) - along[1] * (point[0] - start[0])


@dataclass(frozen=True)
class Measures:
    """Extents (n, 4) and areas (n,) of n masks; parts that overlap count twice in an area."""

    extents: Array
    areas: Array


def measure_polygons(shapes: Sequence[Sequence[Sequence[float]]]) -> Measures:
    """Return the extents and areas of many masks, as :func:`polygon_extent` and :func:`polygon_area`.

    Args:
        shapes: the polygons of each mask.
    """
    if not shapes:
        return Measures(np.zeros((0, 4)), np.zeros(0))
    parts = [part for shape in shapes for part in shape]
    numbers = np.fromiter(chain.from_iterable(parts), np.float64)
    xs = numbers[0::2]
    ys = numbers[1::2]
    num_points = np.array([len(part) // 2 for part in parts])
    num_parts = np.array([len(shape) for shape in shapes])
    first_points = np.cumsum(num_points) - num_points  # of parts
    first_parts = np.cumsum(num_parts) - num_parts  # of masks
    following = np.arange(1, len(xs) + 1)
    following[first_points + num_points - 1] = first_points  # a part is closed
    crosses = xs * ys[following] - xs[following] * ys
    part_areas = np.abs(np.add.reduceat(crosses, first_points)) / 2
    first_of_masks = first_points[first_parts]
    extents = np.stack(
        [
            np.minimum.reduceat(xs, first_of_masks),
            np.minimum.reduceat(ys, first_of_masks),
            np.maximum.reduceat(xs, first_of_masks),
            np.maximum.reduceat(ys, first_of_masks),
        ],
        axis=1,
    )
    return Measures(extents, np.add.reduceat(part_areas, first_parts))


def count_in_masks(shapes: Sequence[Shape], sizes: Sequence[tuple[int, int]]) -> Array:
    """Return how many pixels each mask has, (n,).

    Args:
        shapes: the masks.
        sizes: (height, width) of their images.

    Raises:
        ImportError: if pycocotools is not installed.
    """
    encoded = []
    for shape, (height, width) in zip(shapes, sizes, strict=True):
        encoded.append(_encoded(shape, height, width))
    return _areas(encoded)


def _areas(encoded: Sequence[Any]) -> Array:
    """How many pixels each mask has, (n,) float64; the masks are as pycocotools encodes them."""
    areas = np.zeros(len(encoded))
    for start in range(0, len(encoded), _MOST_MASKS):
        group = slice(start, start + _MOST_MASKS)
        areas[group] = _pycocotools().area(encoded[group])
    return areas


@dataclass(frozen=True)
class Nesting:
    """A mask of which a part lies inside another part.

    Attributes:
        filled: pixels of the mask as COCO reads it, where such a part changes nothing.
        with_holes: its pixels if such parts are holes.
    """

    filled: int
    with_holes: int


def nesting_of(shape: Shape, height: int, width: int) -> Nesting | None:
    """Return what parts inside other parts make of a mask; None if there are none.

    Args:
        shape: the mask.
        height: of its image.
        width: of its image.

    Raises:
        ImportError: if pycocotools is not installed.
    """
    if isinstance(shape, RunLengths) or len(shape) < 2:
        return None
    mask = _pycocotools()
    pairs = _nested_extents(shape)
    if not pairs:
        return None
    parts = mask.frPyObjects(shape, height, width)
    areas = _areas(parts)
    is_nested = False
    for inner, outer in pairs:
        shared = mask.area(mask.merge([parts[inner], parts[outer]], intersect=True))
        if 0 < areas[inner] < areas[outer] and shared == areas[inner]:
            is_nested = True
            break
    if not is_nested:
        return None
    num_parts = np.zeros((height, width), np.int64)  # that lie on each pixel
    for part in parts:
        num_parts += mask.decode(part)
    return Nesting(filled=int((num_parts > 0).sum()), with_holes=int((num_parts % 2).sum()))


def _nested_extents(shape: Sequence[Sequence[float]]) -> list[tuple[int, int]]:
    """Pairs of the index of a part, and of another one in whose extent it lies."""
    extents = [polygon_extent([part]) for part in shape]
    pairs = []
    for i, inner in enumerate(extents):
        for j, outer in enumerate(extents):
            is_inside = inner[0] >= outer[0] and inner[1] >= outer[1]
            is_inside = is_inside and inner[2] <= outer[2] and inner[3] <= outer[3]
            if i != j and is_inside:
                pairs.append((i, j))
    return pairs


def are_equal_polygons(shape: Shape, other: Shape, most_px: float) -> bool:
    """Whether two masks are the same polygons, closed or not, up to a difference of their numbers."""
    if isinstance(shape, RunLengths) or isinstance(other, RunLengths) or len(shape) != len(other):
        return False
    for part, other_part in zip(shape, other, strict=True):
        numbers = _without_closing_point(part)
        other_numbers = _without_closing_point(other_part)
        if len(numbers) != len(other_numbers):
            return False
        if any(abs(a - b) > most_px for a, b in zip(numbers, other_numbers, strict=True)):
            return False
    return True


def _without_closing_point(polygon: list[float]) -> list[float]:
    """A polygon without a last point that repeats the first one."""
    return polygon[:-2] if polygon[:2] == polygon[-2:] else polygon


def overlaps(shapes: Sequence[Shape], height: int, width: int) -> Array:
    """Return the pixels that two masks of an image share over those of either, (n, n).

    Raises:
        ImportError: if pycocotools is not installed.
    """
    mask = _pycocotools()
    if not shapes:
        return np.zeros((0, 0))
    encoded = [_encoded(shape, height, width) for shape in shapes]
    are_crowds = [0] * len(encoded)
    shares: Array = mask.iou(encoded, encoded, are_crowds)
    return shares


def run_length_extents(masks: Sequence[RunLengths]) -> Array:
    """Return the extents (n, 4) of run-length encoded masks: left, top, right, bottom.

    Those of masks with runs of the length 0 may be wrong, see :func:`pixel_extent`.

    Raises:
        ImportError: if pycocotools is not installed.
    """
    mask = _pycocotools()
    if not masks:
        return np.zeros((0, 4))
    boxes = mask.toBbox([_compressed(runs) for runs in masks])
    boxes[:, 2:] += boxes[:, :2]
    return boxes  # type: ignore[no-any-return]


def pixel_extent(pixels: Array) -> Extent | None:
    """Return the extent of the pixels (H, W) that are not 0; None if there is none."""
    ys, xs = np.nonzero(pixels)
    if not len(xs):
        return None
    return float(xs.min()), float(ys.min()), float(xs.max() + 1), float(ys.max() + 1)


def decode(shape: Shape, height: int, width: int) -> Array:
    """Return a mask as (height, width) uint8, 1 inside.

    Raises:
        ImportError: if pycocotools is not installed.
    """
    pixels: Array = _pycocotools().decode(_encoded(shape, height, width))
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


def crop_mask(shape: Shape, height: int, width: int) -> MaskCrop:
    """Return the pixels of :func:`decode` around a mask, without those of the whole image.

    Args:
        shape: the mask.
        height: of its image.
        width: of its image.

    Raises:
        ImportError: if pycocotools is not installed.
    """
    encoded = _encoded(shape, height, width)
    counts = encoded["counts"]
    text = counts if isinstance(counts, str) else counts.decode()
    lengths = _lengths_in(text)
    if lengths is None or not lengths[1::2].sum():
        return MaskCrop(top=0, left=0, pixels=np.zeros((0, 0), bool))
    ends = np.cumsum(lengths)
    shown_lengths = lengths[1::2]  # zeros first
    firsts = ends[1::2] - shown_lengths
    before = np.cumsum(shown_lengths) - shown_lengths
    places = np.arange(shown_lengths.sum()) + np.repeat(firsts - before, shown_lengths)
    rows = places % height  # column by column
    cols = places // height
    top = int(rows.min())
    left = int(cols.min())
    pixels = np.zeros((int(rows.max()) + 1 - top, int(cols.max()) + 1 - left), bool)
    pixels[rows - top, cols - left] = True
    return MaskCrop(top=top, left=left, pixels=pixels)


def is_empty(shape: Shape, height: int, width: int) -> bool:
    """Whether a mask shows no pixel; only polygons of a tiny area are drawn to find out."""
    if isinstance(shape, RunLengths):
        return not _pycocotools().area(_compressed(shape))
    left, top, right, bottom = polygon_extent(shape)
    is_outside = right <= 0 or bottom <= 0 or left >= width or top >= height
    if not is_outside and polygon_area(shape) >= _SMALLEST_AREA:
        return False
    return not decode(shape, height, width).any()


def _encoded(shape: Shape, height: int, width: int) -> Any:
    """A mask as the run lengths of pycocotools."""
    if isinstance(shape, RunLengths):
        return _compressed(shape)
    mask = _pycocotools()
    return mask.merge(mask.frPyObjects(shape, height, width))


def _compressed(runs: RunLengths) -> Any:
    """Run lengths as pycocotools' functions take them."""
    if isinstance(runs.counts, str):
        return {"size": list(runs.size), "counts": runs.counts}
    height, width = runs.size
    return _pycocotools().frPyObjects(
        {"size": [height, width], "counts": runs.counts}, height, width
    )


def check_pycocotools() -> None:
    """Raise the ImportError of masks if pycocotools is not installed."""
    _pycocotools()


def _pycocotools() -> Any:
    try:
        from pycocotools import mask
    except ImportError as error:
        raise missing_extra("pycocotools", "masks") from error
    return mask
