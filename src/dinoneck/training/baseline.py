"""The linear baseline of a run: a LinearHead for the same tasks, fitted by ridge or softmax regression."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dinoneck.errors import ConfigError
from dinoneck.heads.ensemble import HeadEnsemble
from dinoneck.heads.head import DENSITY_CELLS, Head
from dinoneck.heads.linear import LinearHead
from dinoneck.losses.composition import Composition
from dinoneck.tasks import Task
from dinoneck.training.folds import group_folds
from dinoneck.training.probes import INNER_FOLDS, ridge_coefficients
from dinoneck.training.sources import TokenSource, in_batches

MOST_PATCHES = 8192  # that a linear layer per patch is fitted to, drawn at random
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # of the softmax regression, times the squared norm of the weights
_STEPS = 100
_BATCH = 32
_MAPS = ("dense", "density", "segmentation")


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
        tasks: of images (regression, ratio, classification) or of patches (dense, density, segmentation, and
            regressions with ``from_cells``). Activations are left out.
        compositions: those whose tasks are of images are kept.
        groups: a label per row of the source; inner folds keep groups whole. None = every image is its own group.
        seed: of the patches that are drawn.

    Returns:
        A :class:`dinoneck.heads.LinearHead`; where tasks are of both kinds, an ensemble of two.

    Raises:
        ConfigError: if there are no tasks.
    """
    of_images = [task for task in tasks if task.kind not in _MAPS and task.from_cells is None]
    of_patches = [task for task in tasks if task not in of_images]
    heads = [
        _fitted(source, targets, np.asarray(rows), own, compositions, groups, seed)
        for own in (of_images, of_patches)
        if own
    ]
    if not heads:
        raise ConfigError("there are no tasks to fit a linear baseline for")
    return heads[0] if len(heads) == 1 else HeadEnsemble.from_heads(heads)


def _fitted(
    source: TokenSource,
    targets: Mapping[str, Tensor],
    rows: np.ndarray[Any, Any],
    tasks: Sequence[Task],
    compositions: Sequence[Composition],
    groups: Sequence[Hashable] | None,
    seed: int,
) -> LinearHead:
    """The linear head of tasks of one kind: of images, or of patches."""
    per_patch = tasks[0].kind in _MAPS or tasks[0].from_cells is not None
    own = [task for task in tasks if task.from_cells is None]
    compositions = [each for each in compositions if {*each.inputs} <= {task.name for task in tasks}]
    pooled, patches, grid = _features(source, rows, per_patch, seed)
    labels: list[Hashable] = [*range(len(rows))] if groups is None else [groups[row] for row in rows]
    layers = patches[0].shape[-1] // pooled.shape[1] if per_patch else _num_layers(source)
    plain = [replace(task, activation=None) for task in tasks]
    head = LinearHead(pooled.shape[1], plain, layers, None if per_patch else "mean", compositions).eval()
    for task, layer in zip(own, head.readouts, strict=True):
        values = torch.as_tensor(targets[task.name])[[*rows]]
        if task.kind in ("dense", "segmentation"):
            image, place = patches[1], patches[2]
            x, y = patches[0], _patch_targets(task, values, grid)[image, place]
            own_labels = [labels[i] for i in image.tolist()]
        else:
            x, y, own_labels = pooled, _image_targets(task, values), labels
        if task.is_categorical or task.kind == "ratio":
            weight, bias = _softmax_regression(x, y, own_labels)
        else:
            weight, bias = _ridge(x, y, own_labels)
        if task.kind == "density":  # the value is read from the mean token of the last layer
            scale = DENSITY_CELLS / (grid[0] * grid[1]) if task.aggregate == "sum" else 1.0
            weight, bias = F.pad(weight, ((layers - 1) * pooled.shape[1], 0)) * scale, bias * scale
        _set(cast("nn.Linear", layer), weight, bias)
    return head


def _num_layers(source: TokenSource) -> int:
    return len(source.batch(source.ids[:1]).sequence)


