"""R² of predictions that carry ids; and the scores of held-out predictions: pooled, per fold, with intervals."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dinoneck.data.arrays import as_array, by_id
from dinoneck.errors import DataError
from dinoneck.metrics import (
    ACCURACY,
    ANGLE_METRICS,
    FEWEST_GROUPS,
    FEWEST_POSITIVES,
    LABEL_F1,
    MACRO_F1,
    MAE,
    MEAN_AVERAGE_PRECISION,
    MEAN_IOU,
    PIXEL_ACCURACY,
    R2,
    Array,
    Counts,
    Floats,
    GroupedLabels,
    GroupedTerms,
    Metric,
    as_number,
    best_threshold,
    class_counts,
    class_f1,
    class_iou,
    class_terms,
    confusion_matrix,
    label_precision,
    label_terms,
    mean_average_precision,
    standard_deviation,
    value_terms,
    weighted_r2_metric,
)
from dinoneck.task_facts import DEFAULT_THRESHOLD
from dinoneck.text import counted, some_of

Values = Mapping[str, Any] | Array | Sequence[Any]


def r2(targets: Any, predictions: Any) -> float:
    """Return 1 - SS_res / SS_tot of one target, as scikit-learn's ``r2_score``; 0 is as good as its mean.

    Args:
        targets: the true values, (n,) or (n, 1), or ``{id: value}``.
        predictions: the same; where they have ids (the index of a Series), they are matched by id.

    Raises:
        DataError: for NaN, several targets, different lengths or ids, or targets that are all
            equal.

    Examples:
        >>> r2([1.0, 2.0, 3.0], [1.0, 2.0, 4.0])
        0.5
    """
    return weighted_r2({"target": targets}, {"target": predictions}, {"target": 1.0})


def weighted_r2(
    targets: Values, predictions: Values, weights: Mapping[str, float] | Sequence[float]
) -> float:
    """Return the weighted R² of all targets together.

    Every (image, target) pair is one row with its target's weight; there is one global weighted
    mean, not one per target: 1 - sum w (y - p)² / sum w (y - mean_w)².

    Args:
        targets: the true values: ``{target: n values}``, ``{target: {id: value}}`` or a DataFrame,
            or an (n, t) array.
        predictions: the same; where both have ids, they are matched by id.
        weights: ``{target: weight}``, or t weights.

    Raises:
        DataError: for NaN, lengths or names that do not fit, weights that are negative or all 0, or
            constant targets.

    Examples:
        >>> targets = {"a": [1, 2], "b": [10, 10]}
        >>> round(weighted_r2(targets, {"a": [1, 2], "b": [9, 9]}, {"a": 0.5, "b": 0.5}), 4)
        0.9725
    """
    true: Any = targets
    predicted: Any = predictions
    shares: Any = weights
    if any(hasattr(values, "keys") for values in (targets, predictions, weights)):
        _check_names(targets, predictions, weights)
        names = list(shares)
        true, predicted = _columns_of(targets, predictions, names)
        shares = [shares[name] for name in names]
    true = as_array(true).astype(np.float64)
    predicted = as_array(predicted).astype(np.float64)
    shares = as_array(shares).astype(np.float64)
    _check_arrays(true, predicted, shares)
    terms = value_terms(true, predicted, joint=True)
    score = weighted_r2_metric(shares).of_sums(terms.sum(axis=0))
    if np.isnan(score):
        raise DataError(
            f"all {counted(true.size, 'target')} are {true.flat[0]:g}, so that R² is not defined; "
            "score targets that vary"
        )
    return float(score)


def _columns_of(targets: Any, predictions: Any, names: Sequence[str]) -> tuple[Array, Array]:
    """The columns of these names, (n, t), with the predictions in the order of the targets' ids."""
    true_columns = []
    predicted_columns = []
    for name in names:
        true, predicted = _matched(targets[name], predictions[name])
        true_columns.append(true)
        predicted_columns.append(predicted)
    lengths = [len(column) for column in true_columns]
    if len(set(lengths)) > 1:
        counts = ", ".join(f"{name} {n}" for name, n in zip(names, lengths, strict=True))
        raise DataError(f"the targets differ in length: {counts}; expected one length")
    return np.concatenate(true_columns, axis=1), np.concatenate(predicted_columns, axis=1)


