"""Reading: records of many images straight into one buffer per layer, then into Tokens."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import operator
import zlib
from collections.abc import Callable, Iterable, Sequence, Sized
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from dinoneck.errors import DataError, StoreError, did_you_mean
from dinoneck.grid import GridSize
from dinoneck.progress import progress
from dinoneck.store import shards
from dinoneck.store.description import SCALE_FILE, Description, read_scale
from dinoneck.store.encoding import Columns, Layout, QuantisedTokens
from dinoneck.store.files import Files, LocalFiles
from dinoneck.store.index import Entry, check_made
from dinoneck.store.table import Ids, Index, read_index
from dinoneck.tensor_bytes import bytes_of
from dinoneck.tokens import Tokens

Stored = tuple[Sequence[Tensor], Callable[[Sequence[Tensor]], Tokens]]
_GUESSES = 1000
_OF_A_WRITER = f"{shards.FOLDER}/w-"


class Reader:
    """Finds records in the index and reads them.

    Args:
        files: of the store.
        description: of the store.
        check: compare every record's checksum when it is read for the first time through this object.
    """

    def __init__(self, files: Files, description: Description, *, check: bool = True) -> None:
        self.files = files
        self.description = description
        self.check = check
        self._scale: Tensor | None = None
        self._made: str | None = None
        self.refresh()

    def __reduce__(self) -> Any:  # a table is mapped again, not copied
        return functools.partial(Reader, check=self.check), (self.files, self.description)

    def refresh(self, *, again: bool = False) -> None:
        """Read what was appended to the index; ``again``: read all of it."""
        files = self.files
        listed = functools.cache(lambda: frozenset(shards.names(files)))
        exists = files.exists if isinstance(files, LocalFiles) else lambda name: name in listed()
        patterns = len(self.description.patterns)
        entries = read_index(files, patterns, exists, again=again)
        # a flag per record: whether it was compared with its checksum
        self._index = entries, np.zeros((entries.slots, patterns), np.bool_)
        self._scale = self._made = None

    @property
    def entries(self) -> Index:
        """Image id -> where its records are; ids sorted."""
        return self._index[0]

    @property
    def ids(self) -> Ids:
        """All ids, sorted."""
        return self.entries.ids

    def entry(self, image_id: str) -> Entry:
        """Return where an image is.

        Raises:
            DataError: if it is not in the store.
            StoreError: if different images were stored under its id.
        """
        return self.entries.at(self._slot(self.entries, image_id))

    def _slot(self, entries: Index, image_id: str) -> int:
        try:
            slot = entries.find(image_id)
        except (KeyError, TypeError):
            near = did_you_mean(image_id, self.ids[:_GUESSES])
            raise DataError(f"{image_id!r} is not among the {len(entries)} images of {self.files}.{near}") from None
        if image_id in entries.clashing:
            raise StoreError(
                f"{self.files} holds different images under one id, for {len(entries.clashing)} ids "
                f"({', '.join(sorted(entries.clashing)[:3])}): they were extracted from several folders at once. "
                "Delete the files that shard_of() names for these ids until verify() lists none, and extract with a "
                "root= that all images share"
            )
        return slot

    def columns(self, ids: Sequence[str], patterns: int | Sequence[int] | None) -> tuple[Columns, GridSize]:
        """Read records as they lie: part name -> one (B, ...) tensor per layer, and their grid.

        Raises:
            DataError: if an id or a pattern is unknown, or the images have different grids.
            StoreError: if a shard is missing, cut short or damaged.
        """
        index, checked = self._index
        numbers = self.numbers(ids, patterns)
        slots = [self._slot(index, image_id) for image_id in ids]
        entries = [index.at(slot) for slot in slots]
        layout = self.layout(entries)
        columns = layout.allocate(len(entries))
        pieces = [
            (entry.file, entry.at(pattern), layout.buffers(columns, row))
            for row, (entry, pattern) in enumerate(zip(entries, numbers, strict=True))
        ]
        self.files.fill(pieces)
        for entry, record, (_, _, memory) in zip(entries, zip(slots, numbers, strict=True), pieces, strict=True):
            if self.check and not checked[record]:
                if _crc32(memory) != entry.crc32[record[1]]:
                    raise StoreError(
                        f"{self.files}/{entry.file} is damaged: pattern {record[1]} of {entry.id!r} has another "
                        "checksum; delete that file and extract its images again"
                    )
                checked[record] = True
        return columns, layout.grid

    def layout(self, entries: Sequence[Entry]) -> Layout:
        """Return the layout of these entries' records; all must have one grid."""
        grids = sorted({entry.grid for entry in entries})
        if len(grids) != 1:
            sizes = ", ".join(f"{rows}x{cols}" for rows, cols in grids[:5])
            raise DataError(
                f"the images have different grids ({sizes}); batch those of one" if grids else "no ids given"
            )
        check_made(entries, self.made(), str(self.files))
        layout = self.description.layout(GridSize(*grids[0]))
        for entry in entries:
            if entry.length != layout.nbytes or len(entry.crc32) != len(self.description.patterns):
                raise StoreError(
                    f"the index of {self.files} lists {len(entry.crc32)} records of {entry.length} bytes for "
                    f"{entry.id!r}; expected {len(self.description.patterns)} of {layout.nbytes}"
                )
        return layout

    def stored(self, columns: Columns, grid: GridSize) -> Stored:
        """Return the tensors of what :meth:`columns` read, and a function that makes float32 Tokens of them."""
        scale = {"channel_scale": tuple(self.scale())} if self.description.dtype == "int8" else {}
        columns = {name: part for name, part in columns.items() if name != "padding"} | scale

        def tokens(tensors: Sequence[Tensor]) -> Tokens:
            values = iter(tensors)
            return self.assemble({name: tuple(next(values) for _ in part) for name, part in columns.items()}, grid)

        return [x for part in columns.values() for x in part], tokens

    def assemble(self, columns: Columns, grid: GridSize, dtype: torch.dtype | None = torch.float32) -> Tokens:
        """Make Tokens of what :meth:`columns` read."""
        if self.description.dtype == "int8":
            return self.quantised(columns, grid).dequantise(dtype or torch.float32)
        tokens = self.description.tokens(columns["tokens"], grid)
        return tokens if dtype is None else replace(tokens, sequence=tuple(x.to(dtype) for x in tokens.sequence))

    def quantised(self, columns: Columns, grid: GridSize) -> QuantisedTokens:
        """Wrap int8 columns as they are."""
        like = self.description.tokens((), grid)
        scale = columns.get("channel_scale") or tuple(self.scale())
        return QuantisedTokens(columns["q"], columns["scale"], columns["prefix"], scale, like)

    def record(self, ids: Sequence[str]) -> dict[str, Any]:
        """Return what identifies these images' tokens, wherever the store lies: what made them, and their checksums."""
        checksums = hashlib.sha256()
        entries = self.entries
        for image_id in ids:
            checksums.update(repr((image_id, *entries.checksums(image_id))).encode())
        own = self.description
        # the inputs' mean and std are the ones that were used; backbone records of older stores do not have them
        backbone = {key: value for key, value in own.backbone.items() if key not in ("mean", "std")}
        made = [backbone, own.preprocess.record(), own.patterns.record(), own.dtype]
        origin = hashlib.sha256(json.dumps(made, sort_keys=True).encode())
        return {"kind": "store", "made": origin.hexdigest(), "records": checksums.hexdigest()}

    def scale(self) -> Tensor:
        """Return the channel scale (layers, channels), read once after every :meth:`refresh`.

        Raises:
            StoreError: if it is missing or damaged.
        """
        scale = self._scale  # another thread may refresh meanwhile
        if scale is None:
            shape = self.description.num_layers, self.description.backbone["embed_dim"]
            self._scale = scale = read_scale(self.files, shape)
        return scale

    def made(self) -> str:
        """Return what the index lines of this store repeat, see :class:`dinoneck.store.index.Entry`."""
        made = self._made
        if made is None:
            own = self.description
            scale = f"-{zlib.crc32(bytes_of(self.scale())):08x}" if own.dtype == "int8" else ""
            self._made = made = own.made + scale
        return made

    def is_sound(self, entry: Entry) -> bool:
        """Whether all records of an image are there and have their checksums."""
        try:
            self.layout([entry])
            buffer = memoryview(bytearray(entry.length))
            for pattern, expected in enumerate(entry.crc32):
                self.files.fill([(entry.file, entry.at(pattern), [buffer])])
                if zlib.crc32(buffer) != expected:
                    return False
        except StoreError:
            return False
        return True

    def numbers(self, ids: Sequence[str], patterns: int | Sequence[int] | None) -> list[int]:
        """Return one pattern per id.

        Raises:
            DataError: if a pattern does not exist, or there is not one per id.
        """
        if isinstance(ids, str) or not isinstance(ids, Sized):
            what = "the string " if isinstance(ids, str) else ""
            raise DataError(f"ids is {what}{ids!r}; expected a sequence of ids")
        single = not isinstance(patterns, Sequence) and getattr(patterns, "ndim", 0) == 0  # arrays have axes
        asked: Sequence[Any] = [patterns or 0] * len(ids) if single else cast("Sequence[Any]", patterns)
        try:
            given = [operator.index(pattern) for pattern in asked]
        except TypeError:
            raise DataError(f"patterns is {patterns!r}; expected whole numbers: one, or one per id") from None
        if len(given) != len(ids):
            raise DataError(f"{len(given)} patterns for {len(ids)} ids")
        last = len(self.description.patterns) - 1
        wrong = [pattern for pattern in given if not 0 <= pattern <= last]
        if wrong:
            raise DataError(f"pattern {wrong[0]} does not exist; {self.files} holds 0 ... {last}")
        return given


