"""fit: train a head on tokens, and the backbone along with it where it is trainable; resumable, repeatable."""

from __future__ import annotations

import functools
import logging
import math
import os
import threading
from collections.abc import Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dinoneck.data.arrays import by_id
from dinoneck.data.cells import IMAGES
from dinoneck.devices import fetch
from dinoneck.errors import ConfigError, DataError
from dinoneck.heads.head import Head
from dinoneck.losses.task_loss import TaskLoss
from dinoneck.metrics import (
    ACCURACY,
    MEAN_AVERAGE_PRECISION,
    MEAN_IOU,
    R2,
    WITHIN_11,
    Floats,
    angle_terms,
    as_number,
    class_counts,
    map_confusion,
    mean_average_precision,
    value_terms,
)
from dinoneck.store.feature_store import FeatureStore
from dinoneck.store.memory import MemoryStore
from dinoneck.tasks import Task, without_calibration
from dinoneck.tokens import Tokens
from dinoneck.training.batches import Batch, BatchReader
from dinoneck.training.engine import Engine, restored_random_state, seed_all
from dinoneck.training.folder import STATE, Callback
from dinoneck.training.identity import identity_of
from dinoneck.training.ids import IdMatcher
from dinoneck.training.objective import Objective
from dinoneck.training.origins import note_origin
from dinoneck.training.recipe import Recipe
from dinoneck.training.run_tokens import compare_images
from dinoneck.training.samples import Samples, match_samples
from dinoneck.training.targets import known_mask, normalise_samples
from dinoneck.training.token_sources import LiveTokens, TokenSource

