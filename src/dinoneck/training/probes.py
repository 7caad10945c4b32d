"""The baselines every table shows: ridge regression and nearest neighbours, of values and of classes."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from dinoneck.errors import DataError
from dinoneck.training.folds import Fold, group_folds
from dinoneck.training.matching import match_groups, match_matrix
from dinoneck.training.sources import TokenSource, in_batches
from dinoneck.training.targets import as_array

INNER_FOLDS = 5
FLOOR = 1e-8
NEIGHBOURS = (1, 2, 4, 8, 16, 32)
ALPHAS = tuple(10.0**power for power in range(-2, 6))
_Floats = np.ndarray[Any, np.dtype[np.float64]]
_Array = np.ndarray[Any, Any]
_Groups = Sequence[Hashable] | None
_Path = Callable[[_Floats, _Floats, _Floats, Sequence[Any]], _Floats]  # x, y, new x, settings -> (settings, n_new, t)


def ridge_probe(
    source: TokenSource,
    targets: Any,
    folds: Sequence[Fold],
    *,
    target_ids: Sequence[str] | None = None,
    groups: Mapping[str, Hashable] | Sequence[Hashable] | None = None,
    alphas: Sequence[float] = ALPHAS,
) -> _Floats:
    """Predict targets from the mean patch token of the last layer, by ridge regression.

    Args:
        source: tokens by id.
        targets: t values by image id, NaN = missing, matched by id as in :func:`dinoneck.training.fit`: a table, a
            DataFrame, a mapping column -> ``{id: value}``, or an array (n, t) with ``target_ids``.
        folds: ``(train, valid)`` rows, in the order of the targets' ids (of the first column).
        target_ids: one id per row of targets that are arrays.
        groups: ``{id: group}``, or one label per row in the order of the targets' ids; see :func:`ridge_out_of_fold`.
        alphas: regularisation strengths to choose from.

    Returns:
        Out-of-fold predictions (n, t), row by row those of the targets.

    Raises:
        DataError: for ids without tokens, values without ids, or infinite values.
    """
    x, y, labels = _matched(source, targets, target_ids, groups)
    return ridge_out_of_fold(x, y, folds, groups=labels, alphas=alphas)


def knn_probe(
    source: TokenSource,
    targets: Any,
    folds: Sequence[Fold],
    *,
    target_ids: Sequence[str] | None = None,
    groups: Mapping[str, Hashable] | Sequence[Hashable] | None = None,
    k: int | Sequence[int] = NEIGHBOURS,
) -> _Floats:
    """Predict targets as the mean of the k nearest training samples, by their mean patch tokens of the last layer.

    The nearest have the largest cosine between standardised features. Where several k are given, one is chosen per
    fold and target by inner folds of the training rows.

    Args:
        source: tokens by id.
        targets: t values by image id, NaN = missing, as in :func:`ridge_probe`.
        folds: ``(train, valid)`` rows, in the order of the targets' ids (of the first column).
        target_ids: one id per row of targets that are arrays.
        groups: ``{id: group}``, or one label per row in the order of the targets' ids; see :func:`ridge_out_of_fold`.
        k: neighbours, or several numbers to choose from; more than there are training rows means all of them.

    Returns:
        Out-of-fold predictions (n, t), row by row those of the targets.

    Raises:
        DataError: for ids without tokens, values without ids or infinite, or a k that is not a whole number of 1 or
            more.
    """
    x, y, labels = _matched(source, targets, target_ids, groups)
    return knn_out_of_fold(x, y, folds, groups=labels, k=k)


def _matched(source: TokenSource, targets: Any, ids: Any, groups: Any) -> tuple[_Floats, _Floats, _Groups]:
    """The pooled features, values and groups of the targets' rows."""
    names, values = match_matrix(source.ids, targets, ids)
    if isinstance(groups, Mapping):
        labels = match_groups(source.ids, groups, names)
    else:
        labels = None if groups is None else list(groups)
    return pooled_tokens(source, ids=names), values, labels


