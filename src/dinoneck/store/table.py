"""The table: what the journals hold as one row per image, sorted by id, in a file that every process maps.

It is derived: made from the journals, valid for the part of them that it names, and made again where it is missing,
damaged or of other journals. What was appended later is read from the journals and laid over it. So opening a store
takes a time that does not depend on its images, and no process holds their ids. A small index has no such file.

The file begins with a JSON line that ends in its own CRC-32. Then come the sorted CRC-32 of the ids with their row
numbers, where each id begins, the rows, and the ids. A row begins with the CRC-32 of the rest of it and of its strings,
which is compared at every look-up.
"""

from __future__ import annotations

import contextlib
import heapq
import json
import mmap
import struct
import sys
import zlib
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import copy
from itertools import accumulate, pairwise
from typing import Any, overload

import numpy as np
from msgspec import Struct, convert, to_builtins
from msgspec.structs import replace

from dinoneck.atomic import write_whole
from dinoneck.errors import StoreError
from dinoneck.regular_files import open_regular
from dinoneck.store.files import Files, LocalFiles
from dinoneck.store.index import (
    FOLDER,
    Entry,
    Place,
    by_id,
    checked_line,
    clashing,
    names,
    read_journal,
    unchecked,
)

FILE = "index.table"
LARGEST_TAIL = 1 << 21  # bytes of the journals that are read by every process that opens the store
ENTRIES_AT_ONCE = 100_000
_FORMAT = f"dinoneck.table/1/{sys.byteorder}"
_ROW = struct.Struct("=IIIIIQQQQ16s")  # file, root, made, grid, offset, length, photo_bytes, mtime_ns, blake2b
_BLOCK = 1 << 20


class Strings(Sequence[str]):
    """Strings in a buffer, one after another; ``begins`` holds where each begins, and where the last ends."""

    def __init__(self, buffer: memoryview, begins: memoryview) -> None:
        self._buffer, self._begins = buffer, begins.cast("Q")

    def __len__(self) -> int:
        return len(self._begins) - 1

    def raw(self, place: int) -> bytes:
        """Return a string as bytes."""
        return bytes(self._buffer[self._begins[place] : self._begins[place + 1]])

    def __getitem__(self, place: Any) -> Any:
        return self.raw(place).decode("utf-8", "replace")  # only damaged bytes are replaced


class Head(Struct):
    """The first line of a table."""

    format: str
    patterns: int
    journals: dict[str, Place]
    texts: list[str]
    others: list[Entry]
    sections: list[int]


