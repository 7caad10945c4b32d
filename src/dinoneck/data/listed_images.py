"""Images of a COCO JSON and the objects that it lists for each, whatever shows them."""

from __future__ import annotations

import copy
import filecmp
import logging
from abc import abstractmethod
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, Self, get_args

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from dinoneck.data.cells import PathLike
from dinoneck.data.class_counts import warn_of_empty_classes
from dinoneck.data.class_names import choose_classes
from dinoneck.data.coco import read_coco
from dinoneck.data.coco_checks import warn_of_no_classes
from dinoneck.data.coco_entries import (
    UNKNOWN_SIDE,
    CocoCategory,
    CocoImage,
    Entry,
    Id,
    Repairs,
)
from dinoneck.data.folder_words import IMAGE_WORDS, MASK_WORDS, PART_WORDS, words_of
from dinoneck.data.json_parts import check_stated_part, part_of_json
from dinoneck.data.names import is_absolute
from dinoneck.data.sources import find_files
from dinoneck.data.walk import SUFFIXES
from dinoneck.errors import ConfigError, DataError
from dinoneck.images.decoding import read_image_size
from dinoneck.images.orientation import hidden_turns, size_hides_turn, stated_orientation
from dinoneck.images.pixels import in_threads, read_picture
from dinoneck.tasks import OBJECTS
from dinoneck.text import in_words, some_of

logger = logging.getLogger(__name__)

Ids = np.ndarray[Any, Any]
Crowd = Literal["ignore", "objects"]
# what passes the folder of the images, as check_stated_part names it
_IMAGES_OPTION = "images= (--images, of held-out boxes --val-images)"
UNKNOWN = -1  # id of pixels of which nothing is known
UNKNOWN_IMAGE = "unknown image"  # a reason to leave an annotation out
CROWD_REMEDY = (
    'set iscrowd to 0, or read them as objects: crowd="objects" (--crowd objects) in place of '
    '"ignore"'
)
IMAGE_SIZES = "image sizes read from the images"  # a kind of repair, as it is logged


@dataclass(slots=True)
class ListedObject:
    """An object of an image.

    Attributes:
        label: index of its class.
        is_crowd: whether it is a crowd region, which is no object of its own.
    """

    label: int
    is_crowd: bool


NO_OBJECT = -1  # in ObjectMap.rows


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
                    "tiles, or into smaller ones (data.tile, --tile)"
                )
        return ids

    def ids(self) -> Ids:
        """Return the ids of the pixels (H, W), with a number for every object of the image."""
        ids = self.ids_of_objects(range(len(self.objects)))
        return ids[self.rows]


@dataclass
class OpenedJson(Generic[Entry]):
    """A COCO JSON with the choices of its reader.

    Attributes:
        file: the JSON.
        crowd: whether entries with ``iscrowd`` are objects.
        category_ids: name of a class -> id of its category, in the order of the labels; None of a
            class that the file does not list.
        images: entries of the images, with their sizes.
        annotations: entries of the annotations, of all categories.
        categories: entries of the categories, the chosen ones and the others.
        paths: files of the images, in the same order as their entries.
        repaired: what was written in another way than COCO's, and read -> how often.
    """

    file: Path
    crowd: Crowd
    category_ids: dict[str, Id | None]
    images: list[CocoImage]
    annotations: list[Entry]
    categories: list[CocoCategory]
    paths: list[Path]
    repaired: Repairs


def open_json(
    annotations: PathLike,
    annotation_type: type[Entry],
    images: PathLike | None,
    classes: Sequence[str] | None,
    crowd: Crowd,
    *,
    allow_unlisted: bool = False,
) -> OpenedJson[Entry]:
    """Read a COCO JSON, choose its classes and find its images.

    Args:
        annotations: the JSON.
        annotation_type: of its annotations, :class:`dinoneck.data.coco_entries.CocoBox` or
            :class:`dinoneck.data.coco_entries.CocoSegments`.
        images: the folder of the images; None = that of the JSON, or ``images`` in it, or next to
            it if the JSON lies in ``annotations``.
        classes: names in the order of their labels; None = all, by ascending category id.
        crowd: whether entries with ``iscrowd`` are objects.
        allow_unlisted: whether the file may lack some of the classes.

    Raises:
        DataError: if the JSON cannot be used, or an image does not exist.
        ConfigError: if ``crowd`` is another word.
    """
    if crowd not in get_args(Crowd):
        raise ConfigError(f"crowd is {crowd!r}; expected one of {', '.join(get_args(Crowd))}")
    file = Path(annotations)
    repaired = Repairs()
    coco = read_coco(file, annotation_type, repaired)
    category_ids = choose_classes(classes, coco.categories, file, allow_unlisted=allow_unlisted)
    warn_of_no_classes(coco, set(category_ids.values()), file)
    names = [image.file_name for image in coco.images]
    paths = _find_images(names, file, images)
    _read_missing_sizes(coco.images, paths, file, repaired)
    return OpenedJson(
        file=file,
        crowd=crowd,
        category_ids=category_ids,
        images=coco.images,
        annotations=coco.annotations,
        categories=coco.categories,
        paths=paths,
        repaired=repaired,
    )


