"""Reads COCO JSON: text -> plain values -> repaired -> typed -> checked.

Annotation tools write one fact in several ways: ids as text, flags as true and false, whole numbers
with a point. A value that can be read in exactly one way is repaired and counted. Any other is an
error that names the value and its entry.
"""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Generic, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct

from dinoneck.atomic import read_regular
from dinoneck.data.cells import check_unique, is_missing
from dinoneck.data.word_cells import similar_names
from dinoneck.errors import DataError, did_you_mean, reason_of, shorten, some_of

logger = logging.getLogger(__name__)

Entry = TypeVar("Entry")
Entries = list[dict[str, Any]]
Repairs = Counter[str]
"""What was repaired -> how often."""

Side = Annotated[int, Meta(ge=1)]
Id = int | Annotated[str, Meta(min_length=1)]
UNKNOWN_SIDE = 0  # of an image whose entry does not state it; a file cannot hold it
CROWD_KEY = "iscrowd"
_LISTS = ("images", "annotations", "categories")
_READ_KEYS = (
    *_LISTS,
    "id",
    "file_name",
    "width",
    "height",
    "image_id",
    "category_id",
    "bbox",
    "segmentation",
    "area",
    CROWD_KEY,
    "name",
    "isthing",
    "segments_info",
)
# detectron2's BoxMode.XYWH_ABS, which is COCO's form; 0 are corners
BBOX_MODE = 1
BBOX_MODE_NAME = "BoxMode.XYWH_ABS"

_SHOWN_NAMES = 5  # in a message

BBOX = "x, y of the upper left corner, width and height in pixels"
_EXPECTED = {  # the last name in the place of a value -> what it should be
    "images": "a list of images, one or more",
    "annotations": "a list of annotations",
    "categories": "a list of categories, one or more, each with id and name",
    "segments_info": "a list of segments, each with id and category_id",
    "id": "a whole number or a text",
    "image_id": "a whole number or a text",
    "category_id": "a whole number or a text",
    "file_name": "the path of a file, relative to its folder",
    "name": "the name of a class",
    "width": "pixels, a whole number from 1 on; without it the image is asked",
    "height": "pixels, a whole number from 1 on; without it the image is asked",
    "bbox": f"four numbers: {BBOX}",
    "iscrowd": "0 or 1",
    "isthing": "0 or 1",
}
_FORMS = {  # keys of the files of other tools -> what such a file is
    ("shapes", "imagePath"): "a labelme file of one image; convert the folder to COCO first",
    ("_via_img_metadata",): "a project of VIA; export it as COCO",
    ("_via_settings",): "a project of VIA; export it as COCO",
    ("dataset", "samples"): "an export of FiftyOne or Segments.ai; export it as COCO",
    ("features", "type"): "GeoJSON; convert it to COCO first",
    ("items", "categories"): "Datumaro's own JSON; export COCO",
    ("objects", "size"): "a Supervisely file of one image; export COCO",
}
_ENTRY_FORMS = {  # the same of files that are lists, by the keys of their first entry
    ("image_id", "score"): "a list of results; pass the COCO file with the images and their truth",
    (
        "image_id",
        "bbox",
    ): "a list of annotations; write it as annotations next to images and categories",
    ("file_name", "annotations"): "detectron2's own list; write it as COCO",
    ("image", "annotations"): "a CreateML file; export COCO",
    ("data", "annotations"): "Label Studio's own JSON; export COCO",
    ("data_row",): "Labelbox's own JSON; export COCO",
}
_LARGEST_EXACT = 2.0**53  # whole floats above it may have lost digits
_WHOLE = re.compile(r"\s*(0|-?[1-9][0-9]{0,17})(\.0+)?\s*")
_PADDED = re.compile(r"[0-9]{1,18}")
_NUMBER = re.compile(r"\s*[-+]?[0-9]{1,15}(\.[0-9]+)?([eE][-+]?[0-9]{1,2})?\s*")
_FLAGS = {"0": 0, "1": 1, "false": 0, "true": 1}

