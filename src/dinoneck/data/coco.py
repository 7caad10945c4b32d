"""COCO JSON: read by msgspec into typed entries, checked whole, with the files of its images.

What is written in another way than COCO's is an error that names the entry; nothing is repaired.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, Self, TypeVar, get_args

import msgspec
import numpy as np
from msgspec import Meta, Struct
from torch.utils.data import Dataset

from dinoneck.data.cells import PathLike, check_unique, composed
from dinoneck.data.names import find_files
from dinoneck.errors import ConfigError, DataError
from dinoneck.images.decoding import read_image_size
from dinoneck.images.pixels import in_threads
from dinoneck.tasks import OBJECTS
from dinoneck.text import did_you_mean, in_words, reason_of, some_of

Entry = TypeVar("Entry")
Id = int | Annotated[str, Meta(min_length=1)]
Crowd = Literal["ignore", "objects"]
Ids = np.ndarray[Any, np.dtype[np.int64]]
BBox = tuple[float, float, float, float]
Side = Annotated[int, Meta(ge=1)]
UNKNOWN_SIDE = 0  # of an image whose entry does not state it
UNKNOWN = -1  # of a pixel
NO_OBJECT = -1  # in ObjectMap.rows


class CocoImage(Struct):
    """One entry of ``images``."""

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
    """One entry of ``annotations``."""

    image_id: Id
    category_id: Id
    bbox: BBox | None = None
    id: int | float | str | None = None
    iscrowd: Literal[0, 1] = 0
    segmentation: Any = None


class CocoSegment(Struct):
    """One entry of ``segments_info``; 0 is the id of pixels of which nothing is known."""

    id: Annotated[int, Meta(ge=1, lt=256**3)]
    category_id: Id
    iscrowd: Literal[0, 1] = 0
    bbox: BBox | None = None


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


def read_coco(file: Path, annotation_type: type[Entry]) -> Coco[Entry]:
    """Read a COCO JSON and check that its entries fit together.

    Raises:
        DataError: if it is no COCO JSON, an id occurs twice, or an annotation refers to what the
            file does not list.
    """
    try:
        content = file.read_bytes()
    except OSError as error:
        raise DataError(f"{file} cannot be read: {reason_of(error)}") from error
    try:
        coco: Coco[Entry] = msgspec.json.decode(content, type=Coco[annotation_type])  # type: ignore[valid-type]
    except msgspec.ValidationError as error:
        raise DataError(f"{file} is no COCO JSON: {error}; correct it there") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{file} is no JSON: {reason_of(error)}") from error
    for category in coco.categories:
        category.name = composed(category.name)
    check_unique(
        (entry.id for entry in coco.images), f"{file}: images: the id", "give each its own"
    )
    check_unique((entry.file_name for entry in coco.images), f"{file}: file_name", "list it once")
    check_unique(
        (entry.id for entry in coco.categories), f"{file}: categories: the id", "correct it"
    )
    check_unique((entry.name for entry in coco.categories), f"{file}: the category", "rename one")
    image_ids = {image.id for image in coco.images}
    category_ids = {category.id for category in coco.categories}
    for i, entry in enumerate(coco.annotations):
        _check_known(entry, "image_id", image_ids, f"{file}: annotations[{i}]")  # type: ignore[arg-type]
        for segment in getattr(entry, "segments_info", [entry]):
            _check_known(segment, "category_id", category_ids, f"{file}: annotations[{i}]")
    return coco


def _check_known(entry: Any, key: str, known: Collection[Id], where: str) -> None:
    if getattr(entry, key) not in known:
        raise DataError(
            f"{where} has the {key} {getattr(entry, key)!r}, which the file does not list; there are "
            f"{some_of(map(repr, known), 5)}"
        )


def choose_classes(
    classes: Sequence[str] | None,
    categories: Sequence[CocoCategory],
    file: Path,
    *,
    allow_unlisted: bool = False,
) -> dict[str, Id | None]:
    """Return the names of the classes and their category ids, in the order of the labels.

    Args:
        classes: names in the order of their labels; None = all, by ascending category id.
        categories: those of the file.
        file: what messages name.
        allow_unlisted: whether the file may lack some of the classes, which have the id None.

    Raises:
        DataError: if ``classes`` names one twice, or one that the file does not have.
    """
    id_of = {entry.name: entry.id for entry in sorted(categories, key=lambda entry: str(entry.id))}
    if all(isinstance(entry.id, int) for entry in categories):
        id_of = dict(sorted(id_of.items(), key=lambda item: item[1]))  # type: ignore[arg-type, return-value]
    if classes is None:
        return dict(id_of)
    names = [composed(name) for name in classes]
    check_unique(names, "classes: the name", "name each once")
    unlisted = [name for name in names if name not in id_of]
    if unlisted and (not allow_unlisted or len(unlisted) == len(names)):
        raise DataError(
            f"classes: {file} has no category {unlisted[0]!r}; it has {some_of(id_of, 20)}."
            f"{did_you_mean(unlisted[0], list(id_of))}"
        )
    return {name: id_of.get(name) for name in names}


# Images and their objects
# ----------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class ListedObject:
    """An object of an image: the index of its class, and whether it is a crowd region."""

    label: int
    is_crowd: bool


@dataclass
class ObjectMap:
    """Which object of an image every pixel belongs to.

    Attributes:
        rows: (H, W) int64: the place of the object in ``objects``, :data:`NO_OBJECT` where none is.
        objects: of the image, as the JSON lists them.
        stuff: labels whose objects have no number of their own.
        background: id of the pixels where no object is: 0, or :data:`UNKNOWN`.
        path: file of the image, for messages.
        classes: names, in the order of the labels.
    """

    rows: Ids
    objects: Sequence[ListedObject]
    stuff: Collection[int]
    background: int
    path: Path
    classes: Sequence[str]

    def areas(self, rows: Ids) -> Ids:
        """Return how many pixels of each object a part of ``rows`` shows, (n,) int64."""
        with_background: Ids = np.bincount(rows.ravel() + 1, minlength=len(self.objects) + 1)
        return with_background[1:]

    def is_thing(self) -> Ids:
        """Return whether each object counts as one, (n,) bool: crowd regions and stuff do not."""
        things = [not entry.is_crowd and entry.label not in self.stuff for entry in self.objects]
        return np.array(things, dtype=bool)

    def ids_of_objects(
        self, numbered_rows: Iterable[int], *, per_class: int = OBJECTS, shown_in: str = ""
    ) -> Ids:
        """Return the id of every object, and that of the background as the last, (n + 1,) int64.

        With 1000 ids per class an id is 1000 * (class + 1) + the number of the object in its class
        (0 for stuff). A crowd region has -1000 * (class + 1), an object without a number
        :data:`UNKNOWN`.

        Raises:
            DataError: if a class has as many objects or more.
        """
        ids = np.full(len(self.objects) + 1, UNKNOWN, np.int64)
        ids[NO_OBJECT] = self.background  # the last one: NO_OBJECT is -1
        counts = Counter[int]()
        for row in numbered_rows:
            entry = self.objects[row]
            first = per_class * (entry.label + 1)
            if entry.is_crowd:
                ids[row] = -first
                continue
            ids[row] = first + counts[entry.label]
            if entry.label not in self.stuff:
                counts[entry.label] += 1
        for label, count in counts.most_common(1):
            if count >= per_class:
                raise DataError(
                    f"{shown_in}{self.path} has {count} objects of the class {self.classes[label]!r}; "
                    f"expected fewer than {per_class}: cut the image into tiles (data.tile, --tile)"
                )
        return ids

    def ids(self) -> Ids:
        """Return the ids of the pixels (H, W), with a number for every object of the image."""
        return self.ids_of_objects(range(len(self.objects)))[self.rows]


class ListedImages(Dataset[Any]):
    """Images of a COCO JSON and the objects that it lists for each, whatever shows them.

    Args:
        annotations: the JSON.
        annotation_type: of its annotations.
        images: the folder of the images; None = the folder of the JSON, or ``images`` beside it.
        classes: names in the order of their labels; None = all, by ascending category id.
        crowd: ``"objects"``: entries with ``iscrowd`` are objects; ``"ignore"``: they are regions.
        allow_unlisted: whether the file may lack some of the classes.
    """

    _objects: Sequence[Sequence[ListedObject]]

    def __init__(
        self,
        annotations: PathLike,
        annotation_type: type[Entry],
        images: PathLike | None,
        *,
        classes: Sequence[str] | None,
        crowd: Crowd,
        allow_unlisted: bool,
    ) -> None:
        if crowd not in get_args(Crowd):
            raise ConfigError(f"crowd is {crowd!r}; expected one of {', '.join(get_args(Crowd))}")
        self.file = Path(annotations)
        self.crowd = crowd
        coco = read_coco(self.file, annotation_type)
        ids = choose_classes(classes, coco.categories, self.file, allow_unlisted=allow_unlisted)
        names = [image.file_name for image in coco.images]
        self.paths = tuple(
            find_files(names, _folder_of(self.file, images), f"images of {self.file}")
        )
        _read_missing_sizes(coco.images, self.paths)
        self.classes = tuple(ids)
        self.category_ids = tuple(ids.values())
        self.ids = tuple(image.id for image in coco.images)
        self.stuff: frozenset[int] = frozenset()
        self.skipped = Counter[str]()
        self.repaired = Counter[str]()
        self._images = tuple(coco.images)
        self._coco = coco
        self._label_of = {key: label for label, key in enumerate(ids.values()) if key is not None}
        self.unlisted = frozenset(i for i, key in enumerate(ids.values()) if key is None)

    def __len__(self) -> int:
        return len(self._images)

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """(height, width) of the upright images in pixels, as the JSON states them."""
        return [(image.height, image.width) for image in self._images]

    @property
    def numbers(self) -> dict[Id, int]:
        """Image id -> number of its objects, without crowd regions and stuff."""
        counts = {}
        for image_id, objects in zip(self.ids, self._objects, strict=True):
            counts[image_id] = sum(
                not (entry.is_crowd or entry.label in self.stuff) for entry in objects
            )
        return counts

    def labels_of(self, i: int) -> list[int]:
        """Return the labels of the objects of an image, without crowd regions; nothing is decoded."""
        return [entry.label for entry in self._objects[i] if not entry.is_crowd]

    @property
    def num_crowds(self) -> int:
        """How many crowd regions all images have."""
        return sum(entry.is_crowd for objects in self._objects for entry in objects)

    @property
    def class_counts(self) -> dict[str, int]:
        """Class -> number of its objects in all images, without crowd regions."""
        counts = Counter(
            entry.label for objects in self._objects for entry in objects if not entry.is_crowd
        )
        return {name: counts[label] for label, name in enumerate(self.classes)}

    def check_trainable(self, noun: str) -> None:
        """Refuse a dataset that shows nothing; ``noun`` is what it shows, such as ``"box"``."""
        if not any(self.class_counts.values()):
            raise self.nothing_to_show(noun)

    def check_part(self, counts: Mapping[str, int], noun: str, part: str) -> None:
        """Refuse a part to train on that shows nothing; ``counts`` are those of the whole dataset."""
        if not any(self.class_counts.values()):
            raise DataError(
                f"{self.file}: {part} have no {noun}: all {sum(counts.values())} are in held-out "
                "images; take more folds (--folds), another seed, or annotate more images"
            )

    def warn_of_turned_images(self) -> None:
        """Nothing: turned images are shown by :class:`dinoneck.data.summary.DataSummary`."""

    def nothing_to_show(self, noun: str) -> DataError:
        """Return the error for a dataset without an object, with the reason."""
        left_out = f"; left out: {in_words(self.skipped)}" if self.skipped else ""
        return DataError(
            f"{self.file}: none of the {len(self)} images has one {noun} of the classes "
            f"{', '.join(self.classes)}{left_out}. Objects marked iscrowd=1 are regions: --crowd objects"
        )

    def take(self, rows: Iterable[int]) -> Self:
        """Return the dataset of these images, in this order.

        Raises:
            DataError: if there are no rows, or one is given twice or does not exist.
        """
        rows = list(rows)
        if not rows or len({*rows}) < len(rows) or not 0 <= min(rows) <= max(rows) < len(self):
            raise DataError(
                f"rows are {rows[:20]}; expected some of 0 ... {len(self) - 1}, each once"
            )
        subset = copy.copy(self)
        subset.ids = tuple(self.ids[row] for row in rows)
        subset.paths = tuple(self.paths[row] for row in rows)
        subset._images = tuple(self._images[row] for row in rows)
        subset._objects = tuple(self._objects[row] for row in rows)
        return subset

    def _is_crowd(self, iscrowd: int) -> bool:
        return iscrowd == 1 and self.crowd == "ignore"

    def _check_size(self, i: int, size: tuple[int, int] | None = None) -> tuple[int, int]:
        """Return the (height, width) of an image, read from its file if it is not given.

        Raises:
            DataError: if the JSON states another size.
        """
        entry = self._images[i]
        height, width = read_image_size(self.paths[i]) if size is None else size
        if (height, width) != (entry.height, entry.width):
            raise DataError(
                f"the upright image of {self.paths[i]} is {height}x{width} px (height x width), and "
                f"{self.file} has {entry.height}x{entry.width} for image {entry.id}; its objects do not "
                "fit it: correct the JSON or restore the file"
            )
        return height, width

    @abstractmethod
    def _object_map(self, i: int) -> ObjectMap:
        """Which object every pixel of an image belongs to, see :func:`object_map_of`."""

    def _map_of_rows(self, i: int, rows: Ids, background: int) -> ObjectMap:
        """The map of the objects of an image, as ``rows`` of :class:`ObjectMap` has their places."""
        return ObjectMap(
            rows=rows,
            objects=self._objects[i],
            stuff=self.stuff,
            background=background,
            path=self.paths[i],
            classes=self.classes,
        )


def object_map_of(images: ListedImages, i: int) -> ObjectMap:
    """Return which object every pixel of an image belongs to, for any number of objects of a class."""
    return images._object_map(i)


def _folder_of(file: Path, images: PathLike | None) -> Path:
    """The folder of the images: the one that is passed, that of the JSON, or ``images`` in or beside it."""
    if images is not None:
        return Path(images)
    beside = [file.parent / "images", file.parent.parent / "images"]
    return next((folder for folder in beside if folder.is_dir()), file.parent)


def _read_missing_sizes(images: Sequence[CocoImage], paths: Sequence[Path]) -> None:
    """Read the sizes that the JSON does not state from the headers of the images."""
    rows = [row for row, image in enumerate(images) if UNKNOWN_SIDE in (image.width, image.height)]
    for row, size in zip(
        rows, in_threads(read_image_size, [paths[row] for row in rows]), strict=True
    ):
        images[row].height, images[row].width = size
