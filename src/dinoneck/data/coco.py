"""COCO JSON: its lists and entries, each checked and named by its place where it is wrong."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, cast

from dinoneck.errors import DataError, did_you_mean, reason_of
from dinoneck.regular_files import read_regular

_LARGEST_ID = 2**63 - 1
_CHARACTERS = 60


@dataclass(frozen=True)
class CocoImage:
    """One entry of ``images``."""

    id: int
    name: str
    height: int
    width: int

    @classmethod
    def read(cls, entry: Any, where: str) -> CocoImage:
        """Check one entry; ``where`` names it in messages."""
        _require(entry, ("id", "file_name", "width", "height"), where)
        name = entry["file_name"]
        if not isinstance(name, str) or not name.strip() or "\0" in name:
            raise DataError(f"{where} has the file_name {short(name)}; expected the image's path below the folder")
        spellings = (PurePosixPath(name), PureWindowsPath(name))
        if any(path.is_absolute() or path.drive or ".." in path.parts for path in spellings):
            raise DataError(
                f"{where} has the file_name {short(name)}, which leads out of the images' folder; write it relative "
                "to that folder, without '..', and pass images=FOLDER"
            )
        sides = {side: _whole(entry[side], f"{where} has the {side}") for side in ("height", "width")}
        for side, value in sides.items():
            if value < 1:
                raise DataError(f"{where} has the {side} {value}; expected pixels, 1 or more")
        return cls(_whole(entry["id"], f"{where} has the id"), name, **sides)


@dataclass(frozen=True)
class CocoBox:
    """One entry of ``annotations``."""

    id: int
    image: int
    category: int
    bbox: tuple[float, ...]
    crowd: bool

    @classmethod
    def read(cls, entry: Any, where: str) -> CocoBox:
        """Check one entry; ``where`` names it in messages."""
        names = ("id", "image_id", "category_id")
        if isinstance(entry, dict) and "bbox" not in entry and isinstance(entry.get("segmentation"), list):
            entry["bbox"] = _around(entry["segmentation"], where)
        _require(entry, (*names, "bbox"), where)
        own, image, category = (_whole(entry[name], f"{where} has the {name}") for name in names)
        bbox, crowd = entry["bbox"], entry.get("iscrowd", 0)
        if not isinstance(bbox, list) or len(bbox) != 4 or not all(_is_number(value) for value in bbox):
            raise DataError(f"{where} has the bbox {short(bbox)}; expected four numbers: x, y, width, height in px")
        if any(value < 0 for value in bbox[2:]):
            raise DataError(
                f"{where} has the bbox {short(bbox)} with a negative side; expected x, y of the upper left corner, "
                "then width and height"
            )
        if isinstance(crowd, float) or crowd not in (0, 1):
            raise DataError(f"{where} has the iscrowd {short(crowd)}; expected 0 or 1")
        return cls(own, image, category, tuple(_as_float(value) for value in bbox), bool(crowd))


def _around(polygons: Sequence[Any], where: str) -> list[float]:
    """The box around polygons, each a list x, y, x, y, ..."""
    flat: list[list[Any]] = [list(polygon) if isinstance(polygon, list) else [] for polygon in polygons]
    if not flat or any(len(each) < 6 or len(each) % 2 or not all(map(_is_number, each)) for each in flat):
        raise DataError(
            f"{where} has no bbox and the segmentation {short(polygons)}; expected polygons of three points or more, "
            "each [x, y, x, y, ...] in px"
        )
    x, y = (sorted(value for each in flat for value in each[axis::2]) for axis in (0, 1))
    return [x[0], y[0], x[-1] - x[0], y[-1] - y[0]]


def read_coco(file: Path) -> dict[str, list[Any]]:
    """The JSON's three lists."""
    if file == Path():
        raise DataError("the path of the annotations is empty or the current folder; pass a COCO JSON file")
    try:
        raw = read_regular(file)
    except FileNotFoundError:
        raise DataError(f"there is no annotations file {file}; check the path") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{file} cannot be read: {reason_of(error)}; pass a COCO JSON file") from error
    try:
        content = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{file} ({len(raw)} bytes) cannot be read as JSON: {short(error)}; write it again or fetch a complete copy"
        ) from error
    _require(content, ("images", "annotations", "categories"), str(file))
    for name in ("images", "annotations", "categories"):
        if not isinstance(content[name], list):
            raise DataError(f"{file}: {name} is {short(content[name])}; expected a list of entries")
    return cast("dict[str, list[Any]]", content)


def read_categories(
    entries: Sequence[Any], wanted: Sequence[str] | None, file: Path
) -> tuple[tuple[str, ...], tuple[int, ...], dict[int, int | None]]:
    """Names and ids in the order of labels; and category id -> label, None for a class that is not wanted."""
    names: dict[str, int] = {}
    ids: list[int] = []
    for i, entry in enumerate(entries):
        where = f"{file}: categories[{i}]"
        _require(entry, ("id", "name"), where)
        name = entry["name"]
        if not isinstance(name, str) or not name:
            raise DataError(f"{where} has the name {short(name)}; expected a word")
        if name in names:
            raise DataError(f"{where} has the name {short(name)} a second time; give every category its own")
        ids.append(_whole(entry["id"], f"{where} has the id"))
        names[name] = ids[-1]
    if not ids:
        raise DataError(f"{file} lists no categories; add one entry with id and name for each class")
    refuse_repeats(ids, f"{file}: categories: the id")
    if wanted is None:
        chosen = tuple(sorted(names, key=names.__getitem__))
    else:
        chosen = () if isinstance(wanted, str) else tuple(wanted)
        if not chosen or len(set(chosen)) != len(chosen):
            raise DataError(f"classes is {wanted!r}; expected one or more names, each once, such as {tuple(names)[:5]}")
        for name in chosen:
            if name not in names:
                near = did_you_mean(name, names)
                raise DataError(f"{file} has no category {name!r}; it has {', '.join(sorted(names))}.{near}")
    labels: dict[int, int | None] = dict.fromkeys(ids)
    labels.update({names[name]: label for label, name in enumerate(chosen)})
    return chosen, tuple(names[name] for name in chosen), labels


def _require(entry: Any, names: Sequence[str], where: str) -> None:
    if not isinstance(entry, dict):
        raise DataError(f"{where} is {short(entry)}; expected an object with {', '.join(names)}")
    missing = [name for name in names if name not in entry]
    if missing:
        raise DataError(f"{where} lacks {', '.join(missing)}; expected a COCO JSON, with {', '.join(names)}")


def refuse_repeats(values: Sequence[Any], what: str) -> None:
    """Refuse values of which one stands there twice; ``what`` begins the message."""
    for value, count in Counter(values).items():
        if count > 1:
            raise DataError(f"{what} {short(value)} is given {count} times; give every entry its own")


def _whole(value: Any, what: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) > _LARGEST_ID:
        raise DataError(f"{what} {short(value)}; expected a whole number of at most 63 bits")
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _as_float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:  # a whole number beyond the largest double
        return math.inf


def short(value: object) -> str:
    """The value as it stands in a message, in one line of readable length."""
    text = str(value) if isinstance(value, Exception) else ascii(value)
    return text if len(text) <= _CHARACTERS else text[:_CHARACTERS] + " ..."
