"""Boxes that a COCO JSON holds twice, and boxes of one place with two classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dinoneck.data.box_entries import BoxOfImage
from dinoneck.data.coco_entries import Repairs
from dinoneck.data.segmentations import Shape, are_equal_polygons, overlaps, read_shape
from dinoneck.errors import DataError

Array = np.ndarray[Any, Any]

_EQUAL_PX = 0.01  # tools write two decimals, or float32
_MOST_COMPARED = 300  # boxes of one place, of which all pairs of masks are drawn
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
        entries = [boxes[row] for row in rows]
        # a box without a mask is compared with those that have one
        entries.sort(key=lambda entry: not entry.box.segmentation)
        masks = _Masks(entries)
        different: list[int] = []
        for i, entry in enumerate(entries):
            twins = []
            for j in different:
                is_alike = not with_crowds or entries[j].box.iscrowd == entry.box.iscrowd
                if is_alike and masks.are_same(i, j):
                    twins.append(entries[j])
            categories = [twin.box.category_id for twin in twins]
            if entry.box.category_id in categories:
                equal.repeated.add(entry.index)
                continue
            different.append(i)
            if twins:
                first, second = sorted((twins[0], entry), key=lambda box: box.index)
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


class _Masks:
    """Compares the masks of equal boxes of one image.

    Args:
        entries: the boxes.
    """

    def __init__(self, entries: Sequence[BoxOfImage]) -> None:
        self._entries = entries
        self._segmentations = [entry.box.segmentation for entry in entries]
        # (n, n), made when masks that are written in two ways are compared first
        self._is_same: Array | None = None

    def are_same(self, i: int, j: int) -> bool:
        """Whether the masks do not tell two boxes apart."""
        first = self._segmentations[i]
        second = self._segmentations[j]
        if not first or not second or first == second:
            return True
        if len(self._entries) > _MOST_COMPARED:
            return False
        if self._is_same is None:
            self._is_same = self._compare()
        return bool(self._is_same[i, j])

    def _compare(self) -> Array:
        """Where the outlines or the pixels of two masks are equal (n, n)."""
        count = len(self._entries)
        is_same = np.zeros((count, count), bool)
        shapes = {}
        for i, entry in enumerate(self._entries):
            shape = _shape_of(entry) if entry.box.segmentation else None
            if shape is not None:
                shapes[i] = shape
        for i, shape in shapes.items():
            for j, other in shapes.items():
                is_same[i, j] = are_equal_polygons(shape, other, _EQUAL_PX)
        image = self._entries[0].image
        try:
            shares = overlaps(list(shapes.values()), image.height, image.width)
        except ImportError:
            return is_same
        readable = list(shapes)
        is_same[np.ix_(readable, readable)] |= shares >= _LEAST_OVERLAP
        return is_same


def _shape_of(entry: BoxOfImage) -> Shape | None:
    """The mask of a box; None if it cannot be read, which is named where masks are asked for."""
    # the mask is read again with those of the other boxes, and its repairs are counted there
    uncounted = Repairs()
    try:
        return read_shape(entry.box, (entry.image.height, entry.image.width), "", uncounted)
    except DataError:
        return None
