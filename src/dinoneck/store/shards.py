"""Shards: plain safetensors files whose metadata repeats the index lines of what they hold."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from dinoneck.store.encoding import ALIGNMENT, SAFETENSORS_NAMES, Layout
from dinoneck.store.index import Entry

FOLDER = "data"
SUFFIX = ".safetensors"
METADATA_KEY = "dinoneck_store"
MAX_HEADER_BYTES = 100_000_000  # what safetensors itself allows


def header(entries: list[tuple[Entry, Layout]]) -> tuple[bytes, list[Entry]]:
    """Return a shard's header bytes, and the entries with their final offsets.

    Tensors are called ``id/pattern/part``, so that any safetensors reader can open a shard.

    Args:
        entries: in file order, with offsets that count from the beginning of the data.
    """
    tensors: dict[str, Any] = {}
    for entry, layout in entries:
        for pattern in range(len(entry.crc32)):
            for part in layout.parts:
                begin = entry.at(pattern) + part.offset
                tensors[f"{entry.id}/{pattern}/{part.name}"] = {
                    "dtype": SAFETENSORS_NAMES[part.dtype],
                    "shape": list(part.shape),
                    "data_offsets": [begin, begin + part.nbytes],
                }
    lines = "\n".join(entry.line() for entry, _ in entries)  # offsets count from the beginning of the data
    text = json.dumps({"__metadata__": {METADATA_KEY: lines}, **tensors}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    start = 8 + len(text)
    return len(text).to_bytes(8, "little") + text, [replace(e, offset=e.offset + start) for e, _ in entries]


def entries_in(path: Path) -> list[Entry]:
    """Return the index lines that belong to a shard, from its own header.

    Raises:
        ValueError: if it is no whole shard of a store.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= MAX_HEADER_BYTES:
            raise ValueError(f"its header would have {length} bytes")
        content = json.loads(file.read(length))
    lines = content["__metadata__"][METADATA_KEY] if isinstance(content, dict) else ""
    entries = [replace(e, offset=e.offset + 8 + length) for e in map(_entry, lines.splitlines())]
    end = max((entry.at(len(entry.crc32)) for entry in entries), default=-1)
    if end != path.stat().st_size or any(entry.file != f"{FOLDER}/{path.name}" for entry in entries):
        raise ValueError("it is cut short, or another file's")
    return entries


def _entry(line: str) -> Entry:
    return Entry.parsed(json.loads(line))
