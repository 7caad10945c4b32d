"""fit: train a head on tokens, and the backbone along with it where it is trainable; resumable, repeatable."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dinoneck.backbones import weight_hashes
from dinoneck.codec import encode
from dinoneck.data.cells import IMAGES
from dinoneck.devices import bytes_of, fetch
from dinoneck.errors import ConfigError
from dinoneck.heads.head import Head
from dinoneck.losses.masked import exact
from dinoneck.losses.task_loss import TaskLoss
from dinoneck.store.feature_store import FeatureStore
from dinoneck.tasks import Task
from dinoneck.tokens import Tokens
from dinoneck.training.engine import Engine, own_random_numbers, seed_all
from dinoneck.training.folder import STATE, Callback
from dinoneck.training.optim import blended_tokens, pasted, random_box
from dinoneck.training.parameter_groups import FreezeSchedule, param_groups
from dinoneck.training.recipe import Recipe
from dinoneck.training.scores import Split, map_confusion, method_scores, unexplained, value_terms
from dinoneck.training.source import compare_images
from dinoneck.training.sources import LiveTokens, Samples, TokenSource, in_batches, is_stored
from dinoneck.training.targets import WEIGHT, SourceIds, Table, by_id, match_samples, training_targets

_BACKBONE_SHARE = 0.1  # of the head's learning rate
_RUNNING = threading.RLock()  # a run seeds the global generators: one at a time in a process


def fit(
    head: Head,
    source: TokenSource,
    targets: Any,
    *,
    ids: Sequence[str] | None = None,
    val_ids: Sequence[str] | None = None,
    target_ids: Sequence[str] | None = None,
    weights: Mapping[str, Any] | None = None,
    loss: TaskLoss | None = None,
    recipe: Recipe | None = None,
    out: str | os.PathLike[str] | None = None,
    resume: bool = True,
    callbacks: Sequence[Callback] = (),
    **recipe_fields: Any,
) -> list[dict[str, float]]:
    """Train ``head`` in place, and what is trainable in the backbone of :class:`LiveTokens`, repeatably.

    Args:
        head: its tasks must be final: fit their transforms on the training rows first.
        source: tokens by id; of several augmented views every sample gets a random one per epoch, labels flipped along.
        targets: original units, matched by id, never by position: a pandas DataFrame with ids as index, or task name ->
            ``{id: value}``, a Series, or an array (n, ...) with ``target_ids``. Values (), (dim,) or (dim, rows, cols),
            NaN = missing; class indices () or (height, width), -1 = missing; ids of objects (height, width),
            1000 * (class + 1) + number, 0 = none, -1 = unknown.
        ids: the training ids; None = all ids of the targets in ascending order, without ``val_ids``.
        val_ids: other ids to validate on after every epoch.
        target_ids: one id per row of targets and weights that are arrays.
        weights: dense task name -> (rows, cols) by id, given as ``targets`` are; None = all cells count alike.
        loss: over the head's tasks, its own parameters trained along; None = TaskLoss(head.tasks, head.compositions).
        recipe: None = Recipe().
        out: folder of the state and the log (a JSON line per epoch); None = keep nothing.
        resume: continue from the state in ``out``, bit for bit; off = start again.
        callbacks: ``callback(epoch, row)``, called after every new epoch, by one process.
        recipe_fields: fields of the recipe that differ from ``recipe``, such as ``epochs=12, lr=3e-3``.

    Returns:
        A dict per epoch: ``loss``, its parts ``loss/NAME``, times and memory; with ``val_ids`` ``val_loss`` and scores.

    Raises:
        DataError: for ids without targets or tokens, targets that cannot be learned, or a loss that diverges.
        StoreError: if the images of a table are other files than those that the feature store was extracted from.
        ConfigError: if a number is out of range, or head, loss, source and recipe do not fit together.
        CheckpointError: if the state in ``out`` is damaged, that of another run, or cannot be written.
    """
    if not isinstance(head, Head) or not isinstance(recipe, Recipe | None):
        raise ConfigError(f"head is {type(head).__name__}, recipe {recipe!r}; expected a head with tasks, and a Recipe")
    recipe = (recipe or Recipe()).changed(**recipe_fields)
    loss = loss or TaskLoss(head.tasks, head.compositions)
    _check_together(head, source, recipe, loss)
    names = [*(task.name for task in head.tasks), *(part.name for part in loss.compositions)]
    train, valid, values, cells = match_samples(source.ids, targets, weights, names, ids, val_ids, target_ids)
    used = [*train, *valid]
    _check_images(source, targets, used)
    normalised, originals = training_targets(loss, values, cells, used, len(train), recipe.patience is not None)
    device = next(head.parameters()).device
    objective = Objective(head, source, loss.to(device), recipe)
    samples = Samples(source, used, len(train), objective.maps, normalised, device)
    with _RUNNING, own_random_numbers():
        return _trained(objective, samples, originals, None if out is None else Path(out) / STATE, resume, callbacks)


def _trained(
    objective: Objective,
    samples: Samples,
    originals: Table,
    path: Path | None,
    resume: bool,
    callbacks: Sequence[Callback],
) -> list[dict[str, float]]:
    """Train on samples; validate with the values of the others, in original units, where there are some."""
    recipe, trained, head = objective.recipe, samples.trained, objective.trained["head"]
    seed_all(recipe.seed)
    steps = -(-trained // recipe.batch_size)
    schedule = FreezeSchedule(recipe.plan) if recipe.freeze else None
    if schedule is not None:
        schedule.apply(objective.trained, 0)
    engine = Engine(objective.trained, objective, _groups(objective), recipe, steps)
    with torch.no_grad(), engine.precision():  # what does not fit is refused before a folder is made
        inputs, targets = samples.read([0])
        objective.eval().losses(objective.outputs(objective.tokens(inputs)), targets)
    if path is not None:
        engine.keep(path, _identity(objective, samples), resume=resume)
    calibrate = getattr(head, "calibrate", None)
    if recipe.standardise_tokens and calibrate is not None and not engine.history:
        batches = in_batches(samples.ids[:trained], recipe.batch_size)
        with torch.no_grad():
            calibrate(samples.source.batch(ids).to(samples.device) for ids in batches)
    validates = len(samples.ids) > trained
    truth = {name: x[trained:] for name, x in originals.items()}
    engine.run(
        lambda epoch: samples.training(epoch, recipe, engine.rank, engine.count),
        (lambda: _validated(engine, objective, samples, truth)) if validates else None,
        begin=lambda epoch: schedule and schedule.start_epoch(epoch, objective.trained, engine.optimizer),
        callbacks=callbacks,
    )
    _note_source(objective.trained)
    return engine.history


class Objective(nn.Module):
    """Backbone (of live tokens), head and loss: a batch's losses by name, of samples that may be blended.

    Args:
        head: of the tokens.
        source: of the tokens; the backbone of live tokens is trained along.
        loss: over the head's tasks.
        recipe: how samples are blended.

    Attributes:
        trained: ``head``, and ``backbone`` where tokens are live.
    """

    def __init__(self, head: Head, source: TokenSource, loss: TaskLoss, recipe: Recipe) -> None:
        super().__init__()
        live = {"backbone": source.backbone} if isinstance(source, LiveTokens) else {}
        self.trained, self.loss, self.recipe = nn.ModuleDict({"head": head, **live}), loss, recipe
        maps = [task.name for task in loss.tasks if task.is_map or task.is_masks]
        self.maps = {*maps, *(name + WEIGHT for name in maps)}

    def forward(self, inputs: Tokens | Tensor, targets: Table, mixes: bool) -> Table:
        """Return ``loss``, its parts ``loss/NAME`` and their learned weights ``weight/NAME``.

        A loss may be the mean over what the samples are blended of.
        """
        cutmix, mixup = (self.recipe.cutmix_alpha, self.recipe.mixup_alpha) if mixes else (None, None)
        truths = [(1.0, targets)]  # the loss of each counts by its share
        if cutmix is not None and isinstance(inputs, Tensor):
            backbone: Any = self.trained["backbone"]
            box, share = random_box(inputs.shape[-2:], cutmix, backbone.patch_size)
            inputs = pasted(inputs, box)
            # maps are pasted as the images, the other targets count by the area
            own = {name: pasted(x, box) if name in self.maps else x for name, x in targets.items()}
            truths = [(share, own), (1 - share, _before(own, self.maps))]
        tokens = self.tokens(inputs)
        if mixup is not None:
            tokens, share = blended_tokens(tokens, mixup)
            partners = [((1 - share) * part, _before(own)) for part, own in truths]
            truths = [(share * part, own) for part, own in truths] + partners
        outputs = self.outputs(tokens)
        each = [(share, self.losses(outputs, own)) for share, own in truths]
        losses = {name: reduce(add, [share * own[name] for share, own in each]) for name in each[0][1]}
        learned = {} if self.loss.weighting is None else self.loss.weighting.weights()
        return losses | {f"weight/{name}": weight for name, weight in learned.items()}

    def tokens(self, inputs: Tokens | Tensor) -> Tokens:
        """Return tokens, of images those of the backbone."""
        found: Tokens = inputs if isinstance(inputs, Tokens) else self.trained["backbone"](inputs)
        return found

    def outputs(self, tokens: Tokens) -> Table:
        """Return the head's outputs in float32 or wider, so that losses are exact under autocast."""
        return {name: exact(x) for name, x in self.trained["head"](tokens).items()}

    def losses(self, outputs: Table, targets: Table) -> Table:
        """Return ``loss`` and its parts; what is missing counts for nothing."""
        masks = {name: x >= 0 for name, x in targets.items() if not x.is_floating_point()}
        masks |= {name.removesuffix(WEIGHT): x for name, x in targets.items() if name.endswith(WEIGHT)}
        with torch.autocast(next(iter(outputs.values())).device.type, enabled=False):
            total, parts = self.loss(outputs, targets, masks)
        return {"loss": total, **{f"loss/{name}": x for name, x in parts.items()}}