class Table:
    """The rows of a file or of memory; see the module's text.

    Attributes:
        head: the first line: the part of every journal that the rows hold, the texts that they number, and the entries
            that have no row, because several belong to one id or their values do not fit.
        ids: of the rows, sorted.
    """

    def __init__(self, content: mmap.mmap | bytes, files: object) -> None:
        """Read the first line; ValueError if this is not a whole table."""
        end = content.find(b"\n")
        self.content, self.files = content, files
        self.head = convert(json.loads(unchecked(content[:end]) or b""), Head)
        self._crc32 = struct.Struct(f"={self.head.patterns}I")
        self.size = 4 + _ROW.size + self._crc32.size
        ends = [*accumulate(self.head.sections, initial=end + 1)]
        if self.head.format != _FORMAT or ends[-1] != len(content):
            raise ValueError("another format, or cut short")
        sums, of_sum, begins, self.rows, text = (memoryview(content)[a:b] for a, b in pairwise(ends))
        self._sums, self._of_sum = sums.cast("I"), of_sum.cast("I")  # CRC-32 of the ids, sorted, and their rows
        self.ids = Strings(text, begins)
        self._count = len(self.ids)

    @classmethod
    def packed(cls, files: object, head: Head, ids: Iterable[str] = (), rows: bytes = b"") -> Table:
        """Make a table in memory."""
        raw = [image_id.encode() for image_id in ids]
        sums = np.array([*map(zlib.crc32, raw)], np.uint32)
        order = np.argsort(sums).astype(np.uint32)
        begins = np.array([0, *accumulate(map(len, raw))], np.uint64)
        parts = [sums[order].tobytes(), order.tobytes(), begins.tobytes(), rows, b"".join(raw)]
        line = checked_line(to_builtins(replace(head, sections=[*map(len, parts)])))
        return cls(b"".join([line.encode(), b"\n", *parts]), files)

    def __len__(self) -> int:
        return self._count

    def find(self, image_id: str) -> int:
        """Return the row of an image; -1 if it has none."""
        raw = image_id.encode("utf-8", "surrogatepass")
        place = bisect_left(self._sums, value := zlib.crc32(raw))
        while place < self._count and self._sums[place] == value:
            row = self._of_sum[place]
            if row < self._count and self.ids.raw(row) == raw:
                return row
            place += 1
        return -1

    def id_of(self, row: int) -> str:
        """Return the id of a row.

        Raises:
            StoreError: if it is damaged: a look-up does not lead back to the row.
        """
        image_id = str(self.ids[row])
        if self.find(image_id) != row:
            raise self.damage(row)
        return image_id

    def sorted_ids(self) -> Iterator[str]:
        """Iterate over the ids.

        Raises:
            StoreError: if one is damaged so that it equals another one, or is out of order.
        """
        last: str | None = None
        for row, image_id in enumerate(self.ids):
            if last is not None and image_id <= last:
                raise self.damage(row)
            yield image_id
            last = image_id

    def damage(self, row: int) -> StoreError:
        """Return the error for a damaged row."""
        return StoreError(f"{self.files}/{FILE} is damaged in row {row}; delete it: it is made again from {FOLDER}/")

    def entry(self, row: int) -> Entry:
        """Return what a row holds.

        Raises:
            StoreError: if it is damaged.
        """
        raw = self.rows[row * self.size : (row + 1) * self.size]
        file, root, made, rows, cols, offset, length, nbytes, mtime_ns, blake2b = _ROW.unpack_from(raw, 4)
        with contextlib.suppress(IndexError):  # numbers that a damaged row gives
            texts = [self.head.texts[number] for number in (file, root, made)]
            if _checksum(raw[4:], self.ids.raw(row), texts) == raw[:4]:
                crc32 = self._crc32.unpack_from(raw, 4 + _ROW.size)
                return Entry(self.ids[row], texts[0], offset, length, crc32, (rows, cols), nbytes, mtime_ns,
                             _hash(blake2b), *texts[1:])  # fmt: skip
        raise self.damage(row)

    def checksums(self, row: int) -> tuple[tuple[int, int], tuple[int, ...]]:
        """Return the grid and the checksums of a row, which is not compared with its own checksum."""
        begin = row * self.size + 4
        _, _, _, rows, cols, *_ = _ROW.unpack_from(self.rows, begin)
        return (rows, cols), self._crc32.unpack_from(self.rows, begin + _ROW.size)

    def merged(self, entries: Iterable[Entry], journals: dict[str, Place]) -> Table:
        """Return a table that holds these entries too."""
        found: dict[str, list[Entry]] = {}
        gone, others, new = [], [], {}
        for entry in (*self.head.others, *entries):
            several = found.setdefault(entry.id, [])
            if not several and (row := self.find(entry.id)) >= 0:
                several.append(self.entry(row))
                gone.append(row)
            if entry not in several:
                several.append(entry)
        texts = {text: number for number, text in enumerate(self.head.texts)}
        for image_id in sorted(found):
            several = found[image_id]
            packed = _packed(several[0], texts, self.head.patterns) if len(several) == 1 else None
            if packed is None:
                others += several
            else:
                new[image_id] = packed
        kept = np.delete(np.arange(len(self)), gone)
        places = np.searchsorted(kept, [bisect_left(self.ids, image_id) for image_id in new])
        old = np.frombuffer(self.rows, f"V{self.size}")[kept]
        rows = np.insert(old, places, np.frombuffer(b"".join(new.values()), old.dtype))
        ids = np.insert(np.array([*self.ids, None], object)[kept], places, [*new])
        head = replace(self.head, journals=journals, texts=[*texts], others=others)
        return Table.packed(self.files, head, ids, rows.tobytes())


