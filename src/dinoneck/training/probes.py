"""Ridge regression and nearest neighbours; inner folds of the training rows choose their settings."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from dinoneck.errors import DataError
from dinoneck.training.folds import Fold, group_folds
from dinoneck.training.matching import match_groups, match_matrix
from dinoneck.training.sources import TokenSource, in_batches

INNER_FOLDS = 5
FLOOR = 1e-8
NEIGHBOURS = (1, 2, 4, 8, 16, 32)
ALPHAS = tuple(10.0**power for power in range(-2, 6))
_Floats = np.ndarray[Any, np.dtype[np.float64]]
_Path = Callable[[_Floats, _Floats, _Floats], _Floats]  # x, y, new x -> (settings, n_new, t)


def ridge_probe(
    source: TokenSource,
    targets: Any,
    folds: Sequence[Fold],
    *,
    target_ids: Sequence[str] | None = None,
    groups: Mapping[str, Hashable] | Sequence[Hashable] | None = None,
) -> _Floats:
    """Predict targets from the mean patch token of the last layer, by ridge regression.

    Features are standardised. The strength is chosen per fold and target by inner folds of the training rows, which
    keep groups whole as the outer ones do: choosing by single rows would favour a fit to the groups it has seen. Where
    all training rows are of one group, the inner folds split that group by rows.

    Args:
        source: tokens by id.
        targets: t values by image id, NaN = missing, matched by id as in :func:`dinoneck.training.fit`: a table, a
            DataFrame, a mapping column -> ``{id: value}``, or an array (n, t) with ``target_ids``.
        folds: ``(train, valid)`` rows, in the order of the targets' ids (of the first column).
        target_ids: one id per row of targets that are arrays.
        groups: ``{id: group}``, or one label per row in the order of the targets' ids; None = every row is its own.

    Returns:
        Out-of-fold predictions (n, t), row by row those of the targets; NaN where a row is held out by no fold.

    Raises:
        DataError: for ids without tokens, values without ids, infinite values, or a fold without known values.
    """
    return _probed(source, targets, folds, target_ids, groups, ridge_path)


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

    The nearest have the largest cosine between standardised features.

    Args:
        source: tokens by id.
        targets: t values by image id, as in :func:`ridge_probe`.
        folds: ``(train, valid)`` rows, as in :func:`ridge_probe`.
        target_ids: one id per row of targets that are arrays.
        groups: of the inner folds, as in :func:`ridge_probe`.
        k: neighbours, or several numbers of which inner folds choose one per fold and target; more than there are
            training rows means all of them.

    Returns:
        Out-of-fold predictions (n, t), as :func:`ridge_probe`.

    Raises:
        DataError: as :func:`ridge_probe`, or for a k that is not a whole number of 1 or more.
    """
    counts = [k] if isinstance(k, int) else list(k)
    if not counts or any(isinstance(n, bool) or not isinstance(n, int | np.integer) or n < 1 for n in counts):
        raise DataError(f"k is {k!r}; expected a whole number of 1 or more, or several to choose from")
    return _probed(source, targets, folds, target_ids, groups, lambda x, y, new: knn_path(x, y, new, counts))


def _probed(source: TokenSource, targets: Any, folds: Sequence[Fold], ids: Any, groups: Any, path: _Path) -> _Floats:
    names, values = match_matrix(source.ids, targets, ids)
    by_id = dict(groups.items()) if hasattr(groups, "items") else None  # a mapping, or a Series
    labels = groups if by_id is None else match_groups(source.ids, by_id, names)
    return out_of_fold(pooled_tokens(source, names), values, folds, labels, path)


@torch.no_grad()
def pooled_tokens(source: TokenSource, ids: Sequence[str]) -> _Floats:
    """Return the mean patch token of the last layer of these samples, (n, C)."""
    means = [source.batch(own).last.patches[0].mean(dim=1, dtype=torch.float64).cpu() for own in in_batches(ids, 32)]
    found: _Floats = torch.cat(means).numpy()
    return found


