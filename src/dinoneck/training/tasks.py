"""From a config and a table to what a head learns: its tasks, their targets, and what is composed of them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, cast

import numpy as np
import torch

from dinoneck import registry
from dinoneck.errors import ConfigError, DataError, did_you_mean
from dinoneck.grid import patch_pair
from dinoneck.heads.dense import DenseHead
from dinoneck.heads.head import Head
from dinoneck.heads.linear import LinearHead
from dinoneck.heads.pyramid import PyramidHead
from dinoneck.losses.composition import Composition
from dinoneck.tasks import TargetTransform, Task
from dinoneck.tokens import Tokens
from dinoneck.training.cell_targets import CellTargets, fitted
from dinoneck.training.config import CompositionConfig, TaskConfig, TrainConfig
from dinoneck.training.table import Table

_Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Problem:
    """What the heads of a run learn.

    Attributes:
        config: the run.
        table: images and their columns.
        cells: labels per cell of the table's images; every head gets their task too.
        tasks: those of the table's columns, by name.
        targets: task name -> values of all images: (n,), (n, outputs), or class indices (n,).
        compositions: what is computed from tasks.
        columns: target column of numbers -> (output of ``head.predict``, place among its columns).
    """

    config: TrainConfig
    table: Table
    cells: CellTargets | None
    tasks: Mapping[str, TaskConfig]
    targets: Mapping[str, _Array]
    compositions: Sequence[Composition]
    columns: Mapping[str, tuple[str, int]]

    @classmethod
    def of(cls, config: TrainConfig, table: Table, cells: CellTargets | None = None) -> Problem:
        """Return the problem of a config and a table.

        Raises:
            ConfigError: if a task or a composition names what is not there, or two kinds of columns.
            DataError: if a ratio's columns hold negative values.
        """
        tasks = _tasks(config, table)
        compositions = _compositions(config, tasks, table)
        columns = _columns(tasks, compositions, table)
        return cls(config, table, cells, tasks, _targets(tasks, table), compositions, columns)

    def head(self, tokens: Tokens, rows: _Array, seed: int) -> Head:
        """Return a new head for such tokens; its transforms are fitted on the training rows.

        Raises:
            ConfigError: if an argument of the head is unknown, or it does not fit the tokens or tasks.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return make_head(self.config, tokens, self.head_tasks(rows), self.compositions)

    def head_tasks(self, rows: _Array) -> list[Task]:
        """Return the tasks of a head whose transforms are fitted on the training rows."""
        made = [self._head_task(name, rows) for name in self.tasks]
        if self.cells is None:
            return made
        minimum = None if self._shares else self.table.minimum  # a mean of clipped cells would be too high
        made = [
            self.cells.share_task(task, self.targets[task.name]) if task.name in self._shares else task for task in made
        ]
        own, options = self.config.tasks.get(self.cells.name), ("weight", "loss", "beta", "unit", "minimum")
        changes: dict[str, Any] = {option: getattr(own, option, None) for option in options}
        per_cell = replace(self.cells.task(rows, minimum), **{k: x for k, x in changes.items() if x is not None})
        return [*made, per_cell]

    @cached_property
    def _shares(self) -> tuple[str, ...]:
        """The tasks that are the mean over the cells of their name; computed, and reported in the log, once."""
        if self.cells is None:
            return ()
        return self.cells.shares(
            {name: self.targets[name] for name, own in self.tasks.items() if len(own.columns) == 1}
        )

    def true_values(self, column: str) -> _Array:
        """Return the values of a column of numbers, NaN = missing; of a ratio without a composition, the shares.

        Raises:
            DataError: if all columns of a ratio are 0.
        """
        output, place = self.columns[column]
        if output not in self.tasks or self.tasks[output].kind != "ratio":
            return self.table.targets[column].astype(np.float64)
        shares: _Array = self.targets[output][:, place]
        known = np.all([np.isfinite(self.table.targets[name]) for name in self.tasks[output].columns], axis=0)
        if len(undefined := np.flatnonzero(np.isnan(shares) & known)):
            row = int(undefined[0])
            raise DataError(
                f"image {self.table.ids[row]!r}: {', '.join(self.tasks[output].columns)} are all 0, so their ratio is "
                "unknown; remove the row, or add a composition with a total"
            )
        return shares

    def _head_task(self, name: str, rows: _Array) -> Task:
        own, config = self.tasks[name], self.config
        is_class = own.kind == "classification"
        labels = self.table.classes.get(own.columns[0], ()) if is_class else own.columns
        weight = own.weight
        if weight is None:
            fixed = own.auxiliary and config.losses.weighting == "fixed"
            weight = config.losses.aux_weight / sum(task.auxiliary for task in self.tasks.values()) if fixed else 1.0
        task = Task(
            name,
            dim=len(labels),
            kind=own.kind or "regression",
            loss=cast("Any", own.loss),
            beta=1.0 if own.beta is None else own.beta,
            weight=weight,
            activation=cast("Any", own.activation),
            unit=_unit(config, own, self.table),
            labels=labels if len(labels) > 1 or is_class else (),
        )
        if own.kind in ("ratio", "classification"):
            return task
        minimum = own.minimum if own.minimum is not None or own.auxiliary else self.table.minimum
        transform = TargetTransform(area=own.area, log1p=own.log1p)
        if own.standardize or (own.standardize is None and own.activation is None):
            transform = fitted(name, transform, self.targets[name][rows])
        task = replace(task, minimum=minimum, transform=None if transform == TargetTransform() else transform)
        if issubclass(head_class(config), DenseHead) and own.kind in (None, "regression"):
            return replace(task, kind="density", aggregate="mean")
        return task


