"""Plain values of a COCO JSON, written as COCO does: a value with exactly one reading is repaired and counted."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from dinoneck.data.coco_entries import (
    CROWD_KEY,
    Coco,
    CocoBox,
    CocoSegments,
    Entries,
    Id,
    Repairs,
)
from dinoneck.data.names import composed
from dinoneck.errors import DataError

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
REPEATED = "entries that repeat an earlier one, dropped"
REPEATED_IDS = "annotations with the id of an earlier one"
NAMESAKES = "categories without objects that have the name of another one, dropped"


def repair(content: dict[str, Any], file: Path, repairs: Repairs) -> None:
    """Write values that can be read in one way as COCO does, in place; others stay as they are.

    Raises:
        DataError: if ``image_id`` can be read in two ways.
    """
    images = entries_of(content["images"])
    annotations = entries_of(content["annotations"])
    categories = entries_of(content["categories"])
    segments: Entries = []
    for entry in annotations:
        if "segments_info" in entry:
            segments += entries_of(entry["segments_info"])

    _repair_names_as_ids(images, annotations, file, repairs)
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
    _count_missing_ids(annotations, repairs)
    _repair_boxes(annotations, repairs)
    _repair_names(categories, repairs)
    if images:
        _drop_repeated(content, "images", "id", ("file_name", "width", "height"), repairs)
    if categories:
        _drop_repeated(content, "categories", "id", ("name", "isthing"), repairs)
    if segments:
        _drop_repeated(content, "annotations", "image_id", ("file_name", "segments_info"), repairs)


def entries_of(values: Any) -> Entries:
    """The dicts of a list; what is none is refused when it gets its type."""
    if not isinstance(values, list):
        return []
    return [value for value in values if isinstance(value, dict)]


def _repair_ids(uses: Sequence[tuple[Entries, str]], repairs: Repairs) -> None:
    """Make ids comparable: whole numbers where all spell one, else texts."""
    values: list[Any] = []
    for entries, key in uses:
        values += [entry.get(key) for entry in entries]
    if all(is_integer(value) for value in values):
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


def _repair_names_as_ids(
    images: Entries, annotations: Entries, file: Path, repairs: Repairs
) -> None:
    """Write ids of images where annotations name their files, with or without the suffix.

    Raises:
        DataError: if the texts are ids of images, and the names of others.
    """
    texts = {entry["image_id"] for entry in annotations if isinstance(entry.get("image_id"), str)}
    if not texts or texts <= {image.get("id") for image in images if _has_text_id(image)}:
        return
    by_name = _images_by_name(texts, images)
    by_id = _images_by_id(texts, images)
    if by_name and by_id:
        for text in sorted(texts):
            if by_name[text] is not by_id[text]:
                raise DataError(
                    f"{file}: the image_id {text!r} is the id of the image "
                    f"{by_id[text].get('file_name')!r} and the name of "
                    f"{by_name[text].get('file_name')!r}; write the id as a number, as images do"
                )
    if not by_name or by_id:
        return
    for entry in annotations:
        if isinstance(entry.get("image_id"), str):
            entry["image_id"] = by_name[entry["image_id"]].get("id")
            repairs[NAMES_AS_IDS] += 1


def _has_text_id(image: dict[str, Any]) -> bool:
    return isinstance(image.get("id"), str)


def _images_by_name(texts: set[str], images: Entries) -> dict[str, dict[str, Any]]:
    """The images whose names are written in one way and hold all of the texts; empty if there is none."""
    names = [image["file_name"] for image in images if isinstance(image.get("file_name"), str)]
    if len(names) < len(images):
        return {}
    last_names = [PurePosixPath(name).name for name in names]
    stems = [PurePosixPath(name).stem for name in names]
    for keys in (names, last_names, stems):
        if len(set(keys)) == len(keys) and texts <= set(keys):
            return dict(zip(keys, images, strict=True))
    return {}


def _images_by_id(texts: set[str], images: Entries) -> dict[str, dict[str, Any]]:
    """Text -> the image with this id, with zeros before it or not; empty if a text is the id of none."""
    image_of = {}
    for image in images:
        number = whole_number(image.get("id"))
        if number is not None:
            image_of[number] = image
    found = {}
    for text in texts:
        digits = (text.lstrip("0") or "0") if _PADDED.fullmatch(text) else text
        number = whole_number(digits)
        if number is None or number not in image_of:
            return {}
        found[text] = image_of[number]
    return found


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
        if number is not None and not is_integer(value):
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


def is_integer(value: Any) -> bool:
    """Whether a value is an integer; True and False, which Python counts as such, are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def whole_number(value: Any) -> int | None:
    """Return the whole number that a value spells exactly; None if it spells none."""
    if is_integer(value):
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
        if key not in image:
            continue
        value = image[key]
        # False equals 0, and is refused when it gets its type
        if value is None or (value == 0 and value is not False):
            del image[key]