def out_of_fold(
    features: _Floats,
    targets: Any,
    folds: Sequence[Fold],
    groups: Sequence[Hashable] | None,
    path: _Path,
    num_classes: int | None = None,
) -> np.ndarray[Any, Any]:
    """Return out-of-fold predictions by ``ridge_path`` or ``knn_path``.

    Args:
        features: (n, d).
        targets: (n, t), NaN = missing; with ``num_classes`` (n,) class indices, -1 = missing.
        folds: ``(train, valid)`` rows.
        groups: one label per row for the inner folds; None = every row is its own.
        path: the method.
        num_classes: the targets are classes; their one-hot values are predicted, and the largest one counts.

    Returns:
        (n, t), NaN where a row is held out by no fold; of classes (n,) indices, -1 there.

    Raises:
        DataError: for infinite values, or a fold that has no training rows whose target is known.
    """
    y = np.asarray(targets, np.float64)
    if num_classes is not None:
        y = np.where(y[:, None] < 0, np.nan, y[:, None] == np.arange(num_classes))
    if np.isinf(y).any():
        raise DataError("the targets hold infinite values; expected numbers, or NaN where a value is missing")
    labels, predictions = range(len(y)) if groups is None else groups, np.full(y.shape, np.nan)
    for rows, valid in folds:
        own = [labels[row] for row in rows]
        predictions[valid] = _predicted(features[rows], y[rows], own, features[valid], path, num_classes is not None)
    return predictions if num_classes is None else np.where(np.isnan(predictions[:, 0]), -1, predictions.argmax(axis=1))


def ridge_coefficients(features: _Floats, targets: _Floats, groups: Sequence[Hashable]) -> tuple[_Floats, _Floats]:
    """Return weight (t, d) and bias (t,) of the ridge regression of :func:`ridge_probe`, on features as they are.

    Args:
        features: (n, d).
        targets: (n, t), NaN = missing.
        groups: one label per row for the inner folds.

    Raises:
        DataError: if no value of a target is known.
    """
    at = np.vstack([np.zeros(features.shape[1]), np.eye(features.shape[1])])  # the prediction is affine
    bias, *rest = _predicted(features, targets, groups, at, ridge_path)
    return (np.stack(rest) - bias).T, bias


def inner_folds(groups: Sequence[Hashable]) -> list[Fold]:
    """Return the folds that choose a setting: they keep groups whole, or split a single group by rows."""
    labels = groups if len(set(groups)) > 1 else range(len(groups))
    count = min(INNER_FOLDS, len(set(labels)))
    return group_folds(labels, count, seed=0) if count > 1 else []


def _predicted(
    x: _Floats, y: _Floats, groups: Sequence[Hashable], x_new: _Floats, path: _Path, together: bool = False
) -> _Floats:
    """Predictions (n_new, t) with a setting per target, or one for all together; each is fitted where it is known."""
    predictions = np.empty((len(x_new), y.shape[1]))
    for known in np.unique(np.isfinite(y), axis=1).T:  # targets that are known in the same rows are solved together
        columns = np.flatnonzero((np.isfinite(y) == known[:, None]).all(axis=0))
        if not known.any():
            raise DataError("a fold has no training rows whose target is known; use other folds")
        own_x, own_y = x[known], y[np.ix_(known, columns)]
        every = path(own_x, own_y, x_new)
        errors = np.zeros((len(every), len(columns)))
        for train, valid in inner_folds([groups[row] for row in np.flatnonzero(known).tolist()]):
            errors += ((path(own_x[train], own_y[train], own_x[valid]) - own_y[valid]) ** 2).sum(axis=1)
        best = (errors.sum(axis=1, keepdims=True) if together else errors).argmin(axis=0)
        predictions[:, columns] = np.take_along_axis(every, best[None, None], axis=0)[0]
    return predictions


def ridge_path(x: _Floats, y: _Floats, x_new: _Floats, alphas: Sequence[float] = ALPHAS) -> _Floats:
    """Return the predictions of ridge regression on standardised features, for all strengths."""
    mean, std = x.mean(axis=0), x.std(axis=0) + FLOOR
    u, s, vt = np.linalg.svd((x - mean) / std, full_matrices=False)
    projected, read = u.T @ (y - y.mean(axis=0)), (x_new - mean) / std @ vt.T
    return np.stack([read @ (s[:, None] / (s[:, None] ** 2 + alpha) * projected) + y.mean(axis=0) for alpha in alphas])


def knn_path(x: _Floats, y: _Floats, x_new: _Floats, counts: Sequence[int] = NEIGHBOURS) -> _Floats:
    """Return the means of the nearest by the cosine of standardised features, for all numbers of neighbours."""
    mean, std = x.mean(axis=0), x.std(axis=0) + FLOOR
    near, new = ((rows - mean) / std for rows in (x, x_new))
    near, new = (rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), FLOOR) for rows in (near, new))
    order = np.argsort(-new @ near.T, axis=1, kind="stable")
    sums = np.cumsum(y[order[:, : max(counts)]], axis=1)
    return np.stack([sums[:, k - 1] / k for k in (min(k, len(x)) for k in counts)])