logger = logging.getLogger(__name__)
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
    title: str = "",
    **recipe_fields: Any,
) -> list[dict[str, float]]:
    """Train ``head`` in place, and what is trainable in the backbone of :class:`LiveTokens`, repeatably.

    If the tokens have several layers and the head reads one, a warning in the log names its block.
    Another one names two tasks if one's loss is more than 100 times the other's at the first step.

    Args:
        head: its tasks must be final: fit their transforms on the training rows first. Prediction
            intervals and thresholds of labels that it has are dropped, with a warning: they hold for
            its weights before.
        source: tokens by id; of several augmented views every sample gets a random one per epoch,
            labels flipped along.
        targets: in original units, matched by id, never by position. Give a pandas DataFrame with
            ids as index, or task name -> ``{id: value}`` or a Series; with ``target_ids`` also an
            array (n, ...) or a column of numbered rows. Values have the shape (), (dim,) or (dim,
            rows, cols), NaN = missing. Classes are () indices or the words of the task's labels, or
            class indices (height, width), -1 = missing. Ids of objects are (height, width), 1000 *
            (class + 1) + number, 0 = none, -1 = unknown. None and pandas.NA are missing too.
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
        title: what is trained, such as ``"fold 0"``, for the bar on a terminal.
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
    device = next(head.parameters()).device

    # from here on a sample is a row: of ids, targets and weights of cells
    matched = match_samples(
        source.ids,
        targets,
        weights,
        labels={task.name: task.labels for task in head.tasks},
        ids=ids,
        val_ids=val_ids,
        target_ids=target_ids,
    )
    _check_composed(loss, targets)
    _check_images(source, targets, matched.ids)
    samples = normalise_samples(loss, matched, needs_validation=recipe.patience is not None)
    has_validation = len(samples.ids) > samples.train_count

    objective = Objective(head, source, loss.to(device), recipe)
    reader = BatchReader(
        source, samples, objective.maps, device=device, vector_maps=objective.vector_maps
    )
    with _RUNNING, restored_random_state():
        seed_all(recipe.seed)
        objective.start_epoch(0)
        engine = _build_engine(objective, samples)
        # what does not fit is refused before a folder is made
        example = reader.read_first()
        with torch.no_grad(), engine.precision():
            for micro_batch in objective.micro_batches(
                example.inputs, example.targets, mixes=False
            ):
                objective.eval()(micro_batch)
        names_of_calibrated = head.drop_calibration()
        if engine.rank == 0:
            _warn_of_layers(head, source, example)
            _warn_of_calibration(names_of_calibrated)

        if out is not None:
            identity = identity_of(objective, source, samples, engine.parameters)
            engine.open_state(Path(out) / STATE, identity, resume=resume)
        is_new = not engine.history
        objective.is_first_step = is_new
        if is_new and recipe.standardise_tokens:
            _calibrate(head, reader, recipe.batch_size)

        with engine.progress(title) as bar:
            while not engine.is_finished:
                epoch = engine.start_epoch()
                objective.start_epoch(epoch)
                batches = reader.training_batches(
                    epoch, recipe, rank=engine.rank, num_processes=engine.num_processes
                )
                engine.model.train()
                with closing(batches):
                    for batch in batches:
                        _train_batch(engine, objective, batch)
                        bar.update()
                engine.add_row()
                if has_validation:
                    with engine.evaluating():
                        scores = _validate(engine, objective, reader)
                        engine.add_scores(scores)  # keeps the best weights
                engine.end_epoch(callbacks)  # keeps the state
        engine.finish()  # best, averaged or last weights
        note_origin(objective.trained, source, example.inputs)
    return engine.history


def _train_batch(engine: Engine, objective: Objective, batch: Batch) -> None:
    """Take a step by the losses of a batch, which is computed in micro-batches, and keep the losses."""
    micro_batches = objective.micro_batches(batch.inputs, batch.targets, batch.mixes)
    with engine.precision():
        objective.start_weighting(micro_batches)
    forwards = [partial(engine.model, micro_batch) for micro_batch in micro_batches]
    losses = engine.forward_backward(*forwards)
    objective.compare_scales(losses, batch.targets.values)
    losses |= objective.learned_weights()
    engine.step()
    engine.add_losses(losses, batch.num_images)


def _validate(engine: Engine, objective: Objective, reader: BatchReader) -> dict[str, float]:
    """Return the losses (``val_loss`` is the unweighted sum of the others) and scores of the validation samples."""
    tasks = [task for task in objective.loss.tasks if not task.is_masks]
    predictions: dict[str, list[Tensor]] = {task.name: [] for task in tasks}
    for batch in reader.validation_batches(engine.recipe.batch_size):
        with engine.precision():
            outputs = objective.outputs(objective.tokens(batch.inputs))
        losses = objective.losses(outputs, batch.targets)
        del losses["loss"]  # the weighted sum
        validation_losses = {"val_loss": torch.stack([*losses.values()]).sum()}
        for name, value in losses.items():
            validation_losses[f"val_{name}"] = value
        engine.add_losses(validation_losses, batch.num_images)
        for task in tasks:
            predictions[task.name].append(task.predict(outputs[task.name]))
    row = engine.mean_losses()

    # one transfer for all tasks
    fetched = fetch([torch.cat(of_batches).float() for of_batches in predictions.values()])
    samples = reader.samples
    for task, task_predictions in zip(tasks, fetched, strict=True):
        truth = samples.targets.values[task.name][samples.train_count :]
        row |= _score(task, task_predictions, truth)
    r2_scores = [score for name, score in row.items() if name.startswith("val_r2/")]
    if r2_scores:
        row["val_r2"] = float(np.mean(r2_scores))
    return row


def _score(task: Task, predictions: Tensor, truth: Tensor) -> dict[str, float]:
    """Return ``val_r2/TASK`` (the mean over outputs), ``val_accuracy/TASK`` or, of masks, ``val_mean_iou/TASK``.

    Of several labels it is ``val_mAP/TASK``, the mean of their average precisions. Of surface
    normals it is ``val_within_11/TASK``, the share of cells that are less than 11.25 degrees off.
    Masks are compared at the resolution of the labels. Missing labels are ignored; without values
    there is no score.

    Args:
        task: of the head.
        predictions: (m, ...) in original units, on the CPU.
        truth: the targets of the same samples as the loss compares them.
    """
    if task.is_multilabel:
        name = MEAN_AVERAGE_PRECISION
        score = _score_of_labels(predictions, truth)
    elif task.is_categorical:
        metric = MEAN_IOU if task.is_map else ACCURACY
        name = metric.name
        score = as_number(metric.of_sums(_sums_of_classes(task, predictions, truth)))
    elif task.is_unit:
        name = WITHIN_11.name
        score = as_number(WITHIN_11.of_sums(_sums_of_angles(task, predictions, truth)))
    else:
        name = R2.name
        score = as_number(R2.of_sums(_sums_of_values(task, predictions, truth)))
    if score is None:
        return {}
    return {f"val_{name}/{task.name}": score}


def _score_of_labels(probabilities: Tensor, truth: Tensor) -> float | None:
    """The mean of the labels' average precisions; None where no label occurs."""
    once = np.ones((1, len(truth)))
    [precision] = mean_average_precision(
        truth.double().numpy(), probabilities.double().numpy(), once
    )
    return as_number(precision)


def _sums_of_classes(task: Task, probabilities: Tensor, truth: Tensor) -> Floats:
    """What the scores of classes are computed from; a truth of shares is its largest class."""
    classes = truth.argmax(dim=1) if truth.is_floating_point() else truth
    known_classes = classes.where(known_mask(task, truth), -1)
    return class_counts(map_confusion(known_classes, probabilities))


def _sums_of_angles(task: Task, predictions: Tensor, truth: Tensor) -> Floats:
    """What the scores of surface normals are computed from."""
    known_truth = truth.where(known_mask(task, truth)[:, None], torch.nan)
    terms_of_images = []
    for normals, predicted in zip(known_truth, predictions, strict=True):
        terms_of_images.append(angle_terms(normals, predicted))
    sums: Floats = np.sum(terms_of_images, axis=0)
    return sums


