"""The files below a folder: which are images or masks, and what is left out. Neither pandas nor torch is imported."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dinoneck.data.run_names import DETECTOR, HEADS, PREDICTIONS, REPORT, UNFINISHED
from dinoneck.errors import DataError

SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp", ".bmp")
"""Of the files that are images, in any case."""
MASK_SUFFIXES = (*SUFFIXES, ".gif", ".npy")
"""Of the files that may be meant as masks, in any case.

JPEG and WebP, which change numbers, are listed so that :mod:`dinoneck.images.rasters` refuses them
by their names.
"""

# names of folders, in small letters
IMAGE_FOLDERS = ("images", "imgs", "jpegimages", "leftimg8bit")
MASK_FOLDERS = ("masks", "labels", "annotations", "gt", "gtfine", "segmentationclass", "trimaps")

# each set of files tells a folder that dinoneck wrote: of trainings, and of a feature store
_FILES_OF_RUNS = ({REPORT, HEADS}, {REPORT, PREDICTIONS}, {REPORT, DETECTOR})
_FILES_OF_STORES = ({"store.json", "index.sqlite"},)
# the sheet of a run is no image of its data; it is beside the text and one of the other files
_SHEET = "data.jpg"
_SHEET_TEXT = "data.txt"
_BESIDE_SHEET = frozenset({REPORT, UNFINISHED, "data.json"})


@dataclass(frozen=True)
class Listing:
    """The files below a folder.

    Attributes:
        files: those of the suffixes that were asked for, sorted by the parts of their paths.
        left_out: what else lies there, in words -> how many.
    """

    files: list[Path] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)


def list_files(
    folder: Path,
    suffixes: Collection[str] = SUFFIXES,
    *,
    without: Path | None = None,
    without_masks: bool = False,
) -> Listing:
    """List the files below a folder; links are followed.

    Folders that begin with ``.`` or ``_``, files that begin with ``.``, and what dinoneck wrote are
    left out. A link into a folder that it lies in is not followed again.

    Args:
        folder: the folder.
        suffixes: of the files, in lower case; other files are counted.
        without: a folder below it that is not listed.
        without_masks: leave out folders called as those of masks (``masks``, ``labels`` ...) beside one
            called as that of images (``images``, ``imgs`` ...).

    Raises:
        DataError: if the folder does not exist or cannot be listed, or a link leads nowhere.
    """
    check_folder(folder)
    listing = Listing()
    passed_over = frozenset() if without is None else frozenset([identity_of(without)])
    _list_folder(folder, suffixes, passed_over, listing, without_masks=without_masks, is_top=True)
    return listing


def _list_folder(
    folder: Path,
    suffixes: Collection[str],
    passed_over: frozenset[Hashable],
    listing: Listing,
    *,
    without_masks: bool,
    is_top: bool = False,
) -> None:
    """Add the files below a folder to a listing; the folders that it lies in are passed over."""
    identity = identity_of(folder)
    if identity in passed_over:
        return
    try:
        with os.scandir(folder) as scan:
            entries = sorted(scan, key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"the folder {folder} cannot be listed: {error.strerror}") from None
    names = {entry.name for entry in entries}
    if not is_top and any(files <= names for files in (*_FILES_OF_RUNS, *_FILES_OF_STORES)):
        listing.left_out["folders of runs and stores"] += 1
        return
    has_images_beside = without_masks and any(name.lower() in IMAGE_FOLDERS for name in names)
    has_sheet = _SHEET_TEXT in names and not _BESIDE_SHEET.isdisjoint(names)
    for entry in entries:
        path = folder / entry.name
        suffix = path.suffix.lower()
        if entry.name.startswith("."):
            continue
        is_folder = path.is_dir() if entry.is_symlink() else entry.is_dir()
        if is_folder:
            if entry.name.startswith("_"):
                listing.left_out["folders called _…"] += 1
            elif has_images_beside and entry.name.lower() in MASK_FOLDERS:
                listing.left_out["folders of masks"] += 1
            else:
                inner = passed_over | {identity}
                _list_folder(path, suffixes, inner, listing, without_masks=without_masks)
        elif entry.is_symlink() and not path.exists():
            raise DataError(
                f"the link {path} leads nowhere; restore its target, or remove the link"
            )
        elif has_sheet and entry.name == _SHEET:
            continue
        elif suffix in suffixes:
            listing.files.append(path)
        else:
            listing.left_out[f"files of other formats ({suffix or 'no suffix'})"] += 1


def identity_of(path: Path) -> Hashable:
    """Return what two paths of one file or folder share, also links; a hard link is a file of its own."""
    status = path.stat()
    if status.st_nlink > 1:  # by its number a file and its hard link are one
        return path.resolve()
    return status.st_dev, status.st_ino


def check_folder(folder: Path) -> None:
    """Reject what is no folder.

    Raises:
        DataError: naming it.
    """
    if not folder.exists():
        raise DataError(f"the folder {folder} does not exist")
    if not folder.is_dir():
        raise DataError(f"{folder} is a file; expected a folder")


def images_below(folder: Path) -> list[Path]:
    """Return the images below a folder without its masks, see :func:`list_files`.

    Raises:
        DataError: if there are none.
    """
    images = list_files(folder, without_masks=True).files
    check_any_pictures(folder, images)
    return images


def check_any_pictures(folder: Path, images: Sequence[Path]) -> None:
    """Reject a folder without images."""
    if not images:
        raise DataError(f"the folder {folder} holds no images ({', '.join(SUFFIXES)})")
