"""The model that ``fit`` trains: backbone (of live tokens), head and loss, which gives a batch's losses."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from dinoneck.backbones.backbone import Backbone
from dinoneck.heads.head import Head
from dinoneck.losses.masked import MicroBatch, exact
from dinoneck.losses.task_loss import TaskLoss
from dinoneck.tokens import Tokens
from dinoneck.training.folder import writes
from dinoneck.training.optim import (
    Mixup,
    draw_mixup,
    gpus_of,
    paste_box,
    random_box,
    restored,
    statistics_of_training,
)
from dinoneck.training.parameter_groups import FreezeSchedule, param_groups
from dinoneck.training.recipe import Recipe
from dinoneck.training.samples import Targets, Tensors
from dinoneck.training.targets import known_mask
from dinoneck.training.token_sources import LiveTokens, TokenSource

logger = logging.getLogger(__name__)
# of the losses of two tasks at the first step: the smaller one then is at most 1 % of their sum
LARGEST_RATIO = 100.0
# with a target: the loss of fewer may be small by chance
FEWEST_SAMPLES = 4


class Trained(nn.Module):
    """The modules that a run trains, and that are averaged, clipped and moved by SAM.

    Attributes:
        head: of the tokens.
        backbone: of live tokens, or None.
    """

    head: Head
    backbone: Backbone | None

    def __init__(self, head: Head, backbone: Backbone | None) -> None:
        super().__init__()
        self.head = head
        self.backbone = backbone

    def heads(self) -> list[Head]:
        """Return the head, and those in it."""
        return [module for module in self.head.modules() if isinstance(module, Head)]


class _BatchCounts:
    """What the means of the losses of a batch are over, which all its micro-batches share.

    Args:
        targets: of the whole batch.
    """

    def __init__(self, targets: Targets) -> None:
        self.num_samples = len(next(iter(targets.values.values())))
        self._targets = targets
        self._counts: dict[str, Tensor] | None = None

    def of_losses(self, loss: TaskLoss, outputs: Tensors) -> dict[str, Tensor]:
        """Return the counts of :meth:`TaskLoss.counts`, which are computed once."""
        if self._counts is None:
            masks = _masks_of(self._targets)
            self._counts = loss.counts(outputs, self._targets.values, masks)
        return self._counts


@dataclass(frozen=True)
class ComparedTargets:
    """Targets that the outputs are compared with: those of the samples, or of the samples that are blended in.

    Attributes:
        share: by which their loss counts.
        targets: of the samples of a batch or micro-batch.
        sample_weights: by which the loss of each sample counts next to that, (n,); None = by 1.
        batch_counts: of a micro-batch, or with weights of samples: what the means of the whole batch
            are over; None = the samples are the batch.
    """

    share: float
    targets: Targets
    sample_weights: Tensor | None = None
    batch_counts: _BatchCounts | None = None

    def take(self, samples: slice) -> ComparedTargets:
        """Return the targets of some samples."""
        weights = self.sample_weights
        if weights is not None:
            weights = weights[samples]
        return replace(self, targets=self.targets.take(samples), sample_weights=weights)

    def micro_batch(self, loss: TaskLoss, outputs: Tensors, num_samples: int) -> MicroBatch | None:
        """Return what makes the losses of micro-batches add up to that of the batch; None for a whole batch.

        Args:
            loss: of the tasks.
            outputs: of the samples.
            num_samples: how many they are.
        """
        if self.batch_counts is None:
            return None
        return MicroBatch(
            counts=self.batch_counts.of_losses(loss, outputs),
            num_samples=num_samples,
            num_in_batch=self.batch_counts.num_samples,
            sample_weights=self.sample_weights,
        )


@dataclass(frozen=True)
class StepSamples:
    """Samples of a step that are computed together: its batch, or a micro-batch of it.

    Attributes:
        inputs: tokens, or images (m, 3, H, W) float32 of live tokens: of the n samples, then of
            partners that are not among them.
        num_samples: n.
        mixup: how the tokens of the samples are blended; None = they are not.
        compared: targets of the samples, then those of the partners of blended samples.
    """

    inputs: Tokens | Tensor
    num_samples: int
    mixup: Mixup | None
    compared: Sequence[ComparedTargets]

    @property
    def targets_of_samples(self) -> ComparedTargets:
        """The targets of the samples themselves, without those of partners."""
        return self.compared[0]


class Objective(nn.Module):
    """Backbone (of live tokens), head and loss: a batch's losses by name, of samples that may be blended.

    Args:
        head: of the tokens.
        source: of the tokens; the backbone of live tokens is trained along.
        loss: over the head's tasks.
        recipe: how samples are blended.

    Attributes:
        trained: head and backbone.
        maps: names of the tasks whose targets are maps.
        vector_maps: those of them that are maps of vectors, of surface normals.
        is_first_step: whether no step of the run was taken yet; its losses are compared.
    """

    def __init__(self, head: Head, source: TokenSource, loss: TaskLoss, recipe: Recipe) -> None:
        super().__init__()
        backbone = source.backbone if isinstance(source, LiveTokens) else None
        self.trained = Trained(head, backbone)
        self.loss = loss
        self.recipe = recipe
        self.maps = {task.name for task in loss.tasks if task.is_map or task.is_masks}
        self.vector_maps = {task.name for task in loss.tasks if task.is_unit}
        self.is_first_step = True
        self._weighting_is_set = False  # whether all learned weights are known to be set

    def start_epoch(self, epoch: int) -> None:
        """Freeze and unfreeze the backbone by the recipe's plan.

        Once parts of the backbone are trained, a head that was loaded from a file no longer expects
        the tokens of the weights that it was trained on.
        """
        if self.recipe.freeze:
            FreezeSchedule(self.recipe.plan).apply(self.trained, epoch)
        backbone = self.trained.backbone
        if backbone is None or backbone.frozen:
            return
        for head in self.trained.heads():
            if head.trained_on is not None:
                head.trained_on = replace(head.trained_on, source=None)

    def optimizer_groups(self) -> list[dict[str, Any]]:
        """Return the optimizer's groups; biases, norms and the loss's own parameters have no weight decay."""
        recipe = self.recipe
        backbone = self.trained.backbone
        if backbone is not None and (recipe.freeze or not backbone.frozen):
            return param_groups(self, **recipe.rates(), include_frozen=bool(recipe.freeze))
        # with a weight decay of 0 both are one group
        by_decay: dict[float, list[Tensor]] = {recipe.weight_decay: [], 0.0: []}
        for module in (self.trained.head, self.loss):
            for parameter in module.parameters():
                if parameter.requires_grad:
                    decay = recipe.weight_decay if parameter.ndim > 1 else 0.0
                    by_decay[decay].append(parameter)
        groups: list[dict[str, Any]] = []
        for decay, parameters in by_decay.items():
            if parameters:
                groups.append({"params": parameters, "weight_decay": decay})
        return groups

    def micro_batches(
        self, inputs: Tokens | Tensor, targets: Targets, mixes: bool
    ) -> list[StepSamples]:
        """Blend the samples of a batch and divide them into micro-batches, as the recipe says.

        Args:
            inputs: tokens, or images (B, 3, H, W) float32 of live tokens.
            targets: of the batch.
            mixes: whether samples are blended.

        Returns:
            The micro-batches, whose losses add up to those of the batch; one without
            ``accumulate``.
        """
        recipe = self.recipe
        cutmix_alpha = recipe.cutmix_alpha if mixes else None
        mixup_alpha = recipe.mixup_alpha if mixes else None
        num_samples = len(inputs)
        mixup = None
        compared = [ComparedTargets(1.0, targets)]
        if cutmix_alpha is not None:
            images = cast("Tensor", inputs)
            backbone = cast("Backbone", self.trained.backbone)
            box, share = random_box(images.shape[-2:], cutmix_alpha, backbone.patch_size)
            inputs = paste_box(images, box)
            # maps are pasted as the images, the other targets count by the area
            targets = targets.with_maps(self.maps, lambda x: paste_box(x, box))
            compared = [ComparedTargets(1.0, targets)]
            compared = _with_partners(compared, Mixup(share), unchanged=self.maps)
        if mixup_alpha is not None:
            device = next(iter(targets.values.values())).device
            mixup = draw_mixup(
                num_samples, mixup_alpha, per_sample=recipe.mixup_per_sample, device=device
            )
            compared = _with_partners(compared, mixup)

        samples = StepSamples(inputs, num_samples, mixup=mixup, compared=compared)
        num_micro_batches = min(recipe.accumulate, num_samples)
        has_sample_weights = samples.targets_of_samples.sample_weights is not None
        if num_micro_batches == 1 and not has_sample_weights:
            return [samples]
        return _divide(samples, num_micro_batches)

    def forward(self, samples: StepSamples) -> Tensors:
        """Return ``loss`` and its parts ``loss/NAME``; those of all micro-batches of a step add up.

        Of blended samples a loss is the mean over what they are blended of, by its share.

        Args:
            samples: of :meth:`micro_batches`.
        """
        outputs = self.outputs(self.blended_tokens(samples))
        losses: Tensors = {}
        for compared in samples.compared:
            micro_batch = compared.micro_batch(self.loss, outputs, samples.num_samples)
            for name, value in self.losses(outputs, compared.targets, micro_batch).items():
                sum_before = losses.get(name, torch.zeros_like(value))
                losses[name] = sum_before + compared.share * value
        return losses

    def learned_weights(self) -> Tensors:
        """Return the learned weights ``weight/NAME`` of the losses; without a weighting none."""
        weights = {}
        if self.loss.weighting is not None:
            for name, weight in self.loss.weighting.weights().items():
                weights[f"weight/{name}"] = weight
        return weights

    @torch.no_grad()
    def start_weighting(self, micro_batches: Sequence[StepSamples]) -> None:
        """Give learned weights that are not set yet their first value, by the losses of a whole batch.

        Of a batch that is no micro-batch, and without weights of samples, the forward pass does so.
        """
        weighting = self.loss.weighting
        is_whole = micro_batches[0].targets_of_samples.batch_counts is None
        if weighting is None or is_whole or self._weighting_is_set:
            return
        self._weighting_is_set = bool(weighting.is_set.all())  # waits for the device until all are
        if self._weighting_is_set:
            return
        weighting.eval()  # so that it does not set its weights by a micro-batch
        losses, counts = self._losses_of_batch(micro_batches)
        weighting.train()
        batch_losses = {name: losses[f"loss/{name}"] for name in weighting.names}
        weighting(batch_losses, self.loss.counted(counts))

    def _losses_of_batch(
        self, micro_batches: Sequence[StepSamples]
    ) -> tuple[Tensors, Mapping[str, Tensor]]:
        """The losses of a batch that is computed in micro-batches, and what their means are over.

        They are those of the samples' own targets, without weights. Random numbers and statistics of
        batches stay as they are.
        """
        losses: Tensors = {}
        counts: Mapping[str, Tensor] = {}
        gpus = gpus_of(self.trained)
        with torch.random.fork_rng(devices=gpus), restored(statistics_of_training(self.trained)):
            for samples in micro_batches:
                outputs = self.outputs(self.blended_tokens(samples))
                compared = replace(samples.targets_of_samples, sample_weights=None)
                micro_batch = compared.micro_batch(self.loss, outputs, samples.num_samples)
                if micro_batch is not None:
                    counts = micro_batch.counts
                for name, value in self.losses(outputs, compared.targets, micro_batch).items():
                    losses[name] = losses.get(name, 0.0) + value
        return losses, counts

    def blended_tokens(self, samples: StepSamples) -> Tokens:
        """Return the tokens of samples, blended with those of their partners."""
        tokens = self.tokens(samples.inputs)
        if samples.mixup is None:
            return tokens
        return samples.mixup.blend(tokens)

    def tokens(self, inputs: Tokens | Tensor) -> Tokens:
        """Return the tokens themselves, or those that the backbone makes of images (B, 3, H, W)."""
        if isinstance(inputs, Tokens):
            return inputs
        backbone = cast("Backbone", self.trained.backbone)
        tokens: Tokens = backbone(inputs)
        return tokens

    def outputs(self, tokens: Tokens) -> Tensors:
        """Return the head's outputs in float32 or wider, so that losses are exact under autocast."""
        return {name: exact(x) for name, x in self.trained.head(tokens).items()}

    def losses(
        self, outputs: Tensors, targets: Targets, micro_batch: MicroBatch | None = None
    ) -> Tensors:
        """Return ``loss`` and its parts ``loss/NAME``; missing targets are ignored.

        Args:
            outputs: task -> (B, ...), see :meth:`outputs`.
            targets: of the batch.
            micro_batch: the micro-batch that the samples are; None = a whole batch.
        """
        device_type = next(iter(outputs.values())).device.type
        with torch.autocast(device_type, enabled=False):
            total, parts = self.loss(outputs, targets.values, _masks_of(targets), micro_batch)
        losses = {"loss": total}
        for name, x in parts.items():
            losses[f"loss/{name}"] = x
        return losses

    def compare_scales(self, losses: Tensors, targets: Tensors) -> None:
        """Log, at the first step of a run, if one loss is so large that another one hardly affects the gradient.

        Weights that are learned or that are not 1 were chosen to balance the losses: they are not
        compared. The host waits for the device here, once per run.
        """
        if not self.is_first_step:
            return
        self.is_first_step = False
        tasks = [task for task in self.loss.tasks if task.weight == 1.0]
        if len(tasks) < 2 or self.loss.weighting is not None or not writes():
            return
        counts = []
        for task in tasks:
            is_known = known_mask(task, targets[task.name])
            if is_known.ndim > 1:
                is_known = is_known.flatten(1).any(dim=1)
            counts.append(is_known.sum())
        values = [losses[f"loss/{task.name}"].detach() for task in tasks]
        numbers = torch.stack([torch.stack(counts).to(values[0]), torch.stack(values)]).tolist()
        sizes = {}
        for task, count, value in zip(tasks, *numbers, strict=True):
            if count >= FEWEST_SAMPLES and value > 0:
                sizes[task.name] = value
        if not sizes:
            return
        largest = max(sizes, key=sizes.__getitem__)
        smallest = min(sizes, key=sizes.__getitem__)
        if sizes[largest] > LARGEST_RATIO * sizes[smallest]:
            logger.warning(
                "at the first step the loss of %r is %.3g and that of %r is %.3g, so that the "
                "smaller one hardly affects the gradient. Give the tasks a transform that is fitted "
                "on their targets, TargetTransform().fit(values), or a weight",
                largest,
                sizes[largest],
                smallest,
                sizes[smallest],
            )


