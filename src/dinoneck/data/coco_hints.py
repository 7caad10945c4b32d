"""Check redundant keys that some tools write into COCO JSON files.

They repeat file names (COCO Annotator, Roboflow), class names (SAHI), sizes, or the format of the
boxes. Their values are not used, but if one contradicts the value that is used, one of the two is
wrong.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dinoneck.data.class_names import without_separators
from dinoneck.data.coco_entries import (
    BBOX,
    UNKNOWN_SIDE,
    Coco,
    CocoCategory,
    CocoImage,
    Entries,
    is_number,
    name_entry,
)
from dinoneck.data.coco_repairs import entries_of
from dinoneck.errors import DataError
from dinoneck.text import shorten

logger = logging.getLogger(__name__)

_FORMAT_KEY = "bbox_format"
# names of the format x, y, width, height, and of other formats: letters and digits alone
_READ_FORMATS = ("xywh", "xywhabs", "coco", "ltwh", "tlwh", "xminyminwidthheight")
_OTHER_FORMATS = (
    "xyxy",
    "xyxyabs",
    "xyxyn",
    "xyxyrel",
    "x1y1x2y2",
    "xminyminxmaxymax",
    "ltrb",
    "tlbr",
    "corners",
    "voc",
    "pascalvoc",
    "yxyx",
    "y1x1y2x2",
    "yxhw",
    "xyhw",
    "cxcywh",
    "cxcywhn",
    "xcycwh",
    "ccwh",
    "center",
    "centre",
    "yolo",
    "xywhn",
    "xywhrel",
    "albumentations",
    "relative",
    "normalized",
    "normalised",
)
_NAME_KEYS = ("category_name", "category")
_ROBOFLOW_KEY = "extra.name"
_ROBOFLOW_MARK = ".rf."  # between the name of an image and a hash
_ROUNDING_PX = 1  # pixels by which the sides of a box may be rounded
# if at least so many annotations state one and the same size, it is that of an image, not of objects
_MIN_EQUAL_SIZES = 3


def check_hints(content: dict[str, Any], coco: Coco[Any], file: Path) -> None:
    """Compare redundant keys with the values that are used; a warning counts the contradictions.

    Args:
        content: the parsed JSON file, after repairs.
        coco: the values that are used.
        file: the file, for messages.

    Raises:
        DataError: if a ``bbox_format`` says that boxes are not x, y, width and height.
    """
    annotations = entries_of(content["annotations"])
    _check_box_formats(content, annotations, file)
    _warn_of_image_names(entries_of(content["images"]), coco.images, file)
    objects: list[_Object] = []
    boxes: Entries = []
    for i, entry in enumerate(annotations):
        if "segments_info" in entry:
            for segment in entries_of(entry["segments_info"]):
                if "isthing" in segment or any(key in segment for key in _NAME_KEYS):
                    name = f"the segment {segment.get('id')} of annotations[{i}]"
                    objects.append(_Object(segment, name))
        else:
            boxes.append(entry)
            if any(key in entry for key in _NAME_KEYS):
                objects.append(_Object(entry, name_entry("annotations", i, entry.get("id"))))
    for key in _NAME_KEYS:
        _warn_of_category_names(objects, key, coco.categories, file)
    _warn_of_things(objects, coco.categories, file)
    image_of = {image.id: image for image in coco.images}
    _warn_of_names_in_boxes(boxes, image_of, coco.images, file)
    _warn_of_sizes_in_boxes(boxes, image_of, file)


@dataclass(slots=True)
class _Object:
    """An annotation or a segment of a panoptic annotation, and its name in messages."""

    entry: dict[str, Any]
    name: str


# The format of boxes
# ------------------------------------------------------------------------------------------------


def _check_box_formats(content: dict[str, Any], annotations: Entries, file: Path) -> None:
    """Raise a DataError for another format of boxes, and warn of an unknown one."""
    unknown = None  # the first entry with an unknown format, and the format
    for owner, value in _box_formats(content, annotations):
        # BoxMode.XYWH_ABS of Detectron2 -> xywhabs
        word = "".join(filter(str.isalnum, str(value))).lower().removeprefix("boxmode")
        if word in _OTHER_FORMATS:
            raise DataError(
                f"{file}: {owner} has the {_FORMAT_KEY} {shorten(value)}; expected 'xywh', {BBOX}: "
                f"convert the boxes, or correct the {_FORMAT_KEY}"
            )
        if word not in _READ_FORMATS and unknown is None:
            unknown = (owner, value)
    if unknown is not None:
        owner, value = unknown
        logger.warning(
            "%s: %s has the %s %s, which is unknown; boxes are read as %s",
            file,
            owner,
            _FORMAT_KEY,
            shorten(value),
            BBOX,
        )


def _box_formats(content: dict[str, Any], annotations: Entries) -> Iterator[tuple[str, Any]]:
    """Yield the name of each entry that states a format of boxes, and the format."""
    info = content.get("info")
    if isinstance(info, dict) and info.get(_FORMAT_KEY) is not None:
        yield "info", info[_FORMAT_KEY]
    for i, entry in enumerate(annotations):
        if entry.get(_FORMAT_KEY) is not None:
            yield name_entry("annotations", i, entry.get("id")), entry[_FORMAT_KEY]


# Names of classes
# ------------------------------------------------------------------------------------------------


def _warn_of_category_names(
    objects: Sequence[_Object], key: str, categories: Sequence[CocoCategory], file: Path
) -> None:
    """Warn of objects whose stated category name is not that of their ``category_id``.

    A name that no category of the file has counts as wrong only if other objects of that category
    state its right name. If none does, the category was probably renamed.
    """
    name_of = {category.id: category.name for category in categories}
    ids_of: dict[str, set[Any]] = {}
    for category in categories:
        ids_of.setdefault(without_separators(category.name), set()).add(category.id)
    confirmed_ids = set()
    of_other_category: list[_Object] = []
    unlisted: list[_Object] = []
    for item in objects:
        name = _stated_name(item.entry, key)
        category_id = item.entry.get("category_id")
        if name is None or category_id not in name_of:
            continue
        ids = ids_of.get(without_separators(name))
        if ids is None:
            unlisted.append(item)
        elif category_id in ids:
            confirmed_ids.add(category_id)
        else:
            of_other_category.append(item)
    wrong = list(of_other_category)
    for item in unlisted:
        if item.entry["category_id"] in confirmed_ids:
            wrong.append(item)
    if wrong:
        first = wrong[0]
        category_id = first.entry["category_id"]
        logger.warning(
            "%s: %d of %d objects have a %s that is not the name of their category_id, such as %s "
            "with the category_id %s (%r) and the %s %r. The category_id counts; correct the wrong "
            "one",
            file,
            len(wrong),
            len(objects),
            key,
            first.name,
            category_id,
            name_of[category_id],
            key,
            _stated_name(first.entry, key),
        )


def _stated_name(entry: dict[str, Any], key: str) -> str | None:
    """Return the category name that an object states, as text or as {"name": text}; None without one."""
    value = entry.get(key)
    if isinstance(value, dict):
        value = value.get("name")
    return value if isinstance(value, str) and value else None


def _warn_of_things(
    objects: Sequence[_Object], categories: Sequence[CocoCategory], file: Path
) -> None:
    """Warn of segments whose ``isthing`` is not that of their category."""
    isthing_of = {category.id: category.isthing for category in categories}
    stated = [item for item in objects if item.entry.get("isthing") in (0, 1)]
    wrong = []
    for item in stated:
        category_isthing = isthing_of.get(item.entry["category_id"])
        if category_isthing is not None and category_isthing != item.entry["isthing"]:
            wrong.append(item)
    if wrong:
        first = wrong[0]
        logger.warning(
            "%s: the isthing of %d of %d segments is not that of their category, such as that of "
            "%s, %d, with the category_id %s. That of the category counts; correct the wrong one",
            file,
            len(wrong),
            len(stated),
            first.name,
            first.entry["isthing"],
            first.entry["category_id"],
        )


# Names and sizes of images
# ------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _NameHint:
    """A second file name of an image.

    Attributes:
        owner: the entry that states it, for messages.
        key: the key under which it is stated.
        stated: the second name.
        file_name: the ``file_name`` of the image.
    """

    owner: str
    key: str
    stated: str
    file_name: str


def _warn_of_image_names(entries: Entries, images: Sequence[CocoImage], file: Path) -> None:
    """Warn of images whose ``path`` or ``extra.name`` names another file than their ``file_name``."""
    paths = []
    originals = []
    for i, entry in enumerate(entries):
        path = entry.get("path")
        extra = entry.get("extra")
        owner = name_entry("images", i, entry.get("id"))
        if isinstance(path, str) and path:
            paths.append(_NameHint(owner, "path", path, entry["file_name"]))
        if isinstance(extra, dict) and isinstance(extra.get("name"), str):
            originals.append(_NameHint(owner, _ROBOFLOW_KEY, extra["name"], entry["file_name"]))
    _warn_of_other_names(paths, images, file)
    _warn_of_other_names(originals, images, file)


def _warn_of_names_in_boxes(
    boxes: Entries, image_of: dict[Any, CocoImage], images: Sequence[CocoImage], file: Path
) -> None:
    """Warn of annotations whose ``file_name`` is not that of their image."""
    hints = []
    for i, entry in enumerate(boxes):
        name = entry.get("file_name")
        image = image_of.get(entry.get("image_id"))
        if isinstance(name, str) and name and image is not None:
            owner = name_entry("annotations", i, entry.get("id"))
            hints.append(_NameHint(owner, "file_name", name, image.file_name))
    _warn_of_other_names(hints, images, file)


def _warn_of_other_names(
    hints: Sequence[_NameHint], images: Sequence[CocoImage], file: Path
) -> None:
    """Warn of second names that belong to another image.

    A name that no image has counts as wrong only if more names are right than unknown. Otherwise the
    images were probably renamed.
    """
    if not hints:
        return
    names = _FileNames(images)
    num_right = 0
    of_other_image = []
    of_no_image = []
    for hint in hints:
        owner = names.owner_of(hint)
        if owner == hint.file_name:
            num_right += 1
        elif owner is not None:
            of_other_image.append(hint)
        else:
            of_no_image.append(hint)
    wrong = list(of_other_image)
    # Roboflow shortens and rewrites names, so that its unknown names say nothing
    if num_right > len(of_no_image) and hints[0].key != _ROBOFLOW_KEY:
        wrong += of_no_image
    if wrong:
        first = wrong[0]
        logger.warning(
            "%s: the %s of %d of %d entries names another image than its own, such as %r of %s, whose "
            "image is %r. The id of the image and its file_name count; correct the wrong one",
            file,
            first.key,
            len(wrong),
            len(hints),
            first.stated,
            first.owner,
            first.file_name,
        )


class _FileNames:
    """Finds the image that a second name means among the images of a JSON file.

    Args:
        images: the images.
    """

    def __init__(self, images: Sequence[CocoImage]) -> None:
        self._of_last_name: dict[str, list[str]] = {}
        self._of_letters: dict[str, str] = {}
        for image in images:
            self._of_last_name.setdefault(_last_name(image.file_name), []).append(image.file_name)
            self._of_letters.setdefault(_letters_of(image.file_name), image.file_name)

    def owner_of(self, hint: _NameHint) -> str | None:
        """Return the ``file_name`` of the image that a second name means; None if no image has it.

        If several images fit, the hint's image is preferred.
        """
        candidates = self._of_last_name.get(_last_name(hint.stated), [])
        # images in several folders may have the same name: prefer those whose folder agrees too
        stated = hint.stated.replace("\\", "/")
        with_same_folder = [name for name in candidates if stated.endswith(name)]
        for names in (with_same_folder, candidates):
            if hint.file_name in names:
                return hint.file_name
            if names:
                return names[0]
        letters = _letters_of(hint.stated)
        if letters == _letters_of(hint.file_name):
            return hint.file_name
        return self._of_letters.get(letters)


def _last_name(path: str) -> str:
    """Return the name of a file without its folders, in a Windows or POSIX path."""
    return path.replace("\\", "/").rpartition("/")[2]


def _letters_of(path: str) -> str:
    """Return the letters and digits of a file's stem, in lower case, without Roboflow's hash."""
    name = _last_name(path)
    original, mark, _ = name.partition(_ROBOFLOW_MARK)
    if mark:
        # Roboflow renames a.jpg to a_jpg.rf.1f0c.jpg: here the last word is the suffix
        stem = original.rpartition("_")[0] or original
    else:
        stem = name.rpartition(".")[0] or name
    return "".join(filter(str.isalnum, stem)).lower()


def _warn_of_sizes_in_boxes(boxes: Entries, image_of: dict[Any, CocoImage], file: Path) -> None:
    """Warn of annotations whose ``width`` and ``height`` are neither those of their image nor of their box.

    They count only if such keys state the size of images in this file: if some equal that of their
    image, or if several annotations state one and the same other size.
    """
    num_right = 0
    wrong_sizes = set()
    wrong = []
    for i, entry in enumerate(boxes):
        width = entry.get("width")
        height = entry.get("height")
        if not (is_number(width) and is_number(height)):
            continue
        image = image_of.get(entry.get("image_id"))
        bbox = entry.get("bbox")
        if image is None or UNKNOWN_SIDE in (image.width, image.height):
            continue
        if (width, height) == (image.width, image.height):
            num_right += 1
            continue
        if bbox is None:
            continue
        is_of_box = abs(width - bbox[2]) <= _ROUNDING_PX and abs(height - bbox[3]) <= _ROUNDING_PX
        if not is_of_box:
            wrong_sizes.add((width, height))
            wrong.append((i, entry, image))
    is_one_size = len(wrong_sizes) == 1 and len(wrong) >= _MIN_EQUAL_SIZES
    if wrong and (num_right > 0 or is_one_size):
        i, entry, image = wrong[0]
        logger.warning(
            "%s: %d of %d annotations state another size of their image than it has, such as %s with "
            "%sx%s px (width x height), and the image %r with %dx%d px. If the boxes were drawn in "
            "images of another size, scale them",
            file,
            len(wrong),
            num_right + len(wrong),
            name_entry("annotations", i, entry.get("id")),
            entry["width"],
            entry["height"],
            image.file_name,
            image.width,
            image.height,
        )
