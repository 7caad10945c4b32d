"""fit: train a head on tokens, and the backbone along with it where it is trainable; resumable, repeatable."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dinoneck.backbones import weight_hashes
from dinoneck.backbones.backbone import Backbone
from dinoneck.codec import encode
from dinoneck.data.cells import IMAGES
from dinoneck.devices import fetch, to_local_device
from dinoneck.errors import ConfigError, DataError
from dinoneck.heads.head import Head
from dinoneck.losses.task_loss import TaskLoss
from dinoneck.store.feature_store import FeatureStore
from dinoneck.tasks import Task
from dinoneck.tensor_bytes import bytes_of
from dinoneck.tokens import Tokens
from dinoneck.training.engine import Callback, Engine
from dinoneck.training.live_tokens import LiveTokens, trained_backbone
from dinoneck.training.matching import match_samples
from dinoneck.training.mixup import blended_tokens, partners, pasted_images
from dinoneck.training.parameter_groups import param_groups
from dinoneck.training.processes import own_random_numbers, seed_all
from dinoneck.training.recipe import Recipe
from dinoneck.training.samples import Samples
from dinoneck.training.source import compare_images
from dinoneck.training.sources import TokenSource, in_batches, is_stored, stored_tokens
from dinoneck.training.state import LOG, STATE
from dinoneck.training.targets import as_array, training_targets
from dinoneck.training.validation import validation_scores

logger = logging.getLogger(__name__)
Table = dict[str, Tensor]
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
            Values (), (dim,) or (dim, rows, cols), NaN = missing; class indices () or (height, width), -1 = missing.
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
    recipe = _recipe(recipe, recipe_fields)
    _check_arguments(head, source, recipe)
    loss = TaskLoss(head.tasks, head.compositions) if loss is None else loss
    names = [*(task.name for task in head.tasks), *(part.name for part in loss.compositions)]
    train, valid, values, cells = match_samples(source.ids, targets, weights, names, ids, val_ids, target_ids)
    if isinstance(source, FeatureStore) and IMAGES in getattr(targets, "columns", ()):
        files = match_samples(source.ids, {IMAGES: targets[IMAGES]}, None, [IMAGES], [*train, *valid])[2][IMAGES]
        compare_images(source, dict(zip([*train, *valid], files.tolist(), strict=True)))
    return _train(head, source, [*train, *valid], len(train), values, cells, loss, recipe, out, resume, callbacks)


def fit_rows(
    head: Head,
    source: TokenSource,
    targets: Mapping[str, Tensor],
    rows: Sequence[int],
    val_rows: Sequence[int] = (),
    *,
    weights: Mapping[str, Tensor] | None = None,
    loss: TaskLoss | None = None,
    recipe: Recipe,
    out: str | os.PathLike[str] | None = None,
    resume: bool = True,
    callbacks: Sequence[Callback] = (),
) -> list[dict[str, float]]:
    """Train as :func:`fit` does, on rows of targets (n, ...) that are in the order of ``source.ids``."""
    _check_arguments(head, source, recipe)
    loss = TaskLoss(head.tasks, head.compositions) if loss is None else loss
    places = [int(row) for row in (*rows, *val_rows)]
    ids = [source.ids[row] for row in places]
    values, cells = ({name: x[places] for name, x in (table or {}).items()} for table in (targets, weights))
    return _train(head, source, ids, len(rows), values, cells, loss, recipe, out, resume, callbacks)


class Learner(nn.Module):
    """What is trained: a head, and the backbone of live tokens, which may be frozen."""

    head: Head
    backbone: Backbone | None

    def __init__(self, head: Head, backbone: Backbone | None) -> None:
        super().__init__()
        self.head, self.backbone = head, backbone


class Objective(nn.Module):
    """Backbone (of live tokens), head and loss: a batch's losses by name, of samples that may be blended."""

    def __init__(self, learner: Learner, loss: TaskLoss, recipe: Recipe) -> None:
        super().__init__()
        self.trained, self.loss, self.recipe = learner, loss, recipe

    def forward(self, inputs: Tokens | Tensor, targets: Table, masks: Table, mixes: bool) -> Table:
        """Return ``loss`` and its parts ``loss/NAME``; each may be the mean over what the samples are blended of."""
        shares = [1.0]  # of every sample, of the sample before it, ...
        recipe = self.recipe
        backbone = self.trained.backbone
        if mixes and recipe.cutmix_alpha is not None and isinstance(inputs, Tensor) and backbone is not None:
            inputs, share = pasted_images(inputs, recipe.cutmix_alpha, backbone.patch_size)
            shares = _blended(shares, share)
        tokens = self.tokens(inputs)
        if mixes and recipe.mixup_alpha is not None:
            tokens, share = blended_tokens(tokens, recipe.mixup_alpha)
            shares = _blended(shares, share)
        outputs = _exact(self.trained.head(tokens))
        losses: Table = {}
        with torch.autocast(next(iter(outputs.values())).device.type, enabled=False):
            for times, share in enumerate(shares):
                own = ({name: partners(x, times) if times else x for name, x in t.items()} for t in (targets, masks))
                total, parts = self.loss(outputs, *own)
                for name, value in {"loss": total, **{f"loss/{name}": x for name, x in parts.items()}}.items():
                    losses[name] = losses[name] + share * value if times else share * value
        return losses

    def tokens(self, inputs: Tokens | Tensor) -> Tokens:
        """Return tokens, of images those of the backbone."""
        if isinstance(inputs, Tokens) or self.trained.backbone is None:
            return inputs  # type: ignore[return-value]
        found: Tokens = self.trained.backbone(inputs)
        return found


