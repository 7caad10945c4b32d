"""train_instances: heads that predict the class and mask of every object, cross-validated, from a COCO file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dinoneck.data.cells import IMAGES
from dinoneck.data.copies import warn_of_changed_copies
from dinoneck.data.decoding import read_image_size
from dinoneck.data.labels import DenseLabels
from dinoneck.data.listed_images import UNKNOWN
from dinoneck.detection.evaluation import counted, known_objects, score_masks, score_segments
from dinoneck.errors import DataError, check_installed
from dinoneck.heads.head import Head
from dinoneck.inference.resolution import objects_at_image_size
from dinoneck.inference.results import coco_objects
from dinoneck.tasks import OBJECTS, Task
from dinoneck.training.config import TrainConfig
from dinoneck.training.folder import Callback
from dinoneck.training.run import Run
from dinoneck.training.tasks import HEAD, Problem, Scored
from dinoneck.training.token_sources import LiveTokens, TokenSource

TASK = "objects"
FEWEST_STEPS = 500
_FEWEST_QUERIES, _MOST_QUERIES = 20, 100  # of a mask head
_STRIDE = 4  # pixels of the prepared image per value of the targets
_MIN_SCORES = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)  # of segments; the one with the best PQ is taken


def train_instances(
    config: TrainConfig,
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
    steps = -(-len(dataset) // optim.batch_size)
    if optim.epochs == type(optim)().epochs:
        optim = optim.changed(epochs=max(optim.epochs, -(-FEWEST_STEPS // steps)))
    run = _InstanceRun(
        config.changed(head=head, optim=optim), Path(out), dataset, overwrite=overwrite
    )
    for number, (train_rows, _) in run.folds.items():
        if number is not None:
            part = dataset.take(train_rows.tolist())
            part.check_part(dataset.class_counts, noun, f"the training images of fold {number}")
    return run.train(resume=resume)


class _InstanceRun(Run):
    """A run whose heads learn the objects of a dataset.

    Attributes:
        objects: smallest score -> image id -> the held-out predictions, see
            :func:`dinoneck.inference.coco_objects`.
    """

    def __init__(self, config: TrainConfig, out: Path, dataset: Any, *, overwrite: bool) -> None:
        import pandas as pd

        self.dataset, self.is_panoptic = dataset, config.data.panoptic is not None
        self.objects: dict[float, dict[int, Any]] = {
            x: {} for x in (_MIN_SCORES if self.is_panoptic else (0.0,))
        }
        shared = os.path.commonpath([path.parent for path in dataset.paths])
        names = [os.path.relpath(path, shared) for path in dataset.paths]
        table = pd.DataFrame({IMAGES: [*dataset.paths]}, index=names, dtype=object)
        super().__init__(config, out, table=table, overwrite=overwrite)

    def _problem(self) -> Problem:
        labels, stuff = self.dataset.classes, self.dataset.stuff
        task = Task(TASK, dim=len(labels), kind="instances", labels=labels)
        if self.is_panoptic:
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
        scored = {TASK: Scored("value", TASK, slice(None), numbers)}
        return Problem(
            [task], {TASK: torch.cat(ids)}, weights={}, compositions=[], scored=scored, pixels=None
        )

    def _ids(self, i: int) -> torch.Tensor:
        """The ids of objects (1, h, w) in the prepared image, a value per 4 x 4 pixels; -1 in crowd regions."""
        read = DenseLabels(classes=OBJECTS * (len(self.dataset.classes) + 1), nodata=UNKNOWN)
        ids = read.indices([self.dataset.pixels(i).clip(UNKNOWN)], self.source.preprocess)
        return ids[:, _STRIDE // 2 :: _STRIDE, _STRIDE // 2 :: _STRIDE]

    def _scored(self, dataset: Any) -> dict[str, Any]:
        """The scores of held-out images, with the smallest score ``min_score`` that gives the best ones."""
        if not self.is_panoptic:
            return score_masks(dataset, self.objects[0.0])
        every = [
            {"min_score": x, **score_segments(dataset, objects)}
            for x, objects in self.objects.items()
        ]
        return max(every, key=lambda scores: scores["PQ"] or 0.0)

    def _train_head(
        self, number: int | None, source: TokenSource, callbacks: Sequence[Callback]
    ) -> Head:
        # of all images; it is the last, when all objects are predicted by a head of another fold
        if number is None:
            task = replace(self.problem.tasks[0], minimum=self._scored(self.dataset)["min_score"])
            self.heads[None] = self._new_head(self.problem._replace(tasks=[task]), None)
        return super()._train_head(number, source, callbacks)

    def _predict(
        self, number: int | None, head: Any, tokens: TokenSource, live: LiveTokens | None
    ) -> tuple[list[Head], dict[str, Any]]:
        """Predict the objects of the held-out images."""
        for row in self.folds[number][1].tolist():
            one = (live or tokens).batch([tokens.ids[row]]).to(next(head.parameters()).device)
            size = read_image_size(self.dataset.paths[row])
            for least, objects in self.objects.items():
                predicted = objects_at_image_size(
                    head, one, self.problem.tasks[0], size, self.source.preprocess, least
                )
                objects[self.dataset.ids[row]] = coco_objects(predicted)
        return [head], {} if number is None else {"fold": number}

    def _report(self) -> dict[str, Any]:
        """The scores of the held-out objects, and of their numbers."""
        # folds.only trains one fold
        held_out = [row for _, valid in self.folds.values() for row in valid.tolist()]
        scores = self._scored(self.dataset.take(held_out)) if held_out else {}
        least = scores.get("min_score") or 0.0
        objects = self.objects.get(least if self.is_panoptic else 0.0, {})
        numbers = [
            [float(counted(objects.get(image_id, ()), least))] for image_id in self.dataset.ids
        ]
        self.predictions = {HEAD: {TASK: np.array(numbers)}}
        report = {**self.scores(self.predictions), "verdict": None}
        return report | (
            {"segments" if self.is_panoptic else "masks": {HEAD: scores}} if held_out else {}
        )
