"""The usual formulations of the same work, each as published and with its layout fixed."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.speed.rows import PREFIX, nchw, nhwc
from dinoneck import LayerGrouper, SimplePyramid, Tokens, ViTFPN


class Projections(nn.Module):
    """The usual formulation of a layer group: a 1x1 convolution per layer, then a weighted sum.

    Args:
        grouper: the module whose weights are copied; one group, one bottleneck per layer.
        fixed: use channels-last weights and views instead of NCHW copies.
    """

    def __init__(self, grouper: LayerGrouper, fixed: bool) -> None:
        super().__init__()
        self.fixed = fixed
        bottlenecks = [grouper.bottleneck(layer) for layer in grouper.groups[0]]
        self.norms = nn.ModuleList(bottleneck.norm for bottleneck in bottlenecks)
        self.convs = nn.ModuleList(conv1x1(bottleneck.linear, fixed) for bottleneck in bottlenecks)
        self.scalars = None
        if len(grouper.fusion_weights) > 0:
            scalars = grouper.fusion_weights["0"]
            self.scalars = nn.Parameter(scalars.detach().clone())

    def forward(self, tokens: Tokens) -> Tensor:
        """Tokens -> (B, D, rows, cols)."""
        to_map = nhwc if self.fixed else nchw
        maps = []
        for layer, norm, conv in zip(tokens.sequence, self.norms, self.convs, strict=True):
            patches = norm(layer[:, PREFIX:])
            maps.append(conv(to_map(patches, tokens.grid)))
        if len(maps) == 1:
            return maps[0]
        if self.scalars is None:
            return add_up(maps) / len(maps)
        weights = self.scalars.softmax(dim=0)
        return add_up([weight * level for weight, level in zip(weights, maps, strict=True)])


def add_up(maps: list[Tensor]) -> Tensor:
    """Add maps one after the other, which keeps their memory format."""
    return sum(maps[1:], maps[0])


def conv1x1(linear: nn.Linear, fixed: bool) -> nn.Conv2d:
    """Return the 1x1 convolution of a linear layer."""
    conv = nn.Conv2d(
        linear.in_features,
        linear.out_features,
        kernel_size=1,
        bias=linear.bias is not None,
        dtype=linear.weight.dtype,
        device=linear.weight.device,
    )
    with torch.no_grad():
        conv.weight.copy_(linear.weight[:, :, None, None])
        if linear.bias is not None:
            conv.bias.copy_(linear.bias)
    if fixed:
        conv = conv.to(memory_format=torch.channels_last)
    return conv


class ChannelNorms(nn.Module):
    """LayerNorm over the channels of a map.

    Args:
        norm: the module whose weights are copied.
        form: ``formula``: mean and variance over axis 1 of NCHW, as in detectron2 and ConvNeXt;
            ``copy``: permuted, normalised and copied back to NCHW; ``view``: permuted and
            normalised, the layout-fixed form.
    """

    def __init__(self, norm: nn.LayerNorm, form: str) -> None:
        super().__init__()
        self.weight = nn.Parameter(norm.weight.detach().clone())
        self.bias = nn.Parameter(norm.bias.detach().clone())
        self.eps = norm.eps
        self.form = form

    def forward(self, maps: Tensor) -> Tensor:
        """(B, C, rows, cols) -> the same."""
        if self.form == "formula":
            mean = maps.mean(1, keepdim=True)
            centred = maps - mean
            variance = centred.pow(2).mean(1, keepdim=True)
            normalised = centred / torch.sqrt(variance + self.eps)
            return self.weight[:, None, None] * normalised + self.bias[:, None, None]
        cells = F.layer_norm(
            maps.permute(0, 2, 3, 1), self.weight.shape, self.weight, self.bias, self.eps
        )
        maps = cells.permute(0, 3, 1, 2)
        if self.form == "copy":
            maps = maps.contiguous()
        return maps


class PlainFPN(nn.Module):
    """A plain FPN: maps, 1x1 per layer, mean of a group, strided 3x3, top-down, smoothing.

    Args:
        neck: the module whose weights are copied.
        fixed: use channels-last weights and views instead of NCHW copies.
    """

    def __init__(self, neck: ViTFPN, fixed: bool) -> None:
        super().__init__()
        self.fixed = fixed
        self.groups = neck.grouper.groups
        form = "view" if fixed else "formula"
        self.entrances = nn.ModuleDict()
        self.bottlenecks = nn.ModuleDict()
        for group in self.groups:
            for layer in group:
                bottleneck = neck.grouper.bottleneck(layer)
                self.entrances[str(layer)] = copy.deepcopy(bottleneck.norm)
                self.bottlenecks[str(layer)] = conv1x1(bottleneck.linear, fixed)
        self.down = nn.ModuleList(_blocks(level, form) for level in neck.down)
        self.laterals = nn.ModuleList(conv1x1(lateral, fixed) for lateral in neck.top_down.laterals)
        self.smooth = nn.ModuleList(_block(block, form) for block in neck.top_down.smooth)
        if fixed:
            self.to(memory_format=torch.channels_last)

    def forward(self, tokens: Tokens) -> list[Tensor]:
        """Tokens -> levels, fine to coarse."""
        maps = []
        for group, down in zip(self.groups, self.down, strict=True):
            projected = [self._project(tokens, layer) for layer in group]
            maps.append(down(self._mean(projected)))
        laterals = [lateral(level) for lateral, level in zip(self.laterals, maps, strict=True)]
        for level in range(len(laterals) - 2, -1, -1):
            size = laterals[level].shape[-2:]
            coarser = F.interpolate(laterals[level + 1], size=size, mode="nearest")
            laterals[level] = laterals[level] + coarser
        return [block(level) for block, level in zip(self.smooth, laterals, strict=True)]

    def _project(self, tokens: Tokens, layer: int) -> Tensor:
        """Return the map of a layer, (B, D, rows, cols)."""
        to_map = nhwc if self.fixed else nchw
        patches = self.entrances[str(layer)](tokens.sequence[layer][:, PREFIX:])
        return self.bottlenecks[str(layer)](to_map(patches, tokens.grid))

    def _mean(self, maps: list[Tensor]) -> Tensor:
        """Return the mean over a group."""
        if len(maps) == 1:
            return maps[0]
        if self.fixed:
            # the mean of a stack of channels-last maps would be NCHW
            return add_up(maps) / len(maps)
        return torch.stack(maps).mean(dim=0)


def _block(block: nn.Module, form: str) -> nn.Sequential:
    """Return a 3x3 convolution, the norm as it is usually written for NCHW, and the activation."""
    norm = block.norm
    if isinstance(norm, nn.LayerNorm):
        norm = ChannelNorms(norm, form)
    return nn.Sequential(copy.deepcopy(block.conv), norm, copy.deepcopy(block.activation))


def _blocks(level: nn.Module, form: str) -> nn.Sequential:
    if not isinstance(level, nn.Sequential):
        return nn.Sequential()
    return nn.Sequential(*[_block(block, form) for block in level])


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
        to_map = nhwc if self.fixed else nchw
        maps = to_map(tokens.sequence[-1][:, PREFIX:], tokens.grid)
        return [level(maps) for level in self.levels]


def _level(level: nn.Module, form: str) -> nn.Sequential:
    """Return the modules of one scale in their order."""
    modules: list[nn.Module] = []
    for _ in range(level.halvings):
        modules.append(nn.MaxPool2d(2, ceil_mode=True))
    for number, up in enumerate(level.ups, start=1):
        modules.append(copy.deepcopy(up))
        if number < len(level.ups):
            modules.append(ChannelNorms(level.up_norm, form))
            modules.append(nn.GELU())
    modules += [
        conv1x1(level.project, fixed=False),
        ChannelNorms(level.project_norm, form),
        copy.deepcopy(level.smooth),
        ChannelNorms(level.smooth_norm, form),
    ]
    return nn.Sequential(*modules)
