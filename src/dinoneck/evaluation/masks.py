"""Scores of classes of pixels, and of what else a table with masks knows."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from dinoneck.errors import DataError
from dinoneck.evaluation.comparable import check_same_wholes
from dinoneck.evaluation.mask_options import MaskOptions
from dinoneck.evaluation.mask_reading import MaskReader, open_masks
from dinoneck.evaluation.mask_records import mask_records_of
from dinoneck.evaluation.predicted import Predicted
from dinoneck.evaluation.scores import score_predictions
from dinoneck.evaluation.targets import class_labels, value_targets
from dinoneck.evaluation.truth import nothing_to_score
from dinoneck.inference.predictor import Predictor
from dinoneck.text import some_of
from dinoneck.training.scored import PixelTarget


def evaluate_masks(
    predictors: Mapping[str, Predictor],
    table: Any,
    predicted: Predicted,
    *,
    options: MaskOptions,
) -> dict[str, Any]:
    """Score models on the masks of a table, and on its numbers and classes.

    Args:
        predictors: name -> model; the first is compared with the others.
        table: of :func:`dinoneck.evaluation.truth.truth_table`, with masks.
        predicted: what all models predict.
        options: how the masks are read; what they leave open is as in the trainings of the models.

    Raises:
        ConfigError: if no masks are scored and an option of masks is given, or the trainings of the
            models read masks otherwise.
        DataError: if the truth has nothing that is predicted, or masks or values that cannot be
            scored.
    """
    options.check_used(predicted)
    mask_reader = open_masks(table, predicted.segmentations, options, mask_records_of(predictors))
    targets_of_models = value_targets(predictors, table, predicted)
    check_same_wholes(predictors, targets_of_models)
    for name, predictor in predictors.items():
        targets_of_models[name] |= _mask_targets(predictor, mask_reader)
    if not any(targets_of_models.values()):
        _check_no_number_maps(predicted)
        raise nothing_to_score([*predicted.tasks], list(table.columns))
    return score_predictions(predictors, table, targets_of_models)


def _mask_targets(predictor: Predictor, mask_reader: MaskReader) -> dict[str, PixelTarget]:
    """The targets of a model whose truth is the masks."""
    targets = {}
    for task in predictor.tasks:
        if task.kind == "segmentation":
            targets[task.name] = PixelTarget(
                task.name,
                num_rows=len(mask_reader.masks),
                num_classes=task.dim,
                labels=class_labels(task),
                pixels=partial(
                    mask_reader.read,
                    task=task.name,
                    preprocess=predictor.preprocess,
                ),
            )
    return targets


def _check_no_number_maps(predicted: Predicted) -> None:
    if predicted.number_maps:
        raise DataError(
            f"the heads predict maps of numbers, {some_of(predicted.number_maps, 5)}, which are "
            "not scored against masks; expected a table with a column of numbers for each image, "
            "or heads of classes"
        )
