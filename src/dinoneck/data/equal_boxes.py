"""Boxes that a COCO JSON holds twice, and boxes of one place with two classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dinoneck.data.box_entries import BoxOfImage
from dinoneck.data.coco_entries import Repairs
from dinoneck.data.segmentations import Shape, are_equal_polygons, overlap, read_shape
from dinoneck.errors import DataError

Array = np.ndarray[Any, Any]

_EQUAL_PX = 0.01  # tools write two decimals, or float32
_LEAST_OVERLAP = 0.99  # of two masks of one object, which tools draw or encode in two ways


@dataclass
class EqualBoxes:
    """Boxes in the place of an earlier one of their image.

    Attributes:
        repeated: indices of boxes that say nothing new: equal image, class, box and mask.
        contradicting: pairs of boxes of two classes, in the order of the file.
    """

    repeated: set[int] = field(default_factory=set)
    contradicting: list[tuple[BoxOfImage, BoxOfImage]] = field(default_factory=list)


def find_equal(boxes: Sequence[BoxOfImage], bboxes: Array, *, with_crowds: bool) -> EqualBoxes:
    """Return which boxes equal an earlier one, to a hundredth of a pixel.

    Of equal boxes of which only some have a mask, those with a mask stay.

    Args:
        boxes: those of listed images and of the classes.
        bboxes: x, y, width and height of them (n, 4).
        with_crowds: whether crowd regions are no objects, and so never the same as one.
    """
    equal = EqualBoxes()
    for rows in _rows_of_one_place(boxes, bboxes):
        # a box without a mask is compared with those that have one
        with_masks_first = sorted(rows, key=lambda row: not boxes[row].box.segmentation)
        different: list[BoxOfImage] = []
        for row in with_masks_first:
            entry = boxes[row]
            twin = _find_twin(entry, different, with_crowds)
            if twin is None:
                different.append(entry)
            elif twin.box.category_id == entry.box.category_id:
                equal.repeated.add(entry.index)
            else:
                different.append(entry)
                first, second = sorted((twin, entry), key=lambda box: box.index)
                equal.contradicting.append((first, second))
    equal.contradicting.sort(key=lambda pair: pair[0].index)
    return equal


def _rows_of_one_place(boxes: Sequence[BoxOfImage], bboxes: Array) -> list[list[int]]:
    """Rows of boxes of one image whose four numbers are equal, two or more; in the order of the file."""
    images = np.unique([id(entry.image) for entry in boxes], return_inverse=True)[1]
    rows = np.arange(len(boxes))
    groups = images
    for column in range(4):
        values = bboxes[rows, column]
        order = np.lexsort((values, groups))
        is_equal = np.diff(values[order]) <= _EQUAL_PX  # of the one before; NaN equals nothing
        is_equal &= np.diff(groups[order]) == 0
        starts = np.append(True, ~is_equal)[: len(rows)]
        numbers = np.cumsum(starts) - 1
        is_shared = np.bincount(numbers)[numbers] > 1
        rows = rows[order][is_shared]
        groups = numbers[is_shared]
        if not len(rows):
            return []
    by_group: dict[int, list[int]] = {}
    for row, group in sorted(zip(rows.tolist(), groups.tolist(), strict=True)):
        by_group.setdefault(group, []).append(row)
    return list(by_group.values())


def _find_twin(
    entry: BoxOfImage, others: Sequence[BoxOfImage], with_crowds: bool
) -> BoxOfImage | None:
    """The box of one place that a box repeats, of its class before those of another; None if it is new."""
    twins = []
    for other in others:
        is_alike = not with_crowds or entry.box.iscrowd == other.box.iscrowd
        if is_alike and _have_one_mask(entry, other):
            twins.append(other)
    for twin in twins:
        if twin.box.category_id == entry.box.category_id:
            return twin
    return twins[0] if twins else None


def _have_one_mask(entry: BoxOfImage, other: BoxOfImage) -> bool:
    """Whether the masks of equal boxes do not tell them apart."""
    if not entry.box.segmentation or not other.box.segmentation:
        return True
    if entry.box.segmentation == other.box.segmentation:
        return True
    shape = _shape_of(entry)
    other_shape = _shape_of(other)
    if shape is None or other_shape is None:
        return False
    if are_equal_polygons(shape, other_shape, _EQUAL_PX):
        return True
    try:
        shared = overlap(shape, other_shape, entry.image.height, entry.image.width)
    except ImportError:
        return False
    return shared >= _LEAST_OVERLAP


def _shape_of(entry: BoxOfImage) -> Shape | None:
    """The mask of a box; None if it cannot be read, which is named where masks are asked for."""
    # the mask is read again with those of the other boxes, and its repairs are counted there
    uncounted = Repairs()
    try:
        return read_shape(entry.box, (entry.image.height, entry.image.width), "", uncounted)
    except DataError:
        return None
