"""train_instances: heads that predict the class and mask of every object, cross-validated, from a COCO file."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dinoneck.atomic import write_text
from dinoneck.data.boxes import BoxImages
from dinoneck.data.cells import IMAGES, csv_text
from dinoneck.data.decoding import read_image_size
from dinoneck.data.labels import DenseLabels
from dinoneck.data.preprocessing import Preprocessing
from dinoneck.detection.evaluation import score_masks
from dinoneck.errors import ConfigError, DataError
from dinoneck.heads.head import Head
from dinoneck.inference.resolution import objects_at_image_size
from dinoneck.inference.results import coco_objects
from dinoneck.losses.task_loss import OBJECTS
from dinoneck.tasks import Task
from dinoneck.training import folder as files
from dinoneck.training.config import TrainConfig
from dinoneck.training.report import HEAD
from dinoneck.training.run import Run, writes
from dinoneck.training.tasks import Problem

TASK = "objects"
FEWEST_STEPS = 500
_QUERIES = (20, 100)  # at least and at most, of a mask head
_UNUSED = [f"data.{name}" for name in ["csv", "labels", "boxes", "targets", "aux_targets", "tta", "unit", "minimum"]]
_UNUSED += ["tasks", "compositions", "losses", "with_ridge", "folds.group", "folds.column", "folds.stratify"]
_STRIDE = 4  # pixels of the prepared image per value of the targets


def train_instances(
    config: TrainConfig, out: str | os.PathLike[str], *, overwrite: bool = False, resume: bool = True
) -> dict[str, Any]:
    """Train heads that predict every object with its class and mask, and one head on all images.

    The folder gets ``heads/fold-K.safetensors``, ``logs``, ``out_of_fold.csv`` (known and predicted numbers of
    objects), ``head.safetensors``, trained on all images, and, last, ``report.json``. The score from which the held-out
    objects have the best F1 is the ``minimum`` of that head's task, so objects of a lower score are left out. An
    interrupted run continues as in :func:`dinoneck.training.train`.

    Without a head in the config it is a pyramid head on ``dpt_neck``. ``mask`` gets twice as many queries as an image
    has objects at most, 20 to 100. The default number of epochs is raised until 500 steps on all images are taken.

    Args:
        config: ``data.instances`` names the COCO file, ``data.images`` the folder of its images.
        out: the folder: a new or empty one, or that of an earlier run.
        overwrite: replace the results of an earlier run in ``out``.
        resume: continue an interrupted run of the same config.

    Returns:
        What ``report.json`` holds: ``masks`` (``{"head": scores}`` of the held-out objects, see
        :func:`dinoneck.detection.score_masks`), ``images``, ``parameters``, ``config`` and ``versions``.

    Raises:
        DataError: if the data cannot be used, an image has 1000 objects of a class or more, images come to several
            sizes, ``out`` holds results and ``overwrite`` is off, or it holds other files than those of a run.
        ConfigError: if values contradict each other, or do not fit.
        CheckpointError: if ``out`` holds an unfinished run of another config or of other objects.
    """
    for name in _UNUSED:
        if (value := attrgetter(name)(config)) != attrgetter(name)(TrainConfig()):
            raise ConfigError(f"{name} is {value!r}, and has no effect on heads of data.instances; leave it out")
    data, optim = config.data, config.optim
    dataset = BoxImages(str(data.instances), data.images, classes=data.classes or None, masks=True)
    head, most = config.head, max(_numbers(dataset).values(), default=0)
    if "type" not in head:
        head = {"type": "dpt_neck", "out_channels": 64} | head
    elif head["type"] == "mask":
        head = {"num_queries": min(max(2 * most, _QUERIES[0]), _QUERIES[1])} | head
    steps = -(-len(dataset) // optim.batch_size)
    if optim.epochs == type(optim)().epochs:
        optim = optim.changed(epochs=max(optim.epochs, -(-FEWEST_STEPS // steps)))
    run = _InstanceRun(config.changed(head=head, optim=optim), Path(out), dataset, overwrite=overwrite)
    return run.train(resume=resume)


class _InstanceRun(Run):
    """A run whose heads learn the objects of a dataset.

    Attributes:
        objects: image id -> the held-out predictions, as :func:`dinoneck.inference.coco_objects` returns them.
    """

    def __init__(self, config: TrainConfig, out: Path, dataset: BoxImages, *, overwrite: bool) -> None:
        import pandas as pd

        self.dataset, self.objects = dataset, dict[int, list[dict[str, Any]]]()
        shared = os.path.commonpath([path.parent for path in dataset.paths])
        names = [os.path.relpath(path, shared) for path in dataset.paths]
        table = pd.DataFrame({IMAGES: [*dataset.paths]}, index=names, dtype=object)
        super().__init__(config, out, table=table, overwrite=overwrite)

    def _learned(self) -> Problem:
        labels = self.dataset.classes
        task = Task(TASK, dim=len(labels), kind="instances", labels=labels)
        ids = [_ids(self.dataset, i, self.source.preprocess) for i in range(len(self.dataset))]
        for path, own in zip(self.dataset.paths, ids, strict=True):
            if own.shape != ids[0].shape:
                raise DataError(f"{path} comes to another size than {self.dataset.paths[0]}; give one (size=, --size)")
        targets = {TASK: torch.cat(ids)}  # scored by score_masks, so nothing is in scored
        return Problem([task], targets, weights={}, compositions=[], scored={}, pixels=None)

    def _train_fold(self, number: int | None, callbacks: Sequence[files.Callback]) -> list[Head]:
        """Train and keep the head of a fold, and predict the objects that it has not seen."""
        path, log, unfinished = self._paths(number)
        task, facts = self.problem.tasks[0], {"fold": number}
        if number is None:  # of all images; it is the last, when all objects are predicted by a head of another fold
            min_score = score_masks(self.dataset, self.objects)["min_score"]
            self.heads[None] = self._new_head(self.problem._replace(tasks=[replace(task, minimum=min_score)]), None)
            facts = {}
        is_new, tokens, live = not path.exists(), self.source.load(), self._live(path)
        head: Any = self._trained(number, live or tokens, callbacks)
        for row in self.folds[number][1].tolist():
            one = (live or tokens).batch([tokens.ids[row]]).to(next(head.parameters()).device)
            size = read_image_size(self.dataset.paths[row])
            found = objects_at_image_size(head, one, task, size, self.source.preprocess, 0.0)
            self.objects[self.dataset.ids[row]] = coco_objects(found)
        if is_new and writes():
            shutil.copyfile(unfinished / files.LOG, log)
            self._save(head, path, facts, live)
        if writes():
            shutil.rmtree(unfinished, ignore_errors=True)
        return [head]

    def _finish(self, members: Sequence[Head]) -> dict[str, Any]:
        """Score the held-out objects; write their numbers and, last, the report."""
        held_out = [row for _, valid in self.folds.values() for row in valid.tolist()]  # folds.only trains one fold
        scores = {"masks": {HEAD: score_masks(self.dataset.take(held_out), self.objects)}} if held_out else {}
        report = {"images": len(self.dataset), **scores, **self._facts(members[-1])}
        text = json.dumps(report, indent=2, allow_nan=False)
        if writes():
            if None not in self.folds:
                shutil.copyfile(self._paths(*self.folds)[0], self.folder / files.HEAD_FILE)
            header = ("image", "fold", TASK, f"{TASK} ({HEAD})")
            write_text(self.folder / files.PREDICTIONS, csv_text(header, self._counts(scores)))
            write_text(self.folder / files.REPORT, text + "\n")
            shutil.rmtree(self.folder / files.UNFINISHED)
        plain: dict[str, Any] = json.loads(text)
        return plain

    def _counts(self, scores: Mapping[str, Any]) -> Iterator[list[str]]:
        """Held-out image, fold, and the numbers of known and of predicted objects."""
        known, least = _numbers(self.dataset), (scores["masks"][HEAD]["min_score"] or 0.0) if scores else 0.0
        for number, (_, valid) in self.folds.items():
            for row in valid.tolist():
                image_id = self.dataset.ids[row]
                found = sum(own["score"] >= least for own in self.objects[image_id])
                yield [self.table.index[row], *map(str, (number, known[image_id], found))]


def _numbers(dataset: BoxImages) -> Counter[int]:
    """Image id -> number of its objects."""
    return Counter(box["image_id"] for box in dataset.ground_truth()["annotations"] if not box["iscrowd"])


def _ids(dataset: BoxImages, i: int, preprocess: Preprocessing) -> Tensor:
    """The ids of the objects (1, h, w) in the prepared image, a value per 4 x 4 pixels; small objects lie on top.

    An id is 1000 * (class + 1) + the number of the object in its class; 0 = none, also in crowd regions.

    Raises:
        DataError: if an image has more objects of a class than ids can tell apart.
    """
    target = dataset[i][1]
    masks, labels = target["masks"].numpy() > 0, target["labels"].tolist()
    if labels and max(Counter(labels).values()) >= OBJECTS:
        raise DataError(f"{dataset.paths[i]} has {len(labels)} objects; expected fewer than {OBJECTS} of a class")
    ids = np.zeros(target["size"], np.int64)
    for place in np.argsort(-masks.sum(axis=(1, 2)), kind="stable").tolist():
        ids[masks[place]] = OBJECTS * (labels[place] + 1) + labels[: place + 1].count(labels[place]) - 1
    read = DenseLabels(classes=OBJECTS * (len(dataset.classes) + 1))
    return read.indices([ids], preprocess)[:, _STRIDE // 2 :: _STRIDE, _STRIDE // 2 :: _STRIDE]
