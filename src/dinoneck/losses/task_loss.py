"""The loss of a head, the sum of its tasks' losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast, get_args

import torch
from torch import Tensor, nn

from dinoneck.errors import ConfigError, ShapeError
from dinoneck.losses.composition import Composition, CompositionLoss
from dinoneck.losses.mask import centre_loss, mask_loss, masks_of_classes, masks_of_objects
from dinoneck.losses.masked import (
    DensityRegulariser,
    by_pixel,
    cross_entropy,
    exact,
    full_mask,
    shares,
    smooth_l1,
    weighted_difference,
)
from dinoneck.losses.uncertainty import UncertaintyWeighting
from dinoneck.tasks import CLASSES, MAP, MASKS, Kind, Task, check_tasks

Table = Mapping[str, Tensor]


class TaskLoss(nn.Module):
    """Sum of the tasks' losses, each by its kind, weight and mask.

    A task with one weight adds weight x mean over samples and outputs (and cells, by their weight, for ``dense``); a
    task with a weight per output adds the sum over outputs of weight x mean over samples.

    Args:
        tasks: of any kind.
        compositions: those of the head, or a :class:`CompositionLoss` of each with other weights or another scale;
            those that add up tasks have no loss.
        weighting: learned weights of the tasks and compositions instead of ``Task.weight``, built for their names. Its
            parameter must be passed to the optimizer.
        regularisers: of the maps of density tasks, each added to the total without the weighting.

    Shape:
        outputs and targets by task name in normalised units -> the total and its parts:

        * regression, density, ratio: (B, dim) both, a target NaN = missing; mask (B,) or (B, dim);
        * classification: (B, dim), class indices (B,) or probabilities (B, dim); mask (B,);
        * dense: (B, dim, rows, cols) both, a cell with NaN in its target = missing; the mask is a weight per cell
          (B, rows, cols), bool or float;
        * segmentation: (B, dim, rows, cols), see :func:`map_cross_entropy`; mask (B, H, W);
        * instances, panoptic: class and mask logits of queries, or maps of centres; the target is a list with a dict
          per image of ``labels`` (n,) and ``masks`` (n, H, W), and a mask (B, H, W) has the pixels that count; or ids
          (B, H, W), int64: 1000 * (class + 1) + number for the pixels of an object, 0 = none, -1 = does not count.

        A regulariser reads ``outputs["<task>.map"]``, (B, dim, rows, cols). A composition's target (B, outputs) and
        mask, (B,) or (B, outputs), have its name as key and are optional.

    Raises:
        ConfigError: if names are repeated, or compositions, weighting or regularisers do not fit the tasks.
        ShapeError: if an output or target is missing or has another shape, or a mask has an unknown name.

    Examples:
        >>> loss = TaskLoss([Task("total"), Task("state", dim=4, kind="classification", weight=0.1)])
        >>> outputs = {"total": torch.zeros(2, 1), "state": torch.zeros(2, 4)}
        >>> total, parts = loss(outputs, {"total": torch.ones(2, 1), "state": torch.tensor([0, 3])})
        >>> {name: round(part.item(), 4) for name, part in parts.items()}
        {'total': 1.0, 'state': 0.1386}
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        compositions: Sequence[Composition | CompositionLoss] = (),
        weighting: UncertaintyWeighting | None = None,
        regularisers: Sequence[DensityRegulariser] = (),
    ) -> None:
        super().__init__()
        self.tasks = check_tasks(tasks, kinds=get_args(Kind), owner="TaskLoss")
        self.compositions = tuple(
            CompositionLoss(own) if isinstance(own, Composition) else own
            for own in compositions
            if not (isinstance(own, Composition) and own.adds_tasks)
        )
        self.weighting = weighting
        self.regularisers = tuple(regularisers)
        self._transforms = {own.name: own.total_transform(self.tasks) for own in self.compositions}
        self._names = [task.name for task in self.tasks] + [own.name for own in self.compositions]
        self._check_names()
        self._check_weighting()
        self._check_regularisers()

    def forward(
        self,
        outputs: Mapping[str, Tensor],
        targets: Mapping[str, Tensor],
        masks: Mapping[str, Tensor] | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return (total, parts).

        The parts sum to the total; with a ``weighting`` those of tasks and compositions are the losses before it.
        """
        masks = masks or {}
        self._check_given(outputs, targets, masks)
        losses = {
            x.name: (_objects_loss if f"{x.name}{MASKS}" in outputs or x.is_masks else _loss)(
                x, outputs, targets[x.name], masks.get(x.name)
            )
            for x in self.tasks
        }
        losses |= {own.name: own(self._transforms[own.name], outputs, targets, masks) for own in self.compositions}
        parts = {name: loss for name, (loss, _) in losses.items()}
        if self.weighting is None:
            total = torch.stack(list(parts.values())).sum()
        else:
            total = self.weighting(parts, {name: counts for name, (_, counts) in losses.items()})
        penalties = self._penalties(outputs)
        return torch.stack([total, *penalties.values()]).sum(), {**parts, **penalties}

    def _penalties(self, outputs: Table) -> dict[str, Tensor]:
        parts: dict[str, Tensor] = {}
        for own in (own for own in self.regularisers if own.names):
            if own.task + MAP not in outputs:
                raise ShapeError(f"the outputs lack {own.task + MAP!r}, the map to regularise; they hold {[*outputs]}")
            parts |= own.parts(outputs[own.task + MAP])
        return parts

    def _check_given(self, outputs: Table, targets: Table, masks: Table) -> None:
        if unknown := set(masks) - set(self._names):
            raise ShapeError(f"the masks name {sorted(unknown)}; the tasks are {self._names}")
        for task in self.tasks:
            for what, tensors in (("outputs", outputs), ("targets", targets)):
                ends = (MASKS, MAP) if task.is_masks and what == "outputs" else ("",)
                if not any(task.name + end in tensors for end in ends):
                    raise ShapeError(f"the {what} lack task {task.name!r}; they hold {', '.join(tensors) or 'nothing'}")
            if task.is_masks:
                continue
            shape = tuple(outputs[task.name].shape)
            if len(shape) != (4 if task.is_map else 2) or shape[1] != task.dim:
                expected = f"(batch, {task.dim}, rows, cols)" if task.is_map else f"(batch, {task.dim})"
                raise ShapeError(f"the output of task {task.name!r} is {shape}; expected {expected}")

    def _check_names(self) -> None:
        names = self._names + [name for own in self.regularisers for name in own.names]
        for name in names:
            if names.count(name) > 1:
                raise ConfigError(f"TaskLoss has several parts named {name!r}; names are keys and must differ")

    def _check_weighting(self) -> None:
        if self.weighting is None:
            return
        if set(self.weighting.names) != set(self._names):
            raise ConfigError(
                f"the weighting is built for {list(self.weighting.names)}; the tasks and compositions are {self._names}"
            )
        for task in self.tasks:
            if not isinstance(task.weight, tuple) and task.weight != 1.0:
                raise ConfigError(
                    f"task {task.name!r} has weight {task.weight:g} and TaskLoss a weighting that learns it: use one "
                    "of them (a weight per output is allowed with both)"
                )

    def _check_regularisers(self) -> None:
        known = {task.name: task.kind for task in self.tasks}
        for own in self.regularisers:
            if known.get(own.task) != "density":
                raise ConfigError(f"a DensityRegulariser names task {own.task!r}; expected a density task of {known}")


def _objects_loss(task: Task, outputs: Table, target: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """The weighted loss of masks by queries, or of objects by their centres."""
    if f"{task.name}{MASKS}" not in outputs:
        maps = outputs[f"{task.name}{MAP}"]
        known, weight = masks_of_objects(target, maps.shape[-2:], mask)
        return cast(float, task.weight) * centre_loss(maps, known, weight), weight.sum() > 0
    classes, masks = outputs[f"{task.name}{CLASSES}"], outputs[f"{task.name}{MASKS}"]
    if task.is_masks:
        known, weight = masks_of_objects(target, masks.shape[-2:], mask)
        return cast(float, task.weight) * mask_loss(classes, masks, known, weight), weight.sum() > 0
    if task.ignore_index is not None and target.ndim == 3:
        target = torch.where(target == task.ignore_index, -1, target)
    known, weight = masks_of_classes(target, task.dim, masks.shape[-2:], mask)
    counts = weight.sum() > 0
    return cast(float, task.weight) * mask_loss(classes, masks, known, weight) * counts, counts


def _loss(task: Task, outputs: Table, target: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the weighted loss of a task, and whether anything counts, a bool tensor."""
    output = outputs[task.name]
    if not task.is_categorical:
        return _values_loss(task, output, target, mask)
    rows = by_pixel(output, target, mask) if task.is_map else (output, target, mask)
    loss, counts = cross_entropy(*rows, task.ignore_index)
    return cast(float, task.weight) * loss, counts


def _values_loss(task: Task, output: Tensor, target: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """The loss of numbers: the mean over samples (and cells, by weight), of each output or of all; NaN = missing."""
    if task.kind == "dense":
        difference, keep = weighted_difference(output, target, mask)
        known = ~target.isnan().any(dim=1, keepdim=True)  # (B, 1, rows, cols): the outputs of a cell share its weight
        difference, keep = torch.where(known, difference, 0.0), torch.where(known, keep, 0.0)
    else:
        if output.shape != target.shape:
            raise ShapeError(
                f"the output of task {task.name!r} is {tuple(output.shape)} and its target {tuple(target.shape)}; "
                "expected the same shape"
            )
        keep = full_mask(mask, target) & ~target.isnan()
        # the softmax of a ratio runs over all outputs
        output = shares(output, keep) if task.kind == "ratio" else exact(output)
        difference = torch.where(keep, output - target.to(output), 0.0)
    errors = smooth_l1(difference, task.beta) if task.default_loss == "smooth_l1" else difference.square()
    keep = keep.to(errors).expand_as(errors)
    sums, counts = (x.movedim(1, 0).flatten(1).sum(dim=1) for x in (errors * keep, keep))  # (dim,) each
    if isinstance(task.weight, tuple):  # Python numbers: a tensor of them would be copied to the device at every step
        each = (sums / torch.where(counts > 0, counts, 1.0)).unbind()
        loss = torch.stack([weight * x for weight, x in zip(task.weight, each, strict=True)]).sum()
        return loss, torch.stack([x * (weight > 0) for weight, x in zip(task.weight, counts, strict=True)]).sum() > 0
    count = counts.sum()
    return task.weight * sums.sum() / torch.where(count > 0, count, 1.0), (count > 0) & (task.weight > 0)
