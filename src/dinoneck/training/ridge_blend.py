"""Blend a trained head with ridge regression on the mean token, in the head's own weights.

Gradient steps on patches reach the directions that separate images late, and their regularisation is not chosen by
the data; ridge regression has neither weakness. A :class:`dinoneck.heads.PatchMeanHead` holds the average of both
exactly: the patch mean of a linear map is that map of the mean token.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dinoneck.heads.head import Head
from dinoneck.heads.patch_mean import LEAKY_SLOPE, PatchMeanHead
from dinoneck.tasks import Task
from dinoneck.training.probes import pooled_tokens, ridge_coefficients
from dinoneck.training.sources import TokenSource

logger = logging.getLogger(__name__)

LinearMap = tuple[Tensor, Tensor, Tensor]
_BLEND = "_blend"  # attribute of a head: its weights before and after the blend


def can_hold(head: Head, task: Task) -> bool:
    """Return whether the head's weights can hold ridge regression on the mean token for this task, exactly."""
    return (
        type(head) is PatchMeanHead
        and all(type(layer) is nn.Linear for mlp in head.mlps for layer in mlp.children())
        and all(parameter.requires_grad for parameter in head.parameters())
        and task.kind == "regression"
        and task.activation is None
        and (task.transform is None or task.transform.is_affine)
    )


def blend_linear(head: PatchMeanHead, maps: Mapping[str, LinearMap]) -> None:
    """Blend linear maps of the patches into the outputs of some tasks, exactly; the head's ``hidden_dim`` grows.

    Afterwards ``new(x) == (1 - share) * old(x) + share * (x @ weight.T + bias)``, before the activation, as
    LeakyReLU(u) - LeakyReLU(-u) = (1 + slope) u. Every MLP gets two more hidden units per output (of the task with most
    outputs): a head has one ``hidden_dim``. Other tasks keep their outputs. All parameters are replaced by new ones:
    make an optimizer or a moving average of the weights again. :func:`unblend` undoes it.

    Args:
        head: its weights are changed.
        maps: task name -> weight (dim, C), bias (dim,) and share (dim,), 0 ... 1, float64 on the CPU.
    """
    units, before = 2 * max(task.dim for task in head.tasks), _copied_weights(head)
    for task, mlp in zip(head.tasks, head.mlps, strict=True):
        zero = torch.zeros(task.dim, dtype=torch.float64)
        weight, bias, share = maps.get(task.name, (torch.zeros(task.dim, head.embed_dim).double(), zero, zero))
        spare = units - 2 * task.dim  # units that are not needed are zero
        old = [x.detach().cpu().double() for x in mlp.parameters()]  # hidden.weight, hidden.bias, out.weight, out.bias
        gain = torch.diag(share / (1.0 + LEAKY_SLOPE))
        added = F.pad(torch.cat([gain, -gain], dim=1), (0, spare))
        _replace_weights(
            mlp,
            torch.cat([old[0], F.pad(torch.cat([weight, -weight]), (0, 0, 0, spare))]),  # u and -u
            torch.cat([old[1], F.pad(torch.cat([bias, -bias]), (0, spare))]),
            torch.cat([old[2] * (1.0 - share)[:, None], added], dim=1),
            old[3] * (1.0 - share),
        )
    head._config["hidden_dim"] += units
    setattr(head, _BLEND, (before, _copied_weights(head)))


def unblend(head: Head) -> None:
    """Undo the blend of an earlier call of ``fit`` where the head's weights are still the blended ones, bit for bit."""
    before, after = getattr(head, _BLEND, ((), ()))
    if not isinstance(head, PatchMeanHead) or not before:
        return
    delattr(head, _BLEND)
    pairs = [pair for each in zip(after, _copied_weights(head), strict=True) for pair in zip(*each, strict=True)]
    if all(x.dtype == y.dtype and torch.equal(x, y) for x, y in pairs):
        for mlp, weights in zip(head.mlps, before, strict=True):
            _replace_weights(mlp, *weights)
        head._config["hidden_dim"] = head.mlps[0].hidden_dim


def _replace_weights(mlp: Any, *weights: Tensor) -> None:
    """Give an MLP new weights (hidden, C), (hidden,), (out, hidden) and (out,), and record their width."""
    names = [(layer, name) for layer in (mlp.hidden, mlp.out) for name in ("weight", "bias")]
    for (layer, name), value in zip(names, weights, strict=True):
        old = getattr(layer, name)
        setattr(layer, name, nn.Parameter(value.to(old).contiguous(), requires_grad=old.requires_grad))
    mlp.hidden_dim = mlp.hidden.out_features = mlp.out.in_features = len(weights[1])
    mlp._config["hidden_dim"] = mlp.hidden_dim


def _copied_weights(head: PatchMeanHead) -> list[list[Tensor]]:
    return [[weight.detach().cpu().clone() for weight in mlp.parameters()] for mlp in head.mlps]


def blend_ridge(
    head: Head,
    source: TokenSource,
    ids: Sequence[str],
    targets: Mapping[str, Tensor],
    share: float,
    *,
    groups: Sequence[Hashable] | None = None,
    batch_size: int = 32,
) -> None:
    """Make ``head`` predict ``(1 - share) * head + share * ridge`` for the tasks whose ridge its weights can hold.

    Ridge is that of :func:`dinoneck.training.ridge_probe`, in the tasks' normalised units, on the images as they are.
    Its strength is chosen per output by five inner folds of the training ids. An output without any target keeps the
    head's prediction. The tasks that are blended are logged.

    Args:
        head: trained, for raw tokens.
        source: tokens by id.
        ids: the training ids.
        targets: task name -> (n, dim) in normalised units, in the order of ``ids``; NaN = missing.
        share: of ridge, 0 ... 1.
        groups: one label per id; inner folds keep a group whole, unless there is one alone. None = every image is its
            own group, also an id that is repeated.
        batch_size: images per read.
    """
    if not share:
        return
    tasks = [task for task in head.tasks if can_hold(head, task)]
    for task in head.tasks:
        logger.info("task %r: ridge regression is %sblended into the head", task.name, "" if task in tasks else "not ")
    if not tasks or not isinstance(head, PatchMeanHead):
        return
    features = pooled_tokens(source, batch_size, ids)
    values = np.concatenate([targets[task.name].double().cpu().numpy() for task in tasks], axis=1)
    known, number = np.isfinite(values), {image_id: i for i, image_id in enumerate(ids)}
    groups = [number[image_id] for image_id in ids] if groups is None else groups
    weight, bias = np.zeros((values.shape[1], features.shape[1])), np.zeros(values.shape[1])
    for rows in np.unique(known, axis=1).T:  # outputs that are known for the same images share the decompositions
        if rows.any():
            outputs = np.flatnonzero((known == rows[:, None]).all(axis=0))
            labels = [groups[int(row)] for row in np.flatnonzero(rows)]
            found = ridge_coefficients(features[rows], values[rows][:, outputs], groups=labels)
            weight[outputs], bias[outputs] = found
    shares = np.where(known.any(axis=0), share, 0.0)
    ends = np.cumsum([task.dim for task in tasks])[:-1]
    parts = zip(*(np.split(array, ends) for array in (weight, bias, shares)), strict=True)
    maps: Any = {task.name: tuple(map(torch.from_numpy, part)) for task, part in zip(tasks, parts, strict=True)}
    blend_linear(head, maps)