def _before(table: Table, kept: Collection[str] = ()) -> Table:
    """What belongs to the sample before each; the targets in ``kept`` stay as they are."""
    return {name: x if name in kept else x.roll(1, 0) for name, x in table.items()}


@torch.no_grad()
def _validated(engine: Engine, objective: Objective, samples: Samples, truth: Table) -> dict[str, float]:
    """The loss (the plain sum of its parts) and the scores of the validation samples."""
    predictions, tasks = list[Table](), [task for task in objective.loss.tasks if not task.is_masks]
    for images, (inputs, targets) in samples.held_out(engine.recipe.batch_size):
        with engine.precision():
            outputs = objective.outputs(objective.tokens(inputs))
        _, *parts = objective.losses(outputs, targets).items()
        total = torch.stack([x for _, x in parts]).sum()
        engine.note({"val_loss": total, **{f"val_{name}": x for name, x in parts}}, images)
        predictions.append({task.name: task.predict(outputs[task.name]) for task in tasks})
    row = engine.mean_losses()
    joined = fetch([torch.cat([part[task.name] for part in predictions]).float() for task in tasks])
    for task, found in zip(tasks, joined, strict=True):
        row |= _scores(task, found, truth[task.name])
    each = [score for name, score in row.items() if name.startswith("val_r2/")]
    return row | ({"val_r2": float(np.mean(each))} if each else {})


