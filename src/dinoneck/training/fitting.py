"""fit: train a head on tokens, and the backbone along with it where it may learn; resumable, repeatable."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from dinoneck.errors import ConfigError, DataError
from dinoneck.heads.head import Head
from dinoneck.losses.task_loss import TaskLoss
from dinoneck.tasks import Task
from dinoneck.training.batches import Batch, Labels, Order, Rows, patterns_of, rows_of
from dinoneck.training.learner import Learner
from dinoneck.training.live_tokens import LiveTokens, trained_backbone
from dinoneck.training.loop import Loop, Problem
from dinoneck.training.processes import joined
from dinoneck.training.randomness import own_random_numbers, seed_step
from dinoneck.training.recipe import Recipe
from dinoneck.training.run_files import RunFiles
from dinoneck.training.run_identity import identity
from dinoneck.training.sources import TokenSource, in_batches
from dinoneck.training.targets import training_targets
from dinoneck.training.token_scale import CalibratesEntrance, TokenScale, standardised
from dinoneck.training.validation import Scores, check_weights

logger = logging.getLogger(__name__)


def fit(
    head: Head,
    source: TokenSource,
    tasks: Sequence[Task] | None = None,
    *,
    targets: Mapping[str, Any],
    ids: Sequence[str],
    val_ids: Sequence[str] | None = None,
    epochs: int = 200,
    batch_size: int = 32,
    lr: float = 1e-4,
    seed: int = 42,
    out: str | os.PathLike[str] | None = None,
    resume: bool = True,
    recipe: Recipe | None = None,
    weights: Mapping[str, Any] | None = None,
    loss: TaskLoss | None = None,
    target_weights: Mapping[str, float] | None = None,
) -> list[dict[str, float]]:
    """Train ``head`` in place, and the trainable part of the backbone of :class:`LiveTokens` along with it.

    The same call gives the same weights, whatever was drawn before. With ``out``, so does a call that was killed and
    is made again: it goes on from the last state that was written. Under ``torchrun`` every process makes this call;
    each computes its share of every batch, and the first one writes. Blending (mixup, CutMix) and dropout draw for
    each share by itself; without them the result is that of one process up to rounding.

    Args:
        head: its tasks must be final: fit their transforms on the training rows first.
        source: tokens by id. Where it has several ``patterns``, training takes one at random for every sample and
            epoch, and labels per cell are flipped along; validation takes the photos as they are.
        tasks: those of the head, to be sure; None = the head's.
        targets: task name -> natural values in the order of ``source.ids``: (n,), (n, dim) or (n, dim, rows, cols),
            NaN = missing; class indices (n,) or (n, height, width), -1 = missing; class shares (n, dim, rows, cols).
        ids: the training ids.
        val_ids: ids to validate on after every epoch; none of the training ids.
        epochs: passes over the training ids.
        batch_size: samples per step, over all processes.
        lr: AdamW's peak; cosine with warm-up.
        seed: of the order of samples and every other random number; 0 ... 2^32 - 1.
        out: a folder for the run's state (``last.safetensors``) and its log (``log.jsonl``, a line per epoch); None =
            keep nothing.
        resume: go on from the state in ``out``, if there is one; off = begin anew and replace it.
        recipe: the rest.
        weights: dense task name -> (n, rows, cols): valid pixels of each cell, say; None = all cells count alike.
        loss: over the head's tasks; its own parameters are trained along. None = ``TaskLoss(head.tasks)``.
        target_weights: task name -> weight in the validation's overall R²; None = the plain mean over tasks.

    Returns:
        One dict per epoch: ``loss`` and the tasks' parts, averaged over its steps; with ``val_ids`` also ``val_loss``
        (the sum of the parts without learned weights), ``val_TASK`` and the scores ``val_r2``, ``val_r2/TASK`` and
        ``val_accuracy/TASK`` where there are any.

    Raises:
        DataError: if targets are missing, misshapen, infinite or beyond a task's activation, or the loss diverges.
        ConfigError: if a number is out of range, the tasks or the loss's are not the head's, or the recipe asks for
            what this call lacks.
        CheckpointError: if the state in ``out`` is damaged, that of another run, or cannot be written.

    Reference: the recipe's options follow design sources 002 (SAM) and 003 (AdamW, cosine with warm-up, EMA, mixup
    that ends early). Deviation: the average's decay has a warm-up.
    """
    recipe, val_ids = recipe or Recipe(), list(val_ids or ())
    _check_numbers(epochs, batch_size, lr, seed, ids)
    _check_call(head, source, tasks, recipe, ids, val_ids)
    loss_of = _checked_loss(head, loss)
    check_weights(head.tasks, target_weights)
    rows, val_rows = rows_of(source, ids), rows_of(source, val_ids, "validation")
    values, cells = training_targets(loss_of, targets, weights or {}, len(source.ids))
    learner, patterns = Learner(head, trained_backbone(source)), patterns_of(source)
    with joined(learner.device) as processes, own_random_numbers():
        seed_step(seed, 0, 0, validation=True)
        _check_problem(head, source, rows, values)
        told = identity(
            head,
            loss_of,
            source,
            recipe,
            ids=ids,
            val_ids=val_ids,
            labels={"targets": values, "weights": cells},
            numbers={"epochs": epochs, "batch_size": batch_size, "lr": lr, "seed": seed},
        )
        files = RunFiles(out, told, processes)
        state = files.found() if resume else None
        processes.same(learner.weights().values())
        scale = _prepared(head, source, ids, batch_size, recipe, state)
        with standardised(head, source, ids, enabled=recipe.standardise_tokens, scale=scale) as scale:
            problem = Problem(
                learner,
                source,
                loss_of,
                Labels(head.tasks, values, cells, patterns),
                Order(rows, batch_size, seed, 1 if patterns is None else len(patterns)),
                [Batch(np.array(chosen)) for chosen in in_batches(val_rows.tolist(), batch_size)],
                Scores(head.tasks, targets, target_weights),
                scale,
            )
            loop = Loop(problem, recipe, epochs=epochs, lr=lr, seed=seed, processes=processes)
            if state is not None:
                loop.load_state(state)
            files.begin(loop)
            loop.run(lambda: files.save(loop))
            loop.finish()
    learner.eval()
    return loop.progress.history


def _prepared(
    head: Head,
    source: TokenSource,
    ids: Sequence[str],
    batch_size: int,
    recipe: Recipe,
    state: Mapping[str, Any] | None,
) -> TokenScale | None:
    """The scale of a run that goes on; in a new one, set the head's entrance norms to the training tokens."""
    head.train()
    if state is not None:
        return None if state["scale"] is None else TokenScale(**state["scale"])
    if recipe.standardise_tokens and isinstance(head, CalibratesEntrance):
        device = next(head.parameters()).device
        with torch.no_grad():
            head.calibrate(source.batch(batch).to(device) for batch in in_batches(ids, batch_size))
    return None


