"""Shards, the only truth of a store: plain safetensors files with the tokens of some images, never changed.

A shard holds one tensor ``<id>/<part>`` of shape (views, layers, ...) per image and part. Its
metadata, all text:

* ``made``: what made the tokens: the digest of ``store.json``, for int8 followed by the checksum of
  the channel scale.
* ``root``: the folder that the ids are relative to.
* ``images``: a JSON list of ``[id, rows, cols, checksums, hash, bytes, mtime]``: 16 hex digits of
  XXH3 per view, then the BLAKE2b hash, size and modification time (ns) of the image's file.
* ``facts``: 16 hex digits of XXH3 over the three above; shards of dinoneck 0.3 lack it.

A view's checksum begins with ``made``, id, grid and number of the view, so it fits that view of
that image alone.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import secrets
import struct
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import msgspec
from msgspec import Meta, Struct
from safetensors.torch import save
from torch import Tensor
from xxhash import xxh3_64

from dinoneck.atomic import STALE_AFTER_S, write_whole
from dinoneck.devices import bytes_of
from dinoneck.dtypes import FILE_NAMES
from dinoneck.grid import GridSize
from dinoneck.store.description import DATA
from dinoneck.store.encoding import Part
from dinoneck.store.files import Files, Piece, failed_write

SUFFIX = ".safetensors"
SHARD_BYTES = 64 << 20  # 64 MiB
SHARD_IMAGES = 4096  # of small images; a header has at most 100 MB
SHARD_SECONDS = 30.0
CHECKSUM_BYTES = 8
OFFSET_BYTES = 8
_FIRST_READ = 1 << 16  # bytes: most headers are shorter
_LENGTH_BYTES = 8  # the length of the header, before it
_CHECKED_ENTRIES = {"made", "root", "images"}
_CHECKSUM_ENTRY = "facts"
# what the names of a store's files begin with, behind the dots of temporary ones
_NAMES_OF_A_STORE = ("store.json", "channel_scale", "index.sqlite", "w-")
Side = Annotated[int, Meta(ge=1, le=1 << 31)]
Whole = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
# an image in the metadata: id, rows, cols, checksums, then the fields of an ImageFile
_Listed = tuple[str, Side, Side, str, str, Whole, Whole]
PartsOfPatches = Callable[[int], tuple[Part, ...]]
"""Gives the parts of a view of so many patches."""


class ImageFile(NamedTuple):
    """What identifies the file of an image.

    Attributes:
        blake2b: its hash, 32 hex digits.
        nbytes: its size.
        mtime_ns: when it was last modified, in ns.
    """

    blake2b: str
    nbytes: int
    mtime_ns: int


logger = logging.getLogger(__name__)


class Entry(Struct, array_like=True, frozen=True):
    """Where an image is, and what identifies it.

    Attributes:
        id: of the image.
        rows: of its patch grid, not turned.
        cols: of its patch grid, not turned.
        checksums: 8 bytes per view.
        blake2b: hash of the image's file, 32 hex digits.
        nbytes: size of that file.
        mtime_ns: when it was last modified.
        offsets: where view 0 of each part begins in the shard, 8 bytes each (little endian).
        shard: its file, relative to the store.
        root: the folder that the id is relative to.
    """

    id: str
    rows: Side
    cols: Side
    checksums: bytes
    blake2b: str
    nbytes: int
    mtime_ns: int
    offsets: bytes
    shard: str
    root: str

    @property
    def grid(self) -> GridSize:
        """The patch grid."""
        return GridSize(self.rows, self.cols)

    def begins(self) -> tuple[int, ...]:
        """Return the byte of the shard where view 0 of each part begins."""
        return struct.unpack(f"<{len(self.offsets) // OFFSET_BYTES}Q", self.offsets)


def is_shard_name(name: str) -> bool:
    """Whether a name, relative to the store, is that of a shard in its folder of shards."""
    folder, _, file = name.partition("/")
    is_file_name = "/" not in file and "\0" not in file and not file.startswith(".")
    return folder == DATA and is_file_name and file.endswith(SUFFIX)


def checksum(
    made: str, image_id: str, grid: GridSize, view: int, chunks: Iterable[memoryview]
) -> bytes:
    """Return the checksum of one view of an image."""
    value = xxh3_64(f"{made} {view} {grid.rows}x{grid.cols} {image_id}".encode())
    for chunk in chunks:
        value.update(chunk)
    return value.digest()


@dataclass(frozen=True)
class Shards:
    """The shards of a store, and what is needed to read their headers.

    Args:
        files: of the store.
        made: what the store's own shards begin with.
        parts: gives the parts of a view of so many patches.
    """

    files: Files
    made: str
    parts: PartsOfPatches

    def sizes(self) -> dict[str, int]:
        """Return the shards, by their names relative to the store in sorted order, and their sizes in bytes."""
        listing = self.files.sizes(DATA)
        sizes = {}
        for name in sorted(listing):
            if name.endswith(SUFFIX):
                sizes[f"{DATA}/{name}"] = listing[name]
        return sizes

    def entries(self, sizes: Mapping[str, int]) -> Iterator[tuple[str, list[Entry]]]:
        """Yield shards and their entries; none, with a warning, where a file is not a whole shard of this store.

        Args:
            sizes: of the shards to read.
        """
        names = list(sizes)
        parts_of_patches = functools.cache(self.parts)
        for begin in range(0, len(names), self.files.at_once):
            batch = names[begin : begin + self.files.at_once]
            try:
                starts = self._read_starts(batch, sizes)
            except Exception:  # each file system has errors of its own
                starts = {}  # one file at least cannot be read: each is read again, alone
            for name in batch:
                try:
                    start = starts.get(name) or self._read_starts([name], sizes)[name]
                    entries = self._parse_header(name, start, sizes[name], parts_of_patches)
                except Exception as error:  # whatever a damaged header leads to
                    self._warn_of_damage(name, error)
                    entries = []
                yield name, entries

    def _read_starts(self, names: Sequence[str], sizes: Mapping[str, int]) -> dict[str, bytearray]:
        """The first bytes of shards, which hold most headers whole; all are fetched together.

        Raises:
            StoreError: if one of the files cannot be read, or is shorter than it was.
        """
        starts = {name: bytearray(min(sizes[name], _FIRST_READ)) for name in names}
        self.files.fill([Piece(name, 0, [memoryview(start)]) for name, start in starts.items()])
        return starts

    def _warn_of_damage(self, name: str, error: Exception) -> None:
        problem = f"{self.files}/{name} is not a whole shard of this store: {error}"
        logger.warning(
            "%s; its images are left out. 'dinoneck verify' lists what is damaged", problem
        )

    def _parse_header(
        self, name: str, start: bytearray, size: int, parts_of_patches: PartsOfPatches
    ) -> list[Entry]:
        """The entries in a shard's header; ValueError and the like if damaged.

        Args:
            name: of the shard.
            start: its first bytes; the rest of a longer header is read here.
            size: of the shard, in bytes.
            parts_of_patches: gives the parts of a view of so many patches.
        """
        length = _LENGTH_BYTES + int.from_bytes(start[:_LENGTH_BYTES], "little")
        if not _LENGTH_BYTES < length <= size:
            raise ValueError(f"its header would have {length - _LENGTH_BYTES} bytes")
        raw = start
        if length > len(start):
            raw = bytearray(length)
            self.files.fill([Piece(name, 0, [memoryview(raw)])])
        header = msgspec.json.decode(raw[_LENGTH_BYTES:length])
        metadata = header.pop("__metadata__")
        _check_facts(metadata)
        if metadata["made"] != self.made:
            raise ValueError(
                "its tokens were made with other values than store.json and the channel scale state"
            )
        images = msgspec.json.decode(metadata["images"], type=list[_Listed])
        entries = []
        for image_id, rows, cols, digits, blake2b, nbytes, mtime_ns in images:
            begins = []
            checksums = bytes.fromhex(digits)
            views = len(checksums) // CHECKSUM_BYTES
            for part in parts_of_patches(rows * cols):
                name_in_shard = f"{image_id}/{part.name}"
                tensor = header.pop(name_in_shard)
                _check_tensor(name_in_shard, tensor, part, views)
                begin, end = tensor["data_offsets"]
                if not 0 <= begin <= end <= size - length:
                    raise ValueError(f"it is cut short, before its {name_in_shard} ends")
                begins.append(length + begin)
            entry = Entry(
                id=image_id,
                rows=rows,
                cols=cols,
                checksums=checksums,
                blake2b=blake2b,
                nbytes=nbytes,
                mtime_ns=mtime_ns,
                offsets=struct.pack(f"<{len(begins)}Q", *begins),
                shard=name,
                root=metadata["root"],
            )
            entries.append(entry)
        if header:  # what was not taken from it above
            raise ValueError(f"it holds {len(header)} tensors that its list of images lacks")
        if not entries:
            raise ValueError("it lists no images")
        return entries


def facts_of(metadata: Mapping[str, str]) -> str:
    """Return the checksum of what a shard states, in hex digits."""
    total = xxh3_64()
    for name in sorted(_CHECKED_ENTRIES):
        total.update(f"{name} {len(metadata[name])} {metadata[name]}".encode())
    return str(total.hexdigest())


def _check_facts(metadata: Mapping[str, str]) -> None:
    """Reject metadata that are not those which were written.

    Raises:
        ValueError: naming what is wrong.
    """
    names = set(metadata)
    if names not in (_CHECKED_ENTRIES, _CHECKED_ENTRIES | {_CHECKSUM_ENTRY}):
        raise ValueError(
            f"it states {', '.join(sorted(names))}; expected {', '.join(sorted(_CHECKED_ENTRIES))}, "
            f"with or without {_CHECKSUM_ENTRY}"
        )
    if _CHECKSUM_ENTRY in names and metadata[_CHECKSUM_ENTRY] != facts_of(metadata):
        raise ValueError("what it states of its images does not have its checksum")


def _check_tensor(name: str, tensor: Mapping[str, Any], part: Part, views: int) -> None:
    """Reject a tensor of another shape, dtype or size than its part has.

    Raises:
        ValueError: naming both.
    """
    shape = [views, *part.shape]
    if tensor["shape"] != shape:
        raise ValueError(f"its {name} has the shape {tensor['shape']}; expected {shape}")
    dtype = FILE_NAMES[part.dtype]
    if tensor["dtype"] != dtype:
        raise ValueError(f"its {name} has the dtype {tensor['dtype']}; expected {dtype}")
    begin, end = tensor["data_offsets"]
    if end - begin != views * part.nbytes:
        raise ValueError(f"its {name} has {end - begin} bytes; expected {views * part.nbytes}")


class Writer:
    """Collects images and writes shards; call :meth:`flush` at the end.

    Every writer has a random name of its own, so any number of them may work on one store at once.

    Args:
        shards: of the store, in a local folder.
        root: the folder that the images' ids are relative to.
        shard_bytes: a shard is written once it holds this much; one image is never split. One is
            also written when an image is added 30 s after the shard before it.
    """

    def __init__(self, shards: Shards, root: str, shard_bytes: int = SHARD_BYTES) -> None:
        self.shards = shards
        self.root = root
        self.shard_bytes = shard_bytes
        self.name = f"w-{secrets.token_hex(12)}"
        self._flushed = time.monotonic()
        self._count = 0  # of the shards
        # of the next shard
        self._bytes = 0
        self._images: list[_Listed] = []
        self._tensors: dict[str, Tensor] = {}

    def add(self, image_id: str, parts: dict[str, Tensor], grid: GridSize, file: ImageFile) -> None:
        """Take all views of one image, part name -> (views, layers, ...); they become visible together.

        Raises:
            StoreError: if the disk is full or not writable.
        """
        views = len(next(iter(parts.values())))
        checksums = b""
        for view in range(views):
            chunks = [bytes_of(part[view]) for part in parts.values()]
            checksums += checksum(self.shards.made, image_id, grid, view, chunks)
        self._images.append((image_id, *grid, checksums.hex(), *file))
        for name, part in parts.items():
            self._tensors[f"{image_id}/{name}"] = part
            self._bytes += part.nbytes
        is_late = time.monotonic() - self._flushed >= SHARD_SECONDS
        if is_late or self._bytes >= self.shard_bytes or len(self._images) >= SHARD_IMAGES:
            self.flush()

    def flush(self) -> None:
        """Write what was collected as one shard.

        It gets its name when all of it is on the disk and was read back.

        Raises:
            StoreError: if the disk is full or not writable; what was finished before stays.
        """
        if not self._images:
            return
        metadata = {
            "made": self.shards.made,
            "root": self.root,
            "images": msgspec.json.encode(self._images).decode(),
        }
        content = save(self._tensors, metadata | {_CHECKSUM_ENTRY: facts_of(metadata)})
        path = Path(str(self.shards.files), DATA, f"{self.name}-{self._count:06d}{SUFFIX}")
        # before the write: a failed one is final
        self._count += 1
        self._bytes = 0
        self._images = []
        self._tensors = {}
        try:
            write_whole(path, content, check=lambda written: _check_written(written, content))
        except OSError as error:
            raise failed_write(path, error) from error
        self._flushed = time.monotonic()


def _check_written(path: Path, content: bytes) -> None:
    if path.read_bytes() != content:
        raise OSError(f"{path} has other bytes than were written; check the disk")


def remove_leftovers(root: Path) -> None:
    """Remove temporary files of a store that were not written to for an hour: their writers were killed."""
    for path in (*root.glob(".*"), *(root / DATA).glob(".w-*")):
        if not path.name.strip(".").startswith(_NAMES_OF_A_STORE):
            continue
        with contextlib.suppress(OSError):  # another process removed it
            if time.time() - path.stat().st_mtime > STALE_AFTER_S:
                path.unlink()
