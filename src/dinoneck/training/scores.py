"""R², confusion matrices and their scores; of out-of-fold predictions also per fold and with intervals over groups."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from dinoneck.data.arrays import as_array, by_id
from dinoneck.errors import DataError
from dinoneck.text import counted, some_of

Table = Mapping[str, Any] | np.ndarray[Any, Any] | Sequence[Any]
_Array = np.ndarray[Any, Any]
_Floats = np.ndarray[Any, np.dtype[np.float64]]
RESAMPLES = 1000
# with fewer, an interval of two equal methods leaves out 0 in a quarter of the cases or more
FEWEST_GROUPS = 5
_Score = Callable[[_Array], _Array]  # sums over rows (..., *terms) -> scores (...)
_Terms = tuple[list[_Floats], _Array, dict[str, _Score]]  # of each method; rows that count; scores


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
    targets: Table, predictions: Table, weights: Mapping[str, float] | Sequence[float]
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
    tables: list[Any] = [targets, predictions, weights]
    if any(hasattr(table, "keys") for table in tables):
        _check_names(targets, predictions, weights)
        pairs = [_matched(tables[0][name], tables[1][name]) for name in tables[2]]
        lengths = [len(true) for true, _ in pairs]
        if len({*lengths}) > 1:
            counts = ", ".join(f"{name} {n}" for name, n in zip(tables[2], lengths, strict=True))
            raise DataError(f"the targets differ in length: {counts}; expected one length")
        tables = [
            *(np.concatenate(side, axis=1) for side in zip(*pairs, strict=True)),
            [*tables[2].values()],
        ]
    true, pred, shares = (as_array(table).astype(np.float64) for table in tables)
    _check_arrays(true, pred, shares)
    terms = value_terms(true[..., None], pred[..., None], joint=True)
    lost = float(unexplained(terms.sum(axis=0), shares))
    if np.isnan(lost):
        raise DataError(
            f"all {counted(true.size, 'target')} are {true.flat[0]:g}, so that R² is not defined; "
            "score targets that vary"
        )
    return 1.0 - lost


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


def _check_arrays(true: _Floats, pred: _Floats, shares: _Floats) -> None:
    """Check targets and predictions (n, t) and the weights of t targets."""
    if true.ndim != 2:
        raise DataError(f"the targets have shape {true.shape}; expected (samples, targets)")
    if pred.shape != true.shape:
        raise DataError(
            f"the predictions have shape {pred.shape} and the targets {true.shape}; expected the "
            "same shape"
        )
    if shares.shape != true.shape[1:]:
        raise DataError(
            f"the weights have shape {shares.shape}; expected {true.shape[1:]}, one for each target"
        )
    for what, values in (("targets", true), ("predictions", pred), ("weights", shares)):
        if count := int((~np.isfinite(values)).sum()):
            raise DataError(
                f"{count} of the {what} {'is' if count == 1 else 'are'} not finite; leave out what "
                "is not known"
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


def _matched(targets: Any, predictions: Any) -> tuple[_Array, _Array]:
    """Both as columns (n, 1), matched by id where one of them has ids; those of an array are 0, 1, ... n - 1."""
    if hasattr(targets, "items") or hasattr(predictions, "items"):
        true = by_id(targets, "a column", _row_numbers(targets))
        pred = by_id(predictions, "a column", _row_numbers(predictions))
        if odd := [repr(image_id) for image_id in true.keys() ^ pred.keys()]:
            if hasattr(targets, "items") != hasattr(predictions, "items"):
                ids_of = "targets" if hasattr(targets, "items") else "predictions"
                raise DataError(
                    f"the {ids_of} alone have ids; expected {{id: value}} or a Series on both "
                    "sides, or on neither (series.to_numpy())"
                )
            raise DataError(
                f"{counted(len(odd), 'id')} not in both targets and predictions: {some_of(odd, 3)}"
            )
        targets, predictions = [*true.values()], [pred[image_id] for image_id in true]
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


def value_terms(values: _Floats, predictions: _Floats, *, joint: bool = False) -> _Floats:
    """Return what each row adds to the scores of values: known values, their sum and squares, and two errors.

    Args:
        values: (n, t, cells), NaN = missing; sums are of values less their level, so that no digits
            are lost.
        predictions: of the same shape.
        joint: one level for all targets, whose weighted mean a score needs.

    Returns:
        (n, 5, t).
    """
    known = np.isfinite(values) & np.isfinite(predictions)
    axes = (0, 1, 2) if joint else (0, 2)
    sums = np.where(known, values, 0.0).sum(axis=axes, keepdims=True)
    centred, errors = (
        values - quotient(sums, known.sum(axis=axes, keepdims=True)),
        predictions - values,
    )
    terms = np.stack([np.ones_like(values), centred, centred**2, errors**2, np.abs(errors)], axis=1)
    found: _Floats = np.where(known[:, None], terms, 0.0).sum(axis=-1)
    return found


def unexplained(sums: _Floats, weights: _Floats | None = None) -> _Floats:
    """Return SS_res / SS_tot, which is 1 - R²; NaN where no values of a target differ.

    Args:
        sums: (..., 5, t), of :func:`value_terms`.
        weights: t weights, for one quotient over all targets; None = the mean over the targets that
            vary.
    """
    if weights is not None:
        sums = (sums * weights).sum(axis=-1, keepdims=True)
    count, total, square, errors, _ = np.moveaxis(sums, -2, 0)
    spread = square - quotient(total**2, count)
    spread = np.where(spread > 1e-12 * square, spread, np.nan)
    return mean_known(errors / spread)


def mean_error(sums: _Floats) -> _Floats:
    """Return the mean absolute error, the mean over targets, of sums (..., 5, t)."""
    return mean_known(quotient(sums[..., 4, :], sums[..., 0, :]))


def mean_known(scores: _Floats) -> _Floats:
    """Return the mean over the last axis without NaN; NaN where all are."""
    known = ~np.isnan(scores)
    return quotient(np.where(known, scores, 0.0).sum(axis=-1), known.sum(axis=-1))


def confusion_matrix(
    true: Any, predicted: Any, num_classes: int
) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Count how often each true class was predicted as each class; matrices of batches add up.

    Args:
        true: class indices, a tensor or an array of any shape; -1 counts for nothing.
        predicted: class indices of the same shape.
        num_classes: K.

    Returns:
        (K, K) int64: rows are the true classes, columns the predicted ones.

    Raises:
        DataError: if an index is outside 0 ... K-1.

    Examples:
        >>> confusion_matrix([0, 0, 1, -1], [0, 1, 1, 0], num_classes=2)
        array([[1, 1],
               [0, 1]])
    """
    is_known = as_array(true) >= 0
    classes = [as_array(indices)[is_known].astype(np.int64) for indices in (true, predicted)]
    for what, indices in zip(("true", "predicted"), classes, strict=True):
        is_outside = (indices < 0) | (indices >= num_classes)
        if is_outside.any():
            raise DataError(
                f"{what} classes hold {indices[is_outside][0]}; expected 0 ... {num_classes - 1}"
            )
    return np.bincount(classes[0] * num_classes + classes[1], minlength=num_classes**2).reshape(
        num_classes, -1
    )


