"""The model that ``fit`` trains: backbone (of live tokens), head and loss, which gives a batch's losses."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from dinoneck.backbones.backbone import Backbone
from dinoneck.heads.head import Head
from dinoneck.losses.masked import exact
from dinoneck.losses.task_loss import TaskLoss
from dinoneck.tokens import Tokens
from dinoneck.training.folder import writes
from dinoneck.training.optim import blend_tokens, paste_box, random_box
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


@dataclass(frozen=True)
class _WeightedTargets:
    """Targets that the outputs of blended samples are compared with, those of the samples or of their partners.

    Attributes:
        share: by which their loss counts.
        targets: of a batch.
    """

    share: float
    targets: Targets


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
        is_first_step: whether no step of the run was taken yet; its losses are compared.
    """

    def __init__(self, head: Head, source: TokenSource, loss: TaskLoss, recipe: Recipe) -> None:
        super().__init__()
        backbone = source.backbone if isinstance(source, LiveTokens) else None
        self.trained = Trained(head, backbone)
        self.loss = loss
        self.recipe = recipe
        self.maps = {task.name for task in loss.tasks if task.is_map or task.is_masks}
        self.is_first_step = True

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

    def forward(self, inputs: Tokens | Tensor, targets: Targets, mixes: bool) -> Tensors:
        """Return ``loss``, its parts ``loss/NAME`` and their learned weights ``weight/NAME``.

        Of blended samples a loss is the mean over what they are blended of, by its share.

        Args:
            inputs: tokens, or images (B, 3, H, W) float32 of live tokens.
            targets: of the batch.
            mixes: whether samples are blended, as the recipe says.
        """
        cutmix_alpha = self.recipe.cutmix_alpha if mixes else None
        mixup_alpha = self.recipe.mixup_alpha if mixes else None
        compared = [_WeightedTargets(1.0, targets)]
        if cutmix_alpha is not None:
            images = cast("Tensor", inputs)
            backbone = cast("Backbone", self.trained.backbone)
            box, share = random_box(images.shape[-2:], cutmix_alpha, backbone.patch_size)
            inputs = paste_box(images, box)
            # maps are pasted as the images, the other targets count by the area
            targets = targets.with_maps(self.maps, lambda x: paste_box(x, box))
            compared = _with_partners([_WeightedTargets(1.0, targets)], share, unchanged=self.maps)
        tokens = self.tokens(inputs)
        if mixup_alpha is not None:
            tokens, share = blend_tokens(tokens, mixup_alpha)
            compared = _with_partners(compared, share)

        outputs = self.outputs(tokens)
        losses: Tensors = {}
        for weighted in compared:
            for name, value in self.losses(outputs, weighted.targets).items():
                sum_before = losses.get(name, torch.zeros_like(value))
                losses[name] = sum_before + weighted.share * value
        if self.training and self.is_first_step:
            self.is_first_step = False
            self._compare_scales(losses, targets.values)
        if self.loss.weighting is not None:
            for name, weight in self.loss.weighting.weights().items():
                losses[f"weight/{name}"] = weight
        return losses

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

    def losses(self, outputs: Tensors, targets: Targets) -> Tensors:
        """Return ``loss`` and its parts ``loss/NAME``; missing targets count for nothing.

        Args:
            outputs: task -> (B, ...), see :meth:`outputs`.
            targets: of the batch.
        """
        masks = {}
        for name, x in targets.values.items():
            if not x.is_floating_point():
                masks[name] = x >= 0
        masks |= targets.cell_weights
        device_type = next(iter(outputs.values())).device.type
        with torch.autocast(device_type, enabled=False):
            total, parts = self.loss(outputs, targets.values, masks)
        losses = {"loss": total}
        for name, x in parts.items():
            losses[f"loss/{name}"] = x
        return losses

    def _compare_scales(self, losses: Tensors, targets: Tensors) -> None:
        """Log if one loss is so large that another one hardly affects the gradient.

        Weights that are learned or that are not 1 were chosen to balance the losses: they are not
        compared. The host waits for the device here, once per run.
        """
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
    compared: Sequence[_WeightedTargets], share: float, unchanged: Collection[str] = ()
) -> list[_WeightedTargets]:
    """Compare with ``share`` by the targets of the samples, and with the rest by those of their partners.

    The maps of the tasks in ``unchanged`` are pasted already: partners have the same.
    """
    of_samples = []
    of_partners = []
    for weighted in compared:
        partner_targets = weighted.targets.of_partners(unchanged)
        of_samples.append(_WeightedTargets(share * weighted.share, weighted.targets))
        of_partners.append(_WeightedTargets((1 - share) * weighted.share, partner_targets))
    return of_samples + of_partners
