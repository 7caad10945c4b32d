"""The loss of a head: the sum of its tasks' losses, with weights that are given or learned."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, cast, get_args

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from dinoneck.configured import Configured
from dinoneck.errors import ConfigError, ShapeError
from dinoneck.kinds import OBJECTS
from dinoneck.losses.composition import Composition, CompositionLoss, TensorsByTask
from dinoneck.losses.mask import MicroBatchOfObjects, centre_loss, mask_loss
from dinoneck.losses.masked import (
    DensityRegulariser,
    MicroBatch,
    by_pixel,
    class_errors,
    counted_classes,
    exact,
    full_mask,
    label_errors,
    masked_mean,
    pixels_of,
    shares,
    smooth_l1,
    vector_errors,
    weighted_difference,
)
from dinoneck.tasks import CLASSES, MAP, MASKS, Kind, Task, check_tasks, has_direction
from dinoneck.text import did_you_mean

LOG_VARIANCE_BOUND = 12.0  # weights between 3e-6 and 8e4
_SMALLEST_COUNT = 1e-12  # a denominator below it is raised to it


class UncertaintyWeighting(Configured, nn.Module):
    """The sum of ½ e^(-s) L + ½ s over the losses L, with one learned log-variance s for each.

    A loss that stays high gets a large s and so a small weight; the optimum of s is ln L. The first
    training forward in which a loss counts sets its s to ln L, so that all losses begin with equal
    parts in the total. Use it where the scales of several losses are unknown; known weights, such
    as those of a metric, belong to the tasks instead. The total becomes negative as losses become
    small: do not select a checkpoint by it.

    Pass its parameter to the optimizer, without weight decay. It has one axis, so rules which
    exclude biases and norms from weight decay exclude it too. s is limited to -12 ... 12. Each
    training forward first clamps the values, and the gradient passes through the limit. The state
    dict holds which s were set, so a resumed run keeps them.

    Args:
        names: of the losses.
        device: torch factory keyword.
        dtype: torch factory keyword; float32 by default, whatever torch's default is.

    Shape:
        ``{name: scalar}`` -> a scalar in float32 or wider.

    Raises:
        ConfigError: if names are missing, empty or repeated.
        ShapeError: if a loss is missing, unknown or not a single number.

    Examples:
        >>> weighting = UncertaintyWeighting(["mass", "state"])
        >>> weighting({"mass": torch.tensor(4.0), "state": torch.tensor(1.0)})
        tensor(1.6931, grad_fn=<SumBackward0>)
        >>> {name: round(factor.item(), 4) for name, factor in weighting.weights().items()}
        {'mass': 0.125, 'state': 0.5}

    Reference: Kendall, Gal and Cipolla, "Multi-task learning using uncertainty to weigh losses"
    (CVPR 2018). Deviations: the same ½ for classes as for values; s is bounded and begins at ln L;
    a loss in which nothing counts is left out.
    """

    is_set: Tensor

    def __init__(self, names: Sequence[str], *, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        self.names = tuple(names)
        if not self.names or "" in self.names:
            raise ConfigError(
                f"UncertaintyWeighting(names=) is {self.names}; expected one or more names, none "
                "empty"
            )
        for name in self.names:
            if self.names.count(name) > 1:
                raise ConfigError(
                    f"UncertaintyWeighting(names=) has {name!r} twice; name each loss once"
                )
        self.log_variance = nn.Parameter(
            torch.empty(len(self.names), device=device, dtype=dtype or torch.float32)
        )
        self.register_buffer(
            "is_set", torch.zeros(len(self.names), dtype=torch.bool, device=device)
        )
        self.reset_parameters()

    def extra_repr(self) -> str:
        """Show the names of the losses."""
        return f"names={self.names}"

    def reset_parameters(self) -> None:
        """Set s to 0 until the next training forward in which its loss counts."""
        nn.init.zeros_(self.log_variance)
        self.is_set.zero_()

    def weights(self) -> dict[str, Tensor]:
        """Return the factor ½ exp(-s) of each loss, on the device and without a gradient."""
        s = self.log_variance.detach().clamp(-LOG_VARIANCE_BOUND, LOG_VARIANCE_BOUND)
        return dict(zip(self.names, (0.5 * torch.exp(-s)).unbind(), strict=True))

    def forward(
        self,
        losses: Mapping[str, Tensor],
        counts: Mapping[str, Tensor | float] | None = None,
        share: float | Tensor = 1.0,
    ) -> Tensor:
        """Return the weighted sum.

        Args:
            losses: name -> a single number, of every name.
            counts: name -> the number of values that count, of every name; a loss with 0 of them
                adds 0 and its s gets no gradient (an optimizer's momentum may still change it).
                None = all count.
            share: of the batch that the losses are of; ½ s counts by it.
        """
        values = exact(self._stacked("losses", losses))
        keep = None if counts is None else self._stacked("counts", counts) > 0
        if self.training:
            self._set_first_values(values.detach(), keep)
        s = exact(self.log_variance)
        # the gradient passes: s can return
        s = s + (s.clamp(-LOG_VARIANCE_BOUND, LOG_VARIANCE_BOUND) - s).detach()
        if keep is None:
            return (0.5 * torch.exp(-s) * values + 0.5 * s * share).sum()
        values = torch.where(keep, values, 0.0)
        return torch.where(keep, 0.5 * torch.exp(-s) * values + 0.5 * s * share, 0.0).sum()

    def _set_first_values(self, losses: Tensor, keep: Tensor | None) -> None:
        """Set each s that is not set yet to ln L, if its loss counts; limit all of them.

        Args:
            losses: (names,).
            keep: which of them count, (names,); None = all.
        """
        if keep is None:
            keep = torch.ones_like(self.is_set)
        first, counted = _over_processes(losses, keep)
        has_optimum = (first > 0) & counted  # else s begins at 0
        initial = torch.where(has_optimum, first, 1.0).log().to(self.log_variance.dtype)
        # through .data, so that an earlier forward of the same step can still go backward; without a
        # branch on is_set, which would wait for the device
        values = self.log_variance.data
        values.copy_(torch.where(self.is_set, values, initial))
        self.is_set.logical_or_(counted)
        values.clamp_(-LOG_VARIANCE_BOUND, LOG_VARIANCE_BOUND)

    def _stacked(self, what: str, scalars: Mapping[str, Any]) -> Tensor:
        for name in self.names:
            if name not in scalars:
                raise ShapeError(
                    f"the {what} lack {name!r}; they hold {', '.join(scalars) or 'nothing'}"
                )
        for name in scalars:
            if name not in self.names:
                raise ShapeError(
                    f"the {what} hold {name!r}; this weighting was built for "
                    f"{', '.join(self.names)}"
                )
        values = []
        for name in self.names:
            value = torch.as_tensor(scalars[name], device=self.log_variance.device)
            if value.numel() != 1:
                raise ShapeError(
                    f"{what}[{name!r}] has shape {tuple(value.shape)}; expected a single number"
                )
            values.append(value.reshape(()))
        return torch.stack(values)


def _over_processes(values: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean loss of the processes in which it counts, and whether it counts in any: they all start alike."""
    if not dist.is_available() or not dist.is_initialized():
        return values, keep
    table = torch.stack([torch.where(keep, values, 0.0), keep.to(values.dtype)])
    dist.all_reduce(table)
    return table[0] / table[1].clamp_min(1.0), table[1] > 0


class TaskLoss(nn.Module):
    """Sum of the tasks' losses, each by its kind, weight and mask.

    A task with one weight adds weight x mean over samples and outputs (and cells, by their weight,
    for ``dense``); a task with a weight per output adds the sum over outputs of weight x mean over
    samples.

    Args:
        tasks: of any kind.
        compositions: those of the head, or a :class:`CompositionLoss` of each with other weights or
            another scale; those that add up tasks have no loss.
        weighting: learned weights of the tasks and compositions instead of ``Task.weight``, built
            for their names. Its parameter must be passed to the optimizer.
        regularisers: of the maps of density tasks, each added to the total without the weighting.

    Shape:
        outputs and targets by task name in normalised units -> the total and its parts:

        * regression, density, ratio: (B, dim) both, a target NaN = missing; mask (B,) or (B, dim);
        * multilabel: (B, dim) logits and 0 or 1, NaN = not known; mask (B,) or (B, dim);
        * classification: (B, dim), class indices (B,) or probabilities (B, dim); mask (B,);
        * dense: (B, dim, rows, cols) both, a cell with NaN in its target = missing, of surface
          normals also one with the zero vector; the mask is a weight per cell (B, rows, cols), bool
          or float;
        * segmentation: (B, dim, rows, cols), see :func:`map_cross_entropy`; mask (B, H, W);
        * instances, panoptic: class and mask logits of queries, or maps of centres; the target
          (B, H, W) has ids: 1000 * (class + 1) + number for the pixels of an object, 0 = none, -1 =
          does not count; mask (B, H, W).

        A regulariser reads ``outputs["<task>.map"]``, (B, dim, rows, cols). A composition's target
        (B, outputs) and mask, (B,) or (B, outputs), have its name as key and are optional.

    Raises:
        ConfigError: if names are repeated, or compositions, weighting or regularisers do not fit
            the tasks.
        ShapeError: if an output or target is missing or has another shape, or a mask has an unknown
            name.

    Examples:
        >>> loss = TaskLoss([Task("total"), Task("state", dim=4, kind="classification", weight=0.1)])
        >>> outputs = {"total": torch.zeros(2, 1), "state": torch.zeros(2, 4)}
        >>> total, parts = loss(outputs, {"total": torch.ones(2, 1), "state": torch.tensor([0, 3])})
        >>> {name: round(part.item(), 4) for name, part in parts.items()}
        {'total': 1.0, 'state': 0.1386}
    """

    def __init__(
        self,
        tasks: Task | Sequence[Task],
        compositions: Sequence[Composition | CompositionLoss] = (),
        weighting: UncertaintyWeighting | None = None,
        regularisers: Sequence[DensityRegulariser] = (),
    ) -> None:
        super().__init__()
        self.tasks = check_tasks(tasks, kinds=get_args(Kind), owner="TaskLoss")
        self.compositions = _composition_losses(compositions)
        self.weighting = weighting
        self.regularisers = tuple(regularisers)
        self._transforms = {}
        for composition in self.compositions:
            self._transforms[composition.name] = composition.total_transform(self.tasks)
        self._names = [task.name for task in self.tasks]
        self._names += [composition.name for composition in self.compositions]
        self._check_part_names()
        if weighting is not None:
            self._check_weighting(weighting)
        self._check_regularisers()

    def _check_part_names(self) -> None:
        """Check that every part of the loss has a name of its own."""
        names = list(self._names)
        for regulariser in self.regularisers:
            names += regulariser.names
        for name in names:
            if names.count(name) > 1:
                raise ConfigError(
                    f"TaskLoss has several parts named {name!r}; names are keys and must differ"
                )

    def _check_weighting(self, weighting: UncertaintyWeighting) -> None:
        """Check that the weighting has the names of this loss, and that no task has a weight too."""
        if set(weighting.names) != set(self._names):
            raise ConfigError(
                f"the weighting is built for {', '.join(weighting.names)}; the tasks and "
                f"compositions are {', '.join(self._names)}: build it for their names"
            )
        for task in self.tasks:
            if not isinstance(task.weight, tuple) and task.weight != 1.0:
                raise ConfigError(
                    f"task {task.name!r} has weight {task.weight:g} and TaskLoss a weighting that "
                    "learns it: use one of them (a weight per output is allowed with both)"
                )

    def _check_regularisers(self) -> None:
        """Check that regularisers name density tasks."""
        kinds = {task.name: task.kind for task in self.tasks}
        for regulariser in self.regularisers:
            name = regulariser.task
            if name not in kinds:
                raise ConfigError(
                    f"a DensityRegulariser names task {name!r}; there are "
                    f"{', '.join(kinds)}.{did_you_mean(name, kinds)}"
                )
            if kinds[name] != "density":
                raise ConfigError(
                    f"a DensityRegulariser names task {name!r} of kind {kinds[name]!r}; "
                    "expected a density task"
                )

    def forward(
        self,
        outputs: Mapping[str, Tensor],
        targets: Mapping[str, Tensor],
        masks: Mapping[str, Tensor] | None = None,
        micro_batch: MicroBatch | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return (total, parts).

        The parts sum to the total; with a ``weighting`` those of tasks and compositions are the
        losses before it.

        Args:
            outputs: by task name.
            targets: by task name.
            masks: by task name; without a mask everything counts.
            micro_batch: the micro-batch that the samples are: means are over the values of the whole
                batch, so that the totals and parts of all its micro-batches add up to those of the
                batch. None = a whole batch.
        """
        masks = masks or {}
        self._check_given(outputs, targets, masks)
        losses: dict[str, Tensor] = {}
        counts: dict[str, Tensor | float] = {}  # whether any value counts
        for task in self.tasks:
            target = targets[task.name]
            mask = masks.get(task.name)
            if _is_learned_as_objects(task, outputs):
                loss, is_counted = _objects_loss(task, outputs, target, mask, micro_batch)
            else:
                loss, is_counted = _loss(task, outputs, target, mask, micro_batch)
            losses[task.name] = loss
            counts[task.name] = is_counted
        for composition in self.compositions:
            name = composition.name
            transform = self._transforms[name]
            losses[name], counts[name] = composition(
                transform, outputs, targets, masks, micro_batch
            )
        if self.weighting is None:
            total = torch.stack(list(losses.values())).sum()
        else:
            share = 1.0 if micro_batch is None else micro_batch.share
            total = self.weighting(losses, counts, share)
        penalties = self._penalties(outputs, micro_batch)
        return torch.stack([total, *penalties.values()]).sum(), {**losses, **penalties}

    def counts(
        self,
        outputs: Collection[str],
        targets: Mapping[str, Tensor],
        masks: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Return what the means of a batch are over, for the losses of its micro-batches.

        Args:
            outputs: names of the outputs that the targets are compared with.
            targets: as of :meth:`forward`.
            masks: see there.

        Returns:
            Name of the task or composition -> how many values count: of numbers (dim,), of classes
            a scalar, of objects (2,): their number, and that of images with cells that count; of a
            composition (outputs,).
        """
        masks = masks or {}
        counts: dict[str, Tensor] = {}
        for task in self.tasks:
            target = targets[task.name]
            mask = masks.get(task.name)
            if _is_learned_as_objects(task, outputs):
                counts[task.name] = _count_objects(task, target, mask)
            elif task.is_categorical:
                counts[task.name] = _count_classes(task, target, mask)
            else:
                counts[task.name] = _count_values(task, target, mask)
        for composition in self.compositions:
            counts[composition.name] = composition.counts(targets, masks)
        return counts

    def counted(self, counts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return name of the task or composition -> whether a value counts whose weight is not 0, a bool tensor.

        Args:
            counts: of :meth:`counts`.
        """
        counted: dict[str, Tensor] = {}
        for task in self.tasks:
            count = counts[task.name]
            if isinstance(task.weight, tuple):
                counted[task.name] = _any_counts(task.weight, count)
            else:
                counted[task.name] = (count > 0).any()
        for composition in self.compositions:
            count = counts[composition.name]
            weights = composition.weights or (1.0,) * len(count)
            counted[composition.name] = _any_counts(weights, count)
        return counted

    def _penalties(
        self, outputs: TensorsByTask, micro_batch: MicroBatch | None
    ) -> dict[str, Tensor]:
        """The weighted penalties of the regularisers that have a weight."""
        penalties: dict[str, Tensor] = {}
        for regulariser in self.regularisers:
            if not regulariser.names:
                continue
            map_name = f"{regulariser.task}{MAP}"
            if map_name not in outputs:
                raise ShapeError(
                    f"the outputs lack {map_name!r}, the map to regularise; they hold "
                    f"{', '.join(outputs)}"
                )
            penalties |= regulariser.parts(outputs[map_name], micro_batch)
        return penalties

    def _check_given(
        self, outputs: TensorsByTask, targets: TensorsByTask, masks: TensorsByTask
    ) -> None:
        for name in masks:
            if name not in self._names:
                raise ShapeError(
                    f"there is a mask for {name!r}; the tasks are {', '.join(self._names)}."
                    f"{did_you_mean(name, self._names)}"
                )
        for task in self.tasks:
            if task.is_masks:
                output_names = [f"{task.name}{MASKS}", f"{task.name}{MAP}"]  # one of them
            else:
                output_names = [task.name]
            if not any(name in outputs for name in output_names):
                raise ShapeError(
                    f"the outputs lack task {task.name!r}; they hold "
                    f"{', '.join(outputs) or 'nothing'}"
                )
            if task.name not in targets:
                raise ShapeError(
                    f"the targets lack task {task.name!r}; they hold "
                    f"{', '.join(targets) or 'nothing'}"
                )
            if task.is_masks:
                continue
            shape = tuple(outputs[task.name].shape)
            if task.is_map:
                ndim = 4
                expected = f"(batch, {task.dim}, rows, cols)"
            else:
                ndim = 2
                expected = f"(batch, {task.dim})"
            if len(shape) != ndim or shape[1] != task.dim:
                raise ShapeError(
                    f"the output of task {task.name!r} is {shape}; expected {expected}"
                )


def _composition_losses(
    compositions: Sequence[Composition | CompositionLoss],
) -> tuple[CompositionLoss, ...]:
    """The losses of the compositions that have one: sums of tasks have none."""
    losses = []
    for composition in compositions:
        if isinstance(composition, CompositionLoss):
            losses.append(composition)
        elif not composition.adds_tasks:
            losses.append(CompositionLoss(composition))
    return tuple(losses)


def _is_learned_as_objects(task: Task, outputs: Collection[str]) -> bool:
    """Whether a task has the loss of objects: so have the classes of pixels that a head predicts by queries."""
    return task.is_masks or f"{task.name}{MASKS}" in outputs


def _objects_loss(
    task: Task,
    outputs: TensorsByTask,
    target: Tensor,
    mask: Tensor | None,
    micro_batch: MicroBatch | None,
) -> tuple[Tensor, Tensor]:
    """Return the weighted loss of objects, of queries or of centres, and whether any cell counts."""
    class_logits = outputs.get(f"{task.name}{CLASSES}")
    mask_logits = outputs.get(f"{task.name}{MASKS}")
    maps = outputs[f"{task.name}{MAP}"] if mask_logits is None else mask_logits
    objects, cell_weight = known_masks(task, target, maps.shape[-2:], mask)
    micro_batch_of_objects = None
    counts = cell_weight.sum() > 0
    if micro_batch is not None:
        num_objects, num_images = micro_batch.counts[task.name].unbind()
        micro_batch_of_objects = MicroBatchOfObjects(
            num_objects, micro_batch.num_in_batch, micro_batch.sample_weights
        )
        counts = num_images > 0
    if class_logits is None:
        loss = centre_loss(maps, objects, cell_weight, micro_batch_of_objects)
    else:
        loss = mask_loss(class_logits, maps, objects, cell_weight, micro_batch_of_objects)
    return cast(float, task.weight) * loss * counts, counts


def _count_objects(task: Task, target: Tensor, mask: Tensor | None) -> Tensor:
    """Return the number of objects, or of classes in images, and that of images with cells that count, (2,)."""
    objects, cell_weights = known_masks(task, target, (1, 1), mask)
    num_objects = sum(len(labels) for labels, _ in objects)
    weight_of_images = cell_weights.flatten(1).sum(dim=1)
    num_images = (weight_of_images > 0).sum().float()
    return torch.stack([torch.full_like(num_images, num_objects), num_images])


def known_masks(
    task: Task, target: Tensor, size: Sequence[int], mask: Tensor | None
) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
    """Return the objects, or the classes, of images as known masks at a size, as :func:`mask_loss` takes them.

    Args:
        task: of the target.
        target: ids of objects or class indices (B, H, W); or probabilities of classes (B, K, H, W).
        size: (h, w) of the masks, which are the means of the pixels of a cell.
        mask: (B, H, W), the pixels that count; None = all.

    Returns:
        Per image the classes (n,) and masks (n, h, w) that it holds, and the weights (B, h, w) of
        the cells.
    """
    objects = []
    cell_weights = []
    cells = (size[0], size[1])
    for i, image_target in enumerate(target):
        if image_target.ndim == 3:  # probabilities (K, H, W)
            labels = torch.arange(len(image_target), device=image_target.device)
            masks = image_target.float()
            valid = image_target.sum(dim=0) > 0
        else:
            ids = image_target if task.is_masks else _ids_of_classes(task, image_target)
            labels, masks = _masks_of_ids(ids)
            valid = ids >= 0
        if mask is not None:
            valid = valid * mask[i]
        counts = F.adaptive_avg_pool2d(valid.to(masks)[None], cells)
        means = F.adaptive_avg_pool2d(masks * valid, cells) / counts.clamp_min(_SMALLEST_COUNT)
        is_present = means.flatten(1).any(dim=1)
        objects.append((labels[is_present], means[is_present]))
        cell_weights.append(counts[0])
    return objects, torch.stack(cell_weights)


def _ids_of_classes(task: Task, classes: Tensor) -> Tensor:
    """Return class indices (H, W) as ids of one object per class; -1 where no class counts."""
    is_class = (classes >= 0) & (classes < task.dim) & (classes != task.ignore_index)
    return torch.where(is_class, OBJECTS * (classes + 1), -1)


def _masks_of_ids(ids: Tensor) -> tuple[Tensor, Tensor]:
    """Return classes (n,) and masks (n, H, W), float32, of the objects in ids (H, W)."""
    object_ids = torch.unique(ids)
    object_ids = object_ids[object_ids >= OBJECTS]
    masks = ids == object_ids[:, None, None]
    return object_ids // OBJECTS - 1, masks.float()


def _loss(
    task: Task,
    outputs: TensorsByTask,
    target: Tensor,
    mask: Tensor | None,
    micro_batch: MicroBatch | None,
) -> tuple[Tensor, Tensor]:
    """Return the weighted loss of a task, and whether anything counts, a bool tensor."""
    output = outputs[task.name]
    if not task.is_categorical:
        return _values_loss(task, output, target, mask, micro_batch)
    if task.is_map:
        output, target, mask = by_pixel(output, target, mask)
    errors, keep = class_errors(output, target, mask, task.ignore_index)
    if micro_batch is None:
        return cast(float, task.weight) * masked_mean(errors, keep), keep.any()
    count = micro_batch.counts[task.name]
    loss = masked_mean(micro_batch.weigh(errors), keep, count)
    return cast(float, task.weight) * loss, count > 0


def _count_classes(task: Task, target: Tensor, mask: Tensor | None) -> Tensor:
    """Return how many samples, or pixels, have a class that counts."""
    if task.is_map:
        target = pixels_of(target)
    return counted_classes(target, mask, task.ignore_index).sum()


def _values_loss(
    task: Task, output: Tensor, target: Tensor, mask: Tensor | None, micro_batch: MicroBatch | None
) -> tuple[Tensor, Tensor]:
    """The loss of numbers: the mean over samples (and cells, by weight), of each output or of all; NaN = missing."""
    if task.is_unit:
        return _vectors_loss(task, output, target, mask, micro_batch)
    if task.kind == "dense":
        errors, keep = _cell_errors(task, output, target, mask)
    else:
        errors, keep = _number_errors(task, output, target, mask)
    keep = keep.to(errors).expand_as(errors)
    if micro_batch is None:
        counts = _sum_outputs(keep)
    else:
        counts = micro_batch.counts[task.name]
        errors = micro_batch.weigh(errors)
    sums = _sum_outputs(errors * keep)
    if isinstance(task.weight, tuple):
        return _weighted_outputs(task.weight, sums, counts)
    count = counts.sum()
    loss = task.weight * sums.sum() / torch.where(count > 0, count, 1.0)
    return loss, (count > 0) & (task.weight > 0)


def _cell_errors(
    task: Task, output: Tensor, target: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The errors (B, dim, rows, cols) of maps, 0 where a cell does not count, and the weights (B, 1, rows, cols)."""
    difference, weight = weighted_difference(output, target, mask)
    # (B, 1, rows, cols): the outputs of a cell share its weight
    is_complete = ~target.isnan().any(dim=1, keepdim=True)
    difference = torch.where(is_complete, difference, 0.0)
    weight = torch.where(is_complete, weight, 0.0)
    return _errors_of_differences(task, difference), weight


def _number_errors(
    task: Task, output: Tensor, target: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The errors (B, dim) of numbers, shares or labels, 0 where one does not count, and whether it counts."""
    if output.shape != target.shape:
        raise ShapeError(
            f"the output of task {task.name!r} is {tuple(output.shape)} and its target "
            f"{tuple(target.shape)}; expected the same shape"
        )
    keep = full_mask(mask, target) & ~target.isnan()
    if task.is_multilabel:
        return label_errors(output, target, keep), keep
    # the softmax of a ratio runs over all outputs
    output = shares(output, keep) if task.kind == "ratio" else exact(output)
    difference = torch.where(keep, output - target.to(output), 0.0)
    return _errors_of_differences(task, difference), keep


def _errors_of_differences(task: Task, difference: Tensor) -> Tensor:
    """The errors of numbers by the loss of their task."""
    if task.default_loss == "smooth_l1":
        return smooth_l1(difference, task.beta)
    return difference.square()


def _vectors_loss(
    task: Task, output: Tensor, target: Tensor, mask: Tensor | None, micro_batch: MicroBatch | None
) -> tuple[Tensor, Tensor]:
    """The loss of surface normals: the mean of 1 - cosine over cells, by weight; a zero vector or NaN = missing."""
    errors, keep = vector_errors(output, target, mask)
    count = keep.sum()
    if micro_batch is not None:
        count = micro_batch.counts[task.name].sum()
        errors = micro_batch.weigh(errors)
    weight = cast(float, task.weight)
    loss = weight * (errors * keep).sum() / torch.where(count > 0, count, 1.0)
    return loss, (count > 0) & (weight > 0)


def _count_values(task: Task, target: Tensor, mask: Tensor | None) -> Tensor:
    """Return how many values count, of maps the sum of the weights of their cells, (dim,); of surface normals (1,)."""
    if task.is_unit:
        keep = torch.where(has_direction(target), _weight_of_cells(target, mask), 0.0)
        return _sum_outputs(keep.to(exact(target)))
    if task.kind == "dense":
        is_complete = ~target.isnan().any(dim=1, keepdim=True)  # (B, 1, rows, cols)
        keep = torch.where(is_complete, _weight_of_cells(target, mask), 0.0)
    else:
        keep = full_mask(mask, target) & ~target.isnan()
    return _sum_outputs(keep.to(exact(target)).expand_as(target))


def _weight_of_cells(target: Tensor, mask: Tensor | None) -> Tensor:
    """How much every cell of a target (B, dim, rows, cols) counts, (B, 1, rows, cols)."""
    if mask is None:
        return torch.ones_like(target[:, :1])
    return mask.to(exact(target)).unsqueeze(1)


def _sum_outputs(x: Tensor) -> Tensor:
    """Return the sums (dim,) of values (B, dim, ...)."""
    return x.movedim(1, 0).flatten(1).sum(dim=1)


def _weighted_outputs(
    weights: tuple[float, ...], sums: Tensor, counts: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the weighted sum of the outputs' means, and whether a value with a weight counts."""
    means = sums / torch.where(counts > 0, counts, 1.0)
    # weights are Python numbers: a tensor of them would be copied to the device at every step
    weighted_means = []
    for weight, mean in zip(weights, means.unbind(), strict=True):
        weighted_means.append(weight * mean)
    return torch.stack(weighted_means).sum(), _any_counts(weights, counts)


def _any_counts(weights: tuple[float, ...], counts: Tensor) -> Tensor:
    """Return whether a value of an output with a weight counts; the weights are not copied to the device."""
    weighted_counts = []
    for weight, count in zip(weights, counts, strict=True):
        weighted_counts.append(count * (weight > 0))
    return torch.stack(weighted_counts).sum() > 0
