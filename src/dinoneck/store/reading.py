"""Reading: views of many images straight into one buffer per layer, then into Tokens.

:meth:`Reader.columns` is the way of a batch: ids -> rows of the index -> buffers -> bytes of the
shards -> checksums.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from dinoneck.dtypes import float_dtype
from dinoneck.errors import ConfigError, DataError, DinoneckError, StoreError
from dinoneck.grid import GridSize
from dinoneck.progress import progress
from dinoneck.store.description import DATA, SCALE_FILE, Description, read_scale
from dinoneck.store.encoding import Columns, Part, QuantisedTokens, allocate, row_buffers
from dinoneck.store.files import Files, Piece
from dinoneck.store.index import FILE, Index, build_index, open_index
from dinoneck.store.shards import CHECKSUM_BYTES, OFFSET_BYTES, Entry, Shards, checksum
from dinoneck.text import counted, some_of
from dinoneck.tokens import Tokens

logger = logging.getLogger(__name__)

Stored = tuple[Sequence[Tensor], Callable[[Sequence[Tensor]], Tokens]]
Check = Literal["first", "always", "never"]
ViewNumbers = int | Sequence[int] | None
_DIGEST_BYTES = 16
# images whose rows of the index are read at once for a digest, so that memory stays flat
_LOOKED_UP = 10_000
_NAMED_SHARDS = 3  # in a message
_NAMED_GRIDS = 5  # in a message


class StoredTokens(ABC):
    """What gives stored tokens by image id and view: a store, or a part of it in memory.

    A container of image ids: ``len(store)``, ``image_id in store`` and ``for image_id in store``.

    Attributes:
        description: of the store.
    """

    description: Description

    @property
    @abstractmethod
    def ids(self) -> tuple[str, ...]:
        """All ids."""

    @abstractmethod
    def _has(self, image_id: str) -> bool:
        """Whether an image is stored under this id."""

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[str]:
        return iter(self.ids)

    def __contains__(self, image_id: object) -> bool:
        """Return whether an image is stored under this id; no tokens are read."""
        return isinstance(image_id, str) and self._has(image_id)

    def _facts(self) -> str:
        """How much is stored, and what made it, on one line."""
        record = self.description.backbone
        facts = [
            f"{counted(len(self), 'image')} x {counted(len(self.description.views), 'view')}",
            self.description.dtype,
            f"backbone={record.get('name')!r}",
        ]
        if record.get("layers"):
            facts.append(f"layers={tuple(record['layers'])}")
        if self.description.preprocess.size is not None:
            facts.append(f"size={self.description.preprocess.size}")
        return ", ".join(facts)

    @abstractmethod
    def digest(self, ids: Sequence[str]) -> str:
        """Return one hash of the tokens of these images in all views, in 32 hex digits."""

    @abstractmethod
    def columns(self, ids: Sequence[str], views: ViewNumbers = None) -> tuple[Columns, GridSize]:
        """Return views as they are stored: part name -> one (B, ...) tensor per layer, and their grid."""

    def batch(
        self,
        ids: Sequence[str],
        views: ViewNumbers = None,
        *,
        dtype: torch.dtype | str | None = torch.float32,
    ) -> Tokens:
        """Read the tokens of these images, in this order, straight into one buffer per layer.

        Args:
            ids: image ids; repeats are allowed.
            views: one for each, or one for all; None = 0.
            dtype: of the Tokens, of torch or by name; None = as stored, without a cast (float32 for int8 stores).

        Raises:
            DataError: if an id or a view is not there, or the images have different grids.
            StoreError: if a shard is missing, cut short or damaged, or different images were stored
                under one id.
        """
        if dtype is not None:
            dtype = float_dtype(dtype)
        return self.description.tokens(*self.columns(ids, views), dtype)

    def stored(self, ids: Sequence[str], views: Sequence[int] | None = None) -> Stored:
        """Return the tensors of a batch as they are stored, and a function that makes Tokens of them; for training."""
        columns, grid = self.columns(ids, views)
        stored: list[Tensor] = []
        for layers in columns.values():
            stored.extend(layers)

        def make_tokens(moved: Sequence[Tensor]) -> Tokens:
            moved_columns: Columns = {}
            begin = 0
            for name, layers in columns.items():
                end = begin + len(layers)
                moved_columns[name] = tuple(moved[begin:end])
                begin = end
            return self.description.tokens(moved_columns, grid)

        return stored, make_tokens

    def quantised(self, ids: Sequence[str], views: ViewNumbers = None) -> QuantisedTokens:
        """Return int8 tokens as they are stored, to be pooled or projected without dequantising.

        Raises:
            StoreError: if this is not an int8 store; else like :meth:`batch`.
        """
        return self.description.quantised(*self.columns(ids, views))


class Reader(StoredTokens):
    """Finds images in the index and reads them.

    Args:
        files: of the store.
        description: of the store.
        check: compare a view with its checksum at its ``first`` read by this object and after its
            shard was written to, ``always`` or ``never``.

    Raises:
        ConfigError: if ``check`` is another word.
    """

    def __init__(self, files: Files, description: Description, *, check: Check = "first") -> None:
        if check not in get_args(Check):
            raise ConfigError(f"check is {check!r}; expected one of {', '.join(get_args(Check))}")
        self.files = files
        self.description = description
        self.check = check
        # of int8, (layers, channels); None before anything is stored
        self.scale: Tensor | None = None
        self._lock = threading.Lock()
        self.refresh()

    def __reduce__(self) -> Any:  # connections and open files stay in their process
        return functools.partial(type(self), check=self.check), (self.files, self.description)

    def refresh(self, *, rebuild: bool = False, write: bool = False) -> None:
        """Look again at what the store holds: other writers may have added images.

        Args:
            rebuild: build the index from the headers of all shards.
            write: write the index if its file lacks shards.

        Raises:
            StoreError: if the channel scale of an int8 store is missing or damaged, or an index has
                to be built and cannot be written anywhere.
        """
        description = self.description
        with self._lock:
            self.files.forget()
            made = description.digest
            if description.dtype == "int8":
                made = f"{made}-{self._read_scale():016x}"
            shards = Shards(self.files, made, description.parts)
            entries = build_index(shards) if rebuild else open_index(shards)
            if write and entries.later:
                entries = build_index(shards, entries.path)
            # whether a view was compared with its checksum; memory is taken when it is used
            entries.checked = np.zeros((entries.rows, len(description.views)), np.bool_)
            self.shards = shards
            self.entries = entries

    def _read_scale(self) -> int:
        """Read the channel scale of an int8 store; return its checksum, or 0 for an empty store without one.

        Raises:
            StoreError: if it is missing or damaged.
        """
        shape = (self.description.num_layers, self.description.backbone["embed_dim"])
        scale = read_scale(self.files, shape)
        if scale is not None:
            self.scale, checksum_of_scale = scale
            return checksum_of_scale
        if self.files.sizes(DATA):
            raise StoreError(f"{self.files}/{SCALE_FILE} is missing: int8 needs it; copy it back")
        self.scale = None
        return 0

    @property
    def ids(self) -> tuple[str, ...]:
        """All ids, sorted."""
        try:
            return self.entries.ids
        except StoreError:  # the index is damaged
            self.refresh(rebuild=True)
        return self.entries.ids

    def _has(self, image_id: str) -> bool:
        # one row of the index is read: the list of all ids may be long
        try:
            return image_id in self.entries.lookup([image_id])
        except StoreError:  # the index is damaged
            self.refresh(rebuild=True)
        return image_id in self.entries.lookup([image_id])

    def columns(self, ids: Sequence[str], views: ViewNumbers = None) -> tuple[Columns, GridSize]:
        """Read views as they are stored: part name -> one (B, ...) tensor per layer, and their grid.

        The ``channel_scale`` of int8, (C,) per layer, is all images'.

        Raises:
            DataError: if an id or a view is unknown, or the images have different grids.
            StoreError: if a shard is missing, cut short or damaged, or was replaced by one with other
                images.
        """
        numbers = self.view_numbers(ids, views)
        try:
            return self._read(ids, numbers)
        except DinoneckError as error:
            outdated = self._outdated(ids)
            if not outdated:
                raise
            first_error = error
            # not the error's words: they ask to delete a shard, which may be sound
            logger.warning(
                "%s: the index is not that of %s; it is built again",
                self.files,
                some_of(outdated, _NAMED_SHARDS),
            )
        are_shards_gone = self._lacks_shards(ids)
        self.refresh(rebuild=True)
        if are_shards_gone and any(image_id not in self for image_id in ids):
            raise first_error  # it names the shard, which the new index no longer does
        return self._read(ids, numbers)

    def digest(self, ids: Sequence[str]) -> str:
        """Return one hash of the tokens of these images in all views, in 32 hex digits.

        It is made of the checksums of the views, so no token is read. A store that was made again
        from the same images by the same backbone has the same one; other images, another backbone
        or other views give another one.

        Raises:
            DataError: if an id is unknown.
            StoreError: if different images were stored under one id, or the index is damaged.
        """
        total = hashlib.blake2b(self.shards.made.encode(), digest_size=_DIGEST_BYTES)
        for begin in range(0, len(ids), _LOOKED_UP):
            some_ids = ids[begin : begin + _LOOKED_UP]
            for _, entry in self.entries.find(some_ids):
                total.update(entry.checksums)
        return total.hexdigest()

    def _read(self, ids: Sequence[str], views: Sequence[int]) -> tuple[Columns, GridSize]:
        index = self.entries  # another thread may refresh meanwhile
        rows, entries = zip(*index.find(ids), strict=True)
        grid = self._grid_of(entries, views)
        are_checked = [self.check == "never"] * len(rows)
        if self.check == "first":
            self._forget_checks_of_rewritten(index, {entry.shard for entry in entries})
            are_checked = index.checked[rows, views].tolist()
        columns = self._fill(entries, views, are_checked)
        index.checked[rows, views] = True
        if self.scale is not None:
            columns["channel_scale"] = tuple(self.scale)
        return columns, grid

    def _forget_checks_of_rewritten(self, index: Index, shards: Iterable[str]) -> None:
        """Compare views with their checksums again where one of these shards was written to while it was open."""
        for name in shards:
            state = self.files.state(name)
            if name not in index.states:
                index.states[name] = state
            elif index.states[name] != state:
                index.states[name] = state
                index.checked[:] = False

    def _fill(
        self, entries: Sequence[Entry], views: Sequence[int], are_checked: Sequence[bool]
    ) -> Columns:
        """Read views of images; those that are not checked already are compared with their checksums."""
        parts = self.description.parts(entries[0].grid.count)
        self._check_size(entries[0], parts)
        columns = allocate(parts, len(entries))  # part -> L x (B, ...)
        buffers = row_buffers(columns, len(entries))
        for begin in range(0, len(entries), self.files.at_once):
            numbers = range(begin, min(begin + self.files.at_once, len(entries)))
            pieces: list[Piece] = []
            for i in numbers:
                pieces += _pieces(entries[i], views[i], buffers[i], parts)
            self.files.fill(pieces)
            for i in numbers:
                if not are_checked[i]:
                    self._check_view(entries[i], views[i], buffers[i])
        return columns

    def _check_view(self, entry: Entry, view: int, buffers: Sequence[Sequence[memoryview]]) -> None:
        """Compare what was read of a view with its checksum.

        Raises:
            StoreError: naming the shard and the image, if it has another one.
        """
        stored = entry.checksums[view * CHECKSUM_BYTES : (view + 1) * CHECKSUM_BYTES]
        chunks = itertools.chain(*buffers)
        if stored != checksum(self.shards.made, entry.id, entry.grid, view, chunks):
            raise StoreError(
                f"{self.files}/{entry.shard} is damaged: view {view} of {entry.id!r} has another "
                "checksum; delete that file and extract again"
            )

    def _check_size(self, entry: Entry, parts: Sequence[Part]) -> None:
        """Reject an image whose view is larger than its shard, before memory is taken for it.

        Raises:
            StoreError: naming both sizes; the shard is cut short, or the index states another grid.
        """
        view_bytes = sum(part.nbytes for part in parts)
        shard_bytes = self.files.state(entry.shard).size
        if view_bytes > shard_bytes:
            raise StoreError(
                f"{self.files}/{entry.shard} has {shard_bytes} bytes, and a view of {entry.id!r} on "
                f"{entry.rows}x{entry.cols} patches alone {view_bytes}: it is cut short; delete "
                "that file and extract its images again"
            )

    def _grid_of(self, entries: Sequence[Entry], views: Sequence[int]) -> GridSize:
        """The grid of these images in these views; all must have one."""
        are_turned = [bool(view.turns % 2) for view in self.description.views.views]
        grids = set()
        for entry, view in zip(entries, views, strict=True):
            rows, cols = entry.rows, entry.cols
            grids.add(GridSize(cols, rows) if are_turned[view] else GridSize(rows, cols))
        if len(grids) > 1:
            some_grids = sorted(grids)[:_NAMED_GRIDS]
            sizes = ", ".join(f"{rows}x{cols}" for rows, cols in some_grids)
            raise DataError(
                f"the images have different grids ({sizes}); extract with one size (image_size=, "
                "--size), square for quarter turns, or use views without these"
            )
        return grids.pop()

    def check_grids(self, ids: Sequence[str], count: int) -> None:
        """Reject images whose first ``count`` views have different grids: a quarter turn swaps rows and columns.

        Raises:
            DataError: naming the grids and the remedy.
        """
        for _, entry in self.entries.find(ids):
            self._grid_of([entry] * count, range(count))

    def _lacks_shards(self, ids: Sequence[str]) -> bool:
        """Whether a shard that the index names for these images is missing."""
        try:
            entries = self._listed_entries(ids)
        except StoreError:  # the index is damaged
            return False
        sizes = self.shards.sizes()
        return any(entry.shard not in sizes for entry in entries)

    def _listed_entries(self, ids: Sequence[str]) -> list[Entry]:
        """All rows of the index for these images.

        Raises:
            StoreError: if the index is damaged.
        """
        entries = []
        for found in self.entries.lookup(ids).values():
            entries += [entry for _, entry in found]
        return entries

    def _outdated(self, ids: Sequence[str]) -> list[str]:
        """The shards whose headers and the index differ in these images; the index's file if it is damaged."""
        try:
            rows = self._listed_entries(ids)
        except StoreError:
            return [FILE]
        self.files.forget()
        sizes = self.shards.sizes()
        named = {row.shard: sizes[row.shard] for row in rows if row.shard in sizes}
        headers = dict(self.shards.entries(named))
        self._check_same_images(rows, headers)
        outdated = []
        for row in rows:
            is_gone = row.shard not in sizes
            # a header that is damaged has no rows: the shard is at fault, not the index
            if is_gone or (headers[row.shard] and row not in headers[row.shard]):
                outdated.append(row.shard)
        return list(dict.fromkeys(outdated))

    def _check_same_images(
        self, rows: Sequence[Entry], headers: Mapping[str, Sequence[Entry]]
    ) -> None:
        """Reject a shard that holds another image than its row of the index under one id.

        A shard is never changed once it is written: another file was copied over it.

        Raises:
            StoreError: naming the shard and the image.
        """
        for row in rows:
            for stored in headers.get(row.shard, ()):
                if stored.id == row.id and stored.blake2b != row.blake2b:
                    raise StoreError(
                        f"{self.files}/{row.shard} was replaced: it holds another image under the "
                        f"id {row.id!r} than the index states. Copy the right file back; to use "
                        f"the new images, delete {self.entries.path} and open the store again"
                    )

    def _is_sound(self, entry: Entry) -> bool:
        """Whether all views of an image are there and have their checksums."""
        views = range(len(self.description.views))
        try:
            self._fill([entry] * len(views), views, [False] * len(views))
        except StoreError:
            return False
        return True

    def view_numbers(self, ids: Sequence[str], views: ViewNumbers) -> list[int]:
        """Return one view per id.

        Raises:
            DataError: if there are no ids, a view does not exist, or there is not one per id.
        """
        if isinstance(ids, str):
            raise DataError(f"ids is the text {ids!r}; expected a list of ids: [{ids!r}]")
        if not len(ids):
            raise DataError("there are no ids; expected one or more")
        asked = np.asarray(0 if views is None else views)
        count = len(self.description.views)
        if asked.dtype.kind not in "iu":
            raise DataError(f"views is {views!r}; expected whole numbers: one, or one per id")
        if asked.shape not in ((), (len(ids),)):
            raise DataError(
                f"views has {counted(asked.size, 'number')} for {counted(len(ids), 'id')}; expected "
                "one number for all, or one per id"
            )
        if not ((asked >= 0) & (asked < count)).all():
            raise DataError(f"views is {views!r}; {self.files} holds the views 0 ... {count - 1}")
        return np.broadcast_to(asked, len(ids)).tolist()  # type: ignore[no-any-return]

    def damaged(self) -> dict[str, str]:
        """Return what cannot be trusted: an id, or the name of a shard or of the index -> the file to delete.

        Every header and every view is read. An image is sound if the index has the row that its
        shard's header gives, all its views have their checksums, and no other image is stored under
        its id. A shard whose header is damaged, or that belongs to another store, stands for its
        images. An index with other rows than the headers is built again.
        """
        # before the index: it has these at least, whatever is written meanwhile
        sizes = self.shards.sizes()
        self.refresh()
        damaged: dict[str, str] = {}
        try:
            listed = self._rows_of(sizes)
        except StoreError:
            self.refresh(rebuild=True)
            damaged[FILE] = FILE
            listed = self._rows_of(sizes)
        wrong_rows: set[str] = set()  # ids
        hashes: dict[str, str] = {}  # id -> hash of the image's file
        for name, rows in progress(listed.items(), desc="verify", unit="shard"):
            [(_, entries)] = self.shards.entries({name: sizes.get(name, 0)})
            if not entries:
                images = {image_id: name for image_id, _ in rows}
                damaged |= images or {name: name}
                continue
            stored_rows = {(entry.id, hash(entry)) for entry in entries}
            wrong_rows |= {image_id for image_id, _ in rows ^ stored_rows}
            for entry in entries:
                if not self._is_sound(entry):
                    damaged[entry.id] = name
            for entry in entries:
                if hashes.setdefault(entry.id, entry.blake2b) != entry.blake2b:
                    damaged[entry.id] = name
        if wrong_rows:
            self.refresh(rebuild=True)
        return dict.fromkeys(wrong_rows, FILE) | damaged

    def _rows_of(self, shards: Iterable[str]) -> dict[str, set[tuple[str, int]]]:
        """The rows of the index: shard -> id and hash of every row; also for shards without rows."""
        rows: dict[str, set[tuple[str, int]]] = {name: set() for name in shards}
        for entry in self.entries.every():
            rows.setdefault(entry.shard, set()).add((entry.id, hash(entry)))
        return rows


def _pieces(
    entry: Entry, view: int, buffers: list[list[memoryview]], parts: Sequence[Part]
) -> list[Piece]:
    """The ranges of a shard to read for a view: one per part, into one buffer per layer."""
    if len(entry.offsets) != OFFSET_BYTES * len(parts):
        raise StoreError(f"{FILE} is damaged where it lists {entry.id!r}; delete it")
    pieces: list[Piece] = []
    for begin, part, layers in zip(entry.begins(), parts, buffers, strict=True):
        view_bytes = part.nbytes
        if view_bytes:
            pieces.append(Piece(entry.shard, begin + view * view_bytes, layers))
    return pieces
