"""Where a store's bytes are: a local folder, read by scattered reads, or a URL, read by byte ranges."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

from dinoneck.atomic import write_whole
from dinoneck.errors import StoreError

MOST_OPEN_FILES = 128
MOST_BUFFERS = 512  # of one scattered read; systems allow 1024

Piece = tuple[str, int, list[memoryview]]
"""A file, a byte in it, and the buffers to fill from there."""


class LocalFiles:
    """A folder on this machine.

    Positional reads share nothing, so threads and forked workers may use one object; pickled, only the path travels.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._open: dict[str, BinaryIO] = {}

    def __reduce__(self) -> Any:
        return LocalFiles, (self.root,)

    def read(self, name: str) -> bytes:
        """Return a whole small file."""
        return (self.root / name).read_bytes()

    def starts(self, names: Sequence[str], nbytes: int) -> list[bytes | Exception]:
        """Return the first bytes of each file, or why they cannot be read."""
        return [self._start(name, nbytes) for name in names]

    def sizes(self, folder: str) -> dict[str, int | None]:
        """Return the names in a folder, sorted; local sizes are left out, for they would take a call each."""
        try:
            return dict.fromkeys(sorted(os.listdir(self.root / folder)))
        except FileNotFoundError:
            return {}

    def size(self, name: str) -> int:
        """Return the size of a file in bytes."""
        return (self.root / name).stat().st_size

    def modified(self, name: str) -> int | None:
        """Return when a file or folder was last modified, in ns; None if it is not there."""
        try:
            return (self.root / name).stat().st_mtime_ns
        except FileNotFoundError:
            return None

    def fill(self, pieces: Sequence[Piece]) -> None:
        """Fill every piece's buffers with one scattered positional read."""
        for name, offset, buffers in pieces:
            try:
                _read_into(self._opened(name).fileno(), offset, buffers)
            except EOFError:
                raise StoreError(
                    f"{self.root / name} ends before byte {offset + _size(buffers)}; it is cut short"
                ) from None
            except OSError as error:
                raise StoreError(f"{self.root / name} cannot be read: {error}") from error

    def _start(self, name: str, nbytes: int) -> bytes | Exception:
        try:
            with (self.root / name).open("rb", buffering=0) as file:
                return file.read(nbytes)
        except OSError as error:
            return error

    def _opened(self, name: str) -> BinaryIO:
        """The open file; one that is left out of the table is closed when its last reader lets go of it."""
        file = self._open.get(name)
        if file is None:
            file = self._open.setdefault(name, (self.root / name).open("rb", buffering=0))
            while len(self._open) > MOST_OPEN_FILES:
                with contextlib.suppress(KeyError, RuntimeError, StopIteration):  # another thread was faster
                    self._open.pop(next(iter(self._open)))
        return file

    def forget(self) -> None:
        """Let go of all open files: others may be there under their names."""
        self._open = {}

    def __str__(self) -> str:
        return str(self.root)


