"""The baselines of a run: ridge regression on the mean token, and a fitted LinearHead.

Inner folds of the training rows choose their settings; features are standardised on the rows that a
fit sees.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dinoneck.data.arrays import by_id
from dinoneck.data.cells import OWN_COLUMNS
from dinoneck.errors import DataError
from dinoneck.heads.ensemble import HeadEnsemble
from dinoneck.heads.head import Head
from dinoneck.heads.linear import LinearHead
from dinoneck.heads.outputs import DENSITY_CELLS
from dinoneck.losses.composition import Composition
from dinoneck.tasks import Task
from dinoneck.training.folds import FoldRows, group_folds
from dinoneck.training.targets import match_samples
from dinoneck.training.token_sources import TokenSource, in_batches

MOST_PATCHES = 8192  # that a linear layer per patch is fitted to, drawn at random
# of the softmax regression, times the squared norm of the weights
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
_STEPS = 100
_BATCH = 32
_MAPS = ("dense", "density", "segmentation")
INNER_FOLDS = 5
FLOOR = 1e-8
ALPHAS = tuple(10.0**power for power in range(-2, 6))
_Floats = np.ndarray[Any, np.dtype[np.float64]]
_Path = Callable[[_Floats, _Floats, _Floats], _Floats]  # x, y, new x -> (settings, n_new, t)


def ridge_probe(
    source: TokenSource,
    targets: Any,
    folds: Sequence[FoldRows],
    *,
    target_ids: Sequence[str] | None = None,
    groups: Sequence[Hashable] | None = None,
) -> _Floats:
    """Predict targets from the mean patch token of the last layer, by ridge regression.

    Features are standardised. The strength is chosen per fold and target by inner folds of the
    training rows, which keep groups whole as the outer ones do: choosing by single rows would
    favour a fit to the groups it has seen. Where all training rows are of one group, the inner
    folds split that group by rows.

    Args:
        source: tokens by id.
        targets: t values by image id, NaN = missing, matched by id as in
            :func:`dinoneck.training.fit`: a DataFrame, a mapping column -> ``{id: value}``, or an
            array (n, t) with ``target_ids``.
        folds: ``(train, valid)`` rows, in the order of the targets' ids (of the first column).
        target_ids: one id per row of targets that are arrays.
        groups: one label per row in the order of the targets' ids; None = every row is its own.

    Returns:
        Out-of-fold predictions (n, t), row by row those of the targets; NaN where a row is held out
        by no fold.

    Raises:
        DataError: for ids without tokens, values without ids, infinite values, or a fold without
            known values.
    """
    table = targets if hasattr(targets, "keys") else {"values": targets}
    names = [name for name in table if name not in OWN_COLUMNS]
    rows = by_id(table[names[0]], names[0], target_ids)
    used, _, values, _ = match_samples(source.ids, table, None, names, rows, target_ids=target_ids)
    y = np.column_stack([*values.values()]).astype(np.float64)
    if np.isinf(y).any():
        raise DataError(
            "the targets hold infinite values; expected numbers, or NaN where a value is missing"
        )
    x = _features(source, used)[0]
    labels = [*range(len(y))] if groups is None else [*groups]
    predictions = np.full(y.shape, np.nan)
    for train, valid in folds:
        predictions[valid] = chosen(
            ridge_path, squares, x[train], y[train], [labels[row] for row in train], x[valid]
        )
    return predictions


def chosen(
    path: _Path,
    error: Callable[[_Floats, _Floats], _Floats],
    x: _Floats,
    y: _Floats,
    groups: Sequence[Any],
    new: _Floats,
) -> _Floats:
    """Return predictions (n_new, t) with the setting of the least error in inner folds, which keep groups whole.

    Where there is one group, the inner folds split it by rows. Targets that are known in the same
    rows are solved together, in these rows.

    Args:
        path: the method: predictions by all settings.
        error: of predictions (settings, n, t) and targets (n, t), (settings, t).
        x: features (n, d).
        y: targets (n, t), NaN = missing.
        groups: one label per row.
        new: features (n_new, d).

    Raises:
        DataError: if no value of a target is known.
    """
    predictions, known = np.empty((len(new), y.shape[1])), np.isfinite(y)
    for rows in np.unique(known, axis=1).T:
        if not rows.any():
            raise DataError("a fold has no training rows whose target is known; use other folds")
        columns = (known == rows[:, None]).all(axis=0)
        own_x, own_y, labels = (
            x[rows],
            y[rows][:, columns],
            [groups[row] for row in np.flatnonzero(rows).tolist()],
        )
        labels = labels if len({*labels}) > 1 else [*range(len(labels))]
        count = min(INNER_FOLDS, len({*labels}))
        every = path(own_x, own_y, new)
        errors = np.zeros((len(every), own_y.shape[1]))
        for train, valid in group_folds(labels, count, seed=0) if count > 1 else ():
            errors += error(path(own_x[train], own_y[train], own_x[valid]), own_y[valid])
        predictions[:, columns] = np.take_along_axis(
            every, errors.argmin(axis=0)[None, None], axis=0
        )[0]
    return predictions


def squares(predictions: _Floats, y: _Floats) -> _Floats:
    """Return the sum of squared errors of each setting and target."""
    found: _Floats = ((predictions - y) ** 2).sum(axis=1)
    return found


def cross_entropy(logits: _Floats, shares: _Floats) -> _Floats:
    """Return the sum of the cross-entropies of each setting, for all classes."""
    log_shares = torch.from_numpy(logits).log_softmax(dim=-1).numpy()
    found: _Floats = -(log_shares * shares).sum(axis=(1, 2))[:, None]
    return found


def linear_path(
    path: _Path, error: Any, x: _Floats, y: _Floats, groups: Sequence[Any]
) -> tuple[_Floats, _Floats]:
    """Return weight (t, d) and bias (t,), for features as they are, of a method that is affine in them."""
    bias, *rest = chosen(
        path, error, x, y, groups, np.vstack([np.zeros(x.shape[1]), np.eye(x.shape[1])])
    )
    return (np.stack(rest) - bias).T, bias


def _standardised(x: _Floats, new: _Floats) -> tuple[_Floats, _Floats]:
    mean, std = x.mean(axis=0), x.std(axis=0) + FLOOR
    return (x - mean) / std, (new - mean) / std


def ridge_path(x: _Floats, y: _Floats, new: _Floats) -> _Floats:
    """Return the predictions of ridge regression on standardised features, for all strengths."""
    x, new = _standardised(x, new)
    u, s, vt = np.linalg.svd(x, full_matrices=False)
    projected, read = u.T @ (y - y.mean(axis=0)), new @ vt.T
    return np.stack(
        [
            read @ (s[:, None] / (s[:, None] ** 2 + alpha) * projected) + y.mean(axis=0)
            for alpha in ALPHAS
        ]
    )


def softmax_path(x: _Floats, shares: _Floats, new: _Floats) -> _Floats:
    """Return the logits of softmax regression on standardised features, for all penalties."""
    features, read, y = map(torch.from_numpy, (*_standardised(x, new), shares))
    return np.stack(
        [_softmax_regression(features, y, penalty)(read).numpy() for penalty in PENALTIES]
    )


@torch.enable_grad()
def _softmax_regression(x: Tensor, shares: Tensor, penalty: float) -> nn.Linear:
    layer = nn.Linear(x.shape[1], shares.shape[1], dtype=x.dtype)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    optimizer = torch.optim.LBFGS(
        layer.parameters(), max_iter=_STEPS, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(layer(x), shares) + penalty * layer.weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return layer.requires_grad_(False)


def baseline_head(
    source: TokenSource,
    targets: Mapping[str, Tensor],
    rows: Sequence[int],
    tasks: Sequence[Task],
    groups: Sequence[Hashable],
    compositions: Sequence[Composition] = (),
    seed: int = 0,
) -> Head:
    """Return a linear head for the tasks, fitted to the training images; it may be averaged with the trained head.

    Numbers and densities are ridge regression on the mean token of the last layer, classes and
    ratios softmax regression on it. Dense maps are ridge regression and segmentations softmax
    regression on single patches of all layers, of which at most 8192 are drawn. Inner folds of the
    training images choose the strength of each.

    Args:
        source: tokens by id.
        targets: task -> (n, ...) in original units in the order of ``source.ids``; NaN = missing,
            of classes -1.
        rows: of the training images.
        tasks: one or more, of images (regression, ratio, classification) or of patches (dense,
            density, segmentation, and regressions with ``from_map``). Activations are left out.
        groups: a label per row of the source; inner folds keep groups whole.
        compositions: those whose tasks are of images are kept.
        seed: of the patches that are drawn.

    Returns:
        A :class:`dinoneck.heads.LinearHead`; where tasks are of both kinds, an ensemble of two.
    """
    of_images = [task for task in tasks if task.kind not in _MAPS and task.from_map is None]
    of_patches = [task for task in tasks if task not in of_images]
    ids, labels = [source.ids[row] for row in rows], [groups[row] for row in rows]
    first = source.batch(ids[:1])
    grid, layers, width = (
        (first.grid.rows, first.grid.cols),
        len(first.sequence),
        first.sequence[-1].shape[-1],
    )
    means, patches, image, place = _features(source, ids, MOST_PATCHES if of_patches else 0, seed)
    heads = []
    for pool, its_tasks in (("mean", of_images), (None, of_patches)):
        if not its_tasks:
            continue
        inside = [
            each for each in compositions if {*each.inputs} <= {task.name for task in its_tasks}
        ]
        linear = [replace(task, activation=None) for task in its_tasks]
        head = LinearHead(width, linear, layers, cast("Any", pool), compositions=inside)
        heads.append(head.eval())
        for task, readout in zip(
            [task for task in its_tasks if task.from_map is None], head.readouts, strict=True
        ):
            y = _fitted(task, torch.as_tensor(targets[task.name])[[*rows]], grid).numpy()
            is_share = task.is_categorical or task.kind == "ratio"
            path, error = (softmax_path, cross_entropy) if is_share else (ridge_path, squares)
            seen = (
                (patches, y[image, place], [labels[i] for i in image])
                if task.is_map
                else (means, y, labels)
            )
            weight, bias = linear_path(path, error, *seen)
            if task.kind == "density":  # the value is read from the mean token of the last layer
                scale = DENSITY_CELLS / (grid[0] * grid[1]) if task.aggregate == "sum" else 1.0
                weight, bias = (
                    np.pad(weight, ((0, 0), ((layers - 1) * width, 0))) * scale,
                    bias * scale,
                )
            readout.load_state_dict(
                {"weight": torch.from_numpy(weight), "bias": torch.from_numpy(bias)}
            )
    return heads[0] if len(heads) == 1 else HeadEnsemble.from_heads(heads)


@torch.no_grad()
def _features(
    source: TokenSource, ids: Sequence[str], most: int = 0, seed: int = 0
) -> tuple[_Floats, _Floats, Any, Any]:
    """Mean tokens of the last layer (n, C); about ``most`` patches (m, L * C), the rows of their images and numbers.

    Both numbers are (m,): the place of the image among ``ids``, and that of the patch in raster
    order.
    """
    random, parts = np.random.default_rng(seed), []
    for numbers in in_batches(range(len(ids)), _BATCH):
        tokens = source.batch([ids[number] for number in numbers])
        drawn = random.random((len(numbers), tokens.grid.count)) < most / (
            len(ids) * tokens.grid.count
        )
        image, place = np.nonzero(drawn)
        patches = torch.cat(tokens.patches, dim=-1)[image, place].double().cpu().numpy()
        means = tokens.last.patches[0].double().mean(dim=1).cpu().numpy()
        parts.append((means, patches, image + numbers[0], place))
    means, patches, image, place = (np.concatenate(part) for part in zip(*parts, strict=True))
    return means, patches, image, place


def _fitted(task: Task, values: Tensor, grid: tuple[int, int]) -> Tensor:
    """What a task's layer is fitted to, (n, dim) or of maps (n, patches, dim): values in normalised units or shares."""
    if task.is_categorical and not values.is_floating_point():
        values = torch.stack(
            [(values == k) & (k != task.ignore_index) for k in range(task.dim)], dim=1
        )
    x = F.adaptive_avg_pool2d(values.double(), grid).flatten(2) if task.is_map else values.double()
    if task.is_categorical:
        x = x / x.sum(dim=1, keepdim=True)  # 0 / 0 = missing
    x = x.reshape(len(x), -1) if x.ndim < 3 else x.movedim(1, -1)
    x = x if task.transform is None else task.transform.forward(x)
    return x.where(x.isfinite().all(dim=-1, keepdim=True), torch.nan) if task.is_share else x
