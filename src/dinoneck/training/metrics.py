"""R² of values, confusion matrices and their scores, and intervals by a bootstrap over groups."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from dinoneck.errors import DataError, some_of
from dinoneck.training.targets import as_array

Table = Mapping[str, Any] | np.ndarray[Any, Any] | Sequence[Any]
_Array = np.ndarray[Any, Any]
_Floats = np.ndarray[Any, np.dtype[np.float64]]


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
        if odd := [each.shape for pair in pairs for each in pair if each.shape not in ((each.size,), (each.size, 1))]:
            raise DataError(f"the values of one target have shape {odd[0]}; expected (n,) or (n, 1)")
        if len({each.size for pair in pairs for each in pair}) != 1:
            raise DataError(f"the targets have different lengths: {[[each.size for each in pair] for pair in pairs]}")
        tables[:2] = (np.stack([each.reshape(-1) for each in side], axis=1) for side in zip(*pairs, strict=True))
    true, pred, shares = (as_array(table).astype(np.float64) for table in tables)
    if pred.shape != true.shape or true.ndim != 2 or shares.shape != true.shape[1:]:
        raise DataError(
            f"targets {true.shape}, predictions {pred.shape} and weights {shares.shape} do not fit; expected (n, t), "
            "(n, t) and (t,)"
        )
    if odd := [what for what, x in (("targets", true), ("predictions", pred), ("weights", shares))
               if not np.isfinite(x).all()]:  # fmt: skip
        raise DataError(f"some of the {odd[0]} are not finite; leave their rows out")
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
    targets: Any, predictions: Any, *, num_classes: int, ignore_index: int | None = None, mask: Any = None
) -> np.ndarray[Any, np.dtype[np.int64]]:
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
        DataError: if shapes differ, an index that counts is not an integer or outside 0 ... K-1, or the mask holds NaN.

    Examples:
        >>> confusion_matrix([0, 0, 1, 255], [0, 1, 1, 0], num_classes=2, ignore_index=255)
        array([[1, 1],
               [0, 1]])
    """
    true, pred = _matched(targets, predictions)
    keep = np.ones(true.shape, bool) if mask is None else as_array(mask)
    if pred.shape != true.shape or keep.shape != true.shape:
        raise DataError(f"targets {true.shape}, predictions {pred.shape} and mask {keep.shape} differ in shape")
    if keep.dtype.kind == "f" and np.isnan(keep).any():
        raise DataError("the mask holds NaN; expected True where a place counts, or False")
    keep = (keep != 0) & (True if ignore_index is None else true != ignore_index)
    for what, values in (("targets", true), ("predictions", pred)):
        if values.size and values.dtype.kind not in "iu":
            raise DataError(f"the {what} are {values.dtype}; expected integer class indices (argmax of logits)")
        if (outside := values[keep & ((values < 0) | (values >= num_classes))]).size:
            raise DataError(
                f"the {what} hold {outside[0]}; expected 0 to {num_classes - 1}, and other values under ignore_index= "
                "or mask="
            )
    cells = true[keep].astype(np.int64) * num_classes + pred[keep].astype(np.int64)
    return np.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes).astype(np.int64)


def mean_iou(matrix: Any) -> tuple[float, list[float | None]]:
    """Return the mean intersection over union, and that of every class; None where a class occurs nowhere.

    The mean is over the classes that occur in truth or prediction.

    Args:
        matrix: (K, K) counts, rows true and columns predicted, see :func:`confusion_matrix`.

    Raises:
        DataError: if it is not square, or holds no count.

    Examples:
        >>> mean_iou([[3, 1, 0], [0, 2, 0], [0, 0, 0]])
        (0.7083333333333333, [0.75, 0.6666666666666666, None])
    """
    counts = as_array(matrix).astype(np.float64)
    if counts.ndim != 2 or counts.shape[0] != counts.shape[1] or not counts.sum() > 0:
        raise DataError(f"the confusion matrix {counts.shape} is not square, or holds no count")
    each = class_iou(class_counts(counts))
    return float(mean_known(each)), [None if np.isnan(score) else float(score) for score in each]


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
    """Both as arrays, row by row: matched by id where they have ids, else as they are.

    Raises:
        DataError: if only one of them has ids, or the ids differ.
    """
    true, pred = _by_id(targets), _by_id(predictions)
    if true is None and pred is None:
        return as_array(targets), as_array(predictions)
    if true is None or pred is None:
        given = f"targets are {type(targets).__name__} and predictions {type(predictions).__name__}"
        raise DataError(f"{given}; expected ids on both sides, {{id: value}} or a Series, or on neither")
    if odd := sorted(true.keys() ^ pred.keys(), key=str):
        raise DataError(f"the ids {some_of([*map(repr, odd)], 3)} are not in both targets and predictions")
    return as_array([*map(as_array, true.values())]), as_array([as_array(pred[key]) for key in true])


def _by_id(values: Any) -> Mapping[Any, Any] | None:
    """The values by id; None where they have none: an array, or a Series whose index is 0, 1, ... n - 1."""
    if isinstance(values, Mapping) or not (hasattr(values, "to_numpy") and hasattr(values, "index")):
        return values if isinstance(values, Mapping) else None
    if list(values.index) == list(range(len(values))):
        return None
    if not values.index.is_unique:
        raise DataError("the index of a Series holds an id twice; keep one row for each id")
    return dict(zip(values.index, values.to_numpy(), strict=True))
