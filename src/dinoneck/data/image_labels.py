"""Labels of images without a table: of folders that are labels, and of COCO files.

Both give a table with a column of 1 and 0 for each label, as :func:`dinoneck.data.read_table` gives
of a CSV file. An image without a label among those that are asked for has 0 in all columns.
"""

from __future__ import annotations

import filecmp
import logging
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dinoneck.data.cells import IMAGES, OWN_COLUMNS, PathLike
from dinoneck.data.coco import read_coco
from dinoneck.data.coco_entries import CocoBox, Repairs
from dinoneck.data.coco_repairs import NO_IDS
from dinoneck.data.json_parts import part_of_json
from dinoneck.data.layout import check_folder, check_links
from dinoneck.data.names import check_encodable, composed, is_absolute
from dinoneck.data.sources import find_files
from dinoneck.data.walk import Listing, walk, warn_of_left_out
from dinoneck.errors import DataError
from dinoneck.extras import missing_extra
from dinoneck.text import counted, did_you_mean, in_words, some_of

try:
    import pandas as pd
except ImportError as error:
    raise missing_extra("pandas", "train") from error

logger = logging.getLogger(__name__)
_MOST_LISTED = 20  # labels in a message that lists what there is


# Folders
# ----------------------------------------------------------------------------------------------------


@dataclass
class _LinkedImage:
    """An image that lies in one folder or several.

    Attributes:
        file: the first of its files.
        folders: the names of the folders in the root that hold it.
    """

    file: Path
    folders: set[str]


def read_label_folders(
    images: PathLike, labels: Sequence[str], *, needs_all: bool = True
) -> pd.DataFrame:
    """Read images that lie in a folder of each label that they have, by links or as copies.

    Files are one image if links lead to one file, or if they have one name in several folders and
    the same content: ``crack/00.png`` and ``rust/00.png``. Images in other folders, and beside the
    folders, have none of the labels.

    Args:
        images: the folder that the folders are in.
        labels: the names of the folders that are labels.
        needs_all: whether a label without a folder is an error; else the table has no column of it.

    Returns:
        A table with a column of 1 and 0 for each label. The ids are the paths in the folders, of an
        image with several names the first.

    Raises:
        DataError: if a folder is missing or two names are one, a link leads to nothing, or images of
            one name differ.
    """
    root = Path(images)
    check_folder(root)
    listing = walk(root)
    check_links(listing)
    folder_names = {composed(folder.name) for folder in listing.folders if folder.parent == root}
    present = [label for label in labels if composed(label) in folder_names]
    if needs_all and len(present) < len(labels):
        raise _no_label_folder(root, labels, sorted(folder_names))
    _check_label_names(present, f"the folder {root}")
    warn_of_left_out([listing])
    linked = _linked_images(listing)
    _warn_of_folders(root, list(linked.values()), present)
    table = pd.DataFrame(
        {IMAGES: [image.file for image in linked.values()]}, [*linked], dtype=object
    )
    for label in present:
        table[label] = [float(composed(label) in image.folders) for image in linked.values()]
    return table


def _linked_images(listing: Listing) -> dict[str, _LinkedImage]:
    """Path in its folder -> an image, sorted as the files are."""
    images: dict[str, _LinkedImage] = {}
    image_of_file: dict[tuple[int, int], _LinkedImage] = {}
    for file in listing.images:
        try:
            status = file.stat()
        except OSError:
            raise DataError(
                f"the link {file} leads to nothing; restore what it names, or remove it"
            ) from None
        folder, name = _folder_and_name(file, listing.top)
        image = image_of_file.get((status.st_dev, status.st_ino))
        if image is None:
            image = images.setdefault(name, _LinkedImage(file, set()))
            if image.file != file and not filecmp.cmp(image.file, file, shallow=False):
                raise DataError(
                    f"{image.file} and {file} have one name and are two pictures; expected the same "
                    "image under one name, as the folders that it is in are its labels: rename one of them"
                )
            image_of_file[status.st_dev, status.st_ino] = image
        image.folders.add(folder)
    return images


def _folder_and_name(file: Path, root: Path) -> tuple[str, str]:
    """The folder in the root that a file is in, "" for none, and its path there with ``/``."""
    relative = file.relative_to(root)
    check_encodable(relative, file)
    path = composed(relative.as_posix())
    if "/" not in path:
        return "", path
    folder, _, name = path.partition("/")
    return folder, name


def _no_label_folder(root: Path, labels: Sequence[str], folders: Sequence[str]) -> DataError:
    """The error for the first label without a folder."""
    missing = next(label for label in labels if composed(label) not in folders)
    parts = [folder for folder in folders if (root / folder / missing).is_dir()]
    if parts:
        return DataError(
            f"multilabel names {missing!r}, whose folder is not in {root} but in {some_of(parts, 3)}, "
            "and folders of labels have no parts; name one of these as the images, or a table of the "
            "images with their labels and a column of parts (--csv, --fold-column)"
        )
    return DataError(
        f"multilabel names {missing!r}, and {root} has no folder of this name, whose images have the "
        f"label; there are {some_of(folders, _MOST_LISTED) or 'none'}.{did_you_mean(missing, folders)}"
    )


