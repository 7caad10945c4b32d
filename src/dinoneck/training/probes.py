"""The baselines every table shows: ridge regression and nearest neighbours on pooled tokens, ridge on mean colours."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from dinoneck.errors import DataError
from dinoneck.training.folds import Fold, group_folds
from dinoneck.training.matching import match_groups, match_matrix
from dinoneck.training.sources import SomeTokens, TokenSource, in_batches
from dinoneck.training.targets import as_array

INNER_FOLDS = 5
FLOOR = 1e-8
NEIGHBOURS = (1, 2, 4, 8, 16, 32)
ALPHAS = tuple(10.0**power for power in range(-2, 6))
_Floats = np.ndarray[Any, np.dtype[np.float64]]
_Path = Callable[[_Floats, _Floats, _Floats, Sequence[Any]], _Floats]


def ridge_probe(
    source: TokenSource,
    targets: Any,
    folds: Sequence[Fold],
    *,
    target_ids: Sequence[str] | None = None,
    groups: Mapping[str, Hashable] | Sequence[Hashable] | None = None,
    batch_size: int = 32,
    alphas: Sequence[float] = ALPHAS,
) -> _Floats:
    """Predict targets from the mean patch token of the last layer, by ridge regression.

    Args:
        source: tokens by id.
        targets: t values by image id, matched by id as in :func:`dinoneck.training.fit`: a table, a DataFrame, a
            mapping column -> ``{id: value}``, or an array (n, t) with ``target_ids``.
        folds: ``(train, valid)`` rows, in the order of the targets' ids (of the first column).
        target_ids: one id per row of targets that are arrays.
        groups: ``{id: group}``, or one label per row in the order of the targets' ids; see :func:`ridge_out_of_fold`.
        batch_size: samples per read.
        alphas: regularisation strengths to choose from.

    Returns:
        Out-of-fold predictions (n, t), row by row those of the targets.

    Raises:
        DataError: for ids without tokens, values without ids, or values that are not finite.
    """
    ids, values = match_matrix(source.ids, targets, target_ids)
    labels = match_groups(source.ids, groups, ids) if isinstance(groups, Mapping) else groups
    pooled = pooled_tokens(SomeTokens(source, ids), batch_size)
    return ridge_out_of_fold(pooled, values, folds, groups=labels, alphas=alphas)


def knn_probe(
    source: TokenSource,
    targets: Any,
    folds: Sequence[Fold],
    *,
    target_ids: Sequence[str] | None = None,
    groups: Mapping[str, Hashable] | Sequence[Hashable] | None = None,
    k: int | Sequence[int] = NEIGHBOURS,
    batch_size: int = 32,
) -> _Floats:
    """Predict targets as the mean of the k nearest training samples, by their mean patch tokens of the last layer.

    Near is what has the largest cosine between standardised features. It needs no training, so what it finds lies in
    the tokens open to sight. Where several k are given, one is chosen per fold and target by inner folds of the
    training rows.

    Args:
        source: tokens by id.
        targets: t finite values by image id, as in :func:`ridge_probe`.
        folds: ``(train, valid)`` rows, in the order of the targets' ids (of the first column).
        target_ids: one id per row of targets that are arrays.
        groups: ``{id: group}``, or one label per row in the order of the targets' ids; see :func:`ridge_out_of_fold`.
        k: neighbours, or several numbers to choose from; more than there are training rows means all of them.
        batch_size: samples per read.

    Returns:
        Out-of-fold predictions (n, t), row by row those of the targets.

    Raises:
        DataError: for ids without tokens, values without ids or not finite, or a k that is not a whole number of 1
            or more.
    """
    ids, values = match_matrix(source.ids, targets, target_ids)
    labels = match_groups(source.ids, groups, ids) if isinstance(groups, Mapping) else groups
    return knn_out_of_fold(pooled_tokens(SomeTokens(source, ids), batch_size), values, folds, groups=labels, k=k)


def pooled_tokens(source: TokenSource, batch_size: int = 32, ids: Sequence[str] | None = None) -> _Floats:
    """Return the mean patch token of the last layer of these samples, (n, C); of all where ``ids`` is None."""
    if batch_size < 1:
        raise DataError(f"batch_size is {batch_size}; expected 1 or more")
    with torch.no_grad():
        pooled = [
            source.batch(batch).last.patches[0].mean(dim=1, dtype=torch.float64).cpu()
            for batch in in_batches(source.ids if ids is None else ids, batch_size)
        ]
    found: _Floats = torch.cat(pooled).numpy()
    return found


def ridge_out_of_fold(
    features: _Floats,
    targets: _Floats,
    folds: Sequence[Fold],
    *,
    groups: Sequence[Hashable] | None = None,
    alphas: Sequence[float] = ALPHAS,
) -> _Floats:
    """Ridge regression on standardised features.

    The strength is chosen per fold and target by inner folds of the training rows, which keep groups whole as
    the outer ones do: choosing by single rows would favour a fit to the groups it has seen. Where all training rows
    are of one group, the inner folds split that group by rows.

    Args:
        features: (n, d).
        targets: (n, t), finite.
        folds: ``(train, valid)`` rows.
        groups: one label per row for the inner folds; None = every row is its own.
        alphas: strengths to choose from.

    Returns:
        Out-of-fold predictions (n, t).

    Raises:
        DataError: if lengths differ or values are not finite.
    """
    return _out_of_fold(features, targets, folds, groups, alphas, _ridge_path)


def ridge_coefficients(
    features: _Floats,
    targets: _Floats,
    *,
    groups: Sequence[Hashable] | None = None,
    alphas: Sequence[float] = ALPHAS,
) -> tuple[_Floats, _Floats]:
    """Fit ridge regression on standardised features; the strength is chosen as by :func:`ridge_out_of_fold`.

    Args:
        features: (n, d).
        targets: (n, t), finite.
        groups: one label per row for the inner folds; None = every row is its own.
        alphas: strengths to choose from.

    Returns:
        weight (t, d) and bias (t,) on the features as they are: predictions are ``features @ weight.T + bias``.

    Raises:
        DataError: if lengths differ or values are not finite.
    """
    features, targets = _checked(features, targets, alphas)
    labels = list(range(len(features)) if groups is None else groups)
    chosen = np.asarray(alphas)[_chosen(features, targets, labels, alphas, _ridge_path)]
    mean, std, offset = features.mean(axis=0), features.std(axis=0) + FLOOR, targets.mean(axis=0)
    u, s, vt = np.linalg.svd((features - mean) / std, full_matrices=False)
    shrunk = s[:, None] / (s[:, None] ** 2 + chosen) * (u.T @ (targets - offset))
    weight = (vt.T @ shrunk / std[:, None]).T
    return weight, offset - weight @ mean


def knn_out_of_fold(
    features: _Floats,
    targets: _Floats,
    folds: Sequence[Fold],
    *,
    groups: Sequence[Hashable] | None = None,
    k: int | Sequence[int] = NEIGHBOURS,
) -> _Floats:
    """Return what :func:`knn_probe` says of features (n, d)."""
    counts = [k] if isinstance(k, int) else list(k)
    if not counts or any(isinstance(n, bool) or not isinstance(n, int | np.integer) or n < 1 for n in counts):
        raise DataError(f"k is {k!r}; expected a whole number of 1 or more, or several to choose from")
    return _out_of_fold(features, targets, folds, groups, counts, _knn_path)


def _out_of_fold(
    features: _Floats,
    targets: _Floats,
    folds: Sequence[Fold],
    groups: Sequence[Hashable] | None,
    settings: Sequence[Any],
    path: _Path,
) -> _Floats:
    """Out-of-fold predictions (n, t); a setting is chosen per fold and target by inner folds.

    ``path`` takes x, y, new x and the settings and gives predictions (settings, n_new, t).
    """
    features, targets = _checked(features, targets, settings)
    labels = list(range(len(features)) if groups is None else groups)
    predictions = np.full(targets.shape, np.nan)
    for train, valid in folds:
        chosen = _chosen(features[train], targets[train], [labels[row] for row in train], settings, path)
        found = path(features[train], targets[train], features[valid], settings)
        predictions[valid] = np.take_along_axis(found, chosen[None, None], axis=0)[0]
    return predictions


def _checked(features: _Floats, targets: _Floats, settings: Sequence[Any]) -> tuple[_Floats, _Floats]:
    features, targets = (as_array(given).astype(np.float64) for given in (features, targets))
    if (
        targets.ndim != 2
        or len(features) != len(targets)
        or not (np.isfinite(features).all() and np.isfinite(targets).all())
    ):
        raise DataError(f"features {features.shape} and targets {targets.shape} must be (n, d) and (n, t), finite")
    if not len(settings):
        raise DataError("there are no settings to choose from; give at least one of alphas or k")
    return features, targets


def _chosen(
    features: _Floats, targets: _Floats, groups: Sequence[Hashable], settings: Sequence[Any], path: _Path
) -> Any:
    """The place of the best setting for each target, (t,), by inner folds that keep groups whole, or split the one."""
    if len(set(groups)) < 2:
        groups = range(len(features))
    count = min(INNER_FOLDS, len(set(groups)))
    errors = np.zeros((len(settings), targets.shape[1]))
    for fit_on, try_on in group_folds(groups, count, seed=0) if count > 1 else []:
        tried = path(features[fit_on], targets[fit_on], features[try_on], settings)
        errors += ((tried - targets[try_on]) ** 2).sum(axis=1)
    return errors.argmin(axis=0)


def _ridge_path(x: _Floats, y: _Floats, x_new: _Floats, alphas: Sequence[float]) -> _Floats:
    """Predictions (alphas, n_new, t) of ridge regressions with an offset, one per strength."""
    mean, std, offset = x.mean(axis=0), x.std(axis=0) + FLOOR, y.mean(axis=0)
    u, s, vt = np.linalg.svd((x - mean) / std, full_matrices=False)
    projected, read = u.T @ (y - offset), (x_new - mean) / std @ vt.T
    return np.stack([read @ ((s / (s**2 + alpha))[:, None] * projected) + offset for alpha in alphas])


def _knn_path(x: _Floats, y: _Floats, x_new: _Floats, counts: Sequence[int]) -> _Floats:
    """Predictions (counts, n_new, t): the mean of the k nearest, one per k."""
    mean, std = x.mean(axis=0), x.std(axis=0) + FLOOR
    near, new = _unit((x - mean) / std), _unit((x_new - mean) / std)
    order = np.argsort(-new @ near.T, axis=1, kind="stable")
    sums = np.cumsum(y[order[:, : max(counts)]], axis=1)
    used = [min(k, len(x)) for k in counts]
    return np.stack([sums[:, k - 1] / k for k in used])


def _unit(x: _Floats) -> _Floats:
    found: _Floats = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), FLOOR)
    return found
