"""Step 2 of a run: the table of its images."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dinoneck.data.cells import FOLD, GROUP, IMAGES, LABELS
from dinoneck.data.folders import (
    HELD_OUT,
    LEFT_OUT,
    DataFolder,
    part_names_among,
    part_of,
    read_data_folder,
    read_images_and_masks,
)
from dinoneck.data.table import Table, check_column_names
from dinoneck.demo.pasture import SUMS, Pasture
from dinoneck.errors import ConfigError, DataError
from dinoneck.kinds import CLASS_KINDS, LABEL_KINDS, MAP_KINDS, NUMBER_KINDS
from dinoneck.text import some_of
from dinoneck.training.config import (
    CompositionConfig,
    DataConfig,
    TaskConfig,
    TrainConfig,
)

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)
_SHOWN = 5  # names in a message
LABELS_TASK = "tags"
"""The name of the task that ``data.multilabel`` makes of several columns; of one column it is the column's."""


def table_of(config: TrainConfig, frame: Any = None, folder: DataFolder | None = None) -> Table:
    """Return the table that a config describes.

    Args:
        config: the run.
        frame: a pandas DataFrame in the place of ``data.csv``; one of
            :func:`dinoneck.data.read_table` as it is, with the columns that the config names.
        folder: what ``data.images`` holds, if it has been read; None = it is read here.

    Raises:
        ConfigError: if a table and ``data.csv`` are given, or a table lacks what the config names.
        DataError: if the table or the folders cannot be used.
    """
    return Table.from_frame(_frame_of(config, frame, folder))


def _frame_of(config: TrainConfig, frame: Any, folder: DataFolder | None) -> pd.DataFrame:
    """The DataFrame that a config describes, as :func:`dinoneck.data.read_table` returns it."""
    data = config.data
    if frame is not None and data.csv is not None:
        raise ConfigError(f"data.csv is {data.csv!r} and a table is given; leave one of them out")
    if frame is None and data.csv is None:
        if data.images is None:
            return Pasture(seed=0).table(range(data.pasture))
        return _frame_of_folders(config, folder)
    if IMAGES in getattr(frame, "columns", ()):
        table = frame
        _check_read_table(config, table)
    else:
        table = _read_rows(config, frame)
    if config.folds.column is None:
        return table
    return _without_test_part(table, config.folds.column)


def _check_read_table(config: TrainConfig, frame: pd.DataFrame) -> None:
    """Check a table of :func:`dinoneck.data.read_table`, which is taken as it is."""
    check_column_names(frame)
    columns_of_roles = {
        FOLD: config.folds.column,
        GROUP: config.folds.group,
        LABELS: config.data.labels,
    }
    for role, column in columns_of_roles.items():
        if column and role not in frame:
            raise ConfigError(f"the config names {column!r}; the table has no column {role!r}")


def _read_rows(config: TrainConfig, frame: Any) -> pd.DataFrame:
    """The table of ``data.csv``, or of a DataFrame that is given in its place."""
    from dinoneck.data.tables import read_table

    data = config.data
    folds = config.folds
    targets, auxiliary = target_columns(config)
    reads_images = data.store is None or data.labels is not None or data.images is not None
    images = None
    if reads_images:
        images = data.images or Path(data.csv or ".").parent
    return read_table(
        data.csv if frame is None else frame,
        images,
        targets,
        auxiliary=auxiliary,
        group=folds.group,
        fold_column=folds.column,
        image_column=data.image_column or "image",
        labels=data.labels,
        classes=dict.fromkeys(_columns_of_kinds(config, CLASS_KINDS), ()),
        numbers=_columns_of_kinds(config, NUMBER_KINDS),
        multilabel=dict.fromkeys(_word_columns(config), ()),
        indicators=_indicator_columns(config),
        decimal=data.decimal,
    )


