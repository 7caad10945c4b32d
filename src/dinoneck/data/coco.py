"""Reads COCO JSON: text -> plain values -> repaired -> typed -> checked.

:func:`read_coco` is the whole way, one line per step. Each step has a module: ``coco_text`` decodes
the file and names files of other kinds, ``coco_repairs`` rewrites values, ``coco_entries`` holds the
types, ``coco_checks`` compares entries with each other, and ``coco_hints`` with what they state a
second time. ``class_names`` chooses among the categories. What boxes, masks and areas say of each
other is checked where objects are made of them, in :class:`dinoneck.data.BoxImages` and
:class:`dinoneck.data.PanopticImages`.

Annotation tools write one fact in several ways: ids as text, flags as true and false, whole numbers
with a point. A value that can be read in exactly one way is repaired and counted. Any other is an
error that names the value and its entry.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec

from dinoneck.data.coco_checks import check, warn_of_federated, warn_of_parts
from dinoneck.data.coco_entries import EXPECTED, Coco, Entry, Repairs
from dinoneck.data.coco_hints import check_hints
from dinoneck.data.coco_repairs import count_repeated_ids, drop_unused_namesakes, repair
from dinoneck.data.coco_text import check_form, check_kind, parse
from dinoneck.errors import DataError
from dinoneck.text import shorten


def read_coco(file: Path, annotation_type: type[Entry], repairs: Repairs) -> Coco[Entry]:
    """Read and check a COCO JSON: types, ids and references.

    Args:
        file: the JSON.
        annotation_type: of its annotations, :class:`dinoneck.data.coco_entries.CocoBox` or
            :class:`dinoneck.data.coco_entries.CocoSegments`.
        repairs: is filled with what was repaired.

    Raises:
        DataError: naming the file, the entry, the value and what was expected.
    """
    content = parse(file)
    check_form(content, file)
    check_kind(content, annotation_type, file)
    repair(content, file, repairs)
    warn_of_federated(content, file)
    warn_of_parts(content, file)
    coco = _typed(content, annotation_type, file)
    drop_unused_namesakes(coco, repairs)
    count_repeated_ids(coco, repairs)
    check(coco, file)
    check_hints(content, coco, file)
    return coco


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
        expected = EXPECTED.get(missing[1], "")
        return f"{place or 'the file'}{owner} lacks {missing[1]}; expected {expected}"
    expected = EXPECTED.get(name, message)
    if name == "id" and "segments_info" in steps:
        expected = EXPECTED["segment id"]
    return f"{place}{owner} is {shorten(value)}; expected {expected}"