# kinds of repairs, as they are logged
TEXT_IDS = "ids written as text"
NUMBERS_AMONG_TEXTS = "ids written as numbers among texts"
TEXT_NUMBERS = "numbers written as text"
WHOLE_FLOATS = "whole numbers written with a point"
FLAGS = "flags written as true, false, null or text"
NUMBER_NAMES = "category names that are numbers"
NO_IDS = "annotations without an id"
NAMES_AS_IDS = "image_id written as the name of the file"
ADDRESSES = "file names taken from coco_url"
NAMESAKES = "categories without objects that have the name of another one, dropped"


class CocoImage(Struct):
    """One entry of ``images``; :data:`UNKNOWN_SIDE` where it does not state its size."""

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
    """One entry of ``annotations``.

    ``area`` and ``segmentation`` are as the file holds them, see
    :func:`dinoneck.data.segmentations.read_shape`; ``attributes`` are CVAT's, ``bbox_mode`` is
    detectron2's. ``ignore`` to ``is_group_of`` (Open Images) are marks of objects that other tools
    leave out.
    """

    image_id: Id
    category_id: Id
    bbox: tuple[float, float, float, float] | None = None
    id: int | float | str | None = None
    iscrowd: Literal[0, 1] = 0
    segmentation: Any = None
    area: Any = None
    attributes: Any = None
    ignore: Any = None
    ignored: Any = None
    deleted: Any = None
    difficult: Any = None
    is_group_of: Any = None
    score: Any = None
    bbox_mode: Any = None


class CocoSegment(Struct):
    """One entry of ``segments_info``; 0 is the id of pixels of which nothing is known.

    ``bbox`` and ``area`` are as the file holds them.
    """

    id: Annotated[int, Meta(ge=1, lt=256**3)]
    category_id: Id
    iscrowd: Literal[0, 1] = 0
    bbox: Any = None
    area: Any = None


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


def read_coco(file: Path, annotation_type: type[Entry], repairs: Repairs) -> Coco[Entry]:
    """Read and check a COCO JSON: types, ids and references.

    Args:
        file: the JSON.
        annotation_type: of its annotations, :class:`CocoBox` or :class:`CocoSegments`.
        repairs: is filled with what was repaired.

    Raises:
        DataError: naming the file, the entry, the value and what was expected.
    """
    content = _parse(file)
    _check_form(content, file)
    _check_kind(content, annotation_type, file)
    _repair(content, repairs)
    coco = _typed(content, annotation_type, file)
    _drop_unused_namesakes(coco, repairs)
    _check(coco, file)
    return coco


def name_entry(list_name: str, i: int, entry_id: object = None) -> str:
    """Return what messages call an entry: its place in its list, and its id where it has one."""
    if entry_id is None:
        return f"{list_name}[{i}]"
    return f"{list_name}[{i}] (id {entry_id})"


# Text -> plain values
# ------------------------------------------------------------------------------------------------


def _parse(file: Path) -> Any:
    """The plain values of a JSON file."""
    try:
        raw = read_regular(file)
    except OSError as error:
        raise DataError(
            f"{file} cannot be read: {reason_of(error)}; pass a COCO JSON file"
        ) from error
    try:
        content = _decode(raw)
    except UnicodeDecodeError as error:
        raise DataError(
            f"{file} is no UTF-8 text ({error}); pass a COCO JSON file, saved as UTF-8"
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{file} cannot be read as JSON: {reason_of(error)}; pass a complete COCO JSON file"
        ) from error
    if isinstance(content, dict):
        _refuse_repeated_keys(raw, content, file)
    return content


def _decode(raw: bytes) -> Any:
    """Decode JSON; NaN, Infinity and other encodings than UTF-8 are read by the slower decoder."""
    try:
        return msgspec.json.decode(raw)
    except (ValueError, RecursionError):
        return json.loads(raw)


