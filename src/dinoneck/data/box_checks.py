"""Whether boxes are what COCO calls a bbox: compared with their image, with their mask and their area.

A file with boxes of another form trains without an error, and finds nothing.
"""

from __future__ import annotations

import logging
import operator
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dinoneck.data.coco import BBOX, CocoBox, CocoImage, name_entry
from dinoneck.data.segmentations import (
    Extent,
    Measures,
    RunLengths,
    Shape,
    count_in_masks,
    count_pixels,
    decode,
    measure_polygons,
    nesting_of,
    pixel_extent,
    rotation_of,
    run_length_extents,
)
from dinoneck.errors import DataError, in_words

logger = logging.getLogger(__name__)
Array = np.ndarray[Any, Any]

# flags of objects that some tools leave out, and the words by which they are off
_MARKS = ("ignore", "ignored", "deleted", "difficult", "is_group_of")
_NOT_SET = ("", "0", "0.0", "false", "no", "none", "null")

_ROUNDING_PX = 2  # by which tools round boxes, or count the last pixel in or out

# of this many boxes or more one in ten may reach over the edge; else they are of another form
_FEWEST = 10
_MOST_OVER = 0.1
# of the boxes may show nothing, or have no value above 1, by accident; if more do, all boxes are of
# another form, such as shares of the sides
_MOST_LOST = 0.99
# A box and a mask of one object may differ: boxes of whole objects next to masks of what is seen,
# boxes and outlines drawn by two people, outlines with few points. COCO and LVIS take boxes from
# masks, and a few of theirs are broken. One in ten that contradict each other are no accident; of
# fewer than ten objects more than half.
_MOST_WRONG = 0.1
_MOST_WRONG_OF_FEW = 0.5
# share of a mask's extent that has to lie in its box, and of a box that its mask has to span;
# a mask that is moved by more than half of its own size fails
_LEAST_INSIDE = 0.5
_LEAST_SPANNED = 0.5
_LEAST_RESIZED = 0.1  # relative change of a side; less may be an outline that is drawn loosely
# by how much better another reading has to fit before it counts: with less, small objects near
# the upper left corner fit several readings
_CLEARLY_BETTER_PX = 3
# boxes that cover less than this part of their images, from the upper left corner on, are probably
# of smaller copies; of 30 or more boxes it does not happen by chance
_MOST_OF_CORNER = 0.5
_FEWEST_OF_CORNER = 30
# of equal areas, relative: tools round them to whole pixels or two decimals
_AREA_ROUNDING = 1e-3
_AREA_ROUNDING_PX = 0.5
_FEWEST_AREAS = 3  # the area of a single mask may equal anything
_CHANCE = 0.01  # of areas of masks may equal that of corners within the rounding
_MASK_AREA_ROUNDING = 0.1  # relative; outlines are simplified
# an area may be that of an outline around the rounded box
_LARGEST_AREA = 1.1
_EXAMINED = 20  # masks that are decoded to find out what is wrong with them


_X_FIRST = "corners, x1, y1, x2, y2: write x1, y1, x2 - x1, y2 - y1"
_Y_FIRST = "corners, y1, x1, y2, x2: write x1, y1, x2 - x1, y2 - y1"


@dataclass(slots=True)
class BoxOfImage:
    """A box with its image and its mask.

    Attributes:
        index: its place in ``annotations``.
        box: the annotation.
        bbox: its x, y, width and height; those of the mask where the annotation has none.
        image: its image.
        shape: its mask; None without one, or if it cannot be read.
    """

    index: int
    box: CocoBox
    bbox: tuple[float, float, float, float]
    image: CocoImage
    shape: Shape | None = None

    @property
    def name(self) -> str:
        """What messages call it."""
        return name_entry("annotations", self.index, self.box.id)


# Boxes and their images
# ------------------------------------------------------------------------------------------------


