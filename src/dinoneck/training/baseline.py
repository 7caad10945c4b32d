"""The linear baseline of a run: a LinearHead for the same tasks, fitted by ridge or softmax regression."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dinoneck.heads.ensemble import HeadEnsemble
from dinoneck.heads.head import DENSITY_CELLS, Head
from dinoneck.heads.linear import LinearHead
from dinoneck.losses.composition import Composition
from dinoneck.tasks import Task
from dinoneck.training.probes import FLOOR, inner_folds, ridge_coefficients
from dinoneck.training.sources import TokenSource, in_batches

MOST_PATCHES = 8192  # that a linear layer per patch is fitted to, drawn at random
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # of the softmax regression, times the squared norm of the weights
_STEPS = 100
_BATCH = 32
_MAPS = ("dense", "density", "segmentation")
_Floats = np.ndarray[Any, np.dtype[np.float64]]


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
