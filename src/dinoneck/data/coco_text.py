"""From the text of a COCO JSON to plain values; files of other kinds are named as what they are."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from dinoneck.atomic import read_regular
from dinoneck.data.coco_entries import CocoBox, CocoCategory, CocoImage, CocoSegment, CocoSegments
from dinoneck.data.coco_repairs import entries_of
from dinoneck.errors import DataError
from dinoneck.text import reason_of, shorten

_LISTS = ("images", "annotations", "categories")
_ENTRY_TYPES = (CocoImage, CocoBox, CocoSegment, CocoSegments, CocoCategory)
# that are read of an entry or of its run lengths
_READ_KEYS = {"coco_url", "size", "counts"}.union(
    *(entry_type.__struct_fields__ for entry_type in _ENTRY_TYPES)
)
_FORMS = {  # keys of the files of other tools -> what such a file is
    ("shapes", "imagePath"): "a labelme file of one image; convert the folder to COCO first",
    ("_via_img_metadata",): "a project of VIA; export it as COCO",
    ("_via_settings",): "a project of VIA; export it as COCO",
    ("dataset", "samples"): "an export of FiftyOne or Segments.ai; export it as COCO",
    ("features", "type"): "GeoJSON; convert it to COCO first",
    ("items", "categories"): "Datumaro's own JSON; export COCO",
    ("objects", "size"): "a Supervisely file of one image; export COCO",
    ("classes", "labels"): "FiftyOne's own JSON; export COCO (COCODetectionDataset)",
    ("samples",): "FiftyOne's own JSON; export COCO (COCODetectionDataset)",
    ("item", "annotations"): "a Darwin file of V7; export COCO",
    ("metadata", "instances"): "a SuperAnnotate file of one image; export COCO",
}
_ENTRY_FORMS = {  # the same of files that are lists, by the keys of their first entry
    ("image_id", "score"): "a list of results; pass the COCO file with the images and their truth",
    ("image_id", "bbox"): (
        "a list of annotations; write it as annotations next to images and categories"
    ),
    ("file_name", "annotations"): "detectron2's own list; write it as COCO",
    ("image", "annotations"): "a CreateML file; export COCO",
    ("data", "annotations"): "Label Studio's own JSON; export COCO",
    ("data_row",): "Labelbox's own JSON; export COCO",
    ("image", "annotation_id"): "Label Studio's JSON-MIN; export COCO",
    ("name", "labels"): "a file of BDD100K; convert it to COCO first",
}
_VIA_KEYS = ("filename", "regions")  # of every entry of VIA's own JSON
# how files of other formats begin, and what to do with them
_BEGINNINGS = {
    b"\x1f\x8b": "is compressed (gzip); unpack it with gunzip",
    b"PK\x03\x04": "is a ZIP archive; unpack it, and pass the JSON that it holds",
    b"BZh": "is compressed (bzip2); unpack it with bunzip2",
    b"\xfd7zXZ": "is compressed (xz); unpack it with unxz",
    b"\x28\xb5\x2f\xfd": "is compressed (Zstandard); unpack it with unzstd",
    b"<": "is XML or HTML; expected a COCO JSON. supervision converts Pascal VOC "
    "(DetectionDataset.from_pascal_voc, as_coco)",
}
_FOLDERS_OF_LABELS = {".txt": "YOLO's boxes", ".xml": "Pascal VOC's boxes"}
_OTHER_FORMATS = {
    ".csv": "a table",
    ".tsv": "a table",
    ".txt": "text, as YOLO's boxes are",
    ".yaml": "YAML, as YOLO's list of classes is",
    ".yml": "YAML, as YOLO's list of classes is",
}
_BOXES_PAGE = "docs/how-to/boxes.md"
_LOOKED_AT = 100  # bytes at the start of a file, of which a few may be blanks


class _Entry(dict[str, Any]):
    """An entry of the file that remembers the keys that it has twice.

    Attributes:
        repeated: keys with their first and their second value, where these differ.
    """

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__()
        self.repeated: list[tuple[str, Any, Any]] = []
        for key, value in pairs:
            if key in self and self[key] != value:
                self.repeated.append((key, self[key], value))
            self[key] = value


def parse(file: Path) -> Any:
    """Return the plain values of a JSON file.

    Raises:
        DataError: if the file cannot be read, is of another format, or has a key twice with two
            values in an entry.
    """
    if file.is_dir():
        _refuse_folder(file)
    try:
        raw = read_regular(file)
    except OSError as error:
        raise DataError(
            f"{file} cannot be read: {reason_of(error)}; pass a COCO JSON file"
        ) from error
    _check_beginning(raw, file)
    try:
        content = _decode(raw)
    except UnicodeDecodeError as error:
        raise DataError(
            f"{file} is no UTF-8 text ({error}); pass a COCO JSON file, saved as UTF-8"
        ) from error
    except (ValueError, RecursionError) as error:
        if _are_json_lines(raw):
            raise DataError(
                f"{file} holds JSON lines, one value in each line; expected a COCO JSON, one value "
                "with images, annotations and categories: export COCO"
            ) from error
        if file.suffix.lower() in _OTHER_FORMATS:
            raise DataError(
                f"{file} is {_OTHER_FORMATS[file.suffix.lower()]}, not JSON; convert it to "
                f"COCO JSON ({_BOXES_PAGE})"
            ) from error
        raise DataError(
            f"{file} cannot be read as JSON: {reason_of(error)}; pass a complete COCO JSON file"
        ) from error
    if isinstance(content, dict):
        _check_repeated_keys(raw, content, file)
    return content


def _refuse_folder(folder: Path) -> None:
    """Raise a DataError for a folder that holds files of labels."""
    for path in sorted(folder.iterdir()):
        suffix = path.suffix.lower()
        if suffix == ".json":
            raise DataError(f"{folder} is a folder; pass a JSON file in it, such as {path}")
        if suffix in _FOLDERS_OF_LABELS:
            raise DataError(
                f"{folder} is a folder of {suffix} files, such as {_FOLDERS_OF_LABELS[suffix]}; convert "
                f"them to COCO JSON ({_BOXES_PAGE})"
            )


def _check_beginning(raw: bytes, file: Path) -> None:
    """Raise a DataError for a file that begins as one of another format does."""
    if not raw or raw.isspace():
        raise DataError(f"{file} is empty; pass a complete COCO JSON file")
    start = raw[:_LOOKED_AT].lstrip()
    for beginning, form in _BEGINNINGS.items():
        if start.startswith(beginning):
            raise DataError(f"{file} {form}")


def _are_json_lines(raw: bytes) -> bool:
    """Whether the first two lines are JSON, each by itself."""
    lines = raw.split(b"\n", 2)[:2]
    if len(lines) < 2:
        return False
    try:
        return all(isinstance(json.loads(line), dict | list) for line in lines)
    except (ValueError, RecursionError):
        return False


def _decode(raw: bytes) -> Any:
    """Decode JSON; NaN, Infinity and other encodings than UTF-8 are read by the slower decoder."""
    try:
        return msgspec.json.decode(raw)
    except (ValueError, RecursionError):
        return json.loads(raw)


def _check_repeated_keys(raw: bytes, content: dict[str, Any], file: Path) -> None:
    """Raise a DataError for a key that is read and has two values: decoders forget the first one."""
    # the text has as many keys as the values unless one was forgotten
    if raw.count(b'":') == _num_keys(content):
        return
    entries: _Entry = json.loads(raw, object_pairs_hook=_Entry)
    for key, _, _ in entries.repeated:
        if key in _LISTS:
            raise DataError(f"{file} holds the list {key} more than once; merge them into one list")
    for entry in _read_entries(entries):
        for key, first, second in entry.repeated:
            if key in _READ_KEYS:
                owner = f" (id {entry['id']!r})" if "id" in entry and key != "id" else ""
                raise DataError(
                    f"{file}: an entry{owner} has {key} twice, {shorten(first)} and "
                    f"{shorten(second)}; keep the right one"
                )


def _read_entries(content: dict[str, Any]) -> Iterator[Any]:
    """Yield the dicts of a file whose values are read; others may hold what they like."""
    for name in _LISTS:
        for entry in entries_of(content.get(name)):
            yield entry
            yield from entries_of(entry.get("segments_info"))
            if isinstance(entry.get("segmentation"), dict):
                yield entry["segmentation"]


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


def check_form(content: Any, file: Path) -> None:
    """Raise a DataError for what is not a dict of images, annotations and categories, and say what it seems to be."""
    expected = "expected a COCO JSON: images, annotations and categories"
    if isinstance(content, list):
        first = content[0] if content and isinstance(content[0], dict) else {}
        for keys, form in _ENTRY_FORMS.items():
            if all(key in first for key in keys):
                raise DataError(f"{file} is {form}")
        raise DataError(f"{file} holds a list of {len(content)} entries; {expected}")
    if not isinstance(content, dict):
        raise DataError(f"{file} holds {shorten(content)}; {expected}")
    images = entries_of(content.get("images"))
    nested = [image for image in images if image.get("annotations")]
    if nested and not content.get("annotations"):
        raise DataError(
            f"{file} has the annotations of {len(nested)} of {len(images)} images inside of their "
            "entries; write them as one list, annotations, each with its image_id"
        )
    missing = [name for name in _LISTS if name not in content]
    if not missing:
        return
    for keys, form in _FORMS.items():
        if all(key in content for key in keys):
            raise DataError(f"{file} is {form}")
    first_value = next(iter(content.values()), None)
    if isinstance(first_value, dict) and all(key in first_value for key in _VIA_KEYS):
        raise DataError(f"{file} holds annotations of VIA in its own form; export them as COCO")
    raise DataError(f"{file} lacks {', '.join(missing)}; {expected}")


def check_kind(content: dict[str, Any], annotation_type: type[Any], file: Path) -> None:
    """Raise a DataError for panoptic segments where boxes are expected, and the other way round."""
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