def check_forms(file: Path, boxes: Sequence[BoxOfImage], lost: Counter[str]) -> None:
    """Refuse boxes that are not x, y, width and height in pixels, as far as their images tell.

    Args:
        file: what messages name.
        boxes: all boxes of listed images and of the classes.
        lost: reason -> how many of the boxes show nothing.

    Raises:
        DataError: if more than 99 % of the boxes have no value above 1, as shares of the sides have,
            in images of more than 2 px; if 10 boxes or more are given and more than one in ten
            reaches over the edge by more than 2 px, which is more than rounding; or if more than
            99 % show nothing.
    """
    count = len(boxes)
    if not count:
        return
    bboxes = np.array([entry.bbox for entry in boxes])
    sides = np.array([(entry.image.width, entry.image.height) for entry in boxes])
    finite = np.isfinite(bboxes).all(axis=1)
    bboxes = np.where(finite[:, None], bboxes, 0)

    are_shares = (np.abs(bboxes) <= 1).all(axis=1) & (bboxes[:, 2:] > 0).all(axis=1)
    # in an image of 1 or 2 px a box of 1 px is no share
    are_shares &= sides.min(axis=1) > _ROUNDING_PX
    if are_shares.sum() > _MOST_LOST * count:
        raise DataError(
            f"{file}: {are_shares.sum()} of {count} boxes have no value above 1, "
            f"{_example(boxes[int(are_shares.argmax())])}; expected {BBOX}. "
            f"{_share_remedy(bboxes[are_shares])}"
        )
    left_top = bboxes[:, :2]
    right_bottom = left_top + bboxes[:, 2:]
    over_edge = np.maximum(-left_top, right_bottom - sides).max(axis=1) > _ROUNDING_PX
    if over_edge.sum() > _MOST_OVER * count:
        first = boxes[int(over_edge.argmax())]
        other_form = _other_form(bboxes[over_edge], sides[over_edge])
        message = (
            f"{file}: {over_edge.sum()} of {count} boxes reach over the edge of their image, "
            f"{_example(first)}; expected {BBOX}{other_form}"
        )
        if count >= _FEWEST:
            raise DataError(f"{message}. If they are right, cut them at the edge")
        if other_form:
            logger.warning("%s, unless they are right", message)
    if lost.total() > _MOST_LOST * count:
        raise DataError(
            f"{file}: {lost.total()} of {count} boxes show nothing ({in_words(lost)}), "
            f"{_example(boxes[0])}; expected {BBOX}"
        )
    _warn_of_corner(file, bboxes, sides)


def _example(entry: BoxOfImage) -> str:
    return (
        f"such as {_numbers(entry.bbox)} of {entry.name} in an image of "
        f"{entry.image.width}x{entry.image.height} px (width x height)"
    )


def _numbers(bbox: Sequence[float]) -> str:
    """A bbox as text: ``[8, 10, 48.25, 30]``."""
    return f"[{', '.join(f'{number:g}' for number in bbox)}]"


def _other_form(bboxes: Array, sides: Array) -> str:
    """What boxes that reach over the edge seem to be."""
    left_top = bboxes[:, :2]
    size = bboxes[:, 2:]
    order = _corner_order(bboxes, sides)
    if order:
        return f". They seem to be {order}"
    lowest = left_top - size / 2
    highest = left_top + size / 2
    if ((lowest >= -_ROUNDING_PX) & (highest <= sides + _ROUNDING_PX)).all():
        return (
            ". They seem to begin at their centre: write x - width / 2, y - height / 2, width, "
            "height"
        )
    return ""


def _corner_order(bboxes: Array, sides: Array) -> str:
    """What boxes seem to hold if they hold corners, with the remedy; empty if they do not.

    Args:
        bboxes: four numbers each (n, 4).
        sides: width and height of their images (n, 2).
    """
    first = bboxes[:, :2]
    last = bboxes[:, 2:]
    if (last <= first).any():
        return ""
    is_x_first = bool((last <= sides + _ROUNDING_PX).all())
    is_y_first = bool((last <= sides[:, ::-1] + _ROUNDING_PX).all())
    if is_x_first and is_y_first:
        return f"{_X_FIRST} (or y1, x1, y2, x2, if y comes first)"
    if is_x_first:
        return _X_FIRST
    if is_y_first:
        return _Y_FIRST
    return ""


def _warn_of_corner(file: Path, bboxes: Array, sides: Array) -> None:
    """Warn of boxes that all lie in the upper left part of their images."""
    if len(bboxes) < _FEWEST_OF_CORNER:
        return
    shares = ((bboxes[:, :2] + bboxes[:, 2:]) / sides).max(axis=0)
    if shares.max() < _MOST_OF_CORNER:
        logger.warning(
            "%s: all %d boxes lie in the left %.0f %% and the upper %.0f %% of their images; they "
            "may be of smaller copies of the images",
            file,
            len(bboxes),
            100 * shares[0],
            100 * shares[1],
        )


# Boxes and their masks
# ------------------------------------------------------------------------------------------------

