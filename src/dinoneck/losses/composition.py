"""Predictions that add up: parts as a total times shares, and sums of parts.

Five masses that are predicted independently contradict each other. Masses composed of a total and
the shares of its parts add up exactly, and a loss of the composed masses trains both outputs. Sums
of tasks add up without a ratio.
"""

from __future__ import annotations

import math
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from dinoneck.codec import OMIT_DEFAULT, normalize_fields, restore
from dinoneck.errors import ConfigError, ShapeError
from dinoneck.losses.masked import MicroBatch, exact, full_mask, shares, smooth_l1
from dinoneck.task_facts import ROW_LABELS, columns_of_intervals, named_as_interval
from dinoneck.tasks import Interval, Kind, TargetTransform, Task, as_tasks, constants
from dinoneck.text import counted, did_you_mean
from dinoneck.transforms import each

Sums = tuple[tuple[str, tuple[str, ...]], ...] | Mapping[str, tuple[str, ...]]
TensorsByTask = Mapping[str, Tensor]
"""Outputs, targets or masks, by the name of the task or composition."""
_LEAST_WHOLE = 1e-6  # of the sum of the parts' magnitudes: below it the parts cancel out
_LARGEST_LOG = 80.0  # e^80 is still finite in float32


class _RequiredTask(NamedTuple):
    """A task that a composition is computed from.

    Attributes:
        name: of the task.
        kinds: it has one of them.
        dim: number of its outputs.
    """

    name: str
    kinds: tuple[Kind, ...]
    dim: int


