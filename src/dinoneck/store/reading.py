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

from dinoneck.errors import ConfigError, DataError, DinoneckError, StoreError
from dinoneck.grid import GridSize
from dinoneck.progress import progress
from dinoneck.store.description import DATA, SCALE_FILE, Description, read_scale
from dinoneck.store.encoding import Columns, Part, QuantisedTokens, allocate, row_buffers
from dinoneck.store.files import Files, Piece
from dinoneck.store.index import FILE, Index, build_index, open_index
from dinoneck.store.shards import CHECKSUM_BYTES, Entry, Shards, checksum
from dinoneck.text import counted, some_of
from dinoneck.tokens import Tokens

logger = logging.getLogger(__name__)

Stored = tuple[Sequence[Tensor], Callable[[Sequence[Tensor]], Tokens]]
Check = Literal["first", "always", "never"]
ViewNumbers = int | Sequence[int] | None
_DIGEST_BYTES = 16
# images whose rows of the index are read at once for a digest, so that memory stays flat
_LOOKED_UP = 10_000
_NAMED = 3  # shards in a message


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
        dtype: torch.dtype | None = torch.float32,
    ) -> Tokens:
        """Read the tokens of these images, in this order, straight into one buffer per layer.

        Args:
            ids: image ids; repeats are allowed.
            views: one for each, or one for all; None = 0.
            dtype: of the Tokens; None = as stored, without a cast (float32 for int8 stores).

        Raises:
            DataError: if an id or a view is not there, or the images have different grids.
            StoreError: if a shard is missing, cut short or damaged, or different images were stored
                under one id.
        """
        return self.description.tokens(*self.columns(ids, views), dtype)

    def stored(self, ids: Sequence[str], views: Sequence[int] | None = None) -> Stored:
        """Return the tensors of a batch as they are stored, and a function that makes Tokens of them; for training."""
        columns, grid = self.columns(ids, views)

        def tokens(tensors: Sequence[Tensor]) -> Tokens:
            values = iter(tensors)
            moved = {name: tuple(next(values) for _ in part) for name, part in columns.items()}
            return self.description.tokens(moved, grid)

        return [x for part in columns.values() for x in part], tokens

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
        self.files, self.description, self.check = files, description, check
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
        own = self.description
        with self._lock:
            self.files.forget()
            made = own.digest
            if own.dtype == "int8":
                scale = read_scale(self.files, (own.num_layers, own.backbone["embed_dim"]))
                if scale is None and self.files.sizes(DATA):
                    raise StoreError(
                        f"{self.files}/{SCALE_FILE} is missing: int8 needs it; copy it back"
                    )
                self.scale, number = scale or (None, 0)
                made = f"{made}-{number:016x}"
            shards = Shards(self.files, made, own.parts)
            entries = build_index(shards) if rebuild else open_index(shards)
            if write and entries.later:
                entries = build_index(shards, entries.path)
            # whether a view was compared with its checksum; memory is taken when it is used
            entries.checked = np.zeros((entries.rows, len(own.views)), np.bool_)
            self.shards, self.entries = shards, entries

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
            found = self.entries.lookup([image_id])
        except StoreError:  # the index is damaged
            self.refresh(rebuild=True)
            found = self.entries.lookup([image_id])
        return image_id in found

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
                some_of(outdated, _NAMED),
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
            for _, entry in self.entries.find(ids[begin : begin + _LOOKED_UP]):
                total.update(entry.checksums)
        return total.hexdigest()

    def _read(self, ids: Sequence[str], views: Sequence[int]) -> tuple[Columns, GridSize]:
        entries = self.entries  # another thread may refresh meanwhile
        rows, found = zip(*entries.find(ids), strict=True)
        grid = self._grid_of(found, views)
        known = [self.check == "never"] * len(rows)
        if self.check == "first":
            self._forget_checks_of_rewritten(entries, {entry.shard for entry in found})
            known = entries.checked[rows, views].tolist()
        columns = self._fill(found, views, known)
        entries.checked[rows, views] = True
        return columns | ({} if self.scale is None else {"channel_scale": tuple(self.scale)}), grid

    def _forget_checks_of_rewritten(self, entries: Index, shards: Iterable[str]) -> None:
        """Compare views with their checksums again where one of these shards was written to while it was open."""
        for name in shards:
            state = self.files.state(name)
            if entries.states.setdefault(name, state) != state:
                entries.states[name] = state
                entries.checked[:] = False

    def _fill(
        self, entries: Sequence[Entry], views: Sequence[int], known: Sequence[bool]
    ) -> Columns:
        """Read views of images; those that are not ``known`` to be sound are compared with their checksums."""
        parts = self.description.parts(entries[0].grid.count)
        self._check_size(entries[0], parts)
        columns = allocate(parts, len(entries))  # part -> L x (B, ...)
        places = list(zip(entries, views, row_buffers(columns, len(entries)), known, strict=True))
        for begin in range(0, len(places), self.files.at_once):
            some = places[begin : begin + self.files.at_once]
            self.files.fill(
                [
                    piece
                    for entry, view, rows, _ in some
                    for piece in _pieces(entry, view, rows, parts)
                ]
            )
            for entry, view, rows, is_known in some:
                stored = entry.checksums[view * CHECKSUM_BYTES : (view + 1) * CHECKSUM_BYTES]
                seed = (self.shards.made, entry.id, entry.grid, view)
                if not is_known and stored != checksum(*seed, itertools.chain(*rows)):
                    problem = (
                        f"view {view} of {entry.id!r} has another checksum; delete that "
                        "file and extract again"
                    )
                    raise StoreError(f"{self.files}/{entry.shard} is damaged: {problem}")
        return columns

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
        turned = [view.turns % 2 for view in self.description.views.views]
        grids = {
            entry.grid[::-1] if turned[view] else entry.grid
            for entry, view in zip(entries, views, strict=True)
        }
        if len(grids) > 1:
            sizes = ", ".join(f"{rows}x{cols}" for rows, cols in sorted(grids)[:5])
            remedy = (
                "extract with one size (image_size=, --size), square for quarter turns, or "
                "use views without these"
            )
            raise DataError(f"the images have different grids ({sizes}); {remedy}")
        return GridSize(*grids.pop())

    def check_grids(self, ids: Sequence[str], count: int) -> None:
        """Refuse images whose first ``count`` views have different grids: a quarter turn swaps rows and columns.

        Raises:
            DataError: naming the grids and the remedy.
        """
        for _, entry in self.entries.find(ids):
            self._grid_of([entry] * count, range(count))

    def _lacks_shards(self, ids: Sequence[str]) -> bool:
        """Whether a shard is not there that the index names for these images."""
        try:
            found = self.entries.lookup(ids)
        except StoreError:  # the index is damaged
            return False
        sizes = self.shards.sizes()
        return any(entry.shard not in sizes for several in found.values() for _, entry in several)

    def _outdated(self, ids: Sequence[str]) -> list[str]:
        """The shards of which the index has other rows for these images than their headers; itself if it is damaged."""
        try:
            rows = [entry for several in self.entries.lookup(ids).values() for _, entry in several]
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
        asked, count = np.asarray(0 if views is None else views), len(self.description.views)
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
        """Return what cannot be trusted: id, or the name of a shard or of the index -> the file to delete.

        Every header and every view is read. An image is sound if the index has the row that its
        shard's header gives, all its views have their checksums, and no other image is stored under
        its id. A shard whose header is damaged, or that belongs to another store, stands for its
        images. An index with other rows than the headers is built again.
        """
        # before the index: it has these at least, whatever is written meanwhile
        sizes = self.shards.sizes()
        self.refresh()
        damaged, wrong_rows, hashes = dict[str, str](), set[str](), dict[str, str]()
        try:
            listed = self._rows_of(sizes)
        except StoreError:
            self.refresh(rebuild=True)
            damaged, listed = {FILE: FILE}, self._rows_of(sizes)
        for name, rows in progress(listed.items(), desc="verify", unit="shard"):
            [(_, entries)] = self.shards.entries({name: sizes.get(name, 0)})
            if not entries:
                damaged |= {image_id: name for image_id, _ in rows} or {name: name}
                continue
            wrong_rows |= {
                image_id for image_id, _ in rows ^ {(entry.id, hash(entry)) for entry in entries}
            }
            damaged |= {entry.id: name for entry in entries if not self._is_sound(entry)}
            damaged |= {
                e.id: name for e in entries if hashes.setdefault(e.id, e.blake2b) != e.blake2b
            }
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
    """What is to be read of a view: a range of the shard for each part, into one buffer per layer."""
    if len(entry.offsets) != 8 * len(parts):
        raise StoreError(f"{FILE} is damaged where it lists {entry.id!r}; delete it")
    places = zip(entry.begins(), parts, buffers, strict=True)
    return [
        (entry.shard, begin + view * part.nbytes, memory)
        for begin, part, memory in places
        if part.nbytes
    ]
