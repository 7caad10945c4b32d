"""Where a store's bytes are: a local folder, read by scattered reads, or a URL, read by byte ranges."""

from __future__ import annotations

import contextlib
import errno
import functools
import io
import os
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dinoneck.atomic import check_regular, flush_folder, read_regular, write_whole
from dinoneck.errors import StoreError
from dinoneck.text import reason_of

MOST_OPEN_FILES = 128
_BUFFERS_PER_READ = 512  # systems allow 1024
_CUT_SHORT = "it is cut short; delete that file and extract its images again"
_MISSING = "is missing; copy it back, or extract its images again"


class Piece(NamedTuple):
    """A range of a file to read.

    Attributes:
        name: of the file, relative to the store.
        offset: where it begins, in bytes.
        buffers: what is filled from there, one after the other.
    """

    name: str
    offset: int
    buffers: list[memoryview]

    @property
    def nbytes(self) -> int:
        """How many bytes are read."""
        return sum(len(buffer) for buffer in self.buffers)


class FileState(NamedTuple):
    """What tells whether a file was written to.

    Attributes:
        size: in bytes.
        modified_ns: time of modification in ns; 0 where there is none.
    """

    size: int
    modified_ns: int


class FolderTimes(NamedTuple):
    """What tells whether files were added to a folder or removed from it.

    Attributes:
        modified_ns: ``st_mtime_ns``, which a copy may keep.
        changed_ns: ``st_ctime_ns``, which no copy keeps.
    """

    modified_ns: int
    changed_ns: int


class _Handle(io.FileIO):
    """An open file that is closed when its last user lets go of it."""

    def __init__(self, path: Path) -> None:
        check_regular(path)
        super().__init__(path)

    def __del__(self) -> None:
        self.close()


class LocalFiles:
    """A folder on this machine.

    Positional reads share nothing, so threads and forked workers may use one object; pickled, only
    the path travels.
    """

    # how many pieces are read before they are compared with their checksums: a single piece is
    # still in the processor's cache when it is compared
    at_once = 1

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()  # a later change of the current folder does not matter
        self._name = str(root)
        self._opened = functools.lru_cache(MOST_OPEN_FILES)(lambda name: _Handle(self.root / name))

    def __reduce__(self) -> Any:
        return LocalFiles, (self.root,)

    def read(self, name: str) -> bytes:
        """Return a whole small file."""
        return read_regular(self.root / name)

    def sizes(self, folder: str) -> dict[str, int]:
        """Return the names in a folder and their sizes in bytes, without hidden files."""
        sizes = {}
        with contextlib.suppress(FileNotFoundError), os.scandir(self.root / folder) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):  # it was removed meanwhile
                    if not entry.name.startswith("."):
                        sizes[entry.name] = entry.stat().st_size
        return sizes

    def state(self, name: str) -> FileState:
        """Return the size of a file, and when it was written to.

        Raises:
            StoreError: if it cannot be opened.
        """
        try:
            handle = self._opened(name)  # the variable keeps it open, as in fill
            status = os.fstat(handle.fileno())
            return FileState(status.st_size, status.st_mtime_ns)
        except FileNotFoundError as error:
            raise StoreError(f"{self.root / name} {_MISSING}") from error
        except OSError as error:
            raise StoreError(f"{self.root / name} cannot be read: {reason_of(error)}") from error

    def times_of(self, folder: str) -> FolderTimes | None:
        """Return when a folder was modified and changed; None without it."""
        path = self.root / folder
        if not path.is_dir():
            return None
        status = path.stat()
        return FolderTimes(modified_ns=status.st_mtime_ns, changed_ns=status.st_ctime_ns)

    def fill(self, pieces: Sequence[Piece]) -> None:
        """Fill every piece's buffers with one scattered positional read.

        Raises:
            StoreError: if a file cannot be read, or is shorter.
        """
        for name, offset, buffers in pieces:
            try:
                # the variable keeps the file open, whatever other threads open and close
                handle = self._opened(name)
                _read_into(handle.fileno(), offset, buffers)
            except FileNotFoundError as error:
                raise StoreError(f"{self.root / name} {_MISSING}") from error
            except (OSError, EOFError, OverflowError) as error:
                raise StoreError(
                    f"{self.root / name} cannot be read at byte {offset}: {reason_of(error)}"
                ) from error

    def forget(self) -> None:
        """Let go of all open files: others may be there under their names."""
        self._opened.cache_clear()

    def __str__(self) -> str:
        return self._name


