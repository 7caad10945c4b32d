"""Labels of images without a table: of folders that are labels, and of COCO files.

Both give a table with a column of 1 and 0 for each label.
"""

from __future__ import annotations

import filecmp
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from dinoneck.data.cells import IMAGES, OWN_COLUMNS, PathLike, composed
from dinoneck.data.coco import CocoBox, read_coco
from dinoneck.data.names import check_folder, find_files, image_files
from dinoneck.errors import DataError
from dinoneck.text import did_you_mean, some_of


def read_label_folders(
    images: PathLike, labels: Sequence[str], *, needs_all: bool = True
) -> pd.DataFrame:
    """Read images that lie in a folder of each label that they have, by links or as copies.

    Files of one name in several folders are one image, and must have the same content. Images in
    other folders have none of the labels.

    Args:
        images: the folder that the folders are in.
        labels: the names of the folders that are labels.
        needs_all: whether a label without a folder is an error; else the table has no column of it.

    Raises:
        DataError: if a folder is missing, or images of one name differ.
    """
    root = Path(images)
    check_folder(root)
    folders = {composed(path.name) for path in root.iterdir() if path.is_dir()}
    names = _present(labels, folders, f"the folder {root}", needs_all=needs_all)
    file_of: dict[str, Path] = {}
    labels_of: dict[str, set[str]] = {}
    for file in image_files(root):
        folder, _, name = composed(file.relative_to(root).as_posix()).rpartition("/")
        first = file_of.setdefault(name, file)
        if first != file and not filecmp.cmp(first, file, shallow=False):
            raise DataError(
                f"{first} and {file} have one name and are two pictures; expected the same image under "
                "one name, as the folders that it is in are its labels: rename one of them"
            )
        labels_of.setdefault(name, set()).add(folder.partition("/")[0])
    return _table(file_of, labels_of, names)


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
    files = find_files([image.file_name for image in coco.images], images, f"images of {path}")
    file_of = {image.file_name: file for image, file in zip(coco.images, files, strict=True)}
    return _table(file_of, dict(zip(file_of, labels_of.values(), strict=True)), names)


def _present(
    labels: Sequence[str], known: Sequence[str] | set[str], owner: str, *, needs_all: bool
) -> list[str]:
    for label in labels:
        if label in OWN_COLUMNS:
            raise DataError(f"a label of {owner} is called {label!r}, as a column of the result")
        if needs_all and composed(label) not in known:
            raise DataError(
                f"multilabel names {label!r}, which {owner} does not have; there are "
                f"{some_of(sorted(known), 20)}.{did_you_mean(label, sorted(known))}"
            )
    return [label for label in labels if composed(label) in known]


def _table(
    file_of: dict[str, Path], labels_of: dict[str, set[str]], names: Sequence[str]
) -> pd.DataFrame:
    table = pd.DataFrame({IMAGES: list(file_of.values())}, [*file_of], dtype=object)
    for name in names:
        table[name] = [float(composed(name) in labels_of[image_id]) for image_id in file_of]
    return table
