"""Steps 4 and 6 of a run: what the heads of a config and a table learn, and new heads for it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dinoneck import registry
from dinoneck.checkpoint.head_checkpoint import HeadCheckpoint
from dinoneck.configured import fields_of
from dinoneck.data.cells import FOLD, OWN_COLUMNS
from dinoneck.errors import ConfigError, DataError, did_you_mean, some_of
from dinoneck.grid import patch_pair
from dinoneck.heads.dense import DenseHead
from dinoneck.heads.head import Head
from dinoneck.heads.pyramid import PyramidHead
from dinoneck.losses.composition import Composition
from dinoneck.losses.task_loss import TaskLoss
from dinoneck.tasks import TargetTransform, Task
from dinoneck.tokens import Tokens
from dinoneck.training.config import TaskConfig, TrainConfig
from dinoneck.training.scores import r2
from dinoneck.training.table import MAPS, Fold, Maps, class_names, groups_of, target_columns
from dinoneck.training.targets import known, training_targets

FOLLOWS_R2 = 0.9  # from it on a number is taken for the mean over the map of its name
SEVERAL_LAYERS = ("dpt", "dpt_neck", "mask")  # heads and necks that read four layers where the config names none
_DEFAULTS: dict[str, dict[str, Any]] = {  # a mask head is narrow: a few hundred images do not fill the published one
    "dpt": {"neck": {"type": "dpt_neck"}},
    "mask": {"dim": 128},
}
logger = logging.getLogger(__name__)
_Array = np.ndarray[Any, Any]


class Scored(NamedTuple):
    """A target that is scored.

    Attributes:
        kind: ``value``, ``class``, ``mask`` (classes per pixel) or ``map`` (numbers per patch).
        output: of ``head.predict``.
        places: of the target among the output's columns.
        truth: (n, t) values, (n,) class indices, or (n, 1, rows, cols); what is missing is NaN or -1. Of masks empty.
        labels: class names.
        auxiliary: whether it only helps training: it does not count in the overall score.
    """

    kind: Literal["value", "class", "mask", "map"]
    output: str
    places: slice
    truth: _Array
    labels: tuple[str, ...] = ()
    auxiliary: bool = False


@dataclass(frozen=True)
class Problem:
    """What the heads of a run learn; rows are those of the table.

    Attributes:
        tasks: their transforms are fitted on the training rows of each fold, see :func:`fitted`.
        targets: task name -> values of all images in original units, NaN or -1 = missing.
        weights: dense task -> (n, rows, cols), how much a patch counts.
        compositions: what is computed from tasks.
        scored: target -> where its predictions are, and the truth.
        maps: the labels per patch; None = none.
    """

    tasks: tuple[Task, ...]
    targets: Mapping[str, Tensor]
    weights: Mapping[str, Tensor]
    compositions: tuple[Composition, ...]
    scored: Mapping[str, Scored]
    maps: Maps | None


def problem_of(config: TrainConfig, table: Any, maps: Maps | None = None) -> Problem:
    """Return what the heads of a config and a table learn.

    Raises:
        ConfigError: if a task or a composition names what is not there, or columns of another kind.
    """
    described = _described(config, table)
    targets = {name: _values(own, table) for name, own in described.items()}
    if maps is not None:
        _propose_from_map(described, targets, maps)
        own = config.tasks.get(maps.name, TaskConfig())
        if own.columns or own.auxiliary:
            raise ConfigError(f"the targets of task {maps.name!r} are masks; leave out columns and auxiliary")
        described[maps.name], targets[maps.name] = own.changed(kind=maps.kind), maps.values
    if not described:
        raise ConfigError("which columns are to be predicted? Name them with data.targets (--targets), or data.labels")
    tasks = tuple(_task(config, name, described, table, maps) for name in described)
    compositions = []
    for name, composed in config.compositions.items():
        parts = tuple(dict.fromkeys(part for each in composed.sums.values() for part in each))
        parts = described[composed.ratio].columns if composed.ratio in described else parts
        compositions.append(Composition(parts, composed.sums, name, composed.total, composed.ratio))
        compositions[-1].tasks_of(tasks)
    weights = {maps.name: maps.weight} if maps is not None and maps.kind == "dense" else {}
    scored = _scored(described, compositions, targets, table, maps)
    return Problem(tasks, targets, weights, tuple(compositions), scored, maps)


def _described(config: TrainConfig, table: Any) -> dict[str, TaskConfig]:
    """The tasks of the table's columns: those of the config, and a default for every other column."""
    targets, auxiliary = target_columns(config, table)
    tasks, taken = dict[str, TaskConfig](), set[str]()
    for name, task in config.tasks.items():
        if task.beta is not None and task.loss != "smooth_l1":
            raise ConfigError(f"task {name!r} has beta {task.beta:g}, which belongs to loss: smooth_l1; write both")
        if task.kind in MAPS:  # whose targets are masks
            continue
        tasks[name] = own = _checked(name, task.changed(columns=task.columns or (name,)), table)
        alone = {*own.columns} if own.kind != "ratio" else set()
        if len({*own.columns}) < len(own.columns) or taken & alone:
            columns = ", ".join(own.columns)
            raise ConfigError(f"task {name!r} has columns {columns}; name each once, and in one task")
        taken |= alone
    covered = {column for own in tasks.values() for column in own.columns}
    covered |= {column for own in config.compositions.values() for column in own.sums}
    for column in (*targets, *auxiliary):
        if column in tasks and column not in covered:
            raise ConfigError(f"task {column!r} predicts other columns than the target {column!r}; rename one of them")
        if column not in covered:
            tasks[column] = _checked(column, TaskConfig(columns=(column,), auxiliary=column in auxiliary), table)
    return tasks