def _columns_of_kinds(config: TrainConfig, kinds: Sequence[str]) -> list[str]:
    """The columns of which a config says that they are of one of these kinds."""
    columns: list[str] = []
    for task in column_tasks(config).values():
        if task.kind in kinds:
            columns += task.columns
    return columns


def _indicator_columns(config: TrainConfig) -> list[str]:
    """The columns of 0 and 1 of the tasks of labels that have several columns."""
    columns: list[str] = []
    for task in column_tasks(config).values():
        if task.kind in LABEL_KINDS and len(task.columns) > 1:
            columns += task.columns
    return columns


def _word_columns(config: TrainConfig) -> list[str]:
    """The columns of the tasks of labels that have one, of words or of 0 and 1."""
    columns: list[str] = []
    for task in column_tasks(config).values():
        if task.kind in LABEL_KINDS and len(task.columns) == 1:
            columns += task.columns
    return columns


def _without_test_part(frame: pd.DataFrame, column: str) -> pd.DataFrame:
    """Return a DataFrame whose folds are parts such as train and val: without test, and with val held out.

    Folds that have numbers or names of their own are returned as they are.

    Args:
        frame: with a column ``fold``.
        column: what the user calls this column.

    Raises:
        DataError: if there are parts, and not both train and val, or other folds beside them.
    """
    names = [str(name).strip() for name in frame[FOLD]]
    part_names = part_names_among(set(names))
    if not part_names:
        return frame
    parts = [part_of(name) for name in names]
    counts = Counter(parts)
    if None in counts:
        own_names = set(names).difference(part_names)
        beside = f", and also {some_of(map(repr, own_names), _SHOWN)}" if own_names else ""
        raise DataError(
            f"the fold column {column!r} names parts of a data set, "
            f"{some_of(map(repr, part_names), _SHOWN)}{beside}; expected the words train, val and "
            "perhaps test alone: train on train, score on val, and leave test for evaluate. Call "
            "folds that are held out in turn otherwise, such as 0 and 1"
        )
    if not {"train", "val"} <= counts.keys():
        raise DataError(
            f"the fold column {column!r} has the parts {', '.join(sorted(map(str, counts)))}; "
            "expected train and val, and perhaps test: train on train, and score on val. Call the "
            "rows to score on val, or name folds that are held out in turn otherwise, such as 0 "
            "and 1"
        )
    is_read = np.array([part != "test" for part in parts])
    kept = frame[is_read].copy()
    kept[FOLD] = [part for part in parts if part != "test"]
    kept.attrs[HELD_OUT] = "val"
    if counts["test"]:
        kept.attrs[LEFT_OUT] = {"images of the part test": counts["test"]}
    return kept


def _frame_of_folders(config: TrainConfig, content: DataFolder | None) -> pd.DataFrame:
    """The table of class folders, of folders of images and masks, or of parts with these; or of labels of images.

    ``content`` is what the folders hold; None = they are read here.
    """
    from dinoneck.data.folders import describe, table_of_folder
    from dinoneck.data.pairs import Pairing

    data = config.data
    if data.multilabel:
        return _frame_of_labels(str(data.images), data)
    if content is None:
        content = read_folder_of(data)
    frame = table_of_folder(content, Pairing(data.mask_suffix, data.skip_unpaired))
    if content.parts and config.folds.count == 1:
        line = "%s: %s are trained on, and none is held out, as --folds is 1"
        logger.info(line, content.root, " and ".join(content.parts))
    else:
        logger.info("%s", describe(content, frame))
    return frame


def read_folder_of(data: DataConfig) -> DataFolder:
    """Tell what ``data.images`` holds, with the masks of ``data.labels`` if they are named.

    Masks in the folder of the images are those beside them, unless folders in it are called images
    and masks.

    Raises:
        DataError: as :func:`dinoneck.data.folders.read_data_folder`.
    """
    images = str(data.images)
    if data.labels is not None and data.labels != images:
        return read_images_and_masks(images, data.labels, data.subfolders)
    folder = read_data_folder(images, data.subfolders)
    if data.labels is not None and folder.kind != "masks":
        return read_images_and_masks(images, images, data.subfolders)
    return folder