class RemoteFiles:
    """A folder behind a URL, through fsspec; only the byte ranges that are asked for travel."""

    at_once = 256  # pieces fetched together

    def __init__(self, url: str) -> None:
        import fsspec

        self.url = url.rstrip("/")
        self._listed: dict[str, int] = {}  # sizes of the files that were listed
        try:
            self._fs, self._root = fsspec.core.url_to_fs(self.url)
        except (ImportError, ValueError) as error:
            raise StoreError(f"{url} cannot be reached: {error}") from error

    def read(self, name: str) -> bytes:
        """Return a whole small file."""
        return bytes(self._fs.cat_file(f"{self._root}/{name}"))

    def sizes(self, folder: str) -> dict[str, int]:
        """Return the names in a folder and their sizes in bytes, without hidden files."""
        try:
            listed = self._fs.ls(f"{self._root}/{folder}", detail=True)
        except FileNotFoundError:
            return {}
        sizes = {}
        for file in listed:
            name = str(file["name"]).rsplit("/", 1)[-1]
            size = int(file["size"])
            self._listed[f"{folder}/{name}"] = size
            if not name.startswith("."):
                sizes[name] = size
        return sizes

    def state(self, name: str) -> FileState:
        """Return the size of a file, as it was listed or else asked for; object stores replace files whole.

        Raises:
            StoreError: if it cannot be asked for.
        """
        if name not in self._listed:
            try:
                self._listed[name] = int(self._fs.size(f"{self._root}/{name}"))
            except FileNotFoundError as error:
                raise StoreError(f"{self.url}/{name} {_MISSING}") from error
            except Exception as error:  # each file system has errors of its own
                raise StoreError(f"{self.url}/{name} cannot be read: {reason_of(error)}") from error
        return FileState(self._listed[name], modified_ns=0)

    def times_of(self, folder: str) -> None:
        """Return None: folders of an object store have no time."""

    def fill(self, pieces: Sequence[Piece]) -> None:
        """Fetch all ranges, at once where the file system can, and copy them into the buffers.

        Raises:
            StoreError: if a file cannot be read, or is shorter.
        """
        paths = [f"{self._root}/{piece.name}" for piece in pieces]
        starts = [piece.offset for piece in pieces]
        ends = [piece.offset + piece.nbytes for piece in pieces]
        fetched = self._fs.cat_ranges(paths, starts, ends, on_error="return")
        for raw, piece in zip(fetched, pieces, strict=True):
            if isinstance(raw, FileNotFoundError):
                raise StoreError(f"{self.url}/{piece.name} {_MISSING}")
            problem = f"{self.url}/{piece.name} cannot be read at byte {piece.offset}"
            if isinstance(raw, Exception):
                raise StoreError(f"{problem}: {reason_of(raw)}")
            if len(raw) != piece.nbytes:
                raise StoreError(f"{problem}: {_CUT_SHORT}")
            source = io.BytesIO(raw)
            for buffer in piece.buffers:
                source.readinto(buffer)

    def forget(self) -> None:
        """Forget what was listed."""
        self._listed.clear()
        self._fs.invalidate_cache()

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
        raise StoreError(
            "the path of a feature store is ''; name its folder ('.' for the current one)"
        )
    return RemoteFiles(text) if "://" in text else LocalFiles(Path(text))


def write_first(path: Path, content: bytes) -> None:
    """Write a file whole; of several writers at once, the file of the first one stays.

    Raises:
        StoreError: if it cannot be written.
    """
    temporary = path.with_name(f".{path.name}-{secrets.token_hex(8)}")
    try:
        write_whole(temporary, content)
        try:
            os.link(temporary, path)
        except OSError:  # there is one now, or this file system has no hard links
            if not path.exists():
                temporary.replace(path)
        flush_folder(path.parent)
    except OSError as error:
        raise failed_write(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def failed_write(path: Path, error: OSError) -> StoreError:
    """Return the error for a failed write."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        problem = "the disk is full. What was finished is kept; make room, run again"
    else:
        problem = reason_of(error)
    return StoreError(f"{path} cannot be written: {problem}")


def _read_into(descriptor: int, offset: int, buffers: list[memoryview]) -> None:
    pending = list(buffers)
    while pending:
        count = os.preadv(descriptor, pending[:_BUFFERS_PER_READ], offset)
        if not count:
            raise EOFError(_CUT_SHORT)
        offset += count
        # drop the buffers that are full, and the part of the next one that is
        while pending and count >= len(pending[0]):
            count -= len(pending.pop(0))
        if count:
            pending[0] = pending[0][count:]