def _scores(task: Task, output: Tensor, truth: Tensor) -> dict[str, float]:
    """Return ``val_r2/TASK`` (the mean over outputs), ``val_accuracy/TASK`` or, of masks, ``val_mean_iou/TASK``.

    Masks are compared at the resolution of the labels. What is missing counts for nothing; without values there is no
    score.

    Args:
        task: of the head.
        output: (m, ...) in original units.
        truth: the true values of the same samples, NaN (classes: -1) = missing.
    """
    if not task.is_categorical:
        values, predictions = (x.reshape(*truth.shape[:2], -1).double().numpy() for x in (truth, output))
        lost = float(unexplained(value_terms(values, predictions).sum(axis=0)))
        return {} if np.isnan(lost) else {f"val_r2/{task.name}": 1.0 - lost}
    if truth.is_floating_point():  # shares (m, K, rows, cols) of classes
        truth = truth.argmax(dim=1).masked_fill(truth.isnan().any(dim=1), -1)
    if task.ignore_index is not None:
        truth = truth.masked_fill(truth == task.ignore_index, -1)
    scores = method_scores("mask", None, map_confusion(truth, output)[None], Split([[0]], [0]))
    name, score = ("mean_iou", scores["mean_iou"]) if task.is_map else ("accuracy", scores["pixel_accuracy"])
    return {} if score["pooled"] is None else {f"val_{name}/{task.name}": score["pooled"]}


def _check_images(source: TokenSource, targets: Any, ids: Sequence[str]) -> None:
    """Refuse a table whose images are not those that a feature store was extracted from."""
    if isinstance(source, FeatureStore) and IMAGES in getattr(targets, "columns", ()):
        files = by_id(targets[IMAGES], IMAGES, None, SourceIds(source.ids).find)
        compare_images(source, {image_id: files[image_id] for image_id in ids})


