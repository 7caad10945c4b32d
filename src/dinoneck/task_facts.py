"""What tables, pictures and files have to know of a task: its outputs, their names and their kind, without torch.

:class:`dinoneck.Task` is one, and so is the record of a task in an exported file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, NamedTuple, TypeVar

import numpy as np

from dinoneck.intervals import prediction_set
from dinoneck.kinds import (
    CATEGORICAL_KINDS,
    CLASS_KINDS,
    LABEL_KINDS,
    MAP_KINDS,
    MASK_KINDS,
    PROBABILITY_KINDS,
    Kind,
)
from dinoneck.task_intervals import HIGH, INTERVAL_KINDS, LOW, SET, Interval

Floats = np.ndarray[Any, np.dtype[np.float64]]
Activation = Literal["relu", "softplus", "sigmoid", "unit"]
Aggregate = Literal["sum", "mean"]

TABLE_COLUMNS = ("image", "images", "labels", "group", "fold")
"""Columns of tables of predictions and truth beside those of the tasks."""
MAP, CLASSES, MASKS, GATE = ".map", ".classes", ".masks", "gate"
"""What follows a task's name in the names of its map and of what queries give, and the output of a gate.

The names of tasks leave them free.
"""
DEFAULT_THRESHOLD = 0.5
"""The probability from which on an image has a label, where the task states no thresholds."""
ROW_LABELS = "labels"
"""What the prediction of an image calls the labels that it has, by ``multilabel`` task."""
NO_LABELS = "none"
"""The word, in any case, that a table has for an image with none of the labels; an empty cell is unknown."""
SHORTEST_VECTOR = 1e-12
"""A surface normal that is shorter has no direction, as in ``torch.nn.functional.normalize``."""


class TaskFacts:
    """What follows from the name, the kind and the outputs of a task.

    Attributes:
        name: the key of its prediction.
        dim: number of outputs.
        kind: what is predicted.
        unit: of the values.
        labels: names of the outputs or classes; empty if they have none.
        aggregate: how the cells of a ``density`` map make the image's value.
        from_map: the task whose map's mean is its value; None if it has a readout.
        shares: whether the outputs of a ``dense`` task are the shares of classes.
        minimum: predictions are never below it; None: no bound.
        maximum: predictions are never above it.
        activation: of the outputs; ``"unit"`` makes surface normals of a ``dense`` task.
        things: of a ``panoptic`` task, the labels whose objects are told apart.
        interval: how far predictions are from the truth: one for each output, of classes one; empty
            where that is not known.
        thresholds: of a ``multilabel`` task, the probability of each label from which on an image
            has it; empty: 0.5 for all. Of ``instances`` the smallest score of the objects of each
            label; empty: ``minimum`` for all.
    """

    name: str
    dim: int
    kind: Kind
    unit: str
    labels: tuple[str, ...]
    aggregate: Aggregate
    from_map: str | None
    shares: bool
    minimum: float | None
    maximum: float | None
    activation: Activation | None
    things: tuple[str, ...]
    interval: Sequence[Interval]
    thresholds: tuple[float, ...]

    @property
    def is_categorical(self) -> bool:
        """Whether outputs are class logits."""
        return self.kind in CATEGORICAL_KINDS

    @property
    def is_image_class(self) -> bool:
        """Whether outputs are the classes of an image, which has one of them."""
        return self.kind in CLASS_KINDS

    @property
    def is_multilabel(self) -> bool:
        """Whether outputs are the labels of an image, which may have any number of them."""
        return self.kind in LABEL_KINDS

    @property
    def label_thresholds(self) -> tuple[float, ...]:
        """The probability of each label from which on an image has it."""
        return self.thresholds or (DEFAULT_THRESHOLD,) * self.dim

    def labels_above(self, probabilities: Sequence[float]) -> tuple[str, ...]:
        """Return the labels whose probabilities (dim,) reach their thresholds, in the task's order."""
        labels = []
        thresholds = self.label_thresholds
        for label, probability, threshold in zip(
            self.labels, probabilities, thresholds, strict=True
        ):
            if float(probability) >= threshold:  # float32 would round the threshold
                labels.append(label)
        return tuple(labels)

    @property
    def least_score(self) -> float | tuple[float, ...] | None:
        """Of objects, the smallest score of those that are predicted: one, or one for each label; None: the head's."""
        return self.thresholds or self.minimum

    @property
    def is_probability(self) -> bool:
        """Whether outputs are logits whose softmax is probabilities of classes, or parts of a whole."""
        return self.kind in PROBABILITY_KINDS

    @property
    def is_share(self) -> bool:
        """Whether outputs are parts of one whole, from 0 to 1: shares or probabilities."""
        return self.shares or self.is_probability

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the outputs: the task's name, or ``name:label`` where there are several.

        Those of a ``multilabel`` task are ``name:label`` also where there is one.
        """
        if self.dim == 1 and not self.is_multilabel:
            return (self.name,)
        return tuple(f"{self.name}:{label}" for label in self.labels or range(self.dim))

    @property
    def is_masks(self) -> bool:
        """Whether outputs are classes and masks of queries, not a tensor of the task's name."""
        return self.kind in MASK_KINDS

    @property
    def is_map(self) -> bool:
        """Whether outputs are maps, (B, dim, rows, cols); those of other kinds are (B, dim)."""
        return self.kind in MAP_KINDS

    @property
    def is_unit(self) -> bool:
        """Whether outputs are maps of surface normals, vectors of length 1."""
        return self.activation == "unit"

    @property
    def has_values(self) -> bool:
        """Whether an image has numbers of the task: not of objects, nor of surface normals, which are maps alone."""
        return not (self.is_masks or self.is_unit)

    @property
    def interval_levels(self) -> tuple[float, ...]:
        """The levels at which an output has an interval, or an image a prediction set; ascending."""
        levels: set[float] = set()
        for interval in self.interval:
            levels.update(interval.levels)
        return tuple(sorted(levels))

    def bounds(self, values: Any, level: float) -> tuple[Floats, Floats]:
        """Return the lower and the upper ends of the intervals of predictions, within ``minimum`` and ``maximum``.

        Parts of a whole are 0 to 1.

        Args:
            values: (dim,) in original units.
            level: one of :attr:`interval_levels`.

        Returns:
            Both (dim,), NaN for outputs without an interval at this level.
        """
        half_widths = np.array([interval.half_width(level) for interval in self.interval])
        predicted = np.asarray(values, np.float64).reshape(-1)
        smallest = 0.0 if self.is_probability else self.minimum
        largest = 1.0 if self.is_probability else self.maximum
        low = predicted - half_widths
        high = predicted + half_widths
        if smallest is not None:
            low = np.maximum(low, smallest)
        if largest is not None:
            high = np.minimum(high, largest)
        return low, high

    def prediction_set(self, probabilities: Any, level: float) -> list[str]:
        """Return the labels that the class of an image is among, the likeliest first.

        Args:
            probabilities: (dim,) of the classes.
            level: one of :attr:`interval_levels`.
        """
        [interval] = self.interval
        classes = prediction_set(probabilities, interval.half_width(level))
        return [output_name(self, number) for number in classes]


