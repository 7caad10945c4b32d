"""What a head predicts: a Task, declared once and used by heads, losses, metrics and checkpoints.

Three spaces are kept apart. *Natural units* are what people measure (grams, a class name). *Model space* is
what a head outputs and a loss compares: original units after the task's :class:`TargetTransform`.
``Task.predict`` converts normalised units to original units, ``Task.predict_map`` does so for maps.
"""

from __future__ import annotations

import numbers
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from dinoneck.errors import ConfigError, ShapeError, did_you_mean
from dinoneck.transforms import TargetTransform as TargetTransform
from dinoneck.transforms import each, read_numbers

Kind = Literal["regression", "ratio", "classification", "dense", "density", "segmentation", "instances", "panoptic"]
Activation = Literal["relu", "softplus", "sigmoid"]
Loss = Literal["mse", "smooth_l1", "cross_entropy"]
Aggregate = Literal["sum", "mean"]

_LOSSES: dict[str, tuple[str, ...]] = {
    "regression": ("mse", "smooth_l1"),
    "ratio": ("mse",),
    "classification": ("cross_entropy",),
    "dense": ("mse", "smooth_l1"),
    "density": ("mse", "smooth_l1"),
    "segmentation": ("cross_entropy",),
    "instances": ("cross_entropy",),
    "panoptic": ("cross_entropy",),
}
_LONGEST_NAME = 64
MAP, CLASSES, MASKS, GATE = ".map", ".classes", ".masks", "gate"
"""What follows a task's name in the names of its map and of what queries give, and the output of a gate.

The names of tasks leave them free."""


def activate(x: Tensor, activation: str | None) -> Tensor:
    """Apply a task's activation; None is the identity."""
    if activation is None:
        return x
    functions: dict[str, Callable[[Tensor], Tensor]] = {
        "relu": F.relu,
        "softplus": F.softplus,
        "sigmoid": torch.sigmoid,
    }
    return functions[activation](x)


