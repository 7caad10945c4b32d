"""Steps 4 and 6 of a run: what the heads of a config and a table learn, and new heads for it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dinoneck import registry
from dinoneck.checkpoint.head_checkpoint import HeadCheckpoint
from dinoneck.configured import fields_of
from dinoneck.data.cells import OWN_COLUMNS
from dinoneck.data.preprocessing import Preprocessing
from dinoneck.errors import ConfigError, DataError, did_you_mean, some_of
from dinoneck.heads.dense import DenseHead
from dinoneck.heads.head import Head
from dinoneck.heads.pyramid import PyramidHead
from dinoneck.losses.composition import Composition
from dinoneck.tasks import TargetTransform, Task
from dinoneck.tokens import Tokens
from dinoneck.training.config import TaskConfig, TrainConfig
from dinoneck.training.scores import r2
from dinoneck.training.table import class_names, column_tasks, map_task, read_maps
from dinoneck.training.targets import known

FOLLOWS_R2 = 0.9  # from it on a number is taken for the mean over the map of its name
SEVERAL_LAYERS = ("dpt", "dpt_neck", "mask")  # heads and necks that read four layers where the config names none
_DEFAULTS: dict[str, dict[str, Any]] = {  # a mask head is narrow: a few hundred images do not fill the published one
    "dpt": {"neck": {"type": "dpt_neck"}},
    "mask": {"dim": 128},
}
logger = logging.getLogger(__name__)
Described = Mapping[str, TaskConfig]
_Array = np.ndarray[Any, Any]


class Scored(NamedTuple):
    """A target that is scored.

    Attributes:
        kind: ``value``, ``class``, ``mask`` (classes per pixel) or ``map`` (numbers per patch).
        output: of ``head.predict``.
        places: of the target among the output's columns.
        truth: (n, t) values, (n,) class indices, or (n, 1, rows, cols); what is missing is NaN or -1. Of masks zeros
            (n, K, K), as confusion matrices are.
        labels: class names.
        auxiliary: whether it only helps training: it does not count in the overall score.
    """

    kind: str
    output: str
    places: slice
    truth: _Array
    labels: tuple[str, ...] = ()
    auxiliary: bool = False


class Problem(NamedTuple):
    """What the heads of a run learn; rows are those of the table.

    Attributes:
        tasks: their transforms are fitted on the training rows of each fold, see :func:`fitted`.
        targets: task name -> values of all images in original units, NaN or -1 = missing.
        weights: dense task -> (n, rows, cols), how much a patch counts.
        compositions: what is computed from tasks.
        scored: target -> where its predictions are, and the truth.
        pixels: returns the classes of a row's pixels, see :func:`dinoneck.training.table.read_maps`.
    """

    tasks: Sequence[Task]
    targets: Mapping[str, Tensor]
    weights: Mapping[str, Tensor]
    compositions: Sequence[Composition]
    scored: Mapping[str, Scored]
    pixels: Any


def problem_of(config: TrainConfig, table: Any, preprocess: Preprocessing) -> Problem:
    """Return what the heads of a config and a table learn; masks are read as ``preprocess`` prepares their images.

    Raises:
        ConfigError: if a task or a composition names what is not there, or columns of another kind.
        DataError: if values or masks cannot be used.
    """
    described, (masks, kind), weight, pixels = _described(config, table), map_task(config, table), None, None
    learned = {name: _values(own, table) for name, own in described.items()}
    if config.data.labels is not None:
        described[masks] = own = config.tasks.get(masks, TaskConfig()).changed(kind=kind)
        if own.columns or own.auxiliary:
            raise ConfigError(f"the targets of task {masks!r} are masks; leave out columns and auxiliary")
        labels, values, weight, pixels = read_maps(config.data, table, preprocess)
        learned[masks] = labels, values
    if not described:
        raise ConfigError("which columns are to be predicted? Name them with data.targets (--targets), or data.labels")
    tasks = [_task(config, name, described, *own, weight) for name, own in learned.items()]
    targets = {name: values for name, (_, values) in learned.items()}
    _check_known(tasks, targets, table.index)
    weights = {masks: weight} if weight is not None and kind == "dense" else {}
    for name, patches in weights.items():
        _propose_from_map(described, learned[name][0], targets, name, patches)
    scored, compositions = dict[str, Scored](), list[Composition]()
    for name, made in config.compositions.items():
        parts = tuple(dict.fromkeys(part for each in made.sums.values() for part in each))
        parts = described[made.ratio].columns if made.ratio in described else parts
        compositions.append(Composition(parts, made.sums, name, made.total, made.ratio))
        for i, column in enumerate(compositions[-1].names):
            if column in table:
                truth = np.asarray(table[column], np.float64)[:, None]
                scored[column] = Scored("value", name, slice(i, i + 1), truth)
    for task in tasks:
        each = _scored(task, described[task.name], targets[task.name])
        scored = each | scored if task.kind == "ratio" else scored | each  # of a column a ratio predicts the share only
    numbers = [name for name in table.columns if name in scored and scored[name].kind == "value"]
    return Problem(tasks, targets, weights, compositions, {name: scored[name] for name in numbers} | scored, pixels)


def _described(config: TrainConfig, table: Any) -> dict[str, TaskConfig]:
    """The tasks of the table's columns, which must exist and be alike, with their kinds."""
    tasks, taken = column_tasks(config, table), set[str]()
    every = [name for name in table.columns if name not in OWN_COLUMNS]
    for name, own in tasks.items():
        if missing := [column for column in own.columns if column not in every]:
            hint = did_you_mean(missing[0], every)
            raise ConfigError(f"task {name!r} needs column {missing[0]!r}; there are {', '.join(every)}.{hint}")
        columns, alone = ", ".join(own.columns), {*own.columns} if own.kind != "ratio" else set()
        if len({*own.columns}) < len(own.columns) or taken & alone:
            raise ConfigError(f"task {name!r} has columns {columns}; name each once, and in one task")
        kind = own.kind or ("classification" if class_names(table, own.columns[0]) else "regression")
        for column in own.columns:
            words = class_names(table, column)
            if bool(words) != (kind == "classification") or (words and len(own.columns) > 1):
                held = f"the classes {', '.join(words[:5])}" if words else "numbers"
                raise ConfigError(f"task {name!r} of kind {kind!r} has columns {columns}; {column!r} holds {held}")
        taken |= alone
        tasks[name] = own.changed(kind=kind)
    return tasks


