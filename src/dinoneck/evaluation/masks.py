"""Scores of classes of pixels, of surface normals, and of what else a table with masks knows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dinoneck.data.labels import ClassLabels, class_cells, prepared_classes
from dinoneck.data.mask_facts import MaskFacts, class_masks
from dinoneck.data.masks import (
    ClassCoding,
    ClassOptions,
    MaskSurvey,
    mask_classes,
    survey_masks,
)
from dinoneck.data.table import Table
from dinoneck.detection.evaluation import HeadModel
from dinoneck.errors import ConfigError, DataError
from dinoneck.evaluation.mask_options import MaskOptions, complete_from_training, mask_records_of
from dinoneck.evaluation.models import preprocessing_for
from dinoneck.evaluation.predicted_tasks import PredictedTasks, is_share_map
from dinoneck.evaluation.report import CellTarget, predict_and_score
from dinoneck.evaluation.truth_columns import nothing_to_score
from dinoneck.evaluation.values import class_labels, summary_of_truth, value_targets
from dinoneck.images.preprocessing import Preprocessing
from dinoneck.inference.loaded_head import MaskRecord
from dinoneck.metrics import Array
from dinoneck.task_facts import TaskFacts
from dinoneck.text import some_of
from dinoneck.training.masks import KeptMaps, masks_of, read_normals_of_row
from dinoneck.training.scored import PixelTarget, ScoredTarget, VectorTarget, cell_targets


def evaluate_masks(
    predictors: Mapping[str, HeadModel],
    table: Table,
    predicted: PredictedTasks,
    *,
    options: MaskOptions,
    truth_columns: Sequence[str],
    target_weights: Mapping[str, float],
) -> dict[str, Any]:
    """Score models on the masks of a table, and on its numbers and classes.

    Args:
        predictors: name -> model; the first is compared with the others.
        table: the truth, with masks.
        predicted: what all models predict.
        options: how the masks are read; what they leave open is as in the trainings of the models.
        truth_columns: all columns of the truth, for the error if none of them is predicted.
        target_weights: as of :func:`dinoneck.evaluation.report.predict_and_score`.

    Raises:
        ConfigError: if no masks are scored and an option of masks is given, the trainings of the
            models read masks otherwise, or both classes of pixels and surface normals are predicted.
        DataError: if the truth has nothing that is predicted, or masks or values that cannot be
            scored.
    """
    options.check_used(predicted)
    _check_one_kind_of_files(predicted)
    _check_same_shares(predictors)
    records = mask_records_of(predictors)
    mask_reader = MaskReader.open(
        table,
        [*predicted.segmentations, *predicted.share_maps],
        options=options,
        records=records,
    )
    targets_of_models = value_targets(predictors, table, predicted)
    for name, predictor in predictors.items():
        targets_of_models[name] |= _share_targets(predictor, mask_reader, table.images)
        targets_of_models[name] |= _mask_targets(predictor, mask_reader, table.images)
        targets_of_models[name] |= _normal_targets(predictor, mask_reader, table.images)
    if not any(targets_of_models.values()):
        _check_no_number_maps(predicted)
        raise nothing_to_score(predicted.names, truth_columns)
    reasons_not_compared = _leave_out_other_cells(targets_of_models)
    report = predict_and_score(
        predictors,
        table,
        targets_of_models,
        target_weights=target_weights,
        reasons_not_compared=reasons_not_compared,
    )
    data = summary_of_truth(table, predicted, mask_reader.facts)
    return {"data": data.to_dict(), **report}


@dataclass(frozen=True)
class MaskReader:
    """Reads the classes of the pixels of each image from its mask.

    A mask is decoded when all are surveyed, and once more for all models: its classes are kept, see
    :class:`dinoneck.training.masks.KeptMaps`.

    Attributes:
        mask_of_row: row -> its mask, a file or an array; only rows with a mask.
        image_size_of_row: row -> (height, width) of its image; the same rows.
        classes_of_task: task of classes -> how pixels become classes; empty if no row has a mask.
        facts: what the masks hold, as classes of the first task; None without masks of classes.
    """

    mask_of_row: Mapping[int, Any]
    image_size_of_row: Mapping[int, tuple[int, int]]
    classes_of_task: Mapping[str, ClassCoding]
    facts: MaskFacts | None = None

    @classmethod
    def open(
        cls,
        table: Table,
        tasks: Sequence[TaskFacts],
        *,
        options: MaskOptions,
        records: Sequence[MaskRecord],
    ) -> MaskReader:
        """Survey the masks of a table.

        Args:
            table: the truth, with masks.
            tasks: the segmentations and maps of shares that are predicted.
            options: of the call.
            records: how the trainings of the models read masks.

        Raises:
            ConfigError: if trainings differ, or the options contradict one.
            DataError: if an image or a mask cannot be read, or holds other values than the classes.
        """
        masks = masks_of(table)
        classes_of_task = {}
        facts = None
        surveys: dict[ClassOptions, MaskSurvey] = {}
        if masks.files:
            for task in tasks:
                labels = class_labels(task)
                record = complete_from_training(options.record(labels), records)
                unnamed = ClassOptions(
                    values=record.class_values, colours=record.class_colors, nodata=record.nodata
                )
                if unnamed not in surveys:
                    surveys[unnamed] = survey_masks(masks.files, unnamed, masks.image_sizes)
                named = replace(unnamed, names=labels)
                classes = mask_classes(surveys[unnamed], named)
                classes_of_task[task.name] = classes.coding
                facts = facts or class_masks(table, surveys[unnamed], classes)
        return cls(
            mask_of_row=dict(zip(masks.rows, masks.files, strict=True)),
            image_size_of_row=dict(zip(masks.rows, masks.image_sizes, strict=True)),
            classes_of_task=classes_of_task,
            facts=facts,
        )

    def read(self, row: int, *, task: str, preprocess: Preprocessing) -> Tensor:
        """Return the true classes (1, height, width) of the pixels of a prepared image, -1 = unlabelled.

        Without a mask it is one pixel that is unlabelled.
        """
        if row not in self.mask_of_row:
            return torch.full((1, 1, 1), -1)
        index = self._kept((row, self.classes_of_task[task]))
        return prepared_classes(index, preprocess)[None]

    def read_shares(self, row: int, *, task: str, preprocess: Preprocessing) -> Array | None:
        """Return the true shares of the classes per patch (K, rows, cols), NaN = unlabelled; None without a mask."""
        if row not in self.mask_of_row:
            return None
        classes = self.classes_of_task[task]
        shares, counts = class_cells(self._kept((row, classes)), classes.count, preprocess)
        truth: Array = shares.masked_fill(counts == 0, torch.nan).numpy()
        return truth

    @cached_property
    def _kept(self) -> KeptMaps[tuple[int, ClassCoding]]:
        return KeptMaps(self._read_stored)

    def _read_stored(self, key: tuple[int, ClassCoding]) -> Tensor:
        """The classes (H, W) of the pixels of a mask at its own size, -1 = unlabelled."""
        row, classes = key
        reader = ClassLabels(classes)
        return torch.from_numpy(reader.stored_indices(self.mask_of_row[row]))


def _mask_targets(
    predictor: HeadModel, mask_reader: MaskReader, images: Sequence[Any]
) -> dict[str, PixelTarget]:
    """The classes of pixels that a model predicts, of a map of shares the most probable one."""
    targets = {}
    for task in predictor.tasks:
        if task.kind == "segmentation" or is_share_map(task):
            targets[task.name] = PixelTarget(
                task.name,
                num_rows=len(images),
                num_classes=task.dim,
                labels=class_labels(task),
                read_pixels=partial(
                    _read_pixels,
                    predictor=predictor,
                    mask_reader=mask_reader,
                    task=task.name,
                    images=images,
                ),
            )
    return targets


def _read_pixels(
    row: int, *, predictor: HeadModel, mask_reader: MaskReader, task: str, images: Sequence[Any]
) -> Tensor:
    """The true classes of :meth:`MaskReader.read` of a row's image, prepared as this model does it."""
    preprocess = preprocessing_for(predictor, images[row])
    return mask_reader.read(row, task=task, preprocess=preprocess)


