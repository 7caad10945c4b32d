"""Images of a COCO JSON and the objects that it lists for each, whatever shows them."""

from __future__ import annotations

import contextlib
import copy
import gc
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, get_args

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from dinoneck.data.cells import PathLike
from dinoneck.data.class_counts import warn_of_empty_classes
from dinoneck.data.coco import (
    UNKNOWN_SIDE,
    Coco,
    Entry,
    Id,
    Repairs,
    choose_classes,
    in_words,
    read_coco,
)
from dinoneck.data.decoding import in_threads, read_image_size, read_picture
from dinoneck.data.segmentations import Shape
from dinoneck.data.sources import find_files
from dinoneck.errors import ConfigError, DataError
from dinoneck.tasks import OBJECTS

logger = logging.getLogger(__name__)

Ids = np.ndarray[Any, Any]
Crowd = Literal["ignore", "objects"]
UNKNOWN = -1  # id of pixels of which nothing is known
CROWD_REMEDY = (
    'set iscrowd to 0, or read them as objects: crowd="objects" (--crowd objects) in place of '
    '"ignore"'
)
IMAGE_SIZES = "image sizes read from the images"  # a kind of repair, as it is logged


@contextlib.contextmanager
def paused_collector() -> Iterator[None]:
    """Pause Python's garbage collector.

    A file of 100,000 boxes becomes millions of values, none of them garbage; the collector looks at
    them again and again, which takes half of the time of reading.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@dataclass(slots=True)
class ListedObject:
    """An object of an image.

    Attributes:
        label: index of its class.
        is_crowd: whether it is a crowd region, which is no object of its own.
        corners: left, top, right and bottom of its box in pixels; of a panoptic segment none.
        shape: the mask that the JSON has of a box; None if masks are not asked for.
        png_id: id of the pixels of a panoptic segment in its PNG.
    """

    label: int
    is_crowd: bool
    corners: tuple[float, ...] = ()
    shape: Shape | None = None
    png_id: int = 0


class ListedImages(Dataset[Any]):
    """Images of a COCO JSON, and the objects that it lists for each.

    Attributes:
        file: the JSON.
        classes: names, in the order of the labels.
        category_ids: their ids in the JSON, in the same order, to write results with.
        ids: of the images, in the order of the JSON: whole numbers, or texts if not all ids of
            images are numbers.
        paths: their files, in the same order.
        stuff: labels whose objects have no number of their own.
        skipped: reason -> objects left out.
        crowd: ``"ignore"`` if entries with ``iscrowd`` are regions that count for nothing,
            ``"objects"`` if they are objects.
        repaired: what was written in another way than COCO's, and read -> how often.
    """

    stuff: frozenset[int] = frozenset()
    skipped: Counter[str]
    _objects: Sequence[Sequence[ListedObject]]  # of every image

    def _open(
        self,
        annotations: PathLike,
        kind: type[Entry],
        images: PathLike | None,
        classes: Sequence[str] | None,
        crowd: Crowd,
    ) -> Coco[Entry]:
        """Read the JSON, choose its classes and find its images; ``images`` is their folder."""
        if crowd not in get_args(Crowd):
            raise ConfigError(f"crowd is {crowd!r}; expected one of {', '.join(get_args(Crowd))}")
        self.file = Path(annotations)
        self.crowd = crowd
        self.skipped = Counter()
        self.repaired = Repairs()
        coco = read_coco(self.file, kind, self.repaired)
        id_of = choose_classes(classes, coco.categories, self.file)
        self.classes = tuple(id_of)
        self.category_ids = tuple(id_of.values())
        self._label_of = {category_id: k for k, category_id in enumerate(self.category_ids)}
        self._entries = tuple(coco.images)
        self.ids = tuple(entry.id for entry in coco.images)
        names = [entry.file_name for entry in coco.images]
        folder = self._find_folder(names[0]) if images is None else Path(images)
        self.paths: tuple[Path, ...] = tuple(find_files(names, folder, f"images of {self.file}"))
        self._read_missing_sizes()
        return coco

    def _find_folder(self, name: str) -> Path:
        """The folder of the images: that of the JSON, or ``images`` in it if the first is not there."""
        folder = self.file.parent
        if not (folder / name).is_file() and (folder / "images").is_dir():
            return folder / "images"
        return folder

    def _read_missing_sizes(self) -> None:
        """Read the sizes that the JSON does not state from the headers of the images."""
        rows = [
            row
            for row, entry in enumerate(self._entries)
            if UNKNOWN_SIDE in (entry.width, entry.height)
        ]
        turned = []
        sizes = in_threads(_read_size, [self.paths[row] for row in rows])
        for row, size in zip(rows, sizes, strict=True):
            entry = self._entries[row]
            # a side that is stated stays, and is compared with the image when it is decoded
            entry.height = entry.height or size.height
            entry.width = entry.width or size.width
            if size.is_turned:
                turned.append(row)
        if rows:
            self.repaired[IMAGE_SIZES] += len(rows)
        if turned:
            logger.warning(
                "%s states no size of %d images that are turned by their EXIF tag, such as %s: "
                "boxes and masks are read as those of the upright image",
                self.file,
                len(turned),
                self.paths[turned[0]],
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

    def nothing_to_show(self, noun: str) -> DataError:
        """Return the error for a dataset without an object, with the reason."""
        marked = sum(entry.is_crowd for objects in self._objects for entry in objects)
        if marked:
            return DataError(
                f"{self.file}: {marked} of {marked} objects are marked iscrowd=1, as exports of "
                "masks do (CVAT, Datumaro, supervision), and such regions are not trained on and "
                f"count for nothing in scores; {CROWD_REMEDY}"
            )
        left_out = f"; left out: {in_words(self.skipped)}" if self.skipped else ""
        return DataError(
            f"{self.file}: none of the {len(self)} images has {_article(noun)}: 0 objects of the "
            f"classes {', '.join(self.classes)}{left_out}"
        )

    def __len__(self) -> int:
        return len(self._entries)

    def take(self, rows: Iterable[int]) -> Self:
        """Return the dataset of these images, in this order.

        ``skipped``, ``clipped`` and ``repaired`` stay as they are.

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
        subset._entries = tuple(self._entries[row] for row in rows)
        subset._objects = tuple(self._objects[row] for row in rows)
        return subset

    def _size(self, i: int, size: tuple[int, int] | None = None) -> tuple[int, int]:
        """The (height, width) of an image, which is that in the JSON."""
        entry = self._entries[i]
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

    def _numbered(self, i: int) -> list[int]:
        """The ids of an image's objects: 1000 * (class + 1) + number; of a crowd region -1000 * (class + 1)."""
        ids = []
        counts = Counter[int]()
        for entry in self._objects[i]:
            first = OBJECTS * (entry.label + 1)
            if entry.is_crowd:
                ids.append(-first)
                continue
            ids.append(first + counts[entry.label])
            if entry.label not in self.stuff:
                counts[entry.label] += 1
        for label, count in counts.most_common(1):
            if count >= OBJECTS:
                raise DataError(
                    f"{self.paths[i]} has {count} objects of the class {self.classes[label]!r}; "
                    f"expected fewer than {OBJECTS}"
                )
        return ids


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


def _stored_size(image: Image.Image, name: str) -> tuple[int, int]:
    return image.height, image.width


def _quoted(name: str) -> str:
    """A name as a shell takes it."""
    return name if name.isalnum() else repr(name)


def _article(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"