@dataclass(frozen=True)
class Task:
    """One named prediction of a head.

    Args:
        name: the key of the head's output and its column in tables: 1 to 64 printable characters, such as
            ``"crop cover (%)"``, without blanks at its ends and without ``:``, which separates a column's label.
        dim: number of outputs (classes for the classifying kinds).
        kind: ``regression``; ``ratio`` (parts of a whole: softmax over outputs); ``classification``;
            ``dense`` (a value per cell); ``density`` (a map that sums to the image's value); ``segmentation``;
            ``instances`` (objects with class and mask); ``panoptic`` (segments of things and stuff).
        activation: ``relu``, ``softplus``, ``sigmoid`` or None, applied in normalised units.
        loss: ``mse``, ``smooth_l1`` or ``cross_entropy``; None = the kind's own (mse, for classes
            cross_entropy).
        weight: of the task in the total loss, or one per output (not for classes, which share one loss).
        beta: where ``smooth_l1`` turns from square to linear.
        transform: original units <-> normalised units.
        unit: of the natural values, for people (``"g"``).
        labels: names of the outputs or classes.
        ignore_index: a class label that counts for nothing.
        minimum: predictions in original units are never below it (0 for a mass). It holds for images and for
            ``dense`` cells, not for the cells of a ``density`` map, which would no longer add up.
        maximum: predictions in original units are never above it; for the same values as ``minimum``.
        aggregate: how the cells of a ``density`` map make the image's value, ``sum`` or ``mean``.
        from_map: name of a dense or segmentation task of the same head: the image's value is the mean over that
            map's cells of the output labelled with this task's name, in original units; None = a readout of its own.
            The map has no ``minimum`` or ``maximum``, since a mean of clipped cells is biased; this task may have them.
        shares: whether the outputs of a ``dense`` task are the shares of classes in a cell, 0 to 1 of one whole.
            Pictures draw them so; predictions are not clipped.

        things: of a panoptic task, the labels whose objects are counted one by one; the others are stuff.

    Raises:
        ConfigError: if a value is out of range or does not fit the others.

    Examples:
        >>> Task("mass", unit="g", minimum=0).default_loss
        'mse'
        >>> cover = Task("mass", kind="density", transform=TargetTransform(mean=6.0, std=2.0))
        >>> cells = torch.tensor([[[[0.5, 1.5]]]])
        >>> cover.natural_map(cells).sum().item() == cover.natural(cells.sum()[None]).item() == 10.0
        True
    """

    name: str
    dim: int = 1
    kind: Kind = "regression"
    activation: Activation | None = None
    loss: Loss | None = None
    weight: float | tuple[float, ...] = 1.0
    beta: float = 1.0
    transform: TargetTransform | None = None
    unit: str = ""
    labels: tuple[str, ...] = ()
    ignore_index: int | None = None
    minimum: float | None = None
    aggregate: Aggregate = "sum"
    from_map: str | None = None
    shares: bool = False
    maximum: float | None = None
    things: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_name(self.name)
        where = f"Task {self.name!r}: "
        if isinstance(self.dim, bool) or not isinstance(self.dim, numbers.Integral) or self.dim < 1:
            raise ConfigError(f"{where}dim is {self.dim!r}; expected an integer of 1 or more")
        object.__setattr__(self, "dim", int(self.dim))
        choices = {"kind": Kind, "activation": Activation, "loss": Loss, "aggregate": Aggregate}
        for field, allowed in choices.items():
            _one_of(where + field, getattr(self, field), get_args(allowed), optional=field in ("activation", "loss"))
        if self.loss is not None and self.loss not in _LOSSES[self.kind]:
            raise ConfigError(f"{where}loss {self.loss!r} does not fit kind {self.kind!r}; use {_LOSSES[self.kind]}")
        for field in ("weight", "beta", "minimum", "maximum"):
            object.__setattr__(self, field, read_numbers(getattr(self, field), where + field))
        if self.weight is None or any(value < 0 for value in each(self.weight)):
            raise ConfigError(f"{where}weight is {self.weight!r}; expected numbers of 0 or more")
        object.__setattr__(self, "labels", tuple(self.labels or ()))
        object.__setattr__(self, "things", tuple(self.things or ()))
        self._check_fit(where)

    def _check_fit(self, where: str) -> None:
        if isinstance(self.weight, tuple) and len(self.weight) != self.dim:
            raise ConfigError(f"{where}weight has {len(self.weight)} entries for {self.dim} outputs")
        if isinstance(self.weight, tuple) and self.is_categorical:
            raise ConfigError(f"{where}weight is {self.weight!r}; classes share one loss, so it takes one number")
        if not isinstance(self.beta, float) or self.beta <= 0:
            raise ConfigError(f"{where}beta is {self.beta!r}; expected a positive number")
        for field, bound in (("minimum", self.minimum), ("maximum", self.maximum)):
            if isinstance(bound, tuple) or abs(bound or 0.0) > torch.finfo(torch.float32).max:
                raise ConfigError(f"{where}{field} is {bound!r}; expected one number within float32, or None")
        if None not in (self.minimum, self.maximum) and self.minimum > self.maximum:  # type: ignore[operator]
            raise ConfigError(f"{where}minimum is {self.minimum:g} and maximum {self.maximum:g}; exchange them")
        if self.transform is not None and not isinstance(self.transform, TargetTransform):
            raise ConfigError(f"{where}transform is {self.transform!r}; expected a TargetTransform or None")
        if self.transform is not None and self.transform.outputs not in (None, self.dim):
            raise ConfigError(
                f"{where}transform was fitted on {self.transform.outputs} outputs; the task has {self.dim}"
            )
        if self.kind != "density" and self.aggregate != "sum":
            raise ConfigError(f"{where}aggregate is {self.aggregate!r}; only tasks of kind 'density' aggregate a map")
        if self.from_map is not None and (self.kind != "regression" or self.dim > 1 or self.activation is not None):
            raise ConfigError(f"{where}from_map is for regression tasks of one output without activation")
        if not isinstance(self.shares, bool) or (self.shares and self.kind != "dense"):
            raise ConfigError(
                f"{where}shares is {self.shares!r} for kind {self.kind!r}; expected False, or True for kind 'dense'"
            )
        by_cells = self.kind == "density" or self.from_map is not None
        if by_cells and self.transform is not None and not self.transform.is_affine:
            raise ConfigError(
                f"{where}transform has log1p; the image's value is the sum or mean of its cells, which logarithms do "
                "not keep. Use a transform without log1p, or kind 'regression' without from_map"
            )
        if self.is_categorical or self.kind == "ratio":
            given = [
                name for name in ("transform", "activation", "minimum", "maximum") if getattr(self, name) is not None
            ]
            if given:
                raise ConfigError(f"{where}{', '.join(given)} given; outputs of kind {self.kind!r} are probabilities")
        if any(not isinstance(text, str) or not text.isprintable() for text in (self.unit, *self.labels)):
            raise ConfigError(f"{where}unit and labels are plain text; got {self.unit!r} and {self.labels!r}")
        if self.labels and len(self.labels) != self.dim:
            raise ConfigError(f"{where}{len(self.labels)} labels {self.labels} for {self.dim} outputs")
        if self.things and (self.kind != "panoptic" or not {*self.things} <= {*self.labels}):
            raise ConfigError(f"{where}things are {self.things}; expected labels of a panoptic task, of {self.labels}")
        if self.ignore_index is not None and not isinstance(self.ignore_index, int):
            raise ConfigError(f"{where}ignore_index is {self.ignore_index!r}; expected an integer or None")

    @property
    def default_loss(self) -> str:
        """The loss in force: the one named, or the kind's own."""
        return self.loss or _LOSSES[self.kind][0]

    @property
    def is_categorical(self) -> bool:
        """Whether outputs are class logits."""
        return self.kind in ("classification", "segmentation", "instances", "panoptic")

    @property
    def is_share(self) -> bool:
        """Whether outputs are parts of one whole, from 0 to 1: shares or probabilities."""
        return self.shares or self.is_categorical or self.kind == "ratio"

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the outputs: the task's name, or ``name:label`` where there are several."""
        several = tuple(f"{self.name}:{part}" for part in self.labels or range(self.dim))
        return (self.name,) if self.dim == 1 else several

    @property
    def is_masks(self) -> bool:
        """Whether outputs are classes and masks of queries, not a tensor of the task's name."""
        return self.kind in ("instances", "panoptic")

    @property
    def is_map(self) -> bool:
        """Whether outputs are maps, (B, dim, rows, cols); those of other kinds are (B, dim)."""
        return self.kind in ("dense", "segmentation")

    def natural(self, output: Tensor) -> Tensor:
        """Convert normalised outputs to original units, in float32 or wider, before ``minimum`` and ``maximum``.

        Class logits and ratio logits become probabilities; everything else goes through the inverse transform.

        Args:
            output: (..., dim); (B, dim, rows, cols) where :attr:`is_map`.

        Raises:
            ShapeError: if the shape does not fit.
        """
        return self.natural_map(output) if self.is_map else self._natural(output)

    def predict(self, output: Tensor) -> Tensor:
        """Like :meth:`natural`, kept within ``minimum`` and ``maximum``: the value that a user sees."""
        return self.clamp(self.natural(output))

    def clamp(self, values: Tensor) -> Tensor:
        """Keep values in original units within ``minimum`` and ``maximum``."""
        return values if self.minimum is None and self.maximum is None else values.clamp(self.minimum, self.maximum)

    def natural_map(self, output: Tensor) -> Tensor:
        """Turn a map (B, dim, rows, cols) in normalised units to original units, of the same shape.

        The cells of a ``density`` task with ``aggregate="sum"`` add up to :meth:`natural` of their sum: the
        transform's mean is shared out evenly over the cells. Every other cell stands for itself.

        Raises:
            ShapeError: if the map has another shape.
        """
        if output.ndim != 4 or output.shape[1] != self.dim:
            raise ShapeError(
                f"the map of task {self.name!r} is {tuple(output.shape)}; expected (batch, {self.dim}, rows, cols)"
            )
        cells = output.shape[-2] * output.shape[-1] if self.kind == "density" and self.aggregate == "sum" else 1
        return self._natural(output.movedim(1, -1), cells).movedim(-1, 1)

    def predict_map(self, output: Tensor) -> Tensor:
        """Like :meth:`natural_map`, and the cells of a ``dense`` task kept within ``minimum`` and ``maximum``."""
        x = self.natural_map(output)
        return self.clamp(x) if self.kind == "dense" else x

    def _natural(self, output: Tensor, parts: int = 1) -> Tensor:
        """Values (..., dim), of which ``parts`` add up to one image's."""
        x = output if output.dtype in (torch.float32, torch.float64) else output.float()
        if self.is_categorical or self.kind == "ratio":
            return x.softmax(dim=-1)
        return x if self.transform is None else self.transform.inverse(x, parts)


