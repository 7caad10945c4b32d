"""The entries of COCO JSON, and what messages say of them."""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Any, Generic, Literal, TypeGuard, TypeVar

from msgspec import Meta, Struct

Entry = TypeVar("Entry")
Entries = list[dict[str, Any]]
Repairs = Counter[str]
"""What was repaired -> how often."""
Side = Annotated[int, Meta(ge=1)]
Id = int | Annotated[str, Meta(min_length=1)]
UNKNOWN_SIDE = 0  # of an image whose entry does not state it; a file cannot hold it
CROWD_KEY = "iscrowd"
# detectron2's BoxMode.XYWH_ABS, which is COCO's form; 0 are corners
BBOX_MODE = 1
BBOX_MODE_NAME = "BoxMode.XYWH_ABS"
BBOX = "x, y of the upper left corner, width and height in pixels"
EXPECTED = {  # the last name in the place of a value -> what it should be
    "images": "a list of images, one or more",
    "annotations": "a list of annotations",
    "categories": "a list of categories, one or more, each with id and name",
    "segments_info": "a list of segments, each with id and category_id",
    "id": "a whole number or a text",
    "segment id": "a whole number from 1 to 16777215; pixels of no segment are 0, and not listed",
    "image_id": "a whole number or a text",
    "category_id": "a whole number or a text",
    "file_name": "the path of a file, relative to its folder",
    "name": "the name of a class",
    "width": "pixels, a whole number from 1 on; without it the size is read from the image",
    "height": "pixels, a whole number from 1 on; without it the size is read from the image",
    "bbox": f"four numbers: {BBOX}",
    "iscrowd": "0 or 1",
    "isthing": "0 or 1",
}


class CocoImage(Struct):
    """One entry of ``images``; :data:`UNKNOWN_SIDE` where it does not state its size."""

    id: Id
    file_name: str
    width: Side = UNKNOWN_SIDE
    height: Side = UNKNOWN_SIDE


class CocoCategory(Struct):
    """One entry of ``categories``; ``isthing`` is None where the file does not say."""

    id: Id
    name: Annotated[str, Meta(min_length=1)]
    isthing: Literal[0, 1] | None = None


class CocoBox(Struct):
    """One entry of ``annotations``.

    ``area`` and ``segmentation`` are as the file holds them, see
    :func:`dinoneck.data.segmentations.read_shape`; ``attributes`` are CVAT's, ``bbox_mode`` is
    detectron2's. ``rotation`` and ``angle`` are degrees by which a rectangle was turned. ``ignore`` to
    ``IsGroupOf`` (Open Images) are marks of objects that other tools leave out.
    """

    image_id: Id
    category_id: Id
    bbox: tuple[float, float, float, float] | None = None
    id: int | float | str | None = None
    iscrowd: Literal[0, 1] = 0
    segmentation: Any = None
    area: Any = None
    attributes: Any = None
    ignore: Any = None
    ignored: Any = None
    deleted: Any = None
    difficult: Any = None
    is_crowd: Any = None
    isCrowd: Any = None
    is_group_of: Any = None
    IsGroupOf: Any = None
    score: Any = None
    confidence: Any = None
    bbox_mode: Any = None
    rotation: Any = None
    angle: Any = None


class CocoSegment(Struct):
    """One entry of ``segments_info``; 0 is the id of pixels of which nothing is known.

    ``bbox`` and ``area`` are as the file holds them.
    """

    id: Annotated[int, Meta(ge=1, lt=256**3)]
    category_id: Id
    iscrowd: Literal[0, 1] = 0
    bbox: Any = None
    area: Any = None


class CocoSegments(Struct):
    """One entry of ``annotations`` of panoptic segments: the PNG of an image."""

    image_id: Id
    file_name: str
    segments_info: list[CocoSegment]


class Coco(Struct, Generic[Entry]):
    """What is read of a COCO JSON; other entries are ignored."""

    images: Annotated[list[CocoImage], Meta(min_length=1)]
    annotations: list[Entry]
    categories: Annotated[list[CocoCategory], Meta(min_length=1)]


def is_number(value: Any) -> TypeGuard[int | float]:
    """Whether a value is a number; True and False, which Python counts as such, are none."""
    return type(value) in (int, float)


def name_entry(list_name: str, i: int, entry_id: object = None) -> str:
    """Return what messages call an entry: its place in its list, and its id where it has one."""
    if entry_id is None:
        return f"{list_name}[{i}]"
    return f"{list_name}[{i}] (id {entry_id})"
