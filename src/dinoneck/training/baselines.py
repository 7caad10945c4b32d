"""The baselines of a run: ridge regression and nearest neighbours on the mean token, and a fitted LinearHead.

Inner folds of the training rows choose their settings.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dinoneck.errors import DataError
from dinoneck.heads.ensemble import HeadEnsemble
from dinoneck.heads.head import DENSITY_CELLS, Head
from dinoneck.heads.linear import LinearHead
from dinoneck.losses.composition import Composition
from dinoneck.tasks import Task
from dinoneck.training.sources import TokenSource, in_batches
from dinoneck.training.table import Fold, group_folds
from dinoneck.training.targets import match_samples

MOST_PATCHES = 8192  # that a linear layer per patch is fitted to, drawn at random
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # of the softmax regression, times the squared norm of the weights
_STEPS = 100
_BATCH = 32
_MAPS = ("dense", "density", "segmentation")
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
    groups: Sequence[Hashable] | None = None,
) -> _Floats:
    """Predict targets from the mean patch token of the last layer, by ridge regression.

    Features are standardised. The strength is chosen per fold and target by inner folds of the training rows, which
    keep groups whole as the outer ones do: choosing by single rows would favour a fit to the groups it has seen. Where
    all training rows are of one group, the inner folds split that group by rows.

    Args:
        source: tokens by id.
        targets: t values by image id, NaN = missing, matched by id as in :func:`dinoneck.training.fit`: a DataFrame,
            a mapping column -> ``{id: value}``, or an array (n, t) with ``target_ids``.
        folds: ``(train, valid)`` rows, in the order of the targets' ids (of the first column).
        target_ids: one id per row of targets that are arrays.
        groups: one label per row in the order of the targets' ids; None = every row is its own.

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
    groups: Sequence[Hashable] | None = None,
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
    table = targets if hasattr(targets, "keys") else {"values": targets}  # a DataFrame, a mapping, or an array
    of_columns = dict.fromkeys(key for name in table for key in getattr(table[name], "keys", tuple)())
    rows = of_columns if ids is None else ids
    used, _, values, _ = match_samples(source.ids, table, None, list(table), rows, target_ids=ids)
    if not used:
        raise DataError("the targets have no rows; there is nothing to predict")
    labels = None if groups is None else list(groups)
    return out_of_fold(pooled_tokens(source, used), np.column_stack([*values.values()]), folds, labels, path)


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
) -> _Floats:
    """Return out-of-fold predictions by ``ridge_path`` or ``knn_path``.

    Args:
        features: (n, d).
        targets: (n, t), NaN = missing.
        folds: ``(train, valid)`` rows.
        groups: one label per row for the inner folds; None = every row is its own.
        path: the method.

    Returns:
        (n, t), NaN where a row is held out by no fold.

    Raises:
        DataError: for infinite values, or a fold that has no training rows whose target is known.
    """
    y = np.asarray(targets, np.float64)
    if np.isinf(y).any():
        raise DataError("the targets hold infinite values; expected numbers, or NaN where a value is missing")
    labels, predictions = range(len(y)) if groups is None else groups, np.full(y.shape, np.nan)
    for rows, valid in folds:
        own = [labels[row] for row in rows]
        predictions[valid] = _predicted(features[rows], y[rows], own, features[valid], path)
    return predictions


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


def _predicted(x: _Floats, y: _Floats, groups: Sequence[Hashable], x_new: _Floats, path: _Path) -> _Floats:
    """Predictions (n_new, t) with a setting per target; each is fitted where it is known."""
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
        best = errors.argmin(axis=0)
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


def baseline_head(
    source: TokenSource,
    targets: Mapping[str, Tensor],
    rows: Sequence[int],
    tasks: Sequence[Task],
    compositions: Sequence[Composition] = (),
    groups: Sequence[Hashable] | None = None,
    seed: int = 0,
) -> Head:
    """Return a linear head for the tasks, fitted to the training images; it may be averaged with the trained head.

    Numbers and densities are ridge regression on the mean token of the last layer, classes and ratios softmax
    regression on it. Dense maps are ridge regression and segmentations softmax regression on single patches of all
    layers, of which at most 8192 are drawn. Inner folds of the training images choose the strength of each.

    Args:
        source: tokens by id.
        targets: task -> (n, ...) in original units in the order of ``source.ids``; NaN = missing, of classes -1.
        rows: of the training images.
        tasks: one or more, of images (regression, ratio, classification) or of patches (dense, density, segmentation,
            and regressions with ``from_map``). Activations are left out.
        compositions: those whose tasks are of images are kept.
        groups: a label per row of the source; inner folds keep groups whole. None = every image is its own group.
        seed: of the patches that are drawn.

    Returns:
        A :class:`dinoneck.heads.LinearHead`; where tasks are of both kinds, an ensemble of two.
    """
    labels: list[Hashable] = [*range(len(rows))] if groups is None else [groups[row] for row in rows]
    of_images = [task for task in tasks if task.kind not in _MAPS and task.from_map is None]
    of_patches = [task for task in tasks if task not in of_images]
    first = source.batch(source.ids[:1])
    grid, layers, width = (first.grid.rows, first.grid.cols), len(first.sequence), first.sequence[-1].shape[-1]
    means, patches, image, place = _features(source, rows, grid if of_patches else (0, 0), seed)
    heads = []
    for own, pool in [(own, pool) for own, pool in ((of_images, "mean"), (of_patches, None)) if own]:
        inside = [each for each in compositions if {*each.inputs} <= {task.name for task in own}]
        linear = [replace(task, activation=None) for task in own]
        head = LinearHead(width, linear, layers, cast("Any", pool), compositions=inside)
        heads.append(head.eval())
        for task, layer in zip([task for task in own if task.from_map is None], head.readouts, strict=True):
            values = torch.as_tensor(targets[task.name])[[*rows]]
            regression = _softmax_regression if task.is_categorical or task.kind == "ratio" else ridge_coefficients
            if task.kind in ("dense", "segmentation"):
                y = _patch_targets(task, values, grid)[image, place].numpy()
                weight, bias = regression(patches, y, [labels[i] for i in image])
            else:
                weight, bias = regression(means, _image_targets(task, values).numpy(), labels)
            if task.kind == "density":  # the value is read from the mean token of the last layer
                scale = DENSITY_CELLS / (grid[0] * grid[1]) if task.aggregate == "sum" else 1.0
                weight, bias = np.pad(weight, ((0, 0), ((layers - 1) * width, 0))) * scale, bias * scale
            _set(cast("nn.Linear", layer), weight, bias)
    return heads[0] if len(heads) == 1 else HeadEnsemble.from_heads(heads)


