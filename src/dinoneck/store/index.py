"""The index: which images a store holds and where. One JSON-lines journal per writer, only ever appended to.

A line is written after its shard is safely on disk, so whatever a line names is there. Every line ends in the CRC-32
of its own bytes; lines of version 0.1 have none. A line ``{"root": ...}`` names the folder that the images of the lines
after it were read from. A last line without its newline was cut by a kill and does not count.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from dinoneck.errors import StoreError
from dinoneck.grid import GridSize
from dinoneck.store.files import Files

FOLDER = "index"
SUFFIX = ".jsonl"
_KINDS = {"id": str, "file": str, "offset": int, "length": int, "crc32": list, "grid": list, "photo_bytes": int}
_LATER_KINDS = {"mtime_ns": int, "blake2b": str, "made": str}  # not in the lines of version 0.1
_CHECKSUM = ',"line_crc32":"%08x"}'
_CHECKSUM_BYTES = len(_CHECKSUM % 0)
_MADE_OF = ("backbone", "inputs", "patterns", "dtype", "channel scale")


@dataclass(slots=True)  # not frozen: an entry is made at every look-up, and a frozen one takes twice as long
class Entry:
    """Where the records of one image are.

    Attributes:
        id: of the image.
        file: the shard, relative to the store.
        offset: byte of the shard where pattern 0 begins; the others follow without gaps.
        length: bytes of one pattern's record.
        crc32: checksum of every pattern's record.
        grid: (rows, cols) of patches.
        photo_bytes: size of the image's file.
        mtime_ns: when that file was last modified; 0 = not known (stores of version 0.1).
        blake2b: hash of the file's bytes, 32 hex digits; empty = not known.
        root: the folder that the id is relative to; empty = not known. It is part of the journal, not of the line.
        made: what the records depend on: hashes of the store's backbone, inputs, patterns and dtype, and of the channel
            scale of an int8 store, joined by ``-``; empty = not known.
    """

    id: str
    file: str
    offset: int
    length: int
    crc32: tuple[int, ...]
    grid: tuple[int, int]
    photo_bytes: int
    mtime_ns: int = 0
    blake2b: str = ""
    root: str = field(default="", compare=False)
    made: str = ""

    def line(self) -> str:
        """Return the JSON line with its checksum, without newline."""
        return checked_line({name: value for name, value in asdict(self).items() if name != "root"})

    @classmethod
    def parsed(cls, line: bytes, root: str = "") -> Entry:
        """Read one line.

        Raises:
            ValueError: if it is damaged or not an entry.
        """
        return cls._of(checked_content(line), root)

    @classmethod
    def _of(cls, value: Any, root: str) -> Entry:
        kinds = _KINDS | {name: kind for name, kind in _LATER_KINDS.items() if name in value}
        if value.keys() != kinds.keys():
            raise ValueError(f"expected an object with {', '.join(kinds)}")
        for name, kind in kinds.items():
            if type(value[name]) is not kind:
                raise ValueError(f"{name} is {value[name]!r}")
        numbers = value["offset"], value["length"], value["photo_bytes"], *value["crc32"], *value["grid"]
        numbers += (value.get("mtime_ns", 0),)
        if {*map(type, numbers)} != {int} or not 0 <= min(numbers) <= max(numbers) < 1 << 63 or len(value["grid"]) != 2:
            raise ValueError("a number is negative, too large or not a whole number")
        parts = value["id"].split("/")  # ids name files that converters write
        if "" in parts or ".." in parts or "\0" in value["id"] + value["file"]:
            raise ValueError(f"id is {value['id']!r}, file {value['file']!r}; expected relative paths without '..'")
        folder, _, file = value["file"].partition("/")
        if folder != "data" or not file or "/" in file or "\\" in file or file.startswith("."):
            raise ValueError(f"file is {value['file']!r}; expected data/NAME")
        return cls(**{**value, "crc32": tuple(value["crc32"]), "grid": GridSize(*value["grid"]), "root": root})

    def at(self, pattern: int) -> int:
        """Return the byte where a pattern's record begins."""
        return self.offset + pattern * self.length