def pooled_tokens(source: TokenSource, batch_size: int = 32, ids: Sequence[str] | None = None) -> _Floats:
    """Return the mean patch token of the last layer of these samples, (n, C); of all where ``ids`` is None."""
    with torch.no_grad():
        pooled = [
            source.batch(batch).last.patches[0].mean(dim=1, dtype=torch.float64).cpu()
            for batch in in_batches(source.ids if ids is None else ids, batch_size)
        ]
    found: _Floats = torch.cat(pooled).numpy()
    return found


def ridge_out_of_fold(
    features: _Floats,
    targets: Any,
    folds: Sequence[Fold],
    *,
    groups: Sequence[Hashable] | None = None,
    alphas: Sequence[float] = ALPHAS,
    num_classes: int | None = None,
) -> _Array:
    """Ridge regression on standardised features; of classes, on one-hot targets, whose largest prediction counts.

    The strength is chosen per fold and target (of classes: per fold) by inner folds of the training rows, which keep
    groups whole as the outer ones do: choosing by single rows would favour a fit to the groups it has seen. Where all
    training rows are of one group, the inner folds split that group by rows.

    Args:
        features: (n, d).
        targets: (n, t), NaN = missing; with ``num_classes`` (n,) class indices, -1 = missing. Such rows are predicted
            and not trained on.
        folds: ``(train, valid)`` rows.
        groups: one label per row for the inner folds; None = every row is its own.
        alphas: strengths to choose from.
        num_classes: the targets are classes 0 ... num_classes - 1; None = they are values.

    Returns:
        Out-of-fold predictions: (n, t), NaN where a row is held out by no fold; of classes (n,) indices, -1 there.

    Raises:
        DataError: if lengths differ, values are infinite, or a fold has no training rows whose target is known.
    """
    return _out_of_fold(features, targets, folds, groups, alphas, _ridge_path, num_classes)


def ridge_coefficients(
    features: _Floats, targets: _Floats, *, groups: Sequence[Hashable] | None = None, alphas: Sequence[float] = ALPHAS
) -> tuple[_Floats, _Floats]:
    """Fit ridge regression on standardised features; the strength is chosen as by :func:`ridge_out_of_fold`.

    Args:
        features: (n, d).
        targets: (n, t), none missing.
        groups: one label per row for the inner folds; None = every row is its own.
        alphas: strengths to choose from.

    Returns:
        weight (t, d) and bias (t,) on the features as they are: predictions are ``features @ weight.T + bias``.

    Raises:
        DataError: if lengths differ or values are not finite.
    """
    x, y = _checked(features, targets, alphas)
    if np.isnan(y).any():
        raise DataError(f"{int(np.isnan(y).sum())} targets are NaN; expected the rows whose targets are known")
    chosen = np.asarray(alphas)[_errors(x, y, groups, alphas, _ridge_path).argmin(axis=0)]
    mean, std, vt, solve = _ridge(x, y)
    weight = (vt.T @ solve(chosen) / std[:, None]).T
    return weight, y.mean(axis=0) - weight @ mean


def knn_out_of_fold(
    features: _Floats,
    targets: Any,
    folds: Sequence[Fold],
    *,
    groups: Sequence[Hashable] | None = None,
    k: int | Sequence[int] = NEIGHBOURS,
    num_classes: int | None = None,
) -> _Array:
    """Return out-of-fold means (of classes: the most frequent class) of the k nearest by features (n, d).

    See :func:`knn_probe` for ``k`` and :func:`ridge_out_of_fold` for the rest.
    """
    counts = [k] if isinstance(k, int) else list(k)
    if not counts or any(isinstance(n, bool) or not isinstance(n, int | np.integer) or n < 1 for n in counts):
        raise DataError(f"k is {k!r}; expected a whole number of 1 or more, or several to choose from")
    return _out_of_fold(features, targets, folds, groups, counts, _knn_path, num_classes)