def _tasks(config: TrainConfig, table: Table) -> dict[str, TaskConfig]:
    """The tasks of the table's columns: those of the config, and a default for every other target.

    A target that is the sum of others which are targets too is not a task: a composition derives it.
    """
    columns = {**table.targets, **table.auxiliary}
    tasks = {}
    for name, task in config.tasks.items():
        if task.kind in ("dense", "segmentation"):
            _check_options(name, task)
            continue  # its targets are masks
        task = replace(task, columns=task.columns or (name,))
        for column in task.columns:
            if column not in columns:
                hint = did_you_mean(column, columns)
                raise ConfigError(f"task {name!r} needs column {column!r}; there are {', '.join(columns)}.{hint}")
        words = [column for column in task.columns if column in table.classes]
        if task.kind in ("classification", None) and words:
            if len(task.columns) > 1:
                raise ConfigError(f"task {name!r} has columns {', '.join(task.columns)}; classes are one column")
            task = replace(task, kind="classification")
        elif task.kind == "classification":
            raise ConfigError(
                f"task {name!r} is a classification; its column {task.columns[0]!r} was read as numbers: list its "
                "classes in read_table(classes=)"
            )
        elif words:
            raise ConfigError(
                f"task {name!r} is of kind {task.kind!r}, for numbers; its column {words[0]!r} holds the classes "
                f"{', '.join(table.classes[words[0]][:5])}: leave the kind out, or write kind: classification"
            )
        _check_options(name, task)
        tasks[name] = task
    _refuse_shared(tasks)
    covered = {column for task in tasks.values() for column in task.columns}
    covered |= {column for own in config.compositions.values() for column in own.sums}
    for column in sorted(columns, key=lambda column: column in table.sums):  # sums follow their parts
        is_sum = set(table.sums.get(column, ("",))) <= {*tasks}
        if column not in covered and not is_sum:
            if column in config.tasks:
                raise ConfigError(
                    f"task {column!r} predicts other columns, and the target {column!r} needs a task of that name; "
                    "give one of them another name"
                )
            task = TaskConfig(columns=(column,), auxiliary=column in table.auxiliary)
            tasks[column] = replace(task, kind="classification") if column in table.classes else task
    return tasks


def _check_options(name: str, task: TaskConfig) -> None:
    """Refuse options that would change nothing for the task's kind, and columns that are too few or repeated."""
    scale = ("activation", "area", "log1p", "standardize")
    unused: dict[str | None, tuple[str, ...]] = {
        "classification": ("minimum", *scale),
        "ratio": ("minimum", *scale),
        "segmentation": ("minimum", "columns", "unit", "auxiliary", *scale),
        "dense": ("columns", "auxiliary", *scale),
    }
    default = TaskConfig()
    for option in unused.get(task.kind, ()):
        if getattr(task, option) != getattr(default, option):
            raise ConfigError(f"task {name!r} is of kind {task.kind!r}, which has no {option!r}; leave it out")
    if task.beta is not None and task.loss != "smooth_l1":
        raise ConfigError(f"task {name!r} has beta {task.beta:g}, which belongs to loss: smooth_l1; write both")
    if len(set(task.columns)) < len(task.columns):
        raise ConfigError(f"task {name!r} has columns {', '.join(task.columns)}; name each once")
    if task.kind == "ratio" and len(task.columns) < 2:
        raise ConfigError(f"task {name!r} is a ratio of {', '.join(task.columns)} alone; name two columns or more")


def _refuse_shared(tasks: Mapping[str, TaskConfig]) -> None:
    """Refuse a column that two tasks predict as it is: it would be scored for one of them only."""
    owner: dict[str, str] = {}
    for name, task in tasks.items():
        for column in () if task.kind == "ratio" else task.columns:
            if (other := owner.setdefault(column, name)) != name:
                raise ConfigError(f"tasks {other!r} and {name!r} both predict column {column!r}; leave it out of one")


def _targets(tasks: Mapping[str, TaskConfig], table: Table) -> dict[str, _Array]:
    """The values of all images of each task."""
    columns, targets = {**table.targets, **table.auxiliary}, {}
    for name, task in tasks.items():
        values = [columns[column] for column in task.columns]
        stacked = values[0] if len(values) == 1 else np.stack(values, axis=1)
        if task.kind == "ratio":
            if (stacked < 0).any():
                raise DataError(f"task {name!r} is a ratio of {', '.join(task.columns)}, which hold negative values")
            total = stacked.sum(axis=1, keepdims=True)
            stacked = np.where(total > 0, stacked / np.where(total > 0, total, 1.0), np.nan)
        targets[name] = stacked
    return targets


