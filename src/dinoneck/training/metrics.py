"""R² of values, the scores of confusion matrices, and intervals by a bootstrap over groups."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from dinoneck.errors import DataError
from dinoneck.training.targets import as_array as _array

Table = Mapping[str, Any] | np.ndarray[Any, Any] | Sequence[Any]
_Floats = np.ndarray[Any, np.dtype[np.float64]]
_Counts = np.ndarray[Any, np.dtype[np.int64]]


def r2(targets: Any, predictions: Any) -> float:
    """Return 1 - SS_res / SS_tot of one target, as scikit-learn's ``r2_score``; 0 is as good as its mean.

    Args:
        targets: the true values, (n,) or (n, 1), or ``{id: value}``.
        predictions: the same; where both have ids (also a Series whose index is not 0, 1, ...), they are matched by id.

    Raises:
        DataError: for NaN, several targets, different lengths or ids, or targets that are all equal.

    Examples:
        >>> r2([1.0, 2.0, 3.0], [1.0, 2.0, 4.0])
        0.5
    """
    true, pred = _matched_values(targets, predictions)
    return _score(_stack([true], "targets"), _stack([pred], "predictions"), np.ones(1))


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
    targets, predictions = _by_name(targets), _by_name(predictions)
    if isinstance(targets, Mapping):
        names = list(targets)
        for what, given in (("predictions", predictions), ("weights", weights)):
            if not isinstance(given, Mapping) or set(given) != set(names):
                held = sorted(given) if isinstance(given, Mapping) else type(given).__name__
                raise DataError(f"the {what} hold {held}; the targets hold {sorted(names)}")
        pairs = [_matched_values(targets[name], predictions[name]) for name in names]  # type: ignore[call-overload]
        true, pred = _stack([t for t, _ in pairs], "targets"), _stack([p for _, p in pairs], "predictions")
        shares = np.array([float(weights[name]) for name in names])  # type: ignore[call-overload]
    else:
        if isinstance(predictions, Mapping) or isinstance(weights, Mapping):
            raise DataError("targets, predictions and weights must all be dicts by target name, or none of them")
        true, pred, shares = (_array(given).astype(np.float64) for given in (targets, predictions, weights))
    return _score(true, pred, shares)


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


def group_draws(terms: Any, groups: Sequence[Hashable], resamples: int = 1000, seed: int = 0) -> _Floats:
    """Return sums over rows of groups drawn with replacement, (resamples, ...).

    Args:
        terms: what each row adds, (n, ...).
        groups: one label per row; the rows of a group are drawn together.
        resamples: draws.
        seed: of the draws.

    Raises:
        DataError: if there are fewer than two groups.
    """
    number = {label: place for place, label in enumerate(dict.fromkeys(groups))}
    if len(number) < 2:
        raise DataError(f"there is {len(number)} group; an interval needs two or more")
    sums = np.zeros((len(number), *terms.shape[1:]))
    np.add.at(sums, np.array([number[label] for label in groups]), terms)
    draws = np.random.default_rng(seed).multinomial(len(number), np.full(len(number), 1 / len(number)), resamples)
    found: _Floats = np.einsum("rg,g...->r...", draws, sums)
    return found


def interval(scores: _Floats) -> list[float] | None:
    """Return the 2.5 % and 97.5 % quantiles of the scores of draws; None where all are NaN."""
    known = scores[~np.isnan(scores)]
    return np.quantile(known, (0.025, 0.975)).tolist() if known.size else None


def confusion_matrix(
    targets: Any, predictions: Any, *, num_classes: int, ignore_index: int | None = None, mask: Any = None
) -> _Counts:
    """Count how often each true class was predicted as each class; matrices of batches add up.

    Args:
        targets: the true class indices, a tensor or an array of any shape; or ``{id: class index}``.
        predictions: class indices of the same shape; where both have ids, they are matched by id.
        num_classes: K.
        ignore_index: a true class that counts for nothing; it may lie outside 0 ... K-1.
        mask: of the same shape, True where a place counts; None = everywhere.

    Returns:
        (K, K) int64: rows are the true classes, columns the predicted ones.

    Raises:
        DataError: if shapes differ, also those of the maps of several ids, if an index that counts is not an integer
            or outside 0 ... K-1, or the mask holds NaN.

    Examples:
        >>> confusion_matrix([0, 0, 1, 255], [0, 1, 1, 0], num_classes=2, ignore_index=255)
        array([[1, 1],
               [0, 1]])
    """
    if isinstance(num_classes, bool) or not isinstance(num_classes, int | np.integer) or num_classes < 1:
        raise DataError(f"num_classes is {num_classes!r}; expected a whole number of 1 or more")
    true, pred = map(_one_size, _matched_values(targets, predictions))
    keep = np.ones(true.shape, bool) if mask is None else _array(mask)
    if keep.dtype.kind == "f" and np.isnan(keep).any():
        raise DataError(f"the mask holds {int(np.isnan(keep).sum())} NaN; expected True where a place counts, or False")
    keep = keep != 0
    if pred.shape != true.shape or keep.shape != true.shape:
        raise DataError(f"targets {true.shape}, predictions {pred.shape} and mask {keep.shape} differ in shape")
    if ignore_index is not None:
        keep &= true != ignore_index
    for what, values in (("targets", true), ("predictions", pred)):
        if values.size and values.dtype.kind not in "iu":
            raise DataError(f"the {what} are {values.dtype}; expected integer class indices (argmax of logits)")
        counted = values[keep]
        if counted.size and (counted.min() < 0 or counted.max() >= num_classes):
            raise DataError(
                f"the {what} reach from {counted.min()} to {counted.max()}; expected 0 to {num_classes - 1}, and other "
                "values under ignore_index= or mask="
            )
    cells = true[keep].astype(np.int64) * num_classes + pred[keep].astype(np.int64)
    return np.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes).astype(np.int64)


def accuracy(matrix: Any) -> float:
    """Return the share of the counts whose class was predicted: pixel accuracy where pixels were counted.

    Args:
        matrix: (K, K) counts, rows true and columns predicted, see :func:`confusion_matrix`.

    Raises:
        DataError: if it is not square, holds no count, or holds negative or non-finite numbers.

    Examples:
        >>> accuracy([[3, 1], [0, 4]])
        0.875
    """
    return float(share_right(_counts(matrix)))


def f1_scores(matrix: Any) -> tuple[float, list[float | None]]:
    """Return macro F1, the mean over classes, and the F1 of every class; None where a class occurs nowhere.

    F1 is 2 TP / (2 TP + FP + FN). The mean is over the classes that occur in truth or prediction.

    Args:
        matrix: (K, K) counts, rows true and columns predicted, see :func:`confusion_matrix`.

    Raises:
        DataError: if it is not square, holds no count, or holds negative or non-finite numbers.

    Examples:
        >>> f1_scores([[1, 1, 0], [0, 2, 0], [0, 0, 0]])
        (0.7333333333333334, [0.6666666666666666, 0.8, None])
    """
    return _mean_and_each(class_f1(_counts(matrix)))


def mean_iou(matrix: Any) -> tuple[float, list[float | None]]:
    """Return the mean intersection over union, and that of every class; None where a class occurs nowhere.

    The mean is over the classes that occur in truth or prediction.

    Args:
        matrix: (K, K) counts, rows true and columns predicted, see :func:`confusion_matrix`.

    Raises:
        DataError: if it is not square, holds no count, or holds negative or non-finite numbers.

    Examples:
        >>> mean_iou([[3, 1, 0], [0, 2, 0], [0, 0, 0]])
        (0.7083333333333333, [0.75, 0.6666666666666666, None])
    """
    return _mean_and_each(class_iou(_counts(matrix)))


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


def _counts(matrix: Any) -> _Floats:
    counts = _array(matrix).astype(np.float64)
    if counts.ndim != 2 or counts.shape[0] != counts.shape[1]:
        raise DataError(f"the confusion matrix has shape {counts.shape}; expected (classes, classes)")
    if not np.isfinite(counts).all() or (counts < 0).any() or not counts.any():
        raise DataError(
            "the confusion matrix holds no count, or negative or non-finite ones; there is nothing to score"
        )
    return class_counts(counts)


def _mean_and_each(scores: _Floats) -> tuple[float, list[float | None]]:
    each = [None if np.isnan(score) else float(score) for score in scores]
    return float(mean_known(scores)), each


def _matched_values(targets: Any, predictions: Any) -> tuple[Any, Any]:
    """Return targets and predictions row by row: matched by id where both have ids, else as they are.

    Raises:
        DataError: if only one of them has ids, or an id is missing in one of them.
    """
    true, pred = _values_by_id(targets), _values_by_id(predictions)
    if true is None or pred is None:
        if true is not None or pred is not None:
            raise DataError(
                f"targets are {type(targets).__name__} and predictions {type(predictions).__name__}; expected ids on "
                "both sides, {id: value} or a Series, or on neither (series.to_numpy())"
            )
        return targets, predictions
    if odd := sorted(true.keys() ^ pred.keys(), key=str):
        raise DataError(f"{len(odd)} ids are not in both targets and predictions, the first is {odd[0]!r}")
    return [_array(value) for value in true.values()], [_array(pred[key]) for key in true]


def _one_size(values: Any) -> Any:
    """The values as one array; a list of maps must have one size."""
    shapes = {np.shape(each) for each in values} if isinstance(values, list) else set()
    if len(shapes) > 1:
        raise DataError(
            f"the maps have the sizes {', '.join(map(str, sorted(shapes)))}; expected one size: count each image alone "
            "and add the matrices"
        )
    return _array(values)


def _values_by_id(values: Any) -> Mapping[Any, Any] | None:
    """The values by id; None where they have none: an array, or a Series or frame whose index is 0, 1, ... n - 1."""
    if isinstance(values, Mapping):
        return values
    if not (hasattr(values, "to_numpy") and hasattr(values, "index")) or list(values.index) == list(range(len(values))):
        return None
    if len(found := dict(zip(values.index, values.to_numpy(), strict=True))) != len(values):
        raise DataError("the index of a Series holds an id twice; keep one row for each id")
    return found


def _by_name(table: Any) -> Any:
    """The columns of a DataFrame by name; other tables as they are."""
    is_frame = hasattr(table, "columns") and hasattr(table, "index")
    return {name: table[name] for name in table.columns} if is_frame else table


def _score(true: _Floats, pred: _Floats, shares: _Floats) -> float:
    if pred.shape != true.shape or true.ndim != 2 or shares.shape != true.shape[1:]:
        raise DataError(
            f"targets {true.shape}, predictions {pred.shape} and weights {shares.shape} do not fit; expected (n, t), "
            "(n, t) and (t,)"
        )
    for what, values in (("targets", true), ("predictions", pred), ("weights", shares)):
        if not np.isfinite(values).all():
            raise DataError(f"{int((~np.isfinite(values)).sum())} of the {what} are not finite")
    if not true.size or (shares < 0).any() or not shares.sum():
        raise DataError(f"nothing to score: {true.shape} targets with weights {shares.tolist()}")
    mean = (true * shares).sum() / (len(true) * shares.sum())
    spread = (shares * (true - mean) ** 2).sum()
    if spread <= 0:
        raise DataError("the targets are all equal; R² is not defined")
    return float(1.0 - (shares * (true - pred) ** 2).sum() / spread)


def _stack(columns: Sequence[Any], what: str) -> _Floats:
    if not columns:
        raise DataError(f"the {what} hold no target")
    arrays = [_array(column).astype(np.float64) for column in columns]
    for array in arrays:
        if array.shape not in ((array.size,), (array.size, 1)):
            raise DataError(
                f"the {what} of one target have shape {array.shape}; expected (n,) or (n, 1). Score one column at a "
                "time, or all with weighted_r2(targets, predictions, weights)"
            )
    if len({len(array) for array in arrays}) > 1:
        raise DataError(f"the {what} differ in length: {[len(array) for array in arrays]}")
    return np.stack([array.reshape(-1) for array in arrays], axis=1)