@dataclass(frozen=True, kw_only=True)
class TaskRecord(TaskFacts):
    """A task without what trains it: what an exported file states of it.

    Args:
        name: the key of its prediction.
        dim: number of outputs.
        kind: what is predicted.
        unit: of the values.
        labels: names of the outputs or classes.
        aggregate: how the cells of a ``density`` map make the image's value.
        from_map: the task whose map's mean is its value.
        shares: whether the outputs of a ``dense`` task are the shares of classes.
        minimum: predictions are never below it.
        maximum: predictions are never above it.
        activation: of the outputs.
        thresholds: of the labels of a task of labels or of instances.
        things: of a ``panoptic`` task, the labels whose objects are told apart.
        composed_of: the tasks that the outputs of a composition are sums or shares of; empty for
            another task. Its columns are its labels alone.
        interval: how far predictions are from the truth.
    """

    name: str
    dim: int = 1
    kind: Kind = "regression"
    unit: str = ""
    labels: tuple[str, ...] = ()
    aggregate: Aggregate = "sum"
    from_map: str | None = None
    shares: bool = False
    minimum: float | None = None
    maximum: float | None = None
    activation: Activation | None = None
    thresholds: tuple[float, ...] = ()
    things: tuple[str, ...] = ()
    composed_of: tuple[str, ...] = ()
    interval: tuple[Interval, ...] = ()

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the outputs; of a composition without its own."""
        return self.labels if self.composed_of else super().columns


GATE_WEIGHTS = TaskRecord(name="the gate", kind="density")
"""The gate as a map: weights, which add up over an image."""

AnyTask = TypeVar("AnyTask", bound=TaskFacts)


def as_tasks(tasks: AnyTask | Sequence[AnyTask]) -> tuple[AnyTask, ...]:
    """Return tasks as a tuple; a single task is a tuple of one."""
    return (tasks,) if isinstance(tasks, TaskFacts) else tuple(tasks)


def labels_of(tasks: Sequence[TaskFacts], values: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return ``multilabel`` task -> the labels of an image, those whose probability reaches their threshold.

    Args:
        tasks: what is predicted.
        values: task -> a number, or an array (dim,).
    """
    labels = {}
    for task in tasks:
        if task.is_multilabel:
            value = values[task.name]
            probabilities = list(value) if hasattr(value, "__len__") else [value]
            labels[task.name] = list(task.labels_above(probabilities))
    return labels