def _check_names(targets: Any, predictions: Any, weights: Any) -> None:
    """Check that all three have names, one or more, and the same ones."""
    tables = {"targets": targets, "predictions": predictions, "weights": weights}
    for what, table in tables.items():
        if not hasattr(table, "keys"):
            others = " and ".join(name for name in tables if hasattr(tables[name], "keys"))
            raise DataError(
                f"the {what} are {type(table).__name__}, and the {others} have names; expected "
                "names in all three, or in none"
            )
    for what, table in tables.items():
        if {*table} != {*targets}:
            raise DataError(
                f"the {what} hold {', '.join(map(str, table)) or 'nothing'} and the targets "
                f"{', '.join(map(str, targets)) or 'nothing'}; expected the same names"
            )
    if not len(targets):
        raise DataError("there is nothing to score: the targets hold no names")


def _check_arrays(true: Floats, predicted: Floats, shares: Floats) -> None:
    """Check targets and predictions (n, t) and the weights of t targets."""
    if true.ndim != 2:
        raise DataError(f"the targets have shape {true.shape}; expected (samples, targets)")
    if predicted.shape != true.shape:
        raise DataError(
            f"the predictions have shape {predicted.shape} and the targets {true.shape}; expected the "
            "same shape"
        )
    if shares.shape != true.shape[1:]:
        raise DataError(
            f"the weights have shape {shares.shape}; expected {true.shape[1:]}, one for each target"
        )
    for what, values in (("targets", true), ("predictions", predicted), ("weights", shares)):
        count = int((~np.isfinite(values)).sum())
        if count:
            is_or_are = "is" if count == 1 else "are"
            raise DataError(
                f"{count} of the {what} {is_or_are} not finite; leave out what is not known"
            )
    if (shares < 0).any():
        raise DataError(f"the weights are {shares.tolist()}; expected 0 or more")
    if not true.size:
        raise DataError("there is nothing to score: the targets have no values")
    if not shares.sum():
        raise DataError(
            f"there is nothing to score: the weights are {shares.tolist()}; expected one above 0"
        )


def _row_numbers(values: Any) -> range | None:
    """The ids of values that carry none; None for those with ids."""
    return None if hasattr(values, "items") else range(len(values))


def _matched(targets: Any, predictions: Any) -> tuple[Array, Array]:
    """Both as columns (n, 1), matched by id where one of them has ids; those of an array are 0, 1, ... n - 1."""
    if hasattr(targets, "items") or hasattr(predictions, "items"):
        true = by_id(targets, "a column", _row_numbers(targets))
        predicted = by_id(predictions, "a column", _row_numbers(predictions))
        unmatched = [repr(image_id) for image_id in true.keys() ^ predicted.keys()]
        if unmatched:
            if hasattr(targets, "items") != hasattr(predictions, "items"):
                ids_of = "targets" if hasattr(targets, "items") else "predictions"
                raise DataError(
                    f"the {ids_of} alone have ids; expected {{id: value}} or a Series on both "
                    "sides, or on neither (series.to_numpy())"
                )
            raise DataError(
                f"{counted(len(unmatched), 'id')} not in both targets and predictions: "
                f"{some_of(unmatched, 3)}"
            )
        targets = list(true.values())
        predictions = [predicted[image_id] for image_id in true]
    true_column = as_array(targets)
    predicted_column = as_array(predictions)
    if len(true_column) != len(predicted_column):
        raise DataError(
            f"there are {counted(len(true_column), 'target')} and "
            f"{counted(len(predicted_column), 'prediction')}; expected one for each"
        )
    for what, column in (("targets", true_column), ("predictions", predicted_column)):
        if column.shape[1:] not in ((), (1,)):
            raise DataError(
                f"the {what} of one name have shape {column.shape}; expected "
                f"({len(column)},): score several with weighted_r2"
            )
    return true_column.reshape(-1, 1), predicted_column.reshape(-1, 1)


@dataclass(frozen=True)
class Split:
    """Which rows of a table were held out together, and which are resampled together.

    Attributes:
        folds: the rows that each fold held out.
        groups: one label per row of the table.
    """

    folds: Sequence[Any]
    groups: Sequence[Hashable]