def _normal_targets(
    predictor: HeadModel, mask_reader: MaskReader, images: Sequence[Any]
) -> dict[str, VectorTarget]:
    """The surface normals of pixels that a model predicts."""
    targets = {}
    for task in predictor.tasks:
        if task.is_unit:
            targets[task.name] = VectorTarget(
                task.name,
                num_rows=len(images),
                read_pixels=partial(
                    _read_normals, predictor=predictor, mask_reader=mask_reader, images=images
                ),
            )
    return targets


def _read_normals(
    row: int, *, predictor: HeadModel, mask_reader: MaskReader, images: Sequence[Any]
) -> Tensor:
    """The true normals of a row's image, prepared as this model does it."""
    return read_normals_of_row(
        row,
        file_of_row=mask_reader.mask_of_row,
        preprocess=preprocessing_for(predictor, images[row]),
        size_of_row=mask_reader.image_size_of_row,
    )


def _share_targets(
    predictor: HeadModel, mask_reader: MaskReader, images: Sequence[Any]
) -> dict[str, CellTarget]:
    """The shares per patch that a model predicts, by their names in the report of a training."""
    targets = {}
    for task in predictor.tasks:
        if not is_share_map(task):
            continue
        shares = []
        for row, image in enumerate(images):
            preprocess = preprocessing_for(predictor, image)
            shares.append(mask_reader.read_shares(row, task=task.name, preprocess=preprocess))
        grids = [None if cells is None else cells.shape[-2:] for cells in shares]
        for name, target in cell_targets(task, _padded(shares, task.dim)).items():
            targets[name] = CellTarget(
                target.output, columns=target.columns, truth=target.truth, grids=grids
            )
    return targets


