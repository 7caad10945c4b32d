"""Blend a trained head with ridge regression on the mean token, in the head's own weights.

Gradient steps on patches reach the directions that separate images late, and their regularisation is not chosen by
the data; ridge regression has neither weakness. A :class:`dinoneck.heads.PatchMeanHead` holds the average of both
exactly: the patch mean of a linear map is that map of the mean token.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from dinoneck.heads.head import Head
from dinoneck.heads.patch_mean import PatchMeanHead
from dinoneck.tasks import Task
from dinoneck.training.probes import pooled_tokens, ridge_coefficients
from dinoneck.training.sources import TokenSource

logger = logging.getLogger(__name__)


def why_not(head: Head, task: Task) -> str | None:
    """Return why the head's weights cannot hold ridge regression on the mean token for this task; None = they can."""
    if type(head) is not PatchMeanHead:
        return f"the head is {type(head).__name__}"
    if any(type(layer) is not nn.Linear for mlp in head.mlps for layer in mlp.children()):
        return "the head has changed layers"
    if not all(parameter.requires_grad for parameter in head.parameters()):
        return "the head has frozen parameters"
    if task.kind != "regression":
        return f"its kind is {task.kind!r}"
    if task.activation is not None:
        return f"it has the activation {task.activation!r}"
    return "its transform has log1p" if task.transform is not None and not task.transform.is_affine else None


def unblend(head: Head) -> None:
    """Undo the blend of an earlier call of ``fit`` where the head's weights are still the blended ones, bit for bit."""
    if isinstance(head, PatchMeanHead):
        head.unblend_linear()


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
    head's prediction. Which tasks are blended, and why others are not, is logged.

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
    reasons = {task.name: why_not(head, task) for task in head.tasks}
    for name, reason in reasons.items():
        outcome = "blended into the head" if reason is None else f"not blended, because {reason}"
        logger.info("task %r: ridge regression is %s", name, outcome)
    tasks = [task for task in head.tasks if reasons[task.name] is None]
    if not tasks or not isinstance(head, PatchMeanHead):
        return
    features = pooled_tokens(source, batch_size, ids)
    values = np.concatenate([targets[task.name].double().cpu().numpy() for task in tasks], axis=1)
    known, groups = np.isfinite(values), ids if groups is None else groups
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
    head.blend_linear(
        {task.name: tuple(map(torch.from_numpy, part)) for task, part in zip(tasks, parts, strict=True)}  # type: ignore
    )
