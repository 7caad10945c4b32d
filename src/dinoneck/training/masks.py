"""Step 2 of a run: the masks of its images, and their labels per patch."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dinoneck.data.labels import DenseLabels
from dinoneck.data.masks import MaskClasses, MaskSurvey, mask_classes, survey_masks
from dinoneck.data.normals import NormalLabels
from dinoneck.data.table import Table
from dinoneck.errors import ConfigError, DataError
from dinoneck.images.decoding import read_image_size
from dinoneck.images.preprocessing import Preprocessing
from dinoneck.kinds import MAP_KINDS
from dinoneck.tasks import TABLE_COLUMNS
from dinoneck.training.config import DataConfig, TrainConfig
from dinoneck.training.table import column_tasks, target_columns

_KINDS_OF_VALUES = ("numbers", "normals")
"""Kinds of labels whose pixels hold values, no classes: their task is ``dense``."""
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class MapTask:
    """The task of a config's masks.

    Attributes:
        name: of the task; without a task in the config, numbers have that of their column or folder.
        kind: ``dense`` or ``segmentation``.
    """

    name: str
    kind: str


def map_kind(config: TrainConfig, columns: Collection[str] = ()) -> str | None:
    """Return the kind of the task of a config's masks, ``dense`` or ``segmentation``; None without masks.

    Args:
        config: the run.
        columns: of the table; without them the targets are those that the config names.
    """
    stated = _stated_map_tasks(config)
    if stated:
        return stated[0].kind
    if config.data.labels is None:
        return None
    return _default_map_kind(config, columns)


def _default_map_kind(config: TrainConfig, columns: Collection[str]) -> str:
    """The kind of the task of masks of which the config states nothing."""
    if config.data.label_kind in _KINDS_OF_VALUES:
        return "dense"
    # beside numbers of the images, the classes are learned as shares of the patches
    targets, _ = target_columns(config, columns)
    return "dense" if targets else "segmentation"


def map_task(config: TrainConfig, table: Table) -> MapTask | None:
    """Return the task of a config's masks; None without masks.

    Raises:
        ConfigError: if the config has several such tasks, a segmentation of numbers, or a task of
            masks without masks.
    """
    stated = _stated_map_tasks(config)
    if not stated and config.data.labels is None:
        return None
    if not stated:
        return _default_map_task(config, table)
    names = ", ".join(task.name for task in stated)
    if len(stated) > 1:
        raise ConfigError(
            f"tasks {names} are all per patch, and there is one column of masks; keep one of them"
        )
    if config.data.labels is None:
        raise ConfigError(
            f"task {names} is per patch, and no masks are named; name them with data.labels "
            "(--labels)"
        )
    [task] = stated
    if config.data.label_kind in _KINDS_OF_VALUES and task.kind == "segmentation":
        raise ConfigError(
            f"task {task.name} is a segmentation, and data.label_kind is "
            f"{config.data.label_kind!r}; write 'classes'"
        )
    return task


def _stated_map_tasks(config: TrainConfig) -> list[MapTask]:
    """The tasks of masks that the config describes."""
    stated = []
    for name, task in config.tasks.items():
        if task.kind in MAP_KINDS:
            stated.append(MapTask(name, kind=str(task.kind)))
    return stated


def _default_map_task(config: TrainConfig, table: Table) -> MapTask:
    """The task of masks of which the config states nothing."""
    kind = _default_map_kind(config, table.columns)
    if config.data.label_kind in _KINDS_OF_VALUES:
        folder = Path(str(config.data.labels))
        name = folder.name if folder.is_dir() else str(config.data.labels)
    elif kind == "dense":
        name = "cells"
    else:
        name = "segmentation"
    return MapTask(_free_name(name, config, table), kind)


def _free_name(name: str, config: TrainConfig, table: Table) -> str:
    """A name for the task of masks; ``name map`` where a column's task or a table's column is called so."""
    taken = {*column_tasks(config, table.columns), *TABLE_COLUMNS}
    while name in taken:
        name += " map"
    return name


@dataclass(frozen=True)
class TableMasks:
    """The masks of a table, of the images that have one.

    Attributes:
        rows: the row of each mask.
        files: each mask, a file or an array.
        image_sizes: (height, width) of the image of each mask.
    """

    rows: list[int]
    files: list[Any]
    image_sizes: list[tuple[int, int]]


def masks_of(table: Table) -> TableMasks:
    """Return the masks of a table; none without a column of them.

    Raises:
        DataError: if an image with a mask cannot be read.
    """
    masks = TableMasks(rows=[], files=[], image_sizes=[])
    if table.masks is None:
        return masks
    for row, (image, file) in enumerate(zip(table.images, table.masks, strict=True)):
        if file is not None:
            masks.rows.append(row)
            masks.files.append(file)
            masks.image_sizes.append(read_image_size(image))
    return masks


def reader_of_classes(classes: MaskClasses, nodata: Sequence[float]) -> DenseLabels:
    """Return what reads masks as these classes.

    Args:
        classes: those of the masks.
        nodata: values in masks without a label.
    """
    return DenseLabels(classes=len(classes.names), nodata=nodata, class_values=classes.stored)


@dataclass(frozen=True)
class Maps:
    """The masks of a table, averaged over the patches of their images; n images, K classes or 1, of normals 3.

    Attributes:
        names: of the classes; none for numbers.
        values: (n, K, rows, cols) float32 in original units, of classes their shares of the patch;
            NaN where unknown.
        weight: (n, rows, cols) float32, how many labelled pixels a patch has.
        classes: of masks of classes: which values they are; None of others.
        survey: of masks of classes: the values of each; None of others.
        read_pixels: returns the classes (1, height, width) of a row's prepared image, -1 = none;
            without a mask (1, 1, 1). Of surface normals it returns these (3, height, width), NaN =
            none; without a mask (3, 1, 1).
    """

    names: tuple[str, ...]
    values: Tensor
    weight: Tensor
    read_pixels: Callable[[int], Tensor]
    classes: MaskClasses | None = None
    survey: MaskSurvey | None = None


def read_maps(data: DataConfig, table: Table, preprocess: Preprocessing) -> Maps:
    """Read the masks of a table and average them over the patches.

    Args:
        data: how the masks are read.
        table: of :func:`dinoneck.training.table.table_of`.
        preprocess: what prepares the images.

    Raises:
        DataError: if a mask cannot be used, has another size than its image, or comes to another
            grid than others; if the masks show fewer than two classes, or it is open what their
            values mean.
    """
    masks = masks_of(table)
    if data.label_kind == "normals":
        return _read_normals(table, masks, preprocess)
    names = data.classes
    survey = None
    classes = None
    if data.label_kind == "numbers":
        reader = DenseLabels(scale=data.scale, offset=data.offset, nodata=data.nodata)
    else:
        survey = survey_masks(masks.files, data.nodata, masks.image_sizes)
        classes = mask_classes(survey, data.classes, data.class_values)
        _check_shown(classes)
        names = classes.names
        reader = reader_of_classes(classes, data.nodata)
        logger.info("masks: %s", classes.pixels)
    mean, counts = reader.cells(masks.files, preprocess, masks.image_sizes)
    values, weight = _of_all_rows(table, masks, mean, counts)
    file_of_row = dict(zip(masks.rows, masks.files, strict=True))

    def read_pixels(row: int) -> Tensor:
        if row not in file_of_row:
            return torch.full((1, 1, 1), -1)
        return reader.indices([file_of_row[row]], preprocess)

    return Maps(
        names, values, weight=weight, read_pixels=read_pixels, classes=classes, survey=survey
    )


def _read_normals(table: Table, masks: TableMasks, preprocess: Preprocessing) -> Maps:
    """Read the surface normals of a table and average them over the patches."""
    reader = NormalLabels()
    mean, counts = reader.cells(masks.files, preprocess, masks.image_sizes)
    values, weight = _of_all_rows(table, masks, mean, counts)
    read_pixels = partial(
        read_normals_of_row,
        file_of_row=dict(zip(masks.rows, masks.files, strict=True)),
        preprocess=preprocess,
        size_of_row=dict(zip(masks.rows, masks.image_sizes, strict=True)),
    )
    return Maps((), values, weight=weight, read_pixels=read_pixels)


def read_normals_of_row(
    row: int,
    *,
    file_of_row: Mapping[int, Any],
    preprocess: Preprocessing,
    size_of_row: Mapping[int, Sequence[int]],
) -> Tensor:
    """Return the surface normals (3, height, width) of a row's prepared image, NaN = unknown.

    Without a file it is one pixel that is unknown.

    Args:
        row: of the table.
        file_of_row: row -> its file; only rows with one.
        preprocess: how the image is prepared.
        size_of_row: row -> (height, width) of its image; the same rows.
    """
    if row not in file_of_row:
        return torch.full((3, 1, 1), torch.nan)
    return NormalLabels().pixels(file_of_row[row], preprocess, size_of_row[row])


def _of_all_rows(
    table: Table, masks: TableMasks, mean: Tensor, counts: Tensor
) -> tuple[Tensor, Tensor]:
    """The means and counts of the masks as values and weights of all rows, NaN and 0 where there is no mask."""
    values = torch.full((len(table), *mean.shape[1:]), torch.nan)
    values[masks.rows] = mean.masked_fill(counts[:, None] == 0, torch.nan)
    weight = torch.zeros((len(table), *counts.shape[1:]))
    weight[masks.rows] = counts
    return values, weight


def _check_shown(classes: MaskClasses) -> None:
    """Check that masks show two classes or more."""
    shown = [name for name, pixels in classes.pixels.items() if pixels]
    if len(shown) < 2:
        raise DataError(
            f"the masks hold the class {shown[0]!r} alone; expected two classes or more"
        )