def _blended(shares: Sequence[float], share: float) -> list[float]:
    """The shares of samples that are blended once more: with ``shares`` of their partners."""
    return [share * a + (1 - share) * b for a, b in zip([*shares, 0.0], [0.0, *shares], strict=True)]


def _train(
    head: Head,
    source: TokenSource,
    ids: Sequence[str],
    trained: int,
    targets: Mapping[str, Any],
    weights: Mapping[str, Any],
    loss: TaskLoss,
    recipe: Recipe,
    out: str | os.PathLike[str] | None,
    resume: bool,
    callbacks: Sequence[Callback],
) -> list[dict[str, float]]:
    """Train on the first ``trained`` ids and validate on the others; targets and weights are in their order."""
    _check_ids(ids, trained, recipe)
    if loss.tasks != head.tasks:
        raise ConfigError(f"the loss is built for tasks {_names(loss.tasks)}, the head for {_names(head.tasks)}")
    values, cells = training_targets(loss, targets, weights, ids, trained, recipe.patience is not None)
    live = source.backbone if isinstance(source, LiveTokens) else None
    to_local_device(head, *([] if live is None else [live]))
    device = next(head.parameters()).device
    objective = Objective(Learner(head, live), loss.to(device), recipe)
    samples = Samples(source, ids, trained, head.tasks, values, cells, device)
    truth = {task.name: torch.as_tensor(as_array(targets[task.name]))[trained:] for task in head.tasks}
    truth |= {name: truth[name].where(cells[name][trained:, None] > 0, torch.nan) for name in cells}
    with _RUNNING, own_random_numbers():
        seed_all(recipe.seed)
        _check_tokens(head, source)
        steps = -(-trained // recipe.batch_size)
        engine = Engine(objective.trained, objective, _groups(objective, recipe), recipe, steps)
        run, path = _identity(objective, samples), None if out is None else Path(out) / STATE
        if path is not None:
            if resume:
                engine.resume(path, run)
            engine.log(path.parent / LOG)
        calibrate = getattr(head, "calibrate", None)
        if recipe.standardise_tokens and calibrate is not None and not engine.history:
            with torch.no_grad():
                calibrate(source.batch(batch).to(device) for batch in in_batches(ids[:trained], recipe.batch_size))
        engine.run(
            lambda epoch: samples.training(epoch, recipe, engine.rank, engine.count),
            (lambda: _validated(engine, objective, samples, truth)) if len(ids) > trained else None,
            save=lambda: None if path is None else engine.save(path, run),
            callbacks=callbacks,
        )
        engine.finish()
    _note_source(head, trained_backbone(source))
    return engine.history


@torch.no_grad()
def _validated(engine: Engine, objective: Objective, samples: Samples, truth: Table) -> dict[str, float]:
    """The loss (the plain sum of its parts) and the scores of the validation samples."""
    predictions: list[Table] = []
    for images, (inputs, values, masks) in samples.held_out(engine.recipe.batch_size):
        with engine.precision():
            outputs = _exact(objective.trained.head(objective.tokens(inputs)))
        parts = objective.loss(outputs, values, masks)[1]
        named = {"val_loss": torch.stack(list(parts.values())).sum(), **{f"val_loss/{n}": x for n, x in parts.items()}}
        engine.note(named, images)
        predictions.append({task.name: task.predict(outputs[task.name]) for task in objective.loss.tasks})
    losses, names = engine.mean_losses(), list(predictions[0])
    joined = dict(zip(names, fetch([torch.cat([part[name] for part in predictions]) for name in names]), strict=True))
    if unusable := [name for name, values in joined.items() if not bool(values.isfinite().all())]:
        raise DataError(
            f"validation predictions of {', '.join(unusable)} are not finite: training diverged at lr "
            f"{engine.recipe.lr:.3g}; lower it (lr=, --lr)"
        )
    return losses | validation_scores(objective.loss.tasks, joined, truth)


def _recipe(recipe: Any, fields: Mapping[str, Any]) -> Recipe:
    """The recipe with the fields of the call."""
    if not isinstance(recipe, Recipe | None):
        raise ConfigError(f"recipe is {recipe!r}; expected Recipe(...) of dinoneck.training")
    return (Recipe() if recipe is None else recipe).changed(**fields)


def _check_arguments(head: object, source: Any, recipe: Recipe) -> None:
    """Refuse arguments of another kind, or that do not fit together."""
    if not isinstance(head, Head):
        raise ConfigError(f"head is {type(head).__name__}; expected a head with tasks, such as PatchMeanHead")
    if not torch.is_grad_enabled():
        raise ConfigError(
            "fit was called under torch.no_grad() or torch.inference_mode(), where nothing can be trained; call it "
            "outside of them"
        )
    if not hasattr(source, "ids") or not hasattr(source, "batch"):
        raise DataError(
            f"source is {type(source).__name__}; expected tokens by id: a FeatureStore, MemoryTokens or LiveTokens"
        )
    maps = [task.name for task in head.tasks if task.is_map]
    views: Any = getattr(source, "views", None)
    for i in range(len(views) if views is not None and maps else 0):
        views.flips(i)  # labels of cells follow the flips that a source states
    if recipe.cutmix_alpha is not None and (maps or not isinstance(source, LiveTokens)):
        raise ConfigError(
            f"cutmix_alpha is {recipe.cutmix_alpha}; it pastes images of LiveTokens, for tasks without maps. The "
            f"source is a {type(source).__name__}, the tasks with maps are {maps or 'none'}: take mixup_alpha"
        )
    if not any(parameter.requires_grad for parameter in head.parameters()) and trained_backbone(source) is None:
        raise ConfigError(f"all parameters of this {type(head).__name__} are frozen; there is nothing to train")


def _check_ids(ids: Sequence[str], trained: int, recipe: Recipe) -> None:
    if not trained:
        raise ConfigError("there are 0 ids to train on: ids= is empty, or all ids are validation ids")
    if both := sorted(set(ids[:trained]) & set(ids[trained:])):
        raise DataError(f"{len(both)} ids are for training and for validation, the first is {both[0]!r}")
    if recipe.patience is not None and len(ids) == trained:
        raise ConfigError(f"patience is {recipe.patience}, and there are no val_ids whose loss it could wait for")


def _check_tokens(head: Head, source: TokenSource) -> None:
    """Refuse tokens of another width; warn of layers that the head does not read."""
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


def _groups(objective: Objective, recipe: Recipe) -> list[dict[str, Any]]:
    """The optimizer's groups; biases, norms and the loss's own parameters have no weight decay."""
    head, backbone = objective.trained.head, objective.trained.backbone
    if backbone is None or backbone.frozen:
        trained = [p for p in head.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in trained if p.ndim >= 2], "weight_decay": recipe.weight_decay},
            {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
        ]
    else:
        rate = _BACKBONE_SHARE * recipe.lr if recipe.backbone_lr is None else recipe.backbone_lr
        groups = param_groups(objective.trained, lr=recipe.lr, backbone_lr=rate, weight_decay=recipe.weight_decay)
    groups.append({"params": [p for p in objective.loss.parameters() if p.requires_grad], "weight_decay": 0.0})
    return [group for group in groups if group["params"]]


