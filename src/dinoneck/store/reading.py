"""Reading: views of many images straight into one buffer per layer, then into Tokens.

:meth:`Reader.columns` is the way of a batch: ids -> rows of the index -> buffers -> bytes of the shards -> checksums.
"""

from __future__ import annotations

import collections
import functools
import hashlib
import itertools
import logging
import operator
import threading
from collections.abc import Callable, Sequence, Sized
from dataclasses import replace
from typing import Any, Literal, cast, get_args

import numpy as np
import torch
from torch import Tensor

from dinoneck.errors import ConfigError, DataError, DinoneckError, StoreError
from dinoneck.grid import GridSize
from dinoneck.progress import progress
from dinoneck.store.description import SCALE_FILE, Description, read_scale
from dinoneck.store.encoding import Columns, Layout, QuantisedTokens, row_buffers
from dinoneck.store.files import Files, Piece
from dinoneck.store.index import FILE, build_index, open_index
from dinoneck.store.shards import CHECKSUM_BYTES, Entry, checksum, read_entries, shards_of
from dinoneck.tokens import Tokens

logger = logging.getLogger(__name__)

Stored = tuple[Sequence[Tensor], Callable[[Sequence[Tensor]], Tokens]]
Check = Literal["first", "always", "never"]
_RECORD_IDS = 10_000


def _pieces(entry: Entry, view: int, parts: list[list[memoryview]], layout: Layout) -> list[Piece]:
    """What is to be read of a view: a range of the shard for each part, into one buffer per layer."""
    places = zip(entry.begins(), layout.parts, parts, strict=True)
    return [(entry.shard, begin + view * part.nbytes, memory) for begin, part, memory in places if part.nbytes]