def _drop_repeated(
    content: dict[str, Any], name: str, id_key: str, read_keys: Sequence[str], repairs: Repairs
) -> None:
    """Drop entries of a list that say what an earlier one of their id says, as merged files have them.

    Entries of one id that say something else stay, and are rejected later.

    Args:
        content: of the file.
        name: of the list.
        id_key: of the id of an entry.
        read_keys: of what else is read of an entry.
        repairs: where repairs are counted by their kind.
    """
    first_of: dict[Any, dict[str, Any]] = {}
    kept = []
    for entry in content[name]:
        entry_id = entry.get(id_key) if isinstance(entry, dict) else None
        if isinstance(entry_id, int | str):
            first = first_of.setdefault(entry_id, entry)
            if first is not entry and all(first.get(key) == entry.get(key) for key in read_keys):
                repairs[REPEATED] += 1
                continue
        kept.append(entry)
    content[name] = kept


def _repair_flags(entries: Entries, key: str, repairs: Repairs) -> None:
    """Make flags 0 or 1; null is as if the flag were not there."""
    for entry in entries:
        value = entry.get(key, 0)
        if is_integer(value):
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


def _count_missing_ids(annotations: Entries, repairs: Repairs) -> None:
    """Count annotations of objects without an id; nothing refers to these ids."""
    for entry in annotations:
        if entry.get("id") is None and "segments_info" not in entry:
            repairs[NO_IDS] += 1


def _repair_boxes(annotations: Entries, repairs: Repairs) -> None:
    """Make numbers of texts in boxes, and leave empty boxes out."""
    for entry in annotations:
        bbox = entry.get("bbox")
        if not isinstance(bbox, list):
            continue
        if not bbox:
            del entry["bbox"]
        elif str in map(type, bbox):
            entry["bbox"] = [_number_of(value, repairs) for value in bbox]


def _number_of(value: Any, repairs: Repairs) -> Any:
    number = number_of_text(value) if isinstance(value, str) else None
    if number is None:
        return value
    repairs[TEXT_NUMBERS] += 1
    return number


def number_of_text(text: str) -> float | None:
    """Return the number that a text spells in one way; None if it spells none."""
    return float(text) if _NUMBER.fullmatch(text) else None


def _repair_file_names(images: Entries, repairs: Repairs) -> None:
    """Take the last folder and the name of COCO's address where there is no file_name, as in LVIS."""
    for image in images:
        address = image.get("coco_url")
        if image.get("file_name") is None and isinstance(address, str) and "/" in address:
            image["file_name"] = "/".join(address.split("/")[-2:])
            repairs[ADDRESSES] += 1


def _repair_names(categories: Entries, repairs: Repairs) -> None:
    """Write numbers as text, and compose names (NFC) as those of tables and folders are."""
    for entry in categories:
        name = entry.get("name")
        if is_integer(name):
            entry["name"] = str(name)
            repairs[NUMBER_NAMES] += 1
        elif isinstance(name, str):
            entry["name"] = composed(name)


def drop_unused_namesakes(coco: Coco[Any], repairs: Repairs) -> None:
    """Drop categories that no object has and whose name another one has, as Roboflow's super-categories.

    Of several without an object the last stays: Roboflow lists the super-category first. Of several
    with objects all stay, and are refused.
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


def count_repeated_ids(coco: Coco[Any], repairs: Repairs) -> None:
    """Count annotations with the id of an earlier one; nothing refers to these ids."""
    ids = [entry.id for entry in coco.annotations if isinstance(entry, CocoBox)]
    stated = [annotation_id for annotation_id in ids if annotation_id is not None]
    repeated = len(stated) - len(set(stated))
    if repeated:
        repairs[REPEATED_IDS] += repeated
