"""Labels of images without a table: of folders that are labels, and of COCO files.

Both give a table with a column of 1 and 0 for each label.
"""

from __future__ import annotations

import filecmp
from collections.abc import Collection, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from dinoneck.data.cells import IMAGES, OWN_COLUMNS, PathLike, composed
from dinoneck.data.coco import read_coco
from dinoneck.data.coco_entries import CocoBox
from dinoneck.data.folders import LEFT_OUT
from dinoneck.data.listing import identity_of, list_files
from dinoneck.data.names import check_encodable, find_files
from dinoneck.errors import DataError
from dinoneck.text import did_you_mean, some_of


def read_label_folders(
    images: PathLike, labels: Sequence[str], *, needs_all: bool = True
) -> pd.DataFrame:
    """Read images that lie in a folder of each label that they have, by links or as copies.

    Files are one image if links lead to one file, or if they have one path in several folders and
    the same content: ``crack/00.png`` and ``rust/00.png``. Images in other folders have none of the
    labels.

    Args:
        images: the folder that the folders are in.
        labels: the names of the folders that are labels.
        needs_all: whether a label without a folder is an error; else the table has no column of it.

    Returns:
        A table with a column of 1 and 0 for each label. The ids are the paths in the folders, of an
        image with several names the first.

    Raises:
        DataError: if a folder is missing, or images of one name differ.
    """
    root = Path(images)
    listing = list_files(root)
    folders = {composed(path.name) for path in root.iterdir() if path.is_dir()}
    names = _present(labels, folders, f"the folder {root}", needs_all=needs_all)
    file_of: dict[str, Path] = {}
    labels_of: dict[str, set[str]] = {}
    name_of: dict[Hashable, str] = {}
    for file in listing.files:
        check_encodable(file.relative_to(root), file)
        path = composed(file.relative_to(root).as_posix())
        folder, _, path_in_folder = path.partition("/") if "/" in path else ("", "", path)
        name = name_of.setdefault(identity_of(file), path_in_folder)
        first = file_of.setdefault(name, file)
        if name == path_in_folder and not first.samefile(file):
            _check_same_picture(first, file)
        labels_of.setdefault(name, set()).add(folder)
    table = _table(file_of, labels_of, names)
    table.attrs[LEFT_OUT] = dict(listing.left_out)
    return table


def _check_same_picture(first: Path, second: Path) -> None:
    """Reject two files of one name that differ."""
    if not filecmp.cmp(first, second, shallow=False):
        raise DataError(
            f"{first} and {second} have one name and are two pictures; expected the same image under "
            "one name, as the folders that it is in are its labels: rename one of them"
        )


def read_coco_labels(
    file: PathLike,
    images: PathLike | None,
    labels: Sequence[str] = (),
    *,
    needs_all: bool = True,
) -> pd.DataFrame:
    """Read the labels of images of a COCO file: the categories that an image has annotations of.

    Args:
        file: the JSON; its annotations have ``image_id`` and ``category_id``, and may have boxes.
        images: the folder that its file names are relative to; None = they are not looked for.
        labels: the categories that are read; empty = all of them, in the order of the file.
        needs_all: whether a label without a category is an error.

    Raises:
        DataError: if the file cannot be used, or a label is no category.
    """
    path = Path(file)
    coco = read_coco(path, CocoBox)
    categories = {category.id: str(category.name) for category in coco.categories}
    names = list(categories.values())
    if labels:
        names = _present(labels, names, f"the file {path}", needs_all=needs_all)
    labels_of: dict[object, set[str]] = {image.id: set() for image in coco.images}
    for annotation in coco.annotations:
        labels_of[annotation.image_id].add(categories[annotation.category_id])
    file_names = [image.file_name for image in coco.images]
    files: list[Any] = list(file_names)
    if images is not None:
        files = find_files(file_names, images, f"images of {path}")
    file_of = dict(zip(file_names, files, strict=True))
    labels_of_file = {}
    for image in coco.images:
        labels_of_file[image.file_name] = labels_of[image.id]
    return _table(file_of, labels_of_file, names)


def _present(
    labels: Sequence[str], known: Sequence[str] | set[str], owner: str, *, needs_all: bool
) -> list[str]:
    for label in labels:
        if label in OWN_COLUMNS:
            raise DataError(
                f"a label of {owner} is called {label!r}, as a column of the result; rename it"
            )
        if needs_all and composed(label) not in known:
            raise DataError(
                f"multilabel names {label!r}, which {owner} does not have; there are "
                f"{some_of(sorted(known), 20)}.{did_you_mean(label, sorted(known))}"
            )
    return [label for label in labels if composed(label) in known]


def _table(
    file_of: Mapping[str, Path], labels_of: Mapping[str, Collection[str]], names: Sequence[str]
) -> pd.DataFrame:
    table = pd.DataFrame({IMAGES: list(file_of.values())}, [*file_of], dtype=object)
    for name in names:
        table[name] = [float(composed(name) in labels_of[image_id]) for image_id in file_of]
    return table