def _out_of_fold(
    features: _Floats,
    targets: Any,
    folds: Sequence[Fold],
    groups: _Groups,
    settings: Sequence[Any],
    path: _Path,
    num_classes: int | None,
) -> _Array:
    """Out-of-fold predictions with settings chosen by inner folds."""
    x, y = _checked(features, _one_hot(targets, num_classes), settings)
    known, predictions = np.isfinite(y), np.full(y.shape, np.nan)
    for pattern in np.unique(known, axis=1).T:  # columns that are known for the same rows are solved together
        columns = np.flatnonzero((known == pattern[:, None]).all(axis=0))
        for number, (rows, valid) in enumerate(folds):
            if not len(train := np.asarray(rows)[pattern[rows]]):
                raise DataError(f"fold {number} has no training rows whose target is known; use other folds")
            labels = None if groups is None else [groups[row] for row in train]
            known_y = y[np.ix_(train, columns)]
            errors = _errors(x[train], known_y, labels, settings, path)
            chosen = (errors if num_classes is None else errors.sum(axis=1, keepdims=True)).argmin(axis=0)
            predicted = path(x[train], known_y, x[valid], settings)
            predictions[np.ix_(valid, columns)] = np.take_along_axis(predicted, chosen[None, None], axis=0)[0]
    if num_classes is None:
        return predictions
    return np.where(np.isnan(predictions[:, 0]), -1, predictions.argmax(axis=1))


def _one_hot(targets: Any, num_classes: int | None) -> Any:
    """Class indices (n,) as (n, K), a row of NaN where the class is missing; values as they are."""
    if num_classes is None:
        return targets
    classes = as_array(targets)[:, None]
    return np.where(classes < 0, np.nan, classes == np.arange(num_classes))


def _checked(features: Any, targets: Any, settings: Sequence[Any]) -> tuple[_Floats, _Floats]:
    x, y = (as_array(values).astype(np.float64) for values in (features, targets))
    if y.ndim != 2 or len(x) != len(y) or not np.isfinite(x).all() or np.isinf(y).any():
        raise DataError(f"features {x.shape} and targets {y.shape} must be (n, d) and (n, t), not infinite")
    if not len(settings):
        raise DataError("there are no settings to choose from; give at least one of alphas or k")
    return x, y


def _errors(x: _Floats, y: _Floats, groups: _Groups, settings: Sequence[Any], path: _Path) -> _Floats:
    """Squared errors (settings, t) of inner folds, which keep groups whole, or split a single group by rows."""
    labels = range(len(x)) if groups is None or len(set(groups)) < 2 else groups
    count = min(INNER_FOLDS, len(set(labels)))
    errors = np.zeros((len(settings), y.shape[1]))
    for train, valid in group_folds(labels, count, seed=0) if count > 1 else []:
        errors += ((path(x[train], y[train], x[valid], settings) - y[valid]) ** 2).sum(axis=1)
    return errors


def _ridge(x: _Floats, y: _Floats) -> tuple[_Floats, _Floats, _Floats, Callable[[Any], _Floats]]:
    """Mean and deviation of x, the right singular vectors, and strength -> coefficients (singular vectors, t)."""
    mean, std = x.mean(axis=0), x.std(axis=0) + FLOOR
    u, s, vt = np.linalg.svd((x - mean) / std, full_matrices=False)
    projected = u.T @ (y - y.mean(axis=0))
    return mean, std, vt, lambda alpha: s[:, None] / (s[:, None] ** 2 + alpha) * projected


def _ridge_path(x: _Floats, y: _Floats, x_new: _Floats, alphas: Sequence[float]) -> _Floats:
    mean, std, vt, solve = _ridge(x, y)
    read = (x_new - mean) / std @ vt.T
    return np.stack([read @ solve(alpha) + y.mean(axis=0) for alpha in alphas])


def _knn_path(x: _Floats, y: _Floats, x_new: _Floats, counts: Sequence[int]) -> _Floats:
    mean, std = x.mean(axis=0), x.std(axis=0) + FLOOR
    near, new = ((rows - mean) / std for rows in (x, x_new))
    near, new = (rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), FLOOR) for rows in (near, new))
    order = np.argsort(-new @ near.T, axis=1, kind="stable")
    sums = np.cumsum(y[order[:, : max(counts)]], axis=1)
    return np.stack([sums[:, k - 1] / k for k in (min(k, len(x)) for k in counts)])