@torch.no_grad()
def _features(
    source: TokenSource, rows: Sequence[int], grid: tuple[int, int], seed: int
) -> tuple[_Floats, _Floats, Any, Any]:
    """Mean tokens (n, C); patches (m, L * C) of such a grid with the numbers of their images and places."""
    random, count = np.random.default_rng(seed), grid[0] * grid[1]
    share = MOST_PATCHES / max(len(rows) * count, 1)
    parts = []
    for numbers in in_batches(range(len(rows)), _BATCH):
        tokens = source.batch([source.ids[rows[number]] for number in numbers])
        image, place = np.nonzero(random.random((len(numbers), count)) < share)
        patches = torch.cat(tokens.patches, dim=-1)[image, place].double().cpu().numpy()  # (m, L * C)
        means = tokens.last.patches[0].double().mean(dim=1).cpu().numpy()
        parts.append((means, patches, image + numbers[0], place))
    means, patches, image, place = (np.concatenate(part) for part in zip(*parts, strict=True))
    return means, patches, image, place


def _image_targets(task: Task, values: Tensor) -> Tensor:
    """(n, dim) in normalised units; of classes one-hot; a row of NaN = missing."""
    if task.is_categorical:
        missing = (values < 0) | (values == task.ignore_index)
        classes = F.one_hot(values.masked_fill(missing, 0).long(), task.dim).double()
        return classes.masked_fill(missing[:, None], torch.nan)
    values = values.double().reshape(len(values), -1)
    return values if task.transform is None else task.transform.forward(values)


def _patch_targets(task: Task, values: Tensor, grid: tuple[int, int]) -> Tensor:
    """(n, patches, dim) of maps; of masks the shares of the classes; NaN = missing."""
    if task.kind == "segmentation" and not values.is_floating_point():
        values = torch.stack([(values == k) & (k != task.ignore_index) for k in range(task.dim)], dim=1)
    values = F.adaptive_avg_pool2d(values.double(), grid)  # (n, dim, rows, cols)
    if task.is_categorical:
        values = values / values.sum(dim=1, keepdim=True)  # 0 / 0 = missing
    elif task.transform is not None:
        values = task.transform.forward(values.movedim(1, -1)).movedim(-1, 1)
    return values.flatten(2).transpose(1, 2)


def _softmax_regression(features: _Floats, shares: _Floats, groups: Sequence[Hashable]) -> tuple[_Floats, _Floats]:
    """Weight (K, d) and bias (K,) of logits whose softmax fits shares (n, K); inner folds choose the penalty."""
    known = np.isfinite(shares).all(axis=1)
    mean, std = features[known].mean(axis=0), features[known].std(axis=0) + FLOOR
    x, y = torch.from_numpy((features[known] - mean) / std), torch.from_numpy(shares[known])
    errors = np.zeros(len(PENALTIES))
    for train, valid in inner_folds([groups[row] for row in np.flatnonzero(known).tolist()]):
        for number, penalty in enumerate(PENALTIES):
            logits = _minimised(x[train], y[train], penalty)(x[valid])
            errors[number] += float(F.cross_entropy(logits, y[valid], reduction="sum"))
    layer = _minimised(x, y, PENALTIES[int(errors.argmin())])
    weight = layer.weight.detach().numpy() / std
    return weight, layer.bias.detach().numpy() - weight @ mean


@torch.enable_grad()
def _minimised(x: Tensor, y: Tensor, penalty: float) -> nn.Linear:
    layer = nn.Linear(x.shape[1], y.shape[1], dtype=x.dtype)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=_STEPS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(layer(x), y) + penalty * layer.weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return layer.requires_grad_(False)


@torch.no_grad()
def _set(layer: nn.Linear, weight: _Floats, bias: _Floats) -> None:
    layer.weight.copy_(torch.from_numpy(weight))
    layer.bias.copy_(torch.from_numpy(bias))
