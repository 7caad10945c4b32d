"""The baselines every table shows: ridge regression on pooled tokens and on mean colours."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import torch

from dinoneck.errors import DataError
from dinoneck.training.folds import Fold, group_folds
from dinoneck.training.sources import TokenSource

INNER_FOLDS = 5
ALPHAS = tuple(10.0**power for power in range(-2, 6))
_Floats = np.ndarray[Any, np.dtype[np.float64]]


def ridge_probe(
    source: TokenSource,
    targets: _Floats,
    folds: Sequence[Fold],
    *,
    groups: Sequence[Hashable] | None = None,
    batch_size: int = 32,
    alphas: Sequence[float] = ALPHAS,
) -> _Floats:
    """Predict targets from the mean patch token of the last layer, by ridge regression.

    Args:
        source: tokens by id.
        targets: (n, t) in the order of ``source.ids``.
        folds: ``(train, valid)`` rows.
        groups: see :func:`ridge_out_of_fold`.
        batch_size: samples per read.
        alphas: regularisation strengths to choose from.

    Returns:
        Out-of-fold predictions (n, t).
    """
    pooled = []
    ids = source.ids
    for begin in range(0, len(ids), batch_size):
        tokens = source.batch(ids[begin : begin + batch_size])
        pooled.append(tokens.last.patches[0].mean(dim=1, dtype=torch.float64))
    return ridge_out_of_fold(torch.cat(pooled).numpy(), targets, folds, groups=groups, alphas=alphas)


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
    the outer ones do: choosing by single rows would favour a fit to the groups it has seen.

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
    features, targets = np.asarray(features, np.float64), np.asarray(targets, np.float64)
    if len(features) != len(targets) or not (np.isfinite(features).all() and np.isfinite(targets).all()):
        raise DataError(f"features {features.shape} and targets {targets.shape} must be finite and of one length")
    labels = list(range(len(features)) if groups is None else groups)
    predictions = np.full(targets.shape, np.nan)
    for train, valid in folds:
        inner_groups = [labels[row] for row in train]
        count = min(INNER_FOLDS, len(set(inner_groups)))
        errors = np.zeros((len(alphas), targets.shape[1]))
        for fit_on, try_on in group_folds(inner_groups, count, seed=0) if count > 1 else []:
            tried = _ridge_path(features[train][fit_on], targets[train][fit_on], features[train][try_on], alphas)
            errors += ((tried - targets[train][try_on]) ** 2).sum(axis=1)
        path = _ridge_path(features[train], targets[train], features[valid], alphas)
        predictions[valid] = np.take_along_axis(path, errors.argmin(axis=0)[None, None], axis=0)[0]
    return predictions


def _ridge_path(x: _Floats, y: _Floats, x_new: _Floats, alphas: Sequence[float]) -> _Floats:
    """Predictions (alphas, n_new, t) of ridge regressions with an offset, one per strength."""
    mean, std, offset = x.mean(axis=0), x.std(axis=0) + 1e-8, y.mean(axis=0)
    u, s, vt = np.linalg.svd((x - mean) / std, full_matrices=False)
    projected, read = u.T @ (y - offset), (x_new - mean) / std @ vt.T
    return np.stack([read @ ((s / (s**2 + alpha))[:, None] * projected) + offset for alpha in alphas])
