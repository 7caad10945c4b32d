"""``dinoneck diff``: what differs between two head files, entry by entry and tensor by tensor."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dinoneck.checkpoint.file import Header, head_files, read_content
from dinoneck.cli.answers import add_json, answer
from dinoneck.errors import ConfigError, printable

HELP = "compare two head files, or two folders of them; exit 1 if anything differs"
EXAMPLE = "dinoneck diff old.safetensors new.safetensors --values"
_APART = ("tensors", "digest")  # the first is listed tensor by tensor, the second differs whenever anything does
_LONGEST = 120
_NOTHING = object()

Content = tuple[Header, dict[str, bytearray | memoryview]]
Rows = list[dict[str, Any]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("first", type=Path, help="a head file, or a folder of them or of an ensemble")
    parser.add_argument("second", type=Path, help="another one")
    parser.add_argument("--values", action="store_true", help="how far apart differing tensors are (imports torch)")
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Print what differs; the digests are checked first, so a damaged file is refused and not compared."""
    folders = [path.is_dir() for path in (options.first, options.second)]
    if any(folders):
        if not all(folders):
            raise ConfigError(
                f"{options.first} and {options.second} are a file and a folder; compare two head files, such as one in "
                "the folder ('dinoneck inspect FOLDER' lists them), or two folders"
            )
        return _folders(options)
    entries, tensors = _compared(options.first, options.second, options.values)
    unlike = [row for row in tensors if row["state"] != "equal"]
    same = not entries and not unlike
    answer(options, same=same, entries=entries, tensors=tensors)
    print("\n".join(printable(line) for line in (*map(_entry_line, entries), *map(_tensor_line, tensors))))
    print("the same content" if same else f"{len(entries)} entries and {len(unlike)} of {len(tensors)} tensors differ")
    return 0 if same else 1


def _folders(options: argparse.Namespace) -> int:
    """Compare heads of the same name; which entries and tensors differ is said for two files."""
    named = [{file.name: file for file in head_files(path)} for path in (options.first, options.second)]
    rows: Rows = []
    for name in sorted({*named[0], *named[1]}):
        pair = [files.get(name) for files in named]
        if pair[0] is None or pair[1] is None:
            rows.append({"file": name, "state": f"only in the {'first' if pair[1] is None else 'second'}"})
            continue
        entries, tensors = _compared(pair[0], pair[1], False)
        apart = sum(row["state"] != "equal" for row in tensors)
        state = "differs" if entries or apart else "equal"
        rows.append({"file": name, "state": state, "entries": len(entries), "tensors": apart})
    unlike = sum(row["state"] != "equal" for row in rows)
    answer(options, same=not unlike, heads=rows)
    for row in rows:
        told = f": {row['entries']} entries and {row['tensors']} tensors" if row["state"] == "differs" else ""
        print(printable(f"{row['state']:<8} {row['file']}{told}"))
    print(f"{unlike} of {len(rows)} heads differ" if unlike else f"the same {len(rows)} heads")
    return 1 if unlike else 0


def _compared(first: Path, second: Path, values: bool) -> tuple[Rows, Rows]:
    """The entries that differ, and all tensors."""
    one, other = read_content(first), read_content(second)
    metas = [{key: value for key, value in content[0].meta.items() if key not in _APART} for content in (one, other)]
    return list(_entries(metas[0], metas[1])), list(_tensors(one, other, values))


def _entries(one: Any, other: Any, place: str = "") -> Iterator[dict[str, Any]]:
    """One row per entry of the metadata that differs; what is missing has no value."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in sorted({*one, *other}):
            yield from _entries(one.get(key, _NOTHING), other.get(key, _NOTHING), f"{place}.{key}" if place else key)
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other) and any(map(_is_rich, one)):
        for index, pair in enumerate(zip(one, other, strict=True)):
            yield from _entries(*pair, f"{place}[{index}]")
    elif _spelled(one) != _spelled(other):
        values = {"first": one, "second": other}
        yield {"place": place, **{side: value for side, value in values.items() if value is not _NOTHING}}


def _entry_line(row: dict[str, Any]) -> str:
    return f"header   {row['place']}: {_shown(row.get('first', _NOTHING))} -> {_shown(row.get('second', _NOTHING))}"


def _tensors(one: Content, other: Content, values: bool) -> Iterator[dict[str, Any]]:
    """One row per tensor."""
    found = [{entry.name: entry for entry in content[0].tensors} for content in (one, other)]
    for name in sorted({*found[0], *found[1]}):
        pair = found[0].get(name), found[1].get(name)
        kinds = [None if entry is None else f"{entry.dtype} {list(entry.shape)}" for entry in pair]
        row: dict[str, Any] = {"name": name, "state": "differs", "first": kinds[0], "second": kinds[1]}
        if None in kinds:
            row["state"] = f"only in the {'first' if kinds[1] is None else 'second'}"
        elif kinds[0] == kinds[1] and one[1][name] == other[1][name]:
            row["state"] = "equal"
        elif kinds[0] == kinds[1] and values and pair[0] is not None:
            row["gap"] = _gap(pair[0].dtype, one[1][name], other[1][name])
        yield row


def _tensor_line(row: dict[str, Any]) -> str:
    if row["state"] != "differs":
        return f"{row['state']:<8} {row['name']}" if row["state"] == "equal" else f"{row['state']}  {row['name']}"
    kinds = row["first"] if row["first"] == row["second"] else f"{row['first']} -> {row['second']}"
    return f"differs  {row['name']}: {kinds}" + (f", at most by {row['gap']:g}" if "gap" in row else "")


def _gap(dtype: str, one: bytearray | memoryview, other: bytearray | memoryview) -> float:
    """The largest absolute difference of two tensors' values."""
    import torch

    from dinoneck.checkpoint.tensors import TORCH_DTYPES

    pair = [torch.frombuffer(buffer, dtype=TORCH_DTYPES[dtype]).double() for buffer in (one, other)]
    return float((pair[0] - pair[1]).abs().max())


def _is_rich(value: Any) -> bool:
    return isinstance(value, dict | list)


def _spelled(value: Any) -> str:
    return "nothing" if value is _NOTHING else json.dumps(value, sort_keys=True, ensure_ascii=False)


def _shown(value: Any) -> str:
    told = _spelled(value)
    return told if len(told) <= _LONGEST else f"{told[:_LONGEST]}..."
