"""What each task of a run learns: its description, its values, and what follows from its kind.

Each decision by the kind of a task is one function of this file: :func:`_default_kind`,
:func:`_check_content`, :func:`_check_options`, :func:`read_columns` and :func:`_default_options`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dinoneck.data.arrays import Array
from dinoneck.data.table import Classes, LabelSets, Table
from dinoneck.errors import ConfigError, DataError
from dinoneck.kinds import CLASS_KINDS, LABEL_KINDS, PROBABILITY_KINDS
from dinoneck.tasks import Kind, TargetTransform, Task
from dinoneck.text import did_you_mean
from dinoneck.training.config import TaskConfig, TrainConfig
from dinoneck.training.masks import Maps
from dinoneck.training.sums import warn_of_sums_of_shares
from dinoneck.training.table import column_tasks

# of a task's description, those that a task has under the same name
_TASK_FIELDS = (
    "kind",
    "loss",
    "beta",
    "weight",
    "activation",
    "unit",
    "minimum",
    "maximum",
    "from_map",
)


@dataclass(frozen=True)
class LearnedTask:
    """A task as the config describes it, and what the table holds of it; n images.

    Attributes:
        name: of the task.
        spec: its description; the kind is set.
        labels: names of the classes or outputs; none for a single number.
        values: in original units: numbers (n,) or (n, outputs) in float64, class indices (n,) in
            int64, labels 0 and 1 (n, labels) in float64, or maps (n, outputs, rows, cols) in
            float32. NaN or -1 is missing.
    """

    name: str
    spec: TaskConfig
    labels: tuple[str, ...]
    values: Tensor

    @property
    def num_outputs(self) -> int:
        """The number of the task's outputs, of classes one for each."""
        if self.values.ndim > 1:
            return self.values.shape[1]
        return max(len(self.labels), 1)


LearnedTasks = Mapping[str, LearnedTask]
"""The tasks of a run by their names."""


# what the tasks are


def column_specs(config: TrainConfig, table: Table) -> dict[str, TaskConfig]:
    """Return the descriptions of the tasks of the table's columns, with their kinds.

    Raises:
        ConfigError: if a column does not exist, is predicted by two tasks, or holds values of
            another kind; if a task has an option that its kind has not.
    """
    specs = {}
    task_of_column: dict[str, str] = {}
    for name, spec in column_tasks(config, table.columns).items():
        _check_columns(name, spec, list(table.columns), task_of_column)
        kind = spec.kind or _default_kind(spec.columns[0], table)
        _check_content(name, kind, spec.columns, table)
        _check_options(name, kind, spec)
        # a ratio may share its columns with tasks that predict them on their own
        if kind != "ratio":
            for column in spec.columns:
                task_of_column[column] = name
        specs[name] = spec.changed(kind=kind)
    return specs


def map_spec(
    config: TrainConfig, name: str, kind: str, specs_of_columns: Mapping[str, TaskConfig]
) -> TaskConfig:
    """Return the description of the task of the masks.

    Args:
        config: the run.
        name: of the task.
        kind: ``dense`` or ``segmentation``.
        specs_of_columns: of :func:`column_specs`; no task of columns has this name.

    Raises:
        ConfigError: if the task has the name of another one, or an option that its kind has not.
    """
    if name in specs_of_columns:
        raise ConfigError(
            f"task {name!r} is of the masks, and a column has its name; rename the task"
        )
    spec = config.tasks.get(name, TaskConfig()).changed(kind=kind)
    if spec.columns or spec.auxiliary:
        raise ConfigError(
            f"the targets of task {name!r} are masks; leave out columns and auxiliary"
        )
    _check_options(name, kind, spec)
    if config.data.label_kind == "normals":
        return _spec_of_normals(name, spec)
    if spec.activation == "unit":
        raise ConfigError(
            f"task {name!r} has the activation 'unit', of surface normals, and data.label_kind is "
            f"{config.data.label_kind!r}; write label_kind: normals (--label-kind normals), or leave "
            "the activation out"
        )
    return spec


def _spec_of_normals(name: str, spec: TaskConfig) -> TaskConfig:
    """The description of a task of surface normals, whose activation is that of vectors of length 1."""
    if spec.activation not in (None, "unit"):
        raise ConfigError(
            f"task {name!r} has the activation {spec.activation!r}, and data.label_kind is 'normals', "
            "whose activation is 'unit'; leave it out"
        )
    for option in ("area", "log1p"):
        if is_stated(spec, option):
            raise ConfigError(
                f"task {name!r} is of surface normals, which have no {option!r}; leave it out"
            )
    return spec.changed(activation="unit")


def is_stated(spec: TaskConfig, option: str) -> bool:
    """Return whether a description has a value for an option that is None or off by default."""
    return getattr(spec, option) not in (None, False)