_TURNED = "The rectangles are turned (attributes.rotation), and the boxes are those before"
_EMPTY = "The masks are empty, or lie outside of their images"
_WHOLE = "The masks cover their whole images"
_WHOLE_BOXES = "The boxes cover their whole images"
_MOVED = "The masks, or the boxes, seem to be moved"
_RESIZED = "The boxes, or the masks, seem to be of another size of the images"
_DIFFERENT = "The masks lie outside of their boxes, or are much larger"


def check_masks(file: Path, boxes: Sequence[BoxOfImage]) -> None:
    """Compare every box with the extent of its mask, and its area with that of its mask.

    Run lengths are compared where pycocotools is installed.

    Raises:
        DataError: if more than one in ten contradict each other; fewer are named in a warning.
    """
    masked, measures = _measured(boxes)
    if not masked:
        return
    extents = measures.extents
    bboxes = np.array([entry.bbox for entry in masked])
    sides = np.array([(entry.image.width, entry.image.height) for entry in masked], float)
    first_look = _Comparison(bboxes, extents, sides)
    pixel_facts = _look_at_pixels(masked, first_look)
    for row, facts in pixel_facts.items():
        extents[row] = facts.extent
    comparison = _Comparison(bboxes, extents, sides)

    causes = comparison.causes()
    for row, facts in pixel_facts.items():
        causes[row] = facts.cause or causes[row]
    for row, cause in enumerate(causes):
        if cause in (_EMPTY, _DIFFERENT) and rotation_of(masked[row].box):
            causes[row] = _TURNED
    wrong = [row for row, cause in enumerate(causes) if cause is not None]
    if wrong:
        notes = {row: facts.note for row, facts in pixel_facts.items()}
        _report(file, masked, comparison, causes, notes)
    _warn_of_loose_boxes(file, masked, comparison, set(wrong))
    _warn_of_areas(file, masked, bboxes, measures.areas)


def _measured(boxes: Sequence[BoxOfImage]) -> tuple[list[BoxOfImage], Measures]:
    """The boxes whose mask can be compared, and what their masks measure; NaN is the area of run lengths."""
    drawn = []
    polygons = []
    encoded = []
    run_lengths = []
    for entry in boxes:
        if isinstance(entry.shape, RunLengths):
            encoded.append(entry)
            run_lengths.append(entry.shape)
        elif entry.shape is not None:
            drawn.append(entry)
            polygons.append(entry.shape)
    measured = measure_polygons(polygons)
    unknown = np.full(len(encoded), np.nan)  # areas of run lengths are counted where asked for
    try:
        extents = np.concatenate([measured.extents, run_length_extents(run_lengths)])
    except ImportError:  # the extra "masks" is needed for masks, and boxes alone do without
        return drawn, measured
    return drawn + encoded, Measures(extents, np.concatenate([measured.areas, unknown]))