class Reader:
    """Finds images in the index and reads them.

    Args:
        files: of the store.
        description: of the store.
        check: compare a view with its checksum at its ``first`` read by this object, ``always`` or ``never``.
    """

    def __init__(self, files: Files, description: Description, *, check: Check = "first") -> None:
        if check not in get_args(Check):
            raise ConfigError(f"check is {check!r}; expected one of {', '.join(get_args(Check))}")
        self.files, self.description, self.check = files, description, check
        self.scale: Tensor | None = None  # of int8, (layers, channels); None before anything is stored
        self.made = description.digest  # what the shards of this store begin with
        self._lock = threading.Lock()
        self.refresh()

    def __reduce__(self) -> Any:  # connections and open files stay in their process
        return functools.partial(Reader, check=self.check), (self.files, self.description)

    def refresh(self, *, rebuild: bool = False, write: bool = False) -> None:
        """Look again at what the store holds.

        Args:
            rebuild: build the index from the headers of all shards.
            write: write the index if its file lacks shards.
        """
        own, layouts = self.description, self.description.layout
        with self._lock:
            self.files.forget()
            if own.dtype == "int8":
                scale = read_scale(self.files, (own.num_layers, own.backbone["embed_dim"]))
                if scale is None and shards_of(self.files):
                    raise StoreError(f"{self.files}/{SCALE_FILE} is missing: int8 needs it; copy it back")
                self.scale, number = scale or (None, 0)
                self.made = f"{own.digest}-{number:016x}"
            build = build_index if rebuild else open_index
            entries = build(self.files, self.made, layouts)
            if write and entries.later:
                entries = build_index(self.files, self.made, layouts, entries.path)
            # whether a view was compared with its checksum; memory is taken when it is used
            entries.checked = np.zeros((entries.rows, len(own.views)), np.bool_)
            self.entries = entries

    @property
    def ids(self) -> tuple[str, ...]:
        """All ids, sorted."""
        try:
            return self.entries.ids
        except StoreError:  # the index is damaged
            self.refresh(rebuild=True)
        return self.entries.ids

    def columns(self, ids: Sequence[str], views: int | Sequence[int] | None) -> tuple[Columns, GridSize]:
        """Read views as they are stored: part name -> one (B, ...) tensor per layer, and their grid.

        Raises:
            DataError: if an id or a view is unknown, or the images have different grids.
            StoreError: if a shard is missing, cut short or damaged.
        """
        numbers = self.numbers(ids, views)
        try:
            return self._read(ids, numbers)
        except DinoneckError as error:
            if not self._is_outdated(ids):
                raise
            logger.warning("%s: the shards are not those of the index, which is built again (%s)", self.files, error)
        self.refresh(rebuild=True)
        return self._read(ids, numbers)

    def _read(self, ids: Sequence[str], views: Sequence[int]) -> tuple[Columns, GridSize]:
        entries = self.entries  # another thread may refresh meanwhile
        found = entries.find(ids)
        layout = self._layout([entry for _, entry in found], views)
        columns = layout.allocate(len(found))  # part -> L x (B, ...)
        buffers = row_buffers(columns, len(found))  # row -> part -> one per layer
        places = list(zip(found, views, buffers, strict=True))
        for begin in range(0, len(places), self.files.at_once):
            some = places[begin : begin + self.files.at_once]
            self.files.fill([p for (_, entry), view, parts in some for p in _pieces(entry, view, parts, layout)])
            for (row, entry), view, parts in some:
                if self.check == "always" or (self.check == "first" and not entries.checked[row, view]):
                    self._compare(entry, view, parts)
                    entries.checked[row, view] = True
        return columns, layout.grid

    def _compare(self, entry: Entry, view: int, parts: list[list[memoryview]]) -> None:
        """Compare the bytes of a view with its checksum; StoreError if they differ."""
        value = checksum(self.made, entry.id, entry.grid, view, itertools.chain(*parts))
        if value != entry.checksums[view * CHECKSUM_BYTES : (view + 1) * CHECKSUM_BYTES]:
            raise StoreError(
                f"{self.files}/{entry.shard} is damaged: view {view} of {entry.id!r} has another checksum; delete that "
                "file and extract its images again"
            )

    def _layout(self, entries: Sequence[Entry], views: Sequence[int]) -> Layout:
        """The layout of these images in these views; all must have one grid."""
        turned = [self.description.views.turns(view) % 2 for view in range(len(self.description.views))]
        grids = {entry.grid[::-1] if turned[view] else entry.grid for entry, view in zip(entries, views, strict=True)}
        if len(grids) != 1:
            sizes = ", ".join(f"{rows}x{cols}" for rows, cols in sorted(grids)[:5])
            turn = "; views with quarter turns swap rows and columns" if any(turned) else ""
            if not grids:
                raise DataError("no ids given")
            raise DataError(f"the images have different grids ({sizes}{turn}); batch those of one")
        layout = self.description.layout(GridSize(*grids.pop()))
        for entry in entries:
            if len(entry.offsets) != 8 * len(layout.parts) or len(entry.checksums) != CHECKSUM_BYTES * len(turned):
                raise StoreError(f"the index of {self.files} is damaged where it lists {entry.id!r}; delete {FILE}")
        return layout

    def _is_outdated(self, ids: Sequence[str]) -> bool:
        """Whether the index has other rows for these images than the headers of their shards."""
        try:
            rows = [entry for several in self.entries.lookup(ids).values() for _, entry in several]
        except StoreError:
            return True
        there = shards_of(self.files)
        named = {entry.shard: there[entry.shard] for entry in rows if entry.shard in there}
        headers = read_entries(self.files, named, self.made, self.description.layout)
        found = {name: entries for name, _, entries in headers if not isinstance(entries, StoreError)}
        return any(row.shard not in there or row not in found.get(row.shard, [row]) for row in rows)

    def is_sound(self, entry: Entry) -> bool:
        """Whether all views of an image are there and have their checksums."""
        layout = self.description.layout(entry.grid)
        [parts] = row_buffers(layout.allocate(1), 1)
        try:
            for view in range(len(self.description.views)):
                self.files.fill(_pieces(entry, view, parts, layout))
                self._compare(entry, view, parts)
        except StoreError:
            return False
        return True

    def stored(self, columns: Columns, grid: GridSize) -> Stored:
        """Return the tensors of what :meth:`columns` read, and a function that makes float32 Tokens of them."""
        columns = columns | ({} if self.scale is None else {"channel_scale": tuple(self.scale)})

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
        scale = columns.get("channel_scale") or tuple(cast("Tensor", self.scale))
        return QuantisedTokens(columns["q"], columns["scale"], columns["prefix"], scale, like)

    def record(self, ids: Sequence[str]) -> dict[str, Any]:
        """Return what identifies these images' tokens, wherever the store lies: what made them, and their checksums."""
        checksums = hashlib.sha256()
        for begin in range(0, len(ids), _RECORD_IDS):
            for _, entry in self.entries.find(ids[begin : begin + _RECORD_IDS]):
                checksums.update(repr((entry.id, entry.rows, entry.cols, entry.checksums)).encode())
        return {"kind": "store", "made": self.made, "records": checksums.hexdigest()}

    def numbers(self, ids: Sequence[str], views: int | Sequence[int] | None) -> list[int]:
        """Return one view per id.

        Raises:
            DataError: if a view does not exist, or there is not one per id.
        """
        if isinstance(ids, str) or not isinstance(ids, Sized):
            what = "the string " if isinstance(ids, str) else ""
            raise DataError(f"ids is {what}{ids!r}; expected a sequence of ids")
        is_one = not isinstance(views, Sequence) and getattr(views, "ndim", 0) == 0  # arrays have axes
        asked: Any = [views or 0] * len(ids) if is_one else views
        try:
            given = [operator.index(view) for view in asked]
        except TypeError:
            raise DataError(f"views is {views!r}; expected whole numbers: one, or one per id") from None
        if len(given) != len(ids):
            raise DataError(f"{len(given)} views for {len(ids)} ids")
        last = len(self.description.views) - 1
        if wrong := [view for view in given if not 0 <= view <= last]:
            raise DataError(f"view {wrong[0]} does not exist; {self.files} holds 0 ... {last}")
        return given


