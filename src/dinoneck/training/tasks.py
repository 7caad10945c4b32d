"""Step 4 of a run: what the heads of a config and a table learn."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from dinoneck.errors import ConfigError, DataError, did_you_mean
from dinoneck.losses.composition import Composition
from dinoneck.tasks import TargetTransform, Task
from dinoneck.training.config import CompositionConfig, TaskConfig, TrainConfig
from dinoneck.training.table import MAPS, Maps, class_names, target_columns

FOLLOWS_R2 = 0.9  # from it on a number is taken for the mean over the map of its name
logger = logging.getLogger(__name__)
_Array = np.ndarray[Any, Any]


class Scored(NamedTuple):
    """A target that is scored.

    Attributes:
        kind: ``value``, ``class``, ``mask`` (classes per pixel) or ``map`` (numbers per patch).
        output: of ``head.predict``.
        places: of the target among the output's columns.
        truth: (n, t) values, (n,) class indices, or (n, rows, cols); what is missing is NaN or -1. Of masks empty.
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
        tasks: their transforms are fitted on the training rows of each fold, see ``head_tasks``.
        targets: task name -> values of all images in original units, NaN or -1 = missing.
        weights: dense task -> (n, rows, cols), how much a patch counts.
        compositions: what is computed from tasks.
        fitted: names of the tasks that are trained on z-scores.
        scored: target -> where its predictions are, and the truth.
        maps: the labels per patch; None = none.
    """

    tasks: tuple[Task, ...]
    targets: Mapping[str, Tensor]
    weights: Mapping[str, Tensor]
    compositions: tuple[Composition, ...]
    fitted: frozenset[str]
    scored: Mapping[str, Scored]
    maps: Maps | None


def problem_of(config: TrainConfig, table: Any, maps: Maps | None = None) -> Problem:
    """Return what the heads of a config and a table learn.

    Raises:
        ConfigError: if a task or a composition names what is not there, or two kinds of columns.
        DataError: if a ratio's columns hold negative values.
    """
    described = _described(config, table)
    compositions = _compositions(config, described, table)
    tasks = [_task(config, name, own, described, table, maps) for name, own in described.items()]
    targets = {name: _targets(name, own, table) for name, own in described.items()}
    weights = {}
    if maps is not None:
        tasks.append(_map_task(config, table, maps, [own.from_map for own in described.values()]))
        targets[maps.name] = maps.values
        weights = {maps.name: maps.weight} if maps.kind == "dense" else {}
        _propose_from_map(described, targets, maps)
    if not tasks:
        raise ConfigError("which columns are to be predicted? Name them with data.targets (--targets), or data.labels")
    numbers = {name: own for name, own in described.items() if own.kind not in ("ratio", "classification")}
    plain = {name: own.activation is None for name, own in numbers.items()}
    fitted = {name for name, own in numbers.items() if (plain[name] if own.standardize is None else own.standardize)}
    fitted |= {*weights}  # a dense task
    scored = _scored(described, compositions, targets, table, maps)
    return Problem(tuple(tasks), targets, weights, tuple(compositions), frozenset(fitted), scored, maps)


def with_fine_maps(problem: Problem, outputs: Mapping[str, Tensor]) -> Problem:
    """Return the problem with labels as fine as the head's map, where that is finer than the patches.

    Raises:
        ConfigError: if the head's map has another size than the labels of a dense task.
    """
    maps = problem.maps
    if maps is None or (size := outputs[maps.name].shape[-2:]) == maps.values.shape[-2:]:
        return problem
    if maps.kind == "dense":
        raise ConfigError(
            f"the head predicts {tuple(size)} values of {maps.name!r} an image, and the labels are per patch, "
            f"{tuple(maps.values.shape[-2:])}; choose a head with one prediction per patch, such as dense or fpn"
        )
    return replace(problem, targets={**problem.targets, maps.name: maps.indices(size)})


def _described(config: TrainConfig, table: Any) -> dict[str, TaskConfig]:
    """The tasks of the table's columns: those of the config, and a default for every other column.

    A target that is the sum of others which are targets too is not a task: a composition derives it.
    """
    targets, auxiliary = target_columns(config, table)
    columns, sums, tasks = [*targets, *auxiliary], table.attrs.get("sums", {}), dict[str, TaskConfig]()
    owner: dict[str, str] = {}
    for name, task in config.tasks.items():
        if task.beta is not None and task.loss != "smooth_l1":
            raise ConfigError(f"task {name!r} has beta {task.beta:g}, which belongs to loss: smooth_l1; write both")
        if task.kind in MAPS:  # whose targets are masks
            continue
        tasks[name] = task = _of_columns(name, task.changed(columns=task.columns or (name,)), table, columns)
        for column in () if task.kind == "ratio" else task.columns:
            if (other := owner.setdefault(column, name)) != name:
                raise ConfigError(f"tasks {other!r} and {name!r} both predict column {column!r}; leave it out of one")
    covered = {column for task in tasks.values() for column in task.columns}
    covered |= {column for own in config.compositions.values() for column in own.sums}
    for column in sorted(columns, key=lambda column: column in sums):  # sums follow their parts
        if column in covered or {*sums.get(column, ("",))} <= {*tasks}:
            continue
        if column in config.tasks:
            raise ConfigError(f"task {column!r} predicts other columns than the target {column!r}; rename one of them")
        kind: Literal["classification"] | None = "classification" if class_names(table, column) else None
        tasks[column] = TaskConfig(columns=(column,), auxiliary=column in auxiliary, kind=kind)
    return tasks


def _of_columns(name: str, task: TaskConfig, table: Any, columns: Sequence[str]) -> TaskConfig:
    """A task whose columns exist and are of its kind; words are classes."""
    for column in task.columns:
        if column not in columns:
            hint = did_you_mean(column, columns)
            raise ConfigError(f"task {name!r} needs column {column!r}; there are {', '.join(columns)}.{hint}")
    if len({*task.columns}) < max(len(task.columns), 2 if task.kind == "ratio" else 1):
        raise ConfigError(
            f"task {name!r} has columns {', '.join(task.columns)}; name each once, and of a ratio two or more"
        )
    words = [column for column in task.columns if class_names(table, column)]
    if not words and task.kind != "classification":
        return task
    if not words:
        raise ConfigError(f"task {name!r} is a classification; {task.columns[0]!r} was read without classes=")
    if len(task.columns) > 1 or task.kind not in (None, "classification"):
        raise ConfigError(
            f"task {name!r} is of kind {task.kind!r} and has columns {', '.join(task.columns)}; {words[0]!r} holds the "
            f"classes {', '.join(class_names(table, words[0])[:5])}, which are a classification of one column"
        )
    return task.changed(kind="classification")


def _task(
    config: TrainConfig, name: str, own: TaskConfig, described: Mapping[str, TaskConfig], table: Any, maps: Maps | None
) -> Task:
    """A task of columns; its transform is not fitted yet."""
    is_class, is_share = own.kind == "classification", own.kind in ("ratio", "classification")
    labels = class_names(table, own.columns[0]) if is_class else own.columns
    weight = own.weight
    if own.from_map is not None and weight is None and maps is not None:
        known = np.isfinite(np.asarray(table[own.columns[0]]))
        # the map's own loss trains it; a loss of the mean too made the numbers of crop images worse
        weight = (float((known & np.isnan(maps.means()).all(axis=1)).any()),)
    if weight is None:
        fixed = own.auxiliary and config.losses.weighting == "fixed"
        weight = config.losses.aux_weight / sum(task.auxiliary for task in described.values()) if fixed else 1.0
    unit, minimum, transform = own.unit, own.minimum, TargetTransform(area=own.area, log1p=own.log1p)
    if not (is_share or own.auxiliary):
        unit = config.data.unit or table.attrs.get("units", {}).get(own.columns[0], "") if unit is None else unit
        minimum = _minimum(config, table) if minimum is None else minimum
    return Task(
        name,
        dim=len(labels),
        kind=own.kind or "regression",
        loss=cast("Any", own.loss),
        beta=1.0 if own.beta is None else own.beta,
        weight=weight,
        activation=cast("Any", own.activation),
        unit=unit or "",
        labels=labels if len(labels) > 1 or is_class else (),
        minimum=minimum,
        transform=None if transform == TargetTransform() else transform,
        from_map=own.from_map,
    )


def _map_task(config: TrainConfig, table: Any, maps: Maps, means: Sequence[str | None]) -> Task:
    """The task of the masks."""
    own, default = config.tasks.get(maps.name, TaskConfig()), TaskConfig()
    used = ("kind", "weight", "loss", "beta", "unit", "minimum")
    for name in own.__struct_fields__:
        if name not in used and getattr(own, name) != getattr(default, name):
            raise ConfigError(f"task {maps.name!r} is of kind {maps.kind!r}, which has no {name!r}; leave it out")
    options = {name: getattr(own, name) for name in used[1:] if getattr(own, name) is not None}
    if maps.kind == "dense":
        # a mean of clipped patches would be too high
        minimum = None if maps.name in means else _minimum(config, table) if own.minimum is None else own.minimum
        options |= {"minimum": minimum, "shares": maps.how.classes is not None}
    return Task(maps.name, maps.values.shape[1], kind=maps.kind, labels=maps.labels, **options)


def _minimum(config: TrainConfig, table: Any) -> float | None:
    known: float | None = table.attrs.get("minimum")
    return known if config.data.minimum is None else config.data.minimum


def _propose_from_map(described: Mapping[str, TaskConfig], targets: Mapping[str, Tensor], maps: Maps) -> None:
    """State which numbers are the mean over the map of their name, and are not described so."""
    for name, own in described.items():
        if maps.kind != "dense" or own.from_map is not None or name not in maps.labels or targets[name].ndim > 1:
            continue
        true, means = targets[name].numpy(), maps.means()[:, maps.labels.index(name)]
        known = np.isfinite(true) & np.isfinite(means)
        error, spread = (np.square(true[known] - each).sum() for each in (means[known], true[known].mean()))
        if error <= (1 - FOLLOWS_R2) * spread and known.any():
            logger.warning(
                "the target %r follows the mean over its map %r; predict it from the map: from_map", name, maps.name
            )


def _targets(name: str, task: TaskConfig, table: Any) -> Tensor:
    """The values of all images of a task: (n,) or (n, outputs), or class indices (n,)."""
    if task.kind == "classification":
        return torch.tensor(np.asarray(table[task.columns[0]].cat.codes), dtype=torch.int64)
    values = np.stack([np.asarray(table[column], np.float64) for column in task.columns], axis=1)
    if task.kind == "ratio":
        if (values < 0).any():
            raise DataError(f"task {name!r} is a ratio of {', '.join(task.columns)}, which hold negative values")
        total = values.sum(axis=1, keepdims=True)
        values = np.where(total > 0, values / np.where(total > 0, total, 1.0), np.nan)
    return torch.from_numpy(values[:, 0] if len(task.columns) == 1 else values)


def _compositions(config: TrainConfig, tasks: Mapping[str, TaskConfig], table: Any) -> list[Composition]:
    """The compositions of the config, and the table's own sums of targets (total and ratio empty)."""
    covered = {column for own in config.compositions.values() for column in own.sums}
    covered |= {column for task in tasks.values() for column in task.columns}
    sums = {name: parts for name, parts in table.attrs.get("sums", {}).items() if name in table and name not in covered}
    own_sums = {name: CompositionConfig(sums={name: tuple(parts)}) for name, parts in sums.items()}
    made = []
    for name, own in {**config.compositions, **own_sums}.items():
        adds = not (own.total or own.ratio)
        if not adds and (own.ratio not in tasks or own.total not in tasks):
            raise ConfigError(
                f"composition {name!r} has total {own.total!r} and ratio {own.ratio!r}; tasks are {', '.join(tasks)}"
            )
        parts = tuple(dict.fromkeys(part for each in own.sums.values() for part in each))
        made.append(Composition(parts if adds else tasks[own.ratio].columns, own.sums, name, own.total, own.ratio))
    return made


