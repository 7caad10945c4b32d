"""fit: train a head on tokens, and the backbone along with it where it may learn; resumable, repeatable."""

from __future__ import annotations

import logging
import os
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from dinoneck.devices import to_local_device
from dinoneck.errors import ConfigError, DataError
from dinoneck.heads.head import Head
from dinoneck.losses.task_loss import TaskLoss
from dinoneck.tasks import Task
from dinoneck.training.batches import (
    Batch,
    CalibratesEntrance,
    Labels,
    Order,
    Rows,
    TokenScale,
    patterns_of,
    standardised,
)
from dinoneck.training.loop import Learner, Loop, Problem
from dinoneck.training.processes import joined, own_random_numbers, seed_step
from dinoneck.training.recipe import Recipe
from dinoneck.training.ridge_blend import blend_ridge, unblend
from dinoneck.training.sources import LiveTokens, TokenSource, in_batches, trained_backbone
from dinoneck.training.state import RunFiles, identity
from dinoneck.training.targets import (
    Samples,
    as_array,
    match_groups,
    match_samples,
    training_targets,
    without_unweighted,
)
from dinoneck.training.validation import Scores, check_weights


def fit(
    head: Head,
    source: TokenSource,
    tasks: Sequence[Task] | None = None,
    *,
    targets: Any,
    ids: Sequence[str] | None = None,
    val_ids: Sequence[str] | None = None,
    target_ids: Sequence[str] | None = None,
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
    groups: Mapping[str, Hashable] | None = None,
) -> list[dict[str, float]]:
    """Train ``head`` in place, and along with it what is trainable in the backbone of :class:`LiveTokens`.

    The same call gives the same weights, also after a kill and a resume. Under ``torchrun`` every process calls it.

    Args:
        head: its tasks must be final: fit their transforms on the training rows first.
        source: tokens by id; of several ``patterns`` every sample gets a random one per epoch, labels flipped along.
        tasks: those of the head, to be sure; None = the head's.
        targets: original units, matched by id, never by position: a :class:`dinoneck.data.Table`, a pandas DataFrame
            with ids as index, or task name -> ``{id: value}``, a Series, or an array (n, ...) with ``target_ids``.
            Values (), (dim,) or (dim, rows, cols), NaN = missing; class indices () or (height, width), -1 = missing.
        ids: the training ids; None = all ids of the targets in ascending order, without ``val_ids``.
        val_ids: other ids to validate on after every epoch.
        target_ids: one id per row of targets and weights that are arrays.
        epochs: passes over the training ids.
        batch_size: samples per step, over all processes.
        lr: AdamW's peak; cosine with warm-up.
        seed: of all random numbers, 0 ... 2^32 - 1.
        out: folder of the state and the log (a JSON line per epoch); None = keep nothing.
        resume: go on from the state in ``out``; off = begin anew.
        recipe: the rest. Its ``ridge_blend`` replaces the parameters of a ``PatchMeanHead`` by wider ones, see there.
        weights: dense task name -> (rows, cols) by id, given as ``targets`` are; None = all cells count alike.
        loss: over the head's tasks, its own parameters trained along; None = TaskLoss(head.tasks, head.compositions).
        target_weights: task name -> weight in ``val_r2``; None = the plain mean over tasks.
        groups: id -> group, only for ``Recipe.ridge_blend``: inner folds that choose its strength keep groups whole.

    Returns:
        One dict per epoch: ``loss`` and its parts; of ``val_ids`` also ``val_loss`` and ``val_r2``, by task and in all.

    Raises:
        DataError: for ids without targets or tokens, targets that cannot be learned, or a loss that diverges.
        ConfigError: if a number is out of range, or head, loss, source and recipe do not fit together.
        CheckpointError: if the state in ``out`` is damaged, that of another run, or cannot be written.
    """
    check_kinds(head, source, recipe := Recipe() if recipe is None else recipe)
    loss = checked_loss(head, loss)
    samples = match_samples(source.ids, targets, weights or {}, _names(loss), ids, val_ids or (), target_ids)
    call = _Call(head, source, tasks, samples, epochs, batch_size, lr, seed, target_weights, groups, recipe, loss)
    return call.run(out, resume)


