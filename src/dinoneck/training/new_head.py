"""Step 6 of a run: new heads for what is learned."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from dinoneck import registry
from dinoneck.checkpoint.head_checkpoint import HeadCheckpoint
from dinoneck.configured import fields_of
from dinoneck.data.arrays import Array
from dinoneck.errors import ConfigError
from dinoneck.heads.dense import DenseHead
from dinoneck.heads.head import Head
from dinoneck.heads.pyramid import PyramidHead
from dinoneck.tasks import Task
from dinoneck.text import some_of
from dinoneck.tokens import Tokens
from dinoneck.training.config import HeadConfig
from dinoneck.training.problem import Problem, fitted

# heads and necks that read four layers where the config names none
SEVERAL_LAYERS = ("dpt", "dpt_neck", "mask")
# arguments of heads and necks, where the config has none
_DEFAULT_ARGUMENTS: dict[str, dict[str, Any]] = {
    "dpt": {"neck": {"type": "dpt_neck"}},
    # narrower than the published head, which a few hundred images do not fill
    "mask": {"dim": 128},
}
# of a detector's file: they go into its backbone, see dinoneck.training.earlier
_WEIGHTS_OF_VIT = "tuned."
_NUM_SHOWN = 5  # names of tensors in a message
logger = logging.getLogger(__name__)


def head_type(config: HeadConfig, map_kind: str | None = None) -> str:
    """Return the name of the head or neck; where the config has none, the default.

    Args:
        config: the run.
        map_kind: the kind of its masks' task, ``segmentation`` (the default is ``fpn``) or
            ``dense`` (``dense``); None = it has no masks (``patch_mean``).

    Raises:
        RegistryError: if the name is not registered.
    """
    name = str(config.head.get("type") or _default_head(map_kind))
    registry.resolve(name)
    return name


def default_head_of_masks(config: HeadConfig, problem: Problem) -> str | None:
    """Return the default head of masks of classes if the run has it, else None.

    It is another one than in 0.3: a run that 0.3 began is not continued with it.
    """
    learns_classes = any(task.kind == "segmentation" for task in problem.tasks)
    if not learns_classes or "type" in config.head:
        return None
    return _default_head("segmentation")


def _default_head(map_kind: str | None) -> str:
    """The head or neck for a kind of masks, None without masks, where the config names none."""
    if map_kind == "segmentation":
        return "fpn"
    if map_kind == "dense":
        return "dense"
    return "patch_mean"


def _map_kind(problem: Problem) -> str | None:
    """The kind of the task of maps, of which a problem has one at most; None without."""
    for task in problem.tasks:
        if task.is_map:
            return task.kind
    return None


def make_head(config: HeadConfig, tokens: Tokens, problem: Problem, rows: Array, seed: int) -> Head:
    """Return a new head for such tokens; the transforms of its tasks are fitted on the training rows.

    Arguments of its constructor that follow from tokens and tasks (``embed_dim``, ``tasks``,
    ``num_layers``, ``layer_indices``, ``patch_size``, ``num_patches``, ``compositions``) are filled
    in where the config has none.

    Args:
        config: the run.
        tokens: of an image.
        problem: what the head learns.
        rows: the training rows.
        seed: of the head's random weights.

    Raises:
        ConfigError: if an argument is unknown, or the head does not fit the tokens or tasks.
        DataError: if a task cannot be fitted.
    """
    fitted_tasks = fitted(problem, rows)
    head_class, arguments = _choose_class(config, problem)
    tasks = _adapt_tasks(head_class, fitted_tasks)
    derived = _derived_arguments(tokens, tasks, problem, arguments.get("mode"))
    neck = arguments.get("neck")
    if isinstance(neck, Mapping) and "type" in neck:
        neck_class = registry.resolve(neck["type"])
        arguments["neck"] = {**_accepted(neck_class, derived), **neck}
    _check_takes_tasks(head_class, problem)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = head_class.from_config({**_accepted(head_class, derived), **arguments})
    if config.init is not None:
        start_from(head, config.init)
    return head


def _choose_class(config: HeadConfig, problem: Problem) -> tuple[type[Head], dict[str, Any]]:
    """The class of a config's head, and the arguments that the config or a default states."""
    name = head_type(config, _map_kind(problem))
    arguments = _DEFAULT_ARGUMENTS.get(name, {}) | config.head
    arguments.pop("type", None)
    registered = registry.resolve(name)
    if issubclass(registered, Head):
        return registered, arguments
    # a neck, which a pyramid head stands on
    return PyramidHead, {"neck": {"type": name, **arguments}}


def _adapt_tasks(head_class: type[Head], tasks: Sequence[Task]) -> list[Task]:
    """The tasks in the kinds that a head predicts: a dense head predicts numbers as the mean of a map."""
    if not issubclass(head_class, DenseHead):
        return list(tasks)
    adapted = []
    for task in tasks:
        if task.kind == "regression" and task.from_map is None:
            task = replace(task, kind="density", aggregate="mean")
        adapted.append(task)
    return adapted