class Index(Mapping[str, Entry]):
    """Image id -> entry, ids sorted: a table, and entries that were read from the journals.

    Where several writers stored the same image, the first shard by name that exists is taken.

    Attributes:
        clashing: ids under which writers stored different images.
        ids: all ids, a sorted sequence.
    """

    def __init__(self, table: Table, entries: Iterable[Entry], exists: Callable[[str], bool]) -> None:
        laid = [*table.head.others, *entries]
        rows = {entry.id: table.find(entry.id) for entry in laid}
        every = [*(table.entry(row) for row in rows.values() if row >= 0), *laid]
        self._table, self._laid = table, by_id(every, exists)
        self.clashing = clashing(every, self._laid, exists)
        self._entries = [*self._laid.values()]
        self._slots = {image_id: len(table) + n for n, image_id in enumerate(self._laid)}
        self._new = [image_id for image_id in self._laid if rows[image_id] < 0]
        self._at = [bisect_left(table.ids, image_id) + n for n, image_id in enumerate(self._new)]
        self.slots = len(table) + len(self._laid)
        self.ids = Ids(self)

    def find(self, image_id: str) -> int:
        """Return the slot of an image, a number below ``slots`` that stays the same; KeyError if there is none."""
        slot = self._slots.get(image_id, -1)
        if slot < 0 and isinstance(image_id, str):
            slot = self._table.find(image_id)
        if slot < 0:
            raise KeyError(image_id)
        return slot

    def at(self, slot: int) -> Entry:
        """Return the entry in a slot."""
        rows = len(self._table)
        return self._table.entry(slot) if slot < rows else self._entries[slot - rows]

    def checksums(self, image_id: str) -> tuple[tuple[int, int], tuple[int, ...]]:
        """Return the grid and the checksums of an image's records, in a third of the time of its whole entry."""
        slot = self.find(image_id)
        if slot < len(self._table):
            return self._table.checksums(slot)
        entry = self.at(slot)
        return entry.grid, entry.crc32

    def id_at(self, place: int) -> str:
        """Return the id at a place of the sorted ids."""
        before = bisect_left(self._at, place)
        if before < len(self._at) and self._at[before] == place:
            return self._new[before]
        return self._table.id_of(place - before)

    def __getitem__(self, image_id: str) -> Entry:
        return self.at(self.find(image_id))

    def __contains__(self, image_id: object) -> bool:
        with contextlib.suppress(KeyError, TypeError):
            return self.find(image_id) >= 0  # type: ignore[arg-type]
        return False

    def __iter__(self) -> Iterator[str]:
        return heapq.merge(self._table.sorted_ids(), self._new)

    def __len__(self) -> int:
        return len(self._table) + len(self._new)


class Ids(Sequence[str]):
    """The ids of an index: sorted, read where they are asked for, equal to a tuple of them."""

    def __init__(self, index: Index) -> None:
        self._index = index

    def __len__(self) -> int:
        return len(self._index)

    @overload
    def __getitem__(self, place: int) -> str: ...

    @overload
    def __getitem__(self, place: slice) -> tuple[str, ...]: ...

    def __getitem__(self, place: int | slice) -> str | tuple[str, ...]:
        places = range(len(self))[place]
        return tuple(map(self._index.id_at, places)) if isinstance(places, range) else self._index.id_at(places)

    def __iter__(self) -> Iterator[str]:
        return iter(self._index)

    def __contains__(self, image_id: object) -> bool:
        return image_id in self._index

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, tuple | Ids):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __reduce__(self) -> Any:
        return tuple, (tuple(self),)

    def __repr__(self) -> str:
        return repr(tuple(self)) if len(self) <= 100 else f"({', '.join(map(repr, self[:3]))}, ... {len(self)} ids)"


