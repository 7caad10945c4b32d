"""The usual formulations of the same work, each as published and with its layout fixed."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.speed.rows import PREFIX, nchw, nhwc
from dinoneck import LayerGrouper, SimplePyramid, Tokens, ViTFPN


class Projections(nn.Module):
    """One 1x1 convolution per layer on maps, a weighted sum: the usual formulation.

    Args:
        grouper: whose weights are taken; one group, one bottleneck per layer.
        fixed: channels-last weights and views in place of NCHW copies.
    """

    def __init__(self, grouper: LayerGrouper, fixed: bool) -> None:
        super().__init__()
        self.fixed = fixed
        bottlenecks = [grouper.bottleneck(place) for place in grouper.groups[0]]
        self.norms = nn.ModuleList(bottleneck.norm for bottleneck in bottlenecks)
        self.convs = nn.ModuleList(conv1x1(bottleneck.linear, fixed) for bottleneck in bottlenecks)
        scalars = grouper.fusion_weights["0"] if len(grouper.fusion_weights) else None
        self.scalars = None if scalars is None else nn.Parameter(scalars.detach().clone())

    def forward(self, tokens: Tokens) -> Tensor:
        """Tokens -> (B, D, rows, cols)."""
        to_map = nhwc if self.fixed else nchw
        maps = [
            conv(to_map(norm(x[:, PREFIX:]), tokens.grid))
            for x, norm, conv in zip(tokens.sequence, self.norms, self.convs, strict=True)
        ]
        if len(maps) == 1:
            return maps[0]
        if self.scalars is None:
            return sum(maps[1:], maps[0]) / len(maps)
        weighted = [
            share * found for share, found in zip(self.scalars.softmax(dim=0), maps, strict=True)
        ]
        return sum(weighted[1:], weighted[0])


def conv1x1(linear: nn.Linear, fixed: bool) -> nn.Conv2d:
    """The 1x1 convolution of a linear layer."""
    like = {"dtype": linear.weight.dtype, "device": linear.weight.device}
    conv = nn.Conv2d(
        linear.in_features, linear.out_features, 1, bias=linear.bias is not None, **like
    )
    with torch.no_grad():
        conv.weight.copy_(linear.weight[:, :, None, None])
        if linear.bias is not None and conv.bias is not None:
            conv.bias.copy_(linear.bias)
    return conv.to(memory_format=torch.channels_last) if fixed else conv


class ChannelNorms(nn.Module):
    """LayerNorm over the channels of a map.

    Args:
        own: whose weights are taken.
        form: ``formula``: mean and variance over axis 1 of NCHW, as in detectron2 and ConvNeXt;
            ``copy``: permuted, normalised and copied back to NCHW; ``view``: permuted and
            normalised, the layout-fixed form.
    """

    def __init__(self, own: nn.LayerNorm, form: str) -> None:
        super().__init__()
        self.weight, self.bias = (nn.Parameter(x.detach().clone()) for x in (own.weight, own.bias))
        self.eps, self.form = own.eps, form

    def forward(self, maps: Tensor) -> Tensor:
        """(B, C, rows, cols) -> the same."""
        if self.form == "formula":
            mean = maps.mean(1, keepdim=True)
            centred = maps - mean
            variance = centred.pow(2).mean(1, keepdim=True)
            return (
                self.weight[:, None, None] * (centred / torch.sqrt(variance + self.eps))
                + self.bias[:, None, None]
            )
        cells = F.layer_norm(
            maps.permute(0, 2, 3, 1), self.weight.shape, self.weight, self.bias, self.eps
        )
        maps = cells.permute(0, 3, 1, 2)
        return maps if self.form == "view" else maps.contiguous()


class PlainFPN(nn.Module):
    """A plain FPN: maps, 1x1 per layer, mean of a group, strided 3x3, top-down, smoothing.

    Args:
        neck: whose weights are taken.
        fixed: channels-last weights and views in place of NCHW copies.
    """

    def __init__(self, neck: ViTFPN, fixed: bool) -> None:
        super().__init__()
        self.fixed, self.groups = fixed, neck.grouper.groups
        form = "view" if fixed else "formula"
        layers = [layer for group in self.groups for layer in group]
        parts = {layer: neck.grouper.bottleneck(layer) for layer in layers}
        self.entrances = nn.ModuleDict(
            {str(layer): copy.deepcopy(part.norm) for layer, part in parts.items()}
        )
        self.bottlenecks = nn.ModuleDict(
            {str(layer): conv1x1(part.linear, fixed) for layer, part in parts.items()}
        )
        self.down = nn.ModuleList(_blocks(level, form) for level in neck.down)
        self.laterals = nn.ModuleList(conv1x1(lateral, fixed) for lateral in neck.top_down.laterals)
        self.smooth = nn.ModuleList(_block(block, form) for block in neck.top_down.smooth)
        if fixed:
            self.to(memory_format=torch.channels_last)

    def forward(self, tokens: Tokens) -> list[Tensor]:
        """Tokens -> levels, fine to coarse."""
        to_map = nhwc if self.fixed else nchw
        maps = []
        for group, down in zip(self.groups, self.down, strict=True):
            projected = [
                self.bottlenecks[str(i)](
                    to_map(self.entrances[str(i)](tokens.sequence[i][:, PREFIX:]), tokens.grid)
                )
                for i in group
            ]
            maps.append(down(self._mean(projected)))
        laterals = [lateral(level) for lateral, level in zip(self.laterals, maps, strict=True)]
        for place in range(len(laterals) - 2, -1, -1):
            size = laterals[place].shape[-2:]
            laterals[place] = laterals[place] + F.interpolate(
                laterals[place + 1], size=size, mode="nearest"
            )
        return [block(level) for block, level in zip(self.smooth, laterals, strict=True)]

    def _mean(self, maps: list[Tensor]) -> Tensor:
        """Of a group; a stack of channels-last maps has an NCHW mean, so the layout-fixed form adds them up."""
        if len(maps) == 1:
            return maps[0]
        return sum(maps[1:], maps[0]) / len(maps) if self.fixed else torch.stack(maps).mean(dim=0)


def _block(block: nn.Module, form: str) -> nn.Sequential:
    """A 3x3 convolution, the norm as it is usually written for NCHW, the activation."""
    conv, norm, activation = copy.deepcopy(block.conv), block.norm, copy.deepcopy(block.activation)
    norm = ChannelNorms(norm, form) if isinstance(norm, nn.LayerNorm) else norm
    return nn.Sequential(conv, norm, activation)


def _blocks(level: nn.Module, form: str) -> nn.Sequential:
    blocks = level if isinstance(level, nn.Sequential) else ()
    return nn.Sequential(*(_block(block, form) for block in blocks))


class PlainPyramid(nn.Module):
    """ViTDet's pyramid on NCHW maps, module by module."""

    def __init__(self, neck: SimplePyramid, fixed: bool) -> None:
        super().__init__()
        self.fixed = fixed
        form = "view" if fixed else "formula"
        self.levels = nn.ModuleList(_level(level, form) for level in neck.levels)
        if fixed:
            self.to(memory_format=torch.channels_last)

    def forward(self, tokens: Tokens) -> list[Tensor]:
        """Tokens -> levels."""
        maps = (nhwc if self.fixed else nchw)(tokens.sequence[-1][:, PREFIX:], tokens.grid)
        return [level(maps) for level in self.levels]


def _level(level: nn.Module, form: str) -> nn.Sequential:
    """The modules of one scale in their order."""

    def norm(own: nn.LayerNorm) -> nn.Module:
        return ChannelNorms(own, form)

    parts: list[nn.Module] = [nn.MaxPool2d(2, ceil_mode=True) for _ in range(level.halvings)]
    for place, up in enumerate(level.ups):
        parts.append(copy.deepcopy(up))
        if place + 1 < len(level.ups):
            parts += [norm(level.up_norm), nn.GELU()]
    parts += [
        conv1x1(level.project, False),
        norm(level.project_norm),
        copy.deepcopy(level.smooth),
        norm(level.smooth_norm),
    ]
    return nn.Sequential(*parts)
