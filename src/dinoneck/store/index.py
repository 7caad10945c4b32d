"""The index: which images a store holds and where. One JSON-lines journal per writer, only ever appended to.

A line is written after its shard is safely on disk, so whatever a line names is there. Every line ends in the CRC-32
of its own bytes; lines of version 0.1 have none. A line ``{"root": ...}`` names the folder that the images of the lines
after it were read from. A last line without its newline was cut by a kill and does not count.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Annotated, Any

from msgspec import Meta, Struct, convert
from msgspec.structs import asdict

from dinoneck.errors import StoreError
from dinoneck.store.files import Files

FOLDER = "index"
SUFFIX = ".jsonl"
_CHECKSUM = ',"line_crc32":"%08x"}'
_CHECKSUM_BYTES = len(_CHECKSUM % 0)
_MADE_OF = ("backbone", "inputs", "patterns", "dtype", "channel scale")
_Whole = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]


class OldEntry(Struct, forbid_unknown_fields=True):
    """What a line of version 0.1 holds; see :class:`Entry`."""

    id: str
    file: str
    offset: _Whole
    length: _Whole
    crc32: tuple[_Whole, ...]
    grid: tuple[_Whole, _Whole]
    photo_bytes: _Whole

    def __post_init__(self) -> None:
        parts = self.id.split("/")  # ids name files that converters write
        if "" in parts or ".." in parts or "\0" in self.id + self.file:
            raise ValueError(f"id is {self.id!r}, file {self.file!r}; expected relative paths without '..'")
        folder, _, file = self.file.partition("/")
        if folder != "data" or not file or "/" in file or "\\" in file or file.startswith("."):
            raise ValueError(f"file is {self.file!r}; expected data/NAME")


class Entry(OldEntry):
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
        root: the folder that the id is relative to; empty = not known. It is part of the journal, not of the line, and
            does not count when entries are compared.
        made: what the records depend on: hashes of the store's backbone, inputs, patterns and dtype, and of the channel
            scale of an int8 store, joined by ``-``; empty = not known.
    """

    mtime_ns: _Whole = 0
    blake2b: str = ""
    root: str = ""
    made: str = ""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Entry) and self._line() == other._line()

    def _line(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if name != "root"}

    def line(self) -> str:
        """Return the JSON line with its checksum, without newline."""
        return checked_line(self._line())

    @classmethod
    def parsed(cls, line: bytes, root: str = "") -> Entry:
        """Read one line.

        Raises:
            ValueError: if it is damaged or not an entry.
        """
        if (text := unchecked(line)) is not None:
            entry = convert(json.loads(text), cls)
            entry.root = root
            return entry
        try:
            return cls(**asdict(convert(json.loads(line), OldEntry)), root=root)
        except ValueError:
            raise ValueError("it differs from its checksum, or has none") from None

    def at(self, pattern: int) -> int:
        """Return the byte where a pattern's record begins."""
        return self.offset + pattern * self.length


def checked_line(content: dict[str, Any]) -> str:
    """Return a JSON line, without newline, that ends in the CRC-32 of what comes before."""
    text = json.dumps(content, separators=(",", ":"))[:-1]
    return text + _CHECKSUM % zlib.crc32(text.encode())


def unchecked(line: bytes) -> bytes | None:
    """Return a JSON line without its checksum; None if it has none or differs from it."""
    text = line[:-_CHECKSUM_BYTES]
    return text + b"}" if line == text + (_CHECKSUM % zlib.crc32(text)).encode() else None


def names(files: Files) -> list[str]:
    """Return the names of the writers' journals, sorted."""
    return [name for name in files.names(FOLDER) if name.endswith(SUFFIX) and not name.startswith(".")]


class Place(Struct):
    """How far a journal was read.

    Attributes:
        nbytes: that were read.
        crc32: of these bytes.
        root: that the lines after them begin with.
        mtime_ns: when the journal was last modified before it was read; 0 = not known.
    """

    nbytes: _Whole = 0
    crc32: int = 0
    root: str = ""
    mtime_ns: int = 0


def read_journal(files: Files, name: str, place: Place | None = None) -> Iterator[Entry]:
    """Yield the entries of the finished lines after a place, which moves with every line.

    Raises:
        StoreError: if a finished line is damaged or not an entry, naming file and line.
    """
    place = place or Place()
    path = f"{FOLDER}/{name}"
    with files.stream(path, place.nbytes) as lines:
        for line in lines:
            if not line.endswith(b"\n") and unchecked(line[:-1]) is None:
                return  # its checksum would show a whole line: then the byte after it was a newline, and is damaged
            try:
                entry = None
                if line.startswith(b'{"root":') and (text := unchecked(line.removesuffix(b"\n"))):
                    root = str(json.loads(text)["root"])
                else:
                    entry = Entry.parsed(line.removesuffix(b"\n"), root := place.root)
            except (ValueError, RecursionError) as error:
                number = files.read(path)[: place.nbytes].count(b"\n") + 1
                raise StoreError(
                    f"{files}/{path}, line {number} is damaged ({error}); remove that line, and extract its image again"
                ) from None
            place.nbytes, place.crc32, place.root = place.nbytes + len(line), zlib.crc32(line, place.crc32), root
            if entry is not None:
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