def _compositions(config: TrainConfig, tasks: Mapping[str, TaskConfig], table: Table) -> list[Composition]:
    """The compositions of the config, and the table's own sums of targets (total and ratio empty)."""
    covered = {column for own in config.compositions.values() for column in own.sums}
    covered |= {column for task in tasks.values() for column in task.columns}
    sums = {name: parts for name, parts in table.sums.items() if name in table.targets and name not in covered}
    own_sums = {name: CompositionConfig(sums={name: parts}) for name, parts in sums.items()}
    made = []
    for name, own in {**config.compositions, **own_sums}.items():
        adds = not (own.total or own.ratio)
        if not adds and (own.ratio not in tasks or own.total not in tasks):
            raise ConfigError(
                f"composition {name!r} has total {own.total!r} and ratio {own.ratio!r}; expected two of the tasks "
                f"{', '.join(tasks)}"
            )
        parts = tuple(dict.fromkeys(part for each in own.sums.values() for part in each))
        if adds and not parts:
            raise ConfigError(
                f"composition {name!r} is empty; write sums: {{COLUMN: [TASK, TASK]}} for columns that add up tasks, "
                "or total: TASK and ratio: TASK for the parts of a whole"
            )
        made.append(Composition(parts if adds else tasks[own.ratio].columns, own.sums, name, own.total, own.ratio))
    return made


def _columns(
    tasks: Mapping[str, TaskConfig], compositions: Sequence[Composition], table: Table
) -> dict[str, tuple[str, int]]:
    """Where the predictions of each target column of numbers are."""
    places: dict[str, tuple[str, int]] = {}
    for name, task in tasks.items():
        if task.kind not in ("classification", "ratio"):
            places |= {column: (name, i) for i, column in enumerate(task.columns)}
    for own in compositions:
        places |= {column: (own.name, i) for i, column in enumerate(own.names) if column not in places}
    shares = {column: (name, i) for name, task in tasks.items() for i, column in enumerate(task.columns)}
    places = {**{column: place for column, place in shares.items() if tasks[place[0]].kind == "ratio"}, **places}
    return {column: places[column] for column in table.targets if column in places}


def head_class(config: TrainConfig) -> type[Head]:
    """Return the class of the config's head; a neck's name stands for a pyramid head on that neck.

    Raises:
        RegistryError: if the name is not registered.
    """
    found = registry.resolve(head_type(config))
    return found if issubclass(found, Head) else PyramidHead


def head_type(config: TrainConfig) -> str:
    """Return the head's name: ``patch_mean`` where none is given, ``dense`` for masks."""
    return str(config.head.get("type") or ("dense" if config.data.labels else "patch_mean"))


def make_head(
    config: TrainConfig, tokens: Tokens, tasks: Sequence[Task], compositions: Sequence[Composition] = ()
) -> Head:
    """Return a new head of the config for such tokens.

    Arguments of its constructor that follow from tokens and tasks (``embed_dim``, ``tasks``, ``num_layers``,
    ``layer_indices``, ``patch_size``, ``num_patches``, ``compositions``) are filled in where the config has none.

    Raises:
        ConfigError: if an argument is unknown, or the head does not fit the tokens or tasks.
    """
    options, cls = {**config.head}, head_class(config)
    options.pop("type", None)
    if cls is LinearHead and config.data.labels:
        options.setdefault("pool", None)
    if registry.resolve(head_type(config)) is not cls:
        options = {"neck": {"type": head_type(config), **options}}
    rows, cols = patch_pair(tokens.patch_size)
    known: dict[str, Any] = {
        "embed_dim": tokens.sequence[0].shape[-1],
        "tasks": tasks,
        "num_layers": len(tokens.sequence),
        "layer_indices": tokens.layers,
        "patch_size": rows if rows == cols else (rows, cols),
        "num_patches": {"resized": tuple(tokens.grid), "query": None}.get(options.get("mode", ""), tokens.grid.count),
        "compositions": compositions,
    }
    neck = options.get("neck")
    if isinstance(neck, Mapping) and "type" in neck:
        own = _filled(registry.resolve(neck["type"]), {name: neck[name] for name in neck if name != "type"}, known)
        options["neck"] = {"type": neck["type"], **own}
    arguments = _filled(cls, options, known)
    if compositions and "compositions" not in arguments:
        names = [name for own in compositions for name in own.names]
        raise ConfigError(
            f"{cls.__name__} takes no compositions, which predict {', '.join(names)}: add the argument compositions: "
            "Sequence[Composition] = () to its __init__ and pass it to _set_tasks, or leave those targets out"
        )
    return cls(**arguments)


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


def _unit(config: TrainConfig, task: TaskConfig, table: Table) -> str:
    if task.unit is not None or task.kind in ("ratio", "classification"):
        return task.unit or ""
    return "" if task.auxiliary else table.units.get(task.columns[0], config.data.unit)
