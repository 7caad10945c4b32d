"""Check that the ``area`` of annotations is that of their boxes or masks."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dinoneck.data.box_checks import X_FIRST, corner_order
from dinoneck.data.box_entries import (
    MOST_WRONG,
    BoxOfImage,
    MaskedBoxes,
    in_brackets,
    too_many_wrong,
)
from dinoneck.data.coco_entries import BBOX, CocoBox, is_number
from dinoneck.data.coco_repairs import number_of_text
from dinoneck.data.segmentations import (
    RunLengths,
    count_in_masks,
    find_crossing,
    nesting_of,
)
from dinoneck.errors import DataError
from dinoneck.text import shorten

logger = logging.getLogger(__name__)
Array = np.ndarray[Any, Any]

# two areas are equal within this: tools round them to whole pixels or two decimals
_AREA_TOLERANCE = 1e-3  # relative
_AREA_TOLERANCE_PX = 0.5  # square pixels
# in fewer boxes, areas of masks may equal those of corners by chance
_MIN_CORNER_AREAS = 3
_CHANCE_SHARE = 0.01  # of the areas of masks may equal those of corners by chance
_MASK_AREA_TOLERANCE = 0.1  # relative: outlines are simplified
# an area may be that of an outline that is larger than the rounded box
_MAX_AREA_RATIO = 1.1
_MIN_AREA_RATIO = 0.9  # the sides of a box may be rounded
# if so many areas are those of their boxes, the others are not those of masks
_MIN_SHARE_OF_BOX_AREAS = 0.8
_MIN_BOX_AREAS = 5


def check_areas(file: Path, boxes: Sequence[BoxOfImage]) -> None:
    """Compare the ``area`` of boxes without a mask with width x height.

    An area that equals (third - first) x (fourth - second number) instead shows that the box is
    stored as two corners.

    Raises:
        DataError: if the areas show that the boxes are corners.
    """
    _warn_of_negative_areas(file, boxes)
    entries = []  # boxes without a mask and with an area
    stated_areas = []
    for entry in boxes:
        if entry.shape is not None:
            continue
        area = _area_of(entry.box)
        if area is not None:
            entries.append(entry)
            stated_areas.append(area)
    if not entries:
        return
    areas = np.array(stated_areas)
    bboxes = np.array([entry.bbox for entry in entries])
    left, top, width, height = bboxes.T
    box_areas = width * height
    # if the last two numbers are the right bottom corner
    corner_areas = (width - left) * (height - top)
    tolerance = _area_tolerance(areas)
    fits_box = np.abs(areas - box_areas) <= tolerance
    can_be_corners = (width > left) & (height > top)
    fits_corners = (np.abs(areas - corner_areas) <= tolerance) & can_be_corners
    are_corners = fits_corners & ~fits_box
    # areas of masks fit neither, and a few of them fit corners by chance
    fits_neither = ~fits_corners & ~fits_box
    if are_corners.sum() > _CHANCE_SHARE * fits_neither.sum():
        first = entries[int(are_corners.argmax())]
        image_sizes = np.array([(entry.image.width, entry.image.height) for entry in entries])
        order = corner_order(bboxes[are_corners], image_sizes[are_corners]) or X_FIRST
        message = (
            f"{file}: the area of {are_corners.sum()} of {len(entries)} boxes is not width x height, "
            f"such as {first.name} with the area {first.box.area} and the bbox "
            f"{in_brackets(first.bbox)}; expected {BBOX}. It fits {order}"
        )
        are_many = are_corners.sum() > MOST_WRONG * len(entries)
        if are_many and are_corners.sum() >= _MIN_CORNER_AREAS:
            raise DataError(message)
        logger.warning("%s, unless the area is that of a mask", message)
        return
    _warn_of_other_areas(file, entries, areas=areas, box_areas=box_areas, fits_box=fits_box)


def _warn_of_other_areas(
    file: Path, entries: Sequence[BoxOfImage], *, areas: Array, box_areas: Array, fits_box: Array
) -> None:
    """Warn of areas that are larger than the box, or smaller although nearly all others equal theirs.

    Args:
        file: the file, for messages.
        entries: n boxes without a mask and with an area.
        areas: the areas in the file (n,).
        box_areas: width times height (n,).
        fits_box: whether the two are equal (n,).
    """
    width, height = np.array([entry.bbox[2:] for entry in entries]).T
    # a side may be rounded by a pixel
    largest = np.maximum(_MAX_AREA_RATIO * box_areas, (width + 1) * (height + 1))
    is_larger = areas > largest
    if is_larger.any():
        first = entries[int(is_larger.argmax())]
        logger.warning(
            "%s: the area of %d of %d boxes is larger than the box, such as %s with the area %s "
            "and the bbox %s; one of the two is wrong. The area is not used",
            file,
            is_larger.sum(),
            len(entries),
            first.name,
            first.box.area,
            in_brackets(first.bbox),
        )
    min_box_areas = max(_MIN_BOX_AREAS, _MIN_SHARE_OF_BOX_AREAS * len(entries))
    are_box_areas = fits_box.sum() >= min_box_areas
    smallest = np.minimum(_MIN_AREA_RATIO * box_areas, (width - 1) * (height - 1))
    is_smaller = areas < smallest
    if are_box_areas and is_smaller.any():
        first = entries[int(is_smaller.argmax())]
        logger.warning(
            "%s: the area of %d of %d boxes is smaller than the box, such as %s with the area %s "
            "and the bbox %s, and that of %d others is width x height; one of the two is wrong. The "
            "area is not used",
            file,
            is_smaller.sum(),
            len(entries),
            first.name,
            first.box.area,
            in_brackets(first.bbox),
            fits_box.sum(),
        )


def _warn_of_negative_areas(file: Path, boxes: Sequence[BoxOfImage]) -> None:
    """Warn of areas below 0."""
    negative = []
    for entry in boxes:
        area = entry.box.area
        if type(area) is str:
            area = number_of_text(area)
        if is_number(area) and area < 0:
            negative.append(entry)
    if negative:
        logger.warning(
            "%s: the area of %d of %d boxes is negative, such as %s of %s. It is not used",
            file,
            len(negative),
            len(boxes),
            negative[0].box.area,
            negative[0].name,
        )


def _area_tolerance(areas: Array) -> Array:
    tolerance: Array = np.maximum(_AREA_TOLERANCE * areas, _AREA_TOLERANCE_PX)
    return tolerance


def mask_area_tolerance(areas: Array, box_sides: Array) -> Array:
    """Return by how much the pixel counts of masks may differ from their ``area`` (n,).

    Some tools state the area of the outline, which differs from the pixel count by half a pixel along
    the edge. Others simplify the outline.

    Args:
        areas: the areas in the file (n,).
        box_sides: width and height of the boxes (n, 2).
    """
    tolerance: Array = _MASK_AREA_TOLERANCE * areas + box_sides.sum(axis=1)
    return tolerance


def _stated_area(box: CocoBox) -> float | None:
    """Return the area of an annotation, a number or a text; None if it is no number."""
    if isinstance(box.area, str):
        return number_of_text(box.area)
    return float(box.area) if is_number(box.area) else None


def _area_of(box: CocoBox) -> float | None:
    """Return the area of an annotation; None without one, or if it is 0, as some tools write it."""
    area = _stated_area(box)
    return area if area is not None and area > 0 else None


def warn_of_mask_areas(file: Path, masked: MaskedBoxes) -> None:
    """Warn of an ``area`` that is neither that of the mask nor that of the box."""
    areas = np.full(len(masked.entries), np.nan)  # NaN: not stated
    for row, entry in enumerate(masked.entries):
        area = _area_of(entry.box)
        if area is not None and entry.box.segmentation:
            areas[row] = area
    box_sides = masked.bboxes[:, 2:]
    is_of_box = np.abs(areas - box_sides.prod(axis=1)) <= _area_tolerance(areas)
    tolerance = mask_area_tolerance(areas, box_sides)
    differs = np.isnan(masked.areas) | (np.abs(areas - masked.areas) > tolerance)
    rows = np.flatnonzero(~np.isnan(areas) & ~is_of_box & differs)
    suspects = [masked.entries[row] for row in rows.tolist()]
    try:
        # polygons may overlap or reach over the edge of the image, so their pixels are counted
        pixels = count_in_masks(
            [masked.shapes[row] for row in rows.tolist()],
            [(entry.image.height, entry.image.width) for entry in suspects],
        )
    except ImportError:
        return
    is_wrong = np.abs(areas[rows] - pixels) > tolerance[rows]
    if not is_wrong.any():
        return
    wrong_row = int(is_wrong.argmax())
    first = suspects[wrong_row]
    logger.warning(
        "%s: the area of %d of %d objects is not that of their mask, such as %s with the area %s, "
        "whose mask has %d px and its bbox %g. The area is not used, but the masks may be those of "
        "other objects: look at some of them",
        file,
        is_wrong.sum(),
        int((~np.isnan(areas)).sum()),
        first.name,
        first.box.area,
        pixels[wrong_row],
        first.bbox[2] * first.bbox[3],
    )


def warn_of_crossing_outlines(file: Path, boxes: Sequence[BoxOfImage]) -> None:
    """Warn of polygons of few points that cross themselves and lose area, such as corners in zigzag order."""
    outlined = []
    shapes = []
    for entry in boxes:
        if entry.shape is not None and not isinstance(entry.shape, RunLengths):
            outlined.append(entry)
            shapes.append(entry.shape)
    crossing = [outlined[row] for row in find_crossing(shapes)]
    if crossing:
        logger.warning(
            "%s: the polygons of %d of %d objects cross themselves, such as the segmentation %s of %s, "
            "and their masks lack what lies between: list the points in the order of the outline",
            file,
            len(crossing),
            len(outlined),
            shorten(crossing[0].box.segmentation),
            crossing[0].name,
        )


def check_holes(file: Path, boxes: Sequence[BoxOfImage]) -> None:
    """Find polygons that lie inside another polygon of the same object.

    Exporters that cannot express holes write them so. COCO takes the union of the polygons, so that
    the inner one has no effect and the hole is filled. If too few areas show that the inner polygons
    are holes, they are named in a warning.

    Raises:
        DataError: if the areas of too many objects show that the inner polygons are holes, see
            :func:`dinoneck.data.box_entries.too_many_wrong`.
        ImportError: if pycocotools is not installed.
    """
    num_nested = 0
    num_holes = 0
    first_nested = None
    first_hole = None
    for entry in boxes:
        if entry.shape is None:
            continue
        nesting = nesting_of(entry.shape, entry.image.height, entry.image.width)
        if nesting is None:
            continue
        num_nested += 1
        area = _area_of(entry.box)
        is_hole = False
        if area is not None:
            is_hole = abs(area - nesting.with_holes) < abs(area - nesting.filled)
        if is_hole:
            num_holes += 1
        if first_nested is None:
            first_nested = (entry, nesting)
        if is_hole and first_hole is None:
            first_hole = (entry, nesting)
    example = first_hole or first_nested
    if example is None:
        return
    entry, nesting = example
    area_note = f" and its area is {_area_of(entry.box):g}" if num_holes else ""
    message = (
        f"{file}: {num_nested} of {len(boxes)} masks have a part inside another one, as holes are "
        f"exported, such as {entry.name}: COCO fills it, its mask has {nesting.filled} px, with "
        f"holes it would have {nesting.with_holes} px{area_note}. Export masks with holes as run lengths "
        "(RLE)"
    )
    if too_many_wrong(num_holes, len(boxes)):
        raise DataError(message)
    logger.warning("%s. They are filled", message)