def _scored(
    tasks: Mapping[str, TaskConfig],
    compositions: Sequence[Composition],
    targets: Mapping[str, Tensor],
    table: Any,
    maps: Maps | None,
) -> dict[str, Scored]:
    """The targets that are scored, and where their predictions are."""
    numbers = {name: own for name, own in tasks.items() if own.kind != "classification" and not own.auxiliary}
    outputs = [(name, own.columns) for name, own in numbers.items() if own.kind == "ratio"]
    outputs += [(own.name, own.names) for own in compositions]
    outputs += [(name, own.columns) for name, own in numbers.items() if own.kind != "ratio"]
    places = {column: (name, i) for name, columns in outputs for i, column in enumerate(columns)}
    scored = {}
    for column in [column for column in table.columns if column in places]:
        name, i = places[column]
        truth = np.asarray(table[column], np.float64)
        if name in tasks and tasks[name].kind == "ratio":
            columns, truth = [*tasks[name].columns], targets[name][:, i].numpy()
            if len(empty := np.flatnonzero(np.isnan(truth) & (table[columns] == 0).all(axis=1))):
                raise DataError(f"image {table.index[empty[0]]!r}: {columns} are all 0, so their ratio is unknown")
        scored[column] = Scored("value", name, slice(i, i + 1), truth[:, None])
    for name, task in tasks.items():
        if name not in numbers:
            labels, truth = class_names(table, task.columns[0]), targets[name].numpy()
            key = name if task.auxiliary else task.columns[0]
            truth = truth if labels else truth.reshape(len(truth), -1)
            scored[key] = Scored("class" if labels else "value", name, slice(None), truth, labels, task.auxiliary)
    return scored | ({} if maps is None else _scored_maps(maps))


def _scored_maps(maps: Maps) -> dict[str, Scored]:
    if maps.kind == "segmentation":
        return {maps.name: Scored("mask", maps.name, slice(None), np.empty(0), maps.labels)}
    truths = maps.values.double().numpy()
    labels = maps.labels or tuple(map(str, range(truths.shape[1])))
    names = [maps.name] if len(labels) == 1 else [f"{maps.name} {label}" for label in labels]
    return {name: Scored("map", maps.name, slice(i, i + 1), truths[:, i]) for i, name in enumerate(names)}