def _names(loss: TaskLoss) -> list[str]:
    return [*(task.name for task in loss.tasks), *(part.name for part in loss.compositions)]


@dataclass(frozen=True)
class _Call:
    """The arguments of one call of :func:`fit`, checked where they are made use of."""

    head: Head
    source: TokenSource
    tasks: Sequence[Task] | None
    samples: Samples
    epochs: int
    batch_size: int
    lr: float
    seed: int
    target_weights: Mapping[str, float] | None
    groups: Mapping[str, Hashable] | None
    recipe: Recipe
    loss: TaskLoss

    def run(self, out: str | os.PathLike[str] | None, resume: bool) -> list[dict[str, float]]:
        """Check everything, then train; the history."""
        head, source, samples = self.head, self.source, self.samples
        groups = match_groups(source.ids, self.groups, samples.ids)
        to_local_device(head, *([source.backbone] if isinstance(source, LiveTokens) else []))
        check_numbers(self.epochs, self.batch_size, self.lr, self.seed, samples.ids)
        check_together(head, source, self.tasks, self.recipe, samples.ids, samples.val_ids)
        check_weights(head.tasks, self.target_weights)
        ids = (*samples.ids, *samples.val_ids)
        rows, val_rows = np.split(np.arange(len(ids)), [len(samples.ids)])
        values, cells = training_targets(self.loss, samples.targets, samples.weights, ids, len(samples.ids))
        labels = Labels(ids, head.tasks, values, cells, patterns_of(source))
        learner = Learner(head, trained_backbone(source))
        processes = joined(learner.device)
        with own_random_numbers():
            seed_step(self.seed, 0, 0, validation=True)
            check_problem(learner, source, values, rows, val_rows, self.recipe)
            unblend(head)
            files = RunFiles(out, self._identity(labels, groups), processes)
            state = files.found() if resume else None
            processes.same(learner.weights().values())
            scale = _prepared(head, source, samples.ids, self.batch_size, self.recipe, state)
            enabled = self.recipe.standardise_tokens
            with standardised(head, source, samples.ids, enabled=enabled, scale=scale) as scale:
                problem = self._problem(learner, labels, rows, val_rows, scale)
                loop = Loop(problem, self.recipe, epochs=self.epochs, lr=self.lr, seed=self.seed, processes=processes)
                if state is not None:
                    loop.load_state(state)
                files.begin(loop)
                loop.run(lambda: files.save(loop))
                loop.finish()
        learner.eval()
        targets, share = {name: x[rows] for name, x in values.items()}, self.recipe.ridge_blend
        blend_ridge(head, source, samples.ids, targets, share, groups=groups, batch_size=self.batch_size)
        processes.same(learner.weights().values())
        learner.note_source()
        return loop.progress.history

    def _problem(
        self, learner: Learner, labels: Labels, rows: Rows, val_rows: Rows, scale: TokenScale | None
    ) -> Problem:
        count = 1 if labels.flips is None else len(labels.flips)
        order = Order(rows, self.batch_size, self.seed, count)
        valid = [Batch(np.array(chosen)) for chosen in in_batches(val_rows.tolist(), self.batch_size)]
        targets = dict(self.samples.targets)
        for name, weight in labels.cells.items():
            targets[name] = without_unweighted(as_array(targets[name]), weight.numpy())
        scores = Scores(self.head.tasks, targets, self.target_weights)
        return Problem(learner, self.source, self.loss, labels, order, valid, scores, scale)

    def _identity(self, labels: Labels, groups: Sequence[Hashable] | None) -> dict[str, Any]:
        return identity(
            self.head,
            self.loss,
            self.source,
            self.recipe,
            ids=self.samples.ids,
            val_ids=self.samples.val_ids,
            labels={"targets": labels.values, "weights": labels.cells},
            groups=groups,
            numbers={"epochs": self.epochs, "batch_size": self.batch_size, "lr": self.lr, "seed": self.seed},
        )


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
