"""fit: train a head on tokens, and the backbone along with it where it is trainable; resumable, repeatable."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
import re
import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from dinoneck.backbones import weight_hashes
from dinoneck.backbones.backbone import Backbone, plain_backbone
from dinoneck.codec import encode
from dinoneck.data.arrays import by_id
from dinoneck.data.cells import IMAGES
from dinoneck.data.preprocessing import Preprocessing
from dinoneck.devices import bytes_of, fetch
from dinoneck.errors import ConfigError, DataError
from dinoneck.heads.head import Head
from dinoneck.layers.inputs import Origin
from dinoneck.losses.masked import exact
from dinoneck.losses.task_loss import TaskLoss
from dinoneck.metrics import (
    ACCURACY,
    MEAN_IOU,
    R2,
    as_number,
    class_counts,
    map_confusion,
    value_terms,
)
from dinoneck.store.feature_store import FeatureStore
from dinoneck.store.memory import MemoryStore
from dinoneck.tasks import Task
from dinoneck.tokens import Tokens
from dinoneck.training.engine import Engine, own_random_numbers, seed_all
from dinoneck.training.folder import BACKBONE, SAMPLES, STATE, TOKENS, Callback, writes
from dinoneck.training.ids import IdMatcher
from dinoneck.training.optim import blended_tokens, pasted, random_box
from dinoneck.training.parameter_groups import FreezeSchedule, param_groups
from dinoneck.training.recipe import Recipe
from dinoneck.training.source import compare_images
from dinoneck.training.targets import (
    WEIGHT,
    Tensors,
    known,
    match_samples,
    training_targets,
)
from dinoneck.training.token_sources import (
    LiveTokens,
    Samples,
    TokenSource,
    digest_of,
    in_batches,
    is_stored,
    origin_of,
)

logger = logging.getLogger(__name__)
_Truths = list[tuple[float, Tensors]]  # targets, and the share by which their loss counts
# of the losses of two tasks at the first step: the smaller one then is at most 1 % of their sum
LARGEST_RATIO = 100.0
_OF_TOKENS = ("name", "source", "layers", "normed", "patch_size", "images")  # fields of Origin
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")  # in the repr of a function or an object
# with a target: the loss of fewer may be small by chance
FEWEST_SAMPLES = 4
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

    Warnings in the log name the block that a head of one layer reads if the tokens have several,
    and two tasks if one's loss is more than 100 times the other's at the first step.

    Args:
        head: its tasks must be final: fit their transforms on the training rows first.
        source: tokens by id; of several augmented views every sample gets a random one per epoch,
            labels flipped along.
        targets: original units, matched by id, never by position: a pandas DataFrame with ids as
            index, or task name -> ``{id: value}``, a Series, or an array (n, ...) or column of
            numbered rows with ``target_ids``. Values (), (dim,) or (dim, rows, cols), NaN = missing;
            classes () as indices, or as the words of the task's labels, and class indices
            (height, width), -1 = missing; None and pandas.NA are missing too; ids of objects
            (height, width), 1000 * (class + 1) + number, 0 = none, -1 = unknown.
        ids: the training ids; None = all ids of the targets in ascending order, without
            ``val_ids``.
        val_ids: other ids to validate on after every epoch.
        target_ids: one id per row of targets and weights that are arrays, or columns whose index
            holds row numbers.
        weights: dense task name -> (rows, cols) by id, given as ``targets`` are; None = all cells
            count alike.
        loss: over the head's tasks, its own parameters trained along; None =
            TaskLoss(head.tasks, head.compositions).
        recipe: None = Recipe().
        out: folder of the state and the log (a JSON line per epoch); None = keep nothing.
        resume: continue from the state in ``out``, bit for bit; off = start again.
        callbacks: ``callback(epoch, row)``, called after every new epoch, by one process.
        recipe_fields: fields of the recipe that differ from ``recipe``, such as
            ``epochs=12, lr=3e-3``.

    Returns:
        A dict per epoch: ``loss``, its parts ``loss/NAME``, times and memory; with ``val_ids``
        ``val_loss`` and scores.

    Raises:
        DataError: for ids without targets or tokens, targets that cannot be learned, or a loss that
            diverges.
        StoreError: if the images of a table are other files than those that the feature store was
            extracted from.
        ConfigError: if a number is out of range, or head, loss, source and recipe do not fit
            together.
        CheckpointError: if the state in ``out`` is damaged, that of another run, or cannot be
            written.
    """
    _check_arguments(head, source, loss, recipe, callbacks)
    recipe = (recipe or Recipe()).changed(**recipe_fields)
    loss = loss or TaskLoss(head.tasks, head.compositions)
    _check_together(head, source, recipe, loss)
    names, device = {task.name: task.labels for task in head.tasks}, next(head.parameters()).device
    train, valid, values, cells = match_samples(
        source.ids, targets, weights, names, ids, val_ids, target_ids
    )
    if composed := [own.name for own in loss.compositions if own.name in targets]:
        raise ConfigError(
            f"targets hold {composed[0]!r}, which the loss computes from its tasks; leave it out"
        )
    _check_images(source, targets, used := [*train, *valid])
    normalised = training_targets(
        loss, values, cells, used, len(train), recipe.patience is not None
    )
    objective = Objective(head, source, loss.to(device), recipe)
    samples = Samples(source, used, len(train), objective.maps, normalised, device)
    with _RUNNING, own_random_numbers():
        return _train(
            objective, samples, None if out is None else Path(out) / STATE, resume, callbacks
        )


