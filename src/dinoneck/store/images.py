"""Images to extract: their ids, what identifies their files, what a backbone sees of them, and what they will take."""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import shutil
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path

from torch import Tensor
from tqdm import tqdm

from dinoneck.data.listing import list_files
from dinoneck.data.names import check_encodable
from dinoneck.errors import DataError, DinoneckError, StoreError
from dinoneck.grid import patch_pair
from dinoneck.images.content import hash_of
from dinoneck.images.decoding import ImageInput, read_image_size
from dinoneck.images.preprocessing import Preprocessing
from dinoneck.images.views import Views
from dinoneck.store.description import Description
from dinoneck.store.index import Index
from dinoneck.store.shards import Entry, ImageFile
from dinoneck.text import counted, some_of

Item = tuple[str, Path]
"""The id of an image, and its file."""
PathLike = str | os.PathLike[str]
# images whose files are compared at once, so that memory stays flat for stores of any size
LOOKED_UP = 10_000
NAMED = 5  # ids of changed images in a message
NAMED_FOLDERS = 3  # in a message
# about how many bytes an image takes in the header of its shard and in the index
ROW_BYTES = 600
# images whose mean size stands for all where they keep their own
SIZED_IMAGES = 64


def image_ids(
    paths: PathLike | Sequence[PathLike], root: PathLike | None = None
) -> dict[str, Path]:
    """Return image id -> file, ids sorted.

    An id is the file's path relative to ``root`` with ``/`` between the parts and without its
    suffix.

    Args:
        paths: images and folders, which are searched to the bottom for names that end in a
            picture's suffix, without folders of masks beside folders of images. A file that is
            listed several times counts once.
        root: what ids are relative to; None: the one folder given, else the nearest folder that
            holds all images.

    Raises:
        DataError: if there are no images, one lies outside ``root``, or two have the same id.
    """
    listed = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    tops = [Path(os.path.abspath(path)) for path in listed]  # noqa: PTH100 - resolve() would follow links
    unique_files: dict[Path, None] = {}
    for top in tops:
        files_of_top = list_files(top, without_masks=True).files if top.is_dir() else [top]
        unique_files |= dict.fromkeys(files_of_top)
    files = list(unique_files)
    if not files:
        raise DataError(
            f"there are no images in {some_of(map(str, tops), NAMED_FOLDERS) or listed}; name "
            "images, or their folders"
        )

    # the folder that ids are relative to
    if root is not None:
        base = os.path.abspath(root)  # noqa: PTH100
    elif len(tops) == 1 and tops[0].is_dir():
        base = str(tops[0])
    else:
        base = os.path.commonpath([file.parent for file in files])

    ids: dict[str, Path] = {}
    for file in files:
        try:
            below_base = file.relative_to(base)
        except ValueError:
            raise DataError(
                f"{file} does not lie in the root {base}; ids are paths relative to the root"
            ) from None
        check_encodable(below_base, file)
        image_id = below_base.with_suffix("").as_posix()
        if image_id in ids:
            raise DataError(
                f"{ids[image_id]} and {file} would both get the id {image_id!r}; an id is the path "
                "without suffix: rename or leave out one of them"
            )
        ids[image_id] = file
    return dict(sorted(ids.items()))


def image_file(path: Path) -> ImageFile:
    """Look at a file and hash it.

    Raises:
        OSError: if it cannot be read.
    """
    # before the bytes: a file that changes meanwhile is hashed again by the next extraction
    status = path.stat()
    modified_ns = max(0, status.st_mtime_ns)  # shards hold no times before 1970
    return ImageFile(hash_of(path), status.st_size, modified_ns)


def check_unchanged(items: Iterable[Item], index: Index) -> None:
    """Reject images whose files are not the ones that were extracted under their ids.

    A file is read and hashed only where its root, size or time differ from the stored ones. A file
    that is not there counts as unchanged.

    Args:
        items: ids that are stored, and files.
        index: of the store.

    Raises:
        StoreError: naming the images and the remedy.
        DataError: if a file cannot be read.
    """
    changed: list[tuple[Entry, Path]] = []
    for files in _in_batches(items):
        for (_, entry), path in zip(index.find(files), files.values(), strict=True):
            if path.exists() and not _is_same(entry, path):
                changed.append((entry, path))
    if changed:
        entry, path = changed[0]
        ids = some_of([repr(other.id) for other, _ in changed], NAMED)
        raise StoreError(
            f"the files of {counted(len(changed), 'stored image')} have changed: {ids}. {path} is "
            f"not what was read from {entry.root}. Extract into a new store or with another root=, "
            f"or delete the shards that hold them, such as {entry.shard}, and extract again"
        )