def checked_line(content: dict[str, Any]) -> str:
    """Return a JSON line, without newline, that ends in the CRC-32 of what comes before."""
    text = json.dumps(content, separators=(",", ":"))[:-1]
    return text + _CHECKSUM % zlib.crc32(text.encode())


def _is_checked(line: bytes) -> bool:
    text = line[:-_CHECKSUM_BYTES]
    return line == text + (_CHECKSUM % zlib.crc32(text)).encode()


def checked_content(line: bytes) -> Any:
    """Return what a line holds; ValueError if it is not JSON or differs from its checksum."""
    content = json.loads(line)
    if _is_checked(line):
        del content["line_crc32"]
    elif not isinstance(content, dict) or content.keys() != _KINDS.keys():  # only lines of 0.1 have no checksum
        raise ValueError("it differs from its checksum, or has none")
    return content


def names(files: Files) -> list[str]:
    """Return the names of the writers' journals, sorted."""
    return [name for name in files.names(FOLDER) if name.endswith(SUFFIX) and not name.startswith(".")]


@dataclass
class Place:
    """How far a journal was read: bytes, their CRC-32, and the root that the lines after them begin with."""

    nbytes: int = 0
    crc32: int = 0
    root: str = ""


def read_journal(files: Files, name: str, place: Place | None = None) -> Iterator[Entry]:
    """Yield the entries of the finished lines after a place, which moves with every line.

    Raises:
        StoreError: if a finished line is damaged or not an entry, naming file and line.
    """
    place = place or Place()
    path = f"{FOLDER}/{name}"
    with files.stream(path, place.nbytes) as lines:
        for line in lines:
            if not line.endswith(b"\n") and not _is_checked(line[:-1]):
                return  # its checksum would show a whole line: then the byte after it was a newline, and is damaged
            try:
                content = checked_content(line.removesuffix(b"\n"))
                entry = None if isinstance(content.get("root"), str) else Entry._of(content, place.root)
            except (ValueError, RecursionError) as error:
                number = files.read(path)[: place.nbytes].count(b"\n") + 1
                raise StoreError(
                    f"{files}/{path}, line {number} is damaged ({error}); remove that line, and extract its image again"
                ) from None
            place.nbytes, place.crc32 = place.nbytes + len(line), zlib.crc32(line, place.crc32)
            if entry is None:
                place.root = content["root"]
            else:
                yield entry


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


def clashing(entries: Iterable[Entry], chosen: Mapping[str, Entry], exists: Callable[[str], bool]) -> frozenset[str]:
    """Return the ids under which writers stored different images, as the hashes of their files tell.

    Args:
        entries: of all writers.
        chosen: those that :func:`by_id` takes.
        exists: whether a shard is there; entries of a deleted one do not count.
    """
    others = (entry for entry in entries if entry.blake2b not in ("", chosen[entry.id].blake2b))
    return frozenset(e.id for e in others if chosen[e.id].blake2b and exists(e.file) and exists(chosen[e.id].file))


def check_made(entries: Iterable[Entry], made: str, store: str) -> None:
    """Refuse entries of another store; entries that do not name what made them are accepted.

    Args:
        entries: to be read.
        made: what the store's own entries begin with.
        store: its name.

    Raises:
        StoreError: naming an image, its shard, and what differs.
    """
    for entry in entries:
        if entry.made and not entry.made.startswith(made):
            pairs = zip(_MADE_OF, made.split("-"), entry.made.split("-"), strict=False)
            differing = " and ".join(part for part, own, other in pairs if own != other)
            raise StoreError(
                f"{entry.id!r} in {store}/{entry.file} was stored with another {differing} than this store has: its "
                "files or those of another store were copied here. Copy this store's own files back, or delete the "
                "files that shard_of() names for what verify() lists, and extract again"
            )