def _train(
    objective: Objective,
    samples: Samples,
    path: Path | None,
    resume: bool,
    callbacks: Sequence[Callback],
) -> list[dict[str, float]]:
    """Train on samples; validate with the others, where there are some."""
    recipe, count, head = (
        objective.recipe,
        samples.train_count,
        cast("Head", objective.trained["head"]),
    )

    def begin(epoch: int) -> None:
        if recipe.freeze:
            FreezeSchedule(recipe.plan).apply(objective.trained, epoch)
        _forget_source(objective.trained)

    seed_all(recipe.seed)
    begin(0)
    groups = _groups(objective)
    if not groups:
        raise ConfigError(
            f"all parameters of this {type(head).__name__} are frozen, so that there is nothing to "
            "train; unfreeze some: head.requires_grad_(True)"
        )
    engine = Engine(
        objective.trained,
        objective,
        groups,
        recipe,
        -(-count // recipe.batch_size),
        sam_rho=recipe.rho if recipe.optimizer == "sam" else None,
        patience=recipe.patience,
    )
    # what does not fit is refused before a folder is made
    inputs, targets = samples.read([0])
    with torch.no_grad(), engine.precision():
        objective.eval()(inputs, targets, mixes=False)
    if head._reads_last_layer and engine.rank == 0:
        source = samples.source
        layers = source.backbone.layers if isinstance(source, LiveTokens) else inputs.layers
        warn_of_unread_layers(type(head).__name__, layers or ())
    if path is not None:
        engine.keep(path, _identity(objective, samples, engine.parameters), resume=resume)
    objective.is_first_step = not engine.history
    if recipe.standardise_tokens and not engine.history:
        batches = in_batches(samples.ids[:count], recipe.batch_size)
        with torch.no_grad():
            head.calibrate(samples.source.batch(ids).to(samples.device) for ids in batches)
    engine.run(
        lambda epoch: samples.training(epoch, recipe, engine.rank, engine.count),
        (lambda: _validate(engine, objective, samples)) if len(samples.ids) > count else None,
        begin=begin,
        callbacks=callbacks,
    )
    _note_origin(objective.trained, samples.source, inputs)
    return engine.history


@functools.cache
def warn_of_unread_layers(head_name: str, layers: tuple[int, ...]) -> None:
    """Log which of several blocks a head reads, once per process: ``train`` calls ``fit`` for every fold."""
    if len(layers) > 1:
        logger.warning(
            "the tokens have layers %s, and %s reads the last one listed, block %d: extract that "
            "one alone, list another one last, or take a head that reads several, such as FPNHead",
            list(layers),
            head_name,
            layers[-1],
        )


class Objective(nn.Module):
    """Backbone (of live tokens), head and loss: a batch's losses by name, of samples that may be blended.

    Args:
        head: of the tokens.
        source: of the tokens; the backbone of live tokens is trained along.
        loss: over the head's tasks.
        recipe: how samples are blended.

    Attributes:
        trained: ``head``, and ``backbone`` where tokens are live.
        is_first_step: whether no step of the run was taken yet; its losses are compared.
    """

    def __init__(self, head: Head, source: TokenSource, loss: TaskLoss, recipe: Recipe) -> None:
        super().__init__()
        live = {"backbone": source.backbone} if isinstance(source, LiveTokens) else {}
        self.trained, self.loss, self.recipe = nn.ModuleDict({"head": head, **live}), loss, recipe
        maps = [task.name for task in loss.tasks if task.is_map or task.is_masks]
        self.maps = {*maps, *(name + WEIGHT for name in maps)}
        self.is_first_step = True

    def forward(self, inputs: Any, targets: Tensors, mixes: bool) -> Tensors:
        """Return ``loss``, its parts ``loss/NAME`` and their learned weights ``weight/NAME``.

        A loss may be the mean over what the samples are blended of.
        """
        cutmix, mixup = (
            (self.recipe.cutmix_alpha, self.recipe.mixup_alpha) if mixes else (None, None)
        )
        truths: _Truths = [(1.0, targets)]
        if cutmix is not None:
            backbone: Any = self.trained["backbone"]
            box, share = random_box(inputs.shape[-2:], cutmix, backbone.patch_size)
            inputs = pasted(inputs, box)
            # maps are pasted as the images, the other targets count by the area
            targets = {
                name: pasted(x, box) if name in self.maps else x for name, x in targets.items()
            }
            truths = _with_partners([(1.0, targets)], share, self.maps)
        tokens = self.tokens(inputs)
        if mixup is not None:
            tokens, share = blended_tokens(tokens, mixup)
            truths = _with_partners(truths, share)
        outputs = self.outputs(tokens)
        parts = [(share, self.losses(outputs, truth)) for share, truth in truths]
        losses: dict[str, Any] = {
            name: sum(share * part[name] for share, part in parts) for name in parts[0][1]
        }
        if self.training and self.is_first_step:
            self.is_first_step = False
            self._compare_scales(losses, targets)
        learned = {} if self.loss.weighting is None else self.loss.weighting.weights()
        return losses | {f"weight/{name}": weight for name, weight in learned.items()}

    def _compare_scales(self, losses: Tensors, targets: Tensors) -> None:
        """Log if one loss is so large that another one hardly affects the gradient.

        Weights that are learned or that are not 1 were chosen to balance the losses: they are not
        compared. The host waits for the device here, once per run.
        """
        tasks = [task for task in self.loss.tasks if task.weight == 1.0]
        if len(tasks) < 2 or self.loss.weighting is not None or not writes():
            return
        counts = []
        for task in tasks:
            is_known = known(task, targets[task.name])
            counts.append(
                is_known.flatten(1).any(dim=1).sum() if is_known.ndim > 1 else is_known.sum()
            )
        values = [losses[f"loss/{task.name}"].detach() for task in tasks]
        numbers = torch.stack([torch.stack(counts).to(values[0]), torch.stack(values)]).tolist()
        sizes = {}
        for task, count, value in zip(tasks, *numbers, strict=True):
            if count >= FEWEST_SAMPLES and value > 0:
                sizes[task.name] = value
        if not sizes:
            return
        largest = max(sizes, key=sizes.__getitem__)
        smallest = min(sizes, key=sizes.__getitem__)
        if sizes[largest] > LARGEST_RATIO * sizes[smallest]:
            logger.warning(
                "at the first step the loss of %r is %.3g and that of %r is %.3g, so that the "
                "smaller one hardly affects the gradient. Give the tasks a transform that is fitted "
                "on their targets, TargetTransform().fit(values), or a weight",
                largest,
                sizes[largest],
                smallest,
                sizes[smallest],
            )

    def tokens(self, inputs: Tokens | Tensor) -> Tokens:
        """Return tokens, of images those of the backbone."""
        return (
            inputs
            if isinstance(inputs, Tokens)
            else cast("Tokens", self.trained["backbone"](inputs))
        )

    def outputs(self, tokens: Tokens) -> Tensors:
        """Return the head's outputs in float32 or wider, so that losses are exact under autocast."""
        return {name: exact(x) for name, x in self.trained["head"](tokens).items()}

    def losses(self, outputs: Tensors, targets: Tensors) -> Tensors:
        """Return ``loss`` and its parts; what is missing counts for nothing."""
        masks = {name: x >= 0 for name, x in targets.items() if not x.is_floating_point()}
        masks |= {
            name.removesuffix(WEIGHT): x for name, x in targets.items() if name.endswith(WEIGHT)
        }
        with torch.autocast(next(iter(outputs.values())).device.type, enabled=False):
            total, parts = self.loss(outputs, targets, masks)
        return {"loss": total, **{f"loss/{name}": x for name, x in parts.items()}}


def _with_partners(truths: _Truths, share: float, kept: Collection[str] = ()) -> _Truths:
    """The targets, which count by the share, and those of the sample before, by the rest; those ``kept`` stay."""
    partners = [
        {name: x if name in kept else x.roll(1, 0) for name, x in own.items()} for _, own in truths
    ]
    rest = [((1 - share) * part, own) for (part, _), own in zip(truths, partners, strict=True)]
    return [(share * part, own) for part, own in truths] + rest


def _validate(engine: Engine, objective: Objective, samples: Samples) -> dict[str, float]:
    """Return the loss (the plain sum of its parts) and the scores of the validation samples."""
    predictions, tasks = (
        list[list[Tensor]](),
        [task for task in objective.loss.tasks if not task.is_masks],
    )
    for images, (inputs, targets) in samples.held_out(engine.recipe.batch_size):
        with engine.precision():
            outputs = objective.outputs(objective.tokens(inputs))
        _, *parts = objective.losses(outputs, targets).items()
        total = torch.stack([x for _, x in parts]).sum()
        engine.note({"val_loss": total, **{f"val_{name}": x for name, x in parts}}, images)
        predictions.append([task.predict(outputs[task.name]) for task in tasks])
    row = engine.mean_losses()
    outputs_of_all = fetch(
        [torch.cat(batches).float() for batches in zip(*predictions, strict=True)]
    )
    for task, output in zip(tasks, outputs_of_all, strict=True):
        row |= _score(task, output, samples.targets[task.name][samples.train_count :])
    r2_scores = [score for name, score in row.items() if name.startswith("val_r2/")]
    return row | ({"val_r2": float(np.mean(r2_scores))} if r2_scores else {})


def _score(task: Task, output: Tensor, truth: Tensor) -> dict[str, float]:
    """Return ``val_r2/TASK`` (the mean over outputs), ``val_accuracy/TASK`` or, of masks, ``val_mean_iou/TASK``.

    Masks are compared at the resolution of the labels. What is missing counts for nothing; without
    values there is no score.

    Args:
        task: of the head.
        output: (m, ...) in original units.
        truth: the targets of the same samples as the loss compares them.
    """
    if task.is_categorical:
        classes = truth.argmax(dim=1) if truth.is_floating_point() else truth
        metric = MEAN_IOU if task.is_map else ACCURACY
        sums = class_counts(map_confusion(classes.where(known(task, truth), -1), output))
    else:
        if task.transform is not None:
            truth = task.transform.inverse(truth.double().movedim(1, -1)).movedim(-1, 1)
        metric = R2
        terms = value_terms(truth.double().numpy(), output.double().numpy())
        sums = terms.sum(axis=0)
    score = as_number(metric.of_sums(sums))
    return {} if score is None else {f"val_{metric.name}/{task.name}": score}


def _check_images(source: TokenSource, targets: Any, ids: Sequence[str]) -> None:
    """Refuse a table whose images are not those that a feature store was extracted from."""
    store = source.store if isinstance(source, MemoryStore) else source
    names_images = IMAGES in getattr(targets, "columns", ())
    if not names_images or not isinstance(store, FeatureStore):
        return
    find_id = IdMatcher(source.ids).find
    files = by_id(targets[IMAGES], IMAGES, None, find_id)
    files_to_train_on = {image_id: files[image_id] for image_id in ids}
    compare_images(store, files_to_train_on)


def _check_arguments(head: Any, source: Any, loss: Any, recipe: Any, callbacks: Any) -> None:
    """Check the types of what ``fit`` is given."""
    if not isinstance(head, Head):
        raise ConfigError(
            f"head is {type(head).__name__}; expected a head with tasks, such as "
            "PatchMeanHead(384, [Task('mass')])"
        )
    if not (hasattr(source, "ids") and hasattr(source, "batch")):
        raise DataError(
            f"source is {type(source).__name__}; expected tokens by id: a FeatureStore, "
            "MemoryTokens(ids, tokens) or LiveTokens"
        )
    if not isinstance(loss, TaskLoss | None):
        raise ConfigError(f"loss is {type(loss).__name__}; expected a TaskLoss over head.tasks")
    if not isinstance(recipe, Recipe | None):
        raise ConfigError(
            f"recipe is {type(recipe).__name__}; expected Recipe(...) of dinoneck.training, or its "
            "fields: fit(..., epochs=12)"
        )
    if callable(callbacks):
        raise ConfigError("callbacks is one function; expected a list of them: callbacks=[...]")


def _check_together(head: Head, source: TokenSource, recipe: Recipe, loss: TaskLoss) -> None:
    """Refuse a head, a source, a recipe and a loss that do not fit together."""
    if not torch.is_grad_enabled():
        raise ConfigError(
            "fit was called under torch.no_grad() or inference_mode(), where nothing can be trained"
        )
    if loss.tasks != head.tasks:
        names = [", ".join(task.name for task in tasks) for tasks in (loss.tasks, head.tasks)]
        raise ConfigError(f"the loss is built for tasks {names[0]}, the head for {names[1]}")
    live = isinstance(source, LiveTokens)
    maps = [task.name for task in head.tasks if task.is_map or task.is_masks]
    if maps and getattr(source, "transform", None) is not None:
        raise ConfigError(
            f"the head has tasks with maps ({', '.join(maps)}), and transform= may move pixels while "
            "maps stay; leave it out, or train on a feature store with augmented views, which "
            "state how they are flipped and turned"
        )
    if recipe.freeze and not live:
        raise ConfigError(
            f"freeze is {', '.join(recipe.freeze)}, and needs LiveTokens, not "
            f"{type(source).__name__}"
        )
    if recipe.cutmix_alpha is not None and not live:
        raise ConfigError(
            f"cutmix_alpha is {recipe.cutmix_alpha}, and the source is a {type(source).__name__}, "
            "which has no images to paste into; take mixup_alpha, or LiveTokens"
        )
    objects = [task.name for task in head.tasks if task.is_masks]
    if recipe.cutmix_alpha is not None and objects:
        raise ConfigError(
            f"cutmix_alpha is {recipe.cutmix_alpha}, and task {objects[0]!r} has objects, which "
            "pasted parts of images would cut; leave it out"
        )


def _groups(objective: Objective) -> list[dict[str, Any]]:
    """The optimizer's groups; biases, norms and the loss's own parameters have no weight decay."""
    trained, recipe = objective.trained, objective.recipe
    if "backbone" in trained and (recipe.freeze or not trained["backbone"].frozen):
        return param_groups(objective, **recipe.rates(), include_frozen=bool(recipe.freeze))
    groups: dict[float, list[Tensor]] = {recipe.weight_decay: [], 0.0: []}
    for parameter in (
        p for module in (trained["head"], objective.loss) for p in module.parameters()
    ):
        if parameter.requires_grad:
            groups[recipe.weight_decay if parameter.ndim > 1 else 0.0].append(parameter)
    return [{"params": own, "weight_decay": decay} for decay, own in groups.items() if own]


def _identity(objective: Objective, samples: Samples, trained: Sequence[Tensor]) -> dict[str, Any]:
    """What makes a run this one: recipe, head and loss, ids and targets, and the tokens.

    The weights that are trained are not part of it: a resumed run takes those of its state.

    Args:
        objective: with the head and, of live tokens, the backbone.
        samples: of the run.
        trained: all parameters that the optimizer has.
    """
    head, loss, source = objective.trained["head"], objective.loss, samples.source
    first = source.stored(samples.ids[:1])[0] if is_stored(source) else ()  # type: ignore[attr-defined]
    data = hashlib.sha256(repr([samples.train_count, *map(str, samples.ids)]).encode())
    for name, x in sorted(samples.targets.items()):
        data.update(f"{name} {x.dtype} {tuple(x.shape)} ".encode() + bytes_of(x))
    without_tokens = data.hexdigest()
    for x in first:
        data.update(f"tokens {x.dtype} {tuple(x.shape)} ".encode() + bytes_of(x))
    with_tokens = data.hexdigest()  # as in 0.3
    tokens = digest_of(source, samples.ids)
    plain: dict[str, Any] = json.loads(
        json.dumps(
            {
                "recipe": objective.recipe.to_dict(),
                "head": {type(head).__name__: encode(head.config)},
                "trained": {
                    name: p.shape for name, p in head.named_parameters() if p.requires_grad
                },
                "weighting": loss.weighting
                and {type(loss.weighting).__qualname__: loss.weighting.config},
                "loss": [encode(own) for own in (*loss.compositions, *loss.regularisers)],
                "ids and targets": with_tokens,
                SAMPLES: with_tokens if tokens is None else without_tokens,
                TOKENS: tokens,
                BACKBONE: _identity_of_backbone(source, trained),
            }
        )
    )
    return plain


def _identity_of_backbone(source: TokenSource, trained: Sequence[Tensor]) -> dict[str, Any] | None:
    """What decides which tokens a backbone makes of images, but for its trained weights; None without live tokens."""
    if not isinstance(source, LiveTokens):
        return None
    backbone = cast("Backbone", plain_backbone(source.backbone))
    adapter = backbone.adapter
    return {
        "layers": backbone.layers,
        "norm": backbone.norm,
        "patch_size": adapter.patch_size,
        "pos_embed": adapter.pos_embed,
        "preprocess": source.preprocess.record(),
        "transform": _ADDRESS.sub("", repr(source.transform)),
        "LoRA": adapter.lora,
        "weights that are not trained": weight_hashes.digest_without(adapter, trained),
    }


def _note_origin(trained: nn.ModuleDict, source: TokenSource, inputs: Tokens | Tensor) -> None:
    """Note in the head what it was trained on, for the file that it is saved in.

    Args:
        trained: head and, if it was trained along, backbone, which is described as it is now.
        source: of the tokens.
        inputs: of a sample: tokens, or images of live tokens.
    """
    origin = origin_of(source, inputs)
    for part in reversed(_heads_in(trained["head"])):  # members, then ensembles
        earlier = part.trained_on
        if earlier is None:
            part.note_origin(origin)
            continue
        images = origin.images or _earlier_images(part, earlier, inputs)
        if not earlier.refuses_tokens:
            part.note_origin(replace(origin, images=images))
            continue
        stated = {name: value for name, value in vars(origin).items() if value is not None}
        known = {name: stated[name] for name in _OF_TOKENS if name in stated}
        part.note_origin(replace(earlier, **{**known, "images": images}))


def _earlier_images(
    head: Head, earlier: Origin, inputs: Tokens | Tensor
) -> Mapping[str, Any] | None:
    """Return how images were prepared for an earlier training, if these tokens can be of such images.

    The tokens do not state how their images were prepared.
    """
    if earlier.images is None or not isinstance(inputs, Tokens):
        return earlier.images
    grid = Preprocessing.from_record(earlier.images).grid()
    if grid is None or grid == inputs.grid:
        return earlier.images
    logger.warning(
        "this %s was trained before on images of %d x %d patches (height x width), and now on tokens "
        "of %d x %d, which do not state how their images were prepared: pass preprocess= to save_head "
        "and Predictor",
        type(head).__name__,
        *grid,
        *inputs.grid,
    )
    return None


def _forget_source(trained: nn.ModuleDict) -> None:
    """Have a head that was loaded from a file take the tokens of a backbone that is trained along from now on."""
    if "backbone" not in trained or trained["backbone"].frozen:
        return
    for part in _heads_in(trained["head"]):
        if part.trained_on is not None:
            part.trained_on = replace(part.trained_on, source=None)


def _heads_in(module: nn.Module) -> list[Head]:
    """A head, and those in it."""
    return [part for part in module.modules() if isinstance(part, Head)]
