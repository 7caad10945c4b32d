"""The entries of a COCO JSON as msgspec types, which those of YOLO and VOC become too. No torch is imported."""

from __future__ import annotations

from typing import Annotated, Any, Generic, Literal, TypeVar

from msgspec import Meta, Raw, Struct

Entry = TypeVar("Entry")
Id = int | str
Crowd = Literal["ignore", "objects"]
Side = Annotated[int, Meta(ge=0)]  # exporters that never opened the image write 0


class ClassName(str):
    """The name of a category, composed (NFC) and without blanks at its ends; numbers become texts."""


class CocoImage(Struct):
    """One entry of ``images``; without a width or height its file is asked."""

    id: Id
    file_name: str
    width: Side | None = None
    height: Side | None = None


class CocoCategory(Struct):
    """One entry of ``categories``; ``isthing`` is None where the file does not say."""

    id: Id
    name: ClassName
    isthing: bool | None = None


class CocoBox(Struct):
    """One entry of ``annotations``.

    Attributes:
        image_id: of its image.
        category_id: of its class.
        bbox: x, y of the upper left corner, width and height in pixels; empty or None = none.
        id: names it in messages; nothing refers to it.
        iscrowd: whether it is a region of many objects.
        segmentation: its mask as JSON; empty without one.
        score: that of a prediction, which no truth has.
    """

    image_id: Id
    category_id: Id
    bbox: list[float] | None = None
    id: int | float | str | None = None
    iscrowd: bool | None = False
    segmentation: Raw = Raw(b"")
    score: Any = None


class CocoSegment(Struct):
    """One entry of ``segments_info``; 0 is the id of pixels of which nothing is known."""

    id: Annotated[int, Meta(ge=1, lt=256**3)]
    category_id: Id
    iscrowd: bool | None = False
    bbox: list[float] | None = None


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
