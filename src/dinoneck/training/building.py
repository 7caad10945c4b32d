"""Step 6 of a run: a new head for tokens and tasks, as the config describes it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from dinoneck import registry
from dinoneck.errors import ConfigError, DataError, did_you_mean
from dinoneck.grid import patch_pair
from dinoneck.heads.dense import DenseHead
from dinoneck.heads.head import Head
from dinoneck.heads.linear import LinearHead
from dinoneck.heads.pyramid import PyramidHead
from dinoneck.tasks import TargetTransform, Task
from dinoneck.tokens import Tokens
from dinoneck.training.config import TrainConfig
from dinoneck.training.tasks import Problem

_Array = np.ndarray[Any, Any]


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
    if name == "mask":
        options.setdefault("dim", MASK_WIDTH)
    if cls is LinearHead and problem.maps is not None:
        options.setdefault("pool", None)
    if registry.resolve(name) is not cls:
        options = {"neck": {"type": name, **options}}
    rows_of_patch, cols_of_patch = patch_pair(tokens.patch_size)
    known: dict[str, Any] = {
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
        own = _filled(registry.resolve(neck["type"]), {name: neck[name] for name in neck if name != "type"}, known)
        options["neck"] = {"type": neck["type"], **own}
    arguments = _filled(cls, options, known)
    if problem.compositions and "compositions" not in arguments:
        names = [name for own in problem.compositions for name in own.names]
        raise ConfigError(
            f"{cls.__name__} takes no compositions, which predict {', '.join(names)}: add the argument compositions: "
            "Sequence[Composition] = () to its __init__ and pass it to _set_tasks, or leave those targets out"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return cls(**arguments)


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


def _filled(cls: type[Any], options: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """The options and what else the constructor takes of what is known; unknown options are refused."""
    accepted = inspect.signature(cls).parameters
    for name, parameter in accepted.items():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise ConfigError(
                f"{cls.__name__} takes {str(parameter)!r}, and a head file keeps arguments by their names; give each "
                "argument of its __init__ a name and an annotation, without '*', '**' and '/'"
            )
        if name == "tasks" and parameter.annotation is parameter.empty:
            raise ConfigError(
                f"{cls.__name__} needs the annotation tasks: Sequence[Task]; without it tasks are not kept"
            )
    for name in options:
        if name not in accepted:
            hint = did_you_mean(name, accepted)
            raise ConfigError(f"{cls.__name__} has no argument {name!r}.{hint} It takes: {', '.join(accepted)}")
    filled = {**{name: value for name, value in known.items() if name in accepted}, **options}
    for name, parameter in accepted.items():
        if name not in filled and parameter.default is parameter.empty:
            raise ConfigError(
                f"{cls.__name__} needs the argument {name!r}; give it in head: {{type: ..., {name}: ...}}"
            )
    return filled