def _crc32(buffers: Iterable[memoryview]) -> int:
    value = 0
    for buffer in buffers:
        value = zlib.crc32(buffer, value)
    return value


def damaged_shards(reader: Reader) -> dict[str, str]:
    """Return id -> shard of the images that cannot be trusted, and of those that are in a shard but not in the index.

    An id under which writers stored different images is among them. An image is sound if its shard's header repeats
    its index line and all its records have their checksums. A shard that the index does not name and whose header is
    damaged stands for its images, which are not known. Other files under ``data`` are left out: those that neither the
    index names nor a writer named. The channel scale of an int8 store stands for itself, if no image fits it.
    """
    names = shards.names(reader.files)
    reader.refresh(again=True)
    indexed: dict[str, set[str]] = {name: set() for name in names}
    for entry in reader.entries.values():
        indexed.setdefault(entry.file, set()).add(entry.id)
    damaged = {image_id: reader.entries[image_id].file for image_id in reader.entries.clashing}
    if not _fits_scale(reader):
        damaged[SCALE_FILE] = SCALE_FILE
    unlisted: dict[str, str] = {}
    for name, ids in progress(sorted(indexed.items()), desc="verify", unit="shard"):
        try:
            entries = _entries(reader, name)
        except StoreError:
            damaged |= dict.fromkeys(ids, name)
            if not ids and name.startswith(_OF_A_WRITER):
                damaged[name] = name
            continue
        for image_id in ids:
            entry = reader.entries[image_id]
            if entries.get(image_id) != entry or not reader.is_sound(entry):
                damaged[image_id] = name
        unlisted |= dict.fromkeys(entries.keys() - reader.entries.keys(), name)
    if unlisted:  # a writer at work appends its lines after its shard
        reader.refresh()
    return damaged | {image_id: name for image_id, name in unlisted.items() if image_id not in reader.entries}


def shard_of(reader: Reader, image_id: str) -> str:
    """Return the shard of an image, by the index or else by the shards' headers; a file's own name stands for it.

    Raises:
        DataError: if there is none.
    """
    if image_id in reader.entries:
        return reader.entries[image_id].file
    for name in (SCALE_FILE, *shards.names(reader.files)):
        with contextlib.suppress(StoreError):
            if name == image_id or image_id in _entries(reader, name):
                return name
    return reader.entry(image_id).file


def _fits_scale(reader: Reader) -> bool:
    """Whether an image of an int8 store has the channel scale that is there."""
    if reader.description.dtype != "int8" or not reader.entries:
        return True
    try:
        made = reader.made()
    except StoreError:
        return False
    return any(entry.made in ("", made) for entry in reader.entries.values())


def _entries(reader: Reader, name: str) -> dict[str, Entry]:
    """The entries in a shard's header; StoreError if it is damaged."""
    return {entry.id: entry for entry in shards.entries_in(reader.files, name, reader.description.layout)}