def _check_together(head: Head, source: TokenSource, recipe: Recipe, loss: TaskLoss) -> None:
    """Refuse a head, a source, a recipe and a loss that do not fit together."""
    if not torch.is_grad_enabled():
        raise ConfigError("fit was called under torch.no_grad() or inference_mode(), where nothing can be trained")
    if loss.tasks != head.tasks:
        names = [", ".join(task.name for task in tasks) for tasks in (loss.tasks, head.tasks)]
        raise ConfigError(f"the loss is built for tasks {names[0]}, the head for {names[1]}")
    live = isinstance(source, LiveTokens)
    maps = [task.name for task in head.tasks if task.is_map or task.is_masks]
    if maps and getattr(source, "transform", None) is not None:
        raise ConfigError(f"{maps} are tasks with maps, and transform= may move pixels while maps stay; leave it out")
    if recipe.freeze and not live:
        raise ConfigError(f"freeze is {', '.join(recipe.freeze)}, and needs LiveTokens, not {type(source).__name__}")
    if recipe.cutmix_alpha is not None and (not live or any(task.is_masks for task in head.tasks)):
        raise ConfigError(
            f"cutmix_alpha is {recipe.cutmix_alpha}, and pastes images of LiveTokens without objects; the source is "
            f"{type(source).__name__}, tasks with maps are {maps}"
        )


def _groups(objective: Objective) -> list[dict[str, Any]]:
    """The optimizer's groups; biases, norms and the loss's own parameters have no weight decay."""
    trained, recipe = objective.trained, objective.recipe
    own = [p for p in objective.loss.parameters() if p.requires_grad]
    if "backbone" in trained and (recipe.freeze or not trained["backbone"].frozen):
        rate = _BACKBONE_SHARE * recipe.lr if recipe.backbone_lr is None else recipe.backbone_lr
        rates: dict[str, Any] = {"lr": recipe.lr, "backbone_lr": rate, "layer_decay": recipe.layer_decay}
        decay, frozen = recipe.weight_decay, bool(recipe.freeze)
        groups = param_groups(trained, **rates, weight_decay=decay, include_frozen=frozen)
    else:
        weights = [p for p in trained["head"].parameters() if p.requires_grad and p.ndim > 1]
        own += [p for p in trained["head"].parameters() if p.requires_grad and p.ndim < 2]
        groups = [{"params": weights, "weight_decay": recipe.weight_decay}]
    return [group for group in [*groups, {"params": own, "weight_decay": 0.0}] if group["params"]]


def _identity(objective: Objective, samples: Samples) -> dict[str, Any]:
    """What makes a run this one: recipe, head and loss, and one SHA-256 over ids, targets and the first tokens.

    The weights that the head begins with are not part of it: a resumed run takes those of its state.
    """
    head, loss, source = objective.trained["head"], objective.loss, samples.source
    data = hashlib.sha256(json.dumps([*map(str, samples.ids), samples.trained]).encode())
    for name, x in sorted(samples.targets.items()):
        data.update(f"{name}\0{x.dtype}\0{tuple(x.shape)}\0".encode() + bytes_of(x))
    for x in source.stored(samples.ids[:1])[0] if is_stored(source) else ():  # type: ignore[attr-defined]
        data.update(bytes_of(x))
    weighting = loss.weighting and {type(loss.weighting).__qualname__: loss.weighting.config}
    plain: dict[str, Any] = json.loads(json.dumps({
        "recipe": objective.recipe.to_dict(),
        "head": {type(head).__name__: encode(head.config)},
        "trained": {name: p.shape for name, p in head.named_parameters() if p.requires_grad},
        "loss": {"weighting": weighting, "terms": [encode(own) for own in (*loss.compositions, *loss.regularisers)]},
        "ids and targets": data.hexdigest(),
    }))  # fmt: skip
    return plain


def _note_source(trained: nn.ModuleDict) -> None:
    """Let a head that was loaded from a file expect the tokens of the backbone that was trained along."""
    if "backbone" in trained and not trained["backbone"].frozen:
        fingerprint = weight_hashes.current_hashes(trained["backbone"].adapter).fingerprint  # type: ignore[arg-type]
        for part in trained["head"].modules():
            if isinstance(part, Head) and part.trained_on is not None:
                part.trained_on = replace(part.trained_on, source=fingerprint)