def _warn_of_folders(root: Path, images: Sequence[_LinkedImage], labels: Sequence[str]) -> None:
    """State what was read, and that no image has two labels."""
    names = {composed(label) for label in labels}
    counts = [len(image.folders & names) for image in images]
    without = sum(count == 0 for count in counts)
    none = f"; {without} in none of these folders have none of the labels" if without else ""
    logger.warning(
        "%s: %s; the folders %s are labels%s",
        root,
        counted(len(images), "image"),
        ", ".join(labels),
        none,
    )
    if max(counts, default=0) == 1 and len(labels) > 1:
        logger.warning(
            "%s: no image is in two of the folders %s; if every image has one of them, they are "
            "classes: leave --multilabel out",
            root,
            ", ".join(labels),
        )


# COCO files
# ----------------------------------------------------------------------------------------------------


def read_coco_labels(
    file: PathLike,
    images: PathLike | None,
    labels: Sequence[str] = (),
    *,
    needs_all: bool = True,
) -> pd.DataFrame:
    """Read the labels of the images of a COCO file: the categories that an image has annotations of.

    Args:
        file: the JSON; its annotations have ``image_id`` and ``category_id``, and may have boxes.
        images: the folder that its file names are relative to; None = they are not looked for.
        labels: the categories that are read; empty = all of them, in the order of the file.
        needs_all: whether a label without a category is an error; else the table has no column of
            it. A category without annotations then has 0 in all rows.

    Returns:
        A table with a column of 1 and 0 for each label. The ids are the file names.

    Raises:
        DataError: if the file cannot be used or names what is not there, or a label is no category.
    """
    path = Path(file)
    repairs = Repairs()
    coco = read_coco(path, CocoBox, repairs)
    del repairs[NO_IDS]  # which labels do not need
    if repairs:
        logger.warning("%s: repaired: %s", path, in_words(repairs))
    categories = [category.name for category in coco.categories]
    names = categories
    if labels:
        names = _labels_among(labels, categories, path, needs_all=needs_all)
    _check_label_names(names, f"the file {path}")

    name_of_category = {category.id: category.name for category in coco.categories}
    labels_of_image: dict[object, set[str]] = {image.id: set() for image in coco.images}
    num_lost = 0
    for annotation in coco.annotations:
        if annotation.image_id in labels_of_image:
            labels_of_image[annotation.image_id].add(name_of_category[annotation.category_id])
        else:
            num_lost += 1
    if num_lost:
        logger.warning(
            "%s: left out: %s of images that it does not list",
            path,
            counted(num_lost, "annotation"),
        )
    if not labels:
        _check_all_occur(path, names, labels_of_image.values())

    file_names = [image.file_name for image in coco.images]
    files = find_files(
        file_names,
        images,
        f"images of {path}",
        outside=not any(map(is_absolute, file_names)),
        part=part_of_json(path),
    )
    ids = [composed(name.strip()) for name in file_names]
    table = pd.DataFrame({IMAGES: files}, ids, dtype=object)
    for name in names:
        table[name] = [float(composed(name) in labels_of_image[image.id]) for image in coco.images]
    return table


def _labels_among(
    labels: Sequence[str], categories: Sequence[str], path: Path, *, needs_all: bool
) -> list[str]:
    """The labels that are categories of a file.

    Raises:
        DataError: with ``needs_all``, for a label that is none.
    """
    names = []
    for label in labels:
        if composed(label) in categories:
            names.append(label)
        elif needs_all:
            raise DataError(
                f"multilabel names {label!r}, which is no category of {path}; there are "
                f"{some_of(categories, _MOST_LISTED)}.{did_you_mean(label, categories)}"
            )
    return names


def _check_all_occur(
    path: Path, names: Sequence[str], labels_of_images: Iterable[set[str]]
) -> None:
    """Raise a DataError for categories without an image, with what to write to leave them out."""
    occurring = set[str]().union(*labels_of_images)
    missing = [name for name in names if name not in occurring]
    if missing:
        kept = [name for name in names if name in occurring]
        option = shlex.join(["--multilabel", str(path), *kept])
        raise DataError(
            f"{path}: no image has an annotation of {some_of(missing, 5)}; name the categories to "
            f"learn after the file: {option}"
        )


def _check_label_names(names: Sequence[str], owner: str) -> None:
    """Raise a DataError for a label that is called like a column of tables of images."""
    for name in names:
        if name in OWN_COLUMNS:
            raise DataError(
                f"a label of {owner} is called {name!r}, as a column of the result; rename it"
            )
