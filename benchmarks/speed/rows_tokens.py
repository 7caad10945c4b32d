"""Rows that begin at tokens: the map and its projection, and several layers fused into one map."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.speed.rows import PREFIX, Row, Setting, Variant, nchw, nhwc
from dinoneck import LayerGrouper, Tokens
from dinoneck.grid import as_maps

OUT = 256


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
        self.convs = nn.ModuleList(_conv(bottleneck.linear, fixed) for bottleneck in bottlenecks)
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
        shares = torch.full((len(maps),), 1 / len(maps)) if self.scalars is None else self.scalars.softmax(dim=0)
        total = shares[0].to(maps[0]) * maps[0]
        for share, found in zip(shares[1:], maps[1:], strict=True):
            total = total + share.to(found) * found
        return total


def _conv(linear: nn.Linear, fixed: bool) -> nn.Conv2d:
    """The 1x1 convolution of a linear layer."""
    like = {"dtype": linear.weight.dtype, "device": linear.weight.device}
    conv = nn.Conv2d(linear.in_features, linear.out_features, 1, bias=linear.bias is not None, **like)
    with torch.no_grad():
        conv.weight.copy_(linear.weight[:, :, None, None])
        if linear.bias is not None and conv.bias is not None:
            conv.bias.copy_(linear.bias)
    return conv.to(memory_format=torch.channels_last) if fixed else conv


def grouped(setting: Setting, norm: bool = False) -> dict[str, Variant]:
    """All layers in one group, fused by learned scalars."""
    torch.manual_seed(0)
    grouper = LayerGrouper(setting.channels, setting.layers, OUT, 1, norm="layer" if norm else None, fusion="softmax")
    with torch.no_grad():
        for weights in grouper.fusion_weights.values():
            weights.normal_()
        for bottleneck in grouper.bottlenecks.values():
            if isinstance(bottleneck.norm, nn.LayerNorm):
                bottleneck.norm.weight.uniform_(0.5, 1.5)
                bottleneck.norm.bias.normal_(std=0.2)
    grouper = grouper.to(setting.device, setting.dtype)
    published, fixed = Projections(grouper, fixed=False), Projections(grouper, fixed=True)
    tokens = setting.tokens()
    name = "1×1 convolution" if setting.layers == 1 else "loop of 1×1 convolutions"

    def ours() -> Tensor:
        return as_maps(grouper(tokens.sequence)[0][:, PREFIX:], tokens.grid)

    return {
        f"copy to NCHW, {name}": Variant("published", lambda: published(tokens), published),
        f"NHWC views, {name}": Variant("fixed", lambda: fixed(tokens), fixed),
        "LayerGrouper": Variant("ours", ours, grouper),
    }


def normed(setting: Setting) -> Mapping[str, Variant]:
    """With a LayerNorm per layer in front."""
    return grouped(setting, norm=True)


class ChannelNorms(nn.Module):
    """LayerNorm over the channels of a map, as published: mean and variance over axis 1 of NCHW, or a permuted copy."""

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
            return self.weight[:, None, None] * (centred / torch.sqrt(variance + self.eps)) + self.bias[:, None, None]
        cells = F.layer_norm(maps.permute(0, 2, 3, 1), self.weight.shape, self.weight, self.bias, self.eps)
        return cells.permute(0, 3, 1, 2).contiguous()


def channel_norm(setting: Setting) -> dict[str, Variant]:
    """LayerNorm of a map."""
    from dinoneck.layers import ChannelNorm

    torch.manual_seed(0)
    own = ChannelNorm(setting.channels, eps=1e-6).to(setting.device, setting.dtype)
    with torch.no_grad():
        own.weight.uniform_(0.5, 1.5)
        own.bias.normal_()
    formula, copied = ChannelNorms(own, "formula"), ChannelNorms(own, "copy")
    tokens = setting.tokens()
    view = nhwc(tokens.sequence[0][:, PREFIX:], tokens.grid)
    copy = view.detach().contiguous().requires_grad_(setting.learns)
    return {
        "mean and variance over axis 1, NCHW": Variant("published", lambda: formula(copy), formula),
        "permuted, normalised, copied back": Variant("fixed", lambda: copied(copy), copied),
        "ChannelNorm": Variant("ours", lambda: own(view), own),
    }


def projection_work(setting: Setting) -> tuple[float, float]:
    """FLOPs and least bytes of L projections C -> D and their sum: every input read once, the result written once."""
    size = torch.finfo(setting.dtype).bits // 8
    cells, weights = setting.patches, setting.layers * setting.channels * OUT
    flops = 2.0 * cells * weights
    return flops, size * (cells * (setting.layers * setting.channels + OUT) + weights)


SMALL, WIDE = Setting(4, (60, 60), 384), Setting(2, (60, 60), 1280)
ROWS = [
    Row(
        "tokens → map → 1×1",
        grouped,
        [SMALL, WIDE],
        {"forward float32": 1.3, "forward bfloat16": 1.8},
        work=projection_work,
    ),
    Row(
        "LayerGrouper, learned scalars",
        grouped,
        [Setting(2, (30, 60), 384, 4), Setting(1, (60, 60), 1280, 4), Setting(1, (30, 60), 768, 12)],
        {"forward float32": 1.3, "forward bfloat16": 1.8},
        work=projection_work,
    ),
    Row(
        "LayerGrouper, LayerNorm per layer",
        normed,
        [Setting(2, (30, 60), 384, 4), Setting(1, (30, 60), 768, 12)],
        {"forward float32": 1.3, "forward bfloat16": 1.8},
        work=projection_work,
    ),
    Row("LayerNorm of a map", channel_norm, [Setting(2, (60, 60), 384)]),
]