@dataclass(frozen=True)
class Composition:
    """Compute the parts of a whole, and sums of some of them, from a total and the logits of the parts' shares.

    With ``name``, ``total`` and ``ratio`` set, a head stores the composition in its record and
    predicts it: one output ``name`` in original units, with the columns :attr:`names`.

    With ``name`` alone, the parts are tasks of the head and the columns are the sums alone. They
    are computed from the tasks' final predictions, after ``minimum`` and after averages over views,
    tiles and heads. They have no loss.

    Args:
        parts: names of the parts, in the order of the ratio logits. Without ``total`` and
            ``ratio``: names of regression or density tasks of the head, each of one output.
        sums: further outputs, each a name and its parts: a dict, or pairs (the stored form, since a
            file loses the order of a dict).
        name: of the composed output and of its loss; no task of the head has the same name.
        total: name of the head's regression or density task of one output.
        ratio: name of the head's ratio task whose outputs are the parts, in that order.
        interval: how far the outputs are from the truth, one for each of :attr:`names`, see
            :class:`dinoneck.Task`; empty: not known.

    Shape:
        total (B, 1), ratio logits (B, parts) -> (B, parts + sums), in float32 or wider.

    Raises:
        ConfigError: if a name is empty, repeated or holds ``":"``, a sum is empty, repeats a part
            or names an unknown one, no output is named, or not every output has an interval.
        ShapeError: if total or logits have another shape.

    Examples:
        >>> composition = Composition(parts=("leaf", "stem", "root"), sums={"above": ("leaf", "stem")})
        >>> composition.names
        ('leaf', 'stem', 'root', 'above')
        >>> composition(torch.tensor([[60.0]]), torch.zeros(1, 3))
        tensor([[20., 20., 20., 40.]])
        >>> Composition(parts=("leaf", "stem"), sums={"above": ("leaf", "stem")}, name="sums").names
        ('above',)

    Reference: the published notebook "FPN spatial modelling" (total x softmax of the ratio logits).
    """

    parts: tuple[str, ...]
    sums: Sums
    name: str = ""
    total: str = ""
    ratio: str = ""
    interval: Sequence[Interval] = field(default=(), metadata=OMIT_DEFAULT)

    def __setstate__(self, state: object) -> None:
        restore(self, state)

    def __post_init__(self) -> None:
        normalize_fields(self)
        pairs = self.sums.items() if isinstance(self.sums, Mapping) else self.sums
        object.__setattr__(self, "sums", tuple(pairs))
        if not self.parts:
            raise ConfigError("Composition(parts=) is empty; name at least one")
        if not self.names:
            raise ConfigError("Composition(sums=) is empty; name at least one")
        self._check_names()
        self._check_sums()
        if len(self.interval) not in (0, len(self.names)):
            raise ConfigError(
                f"Composition(interval=) has {counted(len(self.interval), 'interval')} for the "
                f"{len(self.names)} outputs {', '.join(self.names)}; give one for each"
            )

    def _check_names(self) -> None:
        """Check that every output has a name of its own."""
        seen = set()
        for name in self.parts + self._sum_names:
            if not name:
                raise ConfigError("Composition: a part or sum has an empty name; give it one")
            if ":" in name:
                raise ConfigError(f"Composition: the name {name!r} holds ':'; rename it")
            if name in seen:
                raise ConfigError(
                    f"Composition: the name {name!r} is repeated; expected one name per output"
                )
            seen.add(name)

    def _check_sums(self) -> None:
        """Check that every sum adds up parts, each once."""
        for name, members in self._pairs:
            if not members:
                raise ConfigError(f"Composition: {name!r} adds up nothing; name one or more parts")
            for part in members:
                if part not in self.parts:
                    raise ConfigError(
                        f"Composition: {name!r} adds up {part!r}; expected one of "
                        f"{', '.join(self.parts)}.{did_you_mean(part, self.parts)}"
                    )
            if len(set(members)) < len(members):
                raise ConfigError(
                    f"Composition: {name!r} adds up {', '.join(members)}; expected each part once"
                )

    @property
    def adds_tasks(self) -> bool:
        """Whether the parts are tasks, not shares of a total."""
        return bool(self.name) and not (self.total or self.ratio)

    @property
    def names(self) -> tuple[str, ...]:
        """The outputs in their order: parts, where they are not tasks themselves, then sums."""
        return self._sum_names if self.adds_tasks else self.parts + self._sum_names

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the tasks that the outputs are computed from."""
        return self.parts if self.adds_tasks else (self.total, self.ratio)

    @property
    def _sum_names(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self._pairs)

    @property
    def _pairs(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        return typing.cast("tuple[tuple[str, tuple[str, ...]], ...]", self.sums)

    def __call__(self, total: Tensor, ratio_logits: Tensor) -> Tensor:
        """Return the outputs (B, parts + sums) in the order of :attr:`names`."""
        return self.of_shares(total, shares(ratio_logits))

    def of_shares(self, total: Tensor, ratio: Tensor) -> Tensor:
        """Return the outputs (B, parts + sums) of a total (B, 1) and the parts' shares (B, parts), not logits."""
        if (
            total.ndim != 2
            or total.shape[1] != 1
            or ratio.shape != (total.shape[0], len(self.parts))
        ):
            raise ShapeError(
                f"the total is {tuple(total.shape)} and the ratio {tuple(ratio.shape)}; expected "
                f"(batch, 1) and (batch, {len(self.parts)}) for the parts {', '.join(self.parts)}"
            )
        return self._with_sums(exact(total) * exact(ratio))

    def of(self, values: Mapping[str, Tensor]) -> Tensor:
        """Return the outputs (B, outputs) of the predictions of :attr:`inputs` in original units."""
        if not self.adds_tasks:
            return self.of_shares(values[self.total], values[self.ratio])
        return self._sums(torch.cat([exact(values[part]) for part in self.parts], dim=1))

    def rescaled_to(self, composed: Tensor, total: Tensor) -> Tensor:
        """Rescale outputs so that the parts keep their shares and add up to ``total``, for averages of views or tiles.

        Args:
            composed: (B, parts + sums), averages of composed outputs.
            total: (B, 1).
        """
        parts = composed[:, : len(self.parts)]
        whole = parts.sum(dim=1, keepdim=True)
        magnitude = parts.abs().sum(dim=1, keepdim=True)
        is_safe = whole.abs() > _LEAST_WHOLE * magnitude  # parts of both signs may cancel out
        factor = torch.where(is_safe, total / torch.where(is_safe, whole, 1.0), 1.0)
        return self._with_sums(parts * factor)

    def tasks_of(self, tasks: Task | Sequence[Task]) -> tuple[Task, ...]:
        """Return the tasks of :attr:`inputs`: the total and the ratio, or the parts.

        Raises:
            ConfigError: if the composition has no name, or names only one of total and ratio. Also
                if a task is missing or of another kind or size, the ratio's labels are the parts in
                another order, or tasks of different units are added.
        """
        self._check_names_tasks()
        by_name = {task.name: task for task in as_tasks(tasks)}
        for required in self._required_tasks():
            self._check_task(required, by_name)
        used = tuple(by_name[name] for name in self.inputs)
        if self.adds_tasks:
            self._check_units(used)
        else:
            self._check_label_order(by_name[self.ratio])
        return used

    def _check_names_tasks(self) -> None:
        """Check that the composition has a name, and both of total and ratio where it has one."""
        if not self.name:
            raise ConfigError(
                f"the composition of {', '.join(self.parts)} has no name; set name=, what a head "
                "calls its output"
            )
        if self.ratio and not self.total:
            raise ConfigError(
                f"composition {self.name!r} has the ratio {self.ratio!r} and no total; set total=, "
                "a regression or density task, or leave both out to add up tasks"
            )
        if self.total and not self.ratio:
            raise ConfigError(
                f"composition {self.name!r} has the total {self.total!r} and no ratio; set ratio=, "
                "the task of the parts' shares, or leave both out to add up tasks"
            )

    def _required_tasks(self) -> list[_RequiredTask]:
        """The tasks of :attr:`inputs`, in that order."""
        if self.adds_tasks:
            return [_RequiredTask(name, ("regression", "density"), dim=1) for name in self.parts]
        total = _RequiredTask(self.total, ("regression", "density"), dim=1)
        ratio = _RequiredTask(self.ratio, ("ratio",), dim=len(self.parts))
        return [total, ratio]

    def _check_task(self, required: _RequiredTask, by_name: Mapping[str, Task]) -> None:
        """Check that a head has a task, and that it is of the kind and size that are needed."""
        name = required.name
        task = by_name.get(name)
        if task is None:
            raise ConfigError(
                f"composition {self.name!r} needs task {name!r}; there are "
                f"{', '.join(by_name)}.{did_you_mean(name, by_name)}"
            )
        if task.kind not in required.kinds:
            raise ConfigError(
                f"composition {self.name!r} needs task {name!r} of kind "
                f"{' or '.join(required.kinds)}; it is of kind {task.kind!r}"
            )
        if task.dim != required.dim:
            raise ConfigError(
                f"composition {self.name!r} needs task {name!r} with dim={required.dim}; it has "
                f"dim={task.dim}"
            )

    def _check_units(self, added: Sequence[Task]) -> None:
        """Check that the tasks that are added have one unit."""
        if len({task.unit for task in added}) > 1:
            units = ", ".join(f"{task.name} ({task.unit or 'no unit'})" for task in added)
            raise ConfigError(
                f"composition {self.name!r} adds up {units}; expected tasks of one unit"
            )

    def _check_label_order(self, ratio_task: Task) -> None:
        """Check that labels that are the names of the parts are in the order of the parts."""
        labels = ratio_task.labels
        if labels != self.parts and set(labels) == set(self.parts):
            raise ConfigError(
                f"composition {self.name!r} has the parts {', '.join(self.parts)}, but the "
                f"outputs of task {self.ratio!r} are labelled {', '.join(labels)}; give both in "
                "the same order"
            )

    def output(self, tasks: Task | Sequence[Task]) -> Composed:
        """Return the description of the output, its unit and labels included, given the tasks of its head.

        Raises:
            ConfigError: as :meth:`tasks_of`.
        """
        used = self.tasks_of(tasks)
        # shares are never negative: the sign is that of the total, or of the tasks that are added
        signed = used if self.adds_tasks else used[:1]
        is_never_negative = all(task.minimum is not None and task.minimum >= 0 for task in signed)
        return Composed(
            self.name,
            dim=len(self.names),
            unit=used[0].unit,
            labels=self.names,
            minimum=0.0 if is_never_negative else None,
            parts_of=self,
            interval=self.interval,
        )

    def _with_sums(self, parts: Tensor) -> Tensor:
        return torch.cat((parts, self._sums(parts)), dim=1) if self.sums else parts

    def _sums(self, parts: Tensor) -> Tensor:
        sums = []
        for _, members in self._pairs:
            columns = [parts[:, self.parts.index(member)] for member in members]
            sums.append(torch.stack(columns, dim=1).sum(dim=1))
        return torch.stack(sums, dim=1)


