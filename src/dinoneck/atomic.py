"""Files are written whole or not at all, and read only where they are regular files.

A file is written next to the target, flushed to disk and renamed; then the folder is flushed. A
reader sees the old file or the new one, never a part; a failure leaves the old file as it was and
removes what was begun. Temporary files that a killed process left behind are cleared by the next
write to the same target once they are an hour old.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
import time
from collections.abc import Callable, Iterable
from io import BufferedReader
from pathlib import Path

STALE_AFTER_S = 3600.0
_MARK = ".dinoneck-tmp"
_LONGEST_NAME_BYTES = 200
_NOT_OFFERED = (
    errno.EINVAL,
    errno.ENOSYS,
    errno.ENOTSUP,
    errno.EOPNOTSUPP,
    errno.EPERM,
    errno.EACCES,
)


def write_whole(
    path: str | os.PathLike[str],
    chunks: bytes | Iterable[bytes | memoryview],
    check: Callable[[Path], object] | None = None,
    mode: int = 0o666,
) -> None:
    """Write ``chunks`` to ``path`` so that the file appears whole or not at all.

    A symbolic link is followed and stays a link; an existing file keeps its permission bits, where
    the file system has any. A file that is write-protected, or not yours to write, is not replaced.
    The other names (hard links) of a file keep its old content.

    Args:
        path: the file to write; its folder must exist.
        chunks: the content, in one piece or several.
        check: called with the finished temporary file; what it raises keeps the old file in place.
        mode: permission bits of a new file, less those that the process does not give (umask).

    Raises:
        OSError: if the folder is missing or not writable, the disk is full, ``path`` is a folder,
            device, pipe or write-protected, or the file system does not rename.
    """
    target = Path(os.path.realpath(path))
    old_mode = check_target(target)
    _clear_stale(target)
    temporary = target.parent / f"{_stem(target)}.{secrets.token_hex(8)}{_MARK}"
    descriptor = os.open(
        temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode if old_mode is None else old_mode
    )
    try:
        with os.fdopen(descriptor, "wb") as file:
            for chunk in (chunks,) if isinstance(chunks, bytes) else chunks:
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        if check is not None:
            check(temporary)
        if old_mode is not None:
            # without bits they are those it was made with: never more than before
            with contextlib.suppress(OSError):
                temporary.chmod(old_mode)
        _rename(temporary, target)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        # a full disk and a limit on the size of files name no file
        if isinstance(error, OSError) and error.errno is not None and error.filename is None:
            raise OSError(error.errno, error.strerror, str(target)) from error
        raise
    flush_folder(target.parent)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write ``text`` as UTF-8 with :func:`write_whole`."""
    write_whole(path, text.encode("utf-8"))


def check_target(target: Path) -> int | None:
    """Return the permission bits of the file to replace, None without one.

    Raises:
        OSError: if the folder is missing, or what is there is not replaced.
    """
    if not target.parent.is_dir():
        problem = f"the folder {target.parent} does not exist; create it first"
        raise FileNotFoundError(errno.ENOENT, problem, str(target))
    if not target.exists():
        return None
    if target.is_dir():
        problem = "it is a folder; expected the name of a file"
        raise IsADirectoryError(errno.EISDIR, problem, str(target))
    if not target.is_file():
        problem = f"it is {_kind_of(target.stat().st_mode)}; only regular files are written"
        raise OSError(errno.EINVAL, problem, str(target))
    mode = target.stat().st_mode & 0o777
    # the first also for those whom no bit stops
    if not mode & 0o222 or not os.access(target, os.W_OK):
        problem = "it is write-protected; make it writable (chmod u+w), or choose another name"
        raise PermissionError(errno.EACCES, problem, str(target))
    return mode


def _rename(temporary: Path, target: Path) -> None:
    try:
        temporary.replace(target)
    except OSError as error:
        problem = (
            f"the finished file cannot be renamed to this name ({error.strerror}): the file system "
            "may not rename, as some mounts of object storage do not. Write to a folder on a local "
            "disk and copy the file from there"
        )
        raise OSError(error.errno, problem, str(target)) from error


def _kind_of(mode: int) -> str:
    """What is there in the place of a file, by the bits of ``os.stat``."""
    if stat.S_ISFIFO(mode):
        return "a pipe"
    if stat.S_ISSOCK(mode):
        return "a socket"
    return "a device"


def _stem(target: Path) -> str:
    """A hidden name that begins like the target's and leaves room for the random part."""
    return "." + os.fsencode(target.name)[:_LONGEST_NAME_BYTES].decode(errors="ignore")


def _clear_stale(target: Path) -> None:
    # of a folder that is not listed, or another writer is faster
    with contextlib.suppress(OSError):
        for path in target.parent.iterdir():
            is_own = path.name.startswith(_stem(target) + ".") and path.name.endswith(_MARK)
            if is_own and time.time() - path.stat().st_mtime > STALE_AFTER_S:
                path.unlink()


def flush_folder(folder: Path) -> None:
    """Make new names in a folder last through a power cut, where the system can."""
    if os.name != "posix":  # other systems cannot open a folder for flushing
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NOT_OFFERED:
            raise
    finally:
        os.close(descriptor)


def open_regular(path: str | os.PathLike[str]) -> BufferedReader:
    """Open a regular file for reading; symbolic links are followed.

    A pipe may block, and a device may never end.

    Raises:
        OSError: if the file does not exist, cannot be opened, or it is a folder, pipe, socket or
            device; at once.
    """
    # before it is opened: opening alone makes some devices act, and a pipe waits
    check_regular(path)
    return Path(path).open("rb")


def read_regular(path: str | os.PathLike[str]) -> bytes:
    """Return the bytes of a regular file; with the errors of :func:`open_regular`."""
    with open_regular(path) as file:
        return file.read()


def check_regular(path: str | os.PathLike[str]) -> None:
    """Refuse what is not a regular file, for readers that open a file by its name themselves.

    Raises:
        OSError: as :func:`open_regular`.
    """
    mode = Path(path).stat().st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, "it is a folder, not a file", os.fspath(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, f"it is {_kind_of(mode)}, not a regular file", os.fspath(path))
