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

Id = Annotated[int, Meta(ge=1 - 2**63, le=2**63 - 1)]
Side = Annotated[int, Meta(ge=1, le=1 << 30)]
Polygon = Annotated[list[float], Meta(min_length=6)]

BBOX = "expected x, y of the upper left corner, width and height in pixels"
_SHOWN = 3
_NAMES = (("images", "file_name"), ("categories", "name"))


class CocoImage(Struct):
    """One entry of ``images``."""

    id: Id
    file_name: str
    width: Side
    height: Side


class CocoCategory(Struct):
    """One entry of ``categories``."""

    id: Id
    name: Annotated[str, Meta(min_length=1)]


class CocoBox(Struct):
    """One entry of ``annotations``."""

    id: Id
    image_id: Id
    category_id: Id
    bbox: tuple[float, float, float, float]
    iscrowd: Literal[0, 1] = 0
    segmentation: Any = None


class CocoMask(Struct):
    """A run-length encoded mask, (height, width), as counts or as COCO's text."""

    size: tuple[Side, Side]
    counts: list[Annotated[int, Meta(ge=0)]] | str


Shape = Annotated[list[Polygon], Meta(min_length=1)] | CocoMask


class Coco(Struct):
    """What is read of a COCO JSON; other entries are ignored."""

    images: Annotated[list[CocoImage], Meta(min_length=1)]
    annotations: list[CocoBox]
    categories: Annotated[list[CocoCategory], Meta(min_length=1)]


def read_coco(file: Path) -> Coco:
    """Read and check a COCO JSON: types, ids, references and names of files."""
    try:
        content = json.loads(read_regular(file))
    except FileNotFoundError:
        raise DataError(f"{file} does not exist; check the path") from None
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{file} cannot be read as JSON: {reason_of(error)}; pass a complete COCO JSON file") from error
    coco: Coco = _converted(content, Coco, str(file))
    for i, image in enumerate(coco.images):
        path = PureWindowsPath(image.file_name)  # knows both separators
        if not image.file_name.strip() or "\0" in image.file_name or path.anchor or ".." in path.parts:
            name = image.file_name[:60]
            raise DataError(f"{file}: images[{i}] has the file_name {name!r}; expected a path below the images' folder")
        image.file_name = str(PurePath(image.file_name))  # ./a.png is a.png
    for kind, key in (*((kind, "id") for kind in ("images", "annotations", "categories")), *_NAMES):
        values = Counter(getattr(entry, key) for entry in getattr(coco, kind))
        if repeated := [value for value, count in values.items() if count > 1]:
            raise DataError(
                f"{file}: {kind}: the {key} {repeated[0]!r} is given several times; give every entry its own"
            )
    known = {category.id for category in coco.categories}
    for i, box in enumerate(coco.annotations):
        if box.category_id not in known:
            raise DataError(f"{file}: annotations[{i}] has the category_id {box.category_id}, which is not listed")
        if min(box.bbox[2:]) < 0:
            raise DataError(f"{file}: annotations[{i}] has the bbox {box.bbox} with a negative side; {BBOX}")
    return coco


def _converted(content: Any, kind: Any, name: str) -> Any:
    """The content as this type; an error names the value that does not fit."""
    try:
        return msgspec.convert(content, kind)
    except msgspec.ValidationError as error:
        problem, _, path = str(error).partition(" - at `$")
        for key, place in re.findall(r"\.(\w+)|\[(\d+)\]", path):
            content = content[int(place) if place else key]
        expected = BBOX if ".bbox" in path else problem.lower()
        raise DataError(f"{name}: {path.strip('.`') or 'it'} is {ascii(content)[:60]}; {expected}") from None


def chosen_classes(
    categories: Sequence[CocoCategory], wanted: Sequence[str] | None, file: Path
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Return names and ids of the classes, in the order of labels."""
    id_of = {category.name: category.id for category in categories}
    names = tuple(sorted(id_of, key=id_of.__getitem__)) if wanted is None else tuple(wanted)
    if not names or len(set(names)) < len(names):
        raise DataError(f"classes is {wanted!r}; expected one or more names, each once, such as {[*id_of][:_SHOWN]}")
    if missing := [name for name in names if name not in id_of]:
        hint = did_you_mean(missing[0], id_of)
        raise DataError(f"{file} has no category {missing[0]!r}; it has {', '.join(sorted(id_of))}.{hint}")
    return names, tuple(id_of[name] for name in names)


def shape_of(box: CocoBox, where: str, size: tuple[int, int]) -> Shape:
    """Return the segmentation of an entry; a run-length code has the height and width of its image."""
    shape: Shape = _converted(box.segmentation, Shape, f"{where}: the segmentation")
    if isinstance(shape, CocoMask):
        runs = math.prod(size) if isinstance(shape.counts, str) else sum(shape.counts)
        if (shape.size, runs) != (size, math.prod(size)):
            raise DataError(
                f"{where} has a mask of the size {shape.size} and {runs} pixels; expected {size}, all pixels"
            )
    return shape


def decoded(shape: Shape, height: int, width: int) -> Any:
    """Return a mask as (height, width) uint8, 1 inside.

    Raises:
        ImportError: if the extra is not installed.
    """
    try:
        from pycocotools import mask
    except ImportError as error:
        raise missing_extra("pycocotools", "detection") from error
    if isinstance(shape, CocoMask) and isinstance(shape.counts, str):
        return mask.decode({"size": [height, width], "counts": shape.counts})
    runs = shape if isinstance(shape, list) else [{"size": [height, width], "counts": shape.counts}]
    return mask.decode(mask.merge(mask.frPyObjects(runs, height, width)))