@dataclass(frozen=True, kw_only=True)
class Composed(Task):
    """The output of a composition, described as a task: it has no loss of its own, and its columns are outputs.

    Args:
        parts_of: the composition.
    """

    parts_of: Composition | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the outputs, without the composition's."""
        return self.labels


def outputs_of(
    tasks: Sequence[Task], compositions: Sequence[Composition], owner: str
) -> tuple[Task, ...]:
    """Return the outputs of a head: its tasks, then its compositions.

    Raises:
        ConfigError: if a composition does not fit the tasks, a name or column belongs to two
            outputs, or a column is called as a bound of another one's interval.
    """
    composed = tuple(composition.output(tasks) for composition in compositions)
    # a task's columns, "name:label", cannot be those of a composition
    taken = {task.name for task in tasks}
    for output in composed:
        names = {output.name, *output.columns}
        repeated = sorted(taken & names)
        if repeated:
            raise ConfigError(
                f"{owner}: composition {output.name!r} has outputs named {', '.join(repeated)}, "
                "as a task or another composition does; rename one of them"
            )
        taken |= names
    outputs = (*tasks, *composed)
    has_labels = any(task.is_multilabel for task in tasks)
    if has_labels and any(output.name == ROW_LABELS for output in outputs):
        raise ConfigError(
            f"{owner} has an output named {ROW_LABELS!r}, as what predictions state of a multilabel "
            "task; rename it"
        )
    if any(output.interval for output in outputs):
        name = named_as_interval(outputs)
        if name is not None:
            raise ConfigError(
                f"{owner}: {name!r} is a column of predictions, and one of the interval of "
                f"{columns_of_intervals(outputs)[name]!r}; rename one of them"
            )
    return outputs


