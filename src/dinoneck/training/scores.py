"""R², confusion matrices and their scores; of out-of-fold predictions also per fold and with intervals over groups."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dinoneck.errors import DataError, some_of
from dinoneck.training.targets import as_array

Table = Mapping[str, Any] | np.ndarray[Any, Any] | Sequence[Any]
_Array = np.ndarray[Any, Any]
_Floats = np.ndarray[Any, np.dtype[np.float64]]
FEWEST_GROUPS = 5  # with fewer, an interval of two equal methods leaves out 0 in a quarter of the cases or more
_Score = Callable[[_Array], _Array]  # sums over rows (..., *terms) -> scores (...)
_VALUE_SCORES: dict[str, _Score] = {  # of sums (..., 5, t): the terms of R², and absolute errors
    "r2": lambda sums: 1.0 - unexplained(sums[..., :4, :]),
    "mae": lambda sums: mean_known(quotient(sums[..., 4, :], sums[..., 0, :])),
}


def r2(targets: Any, predictions: Any) -> float:
    """Return 1 - SS_res / SS_tot of one target, as scikit-learn's ``r2_score``; 0 is as good as its mean.

    Args:
        targets: the true values, (n,) or (n, 1), or ``{id: value}``.
        predictions: the same; where they have ids (the index of a Series), they are matched by id.

    Raises:
        DataError: for NaN, several targets, different lengths or ids, or targets that are all equal.

    Examples:
        >>> r2([1.0, 2.0, 3.0], [1.0, 2.0, 4.0])
        0.5
    """
    return weighted_r2({"target": targets}, {"target": predictions}, {"target": 1.0})


def weighted_r2(targets: Table, predictions: Table, weights: Mapping[str, float] | Sequence[float]) -> float:
    """Return the weighted R² of all targets together.

    Every (image, target) pair is one row with its target's weight; there is one global weighted mean, not one
    per target: 1 - sum w (y - p)² / sum w (y - mean_w)².

    Args:
        targets: the true values: ``{target: n values}``, ``{target: {id: value}}`` or a DataFrame, or an (n, t) array.
        predictions: the same; where both have ids, they are matched by id.
        weights: ``{target: weight}``, or t weights.

    Raises:
        DataError: for NaN, lengths or names that do not fit, weights that are negative or all 0, or constant targets.

    Examples:
        >>> targets = {"a": [1, 2], "b": [10, 10]}
        >>> round(weighted_r2(targets, {"a": [1, 2], "b": [9, 9]}, {"a": 0.5, "b": 0.5}), 4)
        0.9725
    """
    tables: list[Any] = [targets, predictions, weights]
    if any(hasattr(table, "keys") for table in tables):
        names = [sorted(map(str, table)) if hasattr(table, "keys") else type(table).__name__ for table in tables]
        if not names[0] == names[1] == names[2]:
            raise DataError(
                f"targets, predictions and weights hold {names[0]}, {names[1]} and {names[2]}; expected one"
            )
        pairs = [_matched(tables[0][name], tables[1][name]) for name in tables[0]]
        tables[2] = [tables[2][name] for name in tables[0]]
        shapes = [each.shape for pair in pairs for each in pair]
        if {*shapes} - {(pairs[0][0].size,), (pairs[0][0].size, 1)}:
            raise DataError(f"targets and predictions have shapes {shapes}; expected (n,) or (n, 1) each")
        tables[:2] = (np.stack([each.reshape(-1) for each in side], axis=1) for side in zip(*pairs, strict=True))
    true, pred, shares = (as_array(table).astype(np.float64) for table in tables)
    if pred.shape != true.shape or true.ndim != 2 or shares.shape != true.shape[1:]:
        raise DataError(f"targets {true.shape}, predictions {pred.shape} and weights {shares.shape} do not fit")
    for what, x in (("targets", true), ("predictions", pred), ("weights", shares)):
        if not np.isfinite(x).all():
            raise DataError(f"some of the {what} are not finite; leave their rows out")
    if not true.size or (shares < 0).any() or not shares.sum():
        raise DataError(f"there is nothing to score: {true.shape} targets with weights {shares.tolist()}")
    terms = r2_terms(true - np.average(true.mean(axis=0), weights=shares), (true - pred) ** 2)
    lost = float(unexplained(terms.sum(axis=0), shares))
    if np.isnan(lost):
        raise DataError("the targets are all equal; R² is not defined")
    return 1.0 - lost


def r2_terms(centred: _Floats, squares: _Floats) -> _Floats:
    """Return what each row adds to the sums of :func:`unexplained`, (n, 4, t).

    Args:
        centred: known values less their level, (n, t), so that no digits are lost; one level for all weighted targets.
        squares: squared errors, or differences of them, (n, t).
    """
    return np.stack([np.ones_like(centred), centred, centred**2, squares], axis=1)


def unexplained(sums: _Floats, weights: _Floats | None = None) -> _Floats:
    """Return sum(squares) / SS_tot, which is 1 - R² for squared errors; NaN where no values of a target differ.

    Args:
        sums: (..., 4, t), of :func:`r2_terms`.
        weights: t weights, for one quotient over all targets; None = the mean over the targets that vary.
    """
    if weights is not None:
        sums = (sums * weights).sum(axis=-1, keepdims=True)
    count, total, square, unlike = np.moveaxis(sums, -2, 0)
    spread = square - quotient(total**2, count)
    spread = np.where(spread > 1e-12 * square, spread, np.nan)
    return mean_known(unlike / spread)


def mean_known(scores: _Floats) -> _Floats:
    """Return the mean over the last axis without NaN; NaN where all are."""
    known = ~np.isnan(scores)
    return quotient(np.where(known, scores, 0.0).sum(axis=-1), known.sum(axis=-1))


def group_draws(terms: Any, groups: Sequence[Hashable], resamples: int = 1000) -> _Floats:
    """Return sums over rows of groups drawn with replacement, (resamples, ...).

    Args:
        terms: what each row adds, (n, ...).
        groups: one label per row, two labels or more; the rows of a group are drawn together.
        resamples: draws.
    """
    number = {label: place for place, label in enumerate(dict.fromkeys(groups))}
    sums = np.zeros((len(number), *terms.shape[1:]))
    np.add.at(sums, np.array([number[label] for label in groups]), terms)
    draws = np.random.default_rng(0).multinomial(len(number), np.full(len(number), 1 / len(number)), resamples)
    found: _Floats = np.einsum("rg,g...->r...", draws, sums)
    return found


def interval(scores: _Floats) -> list[float] | None:
    """Return the 2.5 % and 97.5 % quantiles of the scores of draws; None where all are NaN."""
    known = scores[~np.isnan(scores)]
    return np.quantile(known, (0.025, 0.975)).tolist() if known.size else None


def confusion_matrix(
    targets: Any, predictions: Any, *, num_classes: int, ignore_index: int | None = None
) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Count how often each true class was predicted as each class; matrices of batches add up.

    Args:
        targets: the true class indices, a tensor or an array of any shape.
        predictions: class indices of the same shape.
        num_classes: K.
        ignore_index: a true class that counts for nothing; it may lie outside 0 ... K-1.

    Returns:
        (K, K) int64: rows are the true classes, columns the predicted ones.

    Raises:
        DataError: if shapes differ, or an index that counts is not an integer or outside 0 ... K-1.

    Examples:
        >>> confusion_matrix([0, 0, 1, 255], [0, 1, 1, 0], num_classes=2, ignore_index=255)
        array([[1, 1],
               [0, 1]])
    """
    true, pred = as_array(targets), as_array(predictions)
    if pred.shape != true.shape:
        raise DataError(f"targets {true.shape} and predictions {pred.shape} differ in shape")
    keep = np.ones(true.shape, bool) if ignore_index is None else true != ignore_index
    for what, values in (("targets", true), ("predictions", pred)):
        if values.size and values.dtype.kind not in "iu":
            raise DataError(f"the {what} are {values.dtype}; expected integer class indices (argmax of logits)")
        if (outside := values[keep & ((values < 0) | (values >= num_classes))]).size:
            raise DataError(f"the {what} hold {outside[0]}; expected 0 to {num_classes - 1}, or ignore_index=")
    cells = true[keep].astype(np.int64) * num_classes + pred[keep].astype(np.int64)
    return np.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes).astype(np.int64)