def check_no_other_ids(items: Iterable[Item], known: Collection[str], index: Index) -> None:
    """Reject new images whose files are stored already under ids that another root gave them.

    Args:
        items: ids that are not stored, and files.
        known: the ids that are stored.
        index: of the store.

    Raises:
        StoreError: naming an image, its stored id and the remedy.
        DataError: if a file cannot be read.
    """
    roots = index.roots()
    stored: list[tuple[Entry, Item]] = []
    for files in _in_batches(items):
        for root in roots:
            stored += _stored_below(root, files.items(), known, index)
    if stored:
        entry, (image_id, path) = stored[0]
        raise StoreError(
            f"{counted(len(stored), 'image')} would be stored twice: {path} is there as "
            f"{entry.id!r}, relative to {entry.root}, and would be {image_id!r} now. Give the root "
            "of the first extraction, root= (--root), or extract all into a new store"
        )


def _stored_below(
    root: str, items: Iterable[Item], known: Collection[str], index: Index
) -> list[tuple[Entry, Item]]:
    """The images that are stored with ids relative to this root, with their entries."""
    items_by_stored_id = {}
    for item in items:
        _, path = item
        file = path.absolute()
        if file.is_relative_to(root):
            stored_id = file.relative_to(root).with_suffix("").as_posix()
            if stored_id in known:
                items_by_stored_id[stored_id] = item
    stored = []
    for stored_id, entries in index.lookup(items_by_stored_id).items():
        item = items_by_stored_id[stored_id]
        _, path = item
        _, entry = entries[0]
        if entry.root == root and path.exists() and _is_same(entry, path):
            stored.append((entry, item))
    return stored


def _in_batches(items: Iterable[Item]) -> Iterator[dict[str, Path]]:
    """Yield id -> file of at most ``LOOKED_UP`` images at a time."""
    pending = iter(items)
    while True:
        files = dict(itertools.islice(pending, LOOKED_UP))
        if not files:
            return
        yield files


def _is_same(entry: Entry, path: Path) -> bool:
    """Whether a file has the content that was extracted; it is read only if its time or root differ."""
    status = path.stat()
    if status.st_size != entry.nbytes:
        return False
    if status.st_mtime_ns == entry.mtime_ns and root_of(entry.id, path) == entry.root:
        return True
    return hash_of(path) == entry.blake2b


def root_of(image_id: str, path: Path) -> str:
    """Return the folder that an image's id is relative to."""
    num_folders = image_id.count("/")  # between the root and the image
    return str(path.absolute().parents[num_folders])


def views_of(
    image: ImageInput, preprocess: Preprocessing, views: Views, image_id: str
) -> list[Tensor]:
    """Return an image under all views: (3, H, W) each, normalised; a quarter turn swaps H and W.

    The image is decoded and brought to its size; colours change there, in 0 ... 1; then it is
    normalised, blurred and padded like any image; flips and turns move the finished image, padding
    included. So padding is the mean colour in every view, and a view that only flips is exactly the
    flip of what ``preprocess`` gives.

    Raises:
        DataError: if the image cannot be used.
        GridError: if the patch does not divide it.
    """
    fitted = preprocess.fitted(image)
    finished_views = []
    for view in range(len(views)):
        # colours change before the image is finished, flips and turns after it
        recoloured = views.undo(views.apply(fitted, view, image_id), view)
        finished = preprocess.finished([recoloured]).images[0]
        finished_views.append(views.place(finished, view))
    return finished_views


def plan(items: Sequence[Item], missing: int, description: Description, folder: Path) -> str:
    """Return in words what an extraction will store and what is free, before any work.

    Args:
        items: all images.
        missing: how many of them the store lacks.
        description: of the store.
        folder: of the store.

    Raises:
        StoreError: if they do not fit on the disk.
    """
    views = len(description.views)
    patches = _typical_patches(items, description)
    view_bytes = sum(part.nbytes for part in description.parts(patches))
    image_bytes = view_bytes * views + ROW_BYTES
    needed_bytes = image_bytes * missing
    free_bytes = shutil.disk_usage(folder).free
    per_image = tqdm.format_sizeof(image_bytes, "B")
    needed = tqdm.format_sizeof(needed_bytes, "B")
    free = tqdm.format_sizeof(free_bytes, "B")
    text = (
        f"{counted(missing, 'image')} x {counted(views, 'view')} x "
        f"{counted(description.num_layers, 'layer')} in {description.dtype}: about {per_image} per "
        f"image, {needed} in all; {free} are free in {folder}"
    )
    if needed_bytes > free_bytes:
        raise StoreError(
            f"{text}, too little; make room, or a new store on a larger disk, with dtype='int8', "
            "fewer views or fewer layers"
        )
    return text


def _typical_patches(items: Sequence[Item], description: Description) -> int:
    """The patches of an image; where images keep their own sizes, the mean of some."""
    preprocess = description.preprocess
    grid = preprocess.grid()
    if grid is not None:
        return grid.count
    patch_height, patch_width = patch_pair(preprocess.patch_size)
    step = math.ceil(len(items) / SIZED_IMAGES)
    counts = []
    for _, path in items[::step]:
        with contextlib.suppress(DinoneckError, OSError):  # unusable ones are named in their turn
            height, width = preprocess.placement(read_image_size(path)).canvas
            counts.append((height // patch_height) * (width // patch_width))
    if not counts:
        return 0
    return math.ceil(sum(counts) / len(counts))
