"""The baselines of a run: ridge regression on the mean token, and a fitted LinearHead.

Inner folds of the training rows choose their settings; features are standardised on the rows that a
fit sees.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

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
from dinoneck.kinds import MAP_KINDS
from dinoneck.losses.composition import Composition
from dinoneck.tasks import Task, has_direction, unit_vectors
from dinoneck.tokens import Tokens
from dinoneck.training.folds import FoldRows, group_folds
from dinoneck.training.samples import match_samples
from dinoneck.training.token_sources import TokenSource, in_batches

MOST_PATCHES = 8192  # that a linear layer per patch is fitted to, drawn at random
# of the softmax regression, times the squared norm of the weights
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
_MOST_ITERATIONS = 100  # of L-BFGS
_BATCH_SIZE = 32  # images whose tokens are read at once
_KINDS_WITH_MAPS = (*MAP_KINDS, "density")
INNER_FOLDS = 5  # that choose a setting
FLOOR = 1e-8  # added to the deviation of a feature, which may be 0
# strengths of the ridge regression, times the squared norm of the weights
ALPHAS = tuple(10.0**power for power in range(-2, 6))
_Floats = np.ndarray[Any, np.dtype[np.float64]]
Loss = Callable[[Tensor, Tensor], Tensor]
_Integers = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class LinearMethod:
    """A linear method with a setting to choose.

    Attributes:
        path: features (n, d), targets (n, t), new features (n_new, d) -> predictions by all
            settings (settings, n_new, t).
        error: predictions (settings, n, t), targets (n, t) -> errors (settings, t).
    """

    path: Callable[[_Floats, _Floats, _Floats], _Floats]
    error: Callable[[_Floats, _Floats], _Floats]


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
    values_by_id = by_id(table[names[0]], names[0], target_ids)
    matched = match_samples(
        source.ids,
        table,
        weights=None,
        labels=dict.fromkeys(names, ()),
        ids=values_by_id,
        target_ids=target_ids,
    )
    y = np.column_stack([*matched.values.values()]).astype(np.float64)
    if np.isinf(y).any():
        raise DataError(
            "the targets hold infinite values; expected numbers, or NaN where a value is missing"
        )
    x = _read_features(source, matched.ids).means
    labels: list[Hashable] = list(range(len(y))) if groups is None else list(groups)
    predictions = np.full(y.shape, np.nan)
    for train, valid in folds:
        train_labels = [labels[row] for row in train]
        predictions[valid] = predict_with_best_setting(
            RIDGE, x[train], y[train], groups=train_labels, new=x[valid]
        )
    return predictions


def predict_with_best_setting(
    method: LinearMethod, x: _Floats, y: _Floats, *, groups: Sequence[Hashable], new: _Floats
) -> _Floats:
    """Return predictions (n_new, t) with the setting of the least error in inner folds, which keep groups whole.

    Where there is one group, the inner folds split it by rows. Targets that are known in the same
    rows are solved together, in these rows.

    Args:
        method: predictions by all settings, and their errors.
        x: features (n, d).
        y: targets (n, t), NaN = missing.
        groups: one label per row.
        new: features (n_new, d).

    Raises:
        DataError: if no value of a target is known.
    """
    predictions = np.empty((len(new), y.shape[1]))
    is_known = np.isfinite(y)
    # the distinct columns of is_known, (n,) each: in which rows some of the targets are known
    for known_rows in np.unique(is_known, axis=1).T:
        if not known_rows.any():
            raise DataError("a fold has no training rows whose target is known; use other folds")
        columns = (is_known == known_rows[:, None]).all(axis=0)
        known_x = x[known_rows]
        known_y = y[known_rows][:, columns]
        known_groups = [groups[row] for row in np.flatnonzero(known_rows).tolist()]
        errors = _inner_errors(method, known_x, known_y, known_groups)
        best = errors.argmin(axis=0)
        predictions_of_settings = method.path(known_x, known_y, new)
        predictions[:, columns] = np.take_along_axis(
            predictions_of_settings, best[None, None], axis=0
        )[0]
    return predictions


def _inner_errors(
    method: LinearMethod, x: _Floats, y: _Floats, groups: Sequence[Hashable]
) -> _Floats:
    """The errors (settings, t) on the held-out rows of inner folds; 0 of a single row, which has no folds."""
    labels = list(groups)
    if len(set(labels)) == 1:
        labels = list(range(len(labels)))
    errors: _Floats = np.zeros((1, y.shape[1]))
    num_folds = min(INNER_FOLDS, len(set(labels)))
    if num_folds < 2:
        return errors
    for train, valid in group_folds(labels, num_folds, seed=0):
        predictions = method.path(x[train], y[train], x[valid])
        errors = errors + method.error(predictions, y[valid])
    return errors


def squares(predictions: _Floats, y: _Floats) -> _Floats:
    """Return the sum of squared errors of each setting and target."""
    errors: _Floats = ((predictions - y) ** 2).sum(axis=1)
    return errors


def cross_entropy(logits: _Floats, shares: _Floats) -> _Floats:
    """Return the sum of the cross-entropies of each setting, for all classes."""
    log_shares = torch.from_numpy(logits).log_softmax(dim=-1).numpy()
    errors: _Floats = -(log_shares * shares).sum(axis=(1, 2))[:, None]
    return errors


def binary_cross_entropy(logits: _Floats, is_present: _Floats) -> _Floats:
    """Return the sum of the binary cross-entropies of each setting and label."""
    scores = torch.from_numpy(logits)
    targets = torch.from_numpy(is_present).expand_as(scores)
    errors = F.binary_cross_entropy_with_logits(scores, targets, reduction="none")
    of_labels: _Floats = errors.sum(dim=1).numpy()
    return of_labels


def fit_linear(
    method: LinearMethod, x: _Floats, y: _Floats, *, groups: Sequence[Hashable]
) -> tuple[_Floats, _Floats]:
    """Return weight (t, d) and bias (t,), for features as they are, of a method that is affine in them."""
    # the prediction of no feature is the bias; that of one feature alone adds its weight
    probes = np.vstack([np.zeros(x.shape[1]), np.eye(x.shape[1])])
    predictions = predict_with_best_setting(method, x, y, groups=groups, new=probes)
    bias = predictions[0]
    weight = (predictions[1:] - bias).T
    return weight, bias


def _standardise(x: _Floats, new: _Floats) -> tuple[_Floats, _Floats]:
    """Return both in units of the deviation of ``x`` from its mean."""
    mean = x.mean(axis=0)
    std = x.std(axis=0) + FLOOR
    return (x - mean) / std, (new - mean) / std


def ridge_path(x: _Floats, y: _Floats, new: _Floats) -> _Floats:
    """Return the predictions of ridge regression on standardised features, for all strengths."""
    x, new = _standardise(x, new)
    u, s, vt = np.linalg.svd(x, full_matrices=False)
    mean = y.mean(axis=0)
    projected = u.T @ (y - mean)
    new_projected = new @ vt.T
    predictions = []
    for alpha in ALPHAS:
        shrinkage = s[:, None] / (s[:, None] ** 2 + alpha)
        predictions.append(new_projected @ (shrinkage * projected) + mean)
    return np.stack(predictions)


def softmax_path(x: _Floats, shares: _Floats, new: _Floats) -> _Floats:
    """Return the logits of softmax regression on standardised features, for all penalties."""
    return _logits_path(x, shares, new, F.cross_entropy)


def logistic_path(x: _Floats, is_present: _Floats, new: _Floats) -> _Floats:
    """Return the logits of logistic regression of each label on standardised features, for all penalties."""
    return _logits_path(x, is_present, new, _label_errors)


def _label_errors(logits: Tensor, is_present: Tensor) -> Tensor:
    """The mean over images of the sum of the labels' binary cross-entropies."""
    errors = F.binary_cross_entropy_with_logits(logits, is_present, reduction="none")
    return errors.sum(dim=1).mean()


