"""Whether boxes are those of their masks: one extent, read in several ways.

A file whose masks are of another form trains without an error, and finds nothing.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dinoneck.data.box_checks import X_FIRST, Y_FIRST
from dinoneck.data.box_entries import BoxOfImage, MaskedBoxes, in_brackets, too_many_wrong
from dinoneck.data.coco_entries import BBOX
from dinoneck.data.segmentations import (
    Extent,
    RunLengths,
    Shape,
    count_pixels,
    decode,
    pixel_extent,
    rotation_of,
)
from dinoneck.errors import DataError

logger = logging.getLogger(__name__)
Array = np.ndarray[Any, Any]

_ROUNDING_PX = 2  # by which tools round boxes, or count the last pixel in or out
# share of a mask's extent that has to lie in its box, and of a box that its mask has to span;
# a mask that is moved by more than half of its own size fails
_LEAST_INSIDE = 0.5
_LEAST_SPANNED = 0.5
_EQUAL_SIZE_PX = 0.5  # of sides that nobody scaled
_LEAST_RESIZED = 0.1  # relative change of a side; less may be an outline that is drawn loosely
# by how much better another reading has to fit before it counts: with less, small objects near
# the upper left corner fit several readings
_CLEARLY_BETTER_PX = 3
# edges along the other direction that a mask has more, if its run lengths are read in the wrong order
_MORE_EDGES = 3
_MOST_WHOLE = 0.5  # of the objects without bbox that share their image with others
_MOST_ALONG_ROWS = 0.5
# boxes that contradict their masks, where others have none: one or two crowd regions or polygons in
# a file of boxes may be drawn wrongly, and say nothing of the others
_FEWEST_OF_SOME = 3
_EXAMINED = 20  # masks that are decoded to find out what is wrong with them
_TURNED = "The rectangles are turned (rotation), and the boxes are those before"
_EMPTY = "The masks are empty, or lie outside of their images"
_WHOLE = "The masks cover their whole images"
_WHOLE_BOXES = "The boxes cover their whole images"
_MOVED = "The masks, or the boxes, seem to be moved"
_RESIZED = "The boxes, or the masks, seem to be of another size of the images"
_AXES_APART = "The polygons seem to hold all x and then all y, [[x, x, ...], [y, y, ...]]: write x, y, x, y, ..."
_DIFFERENT = "The masks lie outside of their boxes, or are much larger"


def check_masks(file: Path, masked_boxes: MaskedBoxes, num_boxes: int) -> None:
    """Compare every box with the extent of its mask.

    Args:
        file: what messages name.
        masked_boxes: the boxes that have a mask.
        num_boxes: how many boxes there are, with and without a mask.

    Raises:
        DataError: if more than one in ten contradict each other, and three or more where other
            boxes have no mask; fewer are named in a warning.
    """
    masked = masked_boxes.entries
    if not masked:
        return
    bboxes = masked_boxes.bboxes
    sides = masked_boxes.sides
    extents = masked_boxes.extents.copy()
    is_alone = _are_alone(masked)
    first_look = _Comparison(bboxes, extents, sides, is_alone)
    pixel_facts = _look_at_pixels(masked, first_look)
    for row, facts in pixel_facts.items():
        extents[row] = facts.extent
    comparison = _Comparison(bboxes, extents, sides, is_alone)

    causes = comparison.causes()
    for row, facts in pixel_facts.items():
        causes[row] = facts.cause or causes[row]
    for row, cause in enumerate(causes):
        if cause in (_EMPTY, _DIFFERENT) and rotation_of(masked[row].box):
            causes[row] = _TURNED
        elif cause is not None and _has_axes_apart(
            masked_boxes.shapes[row], comparison.box_corners[row]
        ):
            causes[row] = _AXES_APART
    wrong = [row for row, cause in enumerate(causes) if cause is not None]
    if wrong:
        notes = {row: facts.note for row, facts in pixel_facts.items()}
        _report(file, masked, comparison, causes, notes, num_boxes)
    _warn_of_loose_boxes(file, masked, comparison, set(wrong))


def _are_alone(masked: Sequence[BoxOfImage]) -> Array:
    """Where an image has one box with a mask only (n,)."""
    counts = Counter(id(entry.image) for entry in masked)
    return np.array([counts[id(entry.image)] == 1 for entry in masked])


def warn_of_unchecked_masks(file: Path, masked: MaskedBoxes) -> None:
    """Warn of masks without a bbox to compare them with that are probably written in another form."""
    _warn_of_axes_apart(file, masked)
    _warn_of_whole_masks(file, masked)
    _warn_of_runs_along_rows(file, masked)


def _warn_of_axes_apart(file: Path, masked: MaskedBoxes) -> None:
    """Warn if all polygons without a bbox may be all x and then all y."""
    entries = []
    have_equal_lengths = True
    for entry, shape in zip(masked.entries, masked.shapes, strict=True):
        if entry.is_of_mask and not isinstance(shape, RunLengths):
            entries.append(entry)
            have_equal_lengths = have_equal_lengths and _are_two_of_one_length(shape)
    # one object may have two parts of equal length by chance
    if len(entries) > 1 and have_equal_lengths:
        logger.warning(
            "%s: the segmentation of all %d objects without bbox has two parts of equal length, such "
            "as %s. If they are all x and then all y, they are read wrongly: write x, y, x, y, ...",
            file,
            len(entries),
            entries[0].name,
        )


def _warn_of_whole_masks(file: Path, masked: MaskedBoxes) -> None:
    """Warn if most masks without a bbox that share their image with others span it."""
    whole = _find_whole_masks(masked)
    if whole:
        logger.warning(
            "%s: the masks of %d objects without bbox span their whole image, next to others in it, "
            "such as that of %s. They may be those of the background: COCO's run lengths begin with "
            "the pixels that are not in the mask",
            file,
            len(whole),
            whole[0].name,
        )


def _warn_of_runs_along_rows(file: Path, masked: MaskedBoxes) -> None:
    """Warn if most run lengths without a bbox seem to be counted along the rows, by the first of them."""
    num_examined = 0
    along_rows = []
    for entry, shape in zip(masked.entries, masked.shapes, strict=True):
        if num_examined == _EXAMINED:
            break
        if entry.is_of_mask and isinstance(shape, RunLengths):
            num_examined += 1
            if _seems_to_run_along_rows(shape):
                along_rows.append(entry)
    if len(along_rows) > _MOST_ALONG_ROWS * num_examined:
        logger.warning(
            "%s: the masks of %d of the first %d objects without bbox are torn into stripes, such as "
            "that of %s, and are not if their run lengths are counted along the rows; COCO's run down "
            "the columns: encode np.asfortranarray(mask)",
            file,
            len(along_rows),
            num_examined,
            along_rows[0].name,
        )


def _find_whole_masks(masked: MaskedBoxes) -> list[BoxOfImage]:
    """Objects without bbox whose masks span the image, if most of those that are not alone do."""
    rows = [row for row, entry in enumerate(masked.entries) if entry.is_of_mask]
    if not rows:
        return []
    is_alone = _are_alone(masked.entries)
    shared = [row for row in rows if not is_alone[row]]
    whole_image = np.concatenate([np.zeros_like(masked.sides), masked.sides], axis=1)
    is_whole = _difference(masked.extents, whole_image) <= _ROUNDING_PX
    whole = [masked.entries[row] for row in shared if is_whole[row]]
    return whole if len(whole) > _MOST_WHOLE * len(shared) else []


def _report(
    file: Path,
    masked: Sequence[BoxOfImage],
    comparison: _Comparison,
    causes: Sequence[str | None],
    notes: dict[int, str],
    num_boxes: int,
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
        f"its bbox is {in_brackets(entry.bbox)} ({BBOX}), its mask {spans}. {cause}{of_them}"
    )
    says_enough = len(masked) == num_boxes or wrong >= _FEWEST_OF_SOME
    if says_enough and too_many_wrong(wrong, len(masked)):
        raise DataError(message)
    consequence = "They are used as they are"
    if cause == _EMPTY:
        consequence = "Without masks, the boxes are used; with masks, these objects are left out"
    logger.warning("%s. %s", message, consequence)


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


# Boxes next to the extents of their masks
# ------------------------------------------------------------------------------------------------


class _Comparison:
    """Boxes next to the extents of their masks.

    Args:
        bboxes: x, y, width and height as the file holds them (n, 4).
        extents: left, top, right and bottom of the masks (n, 4).
        sides: width and height of the images (n, 2).
        is_alone: where an image has no other box with a mask (n,).

    Attributes:
        bboxes, extents, sides, is_alone: the arguments.
        box_corners: left, top, right and bottom of the boxes, cut at the edge of their images
            (n, 4).
        mask_corners: the same of the extents; tools cut boxes or masks, and often only one of them.
        off_by: the largest difference of a side in pixels (n,).
        is_empty: where the extent has no area in its image (n,).
        inside: share of the mask's extent that lies in the box (n,).
        spanned: share of the box that the mask's extent covers (n,).
    """

    def __init__(self, bboxes: Array, extents: Array, sides: Array, is_alone: Array) -> None:
        self.bboxes = bboxes
        self.extents = extents
        self.sides = sides
        self.is_alone = is_alone
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
        is_resized = self._is_resized()
        # of small objects a small move is a large change of their corners
        is_moved = self._is_moved() | (is_resized & self._is_of_equal_size(_EQUAL_SIZE_PX))
        yield _MOVED, is_moved
        yield _RESIZED, is_resized
        yield _EMPTY, self.is_empty
        is_apart = self._is_apart()
        whole_image = np.concatenate([np.zeros_like(self.sides), self.sides], axis=1)
        yield _WHOLE, is_apart & (_difference(self.mask_corners, whole_image) <= _ROUNDING_PX)
        is_whole_box = _difference(self.box_corners, whole_image) <= _ROUNDING_PX
        # the box of a single object may be drawn as loosely as its image
        is_much_larger = ~self.is_alone & (self.spanned < _LEAST_SPANNED)
        yield _WHOLE_BOXES, is_whole_box & is_much_larger
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
        is_equal_size = self._is_of_equal_size(_ROUNDING_PX)
        is_far = np.abs(move).max(axis=1) > _ROUNDING_PX + _CLEARLY_BETTER_PX
        is_moved: Array = is_equal_size & is_far
        return is_moved

    def _is_of_equal_size(self, most_px: float) -> Array:
        """Where width and height of a mask are those of its box, up to ``most_px``."""
        move = self.extents - _corners(self.bboxes)
        is_equal: Array = np.abs(move[:, :2] - move[:, 2:]).max(axis=1) <= most_px
        return is_equal

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


# Other meanings of the numbers
# ------------------------------------------------------------------------------------------------


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


# what a bbox may hold in the place of x, y, width and height
_BOX_READINGS = (
    _Reading(
        f"The boxes seem to hold {X_FIRST}",
        lambda bboxes, sides: bboxes,
    ),
    _Reading(
        f"The boxes seem to hold {Y_FIRST}",
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


# The pixels of run lengths
# ------------------------------------------------------------------------------------------------


def _are_two_of_one_length(shape: Shape) -> bool:
    return not isinstance(shape, RunLengths) and len(shape) == 2 and len(shape[0]) == len(shape[1])


def _has_axes_apart(shape: Shape, box_corners: Array) -> bool:
    """Whether two parts of a mask span the width and the height of its box."""
    if isinstance(shape, RunLengths) or not _are_two_of_one_length(shape):
        return False
    xs, ys = shape
    extent = np.array([min(xs), min(ys), max(xs), max(ys)])
    return bool(np.abs(extent - box_corners).max() <= _ROUNDING_PX)


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
    along_rows = pixels.T.reshape(pixels.shape)  # the same runs
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


def _seems_to_run_along_rows(runs: RunLengths) -> bool:
    """Whether a mask is torn into stripes down the columns, and is not along the rows."""
    height, width = runs.size
    pixels = decode(runs, height, width).astype(np.int8)
    along_rows = pixels.T.reshape(pixels.shape)
    # runs end where a mask ends in their own direction, in either order; the other direction tells
    edges = np.abs(np.diff(pixels, axis=1)).sum()
    edges_along_rows = np.abs(np.diff(along_rows, axis=0)).sum()
    return bool(edges > _MORE_EDGES * edges_along_rows > 0)


def _share_inside(pixels: Array, box: Array) -> str:
    """How many of a mask's pixels lie in a box, in words."""
    total = int(pixels.sum())
    if not total:
        return ""
    left, top = np.floor(box[:2]).astype(int)
    right, bottom = np.ceil(box[2:]).astype(int)
    share = int(pixels[top:bottom, left:right].sum()) / total
    return f", {100 * share:.0f} % of its pixels in the box"