class _Comparison:
    """Boxes next to the extents of their masks.

    Args:
        bboxes: x, y, width and height as the file holds them (n, 4).
        extents: left, top, right and bottom of the masks (n, 4).
        sides: width and height of the images (n, 2).

    Attributes:
        bboxes, extents, sides: the arguments.
        box_corners: left, top, right and bottom of the boxes, cut at the edge of their images
            (n, 4).
        mask_corners: the same of the extents; tools cut boxes or masks, and often only one of them.
        off_by: the largest difference of a side in pixels (n,).
        is_empty: where the extent has no area in its image (n,).
        inside: share of the mask's extent that lies in the box (n,).
        spanned: share of the box that the mask's extent covers (n,).
    """

    def __init__(self, bboxes: Array, extents: Array, sides: Array) -> None:
        self.bboxes = bboxes
        self.extents = extents
        self.sides = sides
        self.box_corners = _cut(_corners(bboxes), sides)
        self.mask_corners = _cut(extents, sides)
        self.off_by = _difference(self.box_corners, self.mask_corners)
        self.is_empty = _areas(self.mask_corners) <= 0
        shared = _areas(_overlap(self.box_corners, self.mask_corners))
        self.inside = shared / np.maximum(_areas(self.mask_corners), 1e-9)
        self.spanned = shared / np.maximum(_areas(self.box_corners), 1e-9)

    def is_suspicious(self) -> Array:
        """Where a box and its mask differ by more than rounding (n,)."""
        return self.is_empty | (self.off_by > _ROUNDING_PX)

    def causes(self) -> list[str | None]:
        """What is wrong with each box and its mask; None where they may be of one object."""
        causes = np.full(len(self.bboxes), None, dtype=object)
        is_unexplained = self.is_suspicious()
        for cause, fits in self._possible_causes():  # the first that fits wins
            causes[is_unexplained & fits] = cause
            is_unexplained = is_unexplained & ~fits
        return causes.tolist()

    def _possible_causes(self) -> Iterator[tuple[str, Array]]:
        """Yield causes and where they fit (n,), the most specific first."""
        # another reading counts where it fits, and the plain one does so much worse
        most_px = np.minimum(_ROUNDING_PX, self.off_by - _CLEARLY_BETTER_PX)
        for reading in _MASK_READINGS:
            corners = _cut(reading.corners(self.extents, self.sides), self.sides)
            yield reading.message, _difference(self.box_corners, corners) <= most_px
        for reading in _BOX_READINGS:
            corners = _cut(reading.corners(self.bboxes, self.sides), self.sides)
            fits = _difference(corners, self.mask_corners) <= most_px
            yield reading.message, ~self.is_empty & fits
        yield _MOVED, self._is_moved()
        yield _RESIZED, self._is_resized()
        yield _EMPTY, self.is_empty
        is_apart = self._is_apart()
        whole_image = np.concatenate([np.zeros_like(self.sides), self.sides], axis=1)
        yield _WHOLE, is_apart & (_difference(self.mask_corners, whole_image) <= _ROUNDING_PX)
        is_whole_box = _difference(self.box_corners, whole_image) <= _ROUNDING_PX
        yield _WHOLE_BOXES, is_whole_box & (self.spanned < _LEAST_SPANNED)
        yield _DIFFERENT, is_apart

    def _is_apart(self) -> Array:
        """Where a mask lies outside of its box, or is much larger."""
        # a few pixels are much of a small object
        is_far = self.off_by > _ROUNDING_PX + _CLEARLY_BETTER_PX
        is_outside = self.inside == 0
        is_apart: Array = ~self.is_empty & (self.inside < _LEAST_INSIDE) & (is_far | is_outside)
        return is_apart

    def _is_moved(self) -> Array:
        """Where a mask has the size of its box in another place."""
        move = self.extents - _corners(self.bboxes)
        is_equal_size = np.abs(move[:, :2] - move[:, 2:]).max(axis=1) <= _ROUNDING_PX
        is_far = np.abs(move).max(axis=1) > _ROUNDING_PX + _CLEARLY_BETTER_PX
        is_moved: Array = is_equal_size & is_far
        return is_moved

    def _is_resized(self) -> Array:
        """Where a mask is its box times a factor for x and one for y."""
        corners = _corners(self.bboxes)
        # what begins at the edge fits any factor
        nearest = np.minimum(corners[:, :2], self.extents[:, :2]).min(axis=1)
        factors = self.extents[:, 2:] / np.maximum(corners[:, 2:], 1)
        difference = np.abs(corners[:, :2] * factors - self.extents[:, :2]).max(axis=1)
        is_other = np.abs(factors - 1).max(axis=1) > _LEAST_RESIZED
        is_inside = nearest > _ROUNDING_PX + _CLEARLY_BETTER_PX
        is_resized: Array = is_other & is_inside & (difference <= _ROUNDING_PX)
        return is_resized


def _corners(bboxes: Array) -> Array:
    return np.concatenate([bboxes[:, :2], bboxes[:, :2] + bboxes[:, 2:]], axis=1)


def _share_remedy(bboxes: Array) -> str:
    """What four numbers below 1 seem to be, and what makes pixels of them.

    Args:
        bboxes: (n, 4), all values in -1 ... 1.
    """
    sizes = bboxes[:, 2:]
    fit_from_corner = bool((bboxes[:, :2] + sizes <= 1).all())
    fit_from_centre = bool(
        (bboxes[:, :2] >= sizes / 2).all() and (bboxes[:, :2] + sizes / 2 <= 1).all()
    )
    are_corners = bool((sizes > bboxes[:, :2]).all())
    if fit_from_centre and not fit_from_corner:
        return (
            "They seem to be centre and size in shares of the image's sides, as in files of YOLO: "
            "supervision converts those (DetectionDataset.from_yolo, as_coco)"
        )
    if are_corners and not fit_from_corner:
        return (
            "They seem to be two corners in shares of the image's sides: write left, top, right - "
            "left, bottom - top, times its width and height"
        )
    if fit_from_centre:
        return (
            "They seem to be shares of the image's sides: multiply them by its width and height. If "
            "they come from YOLO, the first two are the centre: take half of the size off first"
        )
    return "They seem to be shares of the image's sides: multiply them by its width and height"