def score_values(
    truth: Any,
    predictions: Any,
    split: Split,
    *,
    weights: Sequence[float] | None = None,
    reference: Any = None,
) -> dict[str, Any]:
    """Return the scores of one method on one target of numbers, or on t targets together.

    Args:
        truth: of the n rows, (n,), (n, t) or (n, t, rows, cols), NaN = missing.
        predictions: of the same shape, NaN where a row was not predicted.
        split: the folds and groups of the rows.
        weights: t weights, for one R² over all targets as of :func:`dinoneck.training.weighted_r2`;
            None = the mean of the targets' R².
        reference: predictions of another method, to compare with; what it did not predict counts
            for neither.

    Returns:
        ``images``: how many rows the scores rest on, those with a known and predicted value;
        ``groups``: of how many groups these are; ``r2`` and ``mae``, each with ``pooled``, its 95 %
        ``interval`` (None for fewer than five groups) and ``folds``; of one target ``sd``, the
        standard deviation of its known values, which the mean absolute error compares with. With a
        reference also ``head_minus``: score -> interval of the reference's score minus this one.
        Where an interval is None, ``no_interval`` states why. The terms of all rows are added
        before a score is computed.

    Raises:
        DataError: for values that are infinite, or shapes that differ.
    """
    compared = _compare_numbers(truth, predictions, reference)
    truth = compared.truth
    predictions = compared.predictions
    reference = compared.reference
    is_joint = weights is not None
    r2_metric = R2 if weights is None else weighted_r2_metric(weights)
    held_out = _HeldOut(split, is_known=compared.has_known)
    terms = value_terms(truth, predictions, joint=is_joint)
    reference_terms = None
    if reference is not None:
        reference_terms = value_terms(truth, reference, joint=is_joint)
    scores = held_out.scores((r2_metric, MAE), terms, reference_terms)
    if terms.shape[-1] == 1:
        [deviation] = standard_deviation(terms[held_out.rows].sum(axis=0))
        scores["sd"] = as_number(deviation)
    return scores


def score_classes(
    truth: Any, predictions: Any, split: Split, labels: Sequence[str], *, reference: Any = None
) -> dict[str, Any]:
    """Return the scores of one method on one target of classes.

    Args:
        truth: class indices (n,), -1 = missing.
        predictions: of the same shape, -1 where a row was not predicted.
        split: the folds and groups of the rows.
        labels: names of the K classes.
        reference: as of :func:`score_values`.

    Returns:
        As :func:`score_values`, with ``accuracy`` and ``macro_f1``; ``f1``: label -> score, None
        for a class that occurs nowhere; ``labels`` and ``confusion_matrix``.

    Raises:
        DataError: for indices outside 0 ... K-1, or shapes that differ.
    """
    compared = _compare_classes(truth, predictions, reference)
    truth = compared.truth
    predictions = compared.predictions
    reference = compared.reference
    held_out = _HeldOut(split, compared.is_known)
    terms = class_terms(truth, predictions, len(labels))
    reference_terms = None
    if reference is not None:
        reference_terms = class_terms(truth, reference, len(labels))
    scores = held_out.scores((ACCURACY, MACRO_F1), terms, reference_terms)
    rows = held_out.rows
    matrix = confusion_matrix(truth[rows], predictions[rows], len(labels))
    return scores | _scores_by_label("f1", class_f1(class_counts(matrix)), labels, matrix)


