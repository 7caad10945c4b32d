"""The folder of this machine in which dinoneck keeps what it can make again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """Return ``DINONECK_CACHE``, else ``dinoneck`` in ``XDG_CACHE_HOME`` or ``~/.cache``; it may not exist.

    Raises:
        RuntimeError: if none of them is set and the user has no home folder.
    """
    folder = os.environ.get("DINONECK_CACHE")
    if folder:
        return Path(folder).absolute()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "dinoneck"