def _check_columns(
    name: str, spec: TaskConfig, existing: Sequence[str], task_of_column: Mapping[str, str]
) -> None:
    """Check that the columns of a task exist, are named once and are not another task's."""
    missing = [column for column in spec.columns if column not in existing]
    if missing:
        hint = did_you_mean(missing[0], existing)
        raise ConfigError(
            f"task {name!r} needs column {missing[0]!r}; there are {', '.join(existing)}.{hint}"
        )
    for column in spec.columns:
        if spec.columns.count(column) > 1:
            raise ConfigError(f"task {name!r} has the column {column!r} twice; name it once")
        if spec.kind != "ratio" and column in task_of_column:
            raise ConfigError(
                f"tasks {task_of_column[column]!r} and {name!r} both predict column {column!r}; "
                "leave it out of one of them"
            )


def _default_kind(column: str, table: Table) -> Kind:
    """The kind of a task whose description has none: by the content of its first column."""
    if isinstance(table.columns[column], LabelSets):
        return "multilabel"
    if table.class_names(column):
        return "classification"
    return "regression"


def _check_content(name: str, kind: str, columns: Sequence[str], table: Table) -> None:
    """Check that columns hold what a task of this kind learns.

    Classes are one column of words, a number is one column or several, and a ratio needs two.
    """
    if kind == "ratio" and len(columns) < 2:
        raise ConfigError(
            f"task {name!r} is a ratio of {columns[0]!r} alone; name two columns or more"
        )
    if kind in LABEL_KINDS:
        _check_label_columns(name, columns, table)
        return
    for column in columns:
        if isinstance(table.columns[column], LabelSets):
            raise ConfigError(
                f"task {name!r} is of kind {kind!r}, and its column {column!r} holds several labels "
                "an image; write kind: multilabel"
            )
        words = table.class_names(column)
        if kind in CLASS_KINDS and not words:
            raise ConfigError(
                f"task {name!r} is of kind {kind!r}, and its column {column!r} holds "
                "numbers; leave the kind out, or write classes as words"
            )
        if kind not in CLASS_KINDS and words:
            raise ConfigError(
                f"task {name!r} is of kind {kind!r}, for numbers, and its column {column!r} holds "
                f"the classes {', '.join(map(str, words[:5]))}; leave the kind out, or write kind: "
                "classification"
            )
    if kind in CLASS_KINDS and len(columns) > 1:
        raise ConfigError(
            f"task {name!r} has the columns {', '.join(columns)}; classes are one column: make a "
            "task of each"
        )


def _check_label_columns(name: str, columns: Sequence[str], table: Table) -> None:
    """Check that the columns of a task of labels are one of words, or each the 0 and 1 of a label."""
    if isinstance(table.columns[columns[0]], LabelSets):
        if len(columns) > 1:
            raise ConfigError(
                f"task {name!r} has the columns {', '.join(columns)}, and {columns[0]!r} holds words; "
                "labels are one column of words, or columns of 0 and 1: make a task of each"
            )
        return
    for column in columns:
        if isinstance(table.columns[column], LabelSets) or table.class_names(column):
            raise ConfigError(
                f"task {name!r} has the columns {', '.join(columns)}, and {column!r} holds words; "
                "expected 0 and 1 in each of several columns of labels, or one column of words"
            )


def _check_options(name: str, kind: str, spec: TaskConfig) -> None:
    """Check that a task whose outputs are probabilities has no option of numbers."""
    if kind not in (*PROBABILITY_KINDS, *LABEL_KINDS):
        return
    for option in ("area", "log1p", "activation", "minimum", "maximum"):
        if is_stated(spec, option):
            raise ConfigError(
                f"task {name!r} is of kind {kind!r}, whose outputs are probabilities, and has no "
                f"{option!r}; leave it out"
            )


# their values


def read_columns(name: str, spec: TaskConfig, table: Table) -> LearnedTask:
    """Return a task of columns with its labels and values.

    Args:
        name: of the task.
        spec: of :func:`column_specs`.
        table: with its columns.

    Raises:
        ConfigError: if classes are numbers.
        DataError: if a column holds no numbers, or negative ones for a ratio.
    """
    labels: tuple[str, ...]
    if spec.kind in CLASS_KINDS:
        classes = table.classes(spec.columns[0])
        labels = _class_labels(name, classes)
        values = classes.codes
    elif spec.kind in LABEL_KINDS:
        labels, values = read_labels(name, spec.columns, table)
    elif spec.kind == "ratio":
        labels = spec.columns
        values = _shares(name, spec.columns, table)
    elif len(spec.columns) > 1:
        labels = spec.columns
        values = _numbers(spec.columns, table)
    else:
        labels = ()
        values = _numbers(spec.columns, table)[:, 0]
    return LearnedTask(name, spec, labels=labels, values=torch.from_numpy(values))


def _class_labels(name: str, classes: Classes) -> tuple[str, ...]:
    """The labels of a task of classes, which are texts."""
    labels = tuple(label for label in classes.names if isinstance(label, str))
    if len(labels) < len(classes.names):
        raise ConfigError(f"Task {name!r}: labels is {classes.names}; expected a list of texts")
    return labels


