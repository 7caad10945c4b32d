"""Where a store's bytes are: a local folder, read by scattered reads, or a URL, read by byte ranges."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

from dinoneck.atomic import write_whole
from dinoneck.errors import StoreError
from dinoneck.regular_files import check_regular, open_regular, read_regular

MOST_OPEN_FILES = 128
MOST_BUFFERS = 512  # of one scattered read; systems allow 1024

Piece = tuple[str, int, list[memoryview]]


class _Handle:
    """An open file that is closed when its last user lets go of it."""

    def __init__(self, path: Path) -> None:
        check_regular(path)
        self.descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):
            with contextlib.suppress(OSError):
                os.close(self.descriptor)


class LocalFiles:
    """A folder on this machine.

    Positional reads share nothing, so threads and forked workers may use one object; pickled, only the path travels.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._open: dict[str, _Handle] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"root": self.root, "_open": {}}

    def read(self, name: str) -> bytes:
        """Return a whole small file."""
        return read_regular(self.root / name)

    def stream(self, name: str, begin: int) -> BinaryIO:
        """Open a file at a byte."""
        file = open_regular(self.root / name)
        file.seek(begin)
        return file

    def names(self, folder: str) -> list[str]:
        """Return the names in a folder, sorted."""
        try:
            return sorted(path.name for path in (self.root / folder).iterdir())
        except FileNotFoundError:
            return []

    def size(self, name: str) -> int:
        """Return the size of a file in bytes."""
        return (self.root / name).stat().st_size

    def exists(self, name: str) -> bool:
        """Whether there is such a file."""
        return (self.root / name).is_file()

    def fill(self, pieces: Sequence[Piece]) -> None:
        """Fill every piece's buffers with one scattered positional read."""
        for name, offset, buffers in pieces:
            try:
                _read_into(self._handle(name).descriptor, offset, buffers)
            except EOFError:
                raise StoreError(
                    f"{self.root / name} ends before byte {offset + _size(buffers)}; it is cut short"
                ) from None
            except OSError as error:
                raise StoreError(f"{self.root / name} cannot be read: {error}") from error

    def _handle(self, name: str) -> _Handle:
        handle = self._open.get(name)
        if handle is None:
            handle = self._open.setdefault(name, _Handle(self.root / name))
            while len(self._open) > MOST_OPEN_FILES:
                with contextlib.suppress(KeyError, RuntimeError, StopIteration):  # another thread was faster
                    self._open.pop(next(iter(self._open)))
        return handle

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

    def __getstate__(self) -> dict[str, Any]:
        return {"url": self.url}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["url"])  # type: ignore[misc]

    def read(self, name: str) -> bytes:
        """Return a whole small file."""
        return bytes(self._fs.cat_file(f"{self._root}/{name}"))

    def stream(self, name: str, begin: int) -> BinaryIO:
        """Fetch a file and open it at a byte."""
        return io.BytesIO(self.read(name)[begin:])

    def names(self, folder: str) -> list[str]:
        """Return the names in a folder, sorted."""
        self._fs.invalidate_cache()
        try:
            listed = self._fs.ls(f"{self._root}/{folder}", detail=False)
        except FileNotFoundError:
            return []
        return sorted(str(path).rstrip("/").rsplit("/", 1)[-1] for path in listed)

    def size(self, name: str) -> int:
        """Return the size of a file in bytes."""
        return int(self._fs.size(f"{self._root}/{name}"))

    def fill(self, pieces: Sequence[Piece]) -> None:
        """Fetch all ranges, at once where the file system can, and copy them into the buffers."""
        paths = [f"{self._root}/{name}" for name, _, _ in pieces]
        starts = [offset for _, offset, _ in pieces]
        ends = [offset + _size(buffers) for _, offset, buffers in pieces]
        fetched = self._fs.cat_ranges(paths, starts, ends, on_error="return")
        for path, raw, (_, offset, buffers) in zip(paths, fetched, pieces, strict=True):
            if isinstance(raw, BaseException):
                raise StoreError(f"{path} cannot be read: {raw}") from raw
            if len(raw) != _size(buffers):
                raise StoreError(
                    f"{path} gave {len(raw)} bytes at {offset}, expected {_size(buffers)}; it is cut short"
                )
            at = 0
            for buffer in buffers:
                buffer[:] = raw[at : at + len(buffer)]
                at += len(buffer)

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
