"""The index: which images a store holds and where. One JSON-lines file per writer, only ever appended to.

A line is written after its shard is safely on disk, so whatever a line names is there. A last line without its
newline was cut by a kill and does not count.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

from dinoneck.errors import StoreError
from dinoneck.grid import GridSize
from dinoneck.store.files import Files

FOLDER = "index"
SUFFIX = ".jsonl"


@dataclass(frozen=True)
class Entry:
    """Where the records of one image are.

    Attributes:
        id: of the image.
        file: the shard, relative to the store.
        offset: byte of the shard where pattern 0 begins; the others follow without gaps.
        length: bytes of one pattern's record.
        crc32: checksum of every pattern's record.
        grid: (rows, cols) of patches.
        photo_bytes: size of the photo's file, which tells another photo of the same name.
    """

    id: str
    file: str
    offset: int
    length: int
    crc32: tuple[int, ...]
    grid: tuple[int, int]
    photo_bytes: int

    def line(self) -> str:
        """Return the JSON line, without newline."""
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def parsed(cls, value: Any) -> Entry:
        """Check one parsed line.

        Raises:
            ValueError: if it is no entry.
        """
        kinds = {"id": str, "file": str, "offset": int, "length": int, "crc32": list, "grid": list, "photo_bytes": int}
        if not isinstance(value, dict) or set(value) != set(kinds):
            raise ValueError(f"expected an object with {', '.join(kinds)}")
        for name, kind in kinds.items():
            if type(value[name]) is not kind:
                raise ValueError(f"{name} is {value[name]!r}")
        numbers = [value["offset"], value["length"], value["photo_bytes"], *value["crc32"], *value["grid"]]
        if any(type(number) is not int or not 0 <= number < 1 << 63 for number in numbers) or len(value["grid"]) != 2:
            raise ValueError("a number is negative, too large or no integer")
        parts = value["id"].split("/")  # ids name files that converters write
        if "" in parts or ".." in parts or "\0" in value["id"] + value["file"]:
            raise ValueError(f"id is {value['id']!r}, file {value['file']!r}; expected relative paths without '..'")
        folder, _, file = value["file"].partition("/")
        if folder != "data" or not file or "/" in file or "\\" in file or file.startswith("."):
            raise ValueError(f"file is {value['file']!r}; expected data/NAME")
        return cls(**{**value, "crc32": tuple(value["crc32"]), "grid": GridSize(*value["grid"])})

    def at(self, pattern: int) -> int:
        """Return the byte where a pattern's record begins."""
        return self.offset + pattern * self.length


def read_index(files: Files) -> list[Entry]:
    """Return every finished line of every writer, in the writers' order.

    Raises:
        StoreError: if a finished line is no entry, naming file and line.
    """
    entries = []
    for name in files.names(FOLDER):
        if name.startswith(".") or not name.endswith(SUFFIX):
            continue
        raw = files.read(f"{FOLDER}/{name}")
        for number, line in enumerate(raw[: raw.rfind(b"\n") + 1].splitlines(), 1):
            try:
                entries.append(Entry.parsed(json.loads(line)))
            except (ValueError, RecursionError) as error:
                raise StoreError(
                    f"{files}/{FOLDER}/{name}, line {number} is damaged ({error}); remove that line, and extract "
                    "its photo again"
                ) from None
    return entries


def by_id(entries: Iterable[Entry], exists: Callable[[str], bool]) -> dict[str, Entry]:
    """Return one entry per image, ids sorted.

    Where several writers stored the same image, the first shard by name that exists is taken, whatever the order
    of the lines.
    """
    found: dict[str, Entry] = {}
    for entry in entries:
        other = found.get(entry.id)
        if other is None:
            found[entry.id] = entry
        elif other != entry:
            first, second = sorted((other, entry), key=lambda e: (e.file, e.offset))
            found[entry.id] = first if exists(first.file) or not exists(second.file) else second
    return dict(sorted(found.items()))