def _frame_of_labels(images: str, data: DataConfig) -> pd.DataFrame:
    """The table of images and their labels, of folders or of a COCO file."""
    from dinoneck.data.image_labels import read_coco_labels, read_label_folders

    if data.label_file is None:
        return read_label_folders(images, data.label_names)
    return read_coco_labels(data.label_file, images, data.label_names)


def of_pasture(config: TrainConfig) -> TrainConfig:
    """Return the config of generated images where it names no data: masses in grams, of which two are sums."""
    if config.data.csv is not None or config.data.images is not None:
        return config
    sums = {name: CompositionConfig(sums={name: parts}) for name, parts in SUMS.items()}
    return config.changed(
        data=config.data.changed(unit="g", minimum=0.0), compositions=sums | config.compositions
    )


def column_tasks(config: TrainConfig, columns: Collection[str] = ()) -> dict[str, TaskConfig]:
    """Return the tasks that learn columns: those of the config, and a default for every other target.

    Args:
        config: the run.
        columns: of the table, all of them targets if the config names none.

    Raises:
        ConfigError: if a task has the name of a target and predicts other columns.
    """
    tasks: dict[str, TaskConfig] = {}
    for name, task in config.tasks.items():
        if task.kind not in MAP_KINDS:
            tasks[name] = task.changed(columns=task.columns or (name,))
    labels = _label_columns(config, columns)
    if labels:
        name = labels[0] if len(labels) == 1 else LABELS_TASK
        if name in tasks:
            raise ConfigError(
                f"data.multilabel is {', '.join(labels)}, which makes the task {name!r}, and tasks "
                "has it too; leave one of them out (--multilabel), or rename the task"
            )
        tasks[name] = TaskConfig(kind="multilabel", columns=labels)

    # every other target has a task of its own
    predicted: set[str] = set()  # columns that have a task or are a sum
    for task in tasks.values():
        predicted.update(task.columns)
    for composition in config.compositions.values():
        predicted.update(composition.sums)
    stated_tasks = list(tasks)
    auxiliary = config.data.aux_targets
    for column in (*_targets(config, columns), *auxiliary):
        if column in stated_tasks and column not in predicted:
            raise ConfigError(
                f"task {column!r} predicts other columns than the target {column!r}; rename one "
                "of them"
            )
        if column not in predicted:
            tasks[column] = TaskConfig(columns=(column,), auxiliary=column in auxiliary)
    return tasks


def _label_columns(config: TrainConfig, columns: Collection[str]) -> tuple[str, ...]:
    """The columns of the labels that ``data.multilabel`` names; of a COCO file alone all its categories."""
    if config.data.label_file is not None and not config.data.label_names:
        return tuple(columns)
    return config.data.label_names


def target_columns(
    config: TrainConfig, columns: Collection[str] = ()
) -> tuple[list[str], list[str]]:
    """Return the columns that are scored as targets, and those that only help training.

    Args:
        config: the run.
        columns: as of :func:`column_tasks`; without them, those that the config names are returned.
    """
    is_auxiliary: dict[str, bool] = {}
    for task in column_tasks(config, columns).values():
        for column in task.columns:
            is_auxiliary[column] = task.auxiliary
    targets = []
    auxiliary = []
    for column in dict.fromkeys((*_targets(config, columns), *is_auxiliary)):
        if is_auxiliary.get(column):
            auxiliary.append(column)
        else:
            targets.append(column)
    return targets, auxiliary


def _targets(config: TrainConfig, columns: Collection[str]) -> Sequence[str]:
    """The columns that the config names as targets; without any, all that it does not name as auxiliary."""
    if config.data.targets or config.data.multilabel:
        return config.data.targets
    return [name for name in columns if name not in config.data.aux_targets]
