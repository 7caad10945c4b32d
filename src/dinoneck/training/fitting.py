"""fit: train a head on tokens. A plain torch loop; the same seed gives the same weights."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from dinoneck.errors import ConfigError, DataError
from dinoneck.heads.head import Head
from dinoneck.losses.task_loss import TaskLoss
from dinoneck.tasks import Task
from dinoneck.training.schedule import cosine_with_warmup
from dinoneck.training.sources import TokenSource
from dinoneck.training.targets import known, training_targets
from dinoneck.training.token_scale import CalibratesEntrance, TokenScale, standardised

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recipe:
    """How a head is trained, in plain values.

    Attributes:
        weight_decay: of AdamW, for matrices; biases and norms have none.
        warmup: share of the steps in which the learning rate rises.
        clip_norm: gradients are scaled down to this norm; None = never.
        standardise_tokens: train on tokens of zero mean and unit spread per channel (measured on the training
            ids): heads whose first layer is linear absorb the scale after, exactly; heads with a norm at the
            entrance start with that norm set to it. Other heads take tokens as they are.
    """

    weight_decay: float = 1e-2
    warmup: float = 0.1
    clip_norm: float | None = 1.0
    standardise_tokens: bool = True


def fit(
    head: Head,
    source: TokenSource,
    *,
    targets: Mapping[str, Any],
    ids: Sequence[str],
    epochs: int = 40,
    batch_size: int = 8,
    lr: float = 1e-3,
    seed: int = 42,
    recipe: Recipe | None = None,
    weights: Mapping[str, Any] | None = None,
    loss: TaskLoss | None = None,
) -> list[dict[str, float]]:
    """Train ``head`` in place.

    Args:
        head: its tasks must be final: fit their transforms on the training rows first.
        source: tokens by id.
        targets: task name -> natural values in the order of ``source.ids``: (n,), (n, dim) or (n, dim, rows, cols),
            NaN = missing; class indices (n,) or (n, height, width), -1 = missing; class shares (n, dim, rows, cols).
        ids: the training ids.
        epochs: passes over them.
        batch_size: samples per step.
        lr: AdamW's peak; cosine with warm-up.
        seed: order of the samples.
        recipe: the rest.
        weights: dense task name -> (n, rows, cols): valid pixels of each cell, say; None = all cells count alike.
        loss: over the head's tasks; its own parameters are trained along. None = ``TaskLoss(head.tasks)``.

    Returns:
        One dict per epoch: ``loss`` and the tasks' parts, averaged over its steps.

    Raises:
        DataError: if targets are missing, misshapen, infinite or beyond a task's activation, or the loss diverges.
        ConfigError: if a number is out of range, or the loss has other tasks.
    """
    _check_numbers(epochs, batch_size, lr, seed, ids)
    recipe = recipe or Recipe()
    rows = _rows(source, ids)
    loss_of = _checked_loss(head, loss)
    values, cells = training_targets(loss_of, targets, weights or {}, len(source.ids))
    _check_problem(head, source, rows, values)
    optimizer = torch.optim.AdamW(_groups([head, loss_of], recipe.weight_decay), lr=lr)
    scheduler = cosine_with_warmup(optimizer, epochs * -(-len(rows) // batch_size), recipe.warmup)
    order = np.random.RandomState(seed)
    head.train()
    _calibrate(head, source, ids, batch_size, enabled=recipe.standardise_tokens)
    history: list[dict[str, float]] = []
    with standardised(head, source, ids, enabled=recipe.standardise_tokens) as scale:
        for _ in tqdm(range(epochs), desc="epochs", unit="epoch", disable=None, leave=False):
            history.append({})
            for chosen in _batches(order.permutation(rows), batch_size):
                total, parts = loss_of(*_answers(head, source, chosen, scale, values, cells))
                _step(head, total, optimizer, recipe)
                scheduler.step()
                _add(history[-1], {"loss": total, **parts}, len(chosen) / len(rows))
    head.eval()
    return history


def _add(sums: dict[str, float], parts: Mapping[str, Tensor], share: float) -> None:
    for name, part in parts.items():
        sums[name] = sums.get(name, 0.0) + float(part.detach()) * share


def _batches(rows: Any, size: int) -> list[Any]:
    return [rows[begin : begin + size] for begin in range(0, len(rows), size)]


def _checked_loss(head: Head, loss: TaskLoss | None) -> TaskLoss:
    """The loss given, or the one that the head's tasks make; on the head's device."""
    found = TaskLoss(head.tasks) if loss is None else loss
    if found.tasks != head.tasks:
        raise ConfigError(f"the loss is built for tasks {_named(found.tasks)}, the head for {_named(head.tasks)}")
    return found.to(next(head.parameters()).device).train()


def _rows(source: TokenSource, ids: Sequence[str]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Where the ids stand in the source."""
    place = {image_id: row for row, image_id in enumerate(source.ids)}
    unknown = [image_id for image_id in ids if image_id not in place]
    if unknown:
        raise DataError(f"{len(unknown)} training ids are not in the source, the first is {unknown[0]!r}")
    return np.array([place[image_id] for image_id in ids])


