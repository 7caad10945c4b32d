"""The loss of a head, built from its tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from dinoneck.errors import ShapeError
from dinoneck.losses.masked import masked_cross_entropy, masked_mse, masked_smooth_l1, ratio_mse, shares
from dinoneck.tasks import Task, check_tasks


class TaskLoss(nn.Module):
    """Sum of the tasks' losses, each by its kind, weight and mask.

    A task with one weight adds weight x mean over samples and outputs; a task with a weight per output adds
    the sum over outputs of weight x mean over samples.

    Args:
        tasks: regression, ratio and classification tasks.

    Shape:
        outputs ``{name: (B, dim)}`` in model space, targets ``{name: (B, dim)}`` in model space (class indices
        (B,) or probabilities (B, dim) for classification), masks ``{name: (B,) or (B, dim)}`` -> the total and
        the tasks' contributions to it.

    Raises:
        ConfigError: for tasks of another kind.
        ShapeError: if an output or target is missing or has another shape, or a mask has an unknown name.

    Examples:
        >>> loss = TaskLoss([Task("total"), Task("state", dim=4, kind="classification", weight=0.1)])
        >>> outputs = {"total": torch.zeros(2, 1), "state": torch.zeros(2, 4)}
        >>> total, parts = loss(outputs, {"total": torch.ones(2, 1), "state": torch.tensor([0, 3])})
        >>> {name: round(part.item(), 4) for name, part in parts.items()}
        {'total': 1.0, 'state': 0.1386}
    """

    def __init__(self, tasks: Sequence[Task]) -> None:
        super().__init__()
        self.tasks = check_tasks(tasks, kinds=("regression", "ratio", "classification"), owner="TaskLoss")

    def forward(
        self,
        outputs: Mapping[str, Tensor],
        targets: Mapping[str, Tensor],
        masks: Mapping[str, Tensor] | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return (total, parts); the parts sum to the total."""
        parts = {}
        if unknown := set(masks or {}) - {task.name for task in self.tasks}:
            raise ShapeError(f"the masks name {sorted(unknown)}; the tasks are {[task.name for task in self.tasks]}")
        for task in self.tasks:
            for what, given in (("outputs", outputs), ("targets", targets)):
                if task.name not in given:
                    raise ShapeError(f"the {what} lack task {task.name!r}; they hold {', '.join(given) or 'nothing'}")
            if outputs[task.name].shape[-1:] != (task.dim,):
                shape = tuple(outputs[task.name].shape)
                raise ShapeError(f"the output of task {task.name!r} is {shape}; expected (batch, {task.dim})")
            mask = (masks or {}).get(task.name)
            parts[task.name] = _weighted(task, outputs[task.name], targets[task.name], mask)
        return torch.stack(list(parts.values())).sum(), parts


def _weighted(task: Task, output: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
    if not isinstance(task.weight, tuple):
        return task.weight * _loss(task, output, target, mask)
    if task.kind == "ratio":  # the softmax runs over outputs, so it comes before they are taken apart
        output = shares(output)
    columns = [
        weight * _column_loss(task, output[:, i], target[:, i], _column(mask, i))
        for i, weight in enumerate(task.weight)
    ]
    return torch.stack(columns).sum()


def _loss(task: Task, output: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
    if task.is_categorical:
        return masked_cross_entropy(output, target, mask, task.ignore_index)
    if task.kind == "ratio":
        return ratio_mse(output, target, mask)
    return _column_loss(task, output, target, mask)


def _column_loss(task: Task, output: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
    """The loss of values that stand for themselves."""
    if task.default_loss == "smooth_l1":
        return masked_smooth_l1(output, target, mask, task.beta)
    return masked_mse(output, target, mask)


def _column(mask: Tensor | None, i: int) -> Tensor | None:
    """The mask of output i: its own column, or the one that all outputs share."""
    if mask is None or mask.ndim < 2:
        return mask
    return mask[:, 0 if mask.shape[1] == 1 else i]