def _refuse_repeated_keys(raw: bytes, content: dict[str, Any], file: Path) -> None:
    """Refuse a key that an entry, or the file, has twice: decoders keep the last value and forget the others."""
    # the text has as many keys as the values unless one was forgotten
    if raw.count(b'":') == _num_keys(content):
        return

    def check(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        entry: dict[str, Any] = {}
        for key, value in pairs:
            if key in entry and key in _READ_KEYS:
                _check_repeated(key, entry, value, file)
            entry[key] = value
        return entry

    json.loads(raw, object_pairs_hook=check)


def _num_keys(content: dict[str, Any]) -> int:
    """How many keys the dicts of a file have, as far down as COCO's go."""
    total = len(content)
    for values in content.values():
        if isinstance(values, dict):
            total += len(values)
        total += sum(map(len, _entries_of(values)))
    for entry in _entries_of(content.get("annotations")):
        for key in ("segmentation", "attributes"):
            value = entry.get(key)
            if isinstance(value, dict):
                total += len(value)
        if "segments_info" in entry:
            total += sum(map(len, _entries_of(entry["segments_info"])))
    return total


def _check_repeated(key: str, entry: dict[str, Any], value: Any, file: Path) -> None:
    """Refuse a second value of a key, unless it repeats the first one."""
    if key in _LISTS and isinstance(value, list):
        raise DataError(f"{file} holds the list {key} more than once; merge them into one list")
    if entry[key] != value:
        owner = f" (id {entry['id']!r})" if "id" in entry and key != "id" else ""
        raise DataError(
            f"{file}: an entry{owner} has {key} twice, {shorten(entry[key])} and {shorten(value)}; "
            "keep the right one"
        )


def _check_form(content: Any, file: Path) -> None:
    """Refuse what is not a dict of images, annotations and categories, and say what it seems to be."""
    expected = "expected a COCO JSON: images, annotations and categories"
    if isinstance(content, list):
        first = content[0] if content and isinstance(content[0], dict) else {}
        for keys, form in _ENTRY_FORMS.items():
            if all(key in first for key in keys):
                raise DataError(f"{file} is {form}")
        raise DataError(f"{file} holds a list of {len(content)} entries; {expected}")
    if not isinstance(content, dict):
        raise DataError(f"{file} holds {shorten(content)}; {expected}")
    missing = [name for name in ("images", "annotations", "categories") if name not in content]
    if not missing:
        return
    for keys, form in _FORMS.items():
        if all(key in content for key in keys):
            raise DataError(f"{file} is {form}")
    raise DataError(f"{file} lacks {', '.join(missing)}; {expected}")


def _check_kind(content: dict[str, Any], annotation_type: type[Any], file: Path) -> None:
    """Refuse panoptic segments where boxes are expected, and the other way round."""
    annotations = _entries_of(content["annotations"])
    if not annotations:
        return
    are_segments = ["segments_info" in entry for entry in annotations]
    if annotation_type is CocoSegments and not any(are_segments):
        raise DataError(
            f"{file} holds boxes or masks of objects, and no panoptic segments (segments_info); "
            "pass it with --boxes or --instances (BoxImages), or a panoptic JSON here"
        )
    if annotation_type is CocoBox and all(are_segments):
        raise DataError(
            f"{file} holds panoptic segments (segments_info), and no boxes; pass it with the folder "
            "of its PNG files, --panoptic FOLDER FILE (PanopticImages)"
        )


# Plain values -> repaired
# ------------------------------------------------------------------------------------------------


def _repair(content: dict[str, Any], repairs: Repairs) -> None:
    """Write values that can be read in one way as COCO does, in place; others stay as they are."""
    images = _entries_of(content["images"])
    annotations = _entries_of(content["annotations"])
    categories = _entries_of(content["categories"])
    segments: Entries = []
    for entry in annotations:
        if "segments_info" in entry:
            segments += _entries_of(entry["segments_info"])

    _repair_names_as_ids(images, annotations, repairs)
    _repair_ids([(images, "id"), (annotations, "image_id")], repairs)
    _repair_ids(
        [(categories, "id"), (annotations, "category_id"), (segments, "category_id")], repairs
    )
    for name in ("width", "height"):
        _drop_unknown_sides(images, name)
        _repair_whole_numbers(images, name, repairs, kind_of_texts=TEXT_NUMBERS)
    _repair_whole_numbers(segments, "id", repairs, kind_of_texts=TEXT_NUMBERS)
    for entries in (annotations, segments):
        _repair_flags(entries, CROWD_KEY, repairs)
    _repair_flags(categories, "isthing", repairs)
    _repair_file_names(images, repairs)
    _repair_boxes(annotations, repairs)
    _repair_names(categories, repairs)


def _entries_of(values: Any) -> Entries:
    """The dicts of a list; what is none is refused when it gets its type."""
    if not isinstance(values, list):
        return []
    return [value for value in values if isinstance(value, dict)]


def _repair_ids(uses: Sequence[tuple[Entries, str]], repairs: Repairs) -> None:
    """Make ids comparable: whole numbers where all spell one, else texts."""
    values = [entry.get(key) for entries, key in uses for entry in entries]
    if all(_is_integer(value) for value in values):
        return
    texts = [value for value in values if isinstance(value, str)]
    are_numbers = all(whole_number(text) is not None for text in texts)
    if not are_numbers and len(texts) < len(values) and all(map(_PADDED.fullmatch, texts)):
        _cut_zeros(uses)
        are_numbers = True
    for entries, key in uses:
        if are_numbers:
            _repair_whole_numbers(entries, key, repairs, kind_of_texts=TEXT_IDS)
        else:
            _ids_to_texts(entries, key, repairs)


def _cut_zeros(uses: Sequence[tuple[Entries, str]]) -> None:
    """Cut the zeros before numbers, as of 000017, where the other side of a reference has 17."""
    for entries, key in uses:
        for entry in entries:
            value = entry.get(key)
            if isinstance(value, str):
                entry[key] = value.lstrip("0") or "0"


def _repair_names_as_ids(images: Entries, annotations: Entries, repairs: Repairs) -> None:
    """Write ids of images where annotations name their files, with or without the suffix."""
    ids = {str(image.get("id")) for image in images}
    texts = {entry["image_id"] for entry in annotations if isinstance(entry.get("image_id"), str)}
    if not texts or texts <= ids:
        return
    names = [image["file_name"] for image in images if isinstance(image.get("file_name"), str)]
    if len(names) < len(images):
        return
    last_names = [PurePosixPath(name).name for name in names]
    stems = [PurePosixPath(name).stem for name in names]
    for keys in (names, last_names, stems):
        if len(set(keys)) == len(keys) and texts <= set(keys):
            id_of = {key: image.get("id") for key, image in zip(keys, images, strict=True)}
            for entry in annotations:
                if isinstance(entry.get("image_id"), str):
                    entry["image_id"] = id_of[entry["image_id"]]
                    repairs[NAMES_AS_IDS] += 1
            return


def _repair_whole_numbers(
    entries: Entries, key: str, repairs: Repairs, *, kind_of_texts: str
) -> None:
    """Write values as whole numbers; what spells none stays, and is refused when it gets its type.

    Args:
        entries: images, annotations, segments or categories.
        key: of the values.
        repairs: where repairs are counted by their kind.
        kind_of_texts: the kind of a number that was written as a text.
    """
    for entry in entries:
        value = entry.get(key)
        number = whole_number(value)
        if number is not None and not _is_integer(value):
            entry[key] = number
            repairs[kind_of_texts if isinstance(value, str) else WHOLE_FLOATS] += 1


def _ids_to_texts(entries: Entries, key: str, repairs: Repairs) -> None:
    """Write numbers among ids as texts."""
    for entry in entries:
        value = entry.get(key)
        number = whole_number(value)
        if number is not None and not isinstance(value, str):
            entry[key] = str(number)
            repairs[NUMBERS_AMONG_TEXTS] += 1


def _is_integer(value: Any) -> bool:
    """Whether a value is an integer; True and False, which Python counts as such, are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def whole_number(value: Any) -> int | None:
    """Return the whole number that a value spells exactly; None if it spells none."""
    if _is_integer(value):
        return int(value)
    if isinstance(value, float) and value.is_integer() and abs(value) <= _LARGEST_EXACT:
        return int(value)
    if isinstance(value, str):
        match = _WHOLE.fullmatch(value)
        if match is not None:
            return int(match[1])
    return None


def _drop_unknown_sides(images: Entries, key: str) -> None:
    """Take sides of null and 0 out, which exporters write that never opened the image."""
    for image in images:
        value = image.get(key, 1)
        if value is None or (value == 0 and value is not False):
            del image[key]


def _repair_flags(entries: Entries, key: str, repairs: Repairs) -> None:
    """Make flags 0 or 1; null is as if the flag were not there."""
    for entry in entries:
        value = entry.get(key, 0)
        if _is_integer(value):
            continue
        if value is None:
            del entry[key]
        elif value in (False, True, 0.0, 1.0):
            entry[key] = int(value)
        elif isinstance(value, str) and value.strip().lower() in _FLAGS:
            entry[key] = _FLAGS[value.strip().lower()]
        else:
            continue
        repairs[FLAGS] += 1


def _repair_boxes(annotations: Entries, repairs: Repairs) -> None:
    """Make numbers of texts in boxes, and leave empty boxes out; count entries without an id."""
    for entry in annotations:
        if entry.get("id") is None and "segments_info" not in entry:
            repairs[NO_IDS] += 1
        bbox = entry.get("bbox")
        if not isinstance(bbox, list):
            continue
        if not bbox:
            del entry["bbox"]
        elif str in map(type, bbox):
            entry["bbox"] = [_number_of(value, repairs) for value in bbox]


def _number_of(value: Any, repairs: Repairs) -> Any:
    if isinstance(value, str) and _NUMBER.fullmatch(value):
        repairs[TEXT_NUMBERS] += 1
        return float(value)
    return value


def _repair_file_names(images: Entries, repairs: Repairs) -> None:
    """Take the last folder and the name of COCO's address where there is no file_name, as in LVIS."""
    for image in images:
        address = image.get("coco_url")
        if image.get("file_name") is None and isinstance(address, str) and "/" in address:
            image["file_name"] = "/".join(address.split("/")[-2:])
            repairs[ADDRESSES] += 1


def _repair_names(categories: Entries, repairs: Repairs) -> None:
    for entry in categories:
        name = entry.get("name")
        if _is_integer(name):
            entry["name"] = str(name)
            repairs[NUMBER_NAMES] += 1


# Repaired -> typed
# ------------------------------------------------------------------------------------------------


def _typed(content: dict[str, Any], annotation_type: type[Entry], file: Path) -> Coco[Entry]:
    """The entries with their types."""
    try:
        return msgspec.convert(content, Coco[annotation_type])  # type: ignore[valid-type]
    except msgspec.ValidationError as error:
        raise DataError(f"{file}: {_explain(error, content)}") from None


def _explain(error: msgspec.ValidationError, content: Any) -> str:
    """Say which value is not as it should be, and what was expected; the first is named."""
    message, _, place = str(error).partition(" - at `$")
    steps = re.findall(r"[^.\[\]`]+", place)
    value = content
    entry_id = None
    for step in steps:
        value = value[int(step)] if step.isdigit() else value[step]
        if isinstance(value, dict):
            entry_id = value.get("id", entry_id)
    place = place.rstrip("`").lstrip(".")
    name = next((step for step in reversed(steps) if not step.isdigit()), "")
    owner = f" (id {entry_id!r})" if entry_id is not None else ""
    missing = re.search(r"missing required field `(\w+)`", message)
    if missing:
        expected = _EXPECTED.get(missing[1], "")
        return f"{place or 'the file'}{owner} lacks {missing[1]}; expected {expected}"
    expected = _EXPECTED.get(name, message)
    return f"{place}{owner} is {shorten(value)}; expected {expected}"


def _drop_unused_namesakes(coco: Coco[Any], repairs: Repairs) -> None:
    """Drop categories that no object has and whose name another one has, as Roboflow's super-categories.

    Of several without an object the last stays. Of several with objects all stay, and are refused.
    """
    ids_of: dict[str, list[Id]] = {}
    for category in coco.categories:
        ids_of.setdefault(category.name, []).append(category.id)
    if len(ids_of) == len(coco.categories):
        return
    used = set[Id]()
    for entry in coco.annotations:
        if isinstance(entry, CocoSegments):
            used.update(segment.category_id for segment in entry.segments_info)
        else:
            used.add(entry.category_id)
    kept = []
    for category in coco.categories:
        namesakes = ids_of[category.name]
        is_last = category.id == namesakes[-1]
        none_is_used = used.isdisjoint(namesakes)
        if len(namesakes) == 1 or category.id in used or (none_is_used and is_last):
            kept.append(category)
        else:
            repairs[NAMESAKES] += 1
    coco.categories = kept


# Typed -> checked
# ------------------------------------------------------------------------------------------------


def _check(coco: Coco[Any], file: Path) -> None:
    """Check names, that ids are unique, and that what they refer to is there."""
    _check_images(coco.images, file)
    _check_categories(coco.categories, file)
    boxes = [entry for entry in coco.annotations if isinstance(entry, CocoBox)]
    _check_boxes(boxes, coco.categories, file)
    _warn_of_shifted_ids([image.id for image in coco.images], boxes, file)
    maps = [entry for entry in coco.annotations if isinstance(entry, CocoSegments)]
    _check_maps(maps, coco.categories, file)


def _check_images(images: Sequence[CocoImage], file: Path) -> None:
    for i, image in enumerate(images):
        _check_file_name(image.file_name, f"{file}: {name_entry('images', i, image.id)}")
    _check_unique((image.id for image in images), f"{file}: images: the id")
    _check_unique((image.file_name for image in images), f"{file}: images: the file_name")


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
                f"{category.name!r}; expected {_EXPECTED['name']}"
            )
    _warn_of_similar_names(categories, file)


