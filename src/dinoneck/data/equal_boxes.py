"""Boxes that a COCO JSON holds twice, also with other numbers, and boxes of one place with two classes."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dinoneck.data.box_entries import BoxOfImage, bboxes_of
from dinoneck.data.coco_entries import Repairs
from dinoneck.data.segmentations import Shape, are_equal_polygons, overlaps, read_shape
from dinoneck.errors import DataError

logger = logging.getLogger(__name__)
Array = np.ndarray[Any, Any]

_EQUAL_PX = 0.01  # tools write two decimals, or float32
_MOST_COMPARED = 300  # boxes of one place, of which all pairs of masks are drawn
_LEAST_OVERLAP = 0.99  # of two masks of one object, which tools draw or encode in two ways
# of two boxes of one object of which one is rounded; of other objects so many are rare
_TWIN_OVERLAP = 0.9
_TWIN_PX = 1.0  # the same of every side
_MOST_TWINS = 0.2
_FEWEST_TWINS = 5


@dataclass
class EqualBoxes:
    """Boxes in the place of an earlier one of their image.

    Attributes:
        repeated: indices of boxes that say nothing new: equal image, class, box and mask.
        contradicting: pairs of boxes of two classes, in the order of the file.
    """

    repeated: set[int] = field(default_factory=set)
    contradicting: list[tuple[BoxOfImage, BoxOfImage]] = field(default_factory=list)


def find_equal(
    boxes: Sequence[BoxOfImage], bboxes: Array, *, crowds_are_regions: bool
) -> EqualBoxes:
    """Return which boxes equal an earlier one, to a hundredth of a pixel.

    Of equal boxes of which only some have a mask, those with a mask stay.

    Args:
        boxes: those of listed images and of the classes.
        bboxes: x, y, width and height of them (n, 4).
        crowds_are_regions: whether boxes with ``iscrowd`` are regions, which are never the same as
            an object.
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
                if crowds_are_regions and entries[j].box.iscrowd != entry.box.iscrowd:
                    continue
                if masks.are_same(i, j):
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
    """Rows of boxes of one image whose four numbers are equal, two or more; in the order of the file.

    The boxes of an image are a group, which each of the four numbers splits further.
    """
    rows = np.arange(len(boxes))
    _, groups = np.unique([id(entry.image) for entry in boxes], return_inverse=True)
    for column in range(4):
        # equal numbers of a group are next to each other
        values = bboxes[rows, column]
        order = np.lexsort((values, groups))
        equals_previous = np.diff(values[order]) <= _EQUAL_PX  # NaN equals nothing
        equals_previous &= np.diff(groups[order]) == 0
        # a box that does not equal the one before begins a new group
        begins_group = np.append(True, ~equals_previous)[: len(rows)]
        new_groups = np.cumsum(begins_group) - 1
        # a box alone in its group has no equal
        group_sizes = np.bincount(new_groups)
        is_shared = group_sizes[new_groups] > 1
        rows = rows[order][is_shared]
        groups = new_groups[is_shared]
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


# Boxes that are nearly equal
# ------------------------------------------------------------------------------------------------


def warn_of_twins(file: Path, boxes: Sequence[BoxOfImage], *, crowds_are_regions: bool) -> None:
    """Warn if many boxes nearly equal another one of their image and class, as in merged exports.

    Args:
        file: what messages name.
        boxes: those that count, without boxes that equal an earlier one.
        crowds_are_regions: whether boxes with ``iscrowd`` are regions, not objects.
    """
    entries = [entry for entry in boxes if not (crowds_are_regions and entry.box.iscrowd)]
    if len(entries) < _FEWEST_TWINS:
        return
    twin_of = _find_twins(entries)
    rows = np.flatnonzero(twin_of >= 0).tolist()
    if len(rows) < max(_FEWEST_TWINS, _MOST_TWINS * len(entries)):
        return
    logger.warning(
        "%s: %d of %d boxes overlap another one of their image and class by %.0f %% or more (IoU), or "
        "differ from it by %g px or less, such as %s and %s. If exports of the same objects were "
        "merged, take one of each pair out",
        file,
        len(rows),
        len(entries),
        100 * _TWIN_OVERLAP,
        _TWIN_PX,
        entries[rows[0]].name,
        entries[int(twin_of[rows[0]])].name,
    )


def _find_twins(entries: Sequence[BoxOfImage]) -> Array:
    """The row of a box of the same image and class that nearly equals each one, -1 of others (n,)."""
    # a group is the boxes of one image and class
    group_of: dict[tuple[int, Any], int] = {}
    keys = [(id(entry.image), entry.box.category_id) for entry in entries]
    groups = np.array([group_of.setdefault(key, len(group_of)) for key in keys])

    # boxes of one place are near each other in the order of their left sides
    bboxes = bboxes_of(entries)
    order = np.lexsort((bboxes[:, 0], groups))
    groups = groups[order]
    left, top, width, height = bboxes[order].T
    corners = np.stack([left, top, left + width, top + height], axis=1)
    areas = width * height
    # boxes that share 0.9 of all they cover begin within a tenth of a width
    farthest = np.maximum((1 - _TWIN_OVERLAP) * width, _TWIN_PX)

    # each box is compared with the next one in this order, then with the one after that, and so on
    twin_of = np.full(len(entries), -1)
    firsts = np.arange(len(entries))
    for step in range(1, _MOST_COMPARED):
        firsts = firsts[firsts + step < len(entries)]
        seconds = firsts + step
        is_near = groups[firsts] == groups[seconds]
        is_near &= left[seconds] - left[firsts] <= farthest[firsts]
        firsts = firsts[is_near]
        seconds = seconds[is_near]
        if not len(firsts):
            break
        are_twins = _are_nearly_equal(
            corners[firsts], corners[seconds], summed_areas=areas[firsts] + areas[seconds]
        )
        twin_of[order[firsts[are_twins]]] = order[seconds[are_twins]]
        twin_of[order[seconds[are_twins]]] = order[firsts[are_twins]]
    return twin_of


def _are_nearly_equal(corners: Array, others: Array, *, summed_areas: Array) -> Array:
    """Which boxes overlap by 0.9 or more (IoU), or differ by a pixel at most, (n,) bool.

    Args:
        corners: left, top, right and bottom of n boxes (n, 4).
        others: those of the boxes to compare them with (n, 4).
        summed_areas: of the two boxes (n,).
    """
    left_top = np.maximum(corners[:, :2], others[:, :2])
    right_bottom = np.minimum(corners[:, 2:], others[:, 2:])
    shared = (right_bottom - left_top).clip(0).prod(axis=1)
    are_equal: Array = shared >= _TWIN_OVERLAP * (summed_areas - shared)
    # a pixel is much of a small object
    are_equal |= np.abs(corners - others).max(axis=1) <= _TWIN_PX
    return are_equal