def output_name(task: TaskFacts, place: int) -> str:
    """Return what an output or a class of a task is called: its label, or its number where there are no labels."""
    return task.labels[place] if task.labels else str(place)


def output_names(task: TaskFacts) -> tuple[str, ...]:
    """Return :func:`output_name` of all outputs."""
    return task.labels or tuple(str(place) for place in range(task.dim))


def describe_tasks(tasks: Sequence[TaskFacts]) -> str:
    """Return tasks in one line for people: ``mass (regression, g), crop (classification of 3)``."""
    described = []
    for task in tasks:
        about = task.kind if task.dim == 1 else f"{task.kind} of {task.dim}"
        if task.unit:
            about += f", {task.unit}"
        described.append(f"{task.name} ({about})")
    return ", ".join(described)


class Column(NamedTuple, Generic[AnyTask]):
    """One number that tables and pictures have for an image.

    Attributes:
        name: what they call it.
        task: whose output it is.
        place: which of the task's outputs.
    """

    name: str
    task: AnyTask
    place: int


def columns_of(tasks: Sequence[AnyTask]) -> list[Column[AnyTask]]:
    """Return what tables and pictures call the outputs of tasks, each number once.

    The columns of a task are :attr:`TaskFacts.columns`. A map with several outputs (``dense``,
    ``segmentation``) has one column per label, called by the label alone. It is called
    ``task label`` where the label is a number, or another column has its name, also one of
    :data:`TABLE_COLUMNS`. An output that is another task's number (``from_map``) has no column of
    its own. Objects and surface normals have no columns.
    """
    columns: list[Column[AnyTask]] = []
    for task in tasks:
        if not task.has_values:
            continue
        labels = output_names(task)
        means = [other.name for other in tasks if other.from_map == task.name]
        for place, (name, label) in enumerate(zip(task.columns, labels, strict=True)):
            if means and (task.dim == 1 or label in means):
                continue
            if _is_called_by_label(task):
                name = label
            columns.append(Column(name, task, place))
    counts = Counter(column.name for column in columns)
    counts.update(TABLE_COLUMNS)
    counts.update(task.name for task in tasks if task.is_image_class or task.is_multilabel)
    for i, column in enumerate(columns):
        is_ambiguous = counts[column.name] > 1 or column.name.isdecimal()
        if _is_called_by_label(column.task) and is_ambiguous:
            columns[i] = column._replace(name=f"{column.task.name} {column.name}")
    return columns


def cell_target_names(task: TaskFacts) -> list[str]:
    """Return what reports call the outputs of a dense task: ``task label``, a single one as the task."""
    if task.dim == 1:
        return [task.name]
    return [f"{task.name} {label}" for label in task.labels or range(task.dim)]


def _is_called_by_label(task: TaskFacts) -> bool:
    """Whether the columns of a task are called by the labels of a map."""
    return task.is_map and task.dim > 1


def columns_of_intervals(tasks: Sequence[TaskFacts]) -> dict[str, str]:
    """Return the columns of intervals in tables of predictions: name -> the column, or the class, that it is of.

    They are the bounds of a number and the prediction set of a class, whether or not their intervals
    are known.
    """
    names = {}
    for column in columns_of(tasks):
        if column.task.is_image_class:
            names[f"{column.task.name}{SET}"] = column.task.name
        elif column.task.kind in INTERVAL_KINDS:
            names[f"{column.name}{LOW}"] = column.name
            names[f"{column.name}{HIGH}"] = column.name
    return names


def named_as_interval(tasks: Sequence[TaskFacts]) -> str | None:
    """Return a column of predictions that is called as one of :func:`columns_of_intervals`; None if none is."""
    names = {column.name for column in columns_of(tasks)}
    names.update(task.name for task in tasks)
    return next((name for name in columns_of_intervals(tasks) if name in names), None)