def score_labels(
    truth: Any,
    probabilities: Any,
    split: Split,
    labels: Sequence[str],
    *,
    is_predicted: Any = None,
    reference: Any = None,
    reference_predicted: Any = None,
) -> dict[str, Any]:
    """Return the scores of one method on one target of several labels per image.

    Args:
        truth: (n, K), 1 where an image has a label, 0 where it has not, NaN = missing.
        probabilities: of the same shape, NaN where a row was not predicted.
        split: the folds and groups of the rows.
        labels: names of the K labels.
        is_predicted: bool (n, K), which labels count as predicted. None: the thresholds with the
            best F1 are chosen. The F1 of a fold is then that with the thresholds of the other folds,
            so that no image has a part in the threshold that it is scored with; of a single fold it
            is that with 0.5.
        reference: as of :func:`score_values`.
        reference_predicted: as ``is_predicted``, of the other method.

    Returns:
        As :func:`score_values`, with ``mAP``, the mean of the labels' average precisions, and ``F1``,
        the mean of their F1, each over the labels that occur; ``by_label``: label -> its
        ``AP``, ``F1``, number of ``positives`` and, where thresholds are chosen, the ``threshold`` of
        all folds together; ``few_positives`` then names the labels with fewer than five, whose
        threshold stays 0.5.

    Raises:
        DataError: for values that are infinite, or shapes that differ.
    """
    compared = _compare_numbers(truth, probabilities, reference)
    truth = compared.truth
    probabilities = compared.predictions
    reference = compared.reference
    held_out = _HeldOut(split, is_known=compared.has_known)
    chooses_thresholds = is_predicted is None
    if chooses_thresholds:
        is_predicted = _predicted_labels(truth, probabilities, held_out)
    terms = label_terms(truth, is_predicted)
    reference_terms = None
    if reference is not None:
        if chooses_thresholds:
            reference_predicted = _predicted_labels(truth, reference, held_out)
        reference_terms = label_terms(truth, reference_predicted)

    scores = held_out.scores((LABEL_F1,), terms, reference_terms)
    ranked = held_out.ranked(truth, probabilities)
    scores[MEAN_AVERAGE_PRECISION] = {
        "pooled": ranked.score(),
        "interval": ranked.interval(),
        "folds": _mean_average_precision_by_fold(held_out, truth, probabilities),
    }
    if reference is not None:
        difference = held_out.ranked(truth, reference).interval_of_difference(ranked)
        scores["head_minus"][MEAN_AVERAGE_PRECISION] = difference
    if scores[MEAN_AVERAGE_PRECISION]["interval"] is None:
        scores.setdefault("no_interval", "a score is not defined")

    rows = held_out.rows
    f1 = class_f1(terms[rows].sum(axis=0))
    by_label = _scores_of_labels(truth[rows], probabilities[rows], labels, f1)
    scores["by_label"] = by_label
    if chooses_thresholds:
        thresholds = choose_thresholds(truth[rows], probabilities[rows])
        for label, threshold in zip(labels, thresholds, strict=True):
            by_label[label]["threshold"] = threshold
        few = [label for label, x in by_label.items() if x["positives"] < FEWEST_POSITIVES]
        scores["few_positives"] = few
    return scores


def _mean_average_precision_by_fold(
    held_out: _HeldOut, truth: Floats, probabilities: Floats
) -> list[float | None]:
    """The mean average precision of each fold, which is no function of sums."""
    by_fold = []
    for rows in held_out.folds:
        times = np.ones((1, len(rows)))
        [score] = mean_average_precision(truth[rows], probabilities[rows], times)
        by_fold.append(as_number(score))
    return by_fold


def _scores_of_labels(
    truth: Floats, probabilities: Floats, labels: Sequence[str], f1: Floats
) -> dict[str, dict[str, Any]]:
    """Label -> its average precision, its F1, and how many images have it.

    Args:
        truth: of the held-out images (m, K).
        probabilities: of the same images.
        labels: names of the K labels.
        f1: of each label, (K,).
    """
    by_label: dict[str, dict[str, Any]] = {}
    for k, label in enumerate(labels):
        once = np.ones((1, len(truth)))
        [precision] = label_precision(truth[:, k], probabilities[:, k], once)
        by_label[label] = {
            "AP": as_number(precision),
            "F1": as_number(f1[k]),
            "positives": int((truth[:, k] == 1).sum()),
        }
    return by_label


def choose_thresholds(truth: Floats, probabilities: Floats) -> list[float]:
    """Return the probability of each label from which on images have it with the best F1.

    See :func:`dinoneck.metrics.best_threshold`.

    Args:
        truth: (n, K), 1, 0 or NaN.
        probabilities: (n, K).

    Returns:
        K thresholds; 0.5 for a label with fewer than five images that have it.
    """
    thresholds = []
    for k in range(truth.shape[1]):
        is_known = ~np.isnan(truth[:, k])
        has_label = truth[is_known, k] == 1
        num_positives = int(has_label.sum())
        threshold = best_threshold(probabilities[is_known, k], has_label, num_positives)
        thresholds.append(DEFAULT_THRESHOLD if threshold is None else threshold)
    return thresholds


