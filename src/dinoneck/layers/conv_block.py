"""Convolution, norm, activation; and the 1x1 convolution as the linear layer it is."""

from __future__ import annotations

from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from dinoneck.layers.norms import NormName, map_norm

ActivationName = Literal["gelu", "relu", "silu"]
_ACTIVATIONS: dict[str, type[nn.Module]] = {"gelu": nn.GELU, "relu": nn.ReLU, "silu": nn.SiLU}


def activation_layer(name: ActivationName | None) -> nn.Module:
    """Return the activation by name; None is the identity."""
    return nn.Identity() if name is None else _ACTIVATIONS[name]()


class MapLinear(nn.Linear):
    """A linear layer on the channels of maps: a 1x1 convolution without layout changes.

    Shape:
        (B, D_in, rows, cols) -> (B, D_out, rows, cols), channels-last.
    """

    def forward(self, maps: Tensor) -> Tensor:
        """Apply the layer to every cell."""
        return F.linear(maps.permute(0, 2, 3, 1), self.weight, self.bias).permute(0, 3, 1, 2)


class ConvBlock(nn.Module):
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
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, device=device, dtype=dtype)
        self.norm = map_norm(norm, out_channels, device=device, dtype=dtype)
        self.activation = activation_layer(activation)

    def reset_parameters(self) -> None:
        """Re-initialise the weights."""
        self.conv.reset_parameters()
        reset(self.norm)

    def forward(self, maps: Tensor) -> Tensor:
        """Convolve, normalise, activate."""
        out: Tensor = self.activation(self.norm(self.conv(maps)))
        return out


def reset(module: nn.Module) -> None:
    """Draw the weights of a module anew: by its own ``reset_parameters``, else those of its children."""
    redraw = getattr(module, "reset_parameters", None)
    if callable(redraw):
        redraw()
    else:
        for child in module.children():
            reset(child)
