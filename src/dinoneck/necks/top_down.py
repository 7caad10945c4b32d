"""The top-down half of a feature pyramid network, and the sums that replace its last convolution under pooling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dinoneck.layers.conv_block import ActivationName, ConvBlock, MapLinear, reset
from dinoneck.layers.norms import NormName


class TopDown(nn.Module):
    """Lateral 1x1, nearest upsampling to the finer map's size, addition, 3x3 smoothing, norm, activation.

    With ``norm=None, activation=None`` and the same weights it equals torchvision's ``FeaturePyramidNetwork``.

    Args:
        in_channels: of every map, fine to coarse.
        out_channels: D of every level.
        norm: after the smoothing: ``layer``, ``group`` or None.
        activation: after the norm.
        device: torch factory keyword.
        dtype: torch factory keyword.

    Shape:
        maps (B, in_channels[i], rows_i, cols_i) -> levels (B, D, rows_i, cols_i).

    Reference: Lin et al., Feature Pyramid Networks for Object Detection, CVPR 2017. Deviation: the norm and the
    activation after the smoothing.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        out_channels: int,
        norm: NormName | None = None,
        activation: ActivationName | None = None,
        *,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        factory = {"device": device, "dtype": dtype}
        self.laterals = nn.ModuleList(MapLinear(channels, out_channels, **factory) for channels in in_channels)
        self.smooth = nn.ModuleList(
            ConvBlock(out_channels, out_channels, 1, norm, activation, **factory) for _ in in_channels
        )

    def reset_parameters(self) -> None:
        """Re-initialise the weights."""
        reset(self.laterals)
        reset(self.smooth)

    def forward(self, maps: Sequence[Tensor], extra: Sequence[Tensor] | None = None) -> list[Tensor]:
        """Return the levels (B, D, rows_i, cols_i); ``extra`` maps (B, D, rows_i, cols_i) are added to the laterals."""
        return [smooth(level) for smooth, level in zip(self.smooth, self.merged(maps, extra), strict=True)]

    def merged(self, maps: Sequence[Tensor], extra: Sequence[Tensor] | None = None) -> list[Tensor]:
        """Return the levels before the smoothing."""
        levels: list[Tensor] = []
        for index in reversed(range(len(maps))):  # coarse to fine
            level: Tensor = self.laterals[index](maps[index])  # (B, D, rows_i, cols_i)
            if extra is not None:
                level = level + extra[index]
            if levels:  # the coarser level, upsampled to this level's size
                level = level + F.interpolate(levels[-1], size=level.shape[-2:], mode="nearest")
            levels.append(level)
        return levels[::-1]

    def pooled(self, place: int, merged: Tensor) -> Tensor:
        """Return the mean over cells of ``smooth[place].conv(merged)``, (B, D), without the convolution.

        The mean of a zero-padded 3x3 convolution is b + sum_ij W_ij S_ij / (rows cols), where S_ij is the sum of the
        map without the row and the column that tap (i, j) never meets. Exact where nothing stands between the
        convolution and the mean.
        """
        conv = cast("nn.Conv2d", self.smooth[place].conv)
        rows, cols = merged.shape[-2:]
        means = tap_sums(merged) / (rows * cols)
        with torch.autocast(merged.device.type, enabled=False):  # half precision would lose what the sums gained
            mean = torch.einsum("bdij,odij->bo", means, conv.weight.to(means.dtype))
        return mean if conv.bias is None else mean + conv.bias.to(mean.dtype)


def tap_sums(maps: Tensor) -> Tensor:
    """Return (B, D, 3, 3): what every tap of a zero-padded 3x3 convolution sums up over all its places.

    Tap (0, .) never meets the last row, tap (2, .) never the first; columns likewise. Float32 or wider.
    """
    x = maps if maps.dtype == torch.float64 else maps.float()
    rows = torch.stack([x[..., -1, :], torch.zeros_like(x[..., 0, :]), x[..., 0, :]], dim=-2)  # (B, D, 3, cols)
    kept = x.sum(dim=-2)[..., None, :] - rows
    ends = torch.stack([kept[..., -1], torch.zeros_like(kept[..., 0]), kept[..., 0]], dim=-1)
    return kept.sum(dim=-1)[..., None] - ends
