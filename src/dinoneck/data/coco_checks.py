"""What no right file of objects has: ids twice, references to nothing, boxes and masks that contradict each other."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dinoneck.data.cells import check_unique
from dinoneck.errors import DataError
from dinoneck.text import in_words, some_of

if TYPE_CHECKING:
    from dinoneck.data.coco_entries import Coco, CocoCategory, Id

BBox = tuple[float, float, float, float]
BBOX = "x, y of the upper left corner, width and height in pixels"
SHORTEST_PX = 1  # side of a box
CUT_PX = 0.01  # a box that ends later than its image was cut: tools write two decimals, or float32
BEYOND_PX = 2.0  # by which tools round boxes of masks


# Entries
# ----------------------------------------------------------------------------------------------------


def without_namesakes(coco: Coco[Any]) -> list[CocoCategory]:
    """Return the categories without those that no entry has and whose name another one has.

    Roboflow writes its project as a category without objects, often with the name of a class.
    """
    names = Counter(category.name for category in coco.categories)
    used = {
        shown.category_id
        for entry in coco.annotations
        for shown in getattr(entry, "segments_info", [entry])
    }
    kept = []
    for category in coco.categories:
        if names[category.name] > 1 and category.id not in used:
            names[category.name] -= 1
        else:
            kept.append(category)
    return kept


def check_entries(coco: Coco[Any], file: Path) -> None:
    """Check that ids and names are listed once, and that annotations refer to what is listed.

    Raises:
        DataError: naming the entry.
    """
    check_unique((entry.id for entry in coco.images), f"{file}: images: the id", "correct it")
    check_unique((entry.file_name for entry in coco.images), f"{file}: file_name", "list it once")
    check_unique(
        (entry.id for entry in coco.categories), f"{file}: categories: the id", "correct it"
    )
    check_unique((entry.name for entry in coco.categories), f"{file}: the category", "rename one")
    image_ids = {image.id for image in coco.images}
    category_ids = {category.id for category in coco.categories}
    for i, entry in enumerate(coco.annotations):
        if entry.image_id not in image_ids:
            raise _unknown(f"{file}: annotations[{i}]", "image_id", entry.image_id, image_ids)
        if getattr(entry, "score", None) is not None:
            raise DataError(
                f"{file}: annotations[{i}] has the score {entry.score}: these are predictions, and "
                "known objects are expected; take score out if a person checked them"
            )
        for shown in getattr(entry, "segments_info", [entry]):
            if shown.category_id not in category_ids:
                where = f"{file}: annotations[{i}]"
                raise _unknown(where, "category_id", shown.category_id, category_ids)


def _unknown(where: str, key: str, value: Id, listed: Collection[Id]) -> DataError:
    return DataError(
        f"{where} has the {key} {value!r}, which the file does not list; it lists "
        f"{some_of(map(repr, listed), 5)}"
    )


# Boxes
# ----------------------------------------------------------------------------------------------------


def check_bbox(bbox: Sequence[float], where: str) -> BBox:
    """Return x, y, width and height of a box.

    Raises:
        DataError: if it is not four finite numbers, or a side is negative.
    """
    if len(bbox) != 4 or not all(map(math.isfinite, bbox)) or min(bbox[2:]) < 0:
        raise DataError(f"{where} has the bbox {list(bbox)}; expected four numbers: {BBOX}")
    x, y, width, height = bbox
    return x, y, width, height


def clip(bbox: BBox, size: tuple[int, int]) -> BBox:
    """Return left, top, right and bottom of the part of a box that lies in its image.

    Args:
        bbox: x, y, width and height.
        size: (height, width) of the image.
    """
    x, y, width, height = bbox
    return (
        max(x, 0.0),
        max(y, 0.0),
        min(x + width, float(size[1])),
        min(y + height, float(size[0])),
    )


def is_cut(bbox: BBox, corners: BBox) -> bool:
    """Whether corners are those of a part of a box."""
    x, y, width, height = bbox
    whole = (x, y, x + width, y + height)
    return max(abs(a - b) for a, b in zip(whole, corners, strict=True)) > CUT_PX


def reason_to_leave_out(bbox: BBox, corners: BBox) -> str:
    """Return why a box shows nothing, ``too small`` or ``outside``; empty if it shows something."""
    if min(bbox[2:]) < SHORTEST_PX:
        return "too small"
    left, top, right, bottom = corners
    return "outside" if min(right - left, bottom - top) < SHORTEST_PX else ""


class LeftOut:
    """Counts what a file lists and is left out.

    Attributes:
        counts: reason -> how often.
        firsts: reason -> the place of the first one.
    """

    def __init__(self) -> None:
        self.counts = Counter[str]()
        self.firsts: dict[str, str] = {}

    def add(self, reason: str, where: str) -> None:
        """Count one."""
        self.counts[reason] += 1
        self.firsts.setdefault(reason, where)

    def check(self, file: Path, total: int) -> None:
        """Refuse a file of which more than half would be left out.

        Raises:
            DataError: naming the first one.
        """
        if 2 * self.counts.total() > total:
            [(reason, _)] = self.counts.most_common(1)
            raise DataError(
                f"{file}: {self.counts.total()} of {total} objects cannot be used "
                f"({in_words(self.counts)}), the first is {self.firsts[reason]}; expected a bbox of "
                f"{BBOX}, and for masks a segmentation of polygons or run lengths"
            )