def _centred(bboxes: Array) -> Array:
    half = bboxes[:, 2:] / 2
    return np.concatenate([bboxes[:, :2] - half, bboxes[:, :2] + half], axis=1)


def _mirrored(corners: Array, sides: Array, axis: int) -> Array:
    """Corners that are counted from the other edge; ``axis`` is 0 for x and 1 for y."""
    turned = corners.copy()
    turned[:, axis] = sides[:, axis] - corners[:, axis + 2]
    turned[:, axis + 2] = sides[:, axis] - corners[:, axis]
    return turned


def _times_sides(corners: Array, sides: Array) -> Array:
    scaled: Array = corners * np.tile(sides, 2)
    return scaled


def _cut(corners: Array, sides: Array) -> Array:
    return np.clip(corners, 0, np.tile(sides, 2))


def _difference(corners: Array, others: Array) -> Array:
    return np.abs(corners - others).max(axis=1)  # type: ignore[no-any-return]


def _overlap(corners: Array, others: Array) -> Array:
    left_top = np.maximum(corners[:, :2], others[:, :2])
    right_bottom = np.minimum(corners[:, 2:], others[:, 2:])
    return np.concatenate([left_top, right_bottom], axis=1)


def _areas(corners: Array) -> Array:
    return (corners[:, 2:] - corners[:, :2]).clip(0).prod(axis=1)  # type: ignore[no-any-return]


_SWAPPED = [1, 0, 3, 2]  # x and y of a bbox or of corners exchanged


@dataclass(frozen=True)
class _Reading:
    """Another meaning of the four numbers of a box or of a mask's extent.

    Attributes:
        message: what is wrong if it fits.
        corners: from the numbers (n, 4) and the width and height of images (n, 2) to left, top,
            right and bottom (n, 4).
    """

    message: str
    corners: Callable[[Array, Array], Array]


# what a bbox may hold in the place of x, y, width and height
_BOX_READINGS = (
    _Reading(
        f"The boxes seem to hold {_X_FIRST}",
        lambda bboxes, sides: bboxes,
    ),
    _Reading(
        f"The boxes seem to hold {_Y_FIRST}",
        lambda bboxes, sides: bboxes[:, _SWAPPED],
    ),
    _Reading(
        "The boxes seem to hold x1, x2, y1, y2: write x1, y1, x2 - x1, y2 - y1",
        lambda bboxes, sides: bboxes[:, [0, 2, 1, 3]],
    ),
    _Reading(
        "Width and height of the boxes seem to be exchanged",
        lambda bboxes, sides: _corners(bboxes[:, [0, 1, 3, 2]]),
    ),
    _Reading(
        "x and y of the boxes, or of the masks, seem to be exchanged",
        lambda bboxes, sides: _corners(bboxes[:, _SWAPPED]),
    ),
    _Reading(
        "y of the boxes, or of the masks, seems to be counted from the lower edge",
        lambda bboxes, sides: _mirrored(_corners(bboxes), sides, axis=1),
    ),
    _Reading(
        "x of the boxes, or of the masks, seems to be counted from the right edge",
        lambda bboxes, sides: _mirrored(_corners(bboxes), sides, axis=0),
    ),
    _Reading(
        "The boxes seem to begin at their centre: write x - width / 2, y - height / 2",
        lambda bboxes, sides: _centred(bboxes),
    ),
    _Reading(
        "The boxes seem to be shares of the image's sides: multiply them by its width and height",
        lambda bboxes, sides: _times_sides(_corners(bboxes), sides),
    ),
    _Reading(
        "The boxes seem to be percent of the image's sides: take them times width and height / 100",
        lambda bboxes, sides: _times_sides(_corners(bboxes), sides) / 100,
    ),
)
# what the extents of masks may hold in the place of corners in pixels
_MASK_READINGS = (
    _Reading(
        "The masks seem to be shares of the image's sides: multiply them by its width and height",
        _times_sides,
    ),
    _Reading(
        "The masks seem to be percent of the image's sides: take them times width and height / 100",
        lambda extents, sides: _times_sides(extents, sides) / 100,
    ),
)


