"""Which images a run was trained on: ``trained_on.csv`` in its folder, with a hash of every file.

Images are compared by their content, so that a copy or another name of a training image is found,
and another image of the same name is not taken for one.
"""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from dinoneck.atomic import read_regular
from dinoneck.data import run_names
from dinoneck.data.cells import csv_text
from dinoneck.errors import DataError
from dinoneck.store.images import cached_hash_of
from dinoneck.training import folder as files
from dinoneck.training.folds import Fold
from dinoneck.training.run_tokens import StoreSubset

logger = logging.getLogger(__name__)
_HEADER = ["image", "folds", "blake2b"]
_UNKNOWN = ""  # the hash of an image that is no file


def write_trained_images(
    folder: Path,
    images: Sequence[Any],
    names: Sequence[str],
    stored: StoreSubset | None,
    folds: Sequence[Fold],
) -> None:
    """Write which folds were trained on each image.

    Args:
        folder: of the run.
        images: files, or images in memory, which have no hash.
        names: of the images.
        stored: the tokens of a store, which knows the hashes of the images; None = without one.
        folds: the rows that their heads are trained on.
    """
    folds_of_row: dict[int, list[str]] = {row: [] for row in range(len(names))}
    for fold in folds:
        for row in fold.train.tolist():
            folds_of_row[row].append(fold.name)
    hashes = _image_hashes(images, stored)
    cells = []
    for row, name in enumerate(names):
        cells.append([name, " ".join(folds_of_row[row]), hashes[row]])
    files.write_file(folder / run_names.TRAINED_ON, csv_text(_HEADER, cells).encode())


def _image_hashes(images: Sequence[Any], stored: StoreSubset | None) -> list[str]:
    """Return the hashes of images: those that a store keeps, else those of the files."""
    if stored is not None:
        return [str(entry.blake2b) for _, entry in stored.store.entries.find(stored.ids)]
    return [_hash_of_image(image) for image in images]


def _hash_of_image(image: Any) -> str:
    """The hash of a file; unknown of an image in memory, and of a file that is no longer there."""
    if isinstance(image, str | Path) and Path(image).is_file():
        return cached_hash_of(Path(image))
    return _UNKNOWN


def hashes_of_trained_images(head_file: str | Path) -> set[str]:
    """Return the hashes of the images that the head of a file was trained on.

    Args:
        head_file: in the folder of its run. Elsewhere nothing is known of it.

    Raises:
        DataError: if the record of the run is damaged.
    """
    file = Path(head_file)
    fold = None
    folder = file.parent
    if folder.name in (run_names.HEADS, run_names.BASELINES):
        folder = folder.parent
        fold = file.stem.removeprefix("fold-")
    record = folder / run_names.TRAINED_ON
    if not record.is_file():
        return set()
    hashes = set()
    for _, folds, digest in _rows_of(record):
        is_trained_on = bool(folds) if fold is None else fold in folds.split()
        if is_trained_on and digest != _UNKNOWN:
            hashes.add(digest)
    return hashes


def warn_of_seen_images(
    head_file: str | Path, images: Sequence[Any], stored: StoreSubset | None
) -> None:
    """Warn if the head that a training starts from was trained on images that are held out.

    Args:
        head_file: of the earlier head. Nothing is known of a file outside of the folder of its run.
        images: the held-out images, files or images in memory, which are not compared.
        stored: the tokens of a store, which knows the hashes of the images; None = without one.

    Raises:
        DataError: if the record of the earlier run is damaged.
    """
    trained_on = hashes_of_trained_images(head_file)
    if not trained_on:
        return
    num_seen = sum(digest in trained_on for digest in _image_hashes(images, stored))
    if num_seen:
        logger.warning(
            "init %s: it was trained on %d of the %d images that are held out here, so that their "
            "scores are too high; start from a head of other images",
            head_file,
            num_seen,
            len(images),
        )


def _rows_of(record: Path) -> list[list[str]]:
    """The rows of a record: name, folds and hash of every image.

    Raises:
        DataError: if it is damaged.
    """
    try:
        text = read_regular(record).decode()
    except UnicodeDecodeError as error:
        raise DataError(
            f"{record} is damaged: its byte {error.start} is no UTF-8; restore it, or remove it"
        ) from error
    rows = list(csv.reader(io.StringIO(text, newline="")))
    if not rows or rows[0] != _HEADER or any(len(row) != len(_HEADER) for row in rows):
        raise DataError(
            f"{record} is damaged: expected the columns {', '.join(_HEADER)} in every row; restore "
            "it, or remove it"
        )
    return rows[1:]


def seen_in_training(head_files: Iterable[str | Path], images: Iterable[Any]) -> list[str]:
    """Return the images that one of the heads was trained on, as paths.

    Args:
        head_files: files of heads, or names of published ones, of which nothing is known.
        images: files, or images in memory, which are not compared.

    Raises:
        DataError: if the record of a run is damaged.
    """
    trained_on: set[str] = set()
    for head_file in head_files:
        if Path(head_file).is_file():
            trained_on |= hashes_of_trained_images(head_file)
    if not trained_on:
        return []
    return [str(image) for image in images if _hash_of_image(image) in trained_on]
