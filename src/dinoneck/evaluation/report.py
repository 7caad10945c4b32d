"""Predictions of the images of a table, and the report of their scores."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from dinoneck.data.table import Table
from dinoneck.detection.evaluation import HeadModel
from dinoneck.evaluation.intervals import Calibration, coverages
from dinoneck.evaluation.models import (
    Stopwatch,
    cost_of,
    count_trained_on,
    loaded_heads_of,
)
from dinoneck.evaluation.weights import weights_of
from dinoneck.inference.results import predict_many
from dinoneck.metrics import Array
from dinoneck.tasks import columns_of
from dinoneck.training.intervals import Intervals
from dinoneck.training.report import Predictions, summary
from dinoneck.training.scored import (
    ClassTarget,
    LabelsTarget,
    MapTarget,
    ScoredTarget,
    ValueTarget,
)
from dinoneck.training.scores import Split, score_labels
from dinoneck.version import versions

# of a label: its probability, and whether it reaches the threshold of the model
_LABEL_PREDICTION = np.dtype([("probability", np.float64), ("is_predicted", np.bool_)])
_BATCHES_AT_ONCE = 4  # of a call of the predictor, which decodes images ahead of the model


def predict_and_score(
    predictors: Mapping[str, HeadModel],
    table: Table,
    targets_of_models: Mapping[str, Mapping[str, ScoredTarget]],
    *,
    target_weights: Mapping[str, float],
    reasons_not_compared: Mapping[str, str] = {},
    calibrate: str | os.PathLike[str] | None = None,
    unscored: Mapping[str, ScoredTarget] = {},
) -> dict[str, Any]:
    """Predict the images of a table, and return the report of the scores.

    Args:
        predictors: name -> model.
        table: the truth.
        targets_of_models: name -> the targets of the model, one or more in all.
        target_weights: of the overall score, as the call states them; empty = those of the table,
            else of the trainings.
        reasons_not_compared: target of patches -> why only some of the models are scored on it.
        calibrate: the file of the one model with intervals from this truth, which is written; None:
            no file is.
        unscored: further targets of this model, which get intervals and no scores.

    Raises:
        ConfigError: if the weights do not fit the targets, or trainings of the models have others;
            if there is no one file to calibrate, or it has intervals.
        DataError: if the model to calibrate was trained on some of the images.
    """
    calibration = None
    if calibrate is not None:
        calibration = Calibration.of(predictors, calibrate)
    targets = _targets_of_first_models(targets_of_models.values())
    targets = _with_auxiliary(targets, predictors.values())
    table = replace(
        table, weights=weights_of(predictors, table, targets, weights_of_call=target_weights)
    )
    class_labels = {}
    for name, target in targets.items():
        if isinstance(target, ClassTarget | EvaluatedLabels):
            class_labels[name] = target.labels
    predicted = {}
    for name, predictor in predictors.items():
        predicted[name] = _predict(
            predictor,
            table,
            targets_of_models[name],
            class_labels,
            calibration=calibration,
            unscored=unscored,
        )
    predictions = {name: of_model.predictions for name, of_model in predicted.items()}
    all_rows = range(len(table))
    report = summary(
        table,
        targets,
        methods=predictions,
        held_out=[all_rows],
        units=_shared_units(predictors.values(), targets),
    )
    for name, of_model in predicted.items():
        for target_name, coverage in of_model.coverages.items():
            report["scores"][target_name][name] |= coverage
    lines = [report["verdict"], *_lines_of_unshared_targets(predictions, reasons_not_compared)]
    report["verdict"] = "\n".join(lines)
    report["cost"] = {name: of_model.cost for name, of_model in predicted.items()}
    report["versions"] = versions()
    trained_on = count_trained_on(predictors, table.images)
    if trained_on:
        report["trained_on"] = trained_on
    if calibration is not None:
        [calibrated] = predicted.values()
        calibration.write(
            calibrated.intervals,
            num_images=len(table),
            num_trained_on=sum(trained_on.values()),
        )
    return report


@dataclass(frozen=True)
class _PredictedByModel:
    """What a model predicts from the images of a table.

    Attributes:
        predictions: target -> those of all images.
        coverages: target -> how often its intervals hold, see :func:`coverages`.
        cost: of the model.
        intervals: that follow from its errors; none without a calibration.
    """

    predictions: Predictions
    coverages: Mapping[str, Mapping[str, Any]]
    cost: Mapping[str, float]
    intervals: Intervals


def _predict(
    predictor: HeadModel,
    table: Table,
    targets: Mapping[str, ScoredTarget],
    class_labels: Mapping[str, Sequence[str]],
    *,
    calibration: Calibration | None,
    unscored: Mapping[str, ScoredTarget],
) -> _PredictedByModel:
    """Predict the images of a table with one model, and take the time.

    Args:
        predictor: the model.
        table: the truth.
        targets: those that the model predicts.
        class_labels: as of :func:`_read_targets`.
        calibration: of this model; None = without one.
        unscored: as of :func:`predict_and_score`.
    """
    watch = Stopwatch(predictor)
    predictor.expect_images(len(table))
    watch.begin(table.images[0])
    rows = _predict_rows(predictor, table.images, targets.values())
    predictions = _read_targets(rows, targets, class_labels)
    seconds = watch.seconds()
    intervals: Intervals = {}
    if calibration is not None:
        intervals = calibration.intervals({**targets, **unscored}, rows, table.groups)
    return _PredictedByModel(
        predictions=predictions,
        coverages=coverages(targets, predictor.tasks, rows),
        cost=cost_of(predictor, seconds / len(table)),
        intervals=intervals,
    )


def _targets_of_first_models(
    targets_of_models: Iterable[Mapping[str, ScoredTarget]],
) -> dict[str, ScoredTarget]:
    """Target -> that of the first model that predicts it: classes are numbered as by its head."""
    first: dict[str, ScoredTarget] = {}
    for targets in targets_of_models:
        for name, target in targets.items():
            first.setdefault(name, target)
    return first


def _with_auxiliary(
    targets: Mapping[str, ScoredTarget], predictors: Iterable[HeadModel]
) -> dict[str, ScoredTarget]:
    """The targets; those that only helped the training of a model do not count in the overall score."""
    auxiliary: set[str] = set()
    for predictor in predictors:
        for loaded_head in loaded_heads_of(predictor):
            auxiliary |= loaded_head.auxiliary
    marked = {}
    for name, target in targets.items():
        if not isinstance(target, MapTarget) and target.output in auxiliary:
            target = replace(target, auxiliary=True)
        marked[name] = target
    return marked


@dataclass(frozen=True, eq=False)
class CellTarget(ValueTarget):
    """Numbers per patch of images whose grids may differ.

    Attributes:
        grids: (rows, cols) of the patches of each image, the part of its truth that is not padded;
            None = nothing is known of the image.
    """

    grids: Sequence[tuple[int, int] | None] = ()

    def read_maps(self, maps: Sequence[Any]) -> Array:
        """Return the predictions of all rows from their maps (outputs, rows, cols).

        A map that is finer than the patches is averaged over them.
        """
        predictions = self.no_predictions()
        for row, (cells, grid) in enumerate(zip(maps, self.grids, strict=True)):
            if grid is None:
                continue
            selected = torch.as_tensor(cells)[list(self.columns)]
            if selected.shape[-2:] != torch.Size(grid):
                selected = F.interpolate(selected[None], grid, mode="area")[0]
            predictions[row, :, : grid[0], : grid[1]] = selected.numpy()
        return predictions


@dataclass(frozen=True, eq=False)
class EvaluatedLabels(LabelsTarget):
    """Labels of images by models that state their thresholds; predictions are (n, K) of :data:`_LABEL_PREDICTION`.

    Attributes:
        thresholds: of the model.
    """

    thresholds: tuple[float, ...] = ()

    def read_rows(self, rows: Sequence[Mapping[str, Any]], labels: Sequence[str]) -> Array:
        """Return the predictions of rows, with the labels in this order."""
        order = [self.labels.index(label) for label in labels]
        probabilities = np.stack([np.reshape(row[self.output], -1) for row in rows])
        predictions = np.zeros(probabilities.shape, _LABEL_PREDICTION)
        predictions["probability"] = probabilities
        predictions["is_predicted"] = probabilities >= np.asarray(self.thresholds)
        in_order: Array = predictions[:, order]
        return in_order

    def score(
        self, predictions: Array, split: Split, *, reference: Array | None = None
    ) -> dict[str, Any]:
        """Return the scores of one model, as :meth:`LabelsTarget.score`, by its thresholds."""
        return score_labels(
            self.truth,
            predictions["probability"],
            split,
            self.labels,
            is_predicted=predictions["is_predicted"],
            reference=None if reference is None else reference["probability"],
            reference_predicted=None if reference is None else reference["is_predicted"],
        )


def _predict_rows(
    predictor: HeadModel, images: Sequence[Any], targets: Iterable[ScoredTarget]
) -> list[dict[str, Any]]:
    """The rows of all images by one model, in their order; with maps per patch where a target needs them."""
    has_maps = any(isinstance(target, MapTarget | CellTarget) for target in targets)
    predict = partial(predictor, maps="patch" if has_maps else None)
    at_once = _BATCHES_AT_ONCE * predictor.batch_size
    return list(predict_many(predict, images, at_once=at_once).values())


def _read_targets(
    rows: Sequence[Mapping[str, Any]],
    targets: Mapping[str, ScoredTarget],
    class_labels: Mapping[str, Sequence[str]],
) -> Predictions:
    """Target -> the predictions of all images by one model.

    Args:
        rows: of all images.
        targets: those that the model predicts.
        class_labels: target -> its classes, in the order in which the report numbers them.
    """
    predictions: Predictions = {}
    for name, target in targets.items():
        if isinstance(target, CellTarget):
            predictions[name] = target.read_maps([row["maps"][target.output] for row in rows])
        elif isinstance(target, ValueTarget):
            outputs = np.stack([np.reshape(row[target.output], -1) for row in rows])
            predictions[name] = outputs[:, list(target.columns)]
        elif isinstance(target, EvaluatedLabels):
            predictions[name] = target.read_rows(rows, class_labels[name])
        elif isinstance(target, ClassTarget):
            predictions[name] = _predicted_classes(target, rows, class_labels[name])
        elif isinstance(target, MapTarget):
            maps = [torch.as_tensor(row["maps"][target.output]) for row in rows]
            predictions[name] = target.read(maps, range(len(rows)))
    return predictions


def _predicted_classes(
    target: ClassTarget, rows: Sequence[Mapping[str, Any]], labels: Sequence[str]
) -> Array:
    """The most probable class of every image (n,), as its number among the labels.

    The head of this model may number its classes otherwise.
    """
    numbers = []
    for row in rows:
        label = target.labels[int(np.argmax(row[target.output]))]
        numbers.append(labels.index(label))
    return np.array(numbers)


def _shared_units(predictors: Iterable[HeadModel], targets: Collection[str]) -> dict[str, str]:
    """Target -> its unit, which all models that predict it state; empty where one of them does not."""
    units_of_target: dict[str, set[str]] = {}
    for predictor in predictors:
        for column in columns_of(predictor.tasks):
            if column.name in targets:
                units_of_target.setdefault(column.name, set()).add(column.task.unit)
    shared = {}
    for target, units in units_of_target.items():
        if len(units) == 1:
            shared[target] = units.pop()
        else:  # one states a unit, another one none
            shared[target] = ""
    return shared


def _lines_of_unshared_targets(
    predictions: Mapping[str, Mapping[str, Array]], reasons_not_compared: Mapping[str, str]
) -> list[str]:
    """A line for each target that only some of the models predict, or that is not the same for all.

    Args:
        predictions: model -> target -> predictions.
        reasons_not_compared: target of patches -> its line.
    """
    models_of_target: dict[str, list[str]] = {}
    for model, predictions_of_model in predictions.items():
        for target in predictions_of_model:
            models_of_target.setdefault(target, []).append(model)
    lines = []
    for target, models in models_of_target.items():
        if target in reasons_not_compared:
            lines.append(reasons_not_compared[target])
        elif len(models) < len(predictions):
            lines.append(f"{target}: predicted by {', '.join(models)} only, so it is not compared")
    return lines
