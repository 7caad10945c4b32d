"""A writer: fills shards and, once they are safely on disk, appends their lines to its own index file.

Every writer has a name of its own that tells machine, boot and process, so any number of them may work on one
store at once, and what a dead one began can be told from what a live one is writing.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import secrets
import socket
import time
import zlib
from collections.abc import Callable
from pathlib import Path

from dinoneck.atomic import write_whole
from dinoneck.errors import StoreError
from dinoneck.store import index, shards
from dinoneck.store.description import Description
from dinoneck.store.encoding import Layout
from dinoneck.store.files import LocalFiles, flush_folder, told_write
from dinoneck.store.image_files import ImageFile
from dinoneck.store.index import Entry

SHARD_BYTES = 64 << 20
SHARD_SECONDS = 30.0
FIRST_SHARD_SECONDS = 1.0

logger = logging.getLogger(__name__)
_live: set[str] = set()
_NAME = re.compile(r"\.?w-([0-9a-f]{8})-([0-9a-f]{8})-(\d+)-([0-9a-f]{8})")


class Writer:
    """Collects records and writes shards; use it in a ``with`` block.

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
        self.name = f"w-{_machine()}-{_boot()}-{os.getpid()}-{secrets.token_hex(4)}"
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

    def __enter__(self) -> Writer:
        _live.add(self.name)
        return self

    def __exit__(self, *_: object) -> None:
        _live.discard(self.name)

    @property
    def pending(self) -> list[str]:
        """Ids that are not on disk yet."""
        return [entry.id for entry, _ in self._pending]

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
        self._count, self._bytes, self._pending, self._chunks = (
            self._count + 1,
            0,
            [],
            [],
        )  # a failed write is not retried
        path = self.root / entries[0].file
        try:
            write_whole(path, [head, *chunks])
        except OSError as error:
            raise told_write(path, error) from error
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
        lines = []
        for entry in entries:
            if entry.root != self._root:
                self._root = entry.root
                lines.append(index.checked_line({"root": entry.root}))
            lines.append(entry.line())
        block = "".join(f"{line}\n" for line in lines).encode()
        try:
            new = not path.exists()
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
            try:
                while block:
                    block = block[os.write(descriptor, block) :]
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            if new:
                flush_folder(path.parent)
        except OSError as error:
            raise told_write(path, error) from error

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
        with Writer(root) as writer:
            writer.append(found)
    return len(found)


def remove_leftovers(root: Path) -> None:
    """Remove temporary files of writers that died on this machine; those of live writers, anywhere, stay."""
    for path in (root / shards.FOLDER).iterdir():
        match = _NAME.match(path.name)
        if match and path.name.startswith(".") and _is_dead(*match.groups()):
            with contextlib.suppress(OSError):
                path.unlink()


def _is_dead(machine: str, boot: str, process: str, token: str) -> bool:
    if machine != _machine():
        return False
    if boot != _boot():
        return True
    if int(process) == os.getpid():
        return f"w-{machine}-{boot}-{process}-{token}" not in _live
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return True
    except OSError:  # somebody else's process
        return False
    return False


def _machine() -> str:
    """Eight hex digits for the machine and, in containers, the space its process numbers count in."""
    space = ""
    with contextlib.suppress(OSError):
        space = str(Path("/proc/self/ns/pid").readlink())
    return hashlib.sha256(f"{socket.gethostname()}\0{space}".encode()).hexdigest()[:8]


def _boot() -> str:
    with contextlib.suppress(OSError):
        return hashlib.sha256(Path("/proc/sys/kernel/random/boot_id").read_bytes()).hexdigest()[:8]
    return "0" * 8


def check_writable(root: Path) -> None:
    """Refuse, before any work, a folder that cannot be written.

    Raises:
        StoreError: naming it.
    """
    for folder in (shards.FOLDER, index.FOLDER):
        if not os.access(root / folder, os.W_OK | os.X_OK):
            raise StoreError(f"{root / folder} cannot be written; copy the store, or ask for the right to write")
