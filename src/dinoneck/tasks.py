"""What a head predicts: a Task, declared once and used by heads, losses, metrics and checkpoints.

Three spaces are kept apart. *Natural units* are what people measure (grams, a class name). *Model space* is
what a head outputs and a loss compares: original units after the task's :class:`TargetTransform`.
``Task.predict`` converts normalised units to original units, ``Task.predict_map`` does so for maps.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dinoneck.codec import normalize_fields
from dinoneck.errors import ConfigError, DataError, ShapeError

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
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "softplus": F.softplus, "sigmoid": torch.sigmoid}
_LONGEST_NAME = 64
MAP, CLASSES, MASKS, GATE = ".map", ".classes", ".masks", "gate"
"""What follows a task's name in the names of its map and of what queries give, and the output of a gate.

The names of tasks leave them free."""

STD_FLOOR = 1e-6
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TargetTransform:
    """Original units <-> normalised units: divide by the area, then log1p, then z-score; and exactly back.

    Args:
        area: what a value is divided by (0.21 turns grams on a 0.21 m² quadrat into g/m²).
        log1p: whether log(1 + x) follows.
        mean: z-score mean, one number or one per output, in the space after ``log1p``.
        std: z-score standard deviation, given as ``mean`` is; without it values are only centred.

    Raises:
        ConfigError: if the area or a standard deviation is not positive, or a number is not finite.

    Examples:
        >>> transform = TargetTransform(area=0.5).fit(torch.tensor([1.0, 2.0, 3.0]))
        >>> transform.mean, round(transform.std, 4)
        (4.0, 1.633)
        >>> transform.inverse(transform.forward(torch.tensor([2.5])))
        tensor([2.5000])
    """

    area: float | None = None
    log1p: bool = False
    mean: float | tuple[float, ...] | None = None
    std: float | tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        normalize_fields(self)
        for name, values in (("area", self.area), ("std", self.std)):
            if any(value <= 0 for value in each(values)):
                raise ConfigError(f"TargetTransform: {name} is {values!r}; expected positive numbers")
        lengths = {len(values) for values in (self.mean, self.std) if isinstance(values, tuple)}
        if len(lengths) > 1 or 0 in lengths:
            raise ConfigError(f"TargetTransform: mean is {self.mean} and std {self.std}; expected one length, not 0")

    @property
    def outputs(self) -> int | None:
        """The number of outputs it was fitted on; None if one number serves all."""
        return next((len(values) for values in (self.mean, self.std) if isinstance(values, tuple)), None)

    def fit(self, values: Any) -> TargetTransform:
        """Return a new transform whose mean and std are those of ``values`` (original units; NaN, masked = missing).

        The standard deviation is the population's, at least 1e-6. Among several outputs, one that does not vary is only
        centred (its standard deviation is 1), and a warning names it. Fit on the training fold only.

        Args:
            values: (n,) or (n, outputs), a tensor, a pandas Series or anything ``torch.as_tensor`` takes.

        Raises:
            DataError: if an output has no finite value, a value is beyond float32, or no output varies.
        """
        numbers = np.ma.asarray(values.detach().cpu().double().numpy() if isinstance(values, Tensor) else values)
        if numbers.dtype.kind not in "biuf":
            raise DataError(f"target values are no numbers but {numbers.dtype}; a transform cannot be fitted")
        table = torch.tensor(np.ma.filled(numbers.astype(np.float64), np.nan))
        if not table.numel():
            raise DataError(f"there are no target values (shape {tuple(table.shape)}); a transform cannot be fitted")
        table = table.reshape(table.shape[0], -1) if table.ndim else table.reshape(1, 1)
        if (far := table[table.abs() > torch.finfo(torch.float32).max]).numel():
            raise DataError(f"the target value {far[0].item():g} is beyond float32 (+-3.4e38); give it another unit")
        spread = replace(self, mean=None, std=None).forward(table)
        mean = spread.nanmean(dim=0)
        if bool(mean.isnan().any()):
            raise DataError("an output has no target value at all (every one is NaN); a transform cannot be fitted")
        std = (spread - mean).square().nanmean(dim=0).sqrt().clamp_min(STD_FLOOR).where(_varying(spread), 1.0)
        if len(mean) == 1:
            return replace(self, mean=mean.item(), std=std.item())
        return replace(self, mean=tuple(mean.tolist()), std=tuple(std.tolist()))

    def forward(self, values: Tensor) -> Tensor:
        """Original units -> normalised units; the outputs are the last axis. Computed in float64, dtype kept."""
        x = _wide(values)
        if self.area is not None:
            x = x / self.area
        if self.log1p:
            if bool((x <= -1).any()):
                raise DataError(f"log1p needs values above -1; the smallest is {x.min().item():g}")
            x = torch.log1p(x)
        x = (x - self._row(self.mean, x, 0.0)) / self._row(self.std, x, 1.0)
        return x.to(values.dtype if values.is_floating_point() else torch.get_default_dtype())

    def inverse(self, values: Tensor, parts: int = 1) -> Tensor:
        """Normalised units -> original units. Never clamps: the task's activation or ``minimum`` does.

        Args:
            values: (..., outputs).
            parts: how many of the values add up to one. The mean is shared out over them, so that the natural
                parts add up to the inverse of the sum of the values.

        Raises:
            ConfigError: if there are parts and the transform has a logarithm, under which nothing adds up.
        """
        if parts != 1 and self.log1p:
            raise ConfigError(f"{parts} parts do not add up after log1p; use a transform without it")
        x = _wide(values)
        x = x * self._row(self.std, x, 1.0) + self._row(self.mean, x, 0.0) / parts
        if self.log1p:
            x = torch.expm1(x)
        if self.area is not None:
            x = x * self.area
        return x.to(values.dtype if values.is_floating_point() else torch.get_default_dtype())

    def _row(self, numbers: float | tuple[float, ...] | None, like: Tensor, default: float) -> Tensor:
        if not isinstance(numbers, tuple):
            return like.new_full((), default if numbers is None else numbers)
        if like.shape[-1] != len(numbers):
            raise ShapeError(f"values have shape {tuple(like.shape)}; it was fitted on {len(numbers)} outputs")
        return constants(numbers, like)


def _varying(table: Tensor) -> Tensor:
    """Which outputs of (n, outputs) vary, (outputs,) bool; NaN = missing."""
    lowest, highest = table.nan_to_num(nan=math.inf).amin(dim=0), table.nan_to_num(nan=-math.inf).amax(dim=0)
    constant = (lowest == highest).nonzero().flatten().tolist()
    if len(constant) == len(lowest):
        raise DataError(
            f"all {len(table)} target values are equal ({lowest[0].item():g} before the z-score); a standard deviation "
            "cannot be fitted: leave the target out, or fit on rows in which it varies"
        )
    if constant:
        logger.warning("outputs %s do not vary among %d rows; they are only centred", constant, len(table))
    return lowest != highest


def constants(values: Sequence[float], like: Tensor) -> Tensor:
    """Return a few numbers (n,) as a tensor like another; filled where that is, without a copy from the host."""
    return torch.stack([like.new_full((), value) for value in values])


def each(values: float | tuple[float, ...] | None) -> tuple[float, ...]:
    """Return the numbers as a tuple."""
    return values if isinstance(values, tuple) else () if values is None else (values,)


def _wide(values: Tensor) -> Tensor:
    """float64 where the device has it, else float32."""
    return values.to(torch.float32 if values.device.type == "mps" else torch.float64)


def activate(x: Tensor, activation: str | None) -> Tensor:
    """Apply a task's activation; None is the identity."""
    return x if activation is None else _ACTIVATIONS[activation](x)


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
        where = f"Task {self.name!r}"
        normalize_fields(self, where)
        for field, fits, expected in self._rules():
            if not fits:
                raise ConfigError(f"{where}: {field} is {getattr(self, field)!r}; expected {expected}")

    def _rules(self) -> Iterator[tuple[str, bool, str]]:
        """Which field must fulfil what, and what is expected of it."""
        kind, transform, largest = self.kind, self.transform, torch.finfo(torch.float32).max
        name, single = self.name, isinstance(self.weight, float)
        fits = name.isprintable() and name == name.strip() and 1 <= len(name) <= _LONGEST_NAME and ":" not in name
        yield "name", fits, f"1 to {_LONGEST_NAME} printable characters without ':' and without blanks at the ends"
        yield "name", name != GATE and not name.endswith((MAP, CLASSES, MASKS)), "another name than a map's or a gate's"
        yield "dim", self.dim >= 1, "1 or more"
        yield "loss", self.loss in (None, *_LOSSES[kind]), f"one for kind {kind!r}: {', '.join(_LOSSES[kind])}"
        yield "weight", all(weight >= 0 for weight in each(self.weight)), "numbers of 0 or more"
        yield "weight", single or not self.is_categorical, "one number, since classes share one loss"
        yield "weight", single or len(each(self.weight)) == self.dim, f"one number, or {self.dim}: one for each output"
        yield "beta", self.beta > 0, "a positive number"
        yield "minimum", abs(self.minimum or 0.0) <= largest, "a number within float32"
        yield "maximum", abs(self.maximum or 0.0) <= largest, "a number within float32"
        if self.minimum is not None and self.maximum is not None:
            yield "minimum", self.minimum <= self.maximum, f"at most the maximum {self.maximum:g}"
        yield "aggregate", kind == "density" or self.aggregate == "sum", "'sum': only kind 'density' aggregates a map"
        plain = kind == "regression" and self.dim == 1 and self.activation is None
        yield "from_map", self.from_map is None or plain, "None, or a regression task of one output without activation"
        yield "shares", kind == "dense" or not self.shares, f"False for kind {kind!r}, or kind 'dense'"
        if transform is not None:
            fitted = f"one fitted on {self.dim} outputs, not {transform.outputs}"
            yield "transform", transform.outputs in (None, self.dim), fitted
            adds_up = not transform.log1p or not (kind == "density" or self.from_map is not None)
            yield "transform", adds_up, "one without log1p, which keeps sums and means of cells"
        of_numbers = ("transform", "activation", "minimum", "maximum")
        for field in of_numbers if self.is_categorical or kind == "ratio" else ():
            yield field, getattr(self, field) is None, f"None: outputs of kind {kind!r} are probabilities"
        yield "unit", self.unit.isprintable(), "printable characters"
        yield "labels", all(label.isprintable() for label in self.labels), "printable characters"
        yield "labels", len(self.labels) in (0, self.dim), f"none, or one for each of {self.dim} outputs"
        known = kind == "panoptic" and {*self.things} <= {*self.labels}
        yield "things", known or not self.things, f"labels of a panoptic task, of {self.labels}"

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
    mean = f"task {task.name!r} is the mean over the cells of {task.from_map!r}"
    if cells is None or (cells.dim > 1 and cells.labels.count(task.name) != 1):
        there = ", ".join(f"{own.name} ({', '.join(own.labels) or own.dim})" for own in maps.values()) or "none"
        raise ConfigError(
            f"{mean}, which is not a dense or segmentation task of this head with one label {task.name!r}; there are: "
            f"{there}"
        )
    if cells.minimum is not None or cells.maximum is not None:
        raise ConfigError(
            f"{mean}, whose minimum is {cells.minimum} and maximum {cells.maximum}: a mean of clipped cells is biased; "
            f"give the bounds to {task.name!r} alone"
        )
    return cells, 0 if cells.dim == 1 else cells.labels.index(task.name)
