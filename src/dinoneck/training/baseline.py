"""The linear baseline of a run: one linear layer per task, fitted without steps, on the tokens that the head reads."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dinoneck.heads.ensemble import HeadEnsemble
from dinoneck.heads.head import Head
from dinoneck.heads.linear import LinearHead
from dinoneck.losses.composition import Composition
from dinoneck.tasks import Task
from dinoneck.training.folds import group_folds
from dinoneck.training.probes import pooled_tokens, ridge_coefficients
from dinoneck.training.sources import TokenSource, in_batches

DECAYS = (1e-4, 1e-3, 1e-2, 1e-1)  # of logistic regression, on standardised features
MOST_PATCHES = 50_000  # that a layer per patch is fitted on
_BATCH, _INNER_FOLDS, _STEPS, _FLOOR = 16, 3, 100, 1e-8


def baseline_head(
    source: TokenSource,
    targets: Mapping[str, Tensor],
    rows: Sequence[int],
    tasks: Sequence[Task],
    compositions: Sequence[Composition] = (),
    *,
    groups: Sequence[Hashable] | None = None,
    seed: int = 0,
) -> Head:
    """Return linear layers fitted on the training rows.

    Values are read from the mean patch token of the last layer by ridge regression, whose strength inner folds choose;
    classes and ratios by logistic regression. Maps are read from every patch of the last layer, of at most 50,000
    patches: dense ones by ridge regression, masks by logistic regression.

    Args:
        source: tokens by id.
        targets: task -> values in original units, in the order of ``source.ids``; NaN or -1 = missing.
        rows: the training rows.
        tasks: of a head, with their transforms fitted on the training rows.
        compositions: of that head.
        groups: one label per row of the targets: inner folds keep groups whole.
        seed: of the patches that are drawn.

    Returns:
        A :class:`LinearHead`; where tasks read the image and others every patch, an ensemble of two.
    """
    places = [int(row) for row in rows]
    first = source.batch(source.ids[:1])
    width, layers = first.sequence[0].shape[-1], len(first.sequence)
    plain = [replace(task, activation=None) for task in tasks]
    maps = [task for task in plain if task.is_map or task.kind == "density" or task.from_cells is not None]
    values = [task for task in plain if task not in maps]
    own = [each for each in compositions if {each.total, each.ratio, *each.parts} & {task.name for task in values}]
    heads = [LinearHead(width, values, layers, "mean", own)] if values else []
    heads += [LinearHead(width, maps, layers, None)] if maps else []
    features = pooled_tokens(source, ids=[source.ids[row] for row in places])
    labels = range(len(places)) if groups is None else [groups[row] for row in places]
    patches = _patches(source, places, seed) if any(task.is_map for task in maps) else None
    for head in heads:
        read = [task for task in head.tasks if task.from_cells is None or task in values]
        for task, layer in zip(read, head.readouts, strict=True):
            if task.is_map and patches is not None:
                weight, bias = _patch_layer(task, *patches, targets[task.name], first.grid)
            else:
                weight, bias = _image_layer(task, features, targets[task.name][places], labels)
            count = first.grid.count if task.kind == "density" and task.aggregate == "sum" else 1
            _set(layer, weight / count, bias / count)
    return heads[0] if len(heads) == 1 else HeadEnsemble.from_heads(heads)


def _image_layer(task: Task, x: Any, targets: Tensor, groups: Sequence[Hashable]) -> tuple[Tensor, Tensor]:
    """Weight (dim, C) and bias (dim,) on the mean tokens x (n, C)."""
    y = targets.reshape(len(targets), -1)
    if task.is_categorical or task.kind == "ratio":
        shares = _shares(y, task.dim)
        known = shares.isfinite().all(dim=1)
        features, labels = torch.from_numpy(x)[known], [g for g, k in zip(groups, known.tolist(), strict=True) if k]
        return _logistic(features, shares[known], _best_decay(features, shares[known], labels))
    values = y if task.transform is None else task.transform.forward(y)
    layers = []
    for column in values.numpy().T:
        known = np.isfinite(column)
        labels = [group for group, there in zip(groups, known, strict=True) if there]
        layers.append(ridge_coefficients(x[known], column[known, None], groups=labels))
    weight, bias = (np.concatenate(parts) for parts in zip(*layers, strict=True))
    return torch.from_numpy(weight), torch.from_numpy(bias)


def _patches(source: TokenSource, rows: Sequence[int], seed: int) -> tuple[Tensor, Tensor]:
    """Patch tokens (m, C) of the last layer, drawn from the images, and the row and place of each (m, 2)."""
    generator = torch.Generator().manual_seed(seed)
    share, tokens, places = max(1, MOST_PATCHES // len(rows)), [], []
    for batch in in_batches(rows, _BATCH):
        with torch.no_grad():
            patches = source.batch([source.ids[row] for row in batch]).last.patches[0].float().cpu()
        for row, own in zip(batch, patches, strict=True):
            drawn = torch.randperm(len(own), generator=generator)[:share]
            tokens.append(own[drawn])
            places.append(torch.stack([torch.full_like(drawn, row), drawn], dim=1))
    return torch.cat(tokens).double(), torch.cat(places)


def _patch_layer(task: Task, x: Tensor, places: Tensor, targets: Tensor, grid: Any) -> tuple[Tensor, Tensor]:
    """Weight (dim, C) and bias (dim,) on patch tokens x (m, C); targets are maps (n, dim, rows, cols) or classes."""
    if task.is_categorical:
        maps = _shares(targets, task.dim) if targets.is_floating_point() else _patch_shares(targets, task, grid)
    else:
        maps = targets.double()
    y = maps.flatten(2)[places[:, 0], :, places[:, 1]]  # (m, dim)
    known = y.isfinite().all(dim=1)
    x, y = x[known], y[known]
    if task.is_categorical:
        return _logistic(x, y, DECAYS[0])
    weight, bias = ridge_coefficients(
        x.numpy(),
        (y if task.transform is None else task.transform.forward(y)).numpy(),
        groups=places[known, 0].tolist(),
        alphas=[len(x) * decay for decay in DECAYS],
    )
    return torch.from_numpy(weight), torch.from_numpy(bias)


def _shares(values: Tensor, count: int) -> Tensor:
    """Class indices as shares (n, K) of one whole, missing ones NaN; shares as they are."""
    if values.is_floating_point():
        return values.double()
    classes = values[:, 0]
    one_hot = F.one_hot(classes.clamp_min(0), count).double()
    return one_hot.masked_fill(classes[:, None] < 0, torch.nan)


def _patch_shares(classes: Tensor, task: Task, grid: Any) -> Tensor:
    """Class indices (n, height, width) as shares (n, K, rows, cols) of the patches; NaN where a patch has none."""
    known = (classes >= 0) & (classes != (-1 if task.ignore_index is None else task.ignore_index))
    planes = (F.one_hot(classes.clamp_min(0).where(known, 0), task.dim) * known[..., None]).double().movedim(-1, 1)
    counts = F.adaptive_avg_pool2d(planes, tuple(grid))
    return counts / counts.sum(dim=1, keepdim=True)


def _logistic(x: Tensor, shares: Tensor, decay: float) -> tuple[Tensor, Tensor]:
    """Weight (K, C) and bias (K,) of multinomial logistic regression on standardised features."""
    mean, std = x.mean(dim=0), x.std(dim=0, correction=0) + _FLOOR
    z = (x - mean) / std
    weight, bias = torch.zeros(shares.shape[1], x.shape[1], dtype=x.dtype), torch.zeros(shares.shape[1], dtype=x.dtype)
    optimizer = torch.optim.LBFGS([weight.requires_grad_(), bias.requires_grad_()], max_iter=_STEPS,
                                  line_search_fn="strong_wolfe")  # fmt: skip

    def closure() -> Any:
        optimizer.zero_grad()
        loss = F.cross_entropy(F.linear(z, weight, bias), shares) + decay / 2 * weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    with torch.enable_grad():
        optimizer.step(closure)  # type: ignore[no-untyped-call]
    weight = weight.detach() / std
    return weight, bias.detach() - weight @ mean


def _best_decay(x: Tensor, shares: Tensor, groups: Sequence[Hashable]) -> float:
    """The decay whose held-out loss over inner folds is lowest."""
    labels = groups if len(set(groups)) > 1 else range(len(x))
    folds = group_folds(labels, min(_INNER_FOLDS, len(set(labels))), seed=0) if len(x) > 1 else []
    losses = []
    for decay in DECAYS:
        fits = [(_logistic(x[train], shares[train], decay), valid) for train, valid in folds]
        losses.append(sum(F.cross_entropy(F.linear(x[v], *layer), shares[v]).item() * len(v) for layer, v in fits))
    return DECAYS[int(np.argmin(losses))]


@torch.no_grad()
def _set(layer: Any, weight: Tensor, bias: Tensor) -> None:
    """Write a layer that reads the last layer's tokens; those of other layers count for nothing."""
    layer.weight.zero_()
    layer.weight[:, -weight.shape[1] :] = weight
    layer.bias.copy_(bias)
