"""Boxes that a COCO JSON holds twice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dinoneck.data.coco_entries import CocoBox


@dataclass
class EqualBoxes:
    """Boxes in the place of an earlier one of their image.

    Attributes:
        repeated: places of boxes that say nothing new: equal image, class, box and mask.
        contradicting: pairs of places, of boxes of two classes.
    """

    repeated: set[int]
    contradicting: list[tuple[int, int]]


def find_equal(boxes: Sequence[CocoBox]) -> EqualBoxes:
    """Return which boxes equal an earlier one.

    Of equal boxes of which only some have a mask, those with a mask stay.
    """
    places: dict[Any, list[int]] = {}
    for i, box in enumerate(boxes):
        if box.bbox is not None:
            places.setdefault((box.image_id, box.bbox), []).append(i)
    found = EqualBoxes(repeated=set(), contradicting=[])
    for equal in places.values():
        if len(equal) == 1:
            continue
        different: list[int] = []
        for i in sorted(equal, key=lambda i: not boxes[i].segmentation):
            same = [other for other in different if _may_be_one(boxes[i], boxes[other])]
            if any(_are_alike(boxes[i], boxes[other]) for other in same):
                found.repeated.add(i)
                continue
            different.append(i)
            others = [other for other in same if _contradict(boxes[i], boxes[other])]
            if others:
                found.contradicting.append((min(others[0], i), max(others[0], i)))
    found.contradicting.sort()
    return found


def _may_be_one(box: CocoBox, earlier: CocoBox) -> bool:
    """Whether the masks of equal boxes do not tell them apart; those with a mask come first."""
    return not box.segmentation or box.segmentation == earlier.segmentation


def _contradict(box: CocoBox, other: CocoBox) -> bool:
    return box.category_id != other.category_id and box.iscrowd == other.iscrowd


def _are_alike(box: CocoBox, other: CocoBox) -> bool:
    return box.category_id == other.category_id and box.iscrowd == other.iscrowd