def _check_boxes(boxes: Sequence[CocoBox], categories: Sequence[CocoCategory], file: Path) -> None:
    _check_unique((box.id for box in boxes if box.id is not None), f"{file}: annotations: the id")
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


def _check_maps(
    maps: Sequence[CocoSegments], categories: Sequence[CocoCategory], file: Path
) -> None:
    _check_unique((entry.image_id for entry in maps), f"{file}: annotations: the image_id")
    _check_unique((entry.file_name for entry in maps), f"{file}: annotations: the file_name")
    category_ids = {category.id for category in categories}
    for i, entry in enumerate(maps):
        where = f"{file}: annotations[{i}] (image_id {entry.image_id})"
        _check_file_name(entry.file_name, where)
        _check_unique((segment.id for segment in entry.segments_info), f"{where}: the segment id")
        for segment in entry.segments_info:
            if segment.category_id not in category_ids:
                raise _unknown_category(where, segment.category_id, categories)


def _check_file_name(name: str, where: str) -> None:
    if is_missing(name) or "\0" in name:
        raise DataError(
            f"{where} has the file_name {shorten(name)}; expected {_EXPECTED['file_name']}"
        )


def _check_unique(values: Iterable[Any], what: str) -> None:
    check_unique(values, what, "give every entry its own")