def _find_images(names: Sequence[str], file: Path, images: PathLike | None) -> list[Path]:
    """The files of the images, in the folder that is passed or next to the JSON."""
    folder = _find_folder(file, names) if images is None else Path(images)
    # A relative name may lead out of the folder, as ../images/0.png does. Absolute names are those of
    # the machine that wrote the file: no file outside of the folder is taken for one of them, and so
    # for none of the others.
    outside = not any(map(is_absolute, names))
    try:
        paths = find_files(
            names, folder, f"images of {file}", outside=outside, part=part_of_json(file)
        )
    except DataError as error:
        if images is not None:
            raise
        raise DataError(f"{error}. The option for it is images= (--images)") from error
    check_stated_part(file, names, paths, _IMAGES_OPTION)
    return paths


def _find_folder(file: Path, names: Sequence[str]) -> Path:
    """The folder of the images: that of the JSON, or ``images`` in it or, as CVAT and Datumaro write, next to it.

    Raises:
        DataError: if the folder of the JSON and ``images`` in it have different images of one name,
            or if the files beside the JSON are masks, with their images in a folder next to it.
    """
    folder = file.parent
    inner = folder / "images"
    beside_annotations = folder.parent / "images"
    _check_no_masks(file, names[0])
    is_beside = (folder / names[0]).is_file()
    if is_beside and inner.is_dir():
        _check_one_image_each(file, inner, names)
    if is_beside:
        return folder
    if inner.is_dir():
        return inner
    if folder.name == "annotations" and beside_annotations.is_dir():
        return beside_annotations
    return folder


def _check_one_image_each(file: Path, inner: Path, names: Sequence[str]) -> None:
    """Compare the images beside a JSON with those of its ``images`` folder that have the same names.

    Raises:
        DataError: if two of them are different files.
    """
    for name in names:
        beside = file.parent / name
        inside = inner / name
        if beside.is_file() and inside.is_file() and not filecmp.cmp(beside, inside, shallow=False):
            raise DataError(
                f"{file} names {name}, which may be {beside} or {inside}; name the folder of the "
                "images: images= (--images)"
            )


def _check_no_masks(file: Path, name: str) -> None:
    """Raise a DataError if images of a JSON would be masks: ``labels/0.png`` beside it, of ``images/0.jpg``.

    Args:
        file: the JSON.
        name: of one of its images.
    """
    folder = file.parent
    leads_out = is_absolute(name) or ".." in Path(name).parts
    if leads_out or not _is_called(folder.absolute(), MASK_WORDS):
        return
    mask = _of_equal_stem(folder / name)
    if mask is None:
        return
    for other in sorted(folder.absolute().parent.iterdir()):
        if not (_is_called(other, IMAGE_WORDS) and other.is_dir()):
            continue
        image = _of_equal_stem(other / name)
        if image is not None:
            raise DataError(
                f"{file} names {name}: {mask} seems to be the mask of {image}; name the folder of "
                "the images: images= (--images)"
            )


def _is_called(folder: Path, words: Collection[str]) -> bool:
    """Whether a folder is called by some words alone, or with that of a part: ``labels``, ``train_labels``."""
    named = words_of(folder.name) - PART_WORDS
    return bool(named) and named <= set(words)


def _of_equal_stem(path: Path) -> Path | None:
    """The image that differs from a path in its suffix at most; None if there is none."""
    if not path.parent.is_dir():
        return None
    for file in sorted(path.parent.iterdir()):
        if path.stem == file.stem and file.suffix.lower() in SUFFIXES:
            return file
    return None


def _read_missing_sizes(
    images: Sequence[CocoImage], paths: Sequence[Path], file: Path, repaired: Repairs
) -> None:
    """Read the sizes that the JSON does not state from the headers of the images."""
    rows = []
    for row, image in enumerate(images):
        if UNKNOWN_SIDE in (image.width, image.height):
            rows.append(row)
    turned = []
    sizes = in_threads(_read_size, [paths[row] for row in rows])
    for row, size in zip(rows, sizes, strict=True):
        image = images[row]
        # a side that is stated stays, and is compared with the image when it is decoded
        image.height = image.height or size.height
        image.width = image.width or size.width
        if size.is_turned:
            turned.append(row)
    if rows:
        repaired[IMAGE_SIZES] += len(rows)
    if turned:
        logger.warning(
            "%s states no size of %d images that are turned by their EXIF tag, such as %s: "
            "boxes and masks are read as those of the upright image",
            file,
            len(turned),
            paths[turned[0]],
        )