def _values(own: TaskConfig, table: Any) -> tuple[tuple[str, ...], Tensor]:
    """The labels of a task, and its values of all images: (n,) or (n, outputs), or class indices (n,)."""
    if own.kind == "classification":
        indices = np.asarray(table[own.columns[0]].cat.codes, np.int64)
        return class_names(table, own.columns[0]), torch.tensor(indices)
    values = np.stack([np.asarray(table[column], np.float64) for column in own.columns], axis=1)
    if own.kind == "ratio":
        if (values < 0).any():  # the shares of two negative values would be positive
            raise DataError(f"a ratio of {', '.join(own.columns)}, which hold negative values; correct them")
        with np.errstate(divide="ignore", invalid="ignore"):  # of nothing the shares are unknown, 0 / 0
            values = values / values.sum(axis=1, keepdims=True)
    return (own.columns, torch.from_numpy(values)) if len(own.columns) > 1 else ((), torch.from_numpy(values[:, 0]))


def _task(config: TrainConfig, name: str, described: Described, labels: Any, values: Tensor, weight: Any) -> Task:
    """A task as it is described, with defaults for what is not; its transform is not fitted yet.

    ``weight`` states how much the patches of all images count, None without masks.
    """
    own, data = described[name], config.data
    if own.beta is not None and own.loss != "smooth_l1":
        raise ConfigError(f"task {name!r} has beta {own.beta:g}, which belongs to loss: smooth_l1; write both")
    defaults: dict[str, Any] = {"dim": values.shape[1] if values.ndim > 1 else max(len(labels), 1)}
    if weight is not None and own.from_map is not None:
        alone = values.reshape(len(values), -1)[:, 0].isfinite() & ~weight.flatten(1).any(dim=1)
        # the map's own loss trains it; a loss of the mean too made the numbers of crop images worse
        defaults["weight"] = (float(alone.any()),)
    elif own.auxiliary and config.losses.weighting == "fixed":
        defaults["weight"] = config.losses.aux_weight / sum(task.auxiliary for task in described.values())
    if own.kind in ("regression", "density") and not own.auxiliary:
        defaults |= {"unit": data.unit, "minimum": data.minimum}
    elif own.kind == "dense":
        is_averaged = name in [each.from_map for each in described.values()]  # a mean of clipped patches is too high
        defaults |= {"shares": len(labels) > 0, "minimum": None if is_averaged else data.minimum}
    fields = ("kind", "loss", "beta", "weight", "activation", "unit", "minimum", "from_map")
    given = {field: getattr(own, field) for field in fields if getattr(own, field) is not None}
    if (own.area, own.log1p) != (None, False):
        given["transform"] = TargetTransform(area=own.area, log1p=own.log1p)
    return Task(name, labels=labels, **{**defaults, **given})