@dataclass
class _PixelFacts:
    """What the pixels of a run-length encoded mask say.

    Attributes:
        extent: of the pixels that are in the mask; zeros of an empty one.
        cause: why they do not fit the box; None if the pixels do not tell.
        note: how many of them lie in the box, in words.
    """

    extent: Extent
    cause: str | None
    note: str


def _look_at_pixels(
    masked: Sequence[BoxOfImage], comparison: _Comparison
) -> dict[int, _PixelFacts]:
    """Decode the first masks that differ from their boxes: row -> what the pixels say.

    Run lengths that are incomplete are left out; they are refused where masks are asked for.
    """
    found: dict[int, _PixelFacts] = {}
    for row in np.flatnonzero(comparison.is_suspicious()).tolist():
        entry = masked[row]
        height, width = entry.image.height, entry.image.width
        if not isinstance(entry.shape, RunLengths) or count_pixels(entry.shape) != height * width:
            continue
        pixels = decode(entry.shape, height, width)
        box = comparison.box_corners[row]
        extent = pixel_extent(pixels) or (0.0, 0.0, 0.0, 0.0)
        cause = None
        if np.abs(np.array(extent) - box).max() > _ROUNDING_PX:
            cause = _cause_of_pixels(pixels, box)
        found[row] = _PixelFacts(extent, cause, _share_inside(pixels, box))
        if len(found) == _EXAMINED:
            break
    return found


def _cause_of_pixels(pixels: Array, box: Array) -> str | None:
    """The cause if run lengths fit their box once they are read in another way."""
    along_rows = pixels.T.reshape(pixels.shape)  # the same runs, counted along the rows
    for cause, other in (
        (
            "The run lengths are counted along the rows; COCO's run down the columns: encode "
            "np.asfortranarray(mask)",
            along_rows,
        ),
        ("The run lengths begin with the mask; COCO's begin with the background", 1 - pixels),
        ("The masks are upside down", pixels[::-1]),
        ("The masks are mirrored", pixels[:, ::-1]),
    ):
        extent = pixel_extent(other)
        if extent is not None and np.abs(np.array(extent) - box).max() <= _ROUNDING_PX:
            return cause
    return None


def _share_inside(pixels: Array, box: Array) -> str:
    """How many of a mask's pixels lie in a box, in words."""
    total = int(pixels.sum())
    if not total:
        return ""
    left, top = np.floor(box[:2]).astype(int)
    right, bottom = np.ceil(box[2:]).astype(int)
    share = int(pixels[top:bottom, left:right].sum()) / total
    return f", {100 * share:.0f} % of its pixels in the box"


def _report(
    file: Path,
    masked: Sequence[BoxOfImage],
    comparison: _Comparison,
    causes: Sequence[str | None],
    notes: dict[int, str],
) -> None:
    """Name the first of the boxes that contradict their masks, by the most frequent cause."""
    counts = Counter(cause for cause in causes if cause is not None)
    wrong = counts.total()
    cause, cause_count = counts.most_common(1)[0]
    rows = [row for row, other in enumerate(causes) if other == cause]
    row = min(rows, key=lambda row: masked[row].index)
    entry = masked[row]
    extent = comparison.extents[row]
    spans = "is empty"
    if (extent[2:] > extent[:2]).all():
        note = notes.get(row) or f", {100 * comparison.inside[row]:.0f} % of that in the box"
        spans = f"spans x {extent[0]:g} ... {extent[2]:g}, y {extent[1]:g} ... {extent[3]:g}{note}"
    of_them = f" ({cause_count} of these {wrong})" if cause_count < wrong else ""
    message = (
        f"{file}: {wrong} of {len(masked)} boxes contradict their masks, such as {entry.name}: "
        f"its bbox is {_numbers(entry.bbox)} ({BBOX}), its mask {spans}. {cause}{of_them}"
    )
    most = _MOST_WRONG if len(masked) >= _FEWEST else _MOST_WRONG_OF_FEW
    if wrong > most * len(masked):
        raise DataError(message)
    logger.warning("%s. They are used as they are", message)


def _warn_of_loose_boxes(
    file: Path, masked: Sequence[BoxOfImage], comparison: _Comparison, wrong: set[int]
) -> None:
    """Warn of boxes that are much larger than their masks: right for partly hidden objects."""
    is_loose = (comparison.spanned < _LEAST_SPANNED) & comparison.is_suspicious()
    rows = [row for row in np.flatnonzero(is_loose).tolist() if row not in wrong]
    if rows:
        logger.warning(
            "%s: %d of %d boxes are more than twice as large as their masks, such as %s; this is "
            "right where boxes show the whole of partly hidden objects",
            file,
            len(rows),
            len(masked),
            masked[rows[0]].name,
        )


