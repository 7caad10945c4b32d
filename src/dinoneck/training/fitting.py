"""fit: train a head on tokens, and the backbone along with it where it is trainable; resumable, repeatable."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dinoneck.backbones import weight_hashes
from dinoneck.codec import encode
from dinoneck.data.cells import IMAGES
from dinoneck.devices import bytes_of, fetch
from dinoneck.errors import ConfigError, DataError
from dinoneck.heads.head import Head
from dinoneck.losses.task_loss import TaskLoss
from dinoneck.store.feature_store import FeatureStore
from dinoneck.tasks import Task
from dinoneck.tokens import Tokens
from dinoneck.training.engine import Engine, own_random_numbers, seed_all
from dinoneck.training.folder import STATE, Callback
from dinoneck.training.mixup import blended_tokens, pasted, random_box
from dinoneck.training.parameter_groups import param_groups
from dinoneck.training.recipe import Recipe
from dinoneck.training.scores import class_counts, class_iou, confusion_matrix, mean_known, r2, share_right
from dinoneck.training.source import compare_images
from dinoneck.training.sources import LiveTokens, Samples, Table, TokenSource, in_batches, is_stored
from dinoneck.training.targets import as_array, match_samples, training_targets

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
        targets: original units, matched by id, never by position: a pandas DataFrame
            with ids as index, or task name -> ``{id: value}``, a Series, or an array (n, ...) with ``target_ids``.
            Values (), (dim,) or (dim, rows, cols), NaN = missing; class indices () or (height, width), -1 = missing;
            ids of objects (height, width), 1000 * (class + 1) + number, 0 = none, -1 = unknown.
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
        A dict per epoch: ``loss``, ``loss/NAME`` of its parts; with ``val_ids`` ``val_loss``, ``val_r2/NAME`` and more;
        ``seconds``, ``images_per_second`` and ``peak_memory_mb``.

    Raises:
        DataError: for ids without targets or tokens, targets that cannot be learned, or a loss that diverges.
        StoreError: if the images of a table are other files than those that the feature store was extracted from.
        ConfigError: if a number is out of range, or head, loss, source and recipe do not fit together.
        CheckpointError: if the state in ``out`` is damaged, that of another run, or cannot be written.
    """
    _check_kinds(head, source, recipe)
    recipe = (recipe or Recipe()).changed(**recipe_fields)
    loss = loss or TaskLoss(head.tasks, head.compositions)
    names = [*(task.name for task in head.tasks), *(part.name for part in loss.compositions)]
    train, valid, values, cells = match_samples(source.ids, targets, weights, names, ids, val_ids, target_ids)
    used = [*train, *valid]
    if isinstance(source, FeatureStore) and IMAGES in getattr(targets, "columns", ()):
        files = match_samples(source.ids, {IMAGES: targets[IMAGES]}, None, [IMAGES], used)[2][IMAGES]
        compare_images(source, dict(zip(used, files.tolist(), strict=True)))
    samples = (used, len(train), values, cells)
    return fit_samples(head, source, *samples, loss, recipe=recipe, out=out, resume=resume, callbacks=callbacks)