def _logits_path(x: _Floats, targets: _Floats, new: _Floats, loss: Loss) -> _Floats:
    """The logits (penalties, n_new, t) of linear layers that minimise a loss on standardised features."""
    x, new = _standardise(x, new)
    features = torch.from_numpy(x)
    target_values = torch.from_numpy(targets)
    new_features = torch.from_numpy(new)
    logits = []
    for penalty in PENALTIES:
        layer = fit_layer(features, target_values, penalty, loss)
        logits.append(layer(new_features).numpy())
    return np.stack(logits)


RIDGE = LinearMethod(ridge_path, squares)
SOFTMAX = LinearMethod(softmax_path, cross_entropy)
LOGISTIC = LinearMethod(logistic_path, binary_cross_entropy)


@torch.enable_grad()
def fit_layer(x: Tensor, targets: Tensor, penalty: float, loss: Loss) -> nn.Linear:
    """Return a linear layer that minimises a loss of its logits plus the penalised squares of its weights.

    Args:
        x: features (n, d), standardised.
        targets: (n, t), what ``loss`` compares the logits (n, t) with.
        penalty: times the squared norm of the weights; the bias is free.
        loss: of logits and targets.
    """
    layer = nn.Linear(x.shape[1], targets.shape[1], dtype=x.dtype)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    optimizer = torch.optim.LBFGS(
        layer.parameters(), max_iter=_MOST_ITERATIONS, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        total = loss(layer(x), targets) + penalty * layer.weight.square().sum()
        total.backward()  # type: ignore[no-untyped-call]
        return total

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
    ratios softmax regression on it, labels logistic regression. Dense maps are ridge regression and
    segmentations softmax regression on single patches of all layers, of which at most 8192 are drawn.
    Inner folds of the training images choose the strength of each.

    Args:
        source: tokens by id.
        targets: task -> (n, ...) in original units in the order of ``source.ids``; NaN = missing,
            of classes -1.
        rows: of the training images.
        tasks: one or more, of images (regression, ratio, classification, multilabel) or of patches (dense,
            density, segmentation, and regressions with ``from_map``). Activations are left out,
            but for that of surface normals, whose components are fitted.
        groups: a label per row of the source; inner folds keep groups whole.
        compositions: those whose tasks are of images are kept.
        seed: of the patches that are drawn.

    Returns:
        A :class:`dinoneck.heads.LinearHead`; where tasks are of both kinds, an ensemble of two.
    """
    of_images: list[Task] = []
    of_patches: list[Task] = []
    for task in tasks:
        if task.kind in _KINDS_WITH_MAPS or task.from_map is not None:
            of_patches.append(task)
        else:
            of_images.append(task)
    ids = [source.ids[row] for row in rows]
    example = source.batch(ids[:1])
    training = _TrainingRows(
        features=_read_features(
            source, ids, most_patches=MOST_PATCHES if of_patches else 0, seed=seed
        ),
        targets={task.name: torch.as_tensor(targets[task.name])[[*rows]] for task in tasks},
        groups=[groups[row] for row in rows],
    )
    heads: list[Head] = []
    if of_images:
        head = _linear_head(of_images, compositions, example, pool="mean")
        _fit_readouts(head, of_images, training, example)
        heads.append(head)
    if of_patches:
        head = _linear_head(of_patches, compositions, example, pool=None)
        _fit_readouts(head, of_patches, training, example)
        heads.append(head)
    if len(heads) == 1:
        return heads[0]
    return HeadEnsemble.from_heads(heads)


@dataclass(frozen=True)
class _Features:
    """What linear methods read of n images.

    Attributes:
        means: mean tokens of the last layer (n, C).
        patches: of all layers, drawn at random (m, L * C).
        images: the row of the image of each patch (m,).
        positions: its number in the image in raster order (m,).
    """

    means: _Floats
    patches: _Floats
    images: _Integers
    positions: _Integers


@dataclass(frozen=True)
class _TrainingRows:
    """What a head is fitted to: features, targets in original units and a group per image."""

    features: _Features
    targets: Mapping[str, Tensor]
    groups: Sequence[Hashable]


def _linear_head(
    tasks: Sequence[Task],
    compositions: Sequence[Composition],
    example: Tokens,
    *,
    pool: Literal["mean"] | None,
) -> LinearHead:
    """Return a head for tokens such as the example's, with the compositions whose tasks it has."""
    names = {task.name for task in tasks}
    linear_tasks = []
    for task in tasks:
        activation = task.activation if task.is_unit else None
        linear_tasks.append(replace(task, activation=activation))
    return LinearHead(
        example.sequence[-1].shape[-1],
        linear_tasks,
        num_layers=len(example.sequence),
        pool=pool,
        compositions=[
            composition for composition in compositions if names.issuperset(composition.inputs)
        ],
    ).eval()


def _fit_readouts(
    head: LinearHead, tasks: Sequence[Task], training: _TrainingRows, example: Tokens
) -> None:
    """Fit the linear layer of every task that has one."""
    features = training.features
    grid = (example.grid.rows, example.grid.cols)
    tasks_with_layer = [task for task in tasks if task.from_map is None]
    for task, readout in zip(tasks_with_layer, head.readouts, strict=True):
        y = _readout_targets(task, training.targets[task.name], grid).numpy()
        method = _method_of(task)
        if task.is_map:
            patch_groups = [training.groups[row] for row in features.images]
            y = y[features.images, features.positions]
            weight, bias = fit_linear(method, features.patches, y, groups=patch_groups)
        else:
            weight, bias = fit_linear(method, features.means, y, groups=training.groups)
        if task.kind == "density":
            # the layer of a map reads all layers, and the fit is of the mean token of the last one
            num_others = features.patches.shape[1] - features.means.shape[1]
            scale = _scale_of_cells(task, grid)
            weight = np.pad(weight, ((0, 0), (num_others, 0))) * scale
            bias = bias * scale
        readout.load_state_dict(
            {"weight": torch.from_numpy(weight), "bias": torch.from_numpy(bias)}
        )


def _method_of(task: Task) -> LinearMethod:
    """The method that fits the layer of a task."""
    if task.is_probability:
        return SOFTMAX
    if task.is_multilabel:
        return LOGISTIC
    return RIDGE


def _scale_of_cells(task: Task, grid: tuple[int, int]) -> float:
    """The value of a cell of a density map by that of the image: their mean, or their sum."""
    if task.aggregate == "sum":
        return DENSITY_CELLS / (grid[0] * grid[1])
    return 1.0


@torch.no_grad()
def _read_features(
    source: TokenSource, ids: Sequence[str], *, most_patches: int = 0, seed: int = 0
) -> _Features:
    """Read the features of images, with about ``most_patches`` patches."""
    random = np.random.default_rng(seed)
    means = []
    patches = []
    images = []
    positions = []
    for rows in in_batches(range(len(ids)), _BATCH_SIZE):
        tokens = source.batch([ids[row] for row in rows])
        share = most_patches / (len(ids) * tokens.grid.count)
        is_drawn = random.random((len(rows), tokens.grid.count)) < share
        image, position = np.nonzero(is_drawn)
        drawn = torch.cat(tokens.patches, dim=-1)[image, position]
        means.append(tokens.last.patches[0].double().mean(dim=1).cpu().numpy())
        patches.append(drawn.double().cpu().numpy())
        images.append(image + rows[0])
        positions.append(position)
    return _Features(
        means=np.concatenate(means),
        patches=np.concatenate(patches),
        images=np.concatenate(images),
        positions=np.concatenate(positions),
    )


def _readout_targets(task: Task, values: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return what a task's layer is fitted to: values in normalised units, or shares.

    (n, dim), of maps (n, patches, dim), in float64; NaN = missing.
    """
    if task.is_categorical and not values.is_floating_point():
        is_class = [(values == k) & (k != task.ignore_index) for k in range(task.dim)]
        values = torch.stack(is_class, dim=1)
    x = values.double()
    if task.is_unit:
        x = unit_vectors(F.adaptive_avg_pool2d(x.nan_to_num(), grid))
        x = x.where(has_direction(x), torch.nan)
    if task.is_map:
        x = F.adaptive_avg_pool2d(x, grid).flatten(2)
    if task.is_categorical:
        x = x / x.sum(dim=1, keepdim=True)  # 0 / 0 = missing
    if x.ndim < 3:
        x = x.reshape(len(x), -1)
    else:
        x = x.movedim(1, -1)
    if task.transform is not None:
        x = task.transform.forward(x)
    if task.is_share:
        is_known = x.isfinite().all(dim=-1, keepdim=True)
        x = x.where(is_known, torch.nan)
    return x