def read_labels(name: str, columns: Sequence[str], table: Table) -> tuple[tuple[str, ...], Array]:
    """Return the labels of images, of one column of words or of a column of 0 and 1 for each.

    Args:
        name: of the task.
        columns: of the table.
        table: with these columns.

    Returns:
        The K labels, and (n, K) in float64: 1 where an image has a label, 0 where it has not, NaN
        where that is unknown.

    Raises:
        DataError: for other values than 0 and 1.
    """
    words = table.columns[columns[0]]
    if isinstance(words, LabelSets):
        return words.names, words.indicators()
    numbers = _numbers(columns, table)
    is_wrong = ~(np.isnan(numbers) | (numbers == 0) | (numbers == 1))
    if is_wrong.any():
        row, column = np.argwhere(is_wrong)[0]
        raise DataError(
            f"task {name!r}: {columns[column]} of {table.ids[row]!r} is {numbers[row, column]:g}; "
            "expected 1 where an image has the label, 0 where it has not, and an empty cell where "
            "that is unknown"
        )
    return tuple(columns), numbers


def _numbers(columns: Sequence[str], table: Table) -> Array:
    """The numbers of columns, (n, columns) in float64."""
    return np.stack([table.numbers(column) for column in columns], axis=1)


def _shares(name: str, columns: Sequence[str], table: Table) -> Array:
    """The columns as shares of their sum, (n, columns) in float64; of a sum of 0 they are NaN."""
    amounts = _numbers(columns, table)
    # the shares of two negative values would be positive
    is_negative = (amounts < 0).any(axis=1)
    if is_negative.any():
        row_id = table.ids[int(np.argmax(is_negative))]
        raise DataError(
            f"task {name!r} is a ratio of {', '.join(columns)}, and a value of {row_id!r} is negative; "
            "correct it"
        )
    warn_of_sums_of_shares(name, columns, amounts)
    with np.errstate(divide="ignore", invalid="ignore"):
        shares: Array = amounts / amounts.sum(axis=1, keepdims=True)
    return shares


# the tasks of a head


def build_task(
    config: TrainConfig, task: LearnedTask, learned: LearnedTasks, maps: Maps | None
) -> Task:
    """Return a task as it is described, with defaults for what is not; its transform is not fitted yet.

    Args:
        config: the run.
        task: what is learned.
        learned: all tasks of the run.
        maps: the masks of the run; None without.

    Raises:
        ConfigError: if options contradict each other.
    """
    spec = task.spec
    if spec.beta is not None and spec.loss != "smooth_l1":
        raise ConfigError(
            f"task {task.name!r} has beta {spec.beta:g}, which belongs to loss: smooth_l1; write "
            "both"
        )
    options: dict[str, Any] = {"dim": task.num_outputs}
    options |= _default_weight(config, task, learned, maps)
    options |= _default_options(config, task, learned)
    for field in _TASK_FIELDS:
        value = getattr(spec, field)
        if value is not None:
            options[field] = value
    if spec.area is not None or spec.log1p:
        options["transform"] = TargetTransform(area=spec.area, log1p=spec.log1p)
    return Task(task.name, labels=task.labels, **options)


def _default_weight(
    config: TrainConfig, task: LearnedTask, learned: LearnedTasks, maps: Maps | None
) -> dict[str, Any]:
    """The weight of a task's loss where its description has none; empty: the weight of every task, 1."""
    if maps is not None and task.spec.from_map is not None:
        # the map's own loss trains it; a loss of the mean too made the numbers of crop images worse
        first_output = task.values.reshape(len(task.values), -1)[:, 0]
        has_mask = maps.weight.flatten(1).any(dim=1)
        has_number_alone = first_output.isfinite() & ~has_mask
        return {"weight": (float(has_number_alone.any()),)}
    if task.spec.auxiliary and config.losses.weighting == "fixed":
        num_auxiliary = sum(other.spec.auxiliary for other in learned.values())
        return {"weight": config.losses.aux_weight / num_auxiliary}
    return {}


def _default_options(
    config: TrainConfig, task: LearnedTask, learned: LearnedTasks
) -> dict[str, Any]:
    """The unit, the bounds and the shares of a kind, where the task's description has none."""
    data = config.data
    kind = task.spec.kind
    if kind in ("regression", "density") and not task.spec.auxiliary:
        return {"unit": data.unit, "minimum": data.minimum, "maximum": data.maximum}
    if kind == "dense" and task.spec.activation == "unit":
        return {}
    if kind == "dense":
        averaged_maps = [other.spec.from_map for other in learned.values()]
        is_share = len(task.labels) > 0
        if task.name in averaged_maps:  # the mean of clipped patches is not that of the image
            return {"shares": is_share, "minimum": None, "maximum": None}
        return {"shares": is_share, "minimum": data.minimum, "maximum": data.maximum}
    return {}
