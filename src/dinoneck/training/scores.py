"""Scores of out-of-fold predictions as plain dicts: pooled, per fold, and with intervals by a bootstrap over groups."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dinoneck.errors import DataError
from dinoneck.training.metrics import (
    class_counts,
    class_f1,
    class_iou,
    confusion_matrix,
    group_draws,
    interval,
    mean_known,
    quotient,
    r2_terms,
    share_right,
    unexplained,
)

FEWEST_GROUPS = 5  # with fewer, an interval of two equal methods leaves out 0 in a quarter of the cases or more
_Array = np.ndarray[Any, Any]
_Score = Callable[[_Array], _Array]  # sums over rows (..., *terms) -> scores (...)
_VALUE_SCORES: dict[str, _Score] = {  # of sums (..., 5, t): the terms of R², and absolute errors
    "r2": lambda sums: 1.0 - unexplained(sums[..., :4, :]),
    "mae": lambda sums: mean_known(quotient(sums[..., 4, :], sums[..., 0, :])),
}


@dataclass(frozen=True)
class Split:
    """Which rows of a table were held out together, and which are resampled together.

    Attributes:
        folds: the rows that each fold held out.
        groups: one label per row of the table.
    """

    folds: Sequence[Any]
    groups: Sequence[Hashable]

    @property
    def rows(self) -> _Array:
        """The rows that a fold held out, ascending."""
        return np.sort(np.concatenate([np.asarray(rows, np.int64) for rows in self.folds]))

    def where(self, known: _Array) -> Split:
        """Return the split of the rows for which ``known`` (n,) is true."""
        return Split([rows[known[rows]] for rows in (np.asarray(rows, np.int64) for rows in self.folds)], self.groups)

    def draws(self, terms: _Array) -> _Array | None:
        """Return sums over resampled groups, (draws, ...) of terms (n, ...); None for fewer than five groups."""
        groups = [self.groups[row] for row in self.rows]
        return group_draws(terms[self.rows], groups) if len(set(groups)) >= FEWEST_GROUPS else None

    def summary(self, terms: _Array, draws: _Array | None, score: _Score) -> dict[str, Any]:
        """Return a score of all rows (``pooled``), its 95 % ``interval``, and of the rows of each of the ``folds``."""
        return {
            "pooled": _number(score(terms[self.rows].sum(axis=0))) if len(self.rows) else None,
            "interval": None if draws is None else interval(score(draws)),
            "folds": [_number(score(terms[rows].sum(axis=0))) if len(rows) else None for rows in self.folds],
        }


def value_scores(
    true: Any, predicted: Any, split: Split, *, weights: Sequence[float] | None = None, head: Any = None
) -> dict[str, Any]:
    """Return R² and the mean absolute error of one target, or of t targets together, over the values that are known.

    Args:
        true: (n,) or (n, t), NaN where a value is missing.
        predicted: of the same shape, NaN where a row was not predicted.
        split: the folds and groups of the n rows.
        weights: t weights, for one R² over all targets as of :func:`dinoneck.training.weighted_r2`; None = the mean of
            the targets' R².
        head: for a baseline, the head's predictions, to compare with.

    Returns:
        ``r2`` and ``mae``, each with ``pooled``, ``interval`` (None for fewer than five groups) and ``folds``; R² is
        None where the values are all equal. ``images``: how many rows the scores rest on, those with a known and
        predicted value. With ``head`` also ``head_minus``, see :func:`class_scores`.

    Raises:
        DataError: for infinite values, or shapes that differ.
    """
    given = _alike(true, predicted, head)
    values, *methods = (each.reshape(len(each), -1) for each in given)
    known = np.all(np.isfinite([values, *methods]), axis=0)  # (n, t)
    split, shares = split.where(known.any(axis=1)), None if weights is None else np.asarray(weights, np.float64)
    held_out = np.where(known, values, np.nan)[split.rows]
    level = mean_known(held_out.T if shares is None else held_out.reshape(1, -1))
    terms = []
    for pred in methods:
        squares = r2_terms(values - level, (pred - values) ** 2)  # (n, 4, t), the first of the four are ones
        each = np.concatenate([squares, np.abs(pred - values)[:, None]], axis=1)
        terms.append(np.where(known[:, None], each, 0.0))
    return _scored(terms, split, {**_VALUE_SCORES, "r2": lambda sums: 1.0 - unexplained(sums[..., :4, :], shares)})


def map_scores(true: Any, predicted: Any, split: Split, *, head: Any = None) -> dict[str, Any]:
    """Return R² and the mean absolute error over the patches of all images, where they are known.

    Args:
        true: (n, rows, cols), NaN where a patch has no label.
        predicted: of the same shape, NaN where an image was not predicted.
        split: the folds and groups of the n images.
        head: for a baseline, the head's predictions, to compare with.

    Returns:
        As :func:`value_scores`; ``images`` counts images with a known patch.
    """
    maps = [each.reshape(len(each), -1) for each in _alike(true, predicted, head)]
    known = np.all(np.isfinite(maps), axis=0)  # (n, patches)
    values, *methods = (np.where(known, each, 0.0) for each in maps)
    split = split.where(known.any(axis=1))
    level = quotient(values[split.rows].sum(), known[split.rows].sum())
    centred = np.where(known, values - level, 0.0)
    terms = [
        np.stack([known, centred, centred**2, (each - values) ** 2, np.abs(each - values)], axis=1).sum(axis=2)
        for each in methods
    ]  # (n, 5)
    return _scored([each[..., None] for each in terms], split, _VALUE_SCORES)


def class_scores(true: Any, predicted: Any, labels: Sequence[str], split: Split, *, head: Any = None) -> dict[str, Any]:
    """Return accuracy, F1 and the confusion matrix of one classification target.

    Args:
        true: (n,) class indices, -1 where the class is missing.
        predicted: (n,) class indices, -1 where a row was not predicted.
        labels: of the K classes.
        split: the folds and groups of the n rows.
        head: for a baseline, the head's predictions (n,), to compare with.

    Returns:
        ``labels``, ``accuracy`` and ``macro_f1`` (each with ``pooled``, ``interval`` and ``folds``), ``f1`` (label ->
        number, None for a class that occurs nowhere), ``confusion_matrix`` (K x K counts, rows are true classes) and
        ``images``, how many rows the scores rest on.
        With ``head`` also ``head_minus``: score -> 95 % interval of the head's score minus this one, None for fewer
        than five groups.

    Raises:
        DataError: for values that are not class indices, or shapes that differ.
    """
    classes, *methods = _alike(true, predicted, head)
    kinds = np.arange(len(labels))
    split = split.where(np.all([each >= 0 for each in (classes, *methods)], axis=0))
    counted = (each[split.rows].astype(np.int64) for each in (classes, methods[0]))
    matrix = confusion_matrix(*counted, num_classes=len(labels))
    is_true = classes[:, None] == kinds
    terms = [
        np.stack([is_true & is_predicted, is_true, is_predicted], axis=1).astype(np.float64)
        for is_predicted in (each[:, None] == kinds for each in methods)
    ]
    scores = {"accuracy": share_right, "macro_f1": lambda counts: mean_known(class_f1(counts))}
    return _scored(terms, split, scores) | _of_matrix(matrix, labels, "f1", class_f1)


def mask_scores(matrices: Any, labels: Sequence[str], split: Split, *, head: Any = None) -> dict[str, Any]:
    """Return the mean IoU, the pixel accuracy and the confusion matrix of one segmentation target.

    Args:
        matrices: (n, K, K) counts of pixels or cells per image, see :func:`dinoneck.training.confusion_matrix`; all 0
            for an image that was not predicted or has no labels.
        labels: of the K classes.
        split: the folds and groups of the n images.
        head: for a baseline, the matrices of the head, to compare with.

    Returns:
        ``labels``, ``mean_iou`` and ``pixel_accuracy`` (each with ``pooled``, ``interval`` and ``folds``), ``iou``
        (label -> number, None for a class that occurs nowhere), ``confusion_matrix``, ``images``, and with ``head``
        ``head_minus``; see :func:`class_scores`. The counts of all images are added before a score is computed.

    Raises:
        DataError: for shapes that differ.
    """
    methods = _alike(matrices, head)
    split = split.where(np.all([each.any(axis=(1, 2)) for each in methods], axis=0))
    matrix = methods[0][split.rows].sum(axis=0).astype(np.int64)
    scores = {"mean_iou": lambda counts: mean_known(class_iou(counts)), "pixel_accuracy": share_right}
    return _scored([class_counts(each) for each in methods], split, scores) | _of_matrix(
        matrix, labels, "iou", class_iou
    )


def _alike(*tables: Any) -> list[_Array]:
    """The given tables in float64.

    Raises:
        DataError: for infinite values, or shapes that differ.
    """
    given = [np.asarray(each, np.float64) for each in tables if each is not None]
    if any(each.shape != given[0].shape or np.isinf(each).any() for each in given):
        raise DataError(f"targets and predictions {[each.shape for each in given]} differ in shape or are infinite")
    return given


def _scored(terms: Sequence[_Array], split: Split, scores: Mapping[str, _Score]) -> dict[str, Any]:
    """The scores of a method, and where terms of the head follow its own, what the head's are better by."""
    draws = split.draws(np.stack(terms, axis=1))
    own = None if draws is None else draws[:, 0]
    found: dict[str, Any] = {name: split.summary(terms[0], own, score) for name, score in scores.items()}
    found["images"] = len(split.rows)
    if len(terms) > 1:
        found["head_minus"] = {
            name: None if draws is None else interval(score(draws[:, 1]) - score(draws[:, 0]))
            for name, score in scores.items()
        }
    return found


def _of_matrix(matrix: _Array, labels: Sequence[str], name: str, score: _Score) -> dict[str, Any]:
    """A confusion matrix, its labels, and the score of each class."""
    each = dict(zip(labels, map(_number, score(class_counts(matrix))), strict=True))
    return {"labels": list(labels), name: each, "confusion_matrix": matrix.tolist()}


def _number(score: Any) -> float | None:
    return None if np.isnan(score) else float(score)