def _propose_from_map(described: Described, labels: Sequence[str], targets: Any, masks: str, weight: Tensor) -> None:
    """State which numbers are the mean over the map of their name, and are not described so."""
    means = (targets[masks].nan_to_num().double() * weight[:, None]).sum(dim=(2, 3)) / weight.sum(dim=(1, 2))[:, None]
    for name, mean in zip(labels, means.numpy().T, strict=False):  # maps of numbers may have no labels
        if name not in described or described[name].from_map is not None or targets[name].ndim > 1:
            continue
        true = targets[name].numpy()
        rows = np.isfinite(true) & np.isfinite(mean)
        if len({*true[rows]}) > 1 and r2(true[rows], mean[rows]) >= FOLLOWS_R2:
            logger.warning("the target %r follows the mean over its map %r; predict it by from_map", name, masks)


def _scored(task: Task, own: TaskConfig, values: Tensor) -> dict[str, Scored]:
    """The targets of a task that are scored, and where their predictions are."""
    name, truth, every = task.name, values.numpy(), slice(None)
    if task.kind == "classification":
        key = name if own.auxiliary else own.columns[0]
        return {key: Scored("class", name, every, truth, task.labels, own.auxiliary)}
    if task.kind == "segmentation":
        return {name: Scored("mask", name, every, np.zeros((len(truth), task.dim, task.dim), np.int64), task.labels)}
    if task.kind == "dense":
        keys = [name] if task.dim == 1 else [f"{name} {label}" for label in task.labels or range(task.dim)]
        return {key: Scored("map", name, slice(i, i + 1), truth[:, i, None]) for i, key in enumerate(keys)}
    truth = truth.reshape(len(truth), -1)
    if own.auxiliary:
        return {name: Scored("value", name, every, truth, (), True)}
    return {column: Scored("value", name, slice(i, i + 1), truth[:, i : i + 1]) for i, column in enumerate(own.columns)}


def _check_known(tasks: Sequence[Task], targets: Mapping[str, Tensor], ids: Any) -> None:
    """Refuse images of which nothing is known, and classes that no head can learn."""
    masks = [known(task, targets[task.name]) for task in tasks]
    present = [mask.reshape(len(mask), -1).any(dim=1).numpy() for mask in masks]
    if len(nothing := np.flatnonzero(~np.any(present, axis=0))):
        names = some_of([repr(ids[row]) for row in nothing], 3)
        raise DataError(f"nothing is known of the images {names}; fill in a value, or remove them")
    for task in (task for task in tasks if task.kind == "classification"):
        classes = targets[task.name].numpy()
        counts = np.unique(classes[classes >= 0], return_counts=True)[1]
        if len(counts) < 2 or counts.sum() < 2 * len(counts):
            held = f"{len(counts)} classes in {counts.sum()} images, {(counts == 1).sum()} of them in one alone"
            raise DataError(f"target {task.name!r} has {held}; expected two or more, and 2 images a class on average")


def fitted(problem: Problem, rows: _Array) -> list[Task]:
    """Return the tasks; numbers without an activation are trained on z-scores of these rows.

    Raises:
        DataError: naming the task, as :meth:`dinoneck.TargetTransform.fit` does.
    """
    tasks = []
    for task in problem.tasks:
        if task.kind in ("regression", "density", "dense") and task.activation is None:
            values = problem.targets[task.name][torch.as_tensor(rows)]
            if task.is_map:
                values = values.movedim(1, -1).flatten(0, 2)  # one row per patch
            try:
                task = replace(task, transform=(task.transform or TargetTransform()).fit(values))
            except DataError as error:
                raise DataError(f"task {task.name!r}: {error}") from None
        tasks.append(task)
    return tasks


def with_fine_maps(problem: Problem, outputs: Mapping[str, Tensor]) -> Problem:
    """Return the problem with labels as fine as the head's map, where that is finer than the patches.

    Raises:
        ConfigError: if the head's map has another size than the labels of a dense task.
    """
    for name in (task.name for task in problem.tasks if task.is_map):
        if (size := outputs[name].shape[-2:]) == problem.targets[name].shape[-2:]:
            continue
        if name in problem.weights:
            raise ConfigError(f"the head's map of {name!r} is {tuple(size)}, and the labels are per patch; take dense")
        pixels = (problem.pixels(row)[None].float() for row in range(len(problem.targets[name])))
        indices = torch.cat([F.interpolate(own, size, mode="nearest-exact")[0].long() for own in pixels])
        problem = problem._replace(targets={**problem.targets, name: indices})
    return problem


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


