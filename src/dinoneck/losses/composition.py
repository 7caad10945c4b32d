"""Values that must add up: parts as a total times shares, and sums of parts.

Predicting five masses one by one gives five answers that contradict each other; a total and the shares of its
parts give answers that agree exactly, and the loss of all five still teaches both.
"""

from __future__ import annotations

import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

import torch
from torch import Tensor

from dinoneck.configured import normal
from dinoneck.errors import ConfigError, ShapeError, did_you_mean
from dinoneck.losses.masked import exact, full_mask, shares, smooth_l1
from dinoneck.tasks import TargetTransform, Task

Sums = tuple[tuple[str, tuple[str, ...]], ...] | Mapping[str, tuple[str, ...]]
Table = Mapping[str, Tensor]


@dataclass(frozen=True)
class Composition:
    """Parts of a whole, and sums of some of them, from a total and the logits of the parts' shares.

    Args:
        parts: names in the order of the ratio logits.
        sums: further outputs, each a name and the parts that it adds up: a dict, or pairs (its normal form, since
            the order of a dict is lost in a file).

    Shape:
        total (B, 1), ratio logits (B, parts) -> (B, parts + sums), in float32 or wider.

    Raises:
        ConfigError: if a name is repeated, or a sum is empty or names an unknown part.
        ShapeError: if total or logits have another shape.

    Examples:
        >>> composition = Composition()
        >>> composition.names
        ('clover', 'dead', 'green', 'GDM', 'total')
        >>> composition(torch.tensor([[60.0]]), torch.zeros(1, 3))
        tensor([[20., 20., 20., 40., 60.]])

    Reference: design source "FPN spatial modelling for biomass", 6.2 (total x softmax of the ratio logits).
    """

    parts: tuple[str, ...] = ("clover", "dead", "green")
    sums: Sums = (("GDM", ("clover", "green")), ("total", ("clover", "dead", "green")))

    def __post_init__(self) -> None:
        _normalise(self)
        pairs = self.sums.items() if isinstance(self.sums, Mapping) else self.sums
        object.__setattr__(self, "sums", tuple(pairs))
        if not self.parts:
            raise ConfigError("Composition(parts=) is empty; name at least one part")
        for name in self.names:
            if not name or self.names.count(name) > 1:
                raise ConfigError(f"Composition: a name of {self.names} is empty or repeated; outputs have names apart")
        for name, members in self._pairs:
            for part in members:
                if part not in self.parts:
                    hint = did_you_mean(part, self.parts)
                    raise ConfigError(f"Composition: {name!r} adds up {part!r}, which is none of {self.parts}.{hint}")
            if not members or len(set(members)) < len(members):
                raise ConfigError(f"Composition: {name!r} adds up {members}; expected one or more parts, each once")

    @property
    def names(self) -> tuple[str, ...]:
        """The outputs in their order: parts, then sums."""
        return (*self.parts, *(name for name, _ in self._pairs))

    @property
    def _pairs(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        return typing.cast("tuple[tuple[str, tuple[str, ...]], ...]", self.sums)

    def __call__(self, total: Tensor, ratio_logits: Tensor) -> Tensor:
        """Return the outputs (B, parts + sums) in the order of :attr:`names`."""
        self._check(total, ratio_logits)
        return self.of_shares(total, shares(ratio_logits))

    def of_shares(self, total: Tensor, ratio: Tensor) -> Tensor:
        """Like a call, with the parts' shares (B, parts) themselves in place of logits."""
        self._check(total, ratio)
        parts = exact(total) * exact(ratio)
        sums = [parts[:, [self.parts.index(part) for part in members]].sum(dim=1) for _, members in self._pairs]
        return torch.cat((parts, *(column[:, None] for column in sums)), dim=1)

    def _check(self, total: Tensor, ratio: Tensor) -> None:
        if total.ndim != 2 or total.shape[1] != 1 or ratio.shape != (total.shape[0], len(self.parts)):
            raise ShapeError(
                f"the total is {tuple(total.shape)} and the ratio {tuple(ratio.shape)}; expected (batch, 1) and "
                f"(batch, {len(self.parts)}) for the parts {', '.join(self.parts)}"
            )


@dataclass(frozen=True)
class CompositionLoss:
    """The error of composed outputs, taken from the outputs of two tasks by :class:`TaskLoss`.

    The total's output is led back through its task's transform without the area, so that grams fitted as g/m²
    are compared in g/m². The target is ``targets[name]`` (B, outputs) in those units where it is given, else
    composed of the two tasks' targets. A sample counts where its total and all its shares do; ``masks[name]``
    takes that place for a target of its own and narrows it for a composed one.

    Args:
        name: of the loss, among the tasks' names.
        total: name of a regression or density task of one output.
        ratio: name of a ratio task whose outputs are the composition's parts, in that order.
        weights: one per output of the composition; None = equal ones that sum to 1.
        composition: how the outputs come about.
        loss: ``mse`` or ``smooth_l1``.
        beta: where ``smooth_l1`` turns from square to linear.
        scale: what the differences of each output are divided by, such as its standard deviation; None = 1.

    Raises:
        ConfigError: if a value is out of range or does not fit the others.

    Examples:
        >>> biomass = CompositionLoss("biomass", "total", "ratio", weights=(0.1, 0.1, 0.1, 0.2, 0.5), loss="smooth_l1")
        >>> dict(zip(biomass.composition.names, biomass.weights))
        {'clover': 0.1, 'dead': 0.1, 'green': 0.1, 'GDM': 0.2, 'total': 0.5}

    Reference: design source "FPN spatial modelling for biomass", 6.2 (weighted loss of the five composed masses).
    """

    name: str
    total: str
    ratio: str
    weights: tuple[float, ...] | None = None
    composition: Composition = field(default_factory=Composition)
    loss: Literal["mse", "smooth_l1"] = "mse"
    beta: float = 1.0
    scale: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        _normalise(self)
        where, count = f"CompositionLoss {self.name!r}: ", len(self.composition.names)
        if not self.name or not self.name.isprintable():
            raise ConfigError(f"{where}the name is no plain text; it is the key of this loss among the tasks")
        for what, values in (("weights", self.weights), ("scale", self.scale)):
            if values is not None and len(values) != count:
                raise ConfigError(f"{where}{len(values)} {what} for the {count} outputs {self.composition.names}")
        if any(value < 0 for value in self.weights or ()) or any(value <= 0 for value in self.scale or ()):
            raise ConfigError(
                f"{where}weights are {self.weights} and scale {self.scale}; expected weights of 0 or more and scales "
                "above 0"
            )
        if self.beta <= 0:
            raise ConfigError(f"{where}beta is {self.beta}; expected a positive number")

    def total_transform(self, tasks: Sequence[Task]) -> TargetTransform:
        """Return how the total's output becomes what is composed, having checked the two tasks.

        Raises:
            ConfigError: if a task is missing or of another kind or size.
        """
        known = {task.name: task for task in tasks}
        wanted = (self.total, ("regression", "density"), 1), (self.ratio, ("ratio",), len(self.composition.parts))
        for name, kinds, dim in wanted:
            where = f"CompositionLoss {self.name!r} needs task {name!r}"
            if name not in known:
                raise ConfigError(f"{where}; there are {', '.join(known)}.{did_you_mean(name, known)}")
            task = known[name]
            if task.kind not in kinds or task.dim != dim:
                raise ConfigError(
                    f"{where} of kind {' or '.join(kinds)} with dim {dim}; it is {task.kind!r} with dim {task.dim}"
                )
        return replace(known[self.total].transform or TargetTransform(), area=None)

    def __call__(
        self, transform: TargetTransform, outputs: Table, targets: Table, masks: Table
    ) -> tuple[Tensor, Tensor]:
        """Return the loss and a bool, whether anything counts.

        Args:
            transform: what :meth:`total_transform` returned.
            outputs: at least those of the two tasks, in model space.
            targets: at least those of the two tasks, in model space.
            masks: by name; missing ones mean that everything counts.

        Raises:
            ShapeError: if shapes do not fit.
        """
        keep = self._counts(targets, masks)
        known = keep.any(dim=1, keepdim=True)  # masked NaN must not come back through the product's gradient
        total = transform.inverse(torch.where(known, exact(outputs[self.total]), 0.0))
        pred = self.composition(total, torch.where(known, outputs[self.ratio], 0.0))
        target = self._target(transform, targets)
        if target.shape != pred.shape:
            raise ShapeError(f"the target of {self.name!r} is {tuple(target.shape)}; expected {tuple(pred.shape)}")
        difference = torch.where(keep, pred - target.to(pred), 0.0)
        if self.scale is not None:
            difference = difference / pred.new_tensor(self.scale)
        errors = difference.square() if self.loss == "mse" else smooth_l1(difference, self.beta)
        count = len(self.composition.names)
        weights = pred.new_tensor(self.weights or (1.0 / count,) * count)
        per_output = errors.sum(dim=0) / keep.sum(dim=0).clamp_min(1)
        return (weights * per_output).sum(), (keep & (weights > 0)).any()

    def _counts(self, targets: Table, masks: Table) -> Tensor:
        """Bool (B, outputs): what counts."""
        total, ratio = (full_mask(masks.get(name), targets[name]) for name in (self.total, self.ratio))
        both = (total.all(dim=1) & ratio.all(dim=1))[:, None].expand(-1, len(self.composition.names))
        own = masks.get(self.name)
        if own is None:
            return both
        return full_mask(own, both) if self.name in targets else full_mask(own, both) & both

    def _target(self, transform: TargetTransform, targets: Table) -> Tensor:
        if self.name in targets:
            return targets[self.name]
        return self.composition.of_shares(transform.inverse(exact(targets[self.total])), targets[self.ratio])


def _normalise(item: Any) -> None:
    """Bring the fields of a frozen dataclass to the normal form of their annotations."""
    hints = typing.get_type_hints(type(item))
    for own in fields(item):
        value = normal(hints[own.name], getattr(item, own.name), f"{type(item).__name__}({own.name}=)")
        object.__setattr__(item, own.name, value)
