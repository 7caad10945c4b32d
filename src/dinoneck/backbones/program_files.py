"""Compiled programs of backbones, and figures that were measured, in files of the cache folder.

A file holds a line with the name of the format and the SHA-256 of the next line, a line of JSON
(:class:`_Header`), and a program as OpenVINO exports it, or nothing. It is read only if it and its
folder belong to the user, nobody else may write to them, and both hashes agree. A file that does
not agree is removed.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import os
import platform
import stat
import time
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import NamedTuple, TypeVar

import msgspec

from dinoneck.atomic import STALE_AFTER_S, write_whole
from dinoneck.cache_folder import cache_folder
from dinoneck.text import first_line

logger = logging.getLogger(__name__)

LARGEST_CACHE_BYTES = 2 * 1000**3
# that torch is faster may have been measured while the computer was busy
_OUTDATED_AFTER_S = 7 * 24 * 3600
SUFFIX = ".program"
_FORMAT = b"dinoneck-program-1"
_LONGEST_HEADER_BYTES = 1 << 20
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
# what identifies a processor in Linux's list of them
_PROCESSOR_FIELDS = (
    "vendor_id",
    "cpu family",
    "model",
    "model name",
    "stepping",
    "flags",
    "CPU implementer",
    "CPU architecture",
    "CPU variant",
    "CPU part",
    "Features",
)


class ProgramRecord(msgspec.Struct, frozen=True):
    """What was measured when a program was made.

    Attributes:
        compile_seconds: of export, conversion and compilation.
        torch_seconds: of an image in torch.
        program_seconds: of an image in the program.
        probe: of the backbone, see :meth:`dinoneck.Backbone.probe`.
        num_bytes: of the program; 0 where the file holds none, because torch is faster.
        measured_at: when, in seconds since 1970. The time of the file is that of its last use.
    """

    compile_seconds: float
    torch_seconds: float
    program_seconds: float
    probe: list[float]
    num_bytes: int
    measured_at: float


class GainRecord(msgspec.Struct, frozen=True):
    """How many times as fast as torch OpenVINO is on this processor.

    Attributes:
        gain: above 1 where OpenVINO is faster.
        measured_at: when, in seconds since 1970.
    """

    gain: float
    measured_at: float


class CacheSize(NamedTuple):
    """How many programs a folder holds, and the bytes of all its files."""

    num_programs: int
    num_bytes: int


Record = TypeVar("Record", ProgramRecord, GainRecord)


class _Header(msgspec.Struct, frozen=True):
    """The line of JSON: a record, and the hash of the program that follows."""

    record: msgspec.Raw
    program_sha256: str


class _DamagedFileError(Exception):
    """A file that is not as it was written."""


class ProgramFolder:
    """The folder of programs in the cache folder. Nothing raises where it cannot be read or written.

    Args:
        path: of the folder; it need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def record(self, name: str, kind: type[Record]) -> Record | None:
        """Return the record of a file, without reading its program; None if there is no sound one."""
        with self._reading(name) as file:
            if file is not None:
                return _decode(_read_header(file).record, kind)
        return None

    def program(self, name: str) -> bytes | None:
        """Return the program in a file, compared with its hash; None if there is no sound one."""
        with self._reading(name) as file:
            if file is not None:
                header = _read_header(file)
                program = file.read()
                if _sha256(program) != header.program_sha256:
                    raise _DamagedFileError
                with contextlib.suppress(OSError):  # the time of the last use
                    os.utime(self.path / name)
                return program
        return None

    def write(self, name: str, record: Record, program: bytes = b"") -> None:
        """Write a file whole or not at all; the least recently used ones make room for it.

        Nothing is written where the disk is full, the folder is another user's, or the program
        alone is larger than :data:`LARGEST_CACHE_BYTES`.
        """
        header = _Header(
            record=msgspec.Raw(msgspec.json.encode(record)),
            program_sha256=_sha256(program),
        )
        line = msgspec.json.encode(header)
        first = _FORMAT + b" " + _sha256(line).encode() + b"\n"
        num_bytes = len(first) + len(line) + 1 + len(program)
        if num_bytes > LARGEST_CACHE_BYTES:
            logger.info("a program of %d MB is not kept in %s", num_bytes // 10**6, self.path)
            return
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not self._is_private():
                logger.info("%s is not this user's alone: no program is kept in it", self.path)
                return
            self._make_room(num_bytes)
            write_whole(self.path / name, (first, line, b"\n", program), mode=0o600)
            self._make_room(0)  # another process may have written too
        except OSError as error:
            logger.info("a program is not kept in %s: %s", self.path, first_line(error))

    def remove(self, name: str) -> None:
        """Remove a file that is of no use, if it can be."""
        with contextlib.suppress(OSError):
            (self.path / name).unlink()

    def records(self, prefix: str) -> list[ProgramRecord]:
        """Return the records of the programs whose names begin with this, the newest first."""
        records = []
        for path in reversed(self._files()):
            if path.name.startswith(prefix) and path.suffix == SUFFIX:
                record = self.record(path.name, ProgramRecord)
                if record is not None:
                    records.append(record)
        return records

    def is_usable(self) -> bool:
        """Whether the folder does not exist yet, or is this user's and no other may write to it."""
        try:
            return self._is_private()
        except FileNotFoundError:
            return True
        except OSError:
            return False

    def size(self) -> CacheSize:
        """Return how much the folder holds."""
        files = self._files()
        num_programs = sum(path.suffix == SUFFIX for path in files)
        return CacheSize(num_programs, sum(_length(path) for path in files))

    def empty(self) -> None:
        """Remove all files.

        Raises:
            OSError: if one cannot be removed.
        """
        for path in self._files():
            path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _reading(self, name: str) -> Iterator[BufferedReader | None]:
        """Open a file if it may be trusted; it is removed if the body of ``with`` finds it damaged."""
        path = self.path / name
        try:
            file = self._open(path)
        except OSError:
            yield None
            return
        if file is None:
            yield None
            return
        try:
            with file:
                yield file
        except (_DamagedFileError, OSError):
            logger.info("%s is damaged and is removed", path)
            self.remove(name)

    def _open(self, path: Path) -> BufferedReader | None:
        """Open a regular file of this user that no other may write to; None for any other.

        Raises:
            OSError: if it cannot be opened.
        """
        if not self._is_private():
            return None
        # no link and no pipe; neither flag exists on Windows
        flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
        descriptor = os.open(path, flags | getattr(os, "O_BINARY", 0))
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or not _is_writable_by_user_alone(status):
            os.close(descriptor)
            return None
        return os.fdopen(descriptor, "rb")

    def _is_private(self) -> bool:
        """Whether the folder is this user's, and no other may write to it."""
        return _is_writable_by_user_alone(self.path.stat())

    def _files(self) -> list[Path]:
        """Return the files, the least recently used first."""
        files = []
        with contextlib.suppress(OSError):
            for path in self.path.iterdir():
                files.append((_last_use(path), path))
        return [path for _, path in sorted(files)]

    def _make_room(self, num_bytes: int) -> None:
        """Remove what killed processes left, and the least recently used files until so much fits."""
        files = self._files()
        total = num_bytes + sum(_length(path) for path in files)
        for path in files:
            is_finished = path.suffix == SUFFIX
            is_stale = time.time() - _last_use(path) > STALE_AFTER_S
            if (is_finished and total > LARGEST_CACHE_BYTES) or (not is_finished and is_stale):
                total -= _length(path)
                path.unlink(missing_ok=True)


def is_outdated(record: ProgramRecord | GainRecord) -> bool:
    """Whether times were measured so long ago that they are to be measured again; also after the clock was set back."""
    age = time.time() - record.measured_at
    return not 0.0 <= age <= _OUTDATED_AFTER_S


def program_folder() -> ProgramFolder | None:
    """Return the folder of programs in the cache folder; None without a home folder to have it in."""
    try:
        return ProgramFolder(cache_folder() / "programs")
    except RuntimeError:
        return None


@functools.cache
def processor() -> dict[str, str]:
    """Return what identifies this computer's processor and the instructions that it offers."""
    fields = {"machine": platform.machine(), "processor": platform.processor()}
    with contextlib.suppress(OSError):
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
        for line in text.partition("\n\n")[0].splitlines():
            name, _, value = line.partition(":")
            if name.strip() in _PROCESSOR_FIELDS:
                fields[name.strip()] = value.strip()
    return fields


def _read_header(file: BufferedReader) -> _Header:
    """Read the two lines at the start of a file.

    Raises:
        _DamagedFileError: if they are not as they were written.
    """
    first = file.readline(len(_FORMAT) + 2 + 64)
    line = file.readline(_LONGEST_HEADER_BYTES).removesuffix(b"\n")
    if first != _FORMAT + b" " + _sha256(line).encode() + b"\n":
        raise _DamagedFileError
    return _decode(line, _Header)


Decoded = TypeVar("Decoded", ProgramRecord, GainRecord, _Header)


def _decode(text: bytes | msgspec.Raw, kind: type[Decoded]) -> Decoded:
    """Return the value that JSON describes.

    Raises:
        _DamagedFileError: if it is not of this kind.
    """
    try:
        return msgspec.json.decode(text, type=kind)
    except msgspec.MsgspecError as error:
        raise _DamagedFileError from error


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _is_writable_by_user_alone(status: os.stat_result) -> bool:
    """Whether a file or folder is this user's, and no other may write to it; Windows does not say it."""
    if os.name != "posix":
        return True
    return status.st_uid == os.geteuid() and not status.st_mode & _OTHERS_WRITE


def _last_use(path: Path) -> float:
    """The time at which a file was written or used last; 0 if another process has removed it."""
    try:
        return path.lstat().st_mtime
    except OSError:
        return 0.0


def _length(path: Path) -> int:
    """The bytes of a file; 0 if another process has removed it."""
    try:
        return path.lstat().st_size
    except OSError:
        return 0
