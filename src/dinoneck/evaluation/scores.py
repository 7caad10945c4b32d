"""Predictions of the images of a table, and the report of their scores."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from dinoneck.data.cells import IMAGES
from dinoneck.data.preprocessing import Preprocessing
from dinoneck.evaluation.mask_reading import MaskReader
from dinoneck.evaluation.models import cost_of, count_trained_on
from dinoneck.inference.predictor import Predictor
from dinoneck.inference.results import predict_many
from dinoneck.metrics import Array, map_confusion
from dinoneck.tasks import columns_of
from dinoneck.training.report import summary
from dinoneck.training.tasks import Scored
from dinoneck.version import versions

_BATCHES_AT_ONCE = 4


def score_predictions(
    predictors: Mapping[str, Predictor],
    table: Any,
    targets_of_models: Mapping[str, Mapping[str, Scored]],
    mask_reader: MaskReader | None = None,
) -> dict[str, Any]:
    """Predict the images of a table, and return the report of the scores.

    Args:
        predictors: name -> model.
        table: the truth.
        targets_of_models: name -> the targets of the model, one or more in all.
        mask_reader: reads the truth of targets that are masks; None = there are none.
    """
    images = list(table[IMAGES])
    scored = _first_of_each(targets_of_models.values())
    predictions = {}
    cost = {}
    for name, predictor in predictors.items():
        begin = time.perf_counter()
        predictions[name] = _predict_targets(
            predictor,
            images,
            targets_of_models[name],
            scored=scored,
            mask_reader=mask_reader,
        )
        seconds = time.perf_counter() - begin
        cost[name] = cost_of(predictor, seconds / len(images))
    all_rows = range(len(images))
    units = _shared_units(predictors.values(), scored)
    report = summary(table, scored, predictions, [all_rows], units)
    lines = [report["verdict"], *_lines_of_unshared_targets(predictions)]
    report["verdict"] = "\n".join(lines)
    report["cost"] = cost
    report["versions"] = versions()
    return report | count_trained_on(predictors, images)


def _first_of_each(targets_of_models: Iterable[Mapping[str, Scored]]) -> dict[str, Scored]:
    """Target -> that of the first model that predicts it: classes are numbered as by its head."""
    first: dict[str, Scored] = {}
    for targets in targets_of_models:
        for name, target in targets.items():
            first.setdefault(name, target)
    return first


def _predict_targets(
    predictor: Predictor,
    images: Sequence[Any],
    targets: Mapping[str, Scored],
    *,
    scored: Mapping[str, Scored],
    mask_reader: MaskReader | None,
) -> dict[str, Array]:
    """Target -> the predictions of all images by one model.

    Args:
        predictor: the model.
        images: of all rows.
        targets: those that the model predicts.
        scored: those of all models, which number the classes.
        mask_reader: of targets that are masks.
    """
    has_masks = any(target.kind == "mask" for target in targets.values())
    predict = partial(predictor, maps="patch" if has_masks else None)
    at_once = _BATCHES_AT_ONCE * predictor.batch_size
    row_of_image = predict_many(predict, images, at_once=at_once)
    rows = list(row_of_image.values())
    predictions: dict[str, Array] = {}
    for name, target in targets.items():
        if target.kind == "value":
            predictions[name] = _numbers(target, rows)
        elif target.kind == "class":
            predictions[name] = _class_numbers(target, rows, scored[name].labels)
        elif mask_reader is not None:
            predictions[name] = _pixel_matrices(target, rows, mask_reader, predictor.preprocess)
    return predictions


def _numbers(target: Scored, rows: Sequence[Mapping[str, Any]]) -> Array:
    """The number of every image, (n, 1)."""
    outputs = np.stack([np.reshape(row[target.output], -1) for row in rows])
    return outputs[:, target.places]


def _class_numbers(
    target: Scored, rows: Sequence[Mapping[str, Any]], labels: Sequence[str]
) -> Array:
    """The most probable class of every image (n,), as its number among the labels.

    The head of this model may number its classes otherwise.
    """
    numbers = []
    for row in rows:
        label = target.labels[int(np.argmax(row[target.output]))]
        numbers.append(labels.index(label))
    return np.array(numbers)


def _pixel_matrices(
    target: Scored,
    rows: Sequence[Mapping[str, Any]],
    mask_reader: MaskReader,
    preprocess: Preprocessing,
) -> Array:
    """The confusion matrices of every image's pixels, (n, K, K); 0 for an image without a mask."""
    matrices = []
    for i, row in enumerate(rows):
        class_map = torch.as_tensor(row["maps"][target.output])  # (K, rows, cols)
        true_classes = mask_reader.read(i, target.output, preprocess)
        if true_classes is None:
            num_classes = len(class_map)
            matrices.append(np.zeros((num_classes, num_classes), np.int64))
        else:
            matrices.append(map_confusion(true_classes, class_map[None]))
    return np.stack(matrices)


def _shared_units(predictors: Iterable[Predictor], targets: Collection[str]) -> dict[str, str]:
    """Target -> its unit, which all models that predict it state; empty where one of them does not."""
    units_of_target: dict[str, set[str]] = {}
    for predictor in predictors:
        for column in columns_of(predictor.tasks):
            if column.name in targets:
                units_of_target.setdefault(column.name, set()).add(column.task.unit)
    shared = {}
    for target, units in units_of_target.items():
        if len(units) == 1:
            [shared[target]] = units
        else:  # one states a unit, another one none
            shared[target] = ""
    return shared


def _lines_of_unshared_targets(predictions: Mapping[str, Mapping[str, Array]]) -> list[str]:
    """A line for each target that only some of the models predict."""
    models_of_target: dict[str, list[str]] = {}
    for model, predictions_of_model in predictions.items():
        for target in predictions_of_model:
            models_of_target.setdefault(target, []).append(model)
    lines = []
    for target, models in models_of_target.items():
        if len(models) < len(predictions):
            lines.append(f"{target}: predicted by {', '.join(models)} only, so it is not compared")
    return lines
