"""COCO JSON, read by msgspec into typed entries; YOLO and VOC become the same ones. No torch is imported.

One fact is written in several ways. msgspec's lax mode reads ``"96"`` and 96.0 as 96, and true, 1 and
``"1"`` as a flag. Ids are whole numbers where all of them spell one, else texts.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic

import msgspec

from dinoneck.atomic import read_regular
from dinoneck.data.cells import check_unique, composed
from dinoneck.data.coco_checks import check_entries, without_namesakes
from dinoneck.data.coco_entries import (
    ClassName,
    Coco,
    CocoCategory,
    Entry,
    Id,
)
from dinoneck.errors import DataError
from dinoneck.text import did_you_mean, reason_of, shorten, some_of

_WHOLE = re.compile(r"(0|-?[1-9][0-9]{0,17})(\.0+)?")


@dataclass
class Listed(Generic[Entry]):
    """Images that a file lists, with their annotations.

    Attributes:
        file: what messages name.
        coco: images, annotations and categories.
        paths: the files of the images, in the same order.
        places: where each annotation stands, for messages; empty: in ``annotations`` of ``file``.
        left_out: what was not read, in words -> how often.
        part: of the file that the images are; None = it states no parts.
    """

    file: Path
    coco: Coco[Entry]
    paths: Sequence[Path]
    places: Sequence[str] = ()
    left_out: Mapping[str, int] = field(default_factory=dict)
    part: str | None = None

    def place(self, i: int) -> str:
        """Return what messages call an annotation."""
        if self.places:
            return self.places[i]
        name = f"{self.file}: annotations[{i}]"
        entry_id = getattr(self.coco.annotations[i], "id", None)
        return name if entry_id is None else f"{name} (id {entry_id})"


def read_coco(file: Path, annotation_type: type[Entry]) -> Coco[Entry]:
    """Read a COCO JSON and check that its entries fit together.

    Args:
        file: the JSON.
        annotation_type: of its annotations, :class:`CocoBox` or :class:`CocoSegments`.

    Raises:
        DataError: if it is no COCO JSON, an id or a name occurs twice, an annotation refers to what
            the file does not list, or the file holds predictions; it names the entry.
    """
    try:
        content = read_regular(file).removeprefix(codecs.BOM_UTF8)
    except OSError as error:
        raise DataError(f"{file} cannot be read: {reason_of(error)}") from error
    try:
        coco: Coco[Entry] = msgspec.json.decode(
            content,
            type=Coco[annotation_type],  # type: ignore[valid-type]
            strict=False,
            dec_hook=_read_name,
        )
    except msgspec.ValidationError as error:
        raise DataError(f"{file}: {_explain(error, content)}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DataError(
            f"{file} is no JSON: {reason_of(error)}; expected a COCO file in UTF-8, without NaN and "
            "Infinity"
        ) from error
    annotations: list[Any] = coco.annotations
    segments = [
        entry for owner in annotations for entry in getattr(owner, "segments_info", [owner])
    ]
    _make_ids_alike([(coco.images, "id"), (annotations, "image_id")])
    _make_ids_alike([(coco.categories, "id"), (segments, "category_id")])
    coco.categories = without_namesakes(coco)
    check_entries(coco, file)
    return coco


def _read_name(kind: type, value: Any) -> Any:
    """The name of a category; msgspec asks for it, as the type is none of its own."""
    if isinstance(value, str | int) and composed(str(value)):
        return ClassName(composed(str(value)))
    raise ValueError(f"expected the name of a class, got {shorten(value)}")


def _explain(error: msgspec.ValidationError, content: bytes) -> str:
    """The place, the value and what was expected."""
    message, _, place = str(error).partition(" - at `$")
    try:
        value = json.loads(content)
        for name, index in re.findall(r"\.(\w+)|\[(\d+)\]", place):
            value = value[name] if name else value[int(index)]
    except (ValueError, LookupError, TypeError, RecursionError):
        value = None
    path = place.strip(".`") or "the file"
    return f"{path} is {shorten(value)}; {message[:1].lower()}{message[1:]}, as in COCO JSON"


def _make_ids_alike(uses: Sequence[tuple[Iterable[Any], str]]) -> None:
    """Make ids whole numbers where all of them spell one, as 1 and ``"1"`` do, else texts."""
    values: set[Id] = set()
    for entries, key in uses:
        values.update(getattr(entry, key) for entry in entries)
    if all(isinstance(value, int) for value in values):
        return
    numbers = {value: _WHOLE.fullmatch(str(value).strip()) for value in values}
    are_numbers = all(numbers.values())
    for entries, key in uses:
        for entry in entries:
            value = getattr(entry, key)
            number = numbers[value]
            setattr(entry, key, int(number[1]) if are_numbers and number else str(value))


def choose_classes(
    classes: Sequence[str] | None,
    categories: Sequence[CocoCategory],
    file: Path,
    *,
    allow_unlisted: bool = False,
) -> dict[str, Id | None]:
    """Return the names of the classes and their category ids, in the order of the labels.

    Args:
        classes: names in the order of their labels; None = all, by ascending category id.
        categories: those of the file.
        file: what messages name.
        allow_unlisted: whether the file may lack some of the classes, which have the id None.

    Raises:
        DataError: if ``classes`` is no list of names, names one twice, or one that the file does not
            have; with ``allow_unlisted`` if it has none of them.
    """
    # ids are all numbers, or all texts
    ascending = sorted(categories, key=lambda entry: entry.id)
    id_of = {str(entry.name): entry.id for entry in ascending}
    if classes is None:
        return dict(id_of)
    if isinstance(classes, str) or not len(classes):
        raise DataError(
            f"classes is {classes!r}; expected a list of one or more of {some_of(id_of, 20)}"
        )
    names = [composed(name) for name in classes]
    check_unique(names, "classes: the name", "name each once")
    unlisted = [name for name in names if name not in id_of]
    if unlisted and (not allow_unlisted or len(unlisted) == len(names)):
        raise DataError(
            f"classes: {file} has no category {unlisted[0]!r}; it has {some_of(id_of, 20)}."
            f"{did_you_mean(unlisted[0], list(id_of))}"
        )
    return {name: id_of.get(name) for name in names}
