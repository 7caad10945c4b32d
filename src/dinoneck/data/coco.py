"""COCO JSON: one typed conversion with ids, references and boxes checked, masks by pycocotools, panoptic segments."""

from __future__ import annotations

import copy
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path, PureWindowsPath
from typing import Annotated, Any, Generic, Literal, NamedTuple, Self, TypeVar

import msgspec
import numpy as np
from msgspec import Meta, Struct
from torch.utils.data import Dataset

from dinoneck.atomic import read_regular
from dinoneck.data.cells import PathLike, check_unique, is_missing
from dinoneck.data.decoding import read_image_size
from dinoneck.data.labels import all_stored
from dinoneck.data.sources import find_files
from dinoneck.errors import DataError, did_you_mean, missing_extra, reason_of, some_of
from dinoneck.tasks import OBJECTS

Entry = TypeVar("Entry")
Classes = Sequence[str] | None
Ids = np.ndarray[Any, Any]
UNKNOWN = -1  # id of pixels of which nothing is known

Side = Annotated[int, Meta(ge=1)]
# NaN is refused too
Polygon = Annotated[list[Annotated[float, Meta(ge=-1e6, le=1e6)]], Meta(min_length=6)]

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


class Coco(Struct, Generic[Entry]):
    """What is read of a COCO JSON; other entries are ignored."""

    images: Annotated[list[CocoImage], Meta(min_length=1)]
    annotations: list[Entry]
    categories: Annotated[list[CocoCategory], Meta(min_length=1)]


class CocoSegment(Struct):
    """One entry of ``segments_info``; 0 is the id of pixels of which nothing is known."""

    id: Annotated[int, Meta(ge=1, lt=256**3)]
    category_id: int
    iscrowd: Literal[0, 1] = 0


class CocoSegments(Struct):
    """One entry of ``annotations`` of panoptic segments: the PNG of an image, which it has the id of."""

    id: int = msgspec.field(name="image_id")
    file_name: str
    segments_info: list[CocoSegment]


class Listed(NamedTuple):
    """An object of an image: its class, and whether it is a crowd region.

    A box has a shape, the mask that the JSON has of it, and corners (left, top, right, bottom); a
    panoptic segment has the id of its pixels in the PNG.
    """

    label: int
    crowd: bool
    shape: Any = None
    corners: tuple[float, ...] = ()
    png_id: int = 0


def read_coco(file: Path, kind: Any) -> Any:
    """Read and check a COCO JSON: types, ids, references and names of files."""
    try:
        content = json.loads(read_regular(file))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(
            f"{file} cannot be read as JSON: {reason_of(error)}; pass a complete COCO JSON file"
        ) from error
    coco: Any = _converted(content, kind, str(file))
    for entry in (own for own in (*coco.images, *coco.annotations) if not isinstance(own, CocoBox)):
        name, path = entry.file_name, PureWindowsPath(entry.file_name)  # knows both separators
        if is_missing(name) or "\0" in name or path.anchor or ".." in path.parts:
            raise DataError(
                f"{file}: image {entry.id} has the file_name {name[:60]!r}; expected a path in "
                "the folder"
            )
    for part, key in map(str.split, _UNIQUE):
        names = (getattr(entry, key) for entry in getattr(coco, part))
        check_unique(names, f"{file}: {part}: the {key}", "give every entry its own")
    known = {category.id for category in coco.categories}
    for i, entry in enumerate(coco.annotations):
        where, own = f"{file}: annotations[{i}]", getattr(entry, "segments_info", [entry])
        check_unique((each.id for each in own), f"{where}: the id", "give every segment its own")
        if unknown := {each.category_id for each in own} - known:
            raise DataError(f"{where} has the category_id {min(unknown)}, which is not listed")
        if isinstance(entry, CocoBox) and min(entry.bbox[2:]) < 0:
            raise DataError(f"{where} has the bbox {entry.bbox} with a negative side; {BBOX}")
    return coco


def _converted(content: Any, kind: Any, name: str) -> Any:
    try:
        return msgspec.convert(content, kind)
    except msgspec.ValidationError as error:
        raise DataError(f"{name}: {error}") from None