def _sums_of_values(task: Task, predictions: Tensor, truth: Tensor) -> Floats:
    """What the scores of numbers are computed from, in original units."""
    if task.transform is not None:
        truth = task.transform.inverse(truth.double().movedim(1, -1)).movedim(-1, 1)
    terms = value_terms(truth.double().numpy(), predictions.double().numpy())
    sums: Floats = terms.sum(axis=0)
    return sums


def _build_engine(objective: Objective, samples: Samples) -> Engine:
    """Return the engine of a run.

    Raises:
        ConfigError: if nothing is trainable.
    """
    recipe = objective.recipe
    groups = objective.optimizer_groups()
    if not groups:
        raise ConfigError(
            f"all parameters of this {type(objective.trained.head).__name__} are frozen, so that "
            "there is nothing to train; unfreeze some: head.requires_grad_(True)"
        )
    steps_per_epoch = math.ceil(samples.train_count / recipe.batch_size)
    return Engine(
        objective.trained,
        objective,
        groups,
        recipe,
        steps_per_epoch,
        sam_rho=recipe.rho if recipe.optimizer == "sam" else None,
        patience=recipe.patience,
    )


@torch.no_grad()
def _calibrate(head: Head, reader: BatchReader, batch_size: int) -> None:
    """Measure the scale of the tokens of the training images, for heads that standardise them."""
    head.calibrate(reader.training_tokens(batch_size))


def _warn_of_layers(head: Head, source: TokenSource, example: Batch) -> None:
    """Log which layer is read by a head that reads the last one alone."""
    if not head.reads_last_layer:
        return
    layers = None
    if isinstance(source, LiveTokens):
        layers = source.backbone.layers
    elif isinstance(example.inputs, Tokens):
        layers = example.inputs.layers
    warn_of_unread_layers(type(head).__name__, layers or ())


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


def _warn_of_calibration(names: Sequence[str]) -> None:
    """Name the tasks whose intervals and thresholds were dropped; nothing without such."""
    if names:
        logger.warning(
            "the head had prediction intervals or thresholds of %s, which hold for its weights before "
            "this training and are dropped; 'dinoneck evaluate ... --calibrate OUT.safetensors' adds "
            "intervals to the file of a head",
            ", ".join(names),
        )


def _check_composed(loss: TaskLoss, targets: Any) -> None:
    """Raise if targets hold what the loss computes."""
    for composition in loss.compositions:
        if composition.name in targets:
            raise ConfigError(
                f"targets hold {composition.name!r}, which the loss computes from its tasks; leave "
                "it out"
            )


def _check_images(source: TokenSource, targets: Any, ids: Sequence[str]) -> None:
    """Raise if the images of a table are not those that a feature store was extracted from."""
    store = source.store if isinstance(source, MemoryStore) else source
    names_images = IMAGES in getattr(targets, "columns", ())
    if not names_images or not isinstance(store, FeatureStore):
        return
    find_id = IdMatcher(source.ids).find
    files = by_id(targets[IMAGES], IMAGES, None, find_id)
    files_to_train_on = {image_id: files[image_id] for image_id in ids}
    compare_images(store, files_to_train_on)


def _check_arguments(
    head: object, source: object, loss: object, recipe: object, callbacks: object
) -> None:
    """Raise if an argument of ``fit`` has another type."""
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
    """Raise if head, source, recipe and loss do not fit together."""
    if not torch.is_grad_enabled():
        raise ConfigError(
            "fit was called under torch.no_grad() or inference_mode(), where nothing can be trained"
        )
    # the loss of a loaded head may hold the intervals that an earlier training of it has dropped
    tasks_of_loss = [without_calibration(task) for task in loss.tasks]
    if tasks_of_loss != [without_calibration(task) for task in head.tasks]:
        loss_names = ", ".join(task.name for task in loss.tasks)
        head_names = ", ".join(task.name for task in head.tasks)
        raise ConfigError(f"the loss is built for tasks {loss_names}, the head for {head_names}")
    is_live = isinstance(source, LiveTokens)
    maps = [task.name for task in head.tasks if task.is_map or task.is_masks]
    if maps and getattr(source, "transform", None) is not None:
        raise ConfigError(
            f"the head has tasks with maps ({', '.join(maps)}), and transform= may move pixels while "
            "maps stay; leave it out, or train on a feature store with augmented views, which "
            "state how they are flipped and turned"
        )
    if recipe.freeze and not is_live:
        raise ConfigError(
            f"freeze is {', '.join(recipe.freeze)}, and needs LiveTokens, not "
            f"{type(source).__name__}"
        )
    if recipe.cutmix_alpha is not None and not is_live:
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
