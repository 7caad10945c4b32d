"""What is trained: a head, and the backbone where it is trained along."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from dinoneck.backbones import weight_hashes
from dinoneck.backbones.backbone import Backbone
from dinoneck.heads.head import Head
from dinoneck.training.parameter_groups import param_groups
from dinoneck.training.recipe import Recipe

Table = dict[str, Tensor]
_BACKBONE_SHARE = 0.1  # of the head's learning rate


class Learner(nn.Module):
    """A head and, where it is trained along, its backbone: one set of weights to step, average and keep.

    Args:
        head: the head.
        backbone: with trainable parameters; None = the head learns alone.
    """

    def __init__(self, head: Head, backbone: Backbone | None = None) -> None:
        super().__init__()
        self.head, self.backbone = head, backbone

    @property
    def device(self) -> torch.device:
        """Where the head is."""
        return next(self.head.parameters()).device

    def weights(self) -> Table:
        """Return all of the head's weights and buffers and the trained ones of the backbone, not copied."""
        weights = {f"head.{name}": value for name, value in self.head.state_dict().items()}
        for name, parameter in () if self.backbone is None else self.backbone.named_parameters():
            if parameter.requires_grad:
                weights[f"backbone.{name}"] = parameter.detach()
        return weights

    @torch.no_grad()
    def take(self, weights: Mapping[str, Tensor]) -> None:
        """Copy weights of :meth:`weights` in."""
        for name, value in self.weights().items():
            value.copy_(weights[name])

    def note_source(self) -> None:
        """Let a head that was loaded from a file expect the tokens of the backbone that was trained along."""
        if self.backbone is not None:
            source = weight_hashes.current_hashes(self.backbone.adapter).fingerprint
            for part in self.head.modules():
                if isinstance(part, Head) and part.trained_on is not None:
                    part.trained_on = replace(part.trained_on, source=source)

    def groups(self, loss: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
        """Return the optimizer's groups; biases, norms and the loss's own parameters have no weight decay."""
        if self.backbone is None:
            trained = [p for p in self.head.parameters() if p.requires_grad]
            groups = [
                {"params": [p for p in trained if p.ndim >= 2], "weight_decay": recipe.weight_decay},
                {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
            ]
        else:
            rate = _BACKBONE_SHARE * recipe.lr if recipe.backbone_lr is None else recipe.backbone_lr
            groups = param_groups(self, lr=recipe.lr, backbone_lr=rate, weight_decay=recipe.weight_decay)
        groups.append({"params": [p for p in loss.parameters() if p.requires_grad], "weight_decay": 0.0})
        return [group for group in groups if group["params"]]