def shape_of(box: CocoBox, where: str, image: CocoImage) -> Shape:
    """Return the segmentation of an entry; a run-length code has the height and width of its image."""
    size = (image.height, image.width)
    shape: Shape = _converted(box.segmentation, Shape, f"{where}: the segmentation")
    if isinstance(shape, list) and any(len(polygon) % 2 for polygon in shape):
        raise DataError(
            f"{where} has a polygon with an odd number of coordinates; expected pairs of x and y"
        )
    if isinstance(shape, CocoMask):
        runs = _runs(shape.counts) if isinstance(shape.counts, str) else shape.counts
        if shape.size != size or min(runs, default=-1) < 0 or sum(runs) != math.prod(size):
            raise DataError(
                f"{where} has a mask of size {shape.size}, {sum(runs)} pixels; expected {size}, "
                "all pixels"
            )
    return shape


def _runs(text: str) -> list[int]:
    """The run lengths in COCO's text; from the fourth run on it holds differences to the last run but one."""
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
        raise missing_extra("pycocotools", "masks") from error
    runs: Any = (
        shape if isinstance(shape, list) else [{"size": [height, width], "counts": shape.counts}]
    )
    is_text = isinstance(shape, CocoMask) and isinstance(shape.counts, str)
    return mask.decode(mask.merge(runs if is_text else mask.frPyObjects(runs, height, width)))


class ListedImages(Dataset[Any]):
    """Images of a COCO JSON, and the objects that it lists for each.

    Attributes:
        classes: names, in the order of the labels.
        category_ids: their ids in the JSON, in the same order, to write results with.
        ids: of the images, in the order of the JSON.
        paths: their files, in the same order.
        stuff: labels whose objects have no number of their own.
    """

    stuff: frozenset[int] = frozenset()
    _objects: Sequence[Sequence[Listed]]  # of every image

    def _open(
        self, annotations: PathLike, kind: Any, images: PathLike | None, classes: Classes
    ) -> Any:
        """Read the JSON, choose its classes and find its images; ``images`` is their folder."""
        self.file = Path(annotations)
        coco = read_coco(self.file, kind)
        id_of = {
            category.name: category.id
            for category in sorted(coco.categories, key=lambda own: own.id)
        }
        self.classes = tuple(id_of if classes is None else classes)
        unknown = [name for name in self.classes if name not in id_of]
        if unknown or not self.classes or len({*self.classes}) < len(self.classes):
            known = f"{', '.join(id_of)} of {self.file}.{did_you_mean(''.join(unknown[:1]), id_of)}"
            raise DataError(
                f"classes is {classes!r}; expected one or more names, each once, of {known}"
            )
        self.category_ids = tuple(id_of[name] for name in self.classes)
        self._label_of = {category: label for label, category in enumerate(self.category_ids)}
        self._entries, names = tuple(coco.images), [entry.file_name for entry in coco.images]
        self.ids = tuple(entry.id for entry in coco.images)
        folder = self.file.parent if images is None else Path(images)
        if images is None and not (folder / names[0]).is_file():
            folder /= "images"
        self.paths = tuple(find_files(names, folder, f"images of {self.file}"))
        return coco

    @property
    def numbers(self) -> dict[int, int]:
        """Image id -> number of its objects, without crowd regions and stuff."""
        counted = (
            sum(not (x.crowd or x.label in self.stuff) for x in own) for own in self._objects
        )
        return dict(zip(self.ids, counted, strict=True))

    def __len__(self) -> int:
        return len(self._entries)

    def take(self, rows: Iterable[int]) -> Self:
        """Return the dataset of these images, in this order; ``skipped`` and ``clipped`` stay as they are."""
        part, rows = copy.copy(self), list(rows)
        for name in ("ids", "paths", "_entries", "_objects"):
            setattr(part, name, tuple(getattr(self, name)[row] for row in rows))
        return part

    def _size(self, i: int, size: tuple[int, int] | None = None) -> tuple[int, int]:
        """The (height, width) of an image, which is that in the JSON."""
        entry, path = self._entries[i], self.paths[i]
        height, width = read_image_size(path) if size is None else size
        if (height, width) != (entry.height, entry.width):
            expected = f"expected {entry.height}x{entry.width} of image {entry.id} in {self.file}"
            raise DataError(
                f"the upright image of {path} is {height}x{width} px (height x width); {expected}"
            )
        return height, width

    def _numbered(self, i: int) -> list[int]:
        """The ids of an image's objects: 1000 * (class + 1) + number; of a crowd region -1000 * (class + 1)."""
        ids, counts = list[int](), Counter[int]()
        for own in self._objects[i]:
            first = OBJECTS * (own.label + 1)
            ids.append(-first if own.crowd else first + counts[own.label])
            counts[own.label] += not (own.crowd or own.label in self.stuff)
        if max(counts.values(), default=0) >= OBJECTS:
            raise DataError(
                f"{self.paths[i]} has {len(ids)} objects; expected fewer than {OBJECTS} of a class"
            )
        return ids