def check_tasks(tasks: Sequence[Task], *, kinds: Sequence[str], owner: str) -> tuple[Task, ...]:
    """Check the tasks of a head: at least one, names used once, kinds the head can serve.

    Raises:
        ConfigError: naming the task that does not fit.
    """
    if not tasks:
        raise ConfigError(f"{owner} has no tasks; pass at least one Task")
    for name, count in Counter(task.name for task in tasks).items():
        if count > 1:
            raise ConfigError(f"{owner} has several tasks named {name!r}; names are keys and must differ")
    for task in tasks:
        if task.kind not in kinds:
            raise ConfigError(
                f"{owner} serves tasks of kind {', '.join(kinds)}; task {task.name!r} is {task.kind!r}. FPNHead and "
                "PyramidHead serve all kinds: head: {type: fpn}, or --head fpn"
            )
        if task.from_map is not None:
            cell_output(task, tasks)
    return tuple(tasks)


class Column(NamedTuple):
    """One number that tables and pictures have for an image.

    Attributes:
        name: what they call it.
        task: whose output it is.
        place: which of the task's outputs.
    """

    name: str
    task: Task
    place: int


def columns_of(tasks: Sequence[Task]) -> list[Column]:
    """Return what tables and pictures call the outputs of tasks, each number once.

    The columns of a task are :attr:`Task.columns`. A map with several outputs (``dense``, ``segmentation``) has one
    column per label, called by the label alone. It is called ``task label`` where the label is a number, or another
    column has its name. An output that is another task's number (``from_map``) has no column of its own.
    """
    columns = []
    for task in tasks:
        labels = task.labels or tuple(map(str, range(task.dim)))
        means = [own.name for own in tasks if own.from_map == task.name]
        for place, (name, label) in enumerate(zip(task.columns, labels, strict=True)) if not task.is_masks else ():
            if not means or (task.dim > 1 and label not in means):
                columns.append(Column(label if task.is_map and task.dim > 1 else name, task, place))
    names = Counter(column.name for column in columns)
    names.update(task.name for task in tasks if task.kind == "classification")
    return [
        column._replace(name=f"{column.task.name} {column.name}")
        if column.task.is_map and column.task.dim > 1 and (names[column.name] > 1 or column.name.isdecimal())
        else column
        for column in columns
    ]