def map_confusion(true: Tensor, maps: Tensor) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return the confusion matrix of classes (B, ...), -1 = missing, and logits (B, K, ...) resized to their pixels."""
    if true.ndim > 1:
        maps = F.interpolate(maps, true.shape[1:], mode="bilinear")
    return confusion_matrix(true, maps.argmax(dim=1), maps.shape[1])


def class_counts(matrices: Any) -> _Floats:
    """Return what the scores of confusion matrices (..., K, K) need, (..., 3, K): right, true and predicted counts."""
    counts = np.asarray(matrices, np.float64)
    return np.stack(
        [np.diagonal(counts, axis1=-2, axis2=-1), counts.sum(axis=-1), counts.sum(axis=-2)], axis=-2
    )


def accuracy(counts: _Floats) -> _Floats:
    """Return the share of right predictions, of class counts (..., 3, K)."""
    right, true, _ = np.moveaxis(counts.sum(axis=-1), -1, 0)
    return quotient(right, true)


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


@dataclass(frozen=True)
class Split:
    """Which rows of a table were held out together, and which are resampled together.

    Attributes:
        folds: the rows that each fold held out.
        groups: one label per row of the table.
    """

    folds: Sequence[Any]
    groups: Sequence[Hashable]

    def draws(self, terms: _Floats, rows: _Array) -> _Floats | None:
        """Return 1000 sums of the rows' terms over groups drawn with replacement, (1000, ...); None for few groups."""
        labels = [self.groups[row] for row in rows]
        number = {label: place for place, label in enumerate(dict.fromkeys(labels))}
        if len(number) < FEWEST_GROUPS:
            return None
        sums = np.zeros((len(number), *terms.shape[1:]))
        np.add.at(sums, np.array([number[label] for label in labels]), terms[rows])
        draws = np.random.default_rng(0).multinomial(
            len(number), np.full(len(number), 1 / len(number)), RESAMPLES
        )
        found: _Floats = np.einsum("rg,g...->r...", draws, sums)
        return found


