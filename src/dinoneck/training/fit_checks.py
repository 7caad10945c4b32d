"""What a call of fit is refused for, before any work."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import torch

from dinoneck.errors import ConfigError, DataError
from dinoneck.heads.head import Head
from dinoneck.losses.task_loss import TaskLoss
from dinoneck.tasks import Task
from dinoneck.training.batches import Rows
from dinoneck.training.learner import Learner
from dinoneck.training.live_tokens import LiveTokens
from dinoneck.training.recipe import Recipe
from dinoneck.training.sources import TokenSource

logger = logging.getLogger(__name__)


def check_kinds(head: object, source: object, recipe: object) -> None:
    """Refuse arguments of another kind, and a call where gradients are off.

    Raises:
        ConfigError: naming what was given.
        DataError: likewise.
    """
    if not isinstance(head, Head):
        raise ConfigError(f"head is {type(head).__name__}; expected a head with tasks, such as PatchMeanHead")
    if not torch.is_grad_enabled():
        raise ConfigError(
            "fit was called under torch.no_grad() or torch.inference_mode(), where nothing can be trained; call it "
            "outside of them"
        )
    if not isinstance(recipe, Recipe):
        raise ConfigError(f"recipe is {recipe!r}; expected Recipe(...) of dinoneck.training")
    if not hasattr(source, "ids") or not hasattr(source, "batch"):
        raise DataError(
            f"source is {type(source).__name__}; expected tokens by id: a FeatureStore, MemoryTokens or LiveTokens"
        )


def checked_loss(head: Head, loss: TaskLoss | None) -> TaskLoss:
    """Return the loss given, or the one that the head's tasks and compositions make; on the head's device.

    Raises:
        ConfigError: if it is built for other tasks.
    """
    found = TaskLoss(head.tasks, head.compositions) if loss is None else loss
    if found.tasks != head.tasks:
        raise ConfigError(f"the loss is built for tasks {_named(found.tasks)}, the head for {_named(head.tasks)}")
    return found.to(next(head.parameters()).device).train()


def check_together(
    head: Head,
    source: TokenSource,
    tasks: Sequence[Task] | None,
    recipe: Recipe,
    ids: Sequence[str],
    val_ids: Sequence[str],
) -> None:
    """Refuse what does not fit together.

    Raises:
        ConfigError: if tasks are not the head's, or the recipe asks for what the call lacks.
        DataError: if ids are for training and validation.
    """
    if tasks is not None and tuple(tasks) != tuple(head.tasks):
        raise ConfigError(
            f"fit was given tasks {_named(tasks)}, the head was built for {_named(head.tasks)}, or they differ in a "
            "field; build the head with these tasks, or leave tasks= out"
        )
    if both := sorted(set(ids) & set(val_ids)):
        raise DataError(f"{len(both)} ids are for training and for validation, the first is {both[0]!r}")
    if recipe.patience is not None and not val_ids:
        raise ConfigError(f"patience is {recipe.patience}, and there are no val_ids whose loss it could wait for")
    if recipe.cutmix_alpha is not None and not isinstance(source, LiveTokens):
        raise ConfigError(
            f"cutmix_alpha is {recipe.cutmix_alpha}, and the source is a {type(source).__name__}, which has no photos "
            "to paste into; take mixup_alpha, or LiveTokens"
        )


def check_problem(
    learner: Learner,
    source: TokenSource,
    values: Mapping[str, torch.Tensor],
    rows: Rows,
    val_rows: Rows,
    recipe: Recipe,
) -> None:
    """Refuse targets that cannot be learnt and tokens that the head cannot read; mention layers that nobody reads.

    Raises:
        DataError: naming the task.
        ConfigError: if nothing can be trained, or the tokens are of another width.
    """
    head = learner.head
    for task in head.tasks:
        _check_targets(task, values[task.name][rows])
    if recipe.patience is not None and not any(len(_known(task, values[task.name][val_rows])) for task in head.tasks):
        raise DataError(f"patience is {recipe.patience}, and no validation id has a target value to judge epochs by")
    if not any(parameter.requires_grad for parameter in learner.parameters()):
        raise ConfigError(f"all parameters of this {type(head).__name__} are frozen; there is nothing to train")
    with torch.no_grad():
        first = source.batch(source.ids[:1])
    width, expected = first.sequence[0].shape[2], getattr(head, "embed_dim", None)
    if expected not in (None, width):
        raise ConfigError(
            f"the tokens have {width} channels and this {type(head).__name__} was built for embed_dim={expected}; "
            f"build it with embed_dim={width}"
        )
    layers = first.layers or ()
    if len(layers) > 1 and not hasattr(head, "num_layers"):
        logger.warning(
            "the tokens hold layers %s; %s reads the last one listed, block %d: extract that one alone, or list "
            "another last",
            layers,
            type(head).__name__,
            layers[-1],
        )


def check_numbers(epochs: int, batch_size: int, lr: float, seed: int, ids: Sequence[str]) -> None:
    """Refuse numbers that are out of range.

    Raises:
        ConfigError: showing them.
    """
    whole = all(isinstance(n, int) and not isinstance(n, bool) for n in (epochs, batch_size, seed))
    whole = whole and isinstance(lr, int | float) and not isinstance(lr, bool)
    sound = whole and epochs >= 1 and batch_size >= 1 and 0 < lr < float("inf") and 0 <= seed < 1 << 32
    if not sound or not ids:
        raise ConfigError(
            f"epochs={epochs!r}, batch_size={batch_size!r}, lr={lr!r}, seed={seed!r}, {len(ids)} ids: "
            "expected positive whole numbers, a positive finite lr and a whole seed of 0 ... 2^32 - 1"
        )


def _check_targets(task: Task, values: torch.Tensor) -> None:
    known = _known(task, values)
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


def _known(task: Task, values: torch.Tensor) -> torch.Tensor:
    """The values that are not missing."""
    if values.is_floating_point():
        return values[values.isfinite()]
    known = values[values >= 0]
    return known if task.ignore_index is None else known[known != task.ignore_index]


def _named(tasks: Sequence[Task]) -> str:
    return ", ".join(task.name for task in tasks)