def _identity(objective: Objective, samples: Samples) -> dict[str, Any]:
    """What makes a run this one: recipe, head and loss, and one SHA-256 over ids, targets and the first tokens.

    The weights that the head begins with are not part of it: a resumed run takes those of its state.
    """
    head, loss, data = objective.trained.head, objective.loss, hashlib.sha256()
    for image_id in (*samples.ids, str(samples.trained)):
        data.update(f"{image_id}\0".encode())
    for table in (samples.values, samples.cells):
        for name, x in sorted(table.items()):
            data.update(f"{name}\0{x.dtype}\0{tuple(x.shape)}\0".encode())
            data.update(bytes_of(x))
    for x in stored_tokens(samples.source, samples.ids[:1], None)[0] if is_stored(samples.source) else ():
        data.update(bytes_of(x))
    plain: dict[str, Any] = json.loads(json.dumps({
        "recipe": objective.recipe.to_dict(),
        "head": {"type": type(head).__name__, "config": encode(head.config)},
        "trained": {name: p.shape for name, p in head.named_parameters() if p.requires_grad},
        "loss": {
            "weighting": loss.weighting and {"type": type(loss.weighting).__qualname__, **loss.weighting.config},
            "compositions": [encode(composition) for composition in loss.compositions],
            "regularisers": [encode(regulariser) for regulariser in loss.regularisers],
        },
        "ids and targets": data.hexdigest(),
    }))  # fmt: skip
    return plain


def _note_source(head: Head, backbone: Backbone | None) -> None:
    """Let a head that was loaded from a file expect the tokens of the backbone that was trained along."""
    if backbone is None:
        return
    source = weight_hashes.current_hashes(backbone.adapter).fingerprint
    for part in head.modules():
        if isinstance(part, Head) and part.trained_on is not None:
            part.trained_on = replace(part.trained_on, source=source)


def _exact(outputs: Mapping[str, Tensor]) -> Table:
    """Outputs in float32 or wider, so that losses are exact under autocast."""
    return {name: x.to(torch.promote_types(x.dtype, torch.float32)) for name, x in outputs.items()}


def _names(tasks: Sequence[Task]) -> str:
    return ", ".join(task.name for task in tasks)
