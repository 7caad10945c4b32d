"""train_instances: heads that predict the class and mask of every object, cross-validated, from a COCO file."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dinoneck.atomic import write_text
from dinoneck.data.boxes import BoxImages
from dinoneck.data.cells import IMAGES, csv_text
from dinoneck.data.labels import DenseLabels
from dinoneck.data.preprocessing import Preprocessing
from dinoneck.detection.evaluation import score_masks
from dinoneck.errors import DataError
from dinoneck.heads.head import Head
from dinoneck.inference.resolution import objects_at_image_size
from dinoneck.inference.results import coco_objects
from dinoneck.losses.task_loss import OBJECTS
from dinoneck.tasks import Task
from dinoneck.training import folder as files
from dinoneck.training.config import TrainConfig
from dinoneck.training.report import HEAD
from dinoneck.training.run import Run
from dinoneck.training.tasks import Problem
from dinoneck.version import versions

TASK = "objects"
FEWEST_STEPS = 500
_QUERIES = (20, 100)  # at least and at most, of a mask head
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
    has objects at most, 20 to 100. The default number of epochs is raised until 500 steps are taken.

    Args:
        config: ``data.instances`` names the COCO file, ``data.images`` the folder of its images.
        out: the folder: a new or empty one, or that of an earlier run.
        overwrite: replace the results of an earlier run in ``out``.
        resume: continue an interrupted run of the same config.

    Returns:
        What ``report.json`` holds: ``masks`` (``{"head": scores}`` of the held-out objects, see
        :func:`dinoneck.detection.score_masks`), ``images``, ``parameters``, ``config`` and ``versions``.

    Raises:
        DataError: if the data cannot be used, two objects of one class are more than an id can tell apart, ``out``
            holds results and ``overwrite`` is off, or it holds other files than those of a run.
        ConfigError: if values contradict each other, or do not fit.
        CheckpointError: if ``out`` holds an unfinished run of another config or of other objects.
    """
    data, optim = config.data, config.optim
    dataset = BoxImages(str(data.instances), data.images, classes=data.classes or None, masks=True)
    counts = [len(dataset.ground_truth_of(i)) for i in range(len(dataset))]
    head = {"type": "dpt_neck"} | config.head
    if head["type"] == "mask":
        head = {"num_queries": min(max(2 * max(counts), _QUERIES[0]), _QUERIES[1])} | head
    steps = -(-len(dataset) // optim.batch_size)
    if optim.epochs == type(optim)().epochs:
        optim = optim.changed(epochs=max(optim.epochs, -(-FEWEST_STEPS // steps)))
    run = _InstanceRun(config.changed(head=head, optim=optim), Path(out), dataset, overwrite=overwrite)
    return run.train(resume=resume)