def read_index(files: Files, patterns: int, exists: Callable[[str], bool], *, again: bool = False) -> Index:
    """Read the index: from the table and what the journals hold beyond it.

    Args:
        files: of the store.
        patterns: checksums of an entry.
        exists: whether a shard is there.
        again: read the journals from their beginnings.

    Raises:
        StoreError: if a finished line of a journal is damaged or not an entry, naming file and line.
    """
    listed = names(files)
    table = None if again else _valid_table(files, listed, patterns)
    if table is None:
        table = Table.packed(files, Head(_FORMAT, patterns, {}, [], [], []))
    journals = {name: copy(table.head.journals.get(name)) or Place() for name in listed}
    tail: list[Entry] = []
    known = sum(place.nbytes for place in journals.values())
    for name, place in journals.items():
        place.mtime_ns = _modified(files, name)
        for entry in read_journal(files, name, place):
            tail.append(entry)
            if len(tail) == ENTRIES_AT_ONCE:
                table, tail = table.merged(tail, {}), []
    if sum(place.nbytes for place in journals.values()) - known > LARGEST_TAIL:
        table, tail = table.merged(tail, journals), []
        if isinstance(files, LocalFiles):
            with contextlib.suppress(OSError):  # a folder that cannot be written: each process makes its own in memory
                write_whole(files.root / FILE, [memoryview(table.content)])
    return Index(table, tail, exists)


def _modified(files: Files, name: str) -> int:
    return (files.root / FOLDER / name).stat().st_mtime_ns if isinstance(files, LocalFiles) else 0


def _valid_table(files: Files, listed: Sequence[str], patterns: int) -> Table | None:
    """Return the table in the folder if its part of every journal is there and unchanged.

    A journal that was modified since is read, to compare the CRC-32 of that part.
    """
    if not isinstance(files, LocalFiles):
        return None
    with contextlib.suppress(OSError, ValueError), open_regular(files.root / FILE) as file:
        table = Table(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), files)
        is_valid = table.head.patterns == patterns and all(
            name in listed
            and files.size(f"{FOLDER}/{name}") >= place.nbytes
            and (_modified(files, name) == place.mtime_ns or _crc32(files, name, place.nbytes) == place.crc32)
            for name, place in table.head.journals.items()
        )
        return table if is_valid else None
    return None


def _crc32(files: Files, name: str, nbytes: int) -> int:
    value = 0
    with files.stream(f"{FOLDER}/{name}", 0) as file:
        while block := file.read(min(nbytes, _BLOCK)):
            value, nbytes = zlib.crc32(block, value), nbytes - len(block)
    return value


def _checksum(row: bytes | memoryview, image_id: bytes, texts: Iterable[str]) -> bytes:
    strings = b"\0".join([image_id, *(text.encode("utf-8", "surrogatepass") for text in texts)])
    return zlib.crc32(strings, zlib.crc32(row)).to_bytes(4, sys.byteorder)


def _hash(blake2b: bytes) -> str:
    return blake2b.hex() if any(blake2b) else ""


def _packed(entry: Entry, numbers: dict[str, int], patterns: int) -> bytes | None:
    """Return the row of an entry, or None if its values do not fit; new texts get a number."""
    texts = entry.file, entry.root, entry.made
    try:
        blake2b = bytes.fromhex(entry.blake2b).rjust(16, b"\0")[:16]
        row = _ROW.pack(*(numbers.setdefault(text, len(numbers)) for text in texts), *entry.grid, entry.offset,
                        entry.length, entry.photo_bytes, entry.mtime_ns, blake2b)  # fmt: skip
        row += struct.pack(f"={patterns}I", *entry.crc32)
        return _checksum(row, entry.id.encode(), texts) + row if _hash(blake2b) == entry.blake2b else None
    except (ValueError, struct.error):
        return None