@dataclass(frozen=True)
class CompositionLoss:
    """The error of composed outputs, computed by :class:`TaskLoss` from the outputs of two tasks.

    The total's output is inverted by its task's transform without the area, so that grams fitted as
    g/m² are compared in g/m². The target is ``targets[name]`` (B, outputs) in those units if
    present, else it is composed of the two tasks' targets; a NaN in any of them is missing. A
    sample counts where its total and all its shares count; ``masks[name]`` replaces that mask for a
    target ``targets[name]`` and is combined with it for a composed one.

    Args:
        composition: the composition, with its name and its two tasks.
        weights: one per output of the composition; None = equal ones that sum to 1.
        loss: ``mse`` or ``smooth_l1``.
        beta: where ``smooth_l1`` changes from square to linear.

    Raises:
        ConfigError: if a value is out of range or does not fit the others.

    Examples:
        >>> names = ("leaf", "stem")
        >>> parts = Composition(names, {"both": names}, "plant", total="mass", ratio="shares")
        >>> plant = CompositionLoss(parts, weights=(0.2, 0.3, 0.5), loss="smooth_l1")
        >>> plant.name, plant.divisor(TargetTransform(mean=50.0, std=20.0))
        ('plant', 20.0)

    Reference: the published notebook "FPN spatial modelling" (weighted loss of the five composed
    masses). Deviation: the differences are divided by the total's standard deviation, as the tasks'
    own targets are.
    """

    composition: Composition
    weights: tuple[float, ...] | None = None
    loss: Literal["mse", "smooth_l1"] = "mse"
    beta: float = 1.0

    def __post_init__(self) -> None:
        normalize_fields(self)
        if self.composition.adds_tasks:
            raise ConfigError(
                f"composition {self.name!r} adds up tasks, which have losses of their own; leave "
                "it out"
            )
        names = self.composition.names
        if self.weights is not None and len(self.weights) != len(names):
            raise ConfigError(
                f"CompositionLoss {self.name!r}: there are {counted(len(self.weights), 'weight')} "
                f"for the {len(names)} outputs {', '.join(names)}; give one for each"
            )
        for name, weight in zip(names, self.weights or (), strict=False):
            if weight < 0:
                raise ConfigError(
                    f"CompositionLoss {self.name!r}: the weight of {name!r} is {weight}; expected "
                    "0 or more"
                )
        if self.beta <= 0:
            raise ConfigError(
                f"CompositionLoss {self.name!r}: beta is {self.beta}; expected a positive number"
            )

    @property
    def name(self) -> str:
        """Name of the composition."""
        return self.composition.name

    def total_transform(self, tasks: Task | Sequence[Task]) -> TargetTransform:
        """Return the transform that converts the total's output to the units of the composition; check both tasks.

        Raises:
            ConfigError: if a task is missing or of another kind or size.
        """
        total = self.composition.tasks_of(tasks)[0]
        return replace(total.transform or TargetTransform(), area=None)

    def divisor(self, transform: TargetTransform) -> float:
        """Return what differences are divided by: the total's standard deviation, 1 without one.

        Args:
            transform: of :meth:`total_transform`. The standard deviation of a logarithm is
                converted by the slope at its mean.
        """
        if transform.std is None:
            return 1.0
        (std,) = each(transform.std)  # the total has one output
        if not transform.log1p:
            return std
        mean = 0.0
        if transform.mean is not None:
            (mean,) = each(transform.mean)
        return std * math.exp(min(mean, _LARGEST_LOG))

    def __call__(
        self,
        transform: TargetTransform,
        outputs: TensorsByTask,
        targets: TensorsByTask,
        masks: TensorsByTask,
        micro_batch: MicroBatch | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return the loss and whether anything counts, a bool tensor.

        Args:
            transform: of :meth:`total_transform`.
            outputs: at least those of the two tasks, in normalised units.
            targets: at least those of the two tasks, in normalised units.
            masks: by name; without a mask everything counts.
            micro_batch: the micro-batch that the samples are; None = a whole batch.

        Raises:
            ShapeError: if shapes do not fit.
        """
        expected = (len(outputs[self.composition.total]), len(self.composition.names))
        if self.name in targets and targets[self.name].shape != expected:
            raise ShapeError(
                f"the target of {self.name!r} is {tuple(targets[self.name].shape)}; expected "
                f"{expected}"
            )
        keep = self._kept(targets, masks)
        # masked NaN must not come back through the product's gradient
        keep_sample = keep.any(dim=1, keepdim=True)
        total_output = exact(outputs[self.composition.total])
        total = transform.inverse(torch.where(keep_sample, total_output, 0.0))
        ratio_logits = torch.where(keep_sample, outputs[self.composition.ratio], 0.0)
        pred = self.composition(total, ratio_logits)
        target = targets.get(self.name)
        if target is None:
            total_target = transform.inverse(exact(targets[self.composition.total]))
            ratio_target = targets[self.composition.ratio]
            target = self.composition.of_shares(total_target, ratio_target)
        difference = torch.where(keep, pred - target.to(pred), 0.0) / self.divisor(transform)
        if self.loss == "mse":
            errors = difference.square()
        else:
            errors = smooth_l1(difference, self.beta)
        output_weights = self.weights
        if not output_weights:
            count = len(self.composition.names)
            output_weights = (1.0 / count,) * count
        weights = constants(output_weights, pred)
        if micro_batch is None:
            counts = keep.sum(dim=0)
        else:
            counts = micro_batch.counts[self.name]
            errors = micro_batch.weigh(errors)
        per_output = errors.sum(dim=0) / counts.clamp_min(1)
        return (weights * per_output).sum(), ((counts > 0) & (weights > 0)).any()

    def counts(self, targets: TensorsByTask, masks: TensorsByTask) -> Tensor:
        """Return how many values of each output count, (outputs,)."""
        return self._kept(targets, masks).sum(dim=0)

    def _kept(self, targets: TensorsByTask, masks: TensorsByTask) -> Tensor:
        """Return a bool mask (B, outputs), True where a value counts."""
        total, ratio = self.composition.inputs
        if self.name in targets:
            return _present(targets, masks, self.name)
        keep_total = _present(targets, masks, total).all(dim=1)
        keep_ratio = _present(targets, masks, ratio).all(dim=1)
        keep_both = (keep_total & keep_ratio)[:, None]
        keep = keep_both.expand(-1, len(self.composition.names))
        return full_mask(masks.get(self.name), keep) & keep_both


def _present(targets: TensorsByTask, masks: TensorsByTask, name: str) -> Tensor:
    """Return a bool mask in the target's shape, True where it is not NaN and its mask is True."""
    target = targets[name]
    return full_mask(masks.get(name), target) & ~target.isnan()
