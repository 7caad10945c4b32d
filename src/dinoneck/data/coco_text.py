"""From the text of a COCO JSON to plain values; files of other kinds are named as what they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec

from dinoneck.atomic import read_regular
from dinoneck.data.coco_entries import CROWD_KEY, CocoBox, CocoSegments
from dinoneck.data.coco_repairs import entries_of
from dinoneck.errors import DataError, reason_of, shorten

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


def parse(file: Path) -> Any:
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
        total += sum(map(len, entries_of(values)))
    for entry in entries_of(content.get("annotations")):
        for key in ("segmentation", "attributes"):
            value = entry.get(key)
            if isinstance(value, dict):
                total += len(value)
        if "segments_info" in entry:
            total += sum(map(len, entries_of(entry["segments_info"])))
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


def check_form(content: Any, file: Path) -> None:
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


def check_kind(content: dict[str, Any], annotation_type: type[Any], file: Path) -> None:
    """Refuse panoptic segments where boxes are expected, and the other way round."""
    annotations = entries_of(content["annotations"])
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