def _checked(name: str, task: TaskConfig, table: Any) -> TaskConfig:
    """A task with the kind of its columns, which must exist and be alike."""
    every = [name for name in table.columns if name not in OWN_COLUMNS]
    for column in task.columns:
        if column not in every:
            hint = did_you_mean(column, every)
            raise ConfigError(f"task {name!r} needs column {column!r}; there are {', '.join(every)}.{hint}")
        words = class_names(table, column)
        kind = task.kind or ("classification" if words else "regression")
        if bool(words) != (kind == "classification") or (words and len(task.columns) > 1):
            columns, held = ", ".join(task.columns), f"the classes {', '.join(words[:5])}" if words else "numbers"
            raise ConfigError(f"task {name!r} is of kind {kind!r} and has columns {columns}; {column!r} holds {held}")
    return task.changed(kind=kind)


def _values(own: TaskConfig, table: Any) -> Tensor:
    """The values of all images of a task: (n,) or (n, outputs), or class indices (n,)."""
    if own.kind == "classification":
        return torch.tensor(np.asarray(table[own.columns[0]].cat.codes), dtype=torch.int64)
    values = np.stack([np.asarray(table[column], np.float64) for column in own.columns], axis=1)
    if own.kind == "ratio":
        if (values < 0).any():  # the shares of two negative values would be positive
            raise DataError(f"a ratio of {', '.join(own.columns)}, which hold negative values; correct them")
        with np.errstate(divide="ignore", invalid="ignore"):  # of nothing the shares are unknown, 0 / 0
            values = values / values.sum(axis=1, keepdims=True)
    return torch.from_numpy(values[:, 0] if len(own.columns) == 1 else values)


