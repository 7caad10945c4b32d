"""What a head predicts: a Task, declared once and used by heads, losses, metrics and checkpoints.

Two spaces are kept apart. *Original units* are what people measure (grams, a class name);
*normalised units* are what a head outputs and a loss compares: original units after the task's
:class:`TargetTransform`. ``Task.predict`` converts normalised units to original units,
``Task.predict_map`` does so for maps.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dinoneck.codec import OMIT_DEFAULT, normalize_fields, restore
from dinoneck.errors import ConfigError, ShapeError
from dinoneck.grid import exact
from dinoneck.kinds import THRESHOLD_KINDS
from dinoneck.kinds import Kind as Kind
from dinoneck.task_facts import CLASSES as CLASSES  # these are also imported from here
from dinoneck.task_facts import GATE as GATE
from dinoneck.task_facts import MAP as MAP
from dinoneck.task_facts import MASKS as MASKS
from dinoneck.task_facts import NO_LABELS, SHORTEST_VECTOR, TaskFacts
from dinoneck.task_facts import TABLE_COLUMNS as TABLE_COLUMNS
from dinoneck.task_facts import Activation as Activation
from dinoneck.task_facts import Aggregate as Aggregate
from dinoneck.task_facts import as_tasks as as_tasks
from dinoneck.task_facts import columns_of as columns_of
from dinoneck.task_facts import describe_tasks as describe_tasks
from dinoneck.task_intervals import INTERVAL_KINDS
from dinoneck.task_intervals import Interval as Interval
from dinoneck.transforms import TargetTransform as TargetTransform
from dinoneck.transforms import constants as constants

Loss = Literal["mse", "smooth_l1", "cross_entropy", "cosine", "binary_cross_entropy"]

_LOSSES: dict[str, tuple[str, ...]] = {
    "regression": ("mse", "smooth_l1"),
    "ratio": ("mse",),
    "classification": ("cross_entropy",),
    "multilabel": ("binary_cross_entropy",),
    "dense": ("mse", "smooth_l1"),
    "density": ("mse", "smooth_l1"),
    "segmentation": ("cross_entropy",),
    "instances": ("cross_entropy",),
    "panoptic": ("cross_entropy",),
}
_VECTOR_LOSSES = ("cosine",)
"""Those of vectors of length 1."""
_VECTOR_DIM = 3


def unit_vectors(maps: Tensor) -> Tensor:
    """Return maps of vectors (..., 3, rows, cols), each divided by its length, which is computed in float32 or wider.

    A vector without a direction, of a length up to 1e-12, becomes the zero vector, with zero
    gradient. NaN stays NaN.
    """
    vectors = exact(maps)
    squared_length = _squared_length(vectors)
    has_no_direction = squared_length <= SHORTEST_VECTOR**2
    length = torch.where(has_no_direction, 1.0, squared_length).sqrt()
    return torch.where(has_no_direction, 0.0, vectors / length).to(maps.dtype)


def has_direction(maps: Tensor) -> Tensor:
    """Return which vectors of maps (..., 3, rows, cols) are neither zero nor NaN, bool (..., 1, rows, cols)."""
    return _squared_length(exact(maps)) > SHORTEST_VECTOR**2


def _squared_length(vectors: Tensor) -> Tensor:
    return vectors.square().sum(dim=-3, keepdim=True)


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "softplus": F.softplus,
    "sigmoid": torch.sigmoid,
    "unit": unit_vectors,
}
_LONGEST_NAME = 64
LARGEST_DIM = 1_000_000
"""Outputs of a task. The largest sets of classes in use have 21,843 (ImageNet-21k); a file may state any number."""
OVERALL = "overall"
"""What scores call the mean over the targets, if no target has this name."""
OVERALL_MEAN, OVERALL_WEIGHTED = "overall (mean)", "overall (weighted)"
"""What tables call it, and scores beside a target called ``overall``. No task has these names."""
MEAN_KEY = "mean_over_targets"
"""The entry of a report that names the mean over the targets, where one of them is called ``overall``."""
_RESERVED = (GATE, "maps", OVERALL_MEAN, OVERALL_WEIGHTED)
_OPTIONS_OF_NUMBERS = ("transform", "activation", "minimum", "maximum")
"""Options of a Task that probabilities do not have."""


def activate(x: Tensor, activation: str | None) -> Tensor:
    """Apply a task's activation; None is the identity, and ``unit`` is for maps (B, 3, rows, cols)."""
    return x if activation is None else _ACTIVATIONS[activation](x)


