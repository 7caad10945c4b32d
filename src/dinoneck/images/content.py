"""The content of image files: the hash by which a copy, or another name, is known to be the same image."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

from dinoneck.atomic import open_regular

# hashes of images that a process keeps, about 200 bytes each
MOST_CACHED = 100_000


def hash_of(path: Path) -> str:
    """Return the BLAKE2b of a file, of 16 bytes, in hexadecimal digits."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def cached_hash_of(path: Path) -> str:
    """Return :func:`hash_of` of a file, which is read once as long as its size and its time stay the same."""
    status = path.stat()
    return _hash_of_state(path, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=MOST_CACHED)
def _hash_of_state(path: Path, nbytes: int, mtime_ns: int) -> str:
    return hash_of(path)