def _with_partners(
    compared: Sequence[ComparedTargets], mixup: Mixup, unchanged: Collection[str] = ()
) -> list[ComparedTargets]:
    """Compare by the share of mixup with the targets of the samples, and by the rest with those of their partners.

    The maps of the tasks in ``unchanged`` are pasted already: partners have the same.
    """
    of_samples = []
    of_partners = []
    share = mixup.share
    for entry in compared:
        partner_targets = entry.targets.of_partners(mixup, unchanged)
        if isinstance(share, Tensor):
            of_samples.append(
                ComparedTargets(entry.share, entry.targets, sample_weights=share),
            )
            of_partners.append(
                ComparedTargets(entry.share, partner_targets, sample_weights=1 - share),
            )
        else:
            of_samples.append(ComparedTargets(share * entry.share, entry.targets))
            of_partners.append(ComparedTargets((1 - share) * entry.share, partner_targets))
    return of_samples + of_partners


def _divide(whole: StepSamples, num_micro_batches: int) -> list[StepSamples]:
    """Divide the samples of a batch into micro-batches, whose losses add up to that of the batch."""
    compared_in_batch = []
    for entry in whole.compared:
        compared_in_batch.append(replace(entry, batch_counts=_BatchCounts(entry.targets)))
    micro_batches = []
    for rows in np.array_split(np.arange(whole.num_samples), num_micro_batches):
        samples = slice(int(rows[0]), int(rows[-1]) + 1)
        inputs, mixup = _take_inputs(whole.inputs, whole.mixup, samples, whole.num_samples)
        compared = [entry.take(samples) for entry in compared_in_batch]
        micro_batches.append(StepSamples(inputs, len(rows), mixup=mixup, compared=compared))
    return micro_batches


def _take_inputs(
    inputs: Tokens | Tensor, mixup: Mixup | None, samples: slice, num_samples: int
) -> tuple[Tokens | Tensor, Mixup | None]:
    """Return the inputs of some samples of a batch, then those of further partners, and how they are blended."""
    if mixup is None:
        return inputs[samples], None
    rows = list(range(samples.start, samples.stop))
    position_of = {row: position for position, row in enumerate(rows)}
    partners = []
    for row in rows[:]:
        partner = (row - 1) % num_samples
        if mixup.partners is not None:
            partner = mixup.partners[row]
        if partner not in position_of:
            position_of[partner] = len(rows)
            rows.append(partner)
        partners.append(position_of[partner])
    share = mixup.share
    if isinstance(share, Tensor):
        share = share[samples]
    return inputs[rows], Mixup(share, partners)


def _masks_of(targets: Targets) -> Tensors:
    """Return which targets count, and the weights of cells, as a loss takes them."""
    masks = {}
    for name, x in targets.values.items():
        if not x.is_floating_point():
            masks[name] = x >= 0
    return masks | targets.cell_weights