def _predicted_labels(truth: Floats, probabilities: Floats, held_out: _HeldOut) -> Array:
    """Which labels are predicted, bool (n, K), in every fold by the thresholds of the other folds."""
    is_predicted = np.zeros(truth.shape, bool)
    for rows in held_out.folds:
        others = np.setdiff1d(held_out.rows, rows)
        of_other_folds = choose_thresholds(truth[others], probabilities[others])
        is_predicted[rows] = probabilities[rows] >= np.asarray(of_other_folds)
    return is_predicted


def score_pixels(
    matrices: Any, split: Split, labels: Sequence[str] = (), *, reference: Any = None
) -> dict[str, Any]:
    """Return the scores of one method on the classes of pixels.

    Args:
        matrices: confusion matrices (n, K, K) of the images, 0 for an image that was not predicted
            or has no labels.
        split: the folds and groups of the images.
        labels: names of the K classes; may be empty.
        reference: matrices of another method, to compare with.

    Returns:
        As :func:`score_values`, with ``mean_iou`` and ``pixel_accuracy``; where there are labels,
        also ``iou``: label -> score, None for a class that occurs nowhere; ``labels`` and
        ``confusion_matrix``.

    Raises:
        DataError: for shapes that differ.
    """
    matrices = np.asarray(matrices)
    is_known = matrices.any(axis=(1, 2))
    reference_terms = None
    if reference is not None:
        reference = np.asarray(reference)
        _check_shape(reference, matrices)
        is_known &= reference.any(axis=(1, 2))
        reference_terms = class_counts(reference)
    held_out = _HeldOut(split, is_known)
    metrics = (MEAN_IOU, PIXEL_ACCURACY)
    scores = held_out.scores(metrics, class_counts(matrices), reference_terms)
    if not labels:
        return scores
    matrix = matrices[held_out.rows].sum(axis=0).astype(np.int64)
    return scores | _scores_by_label("iou", class_iou(class_counts(matrix)), labels, matrix)


def score_angles(terms: Any, split: Split, *, reference: Any = None) -> dict[str, Any]:
    """Return the scores of one method on surface normals.

    Args:
        terms: of the images, (n, terms) of :func:`dinoneck.metrics.angle_terms`, 0 for an image that
            was not predicted or has no known normals.
        split: the folds and groups of the images.
        reference: terms of another method, to compare with.

    Returns:
        As :func:`score_values`, with ``mean_angle`` and ``median_angle``, in degrees between
        predicted and true normal over all known pixels. ``within_11``, ``within_22`` and
        ``within_30`` are the shares of pixels whose angle is below 11.25, 22.5 and 30 degrees.
    """
    terms = np.asarray(terms, np.float64)
    is_known = terms.any(axis=1)
    if reference is not None:
        reference = np.asarray(reference, np.float64)
        _check_shape(reference, terms)
        is_known &= reference.any(axis=1)
    return _HeldOut(split, is_known).scores(ANGLE_METRICS, terms, reference)


@dataclass(frozen=True)
class _Compared:
    """What a score compares, of n rows.

    Attributes:
        truth: missing where a prediction is.
        predictions: of the same shape.
        reference: predictions of another method, of the same shape; None without.
        is_known: of the same shape, whether the truth and all predictions are known.
    """

    truth: Array
    predictions: Array
    reference: Array | None
    is_known: Array

    @property
    def has_known(self) -> Array:
        """(n,), whether any value of a row is known."""
        values_of_rows = self.is_known.reshape(len(self.is_known), -1)
        has_known: Array = np.logical_or.reduce(values_of_rows, axis=1)
        return has_known


def _compare_numbers(truth: Any, predictions: Any, reference: Any) -> _Compared:
    """Numbers, NaN = missing."""
    truth = _finite_or_missing(truth)
    predictions = _finite_or_missing(predictions)
    _check_shape(predictions, truth)
    is_known = ~(np.isnan(truth) | np.isnan(predictions))
    if reference is not None:
        reference = _finite_or_missing(reference)
        _check_shape(reference, truth)
        is_known &= ~np.isnan(reference)
    return _Compared(np.where(is_known, truth, np.nan), predictions, reference, is_known)


