"""fit: train a head on tokens, and the backbone along with it where it is trainable; resumable, repeatable."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from dinoneck.devices import to_local_device
from dinoneck.errors import ConfigError, DataError
from dinoneck.heads.head import Head
from dinoneck.losses.task_loss import TaskLoss
from dinoneck.store.feature_store import FeatureStore
from dinoneck.tasks import Task
from dinoneck.training.batches import Samples, TokenScale, standardised, views_of
from dinoneck.training.learner import Learner
from dinoneck.training.live_tokens import LiveTokens, trained_backbone
from dinoneck.training.loop import Callback, Loop, Run
from dinoneck.training.matching import match_groups, match_samples
from dinoneck.training.processes import joined, own_random_numbers, seed_step
from dinoneck.training.recipe import Recipe
from dinoneck.training.ridge_blend import blend_ridge, unblend
from dinoneck.training.sources import TokenSource, in_batches
from dinoneck.training.state import RunFiles
from dinoneck.training.table import is_table, table_of
from dinoneck.training.table_source import compare_table
from dinoneck.training.targets import as_array, known, training_targets, without_unweighted
from dinoneck.training.validation import check_weights

logger = logging.getLogger(__name__)
_RUNNING = threading.RLock()  # a run seeds the global generators at every step: one at a time in a process


def fit(
    head: Head,
    source: TokenSource,
    tasks: Sequence[Task] | None = None,
    *,
    targets: Any,
    ids: Sequence[str] | None = None,
    val_ids: Sequence[str] | None = None,
    target_ids: Sequence[str] | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    seed: int | None = None,
    out: str | os.PathLike[str] | None = None,
    resume: bool = True,
    recipe: Recipe | None = None,
    weights: Mapping[str, Any] | None = None,
    loss: TaskLoss | None = None,
    target_weights: Mapping[str, float] | None = None,
    groups: Mapping[str, Hashable] | None = None,
    callbacks: Sequence[Callback] = (),
) -> list[dict[str, float]]:
    """Train ``head`` in place, and what is trainable in the backbone of :class:`LiveTokens`, repeatably.

    Args:
        head: its tasks must be final: fit their transforms on the training rows first.
        source: tokens by id; of several augmented views every sample gets a random one per epoch, labels flipped along.
        tasks: compared with the head's; None = the head's.
        targets: original units, matched by id, never by position: a pandas DataFrame
            with ids as index, or task name -> ``{id: value}``, a Series, or an array (n, ...) with ``target_ids``.
            Values (), (dim,) or (dim, rows, cols), NaN = missing; class indices () or (height, width), -1 = missing.
        ids: the training ids; None = all ids of the targets in ascending order, without ``val_ids``.
        val_ids: other ids to validate on after every epoch.
        target_ids: one id per row of targets and weights that are arrays.
        epochs: replaces the recipe's; None = the recipe's.
        batch_size: replaces the recipe's.
        lr: replaces the recipe's.
        seed: replaces the recipe's.
        out: folder of the state and the log (a JSON line per epoch); None = keep nothing.
        resume: continue from the state in ``out``, bit for bit; off = start again.
        recipe: None = Recipe(). Its ``ridge_blend`` replaces parameters of a ``PatchMeanHead`` by wider ones.
        weights: dense task name -> (rows, cols) by id, given as ``targets`` are; None = all cells count alike.
        loss: over the head's tasks, its own parameters trained along; None = TaskLoss(head.tasks, head.compositions).
        target_weights: task name -> weight in ``val_r2``; None = the plain mean over tasks.
        groups: id -> group, only for ``Recipe.ridge_blend``: inner folds that choose its strength keep groups whole.
        callbacks: ``callback(epoch, row)``, called after every new epoch once its state is kept, by one process.

    Returns:
        A dict per epoch: ``loss``, ``loss/NAME`` of its parts; with ``val_ids`` ``val_loss``, ``val_r2/NAME`` and more.

    Raises:
        DataError: for ids without targets or tokens, targets that cannot be learned, or a loss that diverges.
        StoreError: if the images of a table are other files than those that the feature store was extracted from.
        ConfigError: if a number is out of range, or head, loss, source and recipe do not fit together.
        CheckpointError: if the state in ``out`` is damaged, that of another run, or cannot be written.
    """
    recipe = _checked_recipe(head, source, tasks, recipe, epochs=epochs, batch_size=batch_size, lr=lr, seed=seed)
    rows = {"targets": targets, "weights": weights, "ids": ids, "val_ids": val_ids, "target_ids": target_ids}
    return _train(_run(head, source, recipe, loss, rows, target_weights, groups), out, resume, callbacks)


def _run(
    head: Head,
    source: TokenSource,
    recipe: Recipe,
    loss: TaskLoss | None,
    rows: Mapping[str, Any],
    score_weights: Mapping[str, float] | None,
    groups: Mapping[str, Hashable] | None,
) -> Run:
    """The run of a call, its targets matched by id and in normalised units."""
    loss = TaskLoss(head.tasks, head.compositions) if loss is None else loss
    if loss.tasks != head.tasks:
        raise ConfigError(f"the loss is built for tasks {_names(loss.tasks)}, the head for {_names(head.tasks)}")
    columns = [*(task.name for task in loss.tasks), *(part.name for part in loss.compositions)]
    train, valid, original, cell_weights = match_samples(source.ids, names=columns, **rows)
    _check_ids(train, valid, recipe)
    check_weights(head.tasks, score_weights)
    if isinstance(source, FeatureStore) and is_table(rows["targets"]):
        compare_table(source, table_of(rows["targets"]), [*train, *valid])
    values, cells = training_targets(loss, original, cell_weights, [*train, *valid], len(train))
    for name, weight in cells.items():
        original[name] = without_unweighted(as_array(original[name]), weight.numpy())
    views = views_of(source)
    samples = Samples((*train, *valid), len(train), head.tasks, values, cells, views, original, score_weights)
    learner = Learner(head, trained_backbone(source))
    return Run(learner, source, loss.train(), samples, recipe, match_groups(source.ids, groups, train))


def _train(
    run: Run, out: str | os.PathLike[str] | None, resume: bool, callbacks: Sequence[Callback]
) -> list[dict[str, float]]:
    """Train, blend and return the history."""
    learner, source, samples, recipe = run.learner, run.source, run.samples, run.recipe
    head, ids = learner.head, samples.ids[: samples.trained]
    to_local_device(head, *([source.backbone] if isinstance(source, LiveTokens) else []))
    run.loss.to(learner.device)
    processes = joined(learner.device)
    with _RUNNING, own_random_numbers():
        seed_step(recipe.seed, 0, 0, validation=True)
        _check_learnable(run)
        unblend(head)
        files = RunFiles(out, run, processes)
        state = files.read() if resume else None
        processes.same(learner.weights().values())
        scale = _scale(run, state)
        with standardised(head, scale):
            loop = Loop(run, processes, scale)
            if state is not None:
                loop.load_state(state)
            files.log(loop)
            loop.run(lambda: files.save(loop), callbacks)
            loop.finish()
    learner.eval()
    targets = {name: x[: samples.trained] for name, x in samples.values.items()}
    blend_ridge(head, source, ids, targets, recipe.ridge_blend, groups=run.groups, batch_size=recipe.batch_size)
    processes.same(learner.weights().values())
    learner.note_source()
    return loop.progress.history


def _scale(run: Run, state: Mapping[str, Any] | None) -> TokenScale | None:
    """The scale of a resumed run; in a new one the measured scale, and the head's first norms are set to the tokens.

    A head with ``calibrate(batches)`` sets norms at its entrance that are still untouched; one with ``absorb_scale``
    can be trained on standardised tokens.
    """
    head, source, samples, recipe = run.learner.head.train(), run.source, run.samples, run.recipe
    if state is not None:
        return None if state["scale"] is None else TokenScale(**state["scale"])
    if not recipe.standardise_tokens:
        return None
    ids, calibrate = samples.ids[: samples.trained], getattr(head, "calibrate", None)
    if calibrate is not None:
        with torch.no_grad():
            calibrate(source.batch(batch).to(run.learner.device) for batch in in_batches(ids, recipe.batch_size))
    return TokenScale.measure(source, ids) if hasattr(head, "absorb_scale") else None


def _checked_recipe(head: object, source: object, tasks: Sequence[Task] | None, recipe: Any, **numbers: Any) -> Recipe:
    """The recipe with the numbers of the call; refuse arguments of another kind, or that do not fit together."""
    recipe = Recipe() if recipe is None else recipe
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
    if tasks is not None and tuple(tasks) != tuple(head.tasks):
        raise ConfigError(
            f"fit was given tasks {_names(tasks)}, the head was built for {_names(head.tasks)}, or they differ in a "
            "field; build the head with these tasks, or leave tasks= out"
        )
    views = views_of(source)
    if views is not None and any(task.is_map for task in head.tasks):
        for i in range(len(views)):
            views.flips(i)  # labels of cells follow the flips that a source states
    if recipe.cutmix_alpha is not None and not isinstance(source, LiveTokens):
        raise ConfigError(
            f"cutmix_alpha is {recipe.cutmix_alpha}, and the source is a {type(source).__name__}, which has no images "
            "to paste into; take mixup_alpha, or LiveTokens"
        )
    return replace(recipe, **{name: value for name, value in numbers.items() if value is not None})


def _check_ids(ids: Sequence[str], val_ids: Sequence[str], recipe: Recipe) -> None:
    if not ids:
        raise ConfigError("there are 0 ids to train on: ids= is empty, or all ids are validation ids")
    if both := sorted(set(ids) & set(val_ids)):
        raise DataError(f"{len(both)} ids are for training and for validation, the first is {both[0]!r}")
    if recipe.patience is not None and not val_ids:
        raise ConfigError(f"patience is {recipe.patience}, and there are no val_ids whose loss it could wait for")


def _check_learnable(run: Run) -> None:
    """Refuse targets that cannot be learned and tokens that the head cannot read; warn of layers that are not read."""
    head, samples, patience = run.learner.head, run.samples, run.recipe.patience
    for task in head.tasks:
        _check_targets(task, samples.values[task.name][: samples.trained])
    held_out = [_known(task, samples.values[task.name][samples.trained :]) for task in head.tasks]
    if patience is not None and not any(len(values) for values in held_out):
        raise DataError(f"patience is {patience}, and no validation id has a target value to judge epochs by")
    if not any(parameter.requires_grad for parameter in run.learner.parameters()):
        raise ConfigError(f"all parameters of this {type(head).__name__} are frozen; there is nothing to train")
    with torch.no_grad():
        first = run.source.batch(run.source.ids[:1])
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


def _check_targets(task: Task, values: torch.Tensor) -> None:
    present = _known(task, values)
    if not present.numel():
        raise DataError(f"task {task.name!r} has no target value among the {len(values)} training ids")
    if task.is_categorical or task.activation is None:
        return
    low, high = present.min().item(), present.max().item()
    if low < 0 or (task.activation == "sigmoid" and high > 1):
        raise DataError(
            f"task {task.name!r}: activation {task.activation!r} cannot reach targets of {low:.4g} ... {high:.4g} in "
            "normalised units; leave the activation out (minimum= keeps predictions from falling below a bound), or "
            "use a transform without mean"
        )


def _known(task: Task, values: torch.Tensor) -> torch.Tensor:
    """The values that are not missing."""
    present = (values.movedim(1, -1) if values.ndim == 4 else values)[known(values)]
    return present if task.ignore_index is None or values.is_floating_point() else present[present != task.ignore_index]


def _names(tasks: Sequence[Task]) -> str:
    return ", ".join(task.name for task in tasks)