class Objective(nn.Module):
    """Backbone (of live tokens), head and loss: a batch's losses by name, of samples that may be blended.

    Args:
        trained: ``head``, and ``backbone`` where tokens are live.
        loss: over the head's tasks.
        recipe: how samples are blended.
    """

    def __init__(self, trained: nn.ModuleDict, loss: TaskLoss, recipe: Recipe) -> None:
        super().__init__()
        self.trained, self.loss, self.recipe = trained, loss, recipe
        self.maps = {task.name for task in loss.tasks if task.is_map or task.is_masks}

    def forward(self, inputs: Tokens | Tensor, targets: Table, masks: Table, mixes: bool) -> Table:
        """Return ``loss``, its parts ``loss/NAME`` and their learned weights ``weight/NAME``.

        A loss may be the mean over what the samples are blended of.
        """
        cutmix, mixup = (self.recipe.cutmix_alpha, self.recipe.mixup_alpha) if mixes else (None, None)
        truths = [(1.0, targets, masks)]  # the loss of each counts by its share
        if cutmix is not None and isinstance(inputs, Tensor):
            backbone: Any = self.trained["backbone"]
            box, share = random_box(inputs.shape[-2:], cutmix, backbone.patch_size)
            inputs = pasted(inputs, box)
            # maps are pasted as the images, the other targets count by the area
            targets, masks = (
                {name: pasted(x, box) if name in self.maps else x for name, x in table.items()}
                for table in (targets, masks)
            )
            partners = (_before(targets, self.maps), _before(masks, self.maps))
            truths = [(share, targets, masks), (1 - share, *partners)]
        tokens = self.tokens(inputs)
        if mixup is not None:
            tokens, share = blended_tokens(tokens, mixup)
            own = [(share * part, target, mask) for part, target, mask in truths]
            truths = own + [((1 - share) * part, _before(target), _before(mask)) for part, target, mask in truths]
        outputs = _exact(self.trained["head"](tokens))
        losses: Table = {}
        with torch.autocast(next(iter(outputs.values())).device.type, enabled=False):
            for share, target, mask in truths:
                total, parts = self.loss(outputs, target, mask)
                for name, value in {"loss": total, **{f"loss/{name}": x for name, x in parts.items()}}.items():
                    losses[name] = losses[name] + share * value if name in losses else share * value
        learned = {} if self.loss.weighting is None else self.loss.weighting.weights()
        return losses | {f"weight/{name}": weight for name, weight in learned.items()}

    def tokens(self, inputs: Tokens | Tensor) -> Tokens:
        """Return tokens, of images those of the backbone."""
        found: Tokens = inputs if isinstance(inputs, Tokens) else self.trained["backbone"](inputs)
        return found


def _before(table: Table, kept: Collection[str] = ()) -> Table:
    """What belongs to the sample before each; the tables in ``kept`` stay as they are."""
    return {name: x if name in kept else x.roll(1, 0) for name, x in table.items()}


