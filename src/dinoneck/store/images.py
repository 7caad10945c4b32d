"""Images to extract: their ids, what identifies their files, and what a backbone sees of them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from dinoneck.data.decoding import ImageInput
from dinoneck.data.loading import images_below
from dinoneck.data.patterns import Patterns
from dinoneck.data.preprocessing import Preprocessing
from dinoneck.errors import DataError, StoreError, counted
from dinoneck.regular_files import open_regular
from dinoneck.store.index import Entry

_NAMED = 5
PathLike = str | os.PathLike[str]


def image_ids(paths: PathLike | Sequence[PathLike], root: PathLike | None = None) -> dict[str, Path]:
    """Return image id -> file, ids sorted.

    An id is the file's path relative to ``root`` with ``/`` between the parts and without its suffix.

    Args:
        paths: images and folders, which are searched to the bottom for names that end in a picture's suffix. A file
            that is listed several times counts once.
        root: what ids are relative to; None = the one folder given, else the nearest folder that holds all images.

    Raises:
        DataError: if there are no images, one lies outside ``root``, or two have the same id.
    """
    given = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    tops = [_absolute(path) for path in given]
    files = list(dict.fromkeys(file for top in tops for file in images_below(top)))
    if not files:
        raise DataError("there are no images to extract tokens from")
    if root is not None:
        base = _absolute(root)
    elif len(tops) == 1 and tops[0].is_dir():
        base = tops[0]
    else:
        base = Path(os.path.commonpath([file.parent for file in files]))
    found: dict[str, Path] = {}
    for file in files:
        image_id = _id(file, base)
        if image_id in found:
            raise DataError(
                f"{found[image_id]} and {file} would both get the id {image_id!r}; an id is the path without suffix: "
                "rename or leave out one of them"
            )
        found[image_id] = file
    return dict(sorted(found.items()))


def _absolute(path: PathLike) -> Path:
    return Path(os.path.normpath(Path(path).absolute()))


def _id(file: Path, base: Path) -> str:
    try:
        image_id = file.relative_to(base).with_suffix("").as_posix()
    except ValueError:
        raise DataError(f"{file} does not lie in the root {base}; ids are paths relative to the root") from None
    try:
        image_id.encode()
    except UnicodeEncodeError:
        raise DataError(f"the name {image_id!r} cannot be encoded in UTF-8; rename the image") from None
    return image_id


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
    with open_regular(path) as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _root_of(image_id: str, path: Path) -> str:
    return str(path.absolute().parents[image_id.count("/")])


def views_of(image: ImageInput, preprocess: Preprocessing, patterns: Patterns, image_id: str) -> Tensor:
    """Return an image under all patterns: (patterns, 3, H, W), normalised.

    The image is decoded and brought to its size; colours change there, in 0 ... 1; then it is normalised, blurred
    and padded like any image; flips turn the finished image, padding included. So padding is the mean colour under
    every pattern, and a pattern that only flips is exactly the flip of what ``preprocess`` gives.

    Raises:
        DataError: if the image cannot be used.
        GridError: if the patch does not divide it.
    """
    fitted = preprocess.fitted(image)
    images = []
    for i in range(len(patterns)):
        axes = [axis for axis, flipped in zip((-1, -2), patterns.flips(i), strict=True) if flipped]
        upright = patterns.apply(fitted, i, image_id).flip(axes)
        images.append(preprocess.finished([upright]).images[0].flip(axes))
    return torch.stack(images)
