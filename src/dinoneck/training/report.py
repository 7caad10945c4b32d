"""Steps 8 and 9 of a run: predictions of held-out images, their scores, and what a report says of them."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dinoneck.data.table import Table
from dinoneck.errors import ConfigError, DataError
from dinoneck.heads.ensemble import with_composed
from dinoneck.heads.head import Head
from dinoneck.kinds import METHODS, Method
from dinoneck.losses.composition import Composition
from dinoneck.metrics import Array
from dinoneck.tasks import MEAN_KEY, OVERALL, OVERALL_MEAN, OVERALL_WEIGHTED
from dinoneck.training.folds import Fold, Rows
from dinoneck.training.intervals import Residuals
from dinoneck.training.scored import ClassTarget, LabelsTarget, MapTarget, ScoredTarget, ValueTarget
from dinoneck.training.scores import Split, score_values
from dinoneck.training.token_sources import TokenSource, in_batches
from dinoneck.training.verdict import verdict

# what predicts in a run
HEAD: Method = "head"
LINEAR: Method = "linear"
AVERAGE: Method = "average"

# the names of scores in head files
NAMES_IN_FILE = {
    "r2": "R2",
    "accuracy": "accuracy",
    "macro_f1": "macro_f1",
    "mAP": "mAP",
    "F1": "F1",
    "mean_iou": "mean_iou",
    "within_11": "within_11",
    "mean_angle": "mean_angle",
}
_BATCH = 16

Predictions = dict[str, Array]
"""Target -> the predictions of all rows, see :mod:`dinoneck.training.scored`."""
Methods = dict[str, Predictions]
"""Method -> its predictions; the first method is compared with the others."""


def prediction_column(target: str, method: str) -> str:
    """Return the column of a method's predictions in ``out_of_fold.csv``; the target's has the known values."""
    return f"{target} ({method})"


def check_target_names(targets: Mapping[str, ScoredTarget]) -> None:
    """Check that targets have other names than columns of ``out_of_fold.csv`` and the mean of scores.

    Raises:
        ConfigError: for a target that is called like one of them.
    """
    for name in targets:
        for method in METHODS:
            column = prediction_column(name, method)
            if column in targets:
                raise ConfigError(
                    f"a target is called {column!r}, as the column of {name!r} in out_of_fold.csv; "
                    "rename it"
                )
        if name in (OVERALL_MEAN, OVERALL_WEIGHTED):
            raise ConfigError(
                f"a target is called {name!r}, as the mean over the targets; rename it"
            )


# predictions


def no_predictions(targets: Mapping[str, ScoredTarget]) -> Predictions:
    """Return the predictions of a method that has predicted no row yet."""
    return {name: target.no_predictions() for name, target in targets.items()}


@dataclass(frozen=True)
class PredictingMethod:
    """A method, and where what it predicts is written.

    Attributes:
        head: predicts, and is set to evaluation mode.
        tokens: of all rows.
        predictions: of :func:`no_predictions`, changed in place.
        residuals: of :func:`dinoneck.training.intervals.no_residuals`, changed in place.
    """

    head: Head
    tokens: TokenSource
    predictions: Predictions
    residuals: Residuals

    def predict(
        self, rows: Sequence[int], compositions: Sequence[Composition]
    ) -> dict[str, Tensor]:
        """Return the outputs of rows, with the compositions that the head has not."""
        device = next(self.head.parameters()).device
        self.head.eval()
        batch = self.tokens.batch([self.tokens.ids[row] for row in rows]).to(device)
        outputs = {}
        for name, output in with_composed(self.head.predict(batch), compositions).items():
            outputs[name] = output.float().cpu()
        return outputs


@torch.no_grad()
def write_predictions(
    targets: Mapping[str, ScoredTarget],
    methods: Sequence[PredictingMethod],
    rows: Sequence[int],
    with_residuals: Mapping[str, ValueTarget | ClassTarget],
    compositions: Sequence[Composition] = (),
) -> None:
    """Write what methods predict for the held-out rows, and how far off it is, into the arrays of all rows.

    The truth of a map is read once for all methods.

    Args:
        targets: what is predicted.
        methods: what predicts.
        rows: the held-out rows.
        with_residuals: of which residuals are measured, see
            :func:`dinoneck.training.intervals.targets_with_residuals`.
        compositions: those that a head has not are computed from its predictions.

    Raises:
        DataError: if a prediction is not finite.
    """
    for batch_rows in in_batches(rows, _BATCH):
        outputs = [method.predict(batch_rows, compositions) for method in methods]
        for name, target in targets.items():
            selected = [target.select(of_method) for of_method in outputs]
            if not all(bool(values.isfinite().all()) for values in selected):
                raise DataError(
                    f"the predictions of {name} are not finite: training diverged; lower lr (--lr)"
                )
            if isinstance(target, MapTarget):
                _write_maps(name, target, methods, selected, batch_rows)
                continue
            for method, values in zip(methods, selected, strict=True):
                method.predictions[name][batch_rows] = target.read(values, batch_rows)
        for name, measured in with_residuals.items():
            for method, of_method in zip(methods, outputs, strict=True):
                residuals = measured.residuals(measured.select(of_method).numpy(), batch_rows)
                method.residuals[name][batch_rows] = residuals


def _write_maps(
    name: str,
    target: MapTarget,
    methods: Sequence[PredictingMethod],
    selected: Sequence[Tensor],
    rows: Sequence[int],
) -> None:
    """Write what maps of rows add to the scores of each method."""
    for i, row in enumerate(rows):
        terms = target.compare([maps[i] for maps in selected], row)
        for method, terms_of_method in zip(methods, terms, strict=True):
            method.predictions[name][row] = terms_of_method


def prediction_rows(
    table: Table,
    targets: Mapping[str, ScoredTarget],
    methods: Methods,
    folds: Sequence[Fold],
) -> dict[str, list[Any]]:
    """Return the held-out images as columns: id, fold, and the true and predicted values and classes.

    A cell is None where its value is not known. Auxiliary targets and maps have no columns.
    """
    fold_of_row = {}
    for fold in folds:
        for row in fold.valid.tolist():
            fold_of_row[row] = fold.number
    rows = sorted(fold_of_row)
    columns: dict[str, list[Any]] = {
        "image": [table.ids[row] for row in rows],
        "fold": [fold_of_row[row] for row in rows],
    }
    for name, target in targets.items():
        if isinstance(target, MapTarget) or not target.has_columns:
            continue
        if isinstance(target, LabelsTarget):
            _add_label_columns(columns, name, target, methods, rows)
            continue
        columns[name] = target.cells(target.truth[rows])
        for method, predictions in methods.items():
            if name in predictions:
                column = prediction_column(name, method)
                columns[column] = target.cells(predictions[name][rows])
    return columns


def _add_label_columns(
    columns: dict[str, list[Any]],
    name: str,
    target: LabelsTarget,
    methods: Methods,
    rows: Sequence[int],
) -> None:
    """Add the true and predicted columns of each label of a target."""
    for k, (column, label_target) in enumerate(target.by_label(name).items()):
        columns[column] = label_target.cells(label_target.truth[rows])
        for method, predictions in methods.items():
            if name in predictions:
                values = predictions[name][rows, k : k + 1]
                columns[prediction_column(column, method)] = label_target.cells(values)


# scores


def summary(
    table: Table,
    targets: Mapping[str, ScoredTarget],
    methods: Methods,
    held_out: Sequence[Sequence[int] | Rows],
    units: Mapping[str, str] = {},
    *,
    names: Mapping[str, str] = {},
) -> dict[str, Any]:
    """Return what a report holds of the scores of methods: counts, scores, target weights and the verdict.

    Args:
        table: the images.
        targets: what is scored.
        methods: their predictions.
        held_out: the rows that each fold held out; where there are none, there are no scores.
        units: target -> its unit, empty where it is not stated.
        names: method -> what the verdict calls it; others are called by their own name.
    """
    folds = [rows for rows in held_out if len(rows)]
    weights = {}
    for name, weight in table.weights.items():
        if name in targets:
            weights[name] = weight
    scores: dict[str, Any] = {}
    verdict_line = "one head on all images; none is held out"
    if folds:
        scores = scores_of(targets, methods, Split(folds, table.groups), weights)
        verdict_line = verdict(
            scores,
            first=compared_method(methods),
            target=deciding_target(targets, methods),
            mean=mean_name(targets),
            names=names,
        )
    report = {
        "images": len(table),
        "predicted": sum(map(len, folds)),
        "groups": len({*table.groups}),
        "scores": scores,
        "auxiliary": [name for name, target in targets.items() if target.auxiliary],
        "target_weights": weights,
        "verdict": verdict_line,
    }
    if OVERALL in targets:
        report[MEAN_KEY] = mean_name(targets)
    stated_units = {name: unit for name, unit in units.items() if unit}
    if stated_units:
        report["units"] = stated_units
    return report


def mean_name(targets: Container[str]) -> str:
    """Return what scores call the mean over the targets, which is another name beside a target ``overall``."""
    return OVERALL_MEAN if OVERALL in targets else OVERALL


def compared_method(methods: Methods) -> str:
    """Return the method that all others are compared with: the first."""
    return next(iter(methods))


def deciding_target(targets: Mapping[str, ScoredTarget], methods: Methods) -> str:
    """Return what methods are compared by: the mean over the targets, where there is one, or a target.

    Without numbers of images that every method predicts it is the first target that the first method
    and another one predict, one that is not auxiliary before others.
    """
    if _truths_of_mean(targets, methods):
        return mean_name(targets)
    main = [name for name in targets if not targets[name].auxiliary]
    auxiliary = [name for name in targets if targets[name].auxiliary]
    names = [*main, *auxiliary]
    compared = compared_method(methods)
    for name in names:
        num_methods = sum(name in predictions for predictions in methods.values())
        if name in methods[compared] and num_methods > 1:
            return name
    return names[0]


def deciding_targets(
    targets: Mapping[str, ScoredTarget], methods: Methods
) -> dict[str, ScoredTarget]:
    """Return the targets that :func:`deciding_target` stands for: those of the mean, or the one."""
    names = _truths_of_mean(targets, methods) or [deciding_target(targets, methods)]
    return {name: targets[name] for name in names}


def scores_of(
    targets: Mapping[str, ScoredTarget],
    methods: Methods,
    split: Split,
    weights: Mapping[str, float] = {},
) -> dict[str, dict[str, dict[str, Any]]]:
    """Return target -> method -> the scores of :mod:`dinoneck.training.scores`.

    ``overall`` is the R² of all targets that are numbers of images, not auxiliary and predicted by
    every method: the weighted R² where all have weights, else the mean over targets. Beside a
    target of that name it is called ``overall (mean)``.

    Args:
        targets: what is scored.
        methods: their predictions.
        split: the folds and groups of the rows.
        weights: target -> its weight in the weighted R².
    """
    compared = compared_method(methods)
    scores: dict[str, dict[str, dict[str, Any]]] = {}
    for name, target in targets.items():
        scores[name] = {}
        for method, predictions in methods.items():
            if name not in predictions:
                continue
            reference = None
            if method != compared:
                reference = methods[compared].get(name)
            scores[name][method] = target.score(predictions[name], split, reference=reference)
    truths = _truths_of_mean(targets, methods)
    if truths:
        scores[mean_name(targets)] = _scores_of_mean(truths, methods, split, weights)
    return scores


def targets_of_mean(targets: Mapping[str, ScoredTarget]) -> dict[str, ValueTarget]:
    """Return the targets of the overall score: the numbers of images that are not auxiliary."""
    counted = {}
    for name, target in targets.items():
        if isinstance(target, ValueTarget) and not target.auxiliary and not target.is_per_patch:
            counted[name] = target
    return counted


def _truths_of_mean(targets: Mapping[str, ScoredTarget], methods: Methods) -> dict[str, Array]:
    """The truth (n, 1) of the targets of the overall score that every method predicts."""
    truths = {}
    for name, target in targets_of_mean(targets).items():
        if all(name in predictions for predictions in methods.values()):
            truths[name] = target.truth
    return truths


def _scores_of_mean(
    truths: Mapping[str, Array], methods: Methods, split: Split, weights: Mapping[str, float]
) -> dict[str, dict[str, Any]]:
    """Method -> its scores on several targets together, each of a truth (n, 1)."""
    truth = np.concatenate(list(truths.values()), axis=1)
    target_weights = None
    if all(name in weights for name in truths):
        target_weights = [weights[name] for name in truths]
    compared = compared_method(methods)
    predicted = {}
    for method, predictions in methods.items():
        predicted[method] = np.concatenate([predictions[name] for name in truths], axis=1)
    scores: dict[str, dict[str, Any]] = {}
    for method in methods:
        scores[method] = score_values(
            truth,
            predicted[method],
            split,
            weights=target_weights,
            reference=None if method == compared else predicted[compared],
        )
    return scores


def fold_metrics(scores: Mapping[str, Mapping[str, Any]], method: str = HEAD) -> dict[str, float]:
    """Return the scores of a method by the names that head files keep."""
    metrics = {}
    for target, methods in scores.items():
        for metric, name_in_file in NAMES_IN_FILE.items():
            pooled = methods.get(method, {}).get(metric, {}).get("pooled")
            if pooled is not None:
                metrics[f"{name_in_file} {target}"] = pooled
    return metrics
