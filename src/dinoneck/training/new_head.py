"""Step 6 of a run: new heads for what is learned."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from dinoneck import registry
from dinoneck.checkpoint.head_checkpoint import HeadCheckpoint
from dinoneck.configured import fields_of
from dinoneck.errors import ConfigError
from dinoneck.heads.dense import DenseHead
from dinoneck.heads.head import Head
from dinoneck.heads.pyramid import PyramidHead
from dinoneck.text import some_of
from dinoneck.tokens import Tokens
from dinoneck.training.config import HeadConfig
from dinoneck.training.problem import Problem, fitted

# heads and necks that read four layers where the config names none
SEVERAL_LAYERS = ("dpt", "dpt_neck", "mask")
# by the kind of the masks' task
_DEFAULT_HEADS = {None: "patch_mean", "dense": "dense", "segmentation": "dpt_neck"}
# a mask head is narrow: a few hundred images do not fill the published one
_DEFAULTS: dict[str, dict[str, Any]] = {
    "dpt": {"neck": {"type": "dpt_neck"}},
    "mask": {"dim": 128},
}
# of a detector's file: they go into its backbone, see dinoneck.training.earlier
WEIGHTS_OF_VIT = "tuned."
logger = logging.getLogger(__name__)
_Array = np.ndarray[Any, Any]


def head_type(config: HeadConfig, map_kind: str | None = None) -> str:
    """Return the head's name; where the config has none, the default.

    Args:
        config: the run.
        map_kind: the kind of its masks' task, ``segmentation`` (the default is a pyramid head on
            ``dpt_neck``) or ``dense`` (``dense``); None = it has no masks (``patch_mean``).

    Raises:
        RegistryError: if the name is not registered.
    """
    name = str(config.head.get("type") or _DEFAULT_HEADS[map_kind])
    registry.resolve(name)
    return name


def make_head(
    config: HeadConfig, tokens: Tokens, problem: Problem, rows: _Array, seed: int
) -> Head:
    """Return a new head for such tokens; the transforms of its tasks are fitted on the training rows.

    Arguments of its constructor that follow from tokens and tasks (``embed_dim``, ``tasks``,
    ``num_layers``, ``layer_indices``, ``patch_size``, ``num_patches``, ``compositions``) are filled
    in where the config has none.

    Raises:
        ConfigError: if an argument is unknown, or the head does not fit the tokens or tasks.
        DataError: if a task cannot be fitted.
    """
    # one or none
    tasks, map_kinds = fitted(problem, rows), [task.kind for task in problem.tasks if task.is_map]
    name = head_type(config, *map_kinds)
    if "type" not in config.head and name == "dpt_neck" and len(tokens.sequence) == 1:
        name = "dense"  # one layer has no finer map than its patches
    options = {
        key: x for key, x in (_DEFAULTS.get(name, {}) | config.head).items() if key != "type"
    }
    cls = registry.resolve(name)
    if not issubclass(cls, Head):  # a neck, which a pyramid head stands on
        cls, options = PyramidHead, {"neck": {"type": name, **options}}
    if issubclass(cls, DenseHead):
        readout = [task for task in tasks if task.kind == "regression" and task.from_map is None]
        tasks = [
            replace(task, kind="density", aggregate="mean") if task in readout else task
            for task in tasks
        ]
    derived: dict[str, Any] = {
        "embed_dim": tokens.sequence[0].shape[-1],
        "tasks": tasks,
        "num_layers": len(tokens.sequence),
        "layer_indices": tokens.layers,
        "patch_size": tokens.patch_size,
        "num_patches": {"resized": tuple(tokens.grid), "query": None}.get(
            options.get("mode", ""), tokens.grid.count
        ),
        "compositions": problem.compositions,
    }
    if map_kinds:
        derived["pool"] = None  # of a linear head: a prediction per patch
    if isinstance(neck := options.get("neck"), Mapping) and "type" in neck:
        options["neck"] = {**_accepted(registry.resolve(neck["type"]), derived), **neck}
    if problem.compositions and "compositions" not in fields_of(cls):
        names = ", ".join(name for made in problem.compositions for name in made.names)
        raise ConfigError(
            f"{cls.__name__} takes no compositions, which {names} need; take another head, such "
            "as fpn"
        )
    if any(name == "tasks" and x.annotation is x.empty for name, x in fields_of(cls).items()):
        raise ConfigError(
            f"{cls.__name__} needs the annotation tasks: Sequence[Task]; without it tasks are not "
            "kept"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = cls.from_config({**_accepted(cls, derived), **options})
    if config.init is not None:
        start_from(head, config.init)
    return head


def start_from(module: nn.Module, path: str) -> None:
    """Give a new module the tensors of an earlier one that have its names and shapes; a log line lists both kinds.

    Raises:
        CheckpointError: if the file cannot be read.
        ConfigError: if no tensor matches, the file is of several heads, or a task or class of both
            has another place.
    """
    kept = HeadCheckpoint.load(path)
    if kept.head_type == "ensemble":
        raise ConfigError(
            f"init is {path}, which averages several heads; name one of the run's folder heads"
        )
    tasks, labels = (
        getattr(module, "tasks", ()),
        {task["name"]: task["labels"] for task in kept.meta["tasks"]},
    )
    orders = [(labels.get(task.name, ()), task.labels) for task in tasks]
    orders.append((kept.config.get("classes", ()), getattr(module, "classes", ())))  # of detectors
    orders = [(before, now) for before, now in orders if len(before) == len(now)]
    for before, now in (*orders, ([*labels], [task.name for task in tasks])):
        if moved := [
            name for place, name in enumerate(now) if name in before and before.index(name) != place
        ]:
            raise ConfigError(
                f"init is {path}, which predicts {', '.join(before)}; give {moved[0]!r} the same "
                "place"
            )
    new = module.state_dict()
    earlier = {
        name: x for name, x in kept.state_dict.items() if not name.startswith(WEIGHTS_OF_VIT)
    }
    taken = {name: x for name, x in earlier.items() if name in new and new[name].shape == x.shape}
    others = sorted({*earlier, *new} - {*taken})
    if not taken:
        raise ConfigError(
            f"init is {path}, and none of its tensors fits {type(module).__name__}: "
            f"{some_of(others, 5)}"
        )
    module.load_state_dict({**new, **taken})
    logger.warning(
        "init %s: taken are %s; without a match are %s",
        path,
        ", ".join(taken),
        ", ".join(others) or "none",
    )


def _accepted(cls: type[Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that the constructor of a class has."""
    return {name: value for name, value in arguments.items() if name in fields_of(cls)}
