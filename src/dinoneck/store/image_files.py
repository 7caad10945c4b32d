"""The file that an image's features come from: its size and time first, then a hash of its bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from dinoneck.errors import DataError, StoreError, counted
from dinoneck.store.index import Entry

_NAMED = 5


class ImageFile(NamedTuple):
    """What identifies the content of an image's file.

    Attributes:
        nbytes: its size.
        mtime_ns: when it was last modified; 0 = not known.
        blake2b: hash of its bytes, 32 hex digits; empty = not known.
        root: the folder that the image's id is relative to; empty = not known.
    """

    nbytes: int
    mtime_ns: int = 0
    blake2b: str = ""
    root: str = ""


def image_file(image_id: str, path: Path) -> ImageFile:
    """Look at a file and hash it.

    Raises:
        OSError: if it cannot be read.
    """
    status = path.stat()  # before the bytes: a file that changes meanwhile is hashed again by the next extraction
    return ImageFile(status.st_size, max(0, status.st_mtime_ns), _hash_of(path), _root_of(image_id, path))


def check_unchanged(items: Iterable[tuple[str, Path]], stored: Mapping[str, Entry]) -> None:
    """Refuse images whose files are not the ones that were extracted under their ids.

    A file is read and hashed only where its root, size or time differ from the stored ones. Stores of version 0.1
    know the size alone. A file that is not there counts as unchanged.

    Raises:
        StoreError: naming the images and the remedy.
        DataError: if a file cannot be read.
    """
    pairs = ((stored[image_id], path) for image_id, path in items if image_id in stored)
    changed = [(entry, path) for entry, path in pairs if not _is_same(entry, path)]
    if changed:
        entry, path = changed[0]
        ids = ", ".join(repr(entry.id) for entry, _ in changed[:_NAMED]) + (", ..." if len(changed) > _NAMED else "")
        source = f", which was read from {entry.root}" if entry.root else ""
        raise StoreError(
            f"the files of {counted(len(changed), 'stored image')} have changed: {ids}. {path} is not the file stored "
            f"as {entry.id!r}{source}, and the stored features are those of that file. Extract into a new store, or "
            f"under other ids (root=, --root). To replace the features, delete the shards that hold them, such as "
            f"{entry.file}, and extract again"
        )


def _is_same(entry: Entry, path: Path) -> bool:
    try:
        status = path.stat()
        if not entry.blake2b or status.st_size != entry.photo_bytes:
            return status.st_size == entry.photo_bytes
        if status.st_mtime_ns == entry.mtime_ns and _root_of(entry.id, path) == entry.root:
            return True
        return _hash_of(path) == entry.blake2b
    except FileNotFoundError:
        return True
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from error


def _hash_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _root_of(image_id: str, path: Path) -> str:
    return str(path.absolute().parents[image_id.count("/")])
