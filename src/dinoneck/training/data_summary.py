"""What a run of heads of images reads, as it is shown before the training."""

from __future__ import annotations

from typing import Any

from dinoneck.data.folders import DataFolder
from dinoneck.data.mask_facts import MaskFacts, class_masks, normal_masks, number_masks
from dinoneck.data.masks import mask_classes, survey_masks
from dinoneck.data.summary import DataSummary, summarise_table
from dinoneck.data.table import Table
from dinoneck.images.preprocessing import Preprocessing
from dinoneck.kinds import LABEL_KINDS
from dinoneck.training.config import DataConfig, TrainConfig
from dinoneck.training.masks import class_options, map_task, masks_of, number_reader
from dinoneck.training.problem import Problem, read_problem
from dinoneck.training.table import column_tasks, of_pasture, table_of


def read_data(
    config: TrainConfig, *, table: Any = None, data_folder: DataFolder | None = None
) -> DataSummary:
    """Read the data of a run, and nothing else: no backbone is loaded.

    What a run refuses of its table is refused here too, and masks with other values than its
    classes.

    Args:
        config: the run.
        table: a pandas DataFrame in the place of ``data.csv``.
        data_folder: as of :func:`dinoneck.training.run.prepare`.

    Raises:
        DinoneckError: as :func:`dinoneck.train`.
    """
    images = table_of(config, table, data_folder)
    if table is None:
        config = of_pasture(config)
    if map_task(config, images) is None:
        # without masks nothing depends on how images are prepared
        problem = read_problem(config, images, Preprocessing(patch_size=1))
        return summary_of_run(config, images, problem)
    return _summary(config, images, _read_masks(config.data, images))


def summary_of_run(config: TrainConfig, table: Table, problem: Problem) -> DataSummary:
    """Return what a run read.

    Args:
        config: the run.
        table: its images.
        problem: what its heads learn, with the values of masks of classes, which are not read again.
    """
    if map_task(config, table) is None:
        return _summary(config, table, None)
    maps = problem.maps
    if maps is not None and maps.classes is not None and maps.survey is not None:
        masks = class_masks(table, maps.survey, maps.classes, maps.read_stored)
        return _summary(config, table, masks)
    if maps is not None and maps.numbers is not None:
        masks = number_masks(table, number_reader(config.data), maps.numbers)
        return _summary(config, table, masks)
    return _summary(config, table, _read_masks(config.data, table))


def _summary(config: TrainConfig, table: Table, masks: MaskFacts | None) -> DataSummary:
    label_columns = {}
    for name, task in column_tasks(config, table.columns).items():
        if task.kind in LABEL_KINDS and len(task.columns) > 1:
            label_columns[name] = task.columns
    return summarise_table(table, label_columns=label_columns, masks=masks, bits=config.data.bits)


def _read_masks(data: DataConfig, table: Table) -> MaskFacts:
    if data.label_kind == "normals":
        return normal_masks(table)
    if data.label_kind == "numbers":
        return number_masks(table, number_reader(data))
    masks = masks_of(table)
    options = class_options(data)
    survey = survey_masks(masks.files, options, masks.image_sizes)
    return class_masks(table, survey, mask_classes(survey, options))
