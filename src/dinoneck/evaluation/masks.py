"""Scores of classes of pixels, and of what else a table with masks knows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from dinoneck.data.class_counts import warn_of_empty_classes
from dinoneck.data.class_lists import warn_of_class_lists
from dinoneck.data.label_sets import mask_classes, survey_masks
from dinoneck.data.labels import DenseLabels
from dinoneck.data.preprocessing import Preprocessing
from dinoneck.data.table import Table
from dinoneck.errors import DataError
from dinoneck.evaluation.mask_options import MaskOptions, complete_from_training, mask_records_of
from dinoneck.evaluation.predicted_tasks import PredictedTasks
from dinoneck.evaluation.report import predict_and_score
from dinoneck.evaluation.truth import nothing_to_score
from dinoneck.evaluation.values import class_labels, value_targets
from dinoneck.inference.loaded_head import MaskRecord
from dinoneck.inference.predictor import Predictor
from dinoneck.tasks import Task
from dinoneck.text import some_of
from dinoneck.training.masks import masks_of, reader_of_classes
from dinoneck.training.scored import PixelTarget


def evaluate_masks(
    predictors: Mapping[str, Predictor],
    table: Table,
    predicted: PredictedTasks,
    *,
    options: MaskOptions,
    truth_columns: Sequence[str],
) -> dict[str, Any]:
    """Score models on the masks of a table, and on its numbers and classes.

    Args:
        predictors: name -> model; the first is compared with the others.
        table: the truth, with masks.
        predicted: what all models predict.
        options: how the masks are read; what they leave open is as in the trainings of the models.
        truth_columns: all columns of the truth, for the error if none of them is predicted.

    Raises:
        ConfigError: if no masks are scored and an option of masks is given, or the trainings of the
            models read masks otherwise.
        DataError: if the truth has nothing that is predicted, or masks or values that cannot be
            scored.
    """
    options.check_used(predicted)
    records = mask_records_of(predictors)
    mask_reader = MaskReader.open(
        table,
        predicted.segmentations,
        options=options,
        records=records,
    )
    targets_of_models = value_targets(predictors, table, predicted)
    for name, predictor in predictors.items():
        targets_of_models[name] |= _mask_targets(predictor, mask_reader, num_rows=len(table))
    if not any(targets_of_models.values()):
        _check_no_number_maps(predicted)
        raise nothing_to_score(predicted.names, truth_columns)
    return predict_and_score(predictors, table, targets_of_models)


@dataclass(frozen=True)
class MaskReader:
    """Reads the classes of the pixels of each image from its mask.

    Attributes:
        mask_of_row: row -> its mask, a file or an array; only rows with a mask.
        image_size_of_row: row -> (height, width) of its image; the same rows.
        labels_of_task: segmentation task -> how its classes are read; empty if no row has a mask.
    """

    mask_of_row: Mapping[int, Any]
    image_size_of_row: Mapping[int, tuple[int, int]]
    labels_of_task: Mapping[str, DenseLabels]

    @classmethod
    def open(
        cls,
        table: Table,
        tasks: Sequence[Task],
        *,
        options: MaskOptions,
        records: Sequence[MaskRecord],
    ) -> MaskReader:
        """Survey the masks of a table; a class that they do not show is warned of.

        Args:
            table: the truth, with masks.
            tasks: the segmentations that are predicted.
            options: of the call.
            records: how the trainings of the models read masks.

        Raises:
            ConfigError: if trainings differ, or the options contradict one.
            DataError: if an image or a mask cannot be read, or holds other values than the classes.
        """
        masks = masks_of(table)
        labels_of_task = {}
        if tasks and masks.files:
            record = complete_from_training(options.record, records)
            survey = survey_masks(masks.files, record.nodata, masks.image_sizes)
            for task in tasks:
                classes = mask_classes(survey, class_labels(task), record.class_values)
                warn_of_class_lists(masks.files, classes.names, classes.stored)
                warn_of_empty_classes(
                    classes.pixels,
                    "pixel",
                    "the masks",
                    remedy="Its IoU is unknown, or 0 where the class is predicted",
                )
                labels_of_task[task.name] = reader_of_classes(classes, record.nodata)
        return cls(
            mask_of_row=dict(zip(masks.rows, masks.files, strict=True)),
            image_size_of_row=dict(zip(masks.rows, masks.image_sizes, strict=True)),
            labels_of_task=labels_of_task,
        )

    def read(self, row: int, *, task: str, preprocess: Preprocessing) -> Tensor:
        """Return the true classes (1, height, width) of the pixels of a prepared image, -1 = unlabelled.

        Without a mask it is one pixel that is unlabelled.
        """
        if row not in self.mask_of_row:
            return torch.full((1, 1, 1), -1)
        labels = self.labels_of_task[task]
        return labels.indices([self.mask_of_row[row]], preprocess, [self.image_size_of_row[row]])


def _mask_targets(
    predictor: Predictor, mask_reader: MaskReader, *, num_rows: int
) -> dict[str, PixelTarget]:
    """The targets of a model whose truth is the masks."""
    targets = {}
    for task in predictor.tasks:
        if task.kind == "segmentation":
            targets[task.name] = PixelTarget(
                task.name,
                num_rows=num_rows,
                num_classes=task.dim,
                labels=class_labels(task),
                pixels=partial(
                    mask_reader.read,
                    task=task.name,
                    preprocess=predictor.preprocess,
                ),
            )
    return targets


def _check_no_number_maps(predicted: PredictedTasks) -> None:
    if predicted.number_map_names:
        raise DataError(
            f"the heads predict maps of numbers, {some_of(predicted.number_map_names, 5)}, which are "
            "not scored against masks; expected a table with a column of numbers for each image, "
            "or heads of classes"
        )