def _warn_of_areas(
    file: Path, masked: Sequence[BoxOfImage], bboxes: Array, mask_areas: Array
) -> None:
    """Warn of an ``area`` that is neither that of the mask nor that of the box.

    Args:
        file: what messages name.
        masked: boxes with their masks.
        bboxes: of them, (n, 4).
        mask_areas: of them by the shoelace formula, (n,); NaN of run lengths.
    """
    has_area = [_has_area(entry.box) and bool(entry.box.segmentation) for entry in masked]
    areas = np.full(len(masked), np.nan)
    for row in np.flatnonzero(has_area).tolist():
        areas[row] = masked[row].box.area
    sides = bboxes[:, 2:]
    is_of_box = np.abs(areas - sides.prod(axis=1)) <= _area_tolerance(areas)
    # outlines and pixels differ at the edge of the mask, by half a pixel of it
    tolerance = _MASK_AREA_ROUNDING * areas + sides.sum(axis=1)
    is_off = np.isnan(mask_areas) | (np.abs(areas - mask_areas) > tolerance)
    rows = np.flatnonzero(~np.isnan(areas) & ~is_of_box & is_off)
    suspects = [masked[row] for row in rows.tolist()]
    try:
        # parts may overlap or reach over the edge, so the pixels decide
        pixels = count_in_masks(
            [entry.shape for entry in suspects if entry.shape is not None],
            [(entry.image.height, entry.image.width) for entry in suspects],
        )
    except ImportError:
        return
    is_wrong = np.abs(areas[rows] - pixels) > tolerance[rows]
    if not is_wrong.any():
        return
    place = int(is_wrong.argmax())
    first = suspects[place]
    logger.warning(
        "%s: the area of %d of %d objects is not that of their mask, such as %s with the area %s, "
        "whose mask has %d px and its bbox %g; one of them is wrong. The area is not used",
        file,
        is_wrong.sum(),
        int(np.sum(has_area)),
        first.name,
        first.box.area,
        pixels[place],
        first.bbox[2] * first.bbox[3],
    )


def check_holes(file: Path, boxes: Sequence[BoxOfImage]) -> None:
    """Find parts of masks that lie inside another part of the same object.

    COCO fills them, and such a part changes nothing; exporters that know no holes write them so.

    Raises:
        DataError: if the areas of more than one in ten objects, of fewer than ten more than half,
            say that such parts are holes; else they are named in a warning.
        ImportError: if pycocotools is not installed.
    """
    nested = 0
    holes = 0
    example = None
    for entry in boxes:
        if entry.shape is None:
            continue
        nesting = nesting_of(entry.shape, entry.image.height, entry.image.width)
        if nesting is None:
            continue
        nested += 1
        is_hole = _has_area(entry.box) and _is_nearer(
            entry.box.area, nesting.with_holes, nesting.filled
        )
        holes += is_hole
        if example is None or (is_hole and holes == 1):
            example = (entry, nesting)
    if example is None:
        return
    entry, nesting = example
    area = f" and its area is {entry.box.area:g}" if holes else ""
    message = (
        f"{file}: {nested} of {len(boxes)} masks have a part inside another one, as holes are "
        f"exported, such as {entry.name}: COCO fills it, its mask has {nesting.filled} px, with "
        f"holes it would have {nesting.with_holes} px{area}. Export masks with holes as run lengths "
        "(RLE)"
    )
    most = _MOST_WRONG if len(boxes) >= _FEWEST else _MOST_WRONG_OF_FEW
    if holes > most * len(boxes):
        raise DataError(message)
    logger.warning("%s. They are filled", message)


def _is_nearer(area: float, one: float, other: float) -> bool:
    return abs(area - one) < abs(area - other)


# Boxes and their areas
# ------------------------------------------------------------------------------------------------