def _padded(shares: Sequence[Array | None], num_classes: int) -> Array:
    """Shares of all rows as one array (n, K, rows, cols), NaN beyond the patches of an image."""
    shapes = [cells.shape[-2:] for cells in shares if cells is not None]
    rows = max((shape[0] for shape in shapes), default=1)
    cols = max((shape[1] for shape in shapes), default=1)
    padded = np.full((len(shares), num_classes, rows, cols), np.nan, np.float32)
    for row, cells in enumerate(shares):
        if cells is not None:
            padded[row, :, : cells.shape[1], : cells.shape[2]] = cells
    return padded


def _leave_out_other_cells(
    targets_of_models: dict[str, dict[str, ScoredTarget]],
) -> dict[str, str]:
    """Leave out the shares per patch of models whose patches show other pixels than those of the first model.

    Returns:
        Target -> why it is not compared.
    """
    first_of_target: dict[str, CellTarget] = {}
    model_of_target: dict[str, str] = {}
    reasons = {}
    for model, targets in targets_of_models.items():
        for name, target in list(targets.items()):
            if not isinstance(target, CellTarget):
                continue
            first = first_of_target.setdefault(name, target)
            first_model = model_of_target.setdefault(name, model)
            if not np.array_equal(first.truth, target.truth, equal_nan=True):
                del targets[name]
                reasons[name] = (
                    f"{name}: the patches of {model} show other pixels than those of "
                    f"{first_model}, so it is not compared"
                )
    return reasons


def _check_same_shares(predictors: Mapping[str, HeadModel]) -> None:
    """Raise a DataError if two models predict shares of other classes by one name: masks hold their numbers."""
    first_labels: dict[str, tuple[str, tuple[str, ...]]] = {}
    for model, predictor in predictors.items():
        for task in predictor.tasks:
            if not is_share_map(task):
                continue
            labels = class_labels(task)
            first_model, first = first_labels.setdefault(task.name, (model, labels))
            if labels != first:
                raise DataError(
                    f"{first_model} predicts the shares of {first} in {task.name}, and {model} of "
                    f"{labels}; evaluate them apart"
                )


def _check_one_kind_of_files(predicted: PredictedTasks) -> None:
    """Raise a ConfigError for classes of pixels next to surface normals: an image has one file of the truth."""
    of_classes = [task.name for task in (*predicted.segmentations, *predicted.share_maps)]
    if of_classes and predicted.normals:
        raise ConfigError(
            f"the heads predict classes of pixels, {some_of(of_classes, 5)}, and surface normals, "
            f"{predicted.normals[0].name}, and the file of an image in the truth holds one of both; "
            "evaluate heads of either apart, each with its own files"
        )


def _check_no_number_maps(predicted: PredictedTasks) -> None:
    if predicted.number_map_names:
        raise DataError(
            f"the heads predict maps of numbers, {some_of(predicted.number_map_names, 5)}, which are "
            "not scored against masks; expected a table with a column of numbers for each image, "
            "or heads of classes"
        )
