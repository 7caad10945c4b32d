"""Which images a run was trained on: hashes of their files in ``trained_on.csv``, and short ones in head files.

Head files keep them wherever they are copied to. Images are compared by their content, so that a
copy or another name of a training image is found, and another image of the same name is not taken
for one.
"""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dinoneck.atomic import read_regular
from dinoneck.checkpoint.format import head_files, read_header
from dinoneck.checkpoint.training_images import NO_IMAGES, TrainingImages
from dinoneck.data import run_names
from dinoneck.data.cells import csv_text
from dinoneck.errors import DataError
from dinoneck.images.content import cached_hash_of
from dinoneck.training import folder as files
from dinoneck.training.folds import Fold
from dinoneck.training.run_tokens import StoreSubset

logger = logging.getLogger(__name__)
_HEADER = ["image", "folds", "blake2b"]
_UNKNOWN = ""  # the hash of an image that is no file


def write_trained_images(
    folder: Path, *, names: Sequence[str], hashes: Sequence[str], folds: Sequence[Fold]
) -> None:
    """Write which folds were trained on each image.

    Args:
        folder: of the run.
        names: of the images.
        hashes: of the images, see :func:`image_hashes`.
        folds: the rows that their heads are trained on.
    """
    folds_of_row: dict[int, list[str]] = {row: [] for row in range(len(names))}
    for fold in folds:
        for row in fold.train.tolist():
            folds_of_row[row].append(fold.name)
    cells = []
    for row, name in enumerate(names):
        cells.append([name, " ".join(folds_of_row[row]), hashes[row]])
    files.write_file(folder / run_names.TRAINED_ON, csv_text(_HEADER, cells).encode())


def image_hashes(images: Sequence[Any], stored: StoreSubset | None = None) -> list[str]:
    """Return the hashes of images: those that a store keeps, else those of the files.

    Args:
        images: files, or images in memory, whose hash is empty.
        stored: the tokens of a store, which knows the hashes of the images; None = without one.
    """
    if stored is not None:
        return [str(entry.blake2b) for _, entry in stored.store.entries.find(stored.ids)]
    return [_hash_of_image(image) for image in images]


def _hash_of_image(image: Any) -> str:
    """The hash of a file; unknown of an image in memory, and of a file that is no longer there."""
    if isinstance(image, str | Path) and Path(image).is_file():
        return cached_hash_of(Path(image))
    return _UNKNOWN


def images_of_hashes(hashes: Iterable[str]) -> TrainingImages:
    """Return what a head file keeps of images, by their hashes; of an image without a hash it is nothing."""
    return TrainingImages.of_digests(digest for digest in hashes if digest != _UNKNOWN)


def known_training_images(head_file: str | Path) -> TrainingImages:
    """Return the images that the head of a file was trained on, as far as it is known.

    They are those of its header. Of a file that is in the folder of its run and keeps none, or a
    sample, they are those of the run's record.

    Args:
        head_file: a file, or a folder of files; of what is none, such as the name of a published
            head, nothing is known.

    Raises:
        CheckpointError: if the file is no head file.
        DataError: if the record of the run is damaged.
    """
    path = Path(head_file)
    if not path.exists():
        return NO_IMAGES
    images = NO_IMAGES
    for file in head_files(path):
        images |= _images_of_file(file)
    return images


def _images_of_file(file: Path) -> TrainingImages:
    """The images of a head file's header; where it has none or a sample, with those of its run's record."""
    record = read_header(file).meta.get("training_images")
    if record is None:
        return _recorded_images(file)
    images = TrainingImages.from_record(record)
    if not images.may_be_sample:
        return images
    recorded = _recorded_images(file)
    # a sample is the smallest hashes, of this run and of the heads that it started from
    below_largest = {digest for digest in recorded.hashes if digest <= max(images.hashes)}
    is_of_this_run = below_largest <= images.hashes
    return images | recorded if is_of_this_run else images


def _recorded_images(file: Path) -> TrainingImages:
    """The images in the record of the run that a head file is in; none without such a record."""
    fold = None
    folder = file.parent
    if folder.name in (run_names.HEADS, run_names.BASELINES):
        folder = folder.parent
        fold = file.stem.removeprefix("fold-")
    record = folder / run_names.TRAINED_ON
    hashes = []
    if record.is_file():
        for _, folds, digest in _rows_of(record):
            is_trained_on = bool(folds) if fold is None else fold in folds.split()
            if is_trained_on:
                hashes.append(digest)
    return images_of_hashes(hashes)


def warn_of_seen_images(
    head_file: str | Path, images: Sequence[Any], stored: StoreSubset | None
) -> None:
    """Warn if the head that a training starts from was trained on images that are held out.

    Args:
        head_file: of the earlier head, or the name of a published one, of which nothing is known.
        images: the held-out images, files or images in memory, which are not compared.
        stored: the tokens of a store, which knows the hashes of the images; None = without one.

    Raises:
        DataError: if the record of the earlier run is damaged.
    """
    trained_on = known_training_images(head_file)
    if not trained_on.hashes:
        return
    num_seen = 0
    for digest in image_hashes(images, stored):
        num_seen += digest != _UNKNOWN and digest in trained_on
    if num_seen:
        logger.warning(
            "init %s: it was trained on %d%s of the %d images that are held out here, so that their "
            "scores are too high; start from a head of other images",
            head_file,
            num_seen,
            " or more" if trained_on.may_be_sample else "",
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


@dataclass(frozen=True)
class SeenImages:
    """The images that a model was trained on, among others.

    Attributes:
        paths: of the images.
        may_be_more: whether only a sample of the training images is known.
    """

    paths: list[str]
    may_be_more: bool


def seen_in_training(
    sources: Iterable[str | Path],
    images: Iterable[Any],
    stated: TrainingImages = NO_IMAGES,
) -> SeenImages:
    """Return the images that one of the heads was trained on.

    Args:
        sources: files of heads, or names of published ones, of which nothing is known.
        images: files, or images in memory, which are not compared.
        stated: what the heads themselves state, also those of a repository on the Hub.

    Raises:
        CheckpointError: if a file is no head file.
        DataError: if the record of a run is damaged.
    """
    trained_on = stated
    may_be_sample = stated.may_be_sample
    for source in sources:
        of_head = known_training_images(source)
        trained_on |= of_head
        may_be_sample = may_be_sample or of_head.may_be_sample
    paths = []
    if trained_on.hashes:
        for image in images:
            digest = _hash_of_image(image)
            if digest != _UNKNOWN and digest in trained_on:
                paths.append(str(image))
    return SeenImages(paths, may_be_sample)
