"""``dinoneck diff``: what differs between two head files, entry by entry and tensor by tensor."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional

from dinoneck.checkpoint.file import Header, head_files, read_content
from dinoneck.cli.text import Row, show, show_rows
from dinoneck.errors import CheckpointError, ConfigError

_APART = ("tensors", "digest")  # the first is listed tensor by tensor, the second differs whenever anything does
_LONGEST = 120
_NOTHING = object()

Content = tuple[Header, dict[str, bytearray | memoryview]]


def diff(first: Annotated[Path, Positional], second: Annotated[Path, Positional], values: bool = False) -> Any:
    """Compare two head files, or two folders of them; exit 1 if anything differs.

    The checksums are compared first, so a damaged file is refused.

    Example: dinoneck diff old.safetensors new.safetensors --values

    Args:
        first: a head file, or a folder of them or of an ensemble.
        second: another one.
        values: show how far apart differing tensors are.
    """
    for path in (first, second):
        if not path.exists():
            raise CheckpointError(f"there is no head file {path}, nor a folder of that name; check the name")
    if first.is_dir() != second.is_dir():
        raise ConfigError(
            f"{first} and {second} are a file and a folder; compare two head files, such as one in the folder "
            "('dinoneck inspect FOLDER' lists them), or two folders"
        )
    if first.is_dir():
        rows = show_rows(_heads(first, second))
        same = all(row["state"] == "equal" for row in rows)
        return {"ok": same, "same": same, "heads": rows}
    entries, tensors = _compared(first, second, values)
    for entry in entries:
        show(f"header   {entry['place']}: {_shown(entry, 'first')} -> {_shown(entry, 'second')}")
    show_rows(tensors)
    unlike = sum(row["state"] != "equal" for row in tensors)
    same = not entries and not unlike
    print("the same content" if same else f"{len(entries)} entries and {unlike} of {len(tensors)} tensors differ")
    return {"ok": same, "same": same, "entries": entries, "tensors": tensors}


def _heads(first: Path, second: Path) -> Iterator[Row]:
    """One row per name of a head: the numbers of entries and tensors that differ."""
    one, other = ({file.name: file for file in head_files(path)} for path in (first, second))
    for name in sorted({*one, *other}):
        if name not in one or name not in other:
            yield {"state": _only_in(name in one), "file": name}
            continue
        entries, tensors = _compared(one[name], other[name], False)
        unlike = sum(row["state"] != "equal" for row in tensors)
        yield {
            "state": "differs" if entries or unlike else "equal",
            "file": name,
            "entries": len(entries),
            "tensors": unlike,
        }


def _only_in(first: bool) -> str:
    return f"only in the {'first' if first else 'second'}"


def _compared(first: Path, second: Path, values: bool) -> tuple[list[Row], list[Row]]:
    """The entries that differ, and all tensors."""
    one, other = read_content(first), read_content(second)
    metas = [{key: value for key, value in content[0].meta.items() if key not in _APART} for content in (one, other)]
    return list(_entries(metas[0], metas[1])), list(_tensors(one, other, values))


def _entries(one: Any, other: Any, place: str = "") -> Iterator[Row]:
    """One row per entry of the metadata that differs; a missing entry has no value."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in sorted({*one, *other}):
            yield from _entries(one.get(key, _NOTHING), other.get(key, _NOTHING), f"{place}.{key}" if place else key)
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for index, pair in enumerate(zip(one, other, strict=True)):
            yield from _entries(*pair, f"{place}[{index}]")
    elif _NOTHING in (one, other) or _text(one) != _text(other):
        sides = {"first": one, "second": other}
        yield {"place": place, **{side: value for side, value in sides.items() if value is not _NOTHING}}


def _tensors(one: Content, other: Content, values: bool) -> Iterator[Row]:
    """One row per tensor."""
    listed = [{entry.name: entry for entry in content[0].tensors} for content in (one, other)]
    for name in sorted({*listed[0], *listed[1]}):
        pair = listed[0].get(name), listed[1].get(name)
        kinds = [None if entry is None else f"{entry.dtype} {list(entry.shape)}" for entry in pair]
        row: Row = {"state": "differs", "name": name, "first": kinds[0], "second": kinds[1]}
        if None in kinds:
            row["state"] = _only_in(kinds[0] is not None)
        elif kinds[0] == kinds[1] and one[1][name] == other[1][name]:
            row["state"] = "equal"
        elif kinds[0] == kinds[1] and values and pair[0] is not None:
            row["gap"] = _gap(pair[0].dtype, one[1][name], other[1][name])
        yield row


def _gap(dtype: str, one: bytearray | memoryview, other: bytearray | memoryview) -> float:
    """The largest absolute difference of two tensors' values."""
    import torch

    from dinoneck.checkpoint.tensors import TORCH_DTYPES

    pair = [torch.frombuffer(buffer, dtype=TORCH_DTYPES[dtype]).double() for buffer in (one, other)]
    return float((pair[0] - pair[1]).abs().max())


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


def _shown(entry: Row, side: str) -> str:
    text = _text(entry[side]) if side in entry else "nothing"
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
