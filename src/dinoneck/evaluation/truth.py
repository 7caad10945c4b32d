"""The images and their truth: of a table, of folders of classes or labels, of masks, or of a COCO file of labels."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dinoneck.data.cells import FRAME_NAME, GROUP, IMAGES, LABELS, DecimalMark, PathLike, is_number
from dinoneck.data.folders import (
    DataFolder,
    Subfolders,
    read_data_folder,
    read_images_and_masks,
    table_of_folder,
)
from dinoneck.data.image_labels import read_coco_labels, read_label_folders
from dinoneck.data.names import is_json_file
from dinoneck.data.pairs import DEFAULT_PAIRING, Pairing
from dinoneck.data.tables import read_cells, read_table
from dinoneck.errors import ConfigError, DataError
from dinoneck.evaluation.predicted_tasks import PredictedTasks
from dinoneck.evaluation.truth_columns import TruthColumns
from dinoneck.text import some_of

if TYPE_CHECKING:
    import pandas as pd

IMAGE_COLUMN = "image"
"""The column of file names where no other is named."""


def truth_table(
    images: PathLike | None,
    truth: PathLike | pd.DataFrame,
    predicted: PredictedTasks,
    *,
    group: Sequence[str] = (),
    image_column: str = IMAGE_COLUMN,
    labels: str | None = None,
    subfolders: Subfolders | None = None,
    decimal: DecimalMark | None = None,
    pairing: Pairing = DEFAULT_PAIRING,
) -> pd.DataFrame:
    """Return the images and their truth: of a table, a folder, or a COCO file of labels.

    Args:
        images: folder of the images; None = those of the truth, whose files are not looked for if
            it is a table or a COCO file.
        truth: a CSV file or a DataFrame, a folder of masks, classes or labels, a COCO file of labels,
            or a table of :func:`dinoneck.data.read_table`.
        predicted: what the models predict; these columns are read.
        group: columns of the table.
        image_column: its column of file names.
        labels: its column of masks.
        subfolders: as of :func:`dinoneck.evaluate`.
        decimal: the decimal mark of a CSV file, as of :func:`dinoneck.data.read_table`.
        pairing: how the masks of a folder are chosen.

    Returns:
        A table as of :func:`dinoneck.data.read_table`.

    Raises:
        ConfigError: for ``group``, ``image_column`` or ``labels`` of a folder, or of a table without
            such a column; for ``subfolders`` of a table, or of masks in a folder of their own; for
            ``decimal`` of what is no CSV file; for ``pairing`` of what is no folder of masks.
        DataError: if the truth has nothing that is predicted, a cell does not fit, or a column that
            is predicted as numbers holds words or classes.
    """
    is_folder = isinstance(truth, str | os.PathLike) and Path(truth).is_dir()
    if decimal is not None and (is_folder or is_json(truth) or hasattr(truth, "columns")):
        raise ConfigError(
            f"decimal is {decimal!r}, and the truth is no CSV file, whose numbers have a decimal mark; "
            "leave it out"
        )
    has_masks = is_folder and any(task.is_map for task in predicted.tasks)
    if pairing != DEFAULT_PAIRING and not has_masks:
        raise ConfigError(
            "mask_suffix or skip_unpaired is given, and the truth is no folder of masks; leave them out"
        )
    if is_folder:
        _check_no_columns(truth, group=group, image_column=image_column, labels=labels)
        if has_masks:
            return _read_mask_folder(images, Path(truth), subfolders, pairing)
        has_classes = any(task.is_image_class for task in predicted.tasks)
        if predicted.multilabels and not has_classes:
            return _read_label_folders(images, Path(truth), predicted, subfolders)
        return _read_class_folders(images, Path(truth), predicted, subfolders)
    if subfolders is not None:
        raise ConfigError(
            f"subfolders is {subfolders!r}, and the truth is a table; expected a folder of class "
            "folders, or leave it out"
        )
    if is_json(truth) and predicted.multilabels:
        _check_no_columns(truth, group=group, image_column=image_column, labels=labels)
        return _read_coco_labels(images, Path(truth), predicted)
    if hasattr(truth, "columns") and IMAGES in truth.columns:  # a DataFrame of read_table()
        _check_read_table(truth, predicted, group=group, image_column=image_column, labels=labels)
        return truth
    return _read_rows(
        images,
        truth,
        predicted,
        group=group,
        image_column=image_column,
        labels=labels,
        decimal=decimal,
    )


def is_json(truth: object) -> bool:
    """Return whether a truth is the path of a JSON file, which holds COCO's annotations."""
    return isinstance(truth, str | os.PathLike) and is_json_file(truth)


