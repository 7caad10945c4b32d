"""What no head of a run could learn is refused before the first expensive step."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np

from dinoneck.data.cells import FOLD
from dinoneck.errors import ConfigError, DataError, some_of
from dinoneck.training.config import TrainConfig
from dinoneck.training.folds import Fold
from dinoneck.training.table import groups_of
from dinoneck.training.targets import check_minimum, check_varies
from dinoneck.training.tasks import Problem

logger = logging.getLogger(__name__)
_OWN_COLUMNS = ("image", "fold")
_FEWEST_OF_A_CLASS = 2


def check_used(config: TrainConfig) -> None:
    """Refuse values that a run of heads would leave unused: those for boxes, masks, a store or a trained backbone.

    Raises:
        ConfigError: naming the value, and what it needs.
    """
    data, optim, default = config.data, config.optim, TrainConfig()
    needs: dict[str, dict[str, object]] = {
        "a detector: name boxes (data.boxes, --boxes)": {
            "data.val_boxes": data.val_boxes,
            "data.val_images": data.val_images,
            "detector": config.detector != default.detector,
        },
    }
    if config.backbone.lora is None:
        needs["a backbone that is trained along: write backbone.lora (--lora)"] = {
            "optim.cutmix_alpha": optim.cutmix_alpha,
            "optim.backbone_lr": optim.backbone_lr,
        }
    elif data.store is not None or config.with_ridge:
        raise ConfigError(
            f"backbone.lora is {config.backbone.lora}: tokens change with the backbone, so they come from images, not "
            "from data.store, and with_ridge cannot average the head with a baseline on other tokens; leave one out"
        )
    if data.labels is None:
        needs["masks: name them (data.labels, --labels)"] = {
            "data.classes": data.classes,
            "data.nodata": data.nodata,
            "data.label_kind": data.label_kind != default.data.label_kind,
        }
    if data.store is None:
        needs["a feature store, which holds the views: name it (data.store, --store)"] = {"data.views": data.views}
    for what, values in needs.items():
        if given := [name for name, value in values.items() if value]:
            raise ConfigError(f"{given[0]} is for {what}, or leave it out")


def check_targets(problem: Problem, table: Any, folds: Mapping[int, Fold]) -> None:
    """Refuse targets that no fold can learn, and images of which nothing is known.

    Warnings name classes that a fold holds out alone, and groups that several folds of a column share.

    Raises:
        DataError: naming the target, the images or the fold.
    """
    known = {name: _known(values.numpy()) for name, values in problem.targets.items()}
    if len(nothing := np.flatnonzero(~np.any(list(known.values()), axis=0))):
        names = some_of([repr(table.index[row]) for row in nothing], 3)
        raise DataError(f"nothing is known of the images {names} ({', '.join(known)}); fill in a value, or remove them")
    for name in problem.scored:
        if name in _OWN_COLUMNS:
            raise DataError(f"a target named {name!r} would clash with a column of the predictions; rename it")
    for task in problem.tasks:
        values = problem.targets[task.name].numpy()
        if values.dtype.kind != "f":
            _check_classes(task.name, values)
        elif task.kind not in ("ratio", "segmentation"):
            check_varies(task.name, values, "image of the table")
            check_minimum(task.name, values, task.minimum, list(table.index))
    for number, fold in folds.items():
        _check_fold(problem, known, number, fold)
    groups = groups_of(table)
    if FOLD in table and groups is not None:
        _warn_of_split_groups(np.array(groups), folds)


def _known(values: Any) -> Any:
    """Which of n values, class indices or maps hold anything, (n,)."""
    present = np.isfinite(values) if values.dtype.kind == "f" else values >= 0
    return present.reshape(len(values), -1).any(axis=1)


def _check_classes(name: str, values: Any) -> None:
    counts = np.unique(values[values >= 0], return_counts=True)[1]
    if len(counts) < 2 or counts.sum() < _FEWEST_OF_A_CLASS * len(counts):
        raise DataError(
            f"the target {name!r} has {len(counts)} classes in {counts.sum()} images, {(counts == 1).sum()} of them in "
            f"one image alone; expected two classes or more, and {_FEWEST_OF_A_CLASS} images a class on average. Merge "
            "classes, or leave the column out"
        )


def _check_fold(problem: Problem, known: Mapping[str, Any], number: int, fold: Fold) -> None:
    """Refuse a fold whose training images teach a target nothing; warn of classes that it holds out alone."""
    rows, held_out = fold
    for task in problem.tasks:
        values = problem.targets[task.name].numpy()
        if not known[task.name][rows].any():
            raise DataError(
                f"no training image of fold {number} has a value of {task.name!r}; use other folds, or leave it out"
            )
        if values.dtype.kind == "f":
            if task.kind not in ("ratio", "segmentation"):
                check_varies(task.name, values[rows], f"training image of fold {number}")
        elif new := sorted({*values[held_out].tolist()} - {*values[rows].tolist(), -1}):
            logger.warning(
                "fold %d holds out images of the %s %s and trains on none: they cannot be predicted right. Use other "
                "folds (--stratify %s), or remove what is too rare",
                number,
                task.name,
                ", ".join(task.labels[k] for k in new),
                task.name,
            )


def _warn_of_split_groups(groups: Any, folds: Mapping[int, Fold]) -> None:
    split = {group for train, valid in folds.values() for group in np.intersect1d(groups[train], groups[valid])}
    if split:
        logger.warning(
            "%d groups have images in several folds, the first is %r: scores may look better than they are for new "
            "groups",
            len(split),
            str(min(split)),
        )