class ListedImages(Dataset[Any]):
    """Images of a COCO JSON, and the objects that it lists for each.

    Attributes:
        file: the JSON.
        classes: names, in the order of the labels.
        category_ids: their ids in the JSON, in the same order, to write results with; None of a
            class that the JSON does not list.
        unlisted: labels of the classes that the JSON does not list.
        ids: of the images, in the order of the JSON: whole numbers, or texts if not all ids of
            images are numbers.
        paths: their files, in the same order.
        stuff: labels whose objects have no number of their own.
        skipped: reason -> objects left out.
        crowd: ``"ignore"`` if entries with ``iscrowd`` are regions to ignore, ``"objects"`` if they
            are objects.
        repaired: what was written in another way than COCO's, and read -> how often.
    """

    _objects: Sequence[Sequence[ListedObject]]  # of every image

    def __init__(self, opened: OpenedJson[Any]) -> None:
        self.file = opened.file
        self.crowd = opened.crowd
        self.classes = tuple(opened.category_ids)
        self.category_ids = tuple(opened.category_ids.values())
        self.ids = tuple(image.id for image in opened.images)
        self.paths = tuple(opened.paths)
        self.stuff: frozenset[int] = frozenset()
        self.skipped = Counter[str]()
        self.repaired = opened.repaired
        self._images = tuple(opened.images)
        self._label_of = {
            category_id: label
            for label, category_id in enumerate(self.category_ids)
            if category_id is not None
        }
        self.unlisted = frozenset(
            label for label, category_id in enumerate(self.category_ids) if category_id is None
        )

    def _log_repairs(self) -> None:
        """Name what was repaired, in one line."""
        if self.repaired:
            kinds = [f"{kind}: {count}" for kind, count in sorted(self.repaired.items())]
            logger.warning("%s: repaired: %s", self.file, "; ".join(kinds))

    def _is_crowd(self, iscrowd: int) -> bool:
        return iscrowd == 1 and self.crowd == "ignore"

    def _log_crowd(self, marked: int, listed: int) -> None:
        """Say how many objects are left out because they are marked as crowd regions."""
        if marked and self.crowd == "ignore":
            logger.warning(
                "%s: %d of %d objects are marked iscrowd=1, as exports of masks do (CVAT, "
                "Datumaro, supervision). They are regions that are not trained on and count for "
                "nothing in scores; if they are single objects, %s",
                self.file,
                marked,
                listed,
                CROWD_REMEDY,
            )

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """(height, width) of the upright images in pixels, as the JSON states them."""
        return [(image.height, image.width) for image in self._images]

    @property
    def numbers(self) -> dict[Id, int]:
        """Image id -> number of its objects, without crowd regions and stuff."""
        numbers = {}
        for image_id, objects in zip(self.ids, self._objects, strict=True):
            numbers[image_id] = sum(
                not (entry.is_crowd or entry.label in self.stuff) for entry in objects
            )
        return numbers

    @property
    def class_counts(self) -> dict[str, int]:
        """Class -> number of its objects in all images, without crowd regions; of stuff, of its segments."""
        counts = Counter(
            entry.label for objects in self._objects for entry in objects if not entry.is_crowd
        )
        return {name: counts[label] for label, name in enumerate(self.classes)}

    def check_trainable(self, noun: str) -> None:
        """Refuse a dataset that shows nothing, and name the classes of which it shows nothing.

        Args:
            noun: what it shows: ``"box"``, ``"object"`` or ``"segment"``.

        Raises:
            DataError: if no image has an object.
        """
        counts = self.class_counts
        if not any(counts.values()):
            raise self.nothing_to_show(noun)
        present = [name for name, count in counts.items() if count]
        warn_of_empty_classes(
            counts,
            noun,
            str(self.file),
            f"No head learns it; leave it out: --classes {' '.join(map(_quoted, present))} "
            "(classes=), or add examples",
        )

    def check_part(self, counts: Mapping[str, int], noun: str, part: str) -> None:
        """Refuse a part to train on that shows nothing, and name the classes that only the rest shows.

        Args:
            counts: ``class_counts`` of the whole dataset.
            noun: as of :meth:`check_trainable`.
            part: what messages call the part, such as ``"the training images of fold 2"``.

        Raises:
            DataError: if no image of the part has an object.
        """
        counts_of_part = self.class_counts
        if not any(counts_of_part.values()):
            raise DataError(
                f"{self.file}: {part} have no {noun}: all {sum(counts.values())} are in held-out "
                "images; take more folds (--folds), another seed, or annotate more images"
            )
        unseen = []
        for name, count in counts_of_part.items():
            if count == 0 and counts[name] > 0:
                unseen.append(name)
        if unseen:
            shown = [f"{name!r} ({counts[name]} held out)" for name in unseen]
            logger.warning(
                "%s: %s have no %s of the class%s %s: no head learns it. Take more folds (--folds), "
                "another seed, or annotate more images",
                self.file,
                part,
                noun,
                "" if len(unseen) == 1 else "es",
                some_of(shown, 10),
            )

    def warn_of_turned_images(self) -> None:
        """Count images that EXIF turns without a change of their size, of which boxes do not tell their frame.

        Annotation tools draw on the stored or on the turned pixels; where the sides change, the
        sizes of the JSON tell which, see :meth:`_check_size`.
        """
        rows = [row for row, objects in enumerate(self._objects) if objects]
        turned = []
        orientations = in_threads(_read_turn, [self.paths[row] for row in rows])
        for row, orientation in zip(rows, orientations, strict=True):
            entry = self._images[row]
            if size_hides_turn((entry.height, entry.width), orientation):
                turned.append(self.paths[row])
        if turned:
            logger.warning("%s: %s", self.file, hidden_turns(turned, "objects"))

    def nothing_to_show(self, noun: str) -> DataError:
        """Return the error for a dataset without an object, with the reason."""
        marked = sum(entry.is_crowd for objects in self._objects for entry in objects)
        if marked:
            return DataError(
                f"{self.file}: {marked} of {marked} objects are marked iscrowd=1, as exports of "
                "masks do (CVAT, Datumaro, supervision), and such regions are neither trained "
                f"on nor scored; {CROWD_REMEDY}"
            )
        left_out = f"; left out: {in_words(self.skipped)}" if self.skipped else ""
        return DataError(
            f"{self.file}: none of the {len(self)} images has {_article(noun)}: 0 objects of the "
            f"classes {', '.join(self.classes)}{left_out}"
        )

    def __len__(self) -> int:
        return len(self._images)

    def take(self, rows: Iterable[int]) -> Self:
        """Return the dataset of these images, in this order.

        The counts of the whole dataset, such as ``skipped`` and ``repaired``, stay as they are.

        Raises:
            DataError: if there are no rows, or one is given twice or does not exist.
        """
        rows = list(rows)
        if not rows or len({*rows}) < len(rows) or not 0 <= min(rows) <= max(rows) < len(self):
            raise DataError(
                f"rows are {rows[:20]}; expected one image or more of 0 ... {len(self) - 1}, each "
                "once"
            )
        subset = copy.copy(self)
        subset.ids = tuple(self.ids[row] for row in rows)
        subset.paths = tuple(self.paths[row] for row in rows)
        subset._images = tuple(self._images[row] for row in rows)
        subset._objects = tuple(self._objects[row] for row in rows)
        return subset

    def _check_size(self, i: int, size: tuple[int, int] | None = None) -> tuple[int, int]:
        """Return the (height, width) of an image, read from its file if it is not given.

        Raises:
            DataError: if the JSON states another size.
        """
        entry = self._images[i]
        path = self.paths[i]
        height, width = read_image_size(path) if size is None else size
        if (height, width) == (entry.height, entry.width):
            return height, width
        if (width, height) != (entry.height, entry.width):
            cause = "they are of another image, or of a copy in another size"
        elif read_picture(path, _stored_size) == (entry.height, entry.width):
            cause = "they were made on the image before it was turned by its EXIF tag"
        else:
            cause = "width and height are exchanged"
        raise DataError(
            f"the upright image of {path} is {height}x{width} px (height x width), and {self.file} "
            f"has {entry.height}x{entry.width} for image {entry.id}. Its boxes do not fit it: "
            f"{cause}; correct the JSON or restore the file"
        )

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


@dataclass
class _ImageSize:
    """Size of an upright image, and whether its EXIF tag exchanges the sides of what is stored."""

    height: int
    width: int
    is_turned: bool


def _read_size(path: Path) -> _ImageSize:
    height, width = read_image_size(path)
    stored = read_picture(path, _stored_size)
    return _ImageSize(height, width, is_turned=(height, width) != stored and height != width)


def _read_turn(path: Path) -> int:
    return read_picture(path, _turn_of)


def _turn_of(image: Image.Image, _: str) -> int:
    return stated_orientation(image)


def _stored_size(image: Image.Image, _: str) -> tuple[int, int]:
    return image.height, image.width


def _quoted(name: str) -> str:
    """A name as a shell takes it."""
    return name if name.isalnum() else repr(name)


def _article(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"