def _check_no_columns(
    folder: PathLike, *, group: Sequence[str], image_column: str, labels: str | None
) -> None:
    """Raise a ConfigError if a column of a table is named for a folder."""
    columns = {"group": group, "labels": labels, "image_column": stated_image_column(image_column)}
    for name, value in columns.items():
        if value:
            raise ConfigError(
                f"{name} is {value!r}, which is a column of a table, and the truth {folder} is "
                f"{'a COCO file' if is_json(folder) else 'a folder'}; leave it out"
            )


def stated_image_column(image_column: str) -> str | None:
    """Return the column of file names if a call names another one than the default, else None."""
    return None if image_column == IMAGE_COLUMN else image_column


def _check_read_table(
    table: pd.DataFrame,
    predicted: PredictedTasks,
    *,
    group: Sequence[str],
    image_column: str,
    labels: str | None,
) -> None:
    """Check a table of :func:`dinoneck.data.read_table`, which is taken as it is.

    Raises:
        ConfigError: if it has no groups or masks, and they are asked for; for another column of
            images.
        DataError: if a column that is scored as numbers holds words or classes.
    """
    for role, value in {GROUP: group, LABELS: labels}.items():
        if value and role not in table:
            raise ConfigError(
                f"{role} is {value!r}, and the table of read_table() has no column {role!r}; "
                f"name it with {role}= of read_table(), which makes it"
            )
    if stated_image_column(image_column) is not None:
        raise ConfigError(
            f"image_column is {image_column!r}, and the table of read_table() has its images "
            "already; leave it out, or name it with image_column= of read_table()"
        )
    _check_numbers(table, predicted)


def _check_numbers(table: pd.DataFrame, predicted: PredictedTasks) -> None:
    """Raise a DataError for words in a column that is scored as numbers."""
    known = TruthColumns.among(list(table.columns), predicted)
    for column in [*known.numbers, *known.indicators]:
        if not hasattr(table[column], "cat"):
            continue
        names = list(table[column].cat.categories)
        words = [word for word in names if not is_number(word)]
        if names and not words:
            raise DataError(
                f"{FRAME_NAME}: {column} is categorical, of the classes "
                f"{some_of(map(repr, names), 5)}, and the heads predict numbers; expected a column "
                f"of float64, which table[{column!r}].astype(float) gives"
            )
        if not words:
            continue
        image_id = table.index[table[column].isin(words).to_numpy()][0]
        raise DataError(
            f"{FRAME_NAME}: {column} of {image_id!r} is {table[column][image_id]!r}, and the heads "
            "predict numbers; expected a number in every cell, or an empty one where it is unknown"
        )


def _read_rows(
    images: PathLike | None,
    truth: PathLike | pd.DataFrame,
    predicted: PredictedTasks,
    *,
    group: Sequence[str],
    image_column: str,
    labels: str | None,
    decimal: DecimalMark | None,
) -> pd.DataFrame:
    """Return the table of a CSV file or a DataFrame, with the columns that are predicted."""
    cells = read_cells(truth, (image_column, *group), image_column)
    columns = [str(column) for column in cells.columns]
    known = TruthColumns.among(columns, predicted)
    if labels is None:
        known.check_any()
    return read_table(
        truth,
        images,
        known.all,
        group=group,
        image_column=image_column,
        labels=labels,
        classes=known.classes,
        numbers=known.numbers,
        multilabel=known.labels,
        indicators=known.indicators,
        decimal=decimal,
    )