class PanopticImages(ListedImages):
    """Images with segments in COCO's panoptic form: a JSON, and a PNG per image whose colours are ids of segments.

    The id of a pixel is red + 256 green + 65536 blue, 0 = unknown.

    Args:
        annotations: the JSON with ``images``, ``annotations`` (image_id, file_name of the PNG,
            ``segments_info`` with id, category_id, iscrowd) and ``categories`` (id, name, isthing).
        folder: of the PNG files.
        images: as of :class:`dinoneck.data.BoxImages`.
        classes: as of :class:`dinoneck.data.BoxImages`; pixels of others are unknown. None = all.

    Attributes:
        classes: names, in the order of the labels.
        category_ids: their ids in the JSON, in the same order.
        stuff: labels whose segments have no number of their own, by ``isthing``.

    Raises:
        DataError: if the JSON or a file cannot be used, or an image has no PNG.
    """

    def __init__(
        self,
        annotations: PathLike,
        folder: PathLike,
        images: PathLike | None = None,
        *,
        classes: Classes = None,
    ) -> None:
        coco = self._open(annotations, Coco[CocoSegments], images, classes)
        self._stored = {entry.id: entry for entry in coco.annotations}
        if missing := [image_id for image_id in self.ids if image_id not in self._stored]:
            raise DataError(
                f"{self.file} has no annotations of image {missing[0]}; expected one entry for "
                "each image"
            )
        stored, label_of = [self._stored[image_id] for image_id in self.ids], self._label_of
        pngs = find_files(
            [entry.file_name for entry in stored], folder, f"PNG files of {self.file}"
        )
        self._pngs = dict(zip(self.ids, pngs, strict=True))
        self.stuff = frozenset(
            label_of[x.id] for x in coco.categories if not x.isthing and x.id in label_of
        )
        shown = [
            [own for own in entry.segments_info if own.category_id in label_of] for entry in stored
        ]
        self._objects = [
            [Listed(label_of[x.category_id], bool(x.iscrowd), png_id=x.id) for x in own]
            for own in shown
        ]

    def pixels(self, i: int) -> Ids:
        """Return the ids of the pixels of an image (H, W), int64.

        An id is 1000 * (class + 1) + the number of the segment in its class (0 for stuff), -1000 *
        (class + 1) in a crowd region of the class, -1 where nothing is known.

        Raises:
            DataError: if the image or its PNG has another size than in the JSON, the PNG is not of
                three colours or has other ids than are listed, or there are 1000 segments of a
                class or more.
        """
        size, image_id = self._size(i), self.ids[i]
        [(colours, name)] = all_stored(self._pngs[image_id], [size])
        if colours.shape[2] != 3 or colours.dtype != np.uint8:
            raise DataError(
                f"{name} has {colours.shape[2]} bands of {colours.dtype}; expected red, green and "
                "blue"
            )
        found = colours.astype(np.int64) @ np.array([1, 256, 256**2])
        shown, listed = (
            {*np.unique(found).tolist()} - {0},
            {own.id for own in self._stored[image_id].segments_info},
        )
        if others := shown ^ listed:
            raise DataError(
                f"{name} and its segments_info do not both have the ids "
                f"{some_of(map(str, others), 3)}"
            )
        ids = np.full(size, UNKNOWN, np.int64)
        for segment, number in zip(self._objects[i], self._numbered(i), strict=True):
            ids[found == segment.png_id] = number
        return ids