def class_counts(matrices: Any) -> _Floats:
    """Return what the scores of confusion matrices (..., K, K) need, (..., 3, K): right, true and predicted counts."""
    counts = np.asarray(matrices, np.float64)
    return np.stack([np.diagonal(counts, axis1=-2, axis2=-1), counts.sum(axis=-1), counts.sum(axis=-2)], axis=-2)


def share_right(counts: _Floats) -> _Floats:
    """Return the accuracy of class counts (..., 3, K)."""
    found: _Floats = counts[..., 0, :].sum(axis=-1) / counts[..., 1, :].sum(axis=-1)
    return found


def class_f1(counts: _Floats) -> _Floats:
    """Return the F1 of each class, (..., K), of class counts (..., 3, K); NaN where a class occurs nowhere."""
    right, true, predicted = np.moveaxis(counts, -2, 0)
    return quotient(2 * right, true + predicted)


def class_iou(counts: _Floats) -> _Floats:
    """Return the IoU of each class, (..., K), of class counts (..., 3, K); NaN where a class occurs nowhere."""
    right, true, predicted = np.moveaxis(counts, -2, 0)
    return quotient(right, true + predicted - right)


def quotient(part: _Floats, whole: _Floats) -> _Floats:
    """Return part / whole, NaN where the whole is 0."""
    found: _Floats = part / np.where(whole > 0, whole, np.nan)
    return found