def _derived_arguments(
    tokens: Tokens, tasks: Sequence[Task], problem: Problem, mode: str | None
) -> dict[str, Any]:
    """The arguments of constructors that follow from tokens and tasks.

    Args:
        tokens: of an image.
        tasks: of the head.
        problem: what the head learns.
        mode: of a gated head: ``resized`` takes the shape of the grid, ``query`` takes any grid,
            and others the number of patches.
    """
    num_patches: int | tuple[int, ...] | None = tokens.grid.count
    if mode == "resized":
        num_patches = tuple(tokens.grid)
    elif mode == "query":
        num_patches = None
    derived: dict[str, Any] = {
        "embed_dim": tokens.sequence[0].shape[-1],
        "tasks": tasks,
        "num_layers": len(tokens.sequence),
        "layer_indices": tokens.layers,
        "patch_size": tokens.patch_size,
        "num_patches": num_patches,
        "compositions": problem.compositions,
    }
    if any(task.is_map for task in tasks):
        derived["pool"] = None  # of a linear head: a prediction per patch
    return derived


def _accepted(cls: type[Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that the constructor of a class has."""
    parameters = fields_of(cls)
    return {name: value for name, value in arguments.items() if name in parameters}


def _check_takes_tasks(head_class: type[Head], problem: Problem) -> None:
    """Reject a class that cannot have the compositions or the tasks of a problem."""
    name = head_class.__name__
    parameters = fields_of(head_class)
    if problem.compositions and "compositions" not in parameters:
        columns: list[str] = []
        for composition in problem.compositions:
            columns += composition.names
        raise ConfigError(
            f"{name} takes no compositions, which {', '.join(columns)} need; take another head, "
            "such as fpn"
        )
    tasks = parameters.get("tasks")
    if tasks is not None and tasks.annotation is inspect.Parameter.empty:
        raise ConfigError(
            f"{name} needs the annotation tasks: Sequence[Task]; without it tasks are not kept"
        )


# an earlier head


def start_from(module: nn.Module, path: str) -> None:
    """Give a new module the tensors of an earlier one that have its names and shapes.

    Args:
        module: a new head or detector.
        path: file of the earlier one.

    Raises:
        CheckpointError: if the file cannot be read.
        ConfigError: if no tensor matches, the file is of several heads, or a task or class of both
            has another place.
    """
    checkpoint = HeadCheckpoint.load(path)
    if checkpoint.head_type == "ensemble":
        raise ConfigError(
            f"init is {path}, which averages several heads; name one of the run's folder heads"
        )
    _check_places(checkpoint, module, path)
    new_state = module.state_dict()
    earlier_state = _tensors_without_vit(checkpoint)
    taken = _fitting(earlier_state, new_state)
    unmatched = {*earlier_state, *new_state} - taken.keys()
    if not taken:
        raise ConfigError(
            f"init is {path}, and none of its tensors fits {type(module).__name__}: "
            f"{some_of(unmatched, _NUM_SHOWN)}; its type is {checkpoint.head_type!r}: train one of "
            "this type and its sizes, or leave init out"
        )
    module.load_state_dict({**new_state, **taken})


def log_start(module: nn.Module, path: str) -> None:
    """Log how many tensors of a module :func:`start_from` takes of a file; their names as information.

    Args:
        module: the new head or detector.
        path: file of the earlier one.
    """
    new_state = module.state_dict()
    earlier_state = _tensors_without_vit(HeadCheckpoint.load(path))
    taken = _fitting(earlier_state, new_state)
    new_names = sorted(new_state.keys() - taken.keys())
    left_out = sorted(earlier_state.keys() - taken.keys())
    logger.warning(
        "init %s: %d of %d tensors are taken, %d are new; %d of the file are left out%s",
        path,
        len(taken),
        len(new_state),
        len(new_names),
        len(left_out),
        " (dinoneck --verbose names them)" if new_names or left_out else "",
    )
    logger.info("init %s: taken are %s", path, ", ".join(taken))
    logger.info("init %s: new are %s", path, ", ".join(new_names) or "none")
    logger.info("init %s: left out are %s", path, ", ".join(left_out) or "none")


def _tensors_without_vit(checkpoint: HeadCheckpoint) -> dict[str, Tensor]:
    """The tensors of a head, or of a detector without those of its ViT."""
    tensors = {}
    for name, tensor in checkpoint.state_dict.items():
        if not name.startswith(_WEIGHTS_OF_VIT):
            tensors[name] = tensor
    return tensors


def _fitting(earlier: Mapping[str, Tensor], new: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The earlier tensors that a new module has by name and shape."""
    fitting = {}
    for name, tensor in earlier.items():
        if name in new and new[name].shape == tensor.shape:
            fitting[name] = tensor
    return fitting


def _check_places(checkpoint: HeadCheckpoint, module: nn.Module, path: str) -> None:
    """Check that the classes and tasks that an earlier module has too are the outputs of equal places."""
    tasks = getattr(module, "tasks", ())
    earlier_labels = {task["name"]: task["labels"] for task in checkpoint.meta["tasks"]}
    for task in tasks:
        _check_classes(earlier_labels.get(task.name, ()), task.labels, path)
    classes = getattr(module, "classes", ())
    if not isinstance(classes, nn.Module):  # of detectors: those of a mask head are a layer
        earlier_classes = checkpoint.config.get("classes", ())
        _check_classes(earlier_classes, classes, path)
    _check_order(list(earlier_labels), [task.name for task in tasks], path)


def _check_classes(earlier: Sequence[str], new: Sequence[str], path: str) -> None:
    # tensors for more or fewer classes have another shape, and are not taken
    if len(earlier) == len(new):
        _check_order(earlier, new, path)


def _check_order(earlier: Sequence[str], new: Sequence[str], path: str) -> None:
    """Check that the names that are in both have equal places."""
    for place, name in enumerate(new):
        if name in earlier and earlier.index(name) != place:
            raise ConfigError(
                f"init is {path}, which predicts {', '.join(earlier)}; give {name!r} the same place"
            )
