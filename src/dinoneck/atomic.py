"""Whole files or none: write beside the target, flush to disk, rename, flush the folder.

A reader sees the old file or the new one, never a part; a failure leaves the old file as it was and
removes what was begun. Temporary files that a killed process left behind are cleared by the next write
to the same target once they are an hour old.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

STALE_AFTER_S = 3600.0
_MARK = ".dinoneck-tmp"
_LONGEST_NAME_BYTES = 200


def write_whole(
    path: str | os.PathLike[str],
    chunks: bytes | Iterable[bytes | memoryview],
    check: Callable[[Path], None] | None = None,
) -> None:
    """Write ``chunks`` to ``path`` so that the file appears whole or not at all.

    A symbolic link is followed and stays a link; an existing file keeps its permission bits.

    Args:
        path: the file to write; its folder must exist.
        chunks: the content, in one piece or several.
        check: called with the finished temporary file; what it raises keeps the old file in place.

    Raises:
        OSError: if the folder is missing or not writable, the disk is full, or ``path`` is a folder, device or pipe.
    """
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise IsADirectoryError(f"{target} is a folder; a file name was expected")
    if target.exists() and not target.is_file():
        raise OSError(f"{target} is a device or pipe; only regular files are written")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"the folder {target.parent} does not exist; create it first")
    _clear_stale(target)
    temporary = target.parent / f"{_stem(target)}.{secrets.token_hex(8)}{_MARK}"
    mode = target.stat().st_mode & 0o777 if target.exists() else 0o666
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            for chunk in (chunks,) if isinstance(chunks, bytes) else chunks:
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        if check is not None:
            check(temporary)
        if target.exists():
            temporary.chmod(mode)
        temporary.replace(target)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    _flush_folder(target.parent)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write ``text`` as UTF-8 with :func:`write_whole`."""
    write_whole(path, text.encode("utf-8"))


@contextlib.contextmanager
def write_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a new folder to fill, which takes the place of ``path`` when the block ends: whole or not at all.

    A folder that is there is moved aside first and removed last. A kill between the two renames leaves it whole under a
    name that begins with a dot, beside where it was.

    Args:
        path: the folder to write; the one above must exist.

    Raises:
        OSError: if the folder above is missing or not writable, or the disk is full.
    """
    target = Path(os.path.realpath(path))
    mark = f"{secrets.token_hex(8)}{_MARK}"
    new, old = target.parent / f"{_stem(target)}.new-{mark}", target.parent / f"{_stem(target)}.old-{mark}"
    _clear_stale_folders(target)
    new.mkdir()
    try:
        yield new
        _flush_folder(new)
        if target.exists():
            target.rename(old)
        try:
            new.rename(target)
        except BaseException:
            if old.exists():
                old.rename(target)
            raise
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    _flush_folder(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def _stem(target: Path) -> str:
    """A hidden name that begins like the target's and leaves room for the random part."""
    return "." + target.name.encode()[:_LONGEST_NAME_BYTES].decode(errors="ignore")


def _clear_stale(target: Path) -> None:
    prefix = _stem(target) + "."
    with os.scandir(target.parent) as entries:
        for entry in entries:
            if not (entry.name.startswith(prefix) and entry.name.endswith(_MARK)):
                continue
            with contextlib.suppress(OSError):  # another writer may be faster
                if time.time() - entry.stat().st_mtime > STALE_AFTER_S:
                    Path(entry.path).unlink()


def _clear_stale_folders(target: Path) -> None:
    """Clear folders that were never finished; one that was moved aside may be all there is, and stays."""
    for folder in target.parent.iterdir():
        if not (folder.name.startswith(f"{_stem(target)}.new-") and folder.name.endswith(_MARK)):
            continue
        with contextlib.suppress(OSError):  # another writer may be faster
            if time.time() - folder.stat().st_mtime > STALE_AFTER_S:
                shutil.rmtree(folder, ignore_errors=True)


def _flush_folder(folder: Path) -> None:
    if os.name != "posix":  # other systems cannot open a folder for flushing
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