def _read_mask_folder(
    images: PathLike | None, truth: Path, subfolders: Subfolders | None, pairing: Pairing
) -> pd.DataFrame:
    """Return the images and masks of a folder, or of a folder of masks and one of images."""
    if images is not None and not Path(images).samefile(truth):
        content = read_images_and_masks(images, truth, subfolders)
    else:
        content = read_data_folder(truth, subfolders)
        if content.kind != "masks" and pairing.mask_suffix is not None:
            content = read_images_and_masks(truth, truth, subfolders)
    if content.kind != "masks":
        raise DataError(
            f"{truth} holds no images with masks; name the folder of the images, and that of "
            "the masks as the truth"
        )
    _check_has_no_parts(content)
    return table_of_folder(content, pairing)


def _read_label_folders(
    images: PathLike | None,
    truth: Path,
    predicted: PredictedTasks,
    subfolders: Subfolders | None,
) -> pd.DataFrame:
    """Return the images of a folder with a folder of each label, with its columns of 1 and 0."""
    if subfolders is not None:
        raise ConfigError(
            f"subfolders is {subfolders!r}, and the heads predict labels, which are the names of the "
            f"folders in {truth}; leave it out"
        )
    _check_same_folder(images, truth, "folders of labels")
    table = read_label_folders(truth, _all_labels(predicted), needs_all=False)
    return _with_some_labels(table, truth, predicted)


def _read_coco_labels(
    images: PathLike | None, truth: Path, predicted: PredictedTasks
) -> pd.DataFrame:
    """Return the images of a COCO file, with a column of 1 and 0 for each label."""
    table = read_coco_labels(truth, images, _all_labels(predicted), needs_all=False)
    return _with_some_labels(table, truth, predicted)


def _all_labels(predicted: PredictedTasks) -> list[str]:
    """The labels of all tasks, each once."""
    labels: list[str] = []
    for task in predicted.multilabels:
        labels += task.labels
    return list(dict.fromkeys(labels))


def _with_some_labels(table: pd.DataFrame, truth: Path, predicted: PredictedTasks) -> pd.DataFrame:
    """Return the table, which must have a label that is predicted."""
    columns = [name for name in table.columns if name != IMAGES]
    if not columns:
        raise DataError(
            f"the truth {truth} has none of the labels that are predicted, "
            f"{some_of(_all_labels(predicted), 5)}; expected folders, or categories of a COCO file, "
            "that are called like them"
        )
    return table


def _read_class_folders(
    images: PathLike | None,
    truth: Path,
    predicted: PredictedTasks,
    subfolders: Subfolders | None,
) -> pd.DataFrame:
    """Return the images of class folders, with the class under the name of the one task of classes."""
    names = [task.name for task in predicted.tasks if task.is_image_class]
    if len(names) != 1:
        raise DataError(
            f"the truth {truth} is a folder, whose folders are the classes of one target; the heads "
            f"predict {some_of(predicted.names, 5)}. Name a CSV with these columns"
        )
    content = read_data_folder(truth, subfolders)
    if content.kind != "classes":
        raise DataError(f"the truth {truth} has no class folders, and the heads predict classes")
    _check_same_folder(images, truth, "class folders")
    _check_has_no_parts(content)
    return table_of_folder(content).rename(columns={"class": names[0]})


def _check_same_folder(images: PathLike | None, truth: Path, contents: str) -> None:
    """Raise a DataError for another folder of images than the truth, whose folders hold them."""
    if images is not None and not Path(images).samefile(truth):
        raise DataError(
            f"the truth {truth} has {contents}, which hold the images to predict; name it in the "
            f"place of {images}"
        )


def _check_has_no_parts(content: DataFolder) -> None:
    """Raise a DataError for a folder whose folders are parts such as train and val; folds are none."""
    if content.held_out is not None:
        raise DataError(
            f"{content.root} holds the parts {', '.join(content.parts)}; name the folder of one"
        )
