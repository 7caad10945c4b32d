"""Lists of class names that programs write beside masks, compared with the names that the masks are read by.

labelme, CVAT, Roboflow, nnU-Net and GDAL each write one. A list in another order than the names says
that the names of the maps are exchanged, which no pixel tells. Neither pandas nor torch is imported.
"""

from __future__ import annotations

import csv
import json
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dinoneck.atomic import open_regular
from dinoneck.data import xml_notes

logger = logging.getLogger(__name__)

_LARGEST = 1 << 20  # bytes of a list; that of 1000 classes has some ten thousand
_FOLDERS_ABOVE = 2  # masks/, and a part such as train/
_MOST_FOLDERS = 5  # of masks that are looked at
# labelme's name for pixels without a class, which has no number of its own
_NO_CLASS = "ignore"


@dataclass(frozen=True)
class ClassList:
    """The classes that a file lists.

    Attributes:
        file: what lists them.
        value_of: name in its plain form -> number.
        names: as they are written, by their numbers.
        has_numbers: whether the file states the numbers; else they count lines, and masks may have
            a class more in front, as for the background.
    """

    file: Path
    value_of: Mapping[str, int]
    names: tuple[str, ...]
    has_numbers: bool


def warn_of_class_lists(
    masks: Sequence[Any], names: Sequence[str], class_values: Sequence[int] | None
) -> None:
    """Name a list of classes beside masks that contradicts the names of their classes, in one line each.

    Args:
        masks: files, or arrays, which have no list.
        names: of the classes.
        class_values: the number of each class in the masks; None = 0, 1, ...
    """
    values = range(len(names)) if class_values is None else class_values
    value_of = dict(zip(names, values, strict=True))
    mask_files = [Path(mask) for mask in masks if isinstance(mask, str | os.PathLike)]
    for class_list in _lists_beside(mask_files):
        difference = _difference(value_of, class_list)
        if difference:
            logger.warning(
                "%s numbers the classes otherwise than they are named: %s there (%s). If the masks "
                "were made by it, name the classes in its order, or their numbers (--class-values)",
                class_list.file,
                difference,
                ", ".join(class_list.names),
            )


def _difference(value_of: Mapping[str, int], class_list: ClassList) -> str:
    """The first class of which a list says another number, or another place among the others; "" = no class."""
    listed_value_of = {}
    for name in value_of:
        if _plain(name) in class_list.value_of:
            listed_value_of[name] = class_list.value_of[_plain(name)]
    as_read = sorted(listed_value_of, key=value_of.__getitem__)
    as_listed = sorted(listed_value_of, key=listed_value_of.__getitem__)
    for name, listed_name in zip(as_read, as_listed, strict=True):
        value = value_of[name]
        if class_list.has_numbers and listed_value_of[name] != value:
            return f"'{name}' is read as {value}, and is {listed_value_of[name]}"
        if not class_list.has_numbers and listed_name != name:
            return f"'{name}' is read as {value}, before '{listed_name}', and stands after it"
    return ""


def _plain(name: str) -> str:
    """A name without what programs write in different ways: ``_background_`` -> background."""
    return " ".join(re.split(r"[_\-\s]+", name.casefold())).strip()


# Lists
# ----------------------------------------------------------------------------------------------------


def _lists_beside(masks: Sequence[Path]) -> Iterator[ClassList]:
    """Yield the lists in the folders of masks and those above, and that of the first mask itself."""
    if not masks:
        return
    note = Path(f"{masks[0]}.aux.xml")
    list_of_note = _read(note, _of_gdal, has_numbers=True)
    if list_of_note is not None:
        yield list_of_note
    mask_folders = dict.fromkeys(mask.parent for mask in masks)  # each once, in their order
    folders: dict[Path, None] = {}
    for folder in list(mask_folders)[:_MOST_FOLDERS]:
        folders |= dict.fromkeys([folder, *list(folder.parents)[:_FOLDERS_ABOVE]])
    for folder in folders:
        for kind in _KINDS:
            class_list = _read(folder / kind.name, kind.read, has_numbers=kind.has_numbers)
            if class_list is not None:
                yield class_list


def _read(
    file: Path, read: Callable[[str], Mapping[int, str]], *, has_numbers: bool
) -> ClassList | None:
    """The classes of a file; None if there is none, or it is no such list."""
    if not file.is_file():
        return None
    try:
        with open_regular(file) as opened:
            content = opened.read(_LARGEST + 1)
        name_of = read(content.decode("utf-8-sig"))
    except (OSError, ValueError, TypeError, AttributeError, LookupError, RecursionError):
        return None  # a file of another program that happens to be called so
    name_of = {value: name.strip() for value, name in name_of.items() if name.strip()}
    value_of = {_plain(name): value for value, name in name_of.items()}
    is_too_long = len(content) > _LARGEST
    has_repeated_names = len(value_of) < len(name_of)
    if is_too_long or has_repeated_names or len(name_of) < 2:
        return None
    names = tuple(name_of[value] for value in sorted(name_of))
    return ClassList(file, value_of, names, has_numbers)


def _of_lines(text: str) -> Mapping[int, str]:
    """One name per line, as labelme and YOLO have it."""
    names = [line.strip() for line in text.splitlines() if line.strip()]
    return dict(enumerate(name for name in names if _plain(name) != _NO_CLASS))


def _of_cvat(text: str) -> Mapping[int, str]:
    """Lines ``name:red,green,blue:parts:actions``."""
    lines = [line.strip() for line in text.splitlines()]
    names = [line.split(":")[0] for line in lines if ":" in line and not line.startswith("#")]
    return dict(enumerate(names))


def _of_roboflow(text: str) -> Mapping[int, str]:
    """Rows ``number, name`` below a header."""
    rows = list(csv.reader(text.splitlines()))[1:]
    return {int(row[0]): row[1] for row in rows if row}


def _of_nnunet(text: str) -> Mapping[int, str]:
    """The object ``labels``: number -> name, or name -> number; regions have several numbers."""
    labels = json.loads(text)["labels"]
    names = {}
    for key, value in labels.items():
        if isinstance(value, str):
            names[int(key)] = value
        elif isinstance(value, int):
            names[value] = key
    return names


def _of_gdal(text: str) -> Mapping[int, str]:
    """The elements ``Category`` in order; those without a name say nothing."""
    root = xml_notes.parse(text.encode())
    if root is None:
        return {}
    for categories in root.named("categorynames"):
        texts = [category.text.strip() for category in categories.named("category")]
        return {value: name for value, name in enumerate(texts) if name}
    return {}


@dataclass(frozen=True)
class _Kind:
    """A kind of list of classes.

    Attributes:
        name: of the file.
        read: its text -> number -> name of a class.
        has_numbers: whether it states the numbers, as :class:`ClassList` has it.
    """

    name: str
    read: Callable[[str], Mapping[int, str]]
    has_numbers: bool


_KINDS = (
    _Kind("class_names.txt", _of_lines, has_numbers=False),
    _Kind("classes.txt", _of_lines, has_numbers=False),
    _Kind("labels.txt", _of_lines, has_numbers=False),
    _Kind("labelmap.txt", _of_cvat, has_numbers=False),
    _Kind("_classes.csv", _of_roboflow, has_numbers=True),
    _Kind("dataset.json", _of_nnunet, has_numbers=True),
)
