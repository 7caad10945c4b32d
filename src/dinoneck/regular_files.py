"""Opening of files for reading: regular files only, since a pipe may block for ever and a device may never end."""

from __future__ import annotations

import errno
import os
import stat
from io import BufferedReader
from pathlib import Path


def open_regular(path: str | os.PathLike[str]) -> BufferedReader:
    """Open a regular file for reading; symbolic links are followed.

    Raises:
        OSError: if the file does not exist, cannot be opened, or it is a folder, pipe, socket or device; at once.
    """
    check_regular(path)  # before it is opened: opening alone makes some devices act, and a pipe waits
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
        raise OSError(errno.EINVAL, "it is a pipe, socket or device, not a regular file", os.fspath(path))