class _Rule(NamedTuple):
    """What an option of a Task must fulfil.

    Attributes:
        option: name of the field.
        is_met: whether its value does.
        expected: what is expected of it, for an error.
    """

    option: str
    is_met: bool
    expected: str


@dataclass(frozen=True, kw_only=True)
class Task(TaskFacts):
    """One named prediction of a head; all but its name are keywords.

    Args:
        name: the key of the head's output and its column in tables, such as ``"crop cover (%)"``.
            It has 1 to 64 printable characters, no blanks at its ends and no ``:``, which separates
            a column's label. ``gate``, ``maps``, ``overall (mean)`` and ``overall (weighted)`` are
            reserved, and names that end in ``.map``, ``.classes`` or ``.masks``.
        dim: number of outputs (classes for the classifying kinds); of ``multilabel`` that of the
            labels, and may be left out.
        kind: ``regression``; ``ratio`` (parts of a whole: softmax over outputs);
            ``classification``; ``multilabel`` (any number of labels of an image, each with a
            probability of its own); ``dense`` (a value per cell); ``density`` (a map that sums to the
            image's value); ``segmentation``; ``instances`` (objects with class and mask);
            ``panoptic`` (segments of things and stuff).
        activation: ``relu``, ``softplus``, ``sigmoid`` or None, applied in normalised units; or
            ``unit``, which makes a ``dense`` task of ``dim=3`` one of surface normals, see below.
        loss: ``mse``, ``smooth_l1``, ``cross_entropy``, ``binary_cross_entropy`` or ``cosine``; None
            = the kind's own (mse, for classes cross_entropy, for ``multilabel``
            binary_cross_entropy; for surface normals cosine, the only one they have).
        weight: of the task in the total loss, or one per output (not for classes, which share one
            loss).
        beta: where ``smooth_l1`` turns from square to linear.
        transform: original units <-> normalised units.
        unit: of the natural values, for people (``"g"``).
        labels: names of the outputs or classes; ``multilabel`` needs them.
        ignore_index: a class label that is ignored.
        minimum: predictions in original units are never below it (0 for a mass). It holds for
            images and for ``dense`` cells, not for the cells of a ``density`` map, which would no
            longer add up. Of ``instances`` it is the smallest score of an object that is predicted.
        maximum: predictions in original units are never above it; for the same values as
            ``minimum``.
        aggregate: how the cells of a ``density`` map make the image's value, ``sum`` or ``mean``.
        from_map: name of a dense or segmentation task of the same head: the image's value is the
            mean over that map's cells of the output labelled with this task's name, in original
            units; None = a readout of its own. The map has no ``minimum`` or ``maximum``, since a
            mean of clipped cells is biased; this task may have them.
        shares: whether the outputs of a ``dense`` task are the shares of classes in a cell, 0 to 1
            of one whole. Pictures draw them so; predictions are not clipped.
        things: of a panoptic task, the labels whose objects are counted one by one; the others are
            stuff.
        interval: how far predictions are from the truth in images of new groups, an
            :class:`dinoneck.tasks.Interval` for each output, of a classification a single one;
            empty: not known. A training fills it in from its held-out images. Of kinds
            ``regression``, ``ratio``, ``density`` and ``classification``.
        thresholds: of a ``multilabel`` task, the probability of each label from which on an image
            has it, 0 to 1; empty: 0.5 for all. They change what predictions state as labels, not
            the probabilities. Of ``instances`` the smallest score of the objects of each label, in
            the place of ``minimum``; empty: ``minimum`` for all.

    **Surface normals**: ``Task("normals", kind="dense", dim=3, activation="unit")`` is a vector of
    length 1 in every cell, (x, y, z) in camera axes: x right, y down, z forward. It is
    perpendicular to the surface and points into it, away from the camera, so z is positive wherever
    a surface is visible. A wall that faces the camera has (0, 0, 1), a floor (0, 1, 0), a wall on
    the left (-1, 0, 0), one on the right (1, 0, 0). This is the sign of the NYU Depth V2 benchmark
    (Bae and Davison, DSINE) and of TIPSv2's heads; the normal that points out of the surface is its
    negative. Vectors keep the length 1 where maps are resampled or averaged. One without a
    direction, which a mean of opposite vectors is, is the zero vector; in targets it marks a cell
    that is unknown, as NaN does. Such a task has no transform, bounds, unit or labels.

    Raises:
        ConfigError: if a value is out of range or does not fit the others.

    Examples:
        >>> Task("normals", kind="dense", dim=3, activation="unit").default_loss
        'cosine'
        >>> Task("mass", unit="g", minimum=0).default_loss
        'mse'
        >>> cover = Task("mass", kind="density", transform=TargetTransform(mean=6.0, std=2.0))
        >>> cells = torch.tensor([[[[0.5, 1.5]]]])
        >>> cover.natural_map(cells).sum().item() == cover.natural(cells.sum()[None]).item() == 10.0
        True
    """

    name: str = field(kw_only=False)
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
    interval: Sequence[Interval] = field(default=(), metadata=OMIT_DEFAULT)
    thresholds: tuple[float, ...] = field(default=(), metadata=OMIT_DEFAULT)

    def __setstate__(self, state: object) -> None:
        restore(self, state)

    def __post_init__(self) -> None:
        where = f"Task {self.name!r}"
        normalize_fields(self, where)
        if self.is_multilabel and self.dim == 1 and self.labels:
            object.__setattr__(self, "dim", len(self.labels))
        for rule in self._rules():
            if not rule.is_met:
                raise ConfigError(
                    f"{where}: {rule.option} is {getattr(self, rule.option)!r}; expected "
                    f"{rule.expected}"
                )

    def _rules(self) -> Iterator[_Rule]:
        """What the fields must fulfil; later rules rely on those before."""
        yield from self._rules_of_name()
        yield from self._rules_of_training()
        yield from self._rules_of_image_values()
        if self.transform is not None:
            yield from self._rules_of_transform(self.transform)
        if self.is_multilabel:
            yield from self._rules_of_multilabel()
        yield from self._rules_of_thresholds()
        if self.is_probability:
            yield from self._rules_of_probabilities()
        if self.is_unit:
            yield from self._rules_of_normals()
        yield from self._rules_of_words()
        yield from self._rules_of_intervals()

    def _rules_of_name(self) -> Iterator[_Rule]:
        name = self.name
        is_column_name = (
            name.isprintable()
            and name == name.strip()
            and 1 <= len(name) <= _LONGEST_NAME
            and ":" not in name
        )
        yield _Rule(
            "name",
            is_column_name,
            f"1 to {_LONGEST_NAME} printable characters without ':' and without blanks at the ends; "
            "rename it (the column, if it comes from a table)",
        )
        is_free = name not in _RESERVED and not name.endswith((MAP, CLASSES, MASKS))
        yield _Rule(
            "name",
            is_free,
            f"another name: {', '.join(map(repr, _RESERVED))} and names that end in {MAP!r}, "
            f"{CLASSES!r} or {MASKS!r} are those of other outputs; rename the column or task",
        )

    def _rules_of_training(self) -> Iterator[_Rule]:
        """Of the outputs, and of how they are trained."""
        yield _Rule("dim", self.dim >= 1, "1 or more")
        yield _Rule("dim", self.dim <= LARGEST_DIM, f"{LARGEST_DIM} or less")
        yield _Rule(
            "activation",
            self.kind == "dense" or not self.is_unit,
            f"relu, softplus, sigmoid or None for kind {self.kind!r}: 'unit' makes surface normals of "
            "kind 'dense'",
        )
        yield _Rule(
            "loss",
            self.loss in (None, *self._losses),
            f"one for {self._losses_of}: {', '.join(self._losses)}",
        )
        has_one_weight = not isinstance(self.weight, tuple)
        weights = self.weight if isinstance(self.weight, tuple) else (self.weight,)
        yield _Rule("weight", all(weight >= 0 for weight in weights), "numbers of 0 or more")
        yield _Rule(
            "weight",
            has_one_weight or not self.is_categorical,
            "one number, since classes share one loss",
        )
        yield _Rule(
            "weight",
            has_one_weight or len(weights) == self.dim,
            f"one number, or {self.dim}: one for each output",
        )
        yield _Rule("beta", self.beta > 0, "a positive number")

    def _rules_of_image_values(self) -> Iterator[_Rule]:
        """Of the limits of values, and of what makes an image's value of its map."""
        largest = torch.finfo(torch.float32).max
        yield _Rule("minimum", abs(self.minimum or 0.0) <= largest, "a number within float32")
        yield _Rule("maximum", abs(self.maximum or 0.0) <= largest, "a number within float32")
        if self.minimum is not None and self.maximum is not None:
            yield _Rule(
                "minimum", self.minimum <= self.maximum, f"at most the maximum {self.maximum:g}"
            )
        yield _Rule(
            "aggregate",
            self.kind == "density" or self.aggregate == "sum",
            "'sum': only kind 'density' aggregates a map",
        )
        is_one_number = self.kind == "regression" and self.dim == 1 and self.activation is None
        yield _Rule(
            "from_map",
            self.from_map is None or is_one_number,
            "None, or a regression task of one output without activation",
        )
        yield _Rule(
            "shares",
            self.kind == "dense" or not self.shares,
            f"False for kind {self.kind!r}, or kind 'dense'",
        )

    def _rules_of_transform(self, transform: TargetTransform) -> Iterator[_Rule]:
        yield _Rule(
            "transform",
            transform.outputs in (None, self.dim),
            f"one fitted on {self.dim} outputs, not {transform.outputs}",
        )
        adds_up_cells = self.kind == "density" or self.from_map is not None
        yield _Rule(
            "transform",
            not (transform.log1p and adds_up_cells),
            "one without log1p, as the image's value is the sum or mean of cells, which a "
            "logarithm does not keep; or kind 'regression' without from_map",
        )

    def _rules_of_multilabel(self) -> Iterator[_Rule]:
        yield _Rule("labels", len(self.labels) > 0, "the names of one label or more")
        for option in _OPTIONS_OF_NUMBERS:
            is_unset = getattr(self, option) is None
            yield _Rule(option, is_unset, f"None: outputs of kind {self.kind!r} are probabilities")
        yield _Rule("unit", not self.unit, "'': probabilities have no unit")
        are_different = len(set(self.labels)) == len(self.labels)
        yield _Rule("labels", are_different, "names that differ")
        are_words = not any(_is_no_word(label) for label in self.labels)
        yield _Rule(
            "labels",
            are_words,
            f"names other than {NO_LABELS!r}, without ';' and '|', which separate them in tables; "
            "rename the label (the column, if it comes from a table)",
        )

    def _rules_of_thresholds(self) -> Iterator[_Rule]:
        yield _Rule(
            "thresholds",
            self.kind in THRESHOLD_KINDS or not self.thresholds,
            f"none: only kinds {' and '.join(map(repr, THRESHOLD_KINDS))} have them, and this is "
            f"{self.kind!r}",
        )
        yield _Rule(
            "thresholds",
            len(self.thresholds) in (0, self.dim),
            f"none, or one for each of {self.dim} labels",
        )
        are_within = all(0.0 <= threshold <= 1.0 for threshold in self.thresholds)
        yield _Rule("thresholds", are_within, "probabilities, 0 to 1")
        if self.is_masks:
            yield _Rule(
                "minimum",
                0.0 <= (self.minimum or 0.0) <= 1.0,
                "the smallest score of an object, 0 to 1",
            )

    def _rules_of_probabilities(self) -> Iterator[_Rule]:
        for option in _OPTIONS_OF_NUMBERS:
            is_smallest_score = self.is_masks and option == "minimum"
            is_unset = getattr(self, option) is None
            yield _Rule(
                option,
                is_unset or is_smallest_score,
                f"None: outputs of kind {self.kind!r} are probabilities",
            )

    def _rules_of_normals(self) -> Iterator[_Rule]:
        """Of surface normals."""
        yield _Rule("dim", self.dim == _VECTOR_DIM, "3 with activation 'unit': x, y and z")
        has_one_weight = not isinstance(self.weight, tuple)
        yield _Rule("weight", has_one_weight, "one number, since x, y and z share one loss")
        yield _Rule("shares", not self.shares, "False: surface normals are no shares")
        yield _Rule("unit", not self.unit, "'': surface normals have no unit")
        yield _Rule(
            "labels", not self.labels, "none: the outputs of surface normals are x, y and z"
        )
        for option in ("transform", "minimum", "maximum"):
            is_unset = getattr(self, option) is None
            yield _Rule(option, is_unset, "None: surface normals have length 1")

    def _rules_of_words(self) -> Iterator[_Rule]:
        """Of the unit and the labels."""
        yield _Rule("unit", self.unit.isprintable(), "printable characters")
        are_printable = all(label.isprintable() for label in self.labels)
        yield _Rule("labels", are_printable, "printable characters")
        yield _Rule(
            "labels",
            len(self.labels) in (0, self.dim),
            f"none, or one for each of {self.dim} outputs",
        )
        are_labels = self.kind == "panoptic" and set(self.things) <= set(self.labels)
        yield _Rule(
            "things",
            are_labels or not self.things,
            f"labels of a panoptic task, of {self.labels}",
        )

    def _rules_of_intervals(self) -> Iterator[_Rule]:
        yield _Rule(
            "interval",
            self.kind in INTERVAL_KINDS or not self.interval,
            f"none for kind {self.kind!r}",
        )
        num_intervals = 1 if self.is_image_class else self.dim
        yield _Rule(
            "interval",
            len(self.interval) in (0, num_intervals),
            f"none, or {num_intervals}: one for each output, of a classification one",
        )

    @property
    def default_loss(self) -> str:
        """The loss in force: the one named, or the kind's own."""
        return self.loss or self._losses[0]

    @property
    def _losses(self) -> tuple[str, ...]:
        """The losses that the task may have, its own first."""
        return _VECTOR_LOSSES if self.is_unit else _LOSSES[self.kind]

    @property
    def _losses_of(self) -> str:
        """What has these losses, for an error."""
        return "activation 'unit'" if self.is_unit else f"kind {self.kind!r}"

    def natural(self, output: Tensor) -> Tensor:
        """Convert normalised outputs to original units, in float32 or wider, before ``minimum`` and ``maximum``.

        Class logits, ratio logits and logits of labels become probabilities; everything else goes through the inverse
        transform.

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
        if self.minimum is None and self.maximum is None:
            return values
        return values.clamp(self.minimum, self.maximum)

    def natural_map(self, output: Tensor) -> Tensor:
        """Turn a map (B, dim, rows, cols) in normalised units to original units, of the same shape.

        Surface normals, which may have been resampled, get the length 1.

        The cells of a ``density`` task with ``aggregate="sum"`` add up to :meth:`natural` of their
        sum: the transform's mean is shared out evenly over the cells. Every other cell stands for
        itself.

        Raises:
            ShapeError: if the map has another shape.
        """
        if output.ndim != 4 or output.shape[1] != self.dim:
            raise ShapeError(
                f"map of {self.name!r} is {tuple(output.shape)}; expected (batch, {self.dim}, "
                "rows, cols)"
            )
        if self.is_unit:
            return unit_vectors(exact(output))
        parts = 1
        if self.kind == "density" and self.aggregate == "sum":
            parts = output.shape[-2] * output.shape[-1]
        return self._natural(output.movedim(1, -1), parts).movedim(-1, 1)

    def predict_map(self, output: Tensor) -> Tensor:
        """Like :meth:`natural_map`, and the cells of a ``dense`` task kept within ``minimum`` and ``maximum``."""
        x = self.natural_map(output)
        return self.clamp(x) if self.kind == "dense" else x

    def of_unit_length(self, maps: Tensor) -> Tensor:
        """Return resampled or averaged maps (..., dim, rows, cols); surface normals have the length 1 again."""
        return unit_vectors(maps) if self.is_unit else maps

    def _natural(self, output: Tensor, parts: int = 1) -> Tensor:
        """Values (..., dim), of which ``parts`` add up to one image's."""
        x = output if output.dtype in (torch.float32, torch.float64) else output.float()
        if self.is_probability:
            return x.softmax(dim=-1)
        if self.is_multilabel:
            return x.sigmoid()
        return x if self.transform is None else self.transform.inverse(x, parts)


