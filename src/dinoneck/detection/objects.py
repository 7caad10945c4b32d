"""train_instances: heads that predict the class and mask of every object, cross-validated, from a COCO file."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from dinoneck.data.cells import IMAGES
from dinoneck.data.copies import warn_of_changed_copies
from dinoneck.data.decoding import read_image_size
from dinoneck.data.labels import DenseLabels
from dinoneck.data.listed_images import UNKNOWN
from dinoneck.detection.evaluation import counted, known_objects, score_masks, score_segments
from dinoneck.errors import DataError
from dinoneck.extras import check_installed
from dinoneck.heads.head import Head
from dinoneck.inference.resolution import objects_at_image_size
from dinoneck.inference.results import coco_objects
from dinoneck.tasks import OBJECTS, Task
from dinoneck.training.config import PROGRAMS, TrainInstancesConfig
from dinoneck.training.folder import Callback
from dinoneck.training.problem import Problem
from dinoneck.training.report import HEAD
from dinoneck.training.run import Run
from dinoneck.training.scored import ValueTarget
from dinoneck.training.token_sources import LiveTokens, TokenSource

TASK = "objects"
FEWEST_STEPS = 500
_FEWEST_QUERIES = 20  # of a mask head
_MOST_QUERIES = 100
_STRIDE = 4  # pixels of the prepared image per value of the targets
_MIN_SCORES = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)  # of segments; the one with the best PQ is taken


def train_instances(
    config: TrainInstancesConfig,
    out: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    resume: bool = True,
) -> dict[str, Any]:
    """Train heads that predict every object with its class and mask, and one head on all images.

    The folder gets ``heads/fold-K.safetensors``, ``logs``, ``out_of_fold.csv`` (known and predicted
    numbers of objects), ``head.safetensors``, trained on all images, and, last, ``report.json``.
    The score from which the held-out objects have the best F1, or panoptic segments the best PQ, is
    the ``minimum`` of that head's task, so objects of a lower score are left out. An interrupted
    run continues as in :func:`dinoneck.training.train`.

    Without a head in the config it is a pyramid head on ``dpt_neck``, of panoptic segments
    ``mask``. ``mask`` gets twice as many queries as an image has objects at most, 20 to 100; a
    class of stuff is one object. The default number of epochs is raised until 500 steps on all
    images are taken.

    Args:
        config: ``data.instances`` names the COCO file, or ``data.panoptic`` a folder and a COCO
            file of panoptic segments, and ``data.images`` the folder of the images.
        out: the folder: a new or empty one, or that of an earlier run.
        overwrite: replace the results of an earlier run in ``out``; until the new report is
            written they are in ``out/earlier``.
        resume: continue an interrupted run of the same config.

    Returns:
        What ``report.json`` holds: ``masks`` (``{"head": scores}`` of the held-out objects, see
        :func:`dinoneck.detection.score_masks`) or ``segments``
        (:func:`dinoneck.detection.score_segments`), ``scores`` of the numbers of objects,
        ``images``, ``parameters``, ``config`` and ``versions``.

    Raises:
        DataError: if the data cannot be used, an image has 1000 objects of a class or more, images
            come to several sizes, ``out`` holds results and ``overwrite`` is off, or it holds other
            files than those of a run.
        ConfigError: if values contradict each other, or do not fit.
        CheckpointError: if ``out`` holds an unfinished run of another config or of other objects.
    """
    PROGRAMS.check_class(config, TrainInstancesConfig)
    config.check_used()
    data = config.data
    optim = config.optim
    check_installed("pycocotools", "masks")
    check_installed("scipy", "masks")
    dataset = known_objects(data.objects, data.images, data.classes or None, data.crowd)
    noun = "object" if data.panoptic is None else "segment"
    dataset.check_trainable(noun)
    dataset.warn_of_turned_images()
    if config.folds.count != 1:
        warn_of_changed_copies(dataset.paths, remedy="Leave them out")
    most = max(dataset.numbers.values()) + len(dataset.stuff)
    head = config.head
    if "type" not in head:
        if data.panoptic is None:
            head = {"type": "dpt_neck", "out_channels": 64} | head
        else:
            head = {"type": "mask"} | head
    if head["type"] == "mask":
        head = {"num_queries": min(max(2 * most, _FEWEST_QUERIES), _MOST_QUERIES)} | head
    if most > head.get("num_queries", most):
        raise DataError(
            f"{dataset.file}: an image has {most} objects; num_queries is {head['num_queries']}, "
            f"expected {most} or more"
        )
    if optim.epochs == type(optim)().epochs:
        steps_per_epoch = math.ceil(len(dataset) / optim.batch_size)
        epochs = max(optim.epochs, math.ceil(FEWEST_STEPS / steps_per_epoch))
        optim = optim.changed(epochs=epochs)
    config = config.changed(head=head, optim=optim)
    run = _InstanceRun(config, Path(out), dataset, overwrite=overwrite)
    for number, (train_rows, _) in run.folds.items():
        if number is not None:
            train_images = dataset.take(train_rows.tolist())
            train_images.check_part(
                dataset.class_counts, noun, f"the training images of fold {number}"
            )
    return run.train(resume=resume)


class _InstanceRun(Run):
    """A run whose heads learn the objects of a dataset.

    Attributes:
        objects: smallest score -> image id -> the held-out predictions, see
            :func:`dinoneck.inference.coco_objects`.
    """

    def __init__(
        self, config: TrainInstancesConfig, out: Path, dataset: Any, *, overwrite: bool
    ) -> None:
        import pandas as pd

        self.dataset = dataset
        self.is_panoptic = config.data.panoptic is not None
        min_scores = _MIN_SCORES if self.is_panoptic else (0.0,)
        self.objects: dict[float, dict[int, Any]] = {min_score: {} for min_score in min_scores}
        folder = os.path.commonpath([path.parent for path in dataset.paths])
        names = [os.path.relpath(path, folder) for path in dataset.paths]
        table = pd.DataFrame({IMAGES: [*dataset.paths]}, index=names, dtype=object)
        # what Run reads of a TrainConfig and this one has not is a constant of its classes
        super().__init__(cast("Any", config), out, table=table, overwrite=overwrite)

    def _problem(self) -> Problem:
        labels = self.dataset.classes
        task = Task(TASK, dim=len(labels), kind="instances", labels=labels)
        if self.is_panoptic:
            stuff = self.dataset.stuff
            things = tuple(label for i, label in enumerate(labels) if i not in stuff)
            task = replace(task, kind="panoptic", things=things)
        ids = [self._ids(i) for i in range(len(self.dataset))]
        for path, image_ids in zip(self.dataset.paths, ids, strict=True):
            if image_ids.shape != ids[0].shape:
                raise DataError(
                    f"{path} comes to another size than {self.dataset.paths[0]}; give one (size=, "
                    "--size)"
                )
        numbers = np.array([*self.dataset.numbers.values()], np.float64)[:, None]
        scored = {TASK: ValueTarget(TASK, columns=(0,), truth=numbers)}
        return Problem([task], {TASK: torch.cat(ids)}, weights={}, compositions=[], scored=scored)

    def _ids(self, i: int) -> torch.Tensor:
        """The ids of objects (1, h, w) in the prepared image, a value per 4 x 4 pixels; -1 in crowd regions."""
        reader = DenseLabels(classes=OBJECTS * (len(self.dataset.classes) + 1), nodata=UNKNOWN)
        pixels = self.dataset.pixels(i).clip(UNKNOWN)
        ids = reader.indices([pixels], self.source.preprocess)
        return ids[:, _STRIDE // 2 :: _STRIDE, _STRIDE // 2 :: _STRIDE]

    def _scored(self, dataset: Any) -> dict[str, Any]:
        """The scores of held-out images, with the smallest score ``min_score`` that gives the best ones."""
        if not self.is_panoptic:
            return score_masks(dataset, self.objects[0.0])
        candidates = []
        for min_score, objects in self.objects.items():
            candidates.append({"min_score": min_score, **score_segments(dataset, objects)})
        return max(candidates, key=lambda scores: scores["PQ"] or 0.0)

    def _train_head(
        self, number: int | None, source: TokenSource, callbacks: Sequence[Callback]
    ) -> Head:
        # the head of all images is the last: all objects have been predicted by heads of folds
        if number is None:
            min_score = self._scored(self.dataset)["min_score"]
            task = replace(self.problem.tasks[0], minimum=min_score)
            self.heads[None] = self._new_head(replace(self.problem, tasks=[task]), None)
        return super()._train_head(number, source, callbacks)

    def _predict(
        self, number: int | None, head: Any, tokens: TokenSource, live: LiveTokens | None
    ) -> tuple[list[Head], dict[str, Any]]:
        """Predict the objects of the held-out images."""
        source = live or tokens
        device = next(head.parameters()).device
        _, held_out = self.folds[number]
        for row in held_out.tolist():
            image_tokens = source.batch([tokens.ids[row]]).to(device)
            size = read_image_size(self.dataset.paths[row])
            for min_score, objects in self.objects.items():
                predicted = objects_at_image_size(
                    head,
                    image_tokens,
                    self.problem.tasks[0],
                    size,
                    self.source.preprocess,
                    min_score,
                )
                objects[self.dataset.ids[row]] = coco_objects(predicted)
        facts = {} if number is None else {"fold": number}
        return [head], facts

    def _report(self) -> dict[str, Any]:
        """The scores of the held-out objects, and of their numbers."""
        held_out: list[int] = []  # of all folds, or of the only one (folds.only)
        for _, valid_rows in self.folds.values():
            held_out += valid_rows.tolist()
        scores: dict[str, Any] = {}
        if held_out:
            scores = self._scored(self.dataset.take(held_out))
        min_score = scores.get("min_score") or 0.0
        objects = self.objects.get(min_score if self.is_panoptic else 0.0, {})
        numbers = []
        for image_id in self.dataset.ids:
            numbers.append([float(counted(objects.get(image_id, ()), min_score))])
        self.predictions = {HEAD: {TASK: np.array(numbers)}}
        report = {**self.scores(self.predictions), "verdict": None}
        if held_out:
            report["segments" if self.is_panoptic else "masks"] = {HEAD: scores}
        return report