def _unknown_category(where: str, category_id: Id, categories: Sequence[CocoCategory]) -> DataError:
    """The error for a category_id that is not listed."""
    ids = ", ".join(str(category.id) for category in categories[:20])
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
    """Name categories that differ only in case or blanks: usually one class, written in two ways."""
    all_names = [category.name for category in categories]
    for names in similar_names(all_names, key=_without_case_and_blanks):
        logger.warning(
            "%s: the categories %s differ only in case or blanks, and are separate classes; give "
            "them one id if they are one class",
            file,
            ", ".join(repr(name) for name in names),
        )


def _without_case_and_blanks(name: str) -> str:
    """A name in lower case, with one blank for several, and none at its ends."""
    return " ".join(name.split()).casefold()


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


def choose_classes(
    classes: Sequence[str] | None,
    categories: Sequence[CocoCategory],
    file: Path,
    *,
    allow_unlisted: bool = False,
) -> dict[str, Id | None]:
    """Return the names of the classes and their category ids, in the order of the labels.

    Names are compared as they are. If the file lacks some, all are compared without case and
    blanks, which a warning states.

    Args:
        classes: names in the order of their labels; None = all, by ascending category id.
        categories: those of the file.
        file: what messages name.
        allow_unlisted: whether the file may lack some of the classes, which have the id None and
            are named in a warning. It must not have others then: those may be the same ones.

    Raises:
        DataError: if ``classes`` is no list of names, is empty, or names a category twice or one
            that the file does not have; with ``allow_unlisted`` if it has none of them, or others.
    """
    id_of = {
        category.name: category.id for category in sorted(categories, key=lambda entry: entry.id)
    }
    if classes is None:
        return dict(id_of)
    if isinstance(classes, str) or not len(classes):
        raise DataError(
            f"classes is {classes!r}; expected a list of one or more of {', '.join(id_of)}"
        )
    check_unique(classes, "classes: the name", "name each once")
    category_of = _match_names(classes, id_of, file)
    unlisted = [name for name in classes if name not in category_of]
    if unlisted:
        others = [name for name in id_of if name not in category_of.values()]
        if not allow_unlisted or not category_of or others:
            raise DataError(
                f"classes: {file} has no category {unlisted[0]!r}."
                f"{did_you_mean(unlisted[0], others)} It has {some_of(id_of, 20)}"
            )
        logger.warning(
            "%s lists no category %s: what is predicted of it counts for nothing",
            file,
            some_of(map(repr, unlisted), _SHOWN_NAMES),
        )
    chosen: dict[str, Id | None] = dict.fromkeys(classes)
    for name, category in category_of.items():
        chosen[name] = id_of[category]
    return chosen


def _match_names(classes: Sequence[str], names: Iterable[str], file: Path) -> dict[str, str]:
    """Class -> the name of its category in the file, of the classes that have one."""
    exact = {name: name for name in classes if name in names}
    if len(exact) == len(classes):
        return exact
    names_of: dict[str, list[str]] = {}  # without case and blanks -> names of categories
    for name in names:
        names_of.setdefault(_without_case_and_blanks(name), []).append(name)
    keys = Counter(map(_without_case_and_blanks, classes))
    matched = {}
    for name in classes:
        alike = names_of.get(_without_case_and_blanks(name), [])
        if len(alike) == 1 and keys[_without_case_and_blanks(name)] == 1:
            matched[name] = alike[0]
        elif name in exact:
            matched[name] = name
    other = [f"{name!r} is {category!r}" for name, category in matched.items() if name != category]
    if other:
        logger.warning(
            "%s: names of classes are compared without case and blanks: %s",
            file,
            some_of(other, _SHOWN_NAMES),
        )
    return matched
