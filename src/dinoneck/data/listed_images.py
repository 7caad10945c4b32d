"""Images and the objects that a file lists for each, whatever shows them. No torch is imported."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, get_args

import numpy as np

from dinoneck.data import voc, yolo
from dinoneck.data.cells import PathLike
from dinoneck.data.coco import Listed, choose_classes, read_coco
from dinoneck.data.coco_entries import CocoBox, CocoImage, Crowd, Entry, Id
from dinoneck.data.names import find_files, is_absolute
from dinoneck.errors import ConfigError, DataError
from dinoneck.images.pixels import in_threads, read_header
from dinoneck.kinds import OBJECTS
from dinoneck.text import in_words

Ids = np.ndarray[Any, np.dtype[np.int64]]
UNKNOWN = -1  # of a pixel
NO_OBJECT = -1  # in ObjectMap.rows
YAML_SUFFIXES = (".yaml", ".yml")


# What a path lists
# ----------------------------------------------------------------------------------------------------


def read_listed(
    path: PathLike, images: PathLike | None = None, part: str | None = None
) -> Listed[CocoBox]:
    """Read images and their boxes: of a folder of VOC, of a ``data.yaml`` of YOLO, else of COCO JSON.

    Args:
        path: the folder or file.
        images: the folder of the images; None = by the file.
        part: ``train``, ``val`` or ``test``; None = train, or all images where no parts are stated.

    Raises:
        DataError: if it cannot be used, or does not state the part.
    """
    source = Path(path)
    stated = parts_of(source)
    if part is not None and part not in stated:
        raise DataError(
            f"{source} has no part {part!r}; it states {', '.join(stated) or 'no parts'}"
        )
    if stated and part is None:
        part = stated[0]
    if source.is_dir():
        return voc.read_voc(source, images, part)
    if is_yaml(source):
        return yolo.read_yolo(source, images, part or "train")
    return open_coco(source, CocoBox, images)


def is_yaml(path: PathLike) -> bool:
    """Whether a path is called as a YAML file."""
    return Path(path).suffix.lower() in YAML_SUFFIXES


def parts_of(path: PathLike) -> tuple[str, ...]:
    """Return the parts that a ``data.yaml`` or a folder of VOC states, train first; none of COCO JSON.

    Raises:
        DataError: if a YAML file cannot be used.
    """
    source = Path(path)
    if source.is_dir():
        return voc.parts_of(source)
    return yolo.parts_of(source) if is_yaml(source) else ()


def scored_part(path: PathLike) -> str | None:
    """Return the part that models are scored on: val, else test; None: the file states neither."""
    stated = parts_of(path)
    return next((part for part in ("val", "test") if part in stated), None)


def open_coco(file: Path, annotation_type: type[Entry], images: PathLike | None) -> Listed[Entry]:
    """Return what a COCO JSON lists, with the files of its images.

    Raises:
        DataError: if the JSON cannot be used, or an image is not there.
    """
    coco = read_coco(file, annotation_type)
    names = [image.file_name for image in coco.images]
    folder = _folder_of(file, names[0]) if images is None else Path(images)
    return Listed(file, coco, find_files(names, folder, f"images of {file}"))


def _folder_of(file: Path, name: str) -> Path:
    """The folder of the images: that of the JSON, or ``images`` in it, or next to its ``annotations``."""
    folder = file.parent
    if not is_absolute(name) and (folder / name).is_file():
        return folder
    if (folder / "images").is_dir():
        return folder / "images"
    if folder.name == "annotations" and (folder.parent / "images").is_dir():
        return folder.parent / "images"
    return folder


def _sizes_of(images: Sequence[CocoImage], paths: Sequence[Path]) -> list[tuple[int, int]]:
    """(height, width) of the upright images; what is not stated is read from the headers."""
    sizes = [(image.height or 0, image.width or 0) for image in images]
    rows = [row for row, size in enumerate(sizes) if 0 in size]
    headers = in_threads(read_header, [paths[row] for row in rows])
    for row, header in zip(rows, headers, strict=True):
        sizes[row] = header.size
    return sizes


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
        objects: of the image, as the file lists them.
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
        # counted from NO_OBJECT, which is -1, on
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

        Args:
            numbered_rows: places of the objects that have a number, in ascending order.
            per_class: how many ids a class has.
            shown_in: the part of the image that shows the objects, for messages.

        Raises:
            DataError: if a class has as many of these objects or more.
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
                    f"{shown_in}{self.path} has {count} objects of the class "
                    f"{self.classes[label]!r}; expected fewer than {per_class}: cut the image into "
                    "tiles (data.tile, --tile)"
                )
        return ids

    def ids(self) -> Ids:
        """Return the ids of the pixels (H, W), with a number for every object of the image."""
        return self.ids_of_objects(range(len(self.objects)))[self.rows]


class ListedImages:
    """Images and the objects that a file lists for each.

    Args:
        listed: the images and their annotations.
        classes: names in the order of their labels; None = all, by ascending category id.
        crowd: ``"objects"``: entries with ``iscrowd`` are objects; ``"ignore"``: they are regions.
        allow_unlisted: whether the file may lack some of the classes.

    Attributes:
        file: what lists them.
        classes: names, in the order of the labels.
        category_ids: their ids in the file, in the same order, to write results with; None of a
            class that the file does not list.
        unlisted: labels of the classes that the file does not list.
        ids: of the images, in the order of the file.
        paths: their files, in the same order.
        sizes: (height, width) of the upright images in pixels, as the file states them.
        stuff: labels whose objects have no number of their own.
        crowd: as passed.
        skipped: reason -> number of objects left out.
        first_skipped: reason -> where the first of them stands.
        clipped: boxes that reached over the edge of their image and were cut there.
        left_out: what of the file was not read, in words -> how often.
        part: of the file that the images are; None = it states no parts.

    Raises:
        DataError: if the file lacks a class, or an image cannot be read.
        ConfigError: if ``crowd`` is another word.
    """

    _objects: Sequence[Sequence[ListedObject]]  # of every image

    def __init__(
        self,
        listed: Listed[Any],
        *,
        classes: Sequence[str] | None,
        crowd: Crowd,
        allow_unlisted: bool,
    ) -> None:
        if crowd not in get_args(Crowd):
            raise ConfigError(f"crowd is {crowd!r}; expected one of {', '.join(get_args(Crowd))}")
        coco = listed.coco
        id_of = choose_classes(classes, coco.categories, listed.file, allow_unlisted=allow_unlisted)
        self.file = listed.file
        self.crowd = crowd
        self.classes = tuple(id_of)
        self.category_ids = tuple(id_of.values())
        self.unlisted = frozenset(i for i, key in enumerate(self.category_ids) if key is None)
        self.ids = tuple(image.id for image in coco.images)
        self.paths = tuple(listed.paths)
        self.sizes = _sizes_of(coco.images, self.paths)
        self.stuff: frozenset[int] = frozenset()
        self.skipped = Counter[str]()
        self.first_skipped: dict[str, str] = {}
        self.clipped = 0
        self.left_out = dict(listed.left_out)
        self.part = listed.part
        self._label_of: dict[Id, int] = {
            key: label for label, key in enumerate(self.category_ids) if key is not None
        }

    def __len__(self) -> int:
        return len(self.ids)

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
    def class_counts(self) -> dict[str, int]:
        """Class -> number of its objects in all images, without crowd regions; of stuff, of its segments."""
        counts = Counter(
            entry.label for objects in self._objects for entry in objects if not entry.is_crowd
        )
        return {name: counts[label] for label, name in enumerate(self.classes)}

    @property
    def num_crowds(self) -> int:
        """Regions of many objects, which are neither trained on nor scored."""
        return sum(entry.is_crowd for objects in self._objects for entry in objects)

    def check_trainable(self, noun: str) -> None:
        """Refuse a dataset that shows nothing.

        Args:
            noun: what it shows: ``"box"``, ``"object"`` or ``"segment"``.

        Raises:
            DataError: if no image has an object.
        """
        if not any(self.class_counts.values()):
            raise self.nothing_to_show(noun)

    def check_part(self, counts: Mapping[str, int], noun: str, part: str) -> None:
        """Refuse a part to train on that shows nothing.

        Args:
            counts: ``class_counts`` of the whole dataset.
            noun: as of :meth:`check_trainable`.
            part: what messages call the part, such as ``"the training images of fold 2"``.

        Raises:
            DataError: if no image of the part has an object.
        """
        if not any(self.class_counts.values()):
            raise DataError(
                f"{self.file}: {part} have no {noun}: all {sum(counts.values())} are in held-out "
                "images; take more folds (--folds), another seed, or annotate more images"
            )

    def nothing_to_show(self, noun: str) -> DataError:
        """Return the error for a dataset without an object, with the reason."""
        if self.num_crowds:
            return DataError(
                f"{self.file}: all {self.num_crowds} objects are marked iscrowd=1, and such regions are "
                "neither trained on nor scored; set iscrowd to 0, or read them as objects: "
                'crowd="objects" (--crowd objects)'
            )
        note = f"; left out: {in_words(self.skipped)}" if self.skipped else ""
        return DataError(
            f"{self.file}: none of the {len(self)} images has one {noun} of the classes "
            f"{', '.join(self.classes)}{note}"
        )

    def take(self, rows: Iterable[int]) -> Self:
        """Return the dataset of these images, in this order; counts of what is left out stay.

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
        subset.sizes = [self.sizes[row] for row in rows]
        subset._objects = tuple(self._objects[row] for row in rows)
        return subset

    def _is_crowd(self, iscrowd: bool | None) -> bool:
        return bool(iscrowd) and self.crowd == "ignore"

    def _check_size(self, i: int, size: tuple[int, int] | None = None) -> tuple[int, int]:
        """Return the (height, width) of an image, read from its file if it is not given.

        Raises:
            DataError: if its entry states another size.
        """
        if size is None:
            size = read_header(self.paths[i]).size
        if size != self.sizes[i]:
            height, width = self.sizes[i]
            raise DataError(
                f"the upright image of {self.paths[i]} is {size[0]}x{size[1]} px (height x width), "
                f"and {self.file} has {height}x{width} for image {self.ids[i]}; its objects do not fit "
                "it: correct the entry or restore the image"
            )
        return size

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
    """Return which object every pixel of an image belongs to, for any number of objects of a class.

    Raises:
        DataError: as ``images.pixels``, but for the number of objects.
    """
    return images._object_map(i)