def _compare_classes(truth: Any, predictions: Any, reference: Any) -> _Compared:
    """Class indices, -1 = missing."""
    truth = np.asarray(truth)
    predictions = np.asarray(predictions)
    _check_shape(predictions, truth)
    is_known = (truth >= 0) & (predictions >= 0)
    if reference is not None:
        reference = np.asarray(reference)
        _check_shape(reference, truth)
        is_known &= reference >= 0
    return _Compared(np.where(is_known, truth, -1), predictions, reference, is_known)


def _finite_or_missing(values: Any) -> Floats:
    """Values as float64; an infinite one is a DataError."""
    array = np.asarray(values, np.float64)
    if np.isinf(array).any():
        raise DataError("targets or predictions hold infinite values; missing ones are NaN")
    return array


def _check_shape(predictions: Array, truth: Array) -> None:
    if predictions.shape != truth.shape:
        raise DataError(
            f"the targets have shape {truth.shape} and predictions {predictions.shape}; expected "
            "the same shape"
        )


class _HeldOut:
    """The rows that folds held out and that count.

    Args:
        split: the folds and groups of all rows.
        is_known: (n,), whether a row has a known and a predicted value.
    """

    def __init__(self, split: Split, is_known: Array) -> None:
        self.folds: list[Array] = []
        for fold in split.folds:
            rows = [row for row in fold if is_known[row]]
            self.folds.append(np.array(rows, np.int64))
        self.rows = np.sort(np.concatenate(self.folds))
        self.groups = [split.groups[row] for row in self.rows]

    def scores(
        self, metrics: Sequence[Metric], terms: Floats, reference_terms: Floats | None
    ) -> dict[str, Any]:
        """Return the number of rows, and each score pooled, per fold and with its intervals.

        Args:
            metrics: the scores.
            terms: (n, *terms), what each row adds to them.
            reference_terms: those of another method; None = there is none to compare with.
        """
        held_out = GroupedTerms(terms[self.rows], self.groups)
        scores: dict[str, Any] = {"images": len(self.rows), "groups": len({*self.groups})}
        for metric in metrics:
            by_fold = []
            for rows in self.folds:
                by_fold.append(as_number(metric.of_sums(terms[rows].sum(axis=0))))
            scores[metric.name] = {
                "pooled": held_out.score(metric),
                "interval": held_out.interval(metric),
                "folds": by_fold,
            }
        if reference_terms is not None:
            reference = GroupedTerms(reference_terms[self.rows], self.groups)
            intervals = {}
            for metric in metrics:
                intervals[metric.name] = reference.interval_of_difference(metric, held_out)
            scores["head_minus"] = intervals
        reason = self._reason_of_no_interval(scores, metrics)
        if reason:
            scores["no_interval"] = reason
        return scores

    def ranked(self, truth: Floats, scores: Floats) -> GroupedLabels:
        """Return the labels (n, K) of these rows with their scores."""
        return GroupedLabels(truth[self.rows], scores[self.rows], self.groups)

    def _reason_of_no_interval(self, scores: Mapping[str, Any], metrics: Sequence[Metric]) -> str:
        """Why an interval of these scores is None; empty if none is."""
        intervals = [scores[metric.name]["interval"] for metric in metrics]
        intervals += scores.get("head_minus", {}).values()
        if None not in intervals:
            return ""
        num_groups = len({*self.groups})
        if num_groups < FEWEST_GROUPS:
            what = "image" if num_groups == len(self.rows) else "group"
            return f"{counted(num_groups, what)}, and an interval needs {FEWEST_GROUPS}"
        return "a score is not defined"


def _scores_by_label(
    name: str, scores: Floats, labels: Sequence[str], matrix: Counts
) -> dict[str, Any]:
    """What a report holds of each class: label -> score, the labels and the confusion matrix."""
    by_label = {}
    for label, score in zip(labels, scores, strict=True):
        by_label[label] = as_number(score)
    return {name: by_label, "labels": list(labels), "confusion_matrix": matrix.tolist()}
