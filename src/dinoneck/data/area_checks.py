"""Whether the ``area`` of annotations is that of their boxes and masks."""

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
from dinoneck.errors import DataError, shorten

logger = logging.getLogger(__name__)
Array = np.ndarray[Any, Any]

# of equal areas, relative: tools round them to whole pixels or two decimals
_AREA_ROUNDING = 1e-3
_AREA_ROUNDING_PX = 0.5
_FEWEST_AREAS = 3  # the area of a single mask may equal anything
_CHANCE = 0.01  # of areas of masks may equal that of corners within the rounding
_MASK_AREA_ROUNDING = 0.1  # relative; outlines are simplified
# an area may be that of an outline around the rounded box
_LARGEST_AREA = 1.1
# where so many areas are those of their boxes, the others are not those of masks
_LEAST_OF_BOXES = 0.8
_FEWEST_OF_BOXES = 5
_LEAST_AREA = 0.9  # of a box, whose sides may be rounded


def check_areas(file: Path, boxes: Sequence[BoxOfImage]) -> None:
    """Compare boxes without a mask with their ``area``, which corners contradict.

    Raises:
        DataError: if the areas say that the boxes are corners.
    """
    _warn_of_negative_areas(file, boxes)
    rated = []
    stated_areas = []
    for entry in boxes:
        area = _area_of(entry.box) if entry.shape is None else None
        if area is not None:
            rated.append(entry)
            stated_areas.append(area)
    if not rated:
        return
    areas = np.array(stated_areas)
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
        order = corner_order(bboxes[are_corners], sides[are_corners]) or X_FIRST
        message = (
            f"{file}: the area of {are_corners.sum()} of {len(rated)} boxes is not width x height, "
            f"such as {first.name} with the area {first.box.area} and the bbox "
            f"{in_brackets(first.bbox)}; expected {BBOX}. It fits {order}"
        )
        is_many = are_corners.sum() > MOST_WRONG * len(rated)
        if is_many and are_corners.sum() >= _FEWEST_AREAS:
            raise DataError(message)
        logger.warning("%s, unless the area is that of a mask", message)
        return
    _warn_of_other_areas(file, rated, areas, of_sides, fits_sides)


def _warn_of_other_areas(
    file: Path, rated: Sequence[BoxOfImage], areas: Array, of_sides: Array, fits_sides: Array
) -> None:
    """Warn of areas that are larger than the box, or smaller where nearly all others are those of the box.

    Args:
        file: what messages name.
        rated: boxes without a mask and with an area.
        areas: of them, as the file holds them (n,).
        of_sides: width times height (n,).
        fits_sides: where the two are equal (n,).
    """
    width, height = np.array([entry.bbox[2:] for entry in rated]).T
    # a side may be rounded by a pixel
    is_larger = areas > np.maximum(_LARGEST_AREA * of_sides, (width + 1) * (height + 1))
    if is_larger.any():
        first = rated[int(is_larger.argmax())]
        logger.warning(
            "%s: the area of %d of %d boxes is larger than the box, such as %s with the area %s "
            "and the bbox %s; one of the two is wrong. The area is not used",
            file,
            is_larger.sum(),
            len(rated),
            first.name,
            first.box.area,
            in_brackets(first.bbox),
        )
    is_rule = fits_sides.sum() >= max(_FEWEST_OF_BOXES, _LEAST_OF_BOXES * len(rated))
    most = np.minimum(_LEAST_AREA * of_sides, (width - 1) * (height - 1))
    is_smaller = areas < most
    if is_rule and is_smaller.any():
        first = rated[int(is_smaller.argmax())]
        logger.warning(
            "%s: the area of %d of %d boxes is smaller than the box, such as %s with the area %s "
            "and the bbox %s, and that of %d others is width x height; one of the two is wrong. The "
            "area is not used",
            file,
            is_smaller.sum(),
            len(rated),
            first.name,
            first.box.area,
            in_brackets(first.bbox),
            fits_sides.sum(),
        )