def _task(config: TrainConfig, name: str, described: Mapping[str, TaskConfig], table: Any, maps: Maps | None) -> Task:
    """A task as it is described, with defaults for what is not; its transform is not fitted yet."""
    own, defaults = described[name], dict[str, Any]()
    if maps is not None and own.from_map is not None:
        numbers = np.isfinite(np.asarray(table[own.columns[0]]))
        # the map's own loss trains it; a loss of the mean too made the numbers of crop images worse
        defaults["weight"] = (float((numbers & np.isnan(maps.means()).all(axis=1)).any()),)
    elif own.auxiliary and config.losses.weighting == "fixed":
        defaults["weight"] = config.losses.aux_weight / sum(task.auxiliary for task in described.values())
    if own.kind in ("regression", "density") and not own.auxiliary:
        defaults |= {"unit": config.data.unit, "minimum": config.data.minimum}
    elif own.kind == "dense" and name not in [each.from_map for each in described.values()]:
        defaults["minimum"] = config.data.minimum  # a mean of clipped patches would be too high
    fields = ("kind", "loss", "beta", "weight", "activation", "unit", "minimum", "from_map")
    given = {field: getattr(own, field) for field in fields if getattr(own, field) is not None}
    if (own.area, own.log1p) != (None, False):
        given["transform"] = TargetTransform(area=own.area, log1p=own.log1p)
    if maps is not None and name == maps.name:
        given |= {"dim": maps.values.shape[1], "shares": own.kind == "dense" and len(maps.labels) > 0}
        labels = maps.labels
    else:
        labels = class_names(table, own.columns[0]) or (own.columns if len(own.columns) > 1 else ())
        given["dim"] = max(len(labels), 1)
    return Task(name, labels=labels, **{**defaults, **given})


def _propose_from_map(described: Mapping[str, TaskConfig], targets: Mapping[str, Tensor], maps: Maps) -> None:
    """State which numbers are the mean over the map of their name, and are not described so."""
    for place, name in enumerate(maps.labels if maps.kind == "dense" else ()):
        if name not in described or described[name].from_map is not None or targets[name].ndim > 1:
            continue
        true, means = targets[name].numpy(), maps.means()[:, place]
        rows = np.isfinite(true) & np.isfinite(means)
        if len({*true[rows]}) > 1 and r2(true[rows], means[rows]) >= FOLLOWS_R2:
            logger.warning("the target %r follows the mean over its map %r; predict it by from_map", name, maps.name)


def _scored(
    described: Mapping[str, TaskConfig], compositions: Sequence[Composition], targets: Any, table: Any, maps: Any
) -> dict[str, Scored]:
    """The targets that are scored, and where their predictions are: numbers in the table's order, then the others."""
    numbers, others = dict[str, Scored](), dict[str, Scored]()
    for name, own in described.items():
        truth, every = targets[name].numpy(), slice(None)
        columns = truth.reshape(len(truth), -1)
        if own.kind == "classification":
            key, labels = name if own.auxiliary else own.columns[0], class_names(table, own.columns[0])
            others[key] = Scored("class", name, every, truth, labels, own.auxiliary)
        elif own.kind == "segmentation":
            others[name] = Scored("mask", name, every, np.empty(0), maps.labels)
        elif own.kind == "dense":
            labels = maps.labels or tuple(map(str, range(truth.shape[1])))
            names = [name] if len(labels) == 1 else [f"{name} {label}" for label in labels]
            others |= {k: Scored("map", name, slice(i, i + 1), truth[:, i, None] * 1.0) for i, k in enumerate(names)}
        elif own.auxiliary:
            others[name] = Scored("value", name, every, columns, (), True)
        else:
            for i, column in enumerate(own.columns):
                if own.kind != "ratio" or column not in numbers:
                    numbers[column] = Scored("value", name, slice(i, i + 1), columns[:, i : i + 1])
    for made in compositions:  # of a column they predict the value, a ratio its share
        for i, column in enumerate(made.names):
            if column in table and (column not in numbers or numbers[column].output == made.ratio):
                truth = np.asarray(table[column], np.float64)[:, None]
                numbers[column] = Scored("value", made.name, slice(i, i + 1), truth)
    return {name: numbers[name] for name in table.columns if name in numbers} | others