def _checked_loss(head: Head, loss: TaskLoss | None) -> TaskLoss:
    """The loss given, or the one that the head's tasks make; on the head's device."""
    found = TaskLoss(head.tasks) if loss is None else loss
    if found.tasks != head.tasks:
        raise ConfigError(f"the loss is built for tasks {_named(found.tasks)}, the head for {_named(head.tasks)}")
    return found.to(next(head.parameters()).device).train()


def _check_call(
    head: Head,
    source: TokenSource,
    tasks: Sequence[Task] | None,
    recipe: Recipe,
    ids: Sequence[str],
    val_ids: Sequence[str],
) -> None:
    """Refuse what does not fit together."""
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


def _check_problem(head: Head, source: TokenSource, rows: Rows, values: Mapping[str, torch.Tensor]) -> None:
    """Refuse targets that cannot be learnt; mention layers that nobody reads."""
    for task in head.tasks:
        _check_targets(task, values[task.name][rows])
    with torch.no_grad():
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
    sound = whole and epochs >= 1 and batch_size >= 1 and 0 < lr < float("inf") and 0 <= seed < 1 << 32
    if not sound or not ids:
        raise ConfigError(
            f"epochs={epochs}, batch_size={batch_size}, lr={lr}, seed={seed}, {len(ids)} ids: "
            "expected positive whole numbers, a positive finite lr and a whole seed of 0 ... 2^32 - 1"
        )


def _check_targets(task: Task, values: torch.Tensor) -> None:
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


def _named(tasks: Sequence[Task]) -> str:
    return ", ".join(task.name for task in tasks)