def _warn_of_negative_areas(file: Path, boxes: Sequence[BoxOfImage]) -> None:
    """Warn of areas below 0, which are those of nothing."""
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
    tolerance: Array = np.maximum(_AREA_ROUNDING * areas, _AREA_ROUNDING_PX)
    return tolerance


def mask_area_tolerance(areas: Array, box_sides: Array) -> Array:
    """Return by how much the number of a mask's pixels may differ from its ``area`` (n,).

    Tools measure the area of the outline, which differs from the pixels by half a pixel along the
    edge, or simplify it.

    Args:
        areas: as the file holds them (n,).
        box_sides: width and height of the boxes (n, 2).
    """
    tolerance: Array = _MASK_AREA_ROUNDING * areas + box_sides.sum(axis=1)
    return tolerance


def _stated_area(box: CocoBox) -> float | None:
    """The area of an annotation, also as a text; None if it is no number."""
    if isinstance(box.area, str):
        return number_of_text(box.area)
    return float(box.area) if is_number(box.area) else None


def _area_of(box: CocoBox) -> float | None:
    """The area of an annotation; None without one, or where tools write 0 because they know none."""
    area = _stated_area(box)
    return area if area is not None and area > 0 else None


def warn_of_mask_areas(file: Path, masked: MaskedBoxes) -> None:
    """Warn of an ``area`` that is neither that of the mask nor that of the box."""
    areas = np.full(len(masked.entries), np.nan)
    for row, entry in enumerate(masked.entries):
        area = _area_of(entry.box)
        if area is not None and entry.box.segmentation:
            areas[row] = area
    box_sides = masked.bboxes[:, 2:]
    is_of_box = np.abs(areas - box_sides.prod(axis=1)) <= _area_tolerance(areas)
    tolerance = mask_area_tolerance(areas, box_sides)
    is_off = np.isnan(masked.areas) | (np.abs(areas - masked.areas) > tolerance)
    rows = np.flatnonzero(~np.isnan(areas) & ~is_of_box & is_off)
    suspects = [masked.entries[row] for row in rows.tolist()]
    try:
        # parts may overlap or reach over the edge, so the pixels decide
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
    """Warn of polygons of few points that cross themselves and lose area, as corners in zigzag order."""
    drawn = []
    shapes = []
    for entry in boxes:
        if entry.shape is not None and not isinstance(entry.shape, RunLengths):
            drawn.append(entry)
            shapes.append(entry.shape)
    crossing = [drawn[row] for row in find_crossing(shapes)]
    if crossing:
        logger.warning(
            "%s: the polygons of %d of %d objects cross themselves, such as the segmentation %s of %s, "
            "and their masks lack what lies between: list the points in the order of the outline",
            file,
            len(crossing),
            len(drawn),
            shorten(crossing[0].box.segmentation),
            crossing[0].name,
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
    first_nested = None
    first_hole = None
    for entry in boxes:
        if entry.shape is None:
            continue
        nesting = nesting_of(entry.shape, entry.image.height, entry.image.width)
        if nesting is None:
            continue
        nested += 1
        area = _area_of(entry.box)
        is_hole = area is not None and _is_nearer(area, nesting.with_holes, nesting.filled)
        holes += is_hole
        if first_nested is None:
            first_nested = (entry, nesting)
        if is_hole and first_hole is None:
            first_hole = (entry, nesting)
    example = first_hole or first_nested
    if example is None:
        return
    entry, nesting = example
    area_note = f" and its area is {_area_of(entry.box):g}" if holes else ""
    message = (
        f"{file}: {nested} of {len(boxes)} masks have a part inside another one, as holes are "
        f"exported, such as {entry.name}: COCO fills it, its mask has {nesting.filled} px, with "
        f"holes it would have {nesting.with_holes} px{area_note}. Export masks with holes as run lengths "
        "(RLE)"
    )
    if too_many_wrong(holes, len(boxes)):
        raise DataError(message)
    logger.warning("%s. They are filled", message)


def _is_nearer(area: float, one: float, other: float) -> bool:
    return abs(area - one) < abs(area - other)