def check_targets(problem: Problem, table: Any, folds: Mapping[int, Fold]) -> None:
    """Refuse targets that the heads of a fold cannot learn; a warning names groups that folds of a column share.

    Raises:
        DataError: naming the target, the images or the fold.
    """
    masks = [known(task, problem.targets[task.name]) for task in problem.tasks]
    present = [mask.reshape(len(mask), -1).any(dim=1).numpy() for mask in masks]
    if len(nothing := np.flatnonzero(~np.any(present, axis=0))):
        names = some_of([repr(table.index[row]) for row in nothing], 3)
        raise DataError(f"nothing is known of the images {names}; fill in a value, or remove them")
    for task in problem.tasks:
        if task.kind == "classification":
            _check_classes(task.name, problem.targets[task.name].numpy())
    groups = np.array(groups_of(table) or range(len(table)))
    for number, (rows, valid) in folds.items():
        if FOLD in table and len(split := np.intersect1d(groups[rows], groups[valid])):
            logger.warning("%d groups of fold %d are in other folds too, such as %r", len(split), number, str(split[0]))
        try:
            both = np.concatenate([rows, valid])
            targets, weights = (
                {name: x[both] for name, x in own.items()} for own in (problem.targets, problem.weights)
            )
            loss = TaskLoss(fitted(problem, rows), problem.compositions)
            training_targets(loss, targets, weights, table.index[both], len(rows))
        except DataError as error:
            raise DataError(f"fold {number}: {error}") from error


def _check_classes(name: str, classes: _Array) -> None:
    counts = np.unique(classes[classes >= 0], return_counts=True)[1]
    if len(counts) < 2 or counts.sum() < 2 * len(counts):
        held = f"{len(counts)} classes in {counts.sum()} images, {(counts == 1).sum()} of them in one alone"
        raise DataError(f"the target {name!r} has {held}; expected two or more, and 2 images a class on average")


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
    maps = problem.maps
    if maps is None or (size := outputs[maps.name].shape[-2:]) == maps.values.shape[-2:]:
        return problem
    if maps.kind == "dense":
        raise ConfigError(f"the head's map of {maps.name!r} is {tuple(size)}, and the labels are per patch; take dense")
    pixels = (maps.pixels(row)[None].float() for row in range(len(maps.values)))
    indices = torch.cat([F.interpolate(own, size, mode="nearest-exact")[0].long() for own in pixels])
    return replace(problem, targets={**problem.targets, maps.name: indices})


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
    tasks, name = fitted(problem, rows), head_type(config, None if problem.maps is None else problem.maps.kind)
    if "type" not in config.head and name == "dpt_neck" and len(tokens.sequence) == 1:
        name = "dense"  # one layer has no finer map than its patches
    options = {**_DEFAULTS.get(name, {}), **config.head}
    options.pop("type", None)
    found = registry.resolve(name)
    cls = found if issubclass(found, Head) else PyramidHead  # on the neck of that name
    if cls is not found:
        options = {"neck": {"type": name, **options}}
    if issubclass(cls, DenseHead):
        readout = [task for task in tasks if task.kind == "regression" and task.from_map is None]
        tasks = [replace(task, kind="density", aggregate="mean") if task in readout else task for task in tasks]
    patch = patch_pair(tokens.patch_size)
    given: dict[str, Any] = {
        "embed_dim": tokens.sequence[0].shape[-1],
        "tasks": tasks,
        "num_layers": len(tokens.sequence),
        "layer_indices": tokens.layers,
        "patch_size": patch[0] if patch[0] == patch[1] else patch,
        "num_patches": {"resized": tuple(tokens.grid), "query": None}.get(options.get("mode", ""), tokens.grid.count),
        "compositions": problem.compositions,
    }
    if problem.maps is not None:
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
        ConfigError: if no tensor matches.
    """
    earlier, own = HeadCheckpoint.load(path).state_dict, module.state_dict()
    taken = {name: x for name, x in earlier.items() if name in own and own[name].shape == x.shape}
    others = sorted({*earlier, *own} - {*taken})
    if not taken:
        raise ConfigError(f"init is {path}, and none of its tensors fits {type(module).__name__}: {some_of(others, 5)}")
    module.load_state_dict({**own, **taken})
    logger.warning("init %s: taken are %s; without a match are %s", path, ", ".join(taken), ", ".join(others) or "none")


def _taken(cls: type[Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """What the constructor takes of what is given."""
    return {name: value for name, value in given.items() if name in fields_of(cls)}