class RemoteFiles:
    """A folder behind a URL, through fsspec; only the byte ranges that are asked for travel."""

    def __init__(self, url: str) -> None:
        import fsspec

        self.url = url.rstrip("/")
        try:
            self._fs, self._root = fsspec.core.url_to_fs(self.url)
        except (ImportError, ValueError) as error:
            raise StoreError(f"{url} cannot be reached: {error}") from error

    def __reduce__(self) -> Any:
        return RemoteFiles, (self.url,)

    def read(self, name: str) -> bytes:
        """Return a whole small file."""
        return bytes(self._fs.cat_file(f"{self._root}/{name}"))

    def starts(self, names: Sequence[str], nbytes: int) -> list[bytes | Exception]:
        """Return the first bytes of each file, or why they cannot be read; fetched at once where that can be."""
        return self._ranges([f"{self._root}/{name}" for name in names], [0] * len(names), [nbytes] * len(names))

    def sizes(self, folder: str) -> dict[str, int | None]:
        """Return the names in a folder, sorted, with their sizes in bytes."""
        self._fs.invalidate_cache()
        try:
            listed = self._fs.ls(f"{self._root}/{folder}", detail=True)
        except FileNotFoundError:
            return {}
        return {str(file["name"]).rstrip("/").rsplit("/", 1)[-1]: file["size"]
                for file in sorted(listed, key=lambda file: str(file["name"]))}  # fmt: skip

    def size(self, name: str) -> int:
        """Return the size of a file in bytes."""
        return int(self._fs.size(f"{self._root}/{name}"))

    def modified(self, name: str) -> int | None:
        """Return None: folders of an object store have no time."""
        return None

    def fetch(self, name: str, target: Path) -> None:
        """Copy a file to this machine; FileNotFoundError if it is not there."""
        self._fs.get_file(f"{self._root}/{name}", str(target))

    def fill(self, pieces: Sequence[Piece]) -> None:
        """Fetch all ranges, at once where the file system can, and copy them into the buffers."""
        paths = [f"{self._root}/{name}" for name, _, _ in pieces]
        starts = [offset for _, offset, _ in pieces]
        ends = [offset + _size(buffers) for _, offset, buffers in pieces]
        for path, raw, (_, offset, buffers) in zip(paths, self._ranges(paths, starts, ends), pieces, strict=True):
            if isinstance(raw, Exception):
                raise StoreError(f"{path} cannot be read: {raw}") from raw
            if len(raw) != _size(buffers):
                raise StoreError(
                    f"{path} gave {len(raw)} bytes at {offset}, expected {_size(buffers)}; it is cut short"
                )
            at = 0
            for buffer in buffers:
                buffer[:] = raw[at : at + len(buffer)]
                at += len(buffer)

    def forget(self) -> None:
        """Nothing is kept open."""

    def _ranges(self, paths: list[str], starts: list[int], ends: list[int]) -> list[bytes | Exception]:
        return list(self._fs.cat_ranges(paths, starts, ends, on_error="return"))

    def __str__(self) -> str:
        return self.url


Files = LocalFiles | RemoteFiles


def files_at(path_or_url: str | os.PathLike[str]) -> Files:
    """Return the files of a folder or, for ``scheme://...``, of a URL.

    Raises:
        StoreError: for an empty path, which would mean the current folder.
    """
    text = os.fspath(path_or_url)
    if not text:
        raise StoreError("the path of a feature store is ''; name its folder ('.' for the current one)")
    if text.startswith("file://"):
        text = text.removeprefix("file://")
    return RemoteFiles(text) if "://" in text else LocalFiles(Path(text))


def write_first(path: Path, content: bytes) -> bool:
    """Write a file whole unless there is one already; return whether this call wrote it.

    Of several writers at once, one wins and the others see its file.
    """
    if path.exists():
        return False
    own = path.with_name(f".{path.name}-{secrets.token_hex(8)}")
    write_whole(own, content)
    try:
        os.link(own, path)
    except FileExistsError:
        return False
    except OSError:  # a file system without hard links
        if path.exists():
            return False
        own.replace(path)
        return True
    finally:
        own.unlink(missing_ok=True)
    flush_folder(path.parent)
    return True


def flush_folder(folder: Path) -> None:
    """Make new names in a folder last through a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def failed_write(path: Path, error: OSError) -> StoreError:
    """Return the error for a failed write."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return StoreError(
            f"{path} cannot be written: the disk is full. What was finished is kept; make room, run again"
        )
    return StoreError(f"{path} cannot be written: {error}")


def _size(buffers: Sequence[memoryview]) -> int:
    return sum(len(buffer) for buffer in buffers)


def _read_into(descriptor: int, offset: int, buffers: list[memoryview]) -> None:
    pending = list(buffers)
    while pending:
        count = os.preadv(descriptor, pending[:MOST_BUFFERS], offset)
        if not count:
            raise EOFError
        offset += count
        while pending and count >= len(pending[0]):
            count -= len(pending.pop(0))
        if count:
            pending[0] = pending[0][count:]