def check_areas(file: Path, boxes: Sequence[BoxOfImage]) -> None:
    """Compare boxes without a mask with their ``area``, which corners contradict.

    Raises:
        DataError: if the areas say that the boxes are corners.
    """
    rated = [entry for entry in boxes if entry.shape is None and _has_area(entry.box)]
    if not rated:
        return
    areas = np.array([float(entry.box.area) for entry in rated])
    bboxes = np.array([entry.bbox for entry in rated])
    left, top, width, height = bboxes.T
    of_sides = width * height
    of_corners = (width - left) * (height - top)
    tolerance = _area_tolerance(areas)
    fits_sides = np.abs(areas - of_sides) <= tolerance
    fits_corners = (np.abs(areas - of_corners) <= tolerance) & (width > left) & (height > top)
    are_corners = fits_corners & ~fits_sides
    # areas of masks fit nothing, and corners by chance
    is_other = ~fits_corners & ~fits_sides
    if are_corners.sum() > _CHANCE * is_other.sum():
        first = rated[int(are_corners.argmax())]
        sides = np.array([(entry.image.width, entry.image.height) for entry in rated])
        order = _corner_order(bboxes[are_corners], sides[are_corners]) or _X_FIRST
        message = (
            f"{file}: the area of {are_corners.sum()} of {len(rated)} boxes is not width x height, "
            f"such as {first.name} with the area {first.box.area} and the bbox "
            f"{_numbers(first.bbox)}; expected {BBOX}. It fits {order}"
        )
        is_many = are_corners.sum() > _MOST_WRONG * len(rated)
        if is_many and are_corners.sum() >= _FEWEST_AREAS:
            raise DataError(message)
        logger.warning("%s, unless the area is that of a mask", message)
        return
    is_larger = areas > _LARGEST_AREA * of_sides + _AREA_ROUNDING_PX
    if is_larger.sum() > _MOST_WRONG * len(rated):
        first = rated[int(is_larger.argmax())]
        logger.warning(
            "%s: the area of %d of %d boxes is larger than the box, such as %s with the area %s "
            "and the bbox %s; one of the two is wrong. The area is not used",
            file,
            is_larger.sum(),
            len(rated),
            first.name,
            first.box.area,
            _numbers(first.bbox),
        )


def _area_tolerance(areas: Array) -> Array:
    tolerance: Array = np.maximum(_AREA_ROUNDING * areas, _AREA_ROUNDING_PX)
    return tolerance


def _has_area(box: CocoBox) -> bool:
    is_number = isinstance(box.area, int | float) and not isinstance(box.area, bool)
    return is_number and box.area > 0


def warn_of_turned_boxes(file: Path, boxes: Sequence[BoxOfImage]) -> None:
    """Warn of boxes whose rectangle was turned after it was drawn."""
    turned = [entry for entry in boxes if entry.shape is None and rotation_of(entry.box)]
    if turned:
        logger.warning(
            "%s: %d of %d boxes are of rectangles that were turned, such as %s by %g degrees "
            "(attributes.rotation); their bbox is that of the rectangle before. Export them as "
            "polygons",
            file,
            len(turned),
            len(boxes),
            turned[0].name,
            rotation_of(turned[0].box),
        )


def warn_of_marked_boxes(file: Path, boxes: Sequence[BoxOfImage]) -> None:
    """Warn of boxes that are marked as no plain objects, which some tools leave out and COCO's evaluation does not."""
    marks_of = operator.attrgetter(*_MARKS)
    without_marks = (None,) * len(_MARKS)
    with_marks = [entry for entry in boxes if marks_of(entry.box) != without_marks]
    for mark in _MARKS:
        marked = [entry for entry in with_marks if _is_set(getattr(entry.box, mark))]
        if marked:
            logger.warning(
                "%s: %d of %d boxes have %s=%s, such as %s; they are objects here, as in COCO's "
                "evaluation. Set iscrowd to 1 if they are regions that count for nothing, or take "
                "them out",
                file,
                len(marked),
                len(boxes),
                mark,
                getattr(marked[0].box, mark),
                marked[0].name,
            )


def _is_set(flag: object) -> bool:
    """Whether a flag is set, as a number, a boolean or a text."""
    return flag is not None and str(flag).strip().lower() not in _NOT_SET


def warn_of_scores(file: Path, boxes: Sequence[BoxOfImage]) -> None:
    """Warn of boxes with a score, as predictions have."""
    scored = [entry for entry in boxes if isinstance(entry.box.score, int | float)]
    if scored:
        logger.warning(
            "%s: %d of %d boxes have a score, as predictions have, such as %s with %g; all are "
            "used as the truth, whatever their score",
            file,
            len(scored),
            len(boxes),
            scored[0].name,
            scored[0].box.score,
        )