def _check_problem(head: Head, source: TokenSource, rows: Any, values: Mapping[str, Tensor]) -> None:
    """Refuse targets that cannot be learnt; mention layers that nobody reads."""
    for task in head.tasks:
        _check_targets(task, values[task.name][rows])
    layers = source.batch(source.ids[:1]).layers or ()
    if len(layers) > 1 and not hasattr(head, "num_layers"):
        logger.warning(
            "the tokens hold layers %s; %s reads the last one listed, block %d: extract that one alone, or list "
            "another last",
            layers,
            type(head).__name__,
            layers[-1],
        )


def _check_numbers(epochs: int, batch_size: int, lr: float, seed: int, ids: Sequence[str]) -> None:
    whole = all(isinstance(n, int) and not isinstance(n, bool) for n in (epochs, batch_size, seed))
    if not whole or epochs < 1 or batch_size < 1 or not 0 < lr < float("inf") or not ids:
        raise ConfigError(
            f"epochs={epochs}, batch_size={batch_size}, lr={lr}, seed={seed}, {len(ids)} ids: "
            "expected positive whole numbers, a positive finite lr and a whole seed"
        )


def _step(head: Head, total: Tensor, optimizer: torch.optim.Optimizer, recipe: Recipe) -> None:
    """One step of the optimizer down the gradient of ``total``."""
    if not bool(total.isfinite()):
        rate = optimizer.param_groups[0]["lr"]
        raise DataError(
            f"the loss is {total.item()} at lr {rate:.3g}: training diverged; lower lr, or check the targets"
        )
    optimizer.zero_grad(set_to_none=True)
    total.backward()  # type: ignore[no-untyped-call]
    if recipe.clip_norm is not None:
        torch.nn.utils.clip_grad_norm_(head.parameters(), recipe.clip_norm)
    optimizer.step()


def _calibrate(head: Head, source: TokenSource, ids: Sequence[str], batch_size: int, *, enabled: bool) -> None:
    """Set the head's entrance norms, where it has any, to the training tokens."""
    if not enabled or not isinstance(head, CalibratesEntrance):
        return
    device = next(head.parameters()).device
    head.calibrate(source.batch(ids[begin : begin + batch_size]).to(device) for begin in range(0, len(ids), batch_size))


def _answers(
    head: Head,
    source: TokenSource,
    rows: Any,
    scale: TokenScale | None,
    values: Mapping[str, Tensor],
    cells: Mapping[str, Tensor],
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """The head's outputs for these rows, their targets and masks."""
    device = next(head.parameters()).device
    tokens = source.batch([source.ids[row] for row in rows]).to(device)
    wanted = {name: value[rows].to(device) for name, value in values.items()}
    masks = {name: known(value) for name, value in wanted.items()}
    masks |= {name: weight[rows].to(device) for name, weight in cells.items()}
    return head(tokens if scale is None else scale.apply(tokens)), wanted, masks


def _check_targets(task: Task, values: Tensor) -> None:
    known = values[values.isfinite()] if values.is_floating_point() else values[values >= 0]
    if not known.numel():
        raise DataError(f"task {task.name!r} has no target value among the {len(values)} training ids")
    if task.is_categorical or task.activation is None:
        return
    low, high = known.min().item(), known.max().item()
    if low < 0 or (task.activation == "sigmoid" and high > 1):
        raise DataError(
            f"task {task.name!r}: activation {task.activation!r} cannot reach targets of {low:.4g} ... {high:.4g} in "
            "model space; leave the activation out (minimum= keeps predictions from falling below a bound), or use a "
            "transform without mean"
        )


def _groups(modules: Sequence[torch.nn.Module], weight_decay: float) -> list[dict[str, Any]]:
    trained = [parameter for module in modules for parameter in module.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]


def _named(tasks: Sequence[Task]) -> str:
    return ", ".join(task.name for task in tasks)
