"""A writer: fills shards and, once they are safely on disk, appends their lines to its own index file.

Every writer has a random name of its own, so any number of them may work on one store at once.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import time
import zlib
from collections.abc import Callable
from pathlib import Path

from dinoneck.atomic import STALE_AFTER_S, write_whole
from dinoneck.errors import StoreError
from dinoneck.store import index, shards
from dinoneck.store.description import Description
from dinoneck.store.encoding import Layout
from dinoneck.store.files import LocalFiles, failed_write, flush_folder
from dinoneck.store.images import ImageFile
from dinoneck.store.index import Entry

SHARD_BYTES = 64 << 20
SHARD_SECONDS = 30.0
FIRST_SHARD_SECONDS = 1.0

logger = logging.getLogger(__name__)


class Writer:
    """Collects records and writes shards; call :meth:`flush` at the end.

    Args:
        root: folder of the store.
        shard_bytes: a shard is written once it holds this much; one image is never split.
        clock: gives seconds. A shard is also written when an image is added 30 s after the shard before it; the first
            ones sooner (1 s, 2 s, 4 s ...), so that a process that is killed again and again makes progress.
        made: what the index lines repeat of the store, see :class:`dinoneck.store.index.Entry`.
    """

    def __init__(
        self,
        root: Path,
        shard_bytes: int = SHARD_BYTES,
        clock: Callable[[], float] = time.monotonic,
        made: str = "",
    ) -> None:
        self.root = root
        self.made = made
        self.shard_bytes = shard_bytes
        self.name = f"w-{secrets.token_hex(12)}"
        self._clock = clock
        self._seconds = FIRST_SHARD_SECONDS
        self._flushed = clock()
        self._root = ""  # that the index file names
        self._ids: set[str] = set()
        self._has_warned = False
        files = LocalFiles(root)  # what the other writers' journals hold by now needs no reading
        self._read = {name: index.Place(files.size(f"{index.FOLDER}/{name}")) for name in self._others()}
        self._count = 0
        self._bytes = 0
        self._pending: list[tuple[Entry, Layout]] = []
        self._chunks: list[bytes] = []

    def add(self, image_id: str, records: list[bytes], layout: Layout, file: ImageFile) -> None:
        """Take all patterns of one image; they become visible together.

        Raises:
            StoreError: if the disk is full or not writable.
        """
        shard = f"{shards.FOLDER}/{self.name}-{self._count:06d}{shards.SUFFIX}"
        checksums = tuple(zlib.crc32(record) for record in records)
        grid = (int(layout.grid.rows), int(layout.grid.cols))
        entry = Entry(image_id, shard, self._bytes, layout.nbytes, checksums, grid, *file, made=self.made)
        self._pending.append((entry, layout))
        self._chunks += records
        self._bytes += sum(map(len, records))
        if self._bytes >= self.shard_bytes:
            self.flush()
        elif self._clock() - self._flushed >= self._seconds:
            self._seconds = min(2 * self._seconds, SHARD_SECONDS)
            self.flush()

    def flush(self) -> None:
        """Write what was collected as one shard and make it visible.

        Raises:
            StoreError: if the disk is full or not writable; what was finished before stays.
        """
        if not self._pending:
            return
        head, entries = shards.header(self._pending)
        chunks = self._chunks
        self._count, self._bytes, self._pending, self._chunks = self._count + 1, 0, [], []  # a failed write is final
        path = self.root / entries[0].file
        try:
            write_whole(path, [head, *chunks])
        except OSError as error:
            raise failed_write(path, error) from error
        self.append(entries)
        self._ids.update(entry.id for entry in entries)
        self._notice_others()
        self._flushed = self._clock()

    def append(self, entries: list[Entry]) -> None:
        """Append lines to this writer's index file and flush it.

        Raises:
            StoreError: if the disk is full or not writable.
        """
        path = self.root / index.FOLDER / f"{self.name}{index.SUFFIX}"
        block = b""
        for entry in entries:
            if entry.root != self._root:
                self._root = entry.root
                block += f"{index.checked_line({'root': entry.root})}\n".encode()
            block += f"{entry.line()}\n".encode()
        try:
            new = not path.exists()
            with path.open("ab", buffering=0) as file:
                while block:
                    block = block[os.write(file.fileno(), block) :]
                os.fsync(file.fileno())
            if new:
                flush_folder(path.parent)
        except OSError as error:
            raise failed_write(path, error) from error

    def _notice_others(self) -> None:
        """Warn once if another writer stores images that this one has stored.

        A writer reads what the others appended since it looked last. An image that two of them stored is noticed by the
        one that looks after both have appended its line.
        """
        if self._has_warned:
            return
        files = LocalFiles(self.root)
        for name in self._others():
            ids = set()
            with contextlib.suppress(StoreError):  # a damaged line is refused where the index is read
                ids = {
                    entry.id for entry in index.read_journal(files, name, self._read.setdefault(name, index.Place()))
                }
            if twice := self._ids & ids:
                self._has_warned = True
                logger.warning(
                    "another process extracts the same images into %s (%d so far): stop one of them, or give each its "
                    "share with shard=(i, n) (--shard I/N)",
                    self.root,
                    len(twice),
                )
                return

    def _others(self) -> list[str]:
        """The journals of all other writers."""
        return [name for name in index.names(LocalFiles(self.root)) if name != f"{self.name}{index.SUFFIX}"]


def take_in_orphans(root: Path, description: Description) -> int:
    """Index shards that were finished but never indexed, and return how many images came back.

    A shard gets its final name only when all of it is on disk; its header is checked before it is trusted.
    """
    files = LocalFiles(root)
    known = {entry.file for name in index.names(files) for entry in index.read_journal(files, name)}
    found: list[Entry] = []
    for name in shards.names(files):
        if name in known:
            continue
        try:
            entries = shards.entries_in(files, name, description.layout)
            index.check_made(entries, description.made, str(files))
            found += entries
        except StoreError as error:
            logger.warning("%s; the file is left alone", error)
    if found:
        Writer(root).append(found)
    return len(found)


def remove_leftovers(root: Path) -> None:
    """Remove temporary files that nothing has been written to for an hour: their writers were killed."""
    for path in (root / shards.FOLDER).glob(".w-*"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > STALE_AFTER_S:
                path.unlink()
