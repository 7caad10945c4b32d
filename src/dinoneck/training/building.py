"""Step 6 of a run: new heads as the config describes them, and what is refused before they are trained."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping
from dataclasses import replace
from operator import attrgetter
from typing import Any

import numpy as np
import torch

from dinoneck import registry
from dinoneck.data.cells import FOLD
from dinoneck.errors import ConfigError, DataError, did_you_mean, some_of
from dinoneck.grid import patch_pair
from dinoneck.heads.dense import DenseHead
from dinoneck.heads.head import Head
from dinoneck.heads.linear import LinearHead
from dinoneck.heads.pyramid import PyramidHead
from dinoneck.losses.task_loss import TaskLoss
from dinoneck.tasks import TargetTransform, Task
from dinoneck.tokens import Tokens
from dinoneck.training.config import TrainConfig
from dinoneck.training.table import Fold, groups_of
from dinoneck.training.targets import known, training_targets
from dinoneck.training.tasks import Problem

logger = logging.getLogger(__name__)
_Array = np.ndarray[Any, Any]
_FEWEST_OF_A_CLASS = 2
_NEEDS = {  # an option -> those of which it needs one
    "data.val_boxes": ("data.boxes",),
    "data.val_images": ("data.boxes",),
    "detector": ("data.boxes",),
    "optim.cutmix_alpha": ("backbone.lora",),
    "optim.backbone_lr": ("backbone.lora",),
    "data.classes": ("data.labels",),
    "data.nodata": ("data.labels",),
    "data.label_kind": ("data.labels",),
    "data.views": ("data.store",),
    "data.targets": ("data.csv",),
    "data.aux_targets": ("data.csv",),
    "data.minimum": ("data.csv",),
    "data.store": ("data.csv",),
    "folds.group": ("data.csv",),
    "folds.column": ("data.csv",),
    "data.labels": ("data.csv", "data.images"),
}


def check_used(config: TrainConfig, *, with_table: bool = False) -> None:
    """Refuse values that a run of heads would leave unused.

    Args:
        config: the run.
        with_table: a table is given in the place of ``data.csv``.

    Raises:
        ConfigError: naming the value, and what it needs.
    """
    default, lora = TrainConfig(), config.backbone.lora
    if lora is not None and (config.data.store is not None or config.with_ridge):
        raise ConfigError(f"backbone.lora is {lora}, which excludes data.store and with_ridge; leave one out")
    for option, needed in _NEEDS.items():
        value = attrgetter(option)
        is_there = (with_table and "data.csv" in needed) or any(attrgetter(name)(config) for name in needed)
        if value(config) != value(default) and not is_there:
            flags = " or ".join(f"{name} (--{name.partition('.')[2]})" for name in needed)
            raise ConfigError(f"{option} is {value(config)!r}, and needs {flags}; give that too, or leave it out")


SEVERAL_LAYERS = ("dpt", "dpt_neck", "mask")  # heads and necks that read four layers where the config names none
MASK_WIDTH = 128  # of a mask head that is trained from nothing: a few hundred images do not fill the published one


def make_head(config: TrainConfig, tokens: Tokens, problem: Problem, rows: _Array, seed: int) -> Head:
    """Return a new head for such tokens; the transforms of its tasks are fitted on the training rows.

    Arguments of its constructor that follow from tokens and tasks (``embed_dim``, ``tasks``, ``num_layers``,
    ``layer_indices``, ``patch_size``, ``num_patches``, ``compositions``) are filled in where the config has none.

    Raises:
        ConfigError: if an argument is unknown, or the head does not fit the tokens or tasks.
        DataError: if a task cannot be fitted.
    """
    tasks = head_tasks(problem, rows)
    options, name = {**config.head}, head_type(config, None if problem.maps is None else problem.maps.kind)
    if "type" not in options and name == "dpt_neck" and len(tokens.sequence) == 1:
        name = "dense"  # one layer has no finer map than its patches
    cls = _head_class(name)
    options.pop("type", None)
    if issubclass(cls, DenseHead):
        readout = [task for task in tasks if task.kind == "regression" and task.from_map is None]
        tasks = [replace(task, kind="density", aggregate="mean") if task in readout else task for task in tasks]
    if name == "dpt":
        options.setdefault("neck", {"type": "dpt_neck"})
    if name == "mask":
        options.setdefault("dim", MASK_WIDTH)
    if cls is LinearHead and problem.maps is not None:
        options.setdefault("pool", None)
    if registry.resolve(name) is not cls:
        options = {"neck": {"type": name, **options}}
    rows_of_patch, cols_of_patch = patch_pair(tokens.patch_size)
    given: dict[str, Any] = {
        "embed_dim": tokens.sequence[0].shape[-1],
        "tasks": tasks,
        "num_layers": len(tokens.sequence),
        "layer_indices": tokens.layers,
        "patch_size": rows_of_patch if rows_of_patch == cols_of_patch else (rows_of_patch, cols_of_patch),
        "num_patches": {"resized": tuple(tokens.grid), "query": None}.get(options.get("mode", ""), tokens.grid.count),
        "compositions": problem.compositions,
    }
    neck = options.get("neck")
    if isinstance(neck, Mapping) and "type" in neck:
        own = _filled(registry.resolve(neck["type"]), {name: neck[name] for name in neck if name != "type"}, given)
        options["neck"] = {"type": neck["type"], **own}
    arguments = _filled(cls, options, given)
    if problem.compositions and "compositions" not in arguments:
        names = [name for own in problem.compositions for name in own.names]
        raise ConfigError(
            f"{cls.__name__} takes no compositions, which {', '.join(names)} need; take another head, such as fpn"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return cls(**arguments)


def check_targets(problem: Problem, table: Any, folds: Mapping[int, Fold]) -> None:
    """Refuse images of which nothing is known, and classes of too few images.

    Warnings name classes that a fold holds out alone, and groups that several folds of a column share.

    Raises:
        DataError: naming the target or the images.
    """
    present = [known(x).reshape(len(x), -1).any(dim=1).numpy() for x in problem.targets.values()]
    if len(nothing := np.flatnonzero(~np.any(present, axis=0))):
        names = some_of([repr(table.index[row]) for row in nothing], 3)
        raise DataError(
            f"nothing is known of the images {names} ({', '.join(problem.targets)}); fill in a value, or remove them"
        )
    for task in problem.tasks:
        if task.kind == "classification":
            _check_classes(task, problem.targets[task.name].numpy(), folds)
    groups = np.array(groups_of(table) if FOLD in table else None)
    for number, (rows, valid) in folds.items() if groups.ndim else ():
        if len(split := np.intersect1d(groups[rows], groups[valid])):
            logger.warning("%d groups of fold %d are in other folds too, such as %r", len(split), number, str(split[0]))


def _check_classes(task: Task, classes: _Array, folds: Mapping[int, Fold]) -> None:
    counts = np.unique(classes[classes >= 0], return_counts=True)[1]
    if len(counts) < 2 or counts.sum() < _FEWEST_OF_A_CLASS * len(counts):
        raise DataError(
            f"the target {task.name!r} has {len(counts)} classes in {counts.sum()} images, {(counts == 1).sum()} of "
            f"them in one image alone; expected two or more, and {_FEWEST_OF_A_CLASS} images a class on average"
        )
    for number, (rows, valid) in folds.items():
        if new := sorted({*classes[valid]} - {*classes[rows], -1}):
            names = ", ".join(task.labels[k] for k in new)
            logger.warning("fold %d holds out images of the %s %s and trains on none", number, task.name, names)


def learnable_head(config: TrainConfig, tokens: Tokens, problem: Problem, ids: Any, number: int, fold: Fold) -> Head:
    """Return the new head of a fold whose targets it can learn.

    Raises:
        ConfigError: as :func:`make_head` does.
        DataError: naming the fold and the task.
    """
    both = np.concatenate(fold)
    targets, weights = ({name: x[both] for name, x in own.items()} for own in (problem.targets, problem.weights))
    try:
        head = make_head(config, tokens, problem, fold[0], config.optim.seed + number)
        training_targets(TaskLoss(head.tasks, head.compositions), targets, weights, ids[both], len(fold[0]))
    except DataError as error:
        raise DataError(f"fold {number}: {error}") from error
    return head


def head_tasks(problem: Problem, rows: _Array) -> list[Task]:
    """Return the tasks with transforms that are fitted on these rows.

    Raises:
        DataError: naming the task, as :meth:`dinoneck.TargetTransform.fit` does.
    """
    tasks = []
    for task in problem.tasks:
        if task.name in problem.fitted:
            values = problem.targets[task.name][torch.as_tensor(rows)]
            values = values.movedim(1, -1).flatten(0, 2) if task.is_map else values
            values = values[values.isfinite().any(dim=1)] if task.is_map else values  # patches without a label
            try:
                transform = (task.transform or TargetTransform()).fit(values)
            except DataError as error:
                raise DataError(f"task {task.name!r}: {error}") from None
            task = replace(task, transform=transform)
        tasks.append(task)
    return tasks


def head_type(config: TrainConfig, maps: str | None = None) -> str:
    """Return the head's name; where the config has none, the default.

    Args:
        config: the run.
        maps: the kind of its masks' task. The default is a pyramid head on ``dpt_neck`` for a segmentation, ``dense``
            for a dense task, else ``patch_mean``.

    Raises:
        RegistryError: if the name is not registered.
    """
    name = str(config.head.get("type") or {"segmentation": "dpt_neck", "dense": "dense"}.get(str(maps), "patch_mean"))
    registry.resolve(name)
    return name


def _head_class(name: str) -> type[Head]:
    """The class of a registered head; a neck's name stands for a pyramid head on that neck."""
    found = registry.resolve(name)
    return found if issubclass(found, Head) else PyramidHead


def _filled(cls: type[Any], options: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The options and what else the constructor takes of what is given; unknown options are refused."""
    accepted = inspect.signature(cls).parameters
    for name, parameter in accepted.items():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise ConfigError(f"{cls.__name__} takes {str(parameter)!r}; give each argument a name")
        if name == "tasks" and parameter.annotation is parameter.empty:
            raise ConfigError(
                f"{cls.__name__} needs the annotation tasks: Sequence[Task]; without it tasks are not kept"
            )
    for name in options:
        if name not in accepted:
            hint = did_you_mean(name, accepted)
            raise ConfigError(f"{cls.__name__} has no argument {name!r}.{hint} It takes: {', '.join(accepted)}")
    filled = {**{name: value for name, value in given.items() if name in accepted}, **options}
    for name, parameter in accepted.items():
        if name not in filled and parameter.default is parameter.empty:
            raise ConfigError(
                f"{cls.__name__} needs the argument {name!r}; give it in head: {{type: ..., {name}: ...}}"
            )
    return filled
