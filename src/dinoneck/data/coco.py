"""COCO JSON: one typed conversion with ids, references and boxes checked, and its masks by pycocotools."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePath, PureWindowsPath
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from msgspec import Meta, Struct

from dinoneck.errors import DataError, did_you_mean, missing_extra, reason_of
from dinoneck.regular_files import read_regular

Id = Annotated[int, Meta(ge=1 - 2**63, le=2**63 - 1)]
Side = Annotated[int, Meta(ge=1, le=1 << 30)]
Polygon = Annotated[list[float], Meta(min_length=6)]

BBOX = "expected x, y of the upper left corner, width and height in pixels"
_SHOWN = 3


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
    bbox: tuple[float, float, float, float] | None = None
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
        raise DataError(f"there is no annotations file {file}; check the path") from None
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{file} cannot be read as JSON: {reason_of(error)}; pass a complete COCO JSON file") from error
    coco: Coco = _converted(content, Coco, str(file))
    for what, values in (
        ("images: the id", [image.id for image in coco.images]),
        ("images: the file_name", [str(PurePath(image.file_name)) for image in coco.images]),
        ("annotations: the id", [box.id for box in coco.annotations]),
        ("categories: the id", [category.id for category in coco.categories]),
        ("categories: the name", [category.name for category in coco.categories]),
    ):
        if repeated := [value for value, count in Counter(values).items() if count > 1]:
            raise DataError(f"{file}: {what} {repeated[0]!r} is given several times; give every entry its own")
    for i, image in enumerate(coco.images):
        path = PureWindowsPath(image.file_name)  # knows both separators
        if not image.file_name.strip() or "\0" in image.file_name or path.anchor or ".." in path.parts:
            raise DataError(
                f"{file}: images[{i}] has the file_name {image.file_name[:60]!r}; expected the image's path below the "
                "folder of images, without '..'"
            )
    known = {category.id for category in coco.categories}
    for i, box in enumerate(coco.annotations):
        if box.category_id not in known:
            raise DataError(f"{file}: annotations[{i}] has the category_id {box.category_id}, which is not listed")
        if box.bbox is not None and min(box.bbox[2:]) < 0:
            raise DataError(f"{file}: annotations[{i}] has the bbox {box.bbox} with a negative side; {BBOX}")
    return coco


def _converted(content: Any, kind: Any, name: str) -> Any:
    """The content as this type; an error names the value that does not fit."""
    try:
        return msgspec.convert(content, kind)
    except msgspec.ValidationError as error:
        for key, place in re.findall(r"\.(\w+)|\[(\d+)\]", str(error).partition("`$")[2]):
            content = content[int(place) if place else key]
        raise DataError(f"{name}: {error}; it is {ascii(content)[:60]}. Expected COCO JSON") from None


def chosen_classes(
    categories: Sequence[CocoCategory], wanted: Sequence[str] | None, file: Path
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Return names and ids of the classes, in the order of labels."""
    id_of = {category.name: category.id for category in categories}
    names = tuple(sorted(id_of, key=id_of.__getitem__)) if wanted is None else tuple(wanted)
    if isinstance(wanted, str) or not names or len(set(names)) < len(names):
        raise DataError(f"classes is {wanted!r}; expected one or more names, each once, such as {[*id_of][:_SHOWN]}")
    for name in names:
        if name not in id_of:
            has = ", ".join(sorted(id_of))
            raise DataError(f"{file} has no category {name!r}; it has {has}.{did_you_mean(name, id_of)}")
    return names, tuple(id_of[name] for name in names)


def shape_of(box: CocoBox, where: str, size: tuple[int, int] | None) -> Shape | None:
    """Return the segmentation of an entry, if its mask (of this height and width) or the box around it is needed."""
    if box.bbox is not None and size is None:
        return None
    shape: Shape = _converted(box.segmentation, Shape, f"{where}: the segmentation")
    if isinstance(shape, CocoMask):
        if size not in (None, shape.size):
            raise DataError(f"{where} has a mask of the size {shape.size}; expected that of its image, {size}")
        if not isinstance(shape.counts, str) and sum(shape.counts) != shape.size[0] * shape.size[1]:
            raise DataError(f"{where} has counts that sum to {sum(shape.counts)}; expected {shape.size} pixels")
    return shape


def box_around(shape: Shape | None) -> list[float]:
    """Return the box x, y, width, height around polygons or a run-length code."""
    if isinstance(shape, CocoMask):
        return pycocotools().toBbox(_run_lengths(shape, *shape.size)).tolist()  # type: ignore[no-any-return]
    points = np.concatenate([np.reshape(polygon, (-1, 2)) for polygon in shape or ()])
    low, high = points.min(axis=0), points.max(axis=0)
    return [*low.tolist(), *(high - low).tolist()]


def decoded(shape: Shape, height: int, width: int) -> Any:
    """Return a mask as (height, width) uint8, 1 inside."""
    return pycocotools().decode(_run_lengths(shape, height, width))


def _run_lengths(shape: Shape, height: int, width: int) -> Any:
    """The run-length code that pycocotools decodes."""
    if isinstance(shape, list):
        return pycocotools().merge(pycocotools().frPyObjects(shape, height, width))
    plain = {"size": [height, width], "counts": shape.counts}
    return plain if isinstance(shape.counts, str) else pycocotools().frPyObjects(plain, height, width)


def pycocotools() -> Any:
    """Return pycocotools' module of masks.

    Raises:
        ImportError: if the extra is not installed.
    """
    try:
        from pycocotools import mask
    except ImportError as error:
        raise missing_extra("pycocotools", "detection") from error
    return mask
