"""Norms of maps (B, D, rows, cols) that keep them channels-last."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn

NormName = Literal["layer", "group"]
BatchNormName = Literal["batch", "group", "layer"]
MOST_GROUPS = 32


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of every cell, on the channels-last view: no permuted copy.

    Shape:
        (B, D, rows, cols) -> the same.
    """

    def forward(self, maps: Tensor) -> Tensor:
        """Normalise every cell on its own."""
        cells = maps.permute(0, 2, 3, 1)
        return F.layer_norm(cells, self.normalized_shape, self.weight, self.bias, self.eps).permute(0, 3, 1, 2)


def map_norm(
    name: NormName | BatchNormName | None, channels: int, *, device: Any = None, dtype: Any = None
) -> nn.Module:
    """Return the norm of maps by name: ``layer`` (per cell), ``group`` (up to 32), ``batch``; None = identity."""
    if name is None:
        return nn.Identity()
    if name == "batch":
        return nn.BatchNorm2d(channels, device=device, dtype=dtype)
    if name == "layer":
        return ChannelNorm(channels, device=device, dtype=dtype)
    return nn.GroupNorm(math.gcd(MOST_GROUPS, channels), channels, device=device, dtype=dtype)
