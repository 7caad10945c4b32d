"""Every score: R², errors, accuracy, F1, IoU, angles, panoptic quality, average precision, and intervals over groups.

Most scores follow from sums over rows, where a row is an image::

    terms (n, *terms)  --sum over rows-->  sums (*terms)  --Metric.of_sums-->  score

so that the score of all images, of the images of a fold and of a bootstrap draw is one function of
different sums. A score that is not defined, such as R² of equal values, is NaN here; ``as_number``
makes None of it for a report.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from math import prod
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dinoneck.data.arrays import as_array
from dinoneck.errors import ConfigError, DataError

Array = np.ndarray[Any, Any]
Floats = np.ndarray[Any, np.dtype[np.float64]]
Counts = np.ndarray[Any, np.dtype[np.int64]]
Bools = np.ndarray[Any, np.dtype[np.bool_]]

# draws of a bootstrap; Efron and Tibshirani (1993), chapter 13: 1000 or more for the ends of an
# interval
RESAMPLES = 1000
# with fewer, an interval of two equal methods leaves out 0 in a quarter of the cases or more
FEWEST_GROUPS = 5
# images with a label, or objects of a class: with fewer, its threshold is not chosen
FEWEST_POSITIVES = 5
INTERVAL = (0.025, 0.975)  # quantiles: 95 % of the draws lie between them
# squared deviations below this share of the sum of squares are rounding: float64 has 16 digits
ROUNDING = 1e-12
# rows times draws whose average precision is computed at once: 40 MB each of a few arrays
_MOST_RANKED = 5_000_000
PAIR_IOU = 0.5  # above it, a segment has one partner at most (arXiv 1801.00868)
RECALLS = np.linspace(0.0, 1.0, 101)  # of COCO: precision is read at each


# arithmetic of scores that may not be defined


def divide(part: Array, whole: Array) -> Floats:
    """Return part / whole, NaN where the whole is not above 0."""
    quotients: Floats = part / np.where(whole > 0, whole, np.nan)
    return quotients


def mean_defined(scores: Floats, axis: int = -1) -> Floats:
    """Return the mean over an axis without NaN; NaN where all are."""
    is_defined = ~np.isnan(scores)
    total = np.where(is_defined, scores, 0.0).sum(axis=axis)
    return divide(total, is_defined.sum(axis=axis))


def as_number(score: Any) -> float | None:
    """Return a score as a plain number for a report; None where it is not defined."""
    if np.isnan(score):
        return None
    return float(score)


@dataclass(frozen=True)
class Metric:
    """A score that follows from sums over rows.

    Attributes:
        name: its key in a report.
        of_sums: sums over rows (..., *terms) -> scores (...); NaN where the score is not defined.
    """

    name: str
    of_sums: Callable[[Floats], Floats]


# numbers


class ValueSums(NamedTuple):
    """Sums over the known values of t targets, each (..., t), in the units of the target.

    Attributes:
        number: how many values are known.
        centred: the values less a level, which :func:`value_terms` chooses.
        centred_square: the squares of these.
        squared_error: (predicted - true)².
        absolute_error: abs(predicted - true).
        error: predicted - true.
    """

    number: Floats
    centred: Floats
    centred_square: Floats
    squared_error: Floats
    absolute_error: Floats
    error: Floats

    @classmethod
    def of(cls, sums: Floats) -> ValueSums:
        """Name the rows of sums (..., 6, t)."""
        return cls(*np.moveaxis(sums, -2, 0))

    @property
    def squared_deviation(self) -> Floats:
        """The squared deviations from the mean; 0 where the values differ by rounding only."""
        deviation = self.centred_square - divide(self.centred**2, self.number)
        return np.where(deviation > ROUNDING * self.centred_square, deviation, 0.0)


def value_terms(truth: Floats, predictions: Floats, *, joint: bool = False) -> Floats:
    """Return what each row adds to the scores of numbers.

    Args:
        truth: (n,), (n, t), or by cell (n, t, rows, cols); NaN = missing. The cells of an image are
            added up, so each known cell counts as a value.
        predictions: of the same shape; a value without a prediction (NaN) does not count.
        joint: one level for all targets, whose weighted mean a score needs; otherwise one for each.
            The level is the mean of the known values: the squares of values far from 0 would lose
            digits.

    Returns:
        (n, 6, t), of :class:`ValueSums`.
    """
    num_rows, num_targets = (*truth.shape, 1)[:2]
    by_cell = (num_rows, num_targets, prod(truth.shape[2:]))
    truth = truth.reshape(by_cell)
    predictions = predictions.reshape(by_cell)
    is_known = np.isfinite(truth) & np.isfinite(predictions)

    level_axes = (0, 1, 2) if joint else (0, 2)
    known_sum = np.where(is_known, truth, 0.0).sum(axis=level_axes, keepdims=True)
    level = divide(known_sum, is_known.sum(axis=level_axes, keepdims=True))

    def sum_over_cells(values: Floats) -> Floats:
        total: Floats = np.where(is_known, values, 0.0).sum(axis=-1)
        return total

    centred = truth - level
    error = predictions - truth
    sums = ValueSums(
        number=sum_over_cells(np.ones_like(truth)),
        centred=sum_over_cells(centred),
        centred_square=sum_over_cells(centred**2),
        squared_error=sum_over_cells(error**2),
        absolute_error=sum_over_cells(np.abs(error)),
        error=sum_over_cells(error),
    )
    return np.stack(sums, axis=1)


def r2_of_sums(sums: Floats, weights: Floats | None = None) -> Floats:
    """Return R² = 1 - squared errors / squared deviations from the mean, as scikit-learn's ``r2_score``.

    Args:
        sums: (..., 6, t), of :func:`value_terms`, with ``joint`` where there are weights.
        weights: t weights, for one quotient over all targets and one weighted mean; None = the mean
            of the R² of the targets whose values differ.

    Returns:
        (...); NaN where no values of a target differ.
    """
    if weights is not None:
        sums = (sums * weights).sum(axis=-1, keepdims=True)
    values = ValueSums.of(sums)
    unexplained = divide(values.squared_error, values.squared_deviation)
    return 1.0 - mean_defined(unexplained)


def mean_absolute_error(sums: Floats) -> Floats:
    """Return the mean absolute error of sums (..., 6, t), the mean over the targets."""
    values = ValueSums.of(sums)
    return mean_defined(divide(values.absolute_error, values.number))


def root_mean_squared_error(sums: Floats) -> Floats:
    """Return the root of the mean squared error of sums (..., 6, t), the mean over the targets."""
    values = ValueSums.of(sums)
    return mean_defined(np.sqrt(divide(values.squared_error, values.number)))


def bias(sums: Floats) -> Floats:
    """Return the mean of predicted minus true values of sums (..., 6, t), the mean over the targets."""
    values = ValueSums.of(sums)
    return mean_defined(divide(values.error, values.number))


def standard_deviation(sums: Floats) -> Floats:
    """Return the standard deviation (..., t) of the known values, their number as the divisor."""
    values = ValueSums.of(sums)
    return np.sqrt(divide(values.squared_deviation, values.number))


R2 = Metric("r2", r2_of_sums)
MAE = Metric("mae", mean_absolute_error)
RMSE = Metric("rmse", root_mean_squared_error)
BIAS = Metric("bias", bias)


def weighted_r2_metric(weights: Sequence[float] | Floats) -> Metric:
    """Return the R² over t targets together, of sums of :func:`value_terms` with ``joint``."""
    return Metric("r2", partial(r2_of_sums, weights=np.asarray(weights, np.float64)))


# classes of images and of pixels


class ClassSums(NamedTuple):
    """Numbers of images or pixels by class, each (..., K).

    Attributes:
        right: those of a class that were predicted as it.
        true: those of a class.
        predicted: those that were predicted as a class.
    """

    right: Floats
    true: Floats
    predicted: Floats

    @classmethod
    def of(cls, sums: Floats) -> ClassSums:
        """Name the rows of sums (..., 3, K)."""
        return cls(*np.moveaxis(sums, -2, 0))


def confusion_matrix(true: Any, predicted: Any, num_classes: int) -> Counts:
    """Count how often each true class was predicted as each class; matrices of batches add up.

    Args:
        true: class indices, a tensor or an array of any shape; -1 is ignored.
        predicted: class indices of the same shape.
        num_classes: K.

    Returns:
        (K, K) int64: rows are the true classes, columns the predicted ones.

    Raises:
        DataError: if an index is outside 0 ... K-1, or no whole number.

    Examples:
        >>> confusion_matrix([0, 0, 1, -1], [0, 1, 1, 0], num_classes=2)
        array([[1, 1],
               [0, 1]])
    """
    is_known = as_array(true) >= 0
    true_classes = _class_indices("true", as_array(true)[is_known], num_classes)
    predicted_classes = _class_indices("predicted", as_array(predicted)[is_known], num_classes)
    pairs = true_classes * num_classes + predicted_classes
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def _class_indices(what: str, classes: Array, num_classes: int) -> Counts:
    """Classes as int64, checked; ``what`` they are, for the message."""
    is_wrong = (classes < 0) | (classes >= num_classes)
    if classes.dtype.kind == "f":
        is_wrong |= classes != np.trunc(classes)  # also NaN
    if is_wrong.any():
        raise DataError(
            f"{what} classes hold {classes[is_wrong][0]:g}; expected 0 ... {num_classes - 1}"
        )
    return classes.astype(np.int64)


def map_confusion(true: Tensor, logits: Tensor) -> Counts:
    """Return the confusion matrix (K, K) of classes and of the logits of each class.

    Args:
        true: (B,) or (B, height, width), -1 = missing.
        logits: (B, K) or (B, K, rows, cols), which are resized to the pixels of ``true``.
    """
    if true.ndim > 1:
        logits = F.interpolate(logits, true.shape[1:], mode="bilinear")
    return confusion_matrix(true, logits.argmax(dim=1), logits.shape[1])


def class_counts(matrices: Any) -> Floats:
    """Return the counts (..., 3, K) of confusion matrices (..., K, K), of :class:`ClassSums`."""
    counts = np.asarray(matrices, np.float64)
    sums = ClassSums(
        right=np.diagonal(counts, axis1=-2, axis2=-1),
        true=counts.sum(axis=-1),
        predicted=counts.sum(axis=-2),
    )
    return np.stack(sums, axis=-2)


def class_terms(true: Array, predicted: Array, num_classes: int) -> Floats:
    """Return what each row adds to the scores of classes.

    Args:
        true: class indices (n,); -1 is ignored.
        predicted: class indices (n,).
        num_classes: K.

    Returns:
        (n, 3, K), of :class:`ClassSums`.
    """
    is_known = true[:, None] >= 0
    is_true = is_known & (true[:, None] == np.arange(num_classes))
    is_predicted = is_known & (predicted[:, None] == np.arange(num_classes))
    terms = np.stack([is_true & is_predicted, is_true, is_predicted], axis=1)
    return terms.astype(np.float64)


def accuracy(sums: Floats) -> Floats:
    """Return the share of right predictions, of sums (..., 3, K)."""
    classes = ClassSums.of(sums)
    return divide(classes.right.sum(axis=-1), classes.true.sum(axis=-1))


def class_f1(sums: Floats) -> Floats:
    """Return the F1 of each class, (..., K), of sums (..., 3, K); NaN where a class occurs nowhere."""
    classes = ClassSums.of(sums)
    return divide(2 * classes.right, classes.true + classes.predicted)


def class_iou(sums: Floats) -> Floats:
    """Return the IoU of each class, (..., K), of sums (..., 3, K); NaN where a class occurs nowhere."""
    classes = ClassSums.of(sums)
    return divide(classes.right, classes.true + classes.predicted - classes.right)


def macro_f1(sums: Floats) -> Floats:
    """Return the mean F1 over the classes that occur, of sums (..., 3, K)."""
    return mean_defined(class_f1(sums))


def mean_iou(sums: Floats) -> Floats:
    """Return the mean IoU over the classes that occur, of sums (..., 3, K)."""
    return mean_defined(class_iou(sums))


# labels of images, which may have any number of them

MEAN_AVERAGE_PRECISION = "mAP"
"""The key of :func:`mean_average_precision` in a report."""


def label_terms(truth: Floats, is_predicted: Bools) -> Floats:
    """Return what each row adds to the F1 of labels.

    Args:
        truth: (n, K), 1 where a row has a label, 0 where it has not, NaN = missing.
        is_predicted: bool (n, K), whether a label is predicted.

    Returns:
        (n, 3, K), of :class:`ClassSums`.
    """
    is_true = truth == 1
    is_counted = is_predicted & ~np.isnan(truth)
    terms = np.stack([is_true & is_counted, is_true, is_counted], axis=1)
    return terms.astype(np.float64)


def label_precision(truth: Floats, scores: Floats, times: Array) -> Floats:
    """Return the average precision of one label, as scikit-learn's ``average_precision_score``.

    It is the sum over the distinct scores of the precision down to a score, times the part of the
    recall that is gained there.

    Args:
        truth: (n,), 1 where a row has the label, 0 where it has not, NaN = missing.
        scores: (n,), of the rows, higher where the label is more likely.
        times: (draws, n), how often each row counts.

    Returns:
        (draws,), NaN where no row that counts has the label.
    """
    is_known = ~np.isnan(truth)
    order = np.argsort(-scores[is_known], kind="stable")
    ranked_scores = scores[is_known][order]
    ranked_times = times[:, is_known][:, order]
    # rows of one score are taken together
    ends = np.flatnonzero(np.diff(ranked_scores, append=-np.inf))
    hits = (ranked_times * truth[is_known][order]).cumsum(axis=1)[:, ends]
    counts = ranked_times.cumsum(axis=1)[:, ends]
    if not len(ends):
        return np.full(len(times), np.nan)
    precision = hits / np.maximum(counts, 1)
    gained = np.diff(hits, axis=1, prepend=0)
    return divide((gained * precision).sum(axis=1), hits[:, -1])


def mean_average_precision(truth: Floats, scores: Floats, times: Array) -> Floats:
    """Return the mean of the average precisions of the labels that occur, (draws,).

    Args:
        truth: (n, K), as of :func:`label_precision`.
        scores: (n, K).
        times: (draws, n), how often each row counts.
    """
    by_label = []
    for label in range(truth.shape[1]):
        by_label.append(label_precision(truth[:, label], scores[:, label], times))
    return mean_defined(np.stack(by_label, axis=-1))


ACCURACY = Metric("accuracy", accuracy)
MACRO_F1 = Metric("macro_f1", macro_f1)
LABEL_F1 = Metric("F1", macro_f1)
MEAN_IOU = Metric("mean_iou", mean_iou)
PIXEL_ACCURACY = Metric("pixel_accuracy", accuracy)


# angles between surface normals

# the ends of the steps in which angles are counted, in degrees: fine where they are small
_ANGLE_STEPS = (
    np.concatenate([np.arange(0, 1200, 5), np.arange(1200, 6000, 25), np.arange(6000, 18001, 100)])
    / 100
)
NUM_ANGLE_TERMS = len(_ANGLE_STEPS)
"""What an image adds to the scores of angles: the sum of the angles, then their number in every step."""


def angle_terms(true: Tensor, predicted: Tensor) -> Floats:
    """Return what an image adds to the scores of surface normals, (terms,).

    Args:
        true: (3, height, width), NaN = missing.
        predicted: (3, rows, cols), resized bilinearly to the pixels of ``true``; lengths do not
            count, and the angle to a zero vector is 90 degrees.
    """
    size = true.shape[1:]
    resized = predicted.double()[None]
    if predicted.shape[1:] != size:
        resized = F.interpolate(resized, size, mode="bilinear")
    is_known = ~true.isnan().any(dim=0)
    true_vectors = true.double()[:, is_known]
    predicted_vectors = resized[0][:, is_known]
    # exact also where the angle is small, which an arc cosine is not
    across = torch.linalg.cross(true_vectors, predicted_vectors, dim=0).square().sum(dim=0).sqrt()
    along = (true_vectors * predicted_vectors).sum(dim=0)
    has_direction = (across > 0) | (along != 0)
    angles = torch.where(has_direction, torch.atan2(across, along).rad2deg(), 90.0).numpy()
    counts, _ = np.histogram(angles, _ANGLE_STEPS)
    return np.concatenate([[angles.sum()], counts])


def mean_angle(sums: Floats) -> Floats:
    """Return the mean angle in degrees, of sums (..., terms)."""
    return divide(sums[..., 0], sums[..., 1:].sum(axis=-1))


def median_angle(sums: Floats) -> Floats:
    """Return the median angle in degrees, of sums (..., terms).

    It is exact to the step in which it lies: 0.05 degrees below 12, 0.25 below 60, 1 above.
    """
    counts = sums[..., 1:]
    up_to = counts.cumsum(axis=-1)
    half = up_to[..., -1:] / 2
    step = (up_to < half).sum(axis=-1, keepdims=True).clip(max=counts.shape[-1] - 1)
    count = np.take_along_axis(counts, step, axis=-1)
    before = np.take_along_axis(up_to, step, axis=-1) - count
    widths = np.diff(_ANGLE_STEPS)
    median = _ANGLE_STEPS[step] + widths[step] * divide(half - before, count)
    return np.asarray(median[..., 0])


def share_within(sums: Floats, degrees: float) -> Floats:
    """Return the share of pixels whose angle is below one of the ends of the steps, of sums (..., terms).

    Raises:
        ConfigError: for another angle, which the counts cannot tell.
    """
    if degrees not in _ANGLE_STEPS:
        raise ConfigError(
            f"degrees is {degrees:g}; expected an end of the steps in which angles are counted: of 0.05 "
            "degrees below 12, 0.25 below 60, 1 above"
        )
    counts = sums[..., 1:]
    is_within = _ANGLE_STEPS[1:] <= degrees
    return divide(counts[..., is_within].sum(axis=-1), counts.sum(axis=-1))


WITHIN_11 = Metric("within_11", partial(share_within, degrees=11.25))
WITHIN_22 = Metric("within_22", partial(share_within, degrees=22.5))
WITHIN_30 = Metric("within_30", partial(share_within, degrees=30.0))
MEAN_ANGLE = Metric("mean_angle", mean_angle)
MEDIAN_ANGLE = Metric("median_angle", median_angle)
ANGLE_METRICS = (MEAN_ANGLE, MEDIAN_ANGLE, WITHIN_11, WITHIN_22, WITHIN_30)


# intervals over groups


def draw_groups(num_groups: int) -> Counts | None:
    """Return how often each group is in each of the draws with replacement, (1000, groups).

    Equal numbers of groups have equal draws, so differences between two methods are paired. None
    for fewer than five groups, of which draws differ too little.
    """
    if num_groups < FEWEST_GROUPS:
        return None
    shares = np.full(num_groups, 1 / num_groups)
    return np.random.default_rng(0).multinomial(num_groups, shares, RESAMPLES)


def interval(scores: Floats) -> list[float] | None:
    """Return the ends of the 95 % interval of the scores (draws,) that are defined; None if none is.

    Reference: the percentile interval of Efron and Tibshirani, An Introduction to the Bootstrap
    (1993), chapter 13.
    """
    defined = scores[~np.isnan(scores)]
    if not defined.size:
        return None
    ends: list[float] = np.quantile(defined, INTERVAL).tolist()
    return ends


@dataclass(frozen=True, eq=False)
class GroupedTerms:
    """What each of n rows adds to a score, of rows that belong to groups.

    The rows of a group, such as the images of a field or of a day, resemble each other. An interval
    therefore draws whole groups.

    Attributes:
        terms: (n, *terms), of :func:`value_terms`, :func:`class_terms` or :func:`class_counts`.
        groups: n labels; rows of one label are drawn together.
    """

    terms: Floats
    groups: Sequence[Hashable]

    @cached_property
    def sums(self) -> Floats:
        """The sums over all rows, (*terms)."""
        total: Floats = self.terms.sum(axis=0)
        return total

    @cached_property
    def drawn_sums(self) -> Floats | None:
        """The sums over groups that are drawn with replacement, (1000, *terms); None for few groups."""
        number_of_group = {label: number for number, label in enumerate(dict.fromkeys(self.groups))}
        draws = draw_groups(len(number_of_group))
        if draws is None:
            return None
        group_of_row = np.array([number_of_group[label] for label in self.groups])
        group_sums = np.zeros((len(number_of_group), *self.terms.shape[1:]))
        np.add.at(group_sums, group_of_row, self.terms)
        drawn: Floats = np.einsum("rg,g...->r...", draws, group_sums)
        return drawn

    def score(self, metric: Metric) -> float | None:
        """Return the score of all rows; None where it is not defined."""
        return as_number(metric.of_sums(self.sums))

    def interval(self, metric: Metric) -> list[float] | None:
        """Return the 95 % interval of the score; None for few groups, or where it is not defined."""
        if self.drawn_sums is None:
            return None
        return interval(metric.of_sums(self.drawn_sums))

    def interval_of_difference(self, metric: Metric, other: GroupedTerms) -> list[float] | None:
        """Return the 95 % interval of the score minus that of another method on the same rows.

        Both are scored on the same draws.
        """
        if self.drawn_sums is None or other.drawn_sums is None:
            return None
        return interval(metric.of_sums(self.drawn_sums) - metric.of_sums(other.drawn_sums))


@dataclass(frozen=True, eq=False)
class GroupedLabels:
    """The labels of n rows that belong to groups, and their scores, by which rows are ranked.

    Attributes:
        truth: (n, K), 1, 0 or NaN, as of :func:`label_precision`.
        scores: (n, K).
        groups: n labels; rows of one label are drawn together.
    """

    truth: Floats
    scores: Floats
    groups: Sequence[Hashable]

    @cached_property
    def drawn_scores(self) -> Floats | None:
        """The mean average precision of groups that are drawn with replacement, (1000,); None for few groups."""
        number_of_group = {label: number for number, label in enumerate(dict.fromkeys(self.groups))}
        draws = draw_groups(len(number_of_group))
        if draws is None:
            return None
        group_of_row = [number_of_group[label] for label in self.groups]
        num_parts = 1 + len(draws) * len(group_of_row) // _MOST_RANKED
        drawn = []
        for part in np.array_split(draws, num_parts):
            times = part[:, group_of_row]
            drawn.append(mean_average_precision(self.truth, self.scores, times))
        return np.concatenate(drawn)

    def score(self) -> float | None:
        """Return the mean average precision of all rows; None where it is not defined."""
        times = np.ones((1, len(self.truth)))
        [score] = mean_average_precision(self.truth, self.scores, times)
        return as_number(score)

    def interval(self) -> list[float] | None:
        """Return its 95 % interval; None for few groups, or where it is not defined."""
        return None if self.drawn_scores is None else interval(self.drawn_scores)

    def interval_of_difference(self, other: GroupedLabels) -> list[float] | None:
        """Return the 95 % interval of the score minus that of another method on the same rows and draws."""
        if self.drawn_scores is None or other.drawn_scores is None:
            return None
        return interval(self.drawn_scores - other.drawn_scores)


# panoptic segments


class SegmentSums(NamedTuple):
    """Sums over the segments of images by class, each (..., K).

    Attributes:
        iou: the IoU of pairs of a known and a predicted segment.
        pairs: the number of pairs.
        unpaired: the number of segments without a partner, known and predicted ones.
    """

    iou: Floats
    pairs: Floats
    unpaired: Floats

    @classmethod
    def of(cls, sums: Floats) -> SegmentSums:
        """Name the rows of sums (..., 3, K)."""
        return cls(*np.moveaxis(sums, -2, 0))


@dataclass(frozen=True, eq=False)
class KnownRegions:
    """The m known regions of an image; each pixel is in one of them.

    Attributes:
        areas: (m,), in pixels.
        labels: (m,), class indices; -1 for background and for unknown pixels.
        is_segment: bool (m,), whether it is a thing or stuff that can be found.
        is_crowd: bool (m,), whether it is a crowd region of its class.
        is_unknown: bool (m,), whether nothing is known of its pixels.
    """

    areas: Counts
    labels: Counts
    is_segment: Bools
    is_crowd: Bools
    is_unknown: Bools


def segment_terms(shared: Counts, labels: Counts, known: KnownRegions, num_classes: int) -> Floats:
    """Return what an image adds to panoptic quality.

    A known and a predicted segment of one class are a pair where their IoU is above 0.5; unknown
    pixels are ignored. A segment without a partner counts as wrong, unless more than half of it is
    unknown or in crowd regions of its class.

    Args:
        shared: (n, m), pixels that each of n predicted segments shares with each known region.
        labels: (n,), classes of the predicted segments.
        known: the m regions.
        num_classes: K.

    Returns:
        (3, K), of :class:`SegmentSums`.

    Reference: Panoptic Segmentation (arXiv 1801.00868), as in panopticapi. Deviation: all crowd
    regions of a class count, not one.
    """
    areas = shared.sum(axis=1)
    is_same_class = labels[:, None] == known.labels
    unknown_area = shared @ known.is_unknown
    crowd_area = (shared * is_same_class) @ known.is_crowd

    union = areas[:, None] + known.areas - shared - unknown_area[:, None]
    iou = divide(shared, union)  # (n, m)
    is_pair = is_same_class & known.is_segment & (iou > PAIR_IOU)
    is_ignored = 2 * (unknown_area + crowd_area) > areas
    is_wrong = ~is_pair.any(axis=1) & ~is_ignored
    is_missed = ~is_pair.any(axis=0) & known.is_segment

    iou_of_class = np.zeros(num_classes)
    np.add.at(iou_of_class, labels, np.where(is_pair, iou, 0.0).sum(axis=1))
    pairs = np.zeros(num_classes)
    np.add.at(pairs, labels, is_pair.sum(axis=1))
    unpaired = np.zeros(num_classes)
    np.add.at(unpaired, labels[is_wrong], 1)
    np.add.at(unpaired, known.labels[is_missed], 1)
    return np.stack(SegmentSums(iou_of_class, pairs, unpaired))


def class_recognition_quality(sums: Floats) -> Floats:
    """Return RQ, the F1 of finding segments of each class, (..., K), of sums (..., 3, K); NaN without any."""
    segments = SegmentSums.of(sums)
    return divide(segments.pairs, segments.pairs + segments.unpaired / 2)


def class_segmentation_quality(sums: Floats) -> Floats:
    """Return SQ, the mean IoU of the pairs of each class, (..., K): 0 without pairs, NaN without segments."""
    segments = SegmentSums.of(sums)
    quality = segments.iou / segments.pairs.clip(1)
    return np.where(np.isnan(class_recognition_quality(sums)), np.nan, quality)


def class_panoptic_quality(sums: Floats) -> Floats:
    """Return PQ = SQ * RQ of each class, (..., K), of sums (..., 3, K); NaN without segments."""
    segments = SegmentSums.of(sums)
    quality: Floats = class_recognition_quality(sums) * segments.iou / segments.pairs.clip(1)
    return quality


# ranked objects


def best_f1(scores: Floats, is_right: Array, num_known: int) -> tuple[float, float | None]:
    """Return the best F1 over all thresholds of the score, and the score that it begins at.

    Args:
        scores: (n,), of predicted objects.
        is_right: (n,), whether each is a known object.
        num_known: number of known objects.

    Returns:
        F1 and a score; 0 and None where no object is right.
    """
    order = np.argsort(-scores, kind="stable")
    scores = scores[order]
    hits = np.cumsum(is_right[order])
    # objects of one score are taken together
    ends = np.flatnonzero(np.diff(scores, append=-np.inf))
    f1 = 2 * hits[ends] / (ends + 1 + num_known)
    if not f1.any():
        return 0.0, None
    best = int(f1.argmax())
    return float(f1[best]), float(scores[ends[best]])


def best_threshold(scores: Floats, is_right: Array, num_known: int) -> float | None:
    """Return the score from which on F1 is best.

    It lies in the middle between the lowest score that counts and the next lower one.

    Args:
        scores: (n,), of images, or of predicted objects.
        is_right: (n,), whether each has the label, or is a known object.
        num_known: number of images that have the label, or of known objects.

    Returns:
        None for fewer than five known ones, and where none is right.
    """
    if num_known < FEWEST_POSITIVES:
        return None
    _, lowest = best_f1(scores, is_right, num_known)
    if lowest is None:
        return None
    below = scores[scores < lowest]
    next_lower = below.max() if below.size else 0.0
    return float((lowest + next_lower) / 2)


@dataclass(frozen=True, eq=False)
class RankedObjects:
    """The P predicted objects of one class in all images, those with the highest scores first.

    Attributes:
        image: (P,), the index of the image of each object.
        right: bool (T, P), whether it is a known object at each of T IoUs.
        counts: bool (T, P), whether it counts at all: what lies in crowd regions does not.
        known: (images,), number of known objects of each image.
    """

    image: Counts
    right: Bools
    counts: Bools
    known: Array


def average_precision(objects: RankedObjects, times: Array) -> Floats:
    """Return COCO's average precision of a class at T IoUs, (T,); NaN without known objects.

    It is the mean over 101 recalls of the best precision at that recall or above, 0 where the
    recall is not reached, as of pycocotools.

    Args:
        objects: of the class.
        times: (images,), how often each image counts: 1, or its number of times in a draw.
    """
    num_known = float(times @ objects.known)
    if not num_known:
        return np.full(len(objects.right), np.nan)
    weights = times[objects.image]
    right = (objects.right & objects.counts) * weights  # (T, P)
    wrong = (~objects.right & objects.counts) * weights
    hits = right.cumsum(axis=1)
    recall = hits / num_known
    precision = hits / np.maximum(hits + wrong.cumsum(axis=1), 1)
    best_after = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    average = np.zeros(len(recall))
    for threshold in range(len(recall)):
        first_object = np.searchsorted(recall[threshold], RECALLS, side="left")
        is_reached = first_object < recall.shape[1]
        reached = best_after[threshold][first_object[is_reached]]
        average[threshold] = reached.sum() / len(RECALLS)
    return average
