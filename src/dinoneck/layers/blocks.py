"""Norms of maps, 3x3 convolution blocks, and 1x1 convolutions as linear layers; all keep channels-last."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn

NormName = Literal["layer", "group"]
BatchNormName = Literal["batch", "group", "layer"]
ActivationName = Literal["gelu", "relu", "silu"]
MIN_GROUP_CHANNELS = 8  # per group of a group norm
TOKEN_NORM_EPS = 1e-6  # of LayerNorms that read tokens, as of those in timm's ViTs and in ViTDet
_ACTIVATIONS: dict[str, type[nn.Module]] = {"gelu": nn.GELU, "relu": nn.ReLU, "silu": nn.SiLU}


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of every cell, on the channels-last view: no permuted copy.

    Shape:
        (B, D, rows, cols) -> the same.
    """

    def forward(self, maps: Tensor) -> Tensor:
        """Normalise every cell on its own."""
        cells = maps.permute(0, 2, 3, 1)  # (B, rows, cols, D), a view
        normed = F.layer_norm(cells, self.normalized_shape, self.weight, self.bias, self.eps)
        return normed.permute(0, 3, 1, 2)


class MapLinear(nn.Linear):
    """A linear layer on the channels of maps: a 1x1 convolution without layout changes.

    Shape:
        (B, D_in, rows, cols) -> (B, D_out, rows, cols), channels-last.
    """

    def forward(self, maps: Tensor) -> Tensor:
        """Apply the layer to every cell."""
        cells = maps.permute(0, 2, 3, 1)  # (B, rows, cols, D_in), a view
        return F.linear(cells, self.weight, self.bias).permute(0, 3, 1, 2)


class ConvBlock(nn.Sequential):
    """3x3 convolution with padding 1, then norm, then activation.

    Args:
        in_channels: of the maps.
        out_channels: of the result.
        stride: 1, or 2 for a result of ceil(rows / 2) x ceil(cols / 2) cells.
        norm: ``layer``, ``group`` or None.
        activation: ``gelu``, ``relu``, ``silu`` or None.
        device: torch factory keyword.
        dtype: torch factory keyword.

    Shape:
        (B, in_channels, rows, cols) -> (B, out_channels, ceil(rows / stride), ceil(cols / stride)).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        norm: NormName | None = "layer",
        activation: ActivationName | None = "gelu",
        *,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        conv = nn.Conv2d(
            in_channels,
            out_channels,
            kernel_size=3,
            stride=stride,
            padding=1,
            device=device,
            dtype=dtype,
        )
        norm_layer = map_norm(norm, out_channels, device=device, dtype=dtype)
        activation_layer: nn.Module = nn.Identity()
        if activation is not None:
            activation_layer = _ACTIVATIONS[activation]()
        super().__init__(OrderedDict(conv=conv, norm=norm_layer, activation=activation_layer))


def map_norm(
    name: NormName | BatchNormName | None,
    channels: int,
    *,
    device: Any = None,
    dtype: Any = None,
) -> nn.Module:
    """Return the norm of maps by name.

    Args:
        name: ``layer`` (per cell), ``batch``, ``group``; None = identity. The number of groups of
            ``group`` is the largest divisor of the channels that leaves at least 8 channels in each
            group, else 1.
        channels: D of the maps.
        device: torch factory keyword.
        dtype: torch factory keyword.
    """
    if name is None:
        return nn.Identity()
    if name == "batch":
        return nn.BatchNorm2d(channels, device=device, dtype=dtype)
    if name == "layer":
        return ChannelNorm(channels, device=device, dtype=dtype)
    groups = max(channels // MIN_GROUP_CHANNELS, 1)
    while channels % groups:
        groups -= 1
    return nn.GroupNorm(groups, channels, device=device, dtype=dtype)


def reset(module: nn.Module) -> None:
    """Re-initialise the weights of a module: by its ``reset_parameters``, else by those of its children."""
    reset_parameters = getattr(module, "reset_parameters", None)
    if callable(reset_parameters):
        reset_parameters()
    else:
        for child in module.children():
            reset(child)
