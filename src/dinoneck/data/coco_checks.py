"""Whether the entries of a COCO JSON fit together: names, unique ids, and what they refer to."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from dinoneck.data.cells import check_unique, is_missing
from dinoneck.data.class_names import without_separators
from dinoneck.data.coco_entries import (
    BBOX,
    BBOX_MODE,
    BBOX_MODE_NAME,
    EXPECTED,
    Coco,
    CocoBox,
    CocoCategory,
    CocoImage,
    CocoSegments,
    Id,
    name_entry,
)
from dinoneck.data.coco_repairs import entries_of
from dinoneck.data.folder_words import part_of
from dinoneck.data.word_cells import lookalike_key, similar_names
from dinoneck.errors import DataError
from dinoneck.text import in_words, shorten, some_of

logger = logging.getLogger(__name__)

# signs that stand for blanks in names; a point between two digits is that of a number
_BETWEEN_WORDS = re.compile(r"(?<=\w)[_-]+|(?<=\D)\.|\.(?=\D)")
# of LVIS: classes that are known to be absent, and those of which only some objects are annotated
_FEDERATED_KEYS = ("neg_category_ids", "not_exhaustive_category_ids")
# what files of one for all parts write into the entries of images
_PART_KEYS = ("split", "subset", "set", "part", "phase", "usage")
# boxes on one image of so many others are not there by chance
_FEWEST_ON_ONE_IMAGE = 5
# of two files that were merged, the second one's images have no boxes. If it has at least half as
# many images as the first, they are one in three of all
_LEAST_SHARE_WITHOUT_BOX = 1 / 3
# KITTI, VisDrone, Cityscapes and labelling tools call what is no object so, in lower case
_NO_CLASSES = {
    "dontcare",
    "dont care",
    "don't care",
    "ignore",
    "ignored",
    "ignored region",
    "ignored regions",
    "ignore region",
    "ignore regions",
    "void",
    "unlabeled",
    "unlabelled",
    "background",
    "not annotated",
}


def check(coco: Coco[Any], file: Path) -> None:
    """Check names, that ids are unique, and that what they refer to is there."""
    _check_images(coco.images, file)
    _check_categories(coco.categories, file)
    boxes = [entry for entry in coco.annotations if isinstance(entry, CocoBox)]
    _check_boxes(boxes, coco.categories, file)
    _warn_of_one_image(coco.images, boxes, file)
    _warn_of_merged(coco, boxes, file)
    _warn_of_shifted_ids([image.id for image in coco.images], boxes, file)
    png_entries = [entry for entry in coco.annotations if isinstance(entry, CocoSegments)]
    _check_png_entries(png_entries, coco.categories, file)


def _check_images(images: Sequence[CocoImage], file: Path) -> None:
    for i, image in enumerate(images):
        _check_file_name(image.file_name, f"{file}: {name_entry('images', i, image.id)}")
    _check_unique((image.id for image in images), f"{file}: images: the id")
    check_unique(
        (image.file_name for image in images),
        f"{file}: images: the file_name",
        "list each file once, and give all of its annotations that id as image_id, or correct the "
        "file_name",
    )


def _check_categories(categories: Sequence[CocoCategory], file: Path) -> None:
    _check_unique((category.id for category in categories), f"{file}: categories: the id")
    check_unique(
        (category.name for category in categories),
        f"{file}: categories: the name",
        "give its objects one category_id, or each category its own name",
    )
    for i, category in enumerate(categories):
        if not category.name.strip():
            raise DataError(
                f"{file}: {name_entry('categories', i, category.id)} has the name "
                f"{category.name!r}; expected {EXPECTED['name']}"
            )
    _warn_of_similar_names(categories, file)


def _check_boxes(boxes: Sequence[CocoBox], categories: Sequence[CocoCategory], file: Path) -> None:
    category_ids = {category.id for category in categories}
    for i, box in enumerate(boxes):
        if box.category_id not in category_ids:
            where = f"{file}: {name_entry('annotations', i, box.id)}"
            raise _unknown_category(where, box.category_id, categories)
        if box.bbox_mode not in (None, BBOX_MODE, BBOX_MODE_NAME):
            raise DataError(
                f"{file}: {name_entry('annotations', i, box.id)} has the bbox_mode "
                f"{shorten(box.bbox_mode)}; expected {BBOX_MODE}, {BBOX}: convert the boxes with "
                "detectron2's BoxMode.convert"
            )
        if box.bbox is not None and (box.bbox[2] < 0 or box.bbox[3] < 0):
            raise DataError(
                f"{file}: {name_entry('annotations', i, box.id)} has the bbox {list(box.bbox)} "
                f"with a negative side; expected {BBOX}"
            )


def _check_png_entries(
    png_entries: Sequence[CocoSegments], categories: Sequence[CocoCategory], file: Path
) -> None:
    _check_unique((entry.image_id for entry in png_entries), f"{file}: annotations: the image_id")
    _check_unique((entry.file_name for entry in png_entries), f"{file}: annotations: the file_name")
    category_ids = {category.id for category in categories}
    for i, entry in enumerate(png_entries):
        where = f"{file}: annotations[{i}] (image_id {entry.image_id})"
        _check_file_name(entry.file_name, where)
        _check_unique((segment.id for segment in entry.segments_info), f"{where}: the segment id")
        for segment in entry.segments_info:
            if segment.category_id not in category_ids:
                raise _unknown_category(where, segment.category_id, categories)


def _check_file_name(name: str, where: str) -> None:
    if is_missing(name) or "\0" in name:
        raise DataError(
            f"{where} has the file_name {shorten(name)}; expected {EXPECTED['file_name']}"
        )


def _check_unique(values: Iterable[Any], what: str) -> None:
    check_unique(values, what, "give every entry its own")


def _unknown_category(where: str, category_id: Id, categories: Sequence[CocoCategory]) -> DataError:
    """The error for a category_id that is not listed."""
    ids = some_of((str(category.id) for category in categories), 20)
    for category in categories:
        if category.name == category_id:
            return DataError(
                f"{where} has the category_id {category_id!r}, the name of the category "
                f"{category.id}; write its id"
            )
    return DataError(
        f"{where} has the category_id {category_id!r}, which is not among the categories {ids}; "
        "list it there or correct it"
    )


def _warn_of_similar_names(categories: Sequence[CocoCategory], file: Path) -> None:
    """Warn of categories whose names a reader takes for one: usually one class, written in two ways."""
    all_names = [category.name for category in categories]
    for names in similar_names(all_names, key=_key_of_name):
        logger.warning(
            "%s: the categories %s differ only in case, blanks, '_', '-', '.', accents or letters that "
            "look alike, and are separate classes; give them one id if they are one class",
            file,
            ", ".join(repr(name) for name in names),
        )


def _key_of_name(name: str) -> str:
    """What is equal for names that differ only in how they are written."""
    return lookalike_key(_BETWEEN_WORDS.sub(" ", name))


def warn_of_federated(content: dict[str, Any], file: Path) -> None:
    """Warn of images that say of which classes they are annotated, as those of LVIS do."""
    images = entries_of(content["images"])
    federated = [image for image in images if any(image.get(key) for key in _FEDERATED_KEYS)]
    if federated:
        logger.warning(
            "%s: %d of %d images state that only some classes are annotated in them (%s), such as "
            "%r: objects of the other classes may be there without a box, and are learned and "
            "scored as background. Scores are not those of LVIS",
            file,
            len(federated),
            len(images),
            ", ".join(key for key in _FEDERATED_KEYS if federated[0].get(key)),
            federated[0].get("file_name"),
        )


def warn_of_parts(content: dict[str, Any], file: Path) -> None:
    """Warn of images that say that they are of several parts of a data set: ``split``: train, val."""
    images = entries_of(content["images"])
    for key in _PART_KEYS:
        words = [image[key] for image in images if isinstance(image.get(key), str)]
        parts = {part_of(word) for word in words} - {None}
        if len(parts) > 1 and "train" in parts:
            counts = Counter(words)
            logger.warning(
                "%s: its images are of several parts (%s: %s), and all of them are read, as one "
                "set. Write a file for each part",
                file,
                key,
                in_words(counts),
            )


def _warn_of_merged(coco: Coco[Any], boxes: Sequence[CocoBox], file: Path) -> None:
    """Warn of boxes that repeat the ids of others where many images have none: files were merged.

    Where the images got new ids and the boxes did not, those of the second file lie on images of the
    first one.
    """
    ids = [box.id for box in boxes if box.id is not None]
    num_repeated = len(ids) - len(set(ids))
    if not num_repeated:
        return
    num_without = len(coco.images) - len({box.image_id for box in boxes})
    if num_without >= _LEAST_SHARE_WITHOUT_BOX * len(coco.images):
        logger.warning(
            "%s: %d of %d boxes have the id of an earlier one, and %d of %d images have no box. If "
            "files were merged, give the boxes of each file the new image_id of their image: now "
            "they may lie on images of another file",
            file,
            num_repeated,
            len(boxes),
            num_without,
            len(coco.images),
        )


def _warn_of_one_image(images: Sequence[CocoImage], boxes: Sequence[CocoBox], file: Path) -> None:
    """Warn of boxes that all are on one of several images, as a wrong image_id puts them."""
    image_ids = {box.image_id for box in boxes}
    if len(image_ids) == 1 and min(len(images), len(boxes)) >= _FEWEST_ON_ONE_IMAGE:
        logger.warning(
            "%s: all %d boxes are on the image %s, and the other %d images have none, which are "
            "learned as background. If the boxes are of several images, correct their image_id",
            file,
            len(boxes),
            next(iter(image_ids)),
            len(images) - 1,
        )


def warn_of_no_classes(coco: Coco[Any], category_ids: Collection[Id | None], file: Path) -> None:
    """Warn of classes with objects that are called as what is no object: DontCare, void.

    Args:
        coco: the file.
        category_ids: of the categories that are read.
        file: what messages name.
    """
    doubtful = []
    for category in coco.categories:
        if category.id in category_ids and without_separators(category.name) in _NO_CLASSES:
            doubtful.append(category)
    if not doubtful:
        return
    counts = Counter[Id]()
    for entry in coco.annotations:
        objects = entry.segments_info if isinstance(entry, CocoSegments) else [entry]
        counts.update(shown.category_id for shown in objects if shown.iscrowd == 0)
    for category in doubtful:
        if counts[category.id]:
            logger.warning(
                "%s: the category %r is a class like the others, with %d of %d objects. If it marks "
                "what is no object, leave it out (classes=, --classes), or set iscrowd to 1 for "
                "regions that training and scores ignore",
                file,
                category.name,
                counts[category.id],
                counts.total(),
            )


def _warn_of_shifted_ids(image_ids: Sequence[Id], boxes: Sequence[CocoBox], file: Path) -> None:
    """Warn where images are counted from 1 and their boxes from 0, or the other way round.

    Such boxes lie on the image before or after theirs; only the first or the last id tells.
    """
    listed = {image_id for image_id in image_ids if isinstance(image_id, int)}
    used = {box.image_id for box in boxes if isinstance(box.image_id, int)}
    if not listed or not used or max(listed) - min(listed) + 1 != len(listed):
        return
    for step in (-1, 1):
        shifted = {image_id + step for image_id in listed}
        if used <= shifted and not used <= listed:
            logger.warning(
                "%s: boxes name the images %d ... %d, and the images have the ids %d ... %d. If "
                "one is counted from 0 and the other from 1, the boxes lie on other images: make "
                "image_id the id of the image",
                file,
                min(used),
                max(used),
                min(listed),
                max(listed),
            )