def fit_samples(
    head: Head,
    source: TokenSource,
    ids: Sequence[str],
    trained: int,
    targets: Mapping[str, Any],
    weights: Mapping[str, Any],
    loss: TaskLoss,
    *,
    recipe: Recipe,
    out: str | os.PathLike[str] | None = None,
    resume: bool = True,
    callbacks: Sequence[Callback] = (),
) -> list[dict[str, float]]:
    """Train as :func:`fit` does on the first ``trained`` ids, validate on the others; targets are in their order."""
    _check_together(head, source, recipe)
    if not trained:
        raise ConfigError("there are 0 ids to train on: ids= is empty, or all ids are validation ids")
    if both := set(ids[:trained]) & set(ids[trained:]):
        raise DataError(f"{len(both)} ids are for training and for validation, the first is {min(both)!r}")
    if recipe.patience is not None and len(ids) == trained:
        raise ConfigError(f"patience is {recipe.patience}, and there are no val_ids whose loss it could wait for")
    if loss.tasks != head.tasks:
        names = [", ".join(task.name for task in tasks) for tasks in (loss.tasks, head.tasks)]
        raise ConfigError(f"the loss is built for tasks {names[0]}, the head for {names[1]}")
    values, cells = training_targets(loss, targets, weights, ids, trained, recipe.patience is not None)
    live = {"backbone": source.backbone} if isinstance(source, LiveTokens) else {}
    device = next(head.parameters()).device
    objective = Objective(nn.ModuleDict({"head": head, **live}), loss.to(device), recipe)
    samples = Samples(source, ids, trained, objective.maps, values, cells, device)
    truth = {task.name: torch.as_tensor(as_array(targets[task.name]))[trained:] for task in head.tasks}
    truth |= {name: truth[name].where(cells[name][trained:, None] > 0, torch.nan) for name in cells}
    with _RUNNING, own_random_numbers():
        seed_all(recipe.seed)
        steps = -(-trained // recipe.batch_size)
        engine = Engine(objective.trained, objective, _groups(objective), recipe, steps)
        with torch.no_grad(), engine.precision():
            head.eval()(source.batch(ids[:1]).to(device))  # tokens that do not fit are refused before a folder is made
        if out is not None:
            engine.keep(Path(out) / STATE, _identity(objective, samples), resume=resume)
        calibrate = getattr(head, "calibrate", None)
        if recipe.standardise_tokens and calibrate is not None and not engine.history:
            with torch.no_grad():
                calibrate(source.batch(batch).to(device) for batch in in_batches(ids[:trained], recipe.batch_size))
        engine.run(
            lambda epoch: samples.training(epoch, recipe, engine.rank, engine.count),
            (lambda: _validated(engine, objective, samples, truth)) if len(ids) > trained else None,
            callbacks=callbacks,
        )
        engine.finish()
    if live and not live["backbone"].frozen:
        _note_source(head, weight_hashes.current_hashes(live["backbone"].adapter).fingerprint)
    return engine.history


@torch.no_grad()
def _validated(engine: Engine, objective: Objective, samples: Samples, truth: Table) -> dict[str, float]:
    """The loss (the plain sum of its parts) and the scores of the validation samples."""
    predictions, tasks = list[Table](), [task for task in objective.loss.tasks if not task.is_masks]
    for images, (inputs, values, masks) in samples.held_out(engine.recipe.batch_size):
        with engine.precision():
            outputs = _exact(objective.trained["head"](objective.tokens(inputs)))
        parts = objective.loss(outputs, values, masks)[1]
        named = {"val_loss": torch.stack(list(parts.values())).sum(), **{f"val_loss/{n}": x for n, x in parts.items()}}
        engine.note(named, images)
        predictions.append({task.name: task.predict(outputs[task.name]) for task in tasks})
    losses = engine.mean_losses()
    joined = fetch([torch.cat([part[name] for part in predictions]) for name in predictions[0]])
    return losses | _scores(tasks, dict(zip(predictions[0], joined, strict=True)), truth)


def _scores(tasks: Sequence[Task], predictions: Table, targets: Table) -> dict[str, float]:
    """Return ``val_r2/TASK``, ``val_accuracy/TASK`` (classes), ``val_mean_iou/TASK`` (masks), and ``val_r2``.

    The R² of a task with several outputs is the mean over those that vary, ``val_r2`` the mean over tasks. Masks are
    compared at the resolution of the labels. What is missing counts for nothing; a task without values has no score.

    Args:
        tasks: of the head.
        predictions: task -> (m, ...) in original units.
        targets: task -> the true values of the same samples, NaN (classes: -1) = missing.
    """
    scores: dict[str, float] = {}
    for task in tasks:
        output, truth = predictions[task.name].float(), targets[task.name]
        if task.is_categorical:
            if truth.is_floating_point():  # shares (m, K, rows, cols) of classes
                truth = truth.argmax(dim=1).masked_fill(truth.isnan().any(dim=1), -1)
            if task.is_map:
                output = F.interpolate(output, truth.shape[1:], mode="bilinear")
            if task.ignore_index is not None:
                truth = truth.masked_fill(truth == task.ignore_index, -1)
            matrix = confusion_matrix(truth, output.argmax(dim=1), num_classes=task.dim, ignore_index=-1)
            if matrix.any():
                counts, name = class_counts(matrix), f"val_{'mean_iou' if task.is_map else 'accuracy'}/{task.name}"
                scores[name] = float(mean_known(class_iou(counts)) if task.is_map else share_right(counts))
            continue
        columns = zip(truth.reshape(output.shape).unbind(1), output.double().unbind(1), strict=True)
        pairs = [(true[known].numpy(), pred[known].numpy()) for true, pred in columns for known in [true.isfinite()]]
        varying = [r2(true, pred) for true, pred in pairs if len(true) and np.ptp(true)]
        if varying:
            scores[f"val_r2/{task.name}"] = float(np.mean(varying))
    each = [score for name, score in scores.items() if name.startswith("val_r2/")]
    return {**scores, "val_r2": float(np.mean(each))} if each else scores


def _check_kinds(head: object, source: object, recipe: object) -> None:
    if not isinstance(recipe, Recipe | None):
        raise ConfigError(f"recipe is {recipe!r}; expected Recipe(...) of dinoneck.training")
    if not isinstance(head, Head):
        raise ConfigError(f"head is {type(head).__name__}; expected a head with tasks, such as PatchMeanHead")
    if not hasattr(source, "ids") or not hasattr(source, "batch"):
        raise DataError(f"source is {type(source).__name__}; expected a FeatureStore, MemoryTokens or LiveTokens")


def _check_together(head: Head, source: TokenSource, recipe: Recipe) -> None:
    """Refuse a head, a source and a recipe that do not fit together."""
    if not torch.is_grad_enabled():
        raise ConfigError("fit was called under torch.no_grad() or inference_mode(), where nothing can be trained")
    live = source if isinstance(source, LiveTokens) else None
    maps = [task.name for task in head.tasks if task.is_map or task.is_masks]
    if maps and live is not None and live.transform is not None:
        raise ConfigError(f"{maps} are tasks with maps, and transform= may move pixels while maps stay; leave it out")
    views: Any = getattr(source, "views", None) or ()
    for i in range(len(views) if maps else 0):
        views.flips(i)  # labels of cells follow flips alone
    if recipe.cutmix_alpha is not None and live is None:
        raise ConfigError(f"cutmix_alpha is {recipe.cutmix_alpha} and needs LiveTokens, not {type(source).__name__}")
    if recipe.cutmix_alpha is not None and any(task.is_masks for task in head.tasks):
        raise ConfigError("cutmix_alpha is for targets without objects: pasting would join those of two images")
    if not any(p.requires_grad for p in head.parameters()) and (live is None or live.backbone.frozen):
        raise ConfigError(f"all parameters of this {type(head).__name__} are frozen; there is nothing to train")


def _groups(objective: Objective) -> list[dict[str, Any]]:
    """The optimizer's groups; biases, norms and the loss's own parameters have no weight decay."""
    trained, recipe = objective.trained, objective.recipe
    own = [p for p in objective.loss.parameters() if p.requires_grad]
    if "backbone" in trained and not trained["backbone"].frozen:
        rate = _BACKBONE_SHARE * recipe.lr if recipe.backbone_lr is None else recipe.backbone_lr
        groups = param_groups(trained, lr=recipe.lr, backbone_lr=rate, weight_decay=recipe.weight_decay)
    else:
        weights = [p for p in trained["head"].parameters() if p.requires_grad and p.ndim > 1]
        own += [p for p in trained["head"].parameters() if p.requires_grad and p.ndim < 2]
        groups = [{"params": weights, "weight_decay": recipe.weight_decay}]
    return [group for group in [*groups, {"params": own, "weight_decay": 0.0}] if group["params"]]


def _identity(objective: Objective, samples: Samples) -> dict[str, Any]:
    """What makes a run this one: recipe, head and loss, and one SHA-256 over ids, targets and the first tokens.

    The weights that the head begins with are not part of it: a resumed run takes those of its state.
    """
    head, loss, source, data = objective.trained["head"], objective.loss, samples.source, hashlib.sha256()
    data.update(json.dumps([*map(str, samples.ids), samples.trained]).encode())
    for table in (samples.values, samples.cells):
        for name, x in sorted(table.items()):
            data.update(f"{name}\0{x.dtype}\0{tuple(x.shape)}\0".encode() + bytes_of(x))
    for x in source.stored(samples.ids[:1])[0] if is_stored(source) else ():  # type: ignore[attr-defined]
        data.update(bytes_of(x))
    plain: dict[str, Any] = json.loads(json.dumps({
        "recipe": objective.recipe.to_dict(),
        "head": {"type": type(head).__name__, "config": encode(head.config)},
        "trained": {name: p.shape for name, p in head.named_parameters() if p.requires_grad},
        "loss": {
            "weighting": loss.weighting and {"type": type(loss.weighting).__qualname__, **loss.weighting.config},
            "compositions": {own.name: encode(own) for own in loss.compositions},
            "regularisers": {own.task: encode(own) for own in loss.regularisers},
        },
        "ids and targets": data.hexdigest(),
    }))  # fmt: skip
    return plain


def _note_source(head: Head, fingerprint: str | None) -> None:
    """Let a head that was loaded from a file expect the tokens of the backbone that was trained along."""
    for part in head.modules():
        if isinstance(part, Head) and part.trained_on is not None:
            part.trained_on = replace(part.trained_on, source=fingerprint)


def _exact(outputs: Mapping[str, Tensor]) -> Table:
    """Outputs in float32 or wider, so that losses are exact under autocast."""
    return {name: x.to(torch.promote_types(x.dtype, torch.float32)) for name, x in outputs.items()}
