"""COCO JSON: one typed conversion with ids, references and boxes checked, and its masks by pycocotools."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePath, PureWindowsPath
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from dinoneck.errors import DataError, did_you_mean, missing_extra, reason_of
from dinoneck.regular_files import read_regular

Side = Annotated[int, Meta(ge=1)]
Polygon = Annotated[list[Annotated[float, Meta(ge=-1e6, le=1e6)]], Meta(min_length=6)]  # NaN is refused too

_NUMBER = "[P-o]*[0-O]"  # of COCO's text: groups of 5 bits, the last one without a bit for more
BBOX = "x, y of the upper left corner, width and height in pixels"
_UNIQUE = ("images id", "images file_name", "annotations id", "categories id", "categories name")


class CocoImage(Struct):
    """One entry of ``images``."""

    id: int
    file_name: str
    width: Side
    height: Side


class CocoCategory(Struct):
    """One entry of ``categories``."""

    id: int
    name: Annotated[str, Meta(min_length=1)]
    isthing: Literal[0, 1] = 1


class CocoBox(Struct):
    """One entry of ``annotations``."""

    id: int
    image_id: int
    category_id: int
    bbox: tuple[float, float, float, float]
    iscrowd: Literal[0, 1] = 0
    segmentation: Any = None


class CocoMask(Struct):
    """A run-length encoded mask, (height, width), as counts or as COCO's text."""

    size: tuple[Side, Side]
    counts: list[Annotated[int, Meta(ge=0)]] | Annotated[str, Meta(pattern=rf"^({_NUMBER})*\Z")]


Shape = Annotated[list[Polygon], Meta(min_length=1)] | CocoMask


class Coco(Struct):
    """What is read of a COCO JSON; other entries are ignored."""

    images: Annotated[list[CocoImage], Meta(min_length=1)]
    annotations: list[CocoBox]
    categories: Annotated[list[CocoCategory], Meta(min_length=1)]


class CocoSegment(Struct):
    """One entry of ``segments_info``."""

    id: int
    category_id: int
    iscrowd: Literal[0, 1] = 0


class CocoSegments(Struct):
    """One entry of ``annotations`` of panoptic segments: the PNG of an image, which it has the id of."""

    id: int = msgspec.field(name="image_id")
    file_name: str
    segments_info: list[CocoSegment]


class Panoptic(Coco):
    """What is read of a COCO JSON of panoptic segments."""

    annotations: list[CocoSegments]  # type: ignore[assignment]


def read_coco(file: Path, kind: type[Any] = Coco) -> Any:
    """Read and check a COCO JSON: types, ids, references and names of files."""
    try:
        content = json.loads(read_regular(file))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{file} cannot be read as JSON: {reason_of(error)}; pass a complete COCO JSON file") from error
    coco: Any = _converted(content, kind, str(file))
    pictures = [*coco.images, *(coco.annotations if kind is Panoptic else [])]
    for entry in pictures:
        path = PureWindowsPath(entry.file_name)  # knows both separators
        if not entry.file_name.strip() or "\0" in entry.file_name or path.anchor or ".." in path.parts:
            named = f"the file_name of image {entry.id} is {entry.file_name[:60]!r}"
            raise DataError(f"{file}: {named}; expected a path in the folder")
        entry.file_name = str(PurePath(entry.file_name))  # ./a.png is a.png
    for name, key in map(str.split, _UNIQUE):
        for value, count in Counter(getattr(entry, key) for entry in getattr(coco, name)).most_common(1):
            if count > 1:
                raise DataError(f"{file}: {name}: the {key} {value!r} is given several times; give every entry its own")
    known = {category.id for category in coco.categories}
    for i, entry in enumerate(coco.annotations):
        for own in entry.segments_info if kind is Panoptic else [entry]:
            if own.category_id not in known:
                raise DataError(f"{file}: annotations[{i}] has the category_id {own.category_id}, which is not listed")
        if kind is Coco and min(entry.bbox[2:]) < 0:
            raise DataError(f"{file}: annotations[{i}] has the bbox {entry.bbox} with a negative side; {BBOX}")
    return coco


def _converted(content: Any, kind: Any, name: str) -> Any:
    try:
        return msgspec.convert(content, kind)
    except msgspec.ValidationError as error:
        raise DataError(f"{name}: {error}") from None


def chosen_classes(coco: Any, wanted: Sequence[str] | None, file: Path) -> dict[str, int]:
    """Return name -> id of the classes, in the order of labels."""
    id_of = {category.name: category.id for category in sorted(coco.categories, key=lambda category: category.id)}
    names = tuple(id_of if wanted is None else wanted)
    if not names or len(set(names)) < len(names):
        raise DataError(f"classes is {wanted!r}; expected one or more names, each once, of {', '.join(id_of)}")
    for name in sorted({*names}.difference(id_of)):
        raise DataError(f"{file} has no category {name!r}; it has {', '.join(id_of)}.{did_you_mean(name, id_of)}")
    return {name: id_of[name] for name in names}


def shape_of(box: CocoBox, where: str, image: CocoImage) -> Shape:
    """Return the segmentation of an entry; a run-length code has the height and width of its image."""
    size = (image.height, image.width)
    shape: Shape = _converted(box.segmentation, Shape, f"{where}: the segmentation")
    if isinstance(shape, CocoMask):
        runs = _runs(shape.counts) if isinstance(shape.counts, str) else shape.counts
        if shape.size != size or min(runs, default=-1) < 0 or sum(runs) != math.prod(size):
            raise DataError(f"{where} has a mask of size {shape.size}, {sum(runs)} pixels; expected {size}, all pixels")
    return shape


def _runs(text: str) -> list[int]:
    """The run lengths in COCO's text; from the third run on it holds differences to the last run but one."""
    runs = list[int]()
    for number in re.findall(_NUMBER, text):
        value = sum((ord(sign) - 48 & 31) << 5 * i for i, sign in enumerate(number))
        value -= (ord(number[-1]) - 48 & 16) << 5 * len(number) - 4  # the sign
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
    return runs


def decoded(shape: Shape, height: int, width: int) -> Any:
    """Return a mask as (height, width) uint8, 1 inside.

    Raises:
        ImportError: if the extra is not installed.
    """
    try:
        from pycocotools import mask
    except ImportError as error:
        raise missing_extra("pycocotools", "detection") from error
    runs: Any = shape if isinstance(shape, list) else [{"size": [height, width], "counts": shape.counts}]
    is_text = isinstance(shape, CocoMask) and isinstance(shape.counts, str)
    return mask.decode(mask.merge(runs if is_text else mask.frPyObjects(runs, height, width)))