def damaged_shards(reader: Reader) -> dict[str, str]:
    """Return what cannot be trusted: id, or the name of a shard or of the index -> the file to delete.

    Every header and every view is read. An image is sound if the index has the row that its shard's header gives, all
    its views have their checksums, and no other image is stored under its id. A shard whose header is damaged, or that
    belongs to another store, stands for its images. An index with other rows than the headers is built again.
    """
    there = shards_of(reader.files)  # before the index: it has these at least, whatever is written meanwhile
    reader.refresh()
    damaged: dict[str, str] = {}
    try:
        collections.deque(reader.entries.every(), maxlen=0)  # reads every row
    except StoreError:
        reader.refresh(rebuild=True)
        damaged[FILE] = FILE
    wrong_rows, met, hashes = set[str](), set[str](), dict[str, str]()
    by_shard = itertools.groupby(reader.entries.every(), key=lambda entry: entry.shard)
    indexed = ((name, {entry.id: entry for entry in entries}) for name, entries in by_shard)
    with progress(total=len(there), desc="verify", unit="shard") as bar:
        for name, rows in itertools.chain(indexed, ((name, dict[str, Entry]()) for name in there)):
            if not rows and name in met:
                continue
            met.add(name)
            bar.update()
            shard = {name: there.get(name)}
            [(_, _, entries)] = read_entries(reader.files, shard, reader.made, reader.description.layout)
            if isinstance(entries, StoreError):
                damaged |= dict.fromkeys(rows, name) or {name: name}
                continue
            headers = {entry.id: entry for entry in entries}
            wrong_rows |= {key for key in headers.keys() | rows.keys() if headers.get(key) != rows.get(key)}
            damaged |= {entry.id: name for entry in entries if not reader.is_sound(entry)}
            damaged |= {e.id: name for e in entries if hashes.setdefault(e.id, e.blake2b) != e.blake2b}
    if wrong_rows:
        reader.refresh(rebuild=True)
    return dict.fromkeys(wrong_rows, FILE) | damaged


def shard_of(reader: Reader, image_id: str) -> str:
    """Return the shard of an image; a file's own name stands for it.

    Raises:
        DataError: if there is none.
    """
    known = reader.entries.known([image_id])
    if not known and image_id in (FILE, *shards_of(reader.files)):
        return image_id
    return (known.get(image_id) or reader.entries.find([image_id])[0][1]).shard