def method_scores(
    kind: str,
    true: Any,
    predicted: Any,
    split: Split,
    *,
    labels: Sequence[str] = (),
    weights: Sequence[float] | None = None,
    head: Any = None,
) -> dict[str, Any]:
    """Return the scores of one method on one target, or on t targets of values together.

    Args:
        kind: as of :class:`dinoneck.training.tasks.Scored`: ``value``, ``map``, ``class`` or
            ``mask``.
        true: of the n rows: values (n,), (n, t) or (n, t, rows, cols), NaN = missing; class indices
            (n,), -1 = missing; None of masks.
        predicted: of the same shape, NaN or -1 where a row was not predicted; of masks confusion
            matrices (n, K, K) of pixels, 0 for an image that was not predicted or has no labels.
        split: the folds and groups of the rows.
        labels: of the K classes.
        weights: t weights, for one R² over all targets as of :func:`dinoneck.training.weighted_r2`;
            None = the mean of the targets' R².
        head: for a baseline, the head's predictions, to compare with.

    Returns:
        ``images``: how many rows the scores rest on, those with a known and predicted value; name
        -> score with ``pooled``, its 95 % ``interval`` (None for fewer than five groups) and
        ``folds``. Of values ``r2`` and ``mae``; of classes ``accuracy`` and ``macro_f1``, of masks
        ``mean_iou`` and ``pixel_accuracy``, both with ``labels``, the score of each (``f1``,
        ``iou``; None for a class that occurs nowhere) and the ``confusion_matrix``. With ``head``
        also ``head_minus``: score -> interval of the head's score minus this one. The terms of all
        rows are added before a score is computed.

    Raises:
        DataError: for values that are infinite or no class indices, or shapes that differ.
    """
    given = [np.asarray(x, np.float64) for x in (true, predicted, head) if x is not None]
    for values in given:
        if values.shape != given[0].shape:
            raise DataError(
                f"the targets have shape {given[0].shape} and predictions {values.shape}; expected "
                "the same shape"
            )
        if np.isinf(values).any():
            raise DataError("targets or predictions hold infinite values; missing ones are NaN")
    terms, known, scores = _TERMS[kind](given, labels, weights)
    folds = [np.array([row for row in fold if known[row]], np.int64) for fold in split.folds]
    rows = np.sort(np.concatenate(folds))
    sums, draws = terms[0][rows].sum(axis=0), [split.draws(own, rows) for own in terms]
    found: dict[str, Any] = {"images": len(rows)}
    for name, score in scores.items():
        found[name] = {
            "pooled": _number(score(sums)),
            "interval": _interval(draws[:1], score),
            "folds": [_number(score(terms[0][fold].sum(axis=0))) for fold in folds],
        }
    if head is not None:
        found["head_minus"] = {name: _interval(draws, score) for name, score in scores.items()}
    if labels:
        name, score = ("iou", class_iou) if kind == "mask" else ("f1", class_f1)
        held = [x[rows] for x in given]
        matrix = (
            held[0].sum(axis=0)
            if kind == "mask"
            else confusion_matrix(held[0], held[1], len(labels))
        )
        each = dict(zip(labels, map(_number, score(sums)), strict=True))
        found |= {
            name: each,
            "labels": list(labels),
            "confusion_matrix": matrix.astype(int).tolist(),
        }
    return found


def _mask_terms(matrices: Sequence[_Array], labels: Any, weights: Any) -> _Terms:
    known: _Array = np.all([x.any(axis=(1, 2)) for x in matrices], axis=0)
    scores: dict[str, _Score] = {
        "mean_iou": lambda counts: mean_known(class_iou(counts)),
        "pixel_accuracy": accuracy,
    }
    return [class_counts(x) for x in matrices], known, scores


def _class_terms(given: Sequence[_Array], labels: Sequence[str], weights: Any) -> _Terms:
    known: _Array = np.all([x >= 0 for x in given], axis=0)
    true, *methods = (known[:, None] & (x[:, None] == np.arange(len(labels))) for x in given)
    scores: dict[str, _Score] = {
        "accuracy": accuracy,
        "macro_f1": lambda counts: mean_known(class_f1(counts)),
    }
    return (
        [np.stack([true & x, true, x], axis=1).astype(np.float64) for x in methods],
        known,
        scores,
    )


def _value_terms(given: Sequence[_Array], labels: Any, weights: Sequence[float] | None) -> _Terms:
    shape = (*given[0].shape, 1)[:2]
    missing: _Array = np.any(np.isnan(given), axis=0)
    shares = None if weights is None else np.asarray(weights, np.float64)
    values, *methods = (np.where(missing, np.nan, x).reshape(*shape, -1) for x in given)
    terms = [value_terms(values, x, joint=shares is not None) for x in methods]
    scores: dict[str, _Score] = {
        "r2": lambda sums: 1.0 - unexplained(sums, shares),
        "mae": mean_error,
    }
    known: _Array = np.any(~np.isnan(values), axis=(1, 2))
    return terms, known, scores


_TERMS = {"value": _value_terms, "map": _value_terms, "class": _class_terms, "mask": _mask_terms}


def _interval(draws: Sequence[_Floats | None], score: _Score) -> list[float] | None:
    """The 95 % interval of the score of draws, or of the second draws less the first; None where all are NaN."""
    if draws[0] is None:
        return None
    own, *head = (score(each) for each in draws if each is not None)
    scores = head[0] - own if head else own
    known = scores[~np.isnan(scores)]
    return np.quantile(known, (0.025, 0.975)).tolist() if known.size else None


def _number(score: Any) -> float | None:
    return None if np.isnan(score) else float(score)