def _matched(targets: Any, predictions: Any) -> tuple[_Array, _Array]:
    """Both as arrays, row by row: matched by id where one of them has ids; those of an array are 0, 1, ... n - 1.

    Raises:
        DataError: if the ids differ, or one stands twice.
    """
    if not hasattr(targets, "items") and not hasattr(predictions, "items"):
        return as_array(targets), as_array(predictions)
    true, pred = (dict(x.items()) if hasattr(x, "items") else dict(enumerate(x)) for x in (targets, predictions))
    if odd := sorted(true.keys() ^ pred.keys(), key=str):
        raise DataError(f"the ids {some_of([*map(repr, odd)], 3)} are not in both targets and predictions")
    if len(true) < len(targets) or len(pred) < len(predictions):
        raise DataError("an id stands twice in the targets or the predictions; keep one row for each id")
    return as_array([*map(as_array, true.values())]), as_array([as_array(pred[key]) for key in true])


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
        true: (n,), (n, t), or maps (n, rows, cols) of one target, NaN where a value is missing.
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
    shape = (len(given[0]), *((1, -1) if given[0].ndim > 2 else (-1, 1)))
    values, *methods = (each.reshape(shape) for each in given)  # (n, t, patches)
    known = np.all(np.isfinite([values, *methods]), axis=0)
    split, shares = split.where(known.any(axis=(1, 2))), None if weights is None else np.asarray(weights, np.float64)
    held_out = np.where(known, values, np.nan)[split.rows].swapaxes(0, 1)
    level = mean_known(held_out.reshape(1 if shares is not None else len(held_out), -1))[:, None]
    terms = []
    for pred in methods:
        squares = r2_terms(values - level, (pred - values) ** 2)  # (n, 4, t, patches), the first of the four are ones
        each = np.concatenate([squares, np.abs(pred - values)[:, None]], axis=1)
        terms.append(np.where(known[:, None], each, 0.0).sum(axis=-1))
    return _scored(terms, split, {**_VALUE_SCORES, "r2": lambda sums: 1.0 - unexplained(sums[..., :4, :], shares)})


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