@torch.no_grad()
def _features(
    source: TokenSource, rows: np.ndarray[Any, Any], per_patch: bool, seed: int
) -> tuple[Tensor, tuple[Tensor, ...], tuple[int, int]]:
    """Mean tokens (n, C); patches (m, L * C) with the numbers of their images and places; the grid."""
    random, means, drawn = np.random.default_rng(seed), list[Tensor](), list[tuple[Tensor, ...]]()
    grid, share = (1, 1), 1.0
    for numbers in in_batches(range(len(rows)), _BATCH):
        tokens = source.batch([source.ids[rows[number]] for number in numbers])
        means.append(tokens.last.patches[0].double().mean(dim=1).cpu())
        grid = (tokens.grid.rows, tokens.grid.cols)
        if per_patch:
            count = grid[0] * grid[1]
            share = min(1.0, MOST_PATCHES / (len(rows) * count))
            image, place = np.nonzero(random.random((len(numbers), count)) < share)
            x = torch.cat(tokens.patches, dim=-1)[image, place].double().cpu()  # (m, L * C)
            drawn.append((x, torch.as_tensor(image + numbers[0]), torch.as_tensor(place)))
    patches = tuple(torch.cat(parts) for parts in zip(*drawn, strict=True))
    return torch.cat(means), patches, grid


def _image_targets(task: Task, values: Tensor) -> Tensor:
    """(n, dim) in normalised units; of classes one-hot; a row of NaN = missing."""
    if task.is_categorical:
        missing = (values < 0) | (values == task.ignore_index)
        return (
            F.one_hot(values.masked_fill(missing, 0).long(), task.dim).double().masked_fill(missing[:, None], torch.nan)
        )
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


def _ridge(x: Tensor, y: Tensor, groups: Sequence[Hashable]) -> tuple[Tensor, Tensor]:
    """Weight (t, d) and bias (t,); each output is fitted to the rows in which it is known."""
    known, features, values = y.isfinite().numpy(), x.numpy(), y.numpy()
    weight, bias = np.zeros((y.shape[1], x.shape[1])), np.zeros(y.shape[1])
    for pattern in np.unique(known, axis=1).T:  # outputs that are known in the same rows are solved together
        columns = np.flatnonzero((known == pattern[:, None]).all(axis=0))
        labels = [groups[int(row)] for row in np.flatnonzero(pattern)]
        weight[columns], bias[columns] = ridge_coefficients(
            features[pattern], values[pattern][:, columns], groups=labels
        )
    return torch.as_tensor(weight), torch.as_tensor(bias)


def _softmax_regression(x: Tensor, y: Tensor, groups: Sequence[Hashable]) -> tuple[Tensor, Tensor]:
    """Weight (K, d) and bias (K,) of logits whose softmax fits shares (n, K); the penalty is chosen by inner folds."""
    known = y.isfinite().all(dim=1)
    x, y, labels = x[known], y[known], [groups[i] for i in known.nonzero()[:, 0].tolist()]
    mean, std = x.mean(dim=0), x.std(dim=0, correction=0) + 1e-8
    x = (x - mean) / std
    labels = labels if len(set(labels)) > 1 else [*range(len(x))]  # a single group is split by rows
    count = min(INNER_FOLDS, len(set(labels)))
    errors = np.zeros(len(PENALTIES))
    for train, valid in group_folds(labels, count, seed=0) if count > 1 else []:
        for number, penalty in enumerate(PENALTIES):
            weight, bias = _minimised(x[train], y[train], penalty)
            errors[number] += float(F.cross_entropy(F.linear(x[valid], weight, bias), y[valid], reduction="sum"))
    weight, bias = _minimised(x, y, PENALTIES[int(errors.argmin())])
    return weight / std, bias - (weight / std) @ mean


def _minimised(x: Tensor, y: Tensor, penalty: float) -> tuple[Tensor, Tensor]:
    weight, bias = torch.zeros(y.shape[1], x.shape[1], dtype=x.dtype), torch.zeros(y.shape[1], dtype=x.dtype)
    parameters = [weight.requires_grad_(), bias.requires_grad_()]
    optimizer = torch.optim.LBFGS(parameters, max_iter=_STEPS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(F.linear(x, weight, bias), y) + penalty * weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    with torch.enable_grad():
        optimizer.step(closure)  # type: ignore[no-untyped-call]
    return weight.detach(), bias.detach()


@torch.no_grad()
def _set(layer: nn.Linear, weight: Tensor, bias: Tensor) -> None:
    layer.weight.copy_(weight)
    layer.bias.copy_(bias)