def cell_output(task: Task, tasks: Sequence[Task]) -> tuple[Task, int]:
    """Return the map task whose cells make a task's value (``from_map``), and the output of it.

    Raises:
        ConfigError: if the map does not exist, not exactly one of its labels is the task's name, or it has a bound.
    """
    maps = {own.name: own for own in tasks if own.is_map}
    cells = maps.get(str(task.from_map))
    if cells is None or (cells.dim > 1 and task.name not in cells.labels):
        there = ", ".join(f"{own.name} ({', '.join(own.labels) or own.dim})" for own in maps.values()) or "none"
        raise ConfigError(
            f"task {task.name!r} is the mean over the cells of {task.from_map!r}, which is not a dense or "
            f"segmentation task of this head with a label {task.name!r}; there are: {there}"
        )
    for field, bound in (("minimum", cells.minimum), ("maximum", cells.maximum)):
        if bound is not None:
            raise ConfigError(
                f"task {task.name!r} is the mean over the cells of {cells.name!r}, whose {field} is {bound:g}: a mean "
                f"of clipped cells is biased; give the {field} to {task.name!r} alone"
            )
    if cells.labels.count(task.name) > 1:
        raise ConfigError(
            f"task {task.name!r} is the mean over the cells of {cells.name!r}, which has several outputs with that "
            f"label: {', '.join(cells.labels)}; give each output a label of its own"
        )
    return cells, 0 if cells.dim == 1 else cells.labels.index(task.name)


def _check_name(name: Any) -> None:
    is_text = isinstance(name, str) and name.isprintable() and name == name.strip() and 1 <= len(name) <= _LONGEST_NAME
    if not is_text or ":" in name:
        raise ConfigError(
            f"Task name {name!r}: expected 1 to {_LONGEST_NAME} printable characters without ':' and without blanks at "
            "the ends; rename it (the column, if it comes from a table)"
        )
    if name.endswith((MAP, CLASSES, MASKS)) or name == GATE:
        raise ConfigError(f"Task name {name!r} is that of another output, a task's map or a gate; rename it")


def _one_of(where: str, value: Any, allowed: Sequence[str], *, optional: bool) -> None:
    if (value is None and optional) or (isinstance(value, str) and value in allowed):
        return
    raise ConfigError(f"{where} is {value!r}; expected one of {', '.join(allowed)}.{did_you_mean(value, allowed)}")