def make_head(config: TrainConfig, tokens: Tokens, problem: Problem, rows: _Array, seed: int) -> Head:
    """Return a new head for such tokens; the transforms of its tasks are fitted on the training rows.

    Arguments of its constructor that follow from tokens and tasks (``embed_dim``, ``tasks``, ``num_layers``,
    ``layer_indices``, ``patch_size``, ``num_patches``, ``compositions``) are filled in where the config has none.

    Raises:
        ConfigError: if an argument is unknown, or the head does not fit the tokens or tasks.
        DataError: if a task cannot be fitted.
    """
    tasks, maps = fitted(problem, rows), [task.kind for task in problem.tasks if task.is_map]
    name = head_type(config, *maps)
    if "type" not in config.head and name == "dpt_neck" and len(tokens.sequence) == 1:
        name = "dense"  # one layer has no finer map than its patches
    options = {key: x for key, x in (_DEFAULTS.get(name, {}) | config.head).items() if key != "type"}
    found = registry.resolve(name)
    cls = found if issubclass(found, Head) else PyramidHead  # on the neck of that name
    if cls is not found:
        options = {"neck": {"type": name, **options}}
    if issubclass(cls, DenseHead):
        readout = [task for task in tasks if task.kind == "regression" and task.from_map is None]
        tasks = [replace(task, kind="density", aggregate="mean") if task in readout else task for task in tasks]
    given: dict[str, Any] = {
        "embed_dim": tokens.sequence[0].shape[-1],
        "tasks": tasks,
        "num_layers": len(tokens.sequence),
        "layer_indices": tokens.layers,
        "patch_size": tokens.patch_size,
        "num_patches": {"resized": tuple(tokens.grid), "query": None}.get(options.get("mode", ""), tokens.grid.count),
        "compositions": problem.compositions,
    }
    if maps:
        given["pool"] = None  # of a linear head: a prediction per patch
    if isinstance(neck := options.get("neck"), Mapping) and "type" in neck:
        options["neck"] = {**_taken(registry.resolve(neck["type"]), given), **neck}
    if problem.compositions and "compositions" not in fields_of(cls):
        names = ", ".join(name for own in problem.compositions for name in own.names)
        raise ConfigError(f"{cls.__name__} takes no compositions, which {names} need; take another head, such as fpn")
    if any(name == "tasks" and x.annotation is x.empty for name, x in fields_of(cls).items()):
        raise ConfigError(f"{cls.__name__} needs the annotation tasks: Sequence[Task]; without it tasks are not kept")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = cls.from_config({**_taken(cls, given), **options})
    if config.init is not None:
        start_from(head, config.init)
    return head


def start_from(module: nn.Module, path: str) -> None:
    """Give a new module the tensors of an earlier one that have its names and shapes; a log line lists both kinds.

    Raises:
        CheckpointError: if the file cannot be read.
        ConfigError: if no tensor matches, the file is of several heads, or a task of both stands in another place.
    """
    kept = HeadCheckpoint.load(path)
    if kept.head_type == "ensemble":
        raise ConfigError(f"init is {path}, which averages several heads; name one of the run's folder heads")
    places = {task["name"]: place for place, task in enumerate(kept.meta["tasks"])}
    moved = [task.name for i, task in enumerate(getattr(module, "tasks", ())) if places.get(task.name, i) != i]
    if moved:
        raise ConfigError(f"init is {path}, whose tasks are {', '.join(places)}; give {moved[0]!r} the same place")
    earlier, own = kept.state_dict, module.state_dict()
    taken = {name: x for name, x in earlier.items() if name in own and own[name].shape == x.shape}
    others = sorted({*earlier, *own} - {*taken})
    if not taken:
        raise ConfigError(f"init is {path}, and none of its tensors fits {type(module).__name__}: {some_of(others, 5)}")
    module.load_state_dict({**own, **taken})
    logger.warning("init %s: taken are %s; without a match are %s", path, ", ".join(taken), ", ".join(others) or "none")


def _taken(cls: type[Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """What the constructor takes of what is given."""
    return {name: value for name, value in given.items() if name in fields_of(cls)}