def _is_no_word(label: str) -> bool:
    """Whether a label cannot be told apart in a cell of several labels."""
    return ";" in label or "|" in label or label.lower() == NO_LABELS


def check_tasks(
    tasks: Task | Sequence[Task], *, kinds: Sequence[str], owner: str
) -> tuple[Task, ...]:
    """Check the tasks of a head: at least one, names used once, kinds the head can serve.

    Raises:
        ConfigError: naming the task that does not fit.
    """
    tasks = as_tasks(tasks)
    if not tasks:
        raise ConfigError(f"{owner} has no tasks; pass at least one Task")
    for name, count in Counter(task.name for task in tasks).items():
        if count > 1:
            raise ConfigError(
                f"{owner} has several tasks named {name!r}; names are keys and must differ"
            )
    for task in tasks:
        if task.kind not in kinds:
            raise ConfigError(
                f"{owner} serves tasks of kind {', '.join(kinds)}; task {task.name!r} is "
                f"{task.kind!r}. FPNHead and PyramidHead serve all kinds: head: {{type: fpn}}, or "
                "--head fpn"
            )
        if task.from_map is not None:
            cell_output(task, tasks)
    return tasks


def without_calibration(task: Task) -> Task:
    """Return the task without what is measured of a trained head: intervals, and thresholds of labels."""
    return replace(task, interval=(), thresholds=())


def cell_output(task: Task, tasks: Sequence[Task]) -> tuple[Task, int]:
    """Return the map task whose cells make a task's value (``from_map``), and the output of it.

    Raises:
        ConfigError: if the map does not exist, not exactly one of its labels is the task's name, or
            it has a bound.
    """
    maps = {other.name: other for other in tasks if other.is_map}
    cells = maps.get(str(task.from_map))
    mean = f"task {task.name!r} is the mean over the cells of {task.from_map!r}"
    if cells is None or (cells.dim > 1 and cells.labels.count(task.name) != 1):
        described = []
        for name, other in maps.items():
            described.append(f"{name} ({', '.join(other.labels) or other.dim})")
        raise ConfigError(
            f"{mean}, which is not a dense or segmentation task of this head with one label "
            f"{task.name!r}; there are: {', '.join(described) or 'none'}"
        )
    if cells.minimum is not None or cells.maximum is not None:
        raise ConfigError(
            f"{mean}, whose minimum is {cells.minimum} and maximum {cells.maximum}: a mean of "
            f"clipped cells is biased; give the bounds to {task.name!r} alone"
        )
    channel = 0 if cells.dim == 1 else cells.labels.index(task.name)
    return cells, channel
