"""Shards: plain safetensors files whose metadata repeats the index lines of what they hold."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from msgspec.structs import replace

from dinoneck.errors import StoreError
from dinoneck.grid import GridSize
from dinoneck.store.encoding import ALIGNMENT, SAFETENSORS_NAMES, Layout
from dinoneck.store.files import Files
from dinoneck.store.index import Entry

FOLDER = "data"
SUFFIX = ".safetensors"
METADATA_KEY = "dinoneck_store"
MAX_HEADER_BYTES = 100_000_000  # what safetensors itself allows


def names(files: Files) -> list[str]:
    """Return the shards of a store, relative to it, sorted."""
    inside = files.names(FOLDER)
    return [f"{FOLDER}/{name}" for name in inside if name.endswith(SUFFIX) and not name.startswith(".")]


def header(entries: list[tuple[Entry, Layout]]) -> tuple[bytes, list[Entry]]:
    """Return a shard's header bytes, and the entries with their final offsets.

    Tensors are called ``id/pattern/part``, so that any safetensors reader can open a shard.

    Args:
        entries: in file order, with offsets that count from the beginning of the data.
    """
    text = _text("\n".join(entry.line() for entry, _ in entries), entries)
    start = 8 + len(text)
    return len(text).to_bytes(8, "little") + text, [replace(e, offset=e.offset + start) for e, _ in entries]


def entries_in(files: Files, name: str, layout_of: Callable[[GridSize], Layout]) -> list[Entry]:
    """Return the index lines that belong to a shard, from its own header.

    The header is made again from its lines and compared byte for byte, so a damaged one is not trusted.

    Args:
        files: of the store.
        name: of the shard, relative to the store.
        layout_of: gives the layout of the store's records on a grid.

    Raises:
        StoreError: if it is not a whole shard of this store, or its header is damaged.
    """
    try:
        size = files.size(name)
        length = int.from_bytes(_read(files, name, 0, 8), "little")
        if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
            raise ValueError(f"its header would have {length} bytes")
        text = _read(files, name, 8, length)
        lines = json.loads(text)["__metadata__"][METADATA_KEY]
        found = [Entry.parsed(line.encode()) for line in lines.split("\n")]
        if text != _text(lines, [(entry, layout_of(GridSize(*entry.grid))) for entry in found]):
            raise ValueError("its header is damaged")
        entries = [replace(entry, offset=entry.offset + 8 + length) for entry in found]
        if max(entry.at(len(entry.crc32)) for entry in entries) != size:
            raise ValueError("it is cut short")
        if any(entry.file != name for entry in entries):
            raise ValueError("it is a copy of another file")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise StoreError(f"{files}/{name} is not a whole shard of this store: {error}") from error
    return entries


def _text(lines: str, entries: list[tuple[Entry, Layout]]) -> bytes:
    """Return the JSON text of a header that repeats these index lines; offsets count from the beginning of the data."""
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
    text = json.dumps({"__metadata__": {METADATA_KEY: lines}, **tensors}, separators=(",", ":")).encode()
    return text + b" " * (-len(text) % ALIGNMENT)


def _read(files: Files, name: str, offset: int, nbytes: int) -> bytes:
    buffer = bytearray(nbytes)
    files.fill([(name, offset, [memoryview(buffer)])])
    return bytes(buffer)
