"""Rows of feature pyramids: ViT-FPN, the pyramid of ViTDet."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.speed.rows import PREFIX, Row, Setting, Variant, nchw, nhwc
from benchmarks.speed.rows_tokens import ChannelNorms, _conv
from dinoneck import SimplePyramid, Tokens, ViTFPN

OUT = 256


class PlainFPN(nn.Module):
    """The construction of the design source: maps, 1x1 per layer, mean of a group, strided 3x3, top-down, smoothing.

    Args:
        neck: whose weights are taken.
        fixed: channels-last weights and views in place of NCHW copies.
    """

    def __init__(self, neck: ViTFPN, fixed: bool) -> None:
        super().__init__()
        self.fixed, self.groups = fixed, neck.grouper.groups
        form = "copy" if fixed else "formula"
        layers = [layer for group in self.groups for layer in group]
        parts = {layer: neck.grouper.bottleneck(layer) for layer in layers}
        self.entrances = nn.ModuleDict({str(layer): copy.deepcopy(part.norm) for layer, part in parts.items()})
        self.bottlenecks = nn.ModuleDict({str(layer): _conv(part.linear, fixed) for layer, part in parts.items()})
        self.down = nn.ModuleList(_blocks(level, form) for level in neck.down)
        self.laterals = nn.ModuleList(_conv(lateral, fixed) for lateral in neck.top_down.laterals)
        self.smooth = nn.ModuleList(_block(block, form) for block in neck.top_down.smooth)
        if fixed:
            self.to(memory_format=torch.channels_last)

    def forward(self, tokens: Tokens) -> list[Tensor]:
        """Tokens -> levels, fine to coarse."""
        to_map = nhwc if self.fixed else nchw
        maps = []
        for group, down in zip(self.groups, self.down, strict=True):
            projected = [
                self.bottlenecks[str(i)](to_map(self.entrances[str(i)](tokens.sequence[i][:, PREFIX:]), tokens.grid))
                for i in group
            ]
            maps.append(down(torch.stack(projected).mean(dim=0) if len(projected) > 1 else projected[0]))
        laterals = [lateral(level) for lateral, level in zip(self.laterals, maps, strict=True)]
        for place in range(len(laterals) - 2, -1, -1):
            size = laterals[place].shape[-2:]
            laterals[place] = laterals[place] + F.interpolate(laterals[place + 1], size=size, mode="nearest")
        return [block(level) for block, level in zip(self.smooth, laterals, strict=True)]


def _block(block: nn.Module, form: str) -> nn.Sequential:
    """A 3x3 convolution, the norm as it is usually written for NCHW, the activation."""
    conv, norm, activation = copy.deepcopy(block.conv), block.norm, copy.deepcopy(block.activation)
    norm = ChannelNorms(norm, form) if isinstance(norm, nn.LayerNorm) else norm
    return nn.Sequential(conv, norm, activation)


def _blocks(level: nn.Module, form: str) -> nn.Sequential:
    return (
        nn.Sequential(*(_block(block, form) for block in level))
        if isinstance(level, nn.Sequential)
        else nn.Sequential()
    )


def vit_fpn(setting: Setting, linear: bool = True) -> dict[str, Variant]:
    """P2, P3, P4 of groups of layers; linear as in the design source."""
    torch.manual_seed(0)
    options = {"norm": None, "activation": None} if linear else {}
    neck = ViTFPN(setting.channels, setting.layers, OUT, **options).to(setting.device, setting.dtype)
    published, fixed, tokens = PlainFPN(neck, fixed=False), PlainFPN(neck, fixed=True), setting.tokens()
    return {
        "as published": Variant("published", lambda: published(tokens), published),
        "layout fixed": Variant("fixed", lambda: fixed(tokens), fixed),
        "ViTFPN": Variant("ours", lambda: neck(tokens).maps, neck),
    }


def vit_fpn_default(setting: Setting) -> dict[str, Variant]:
    """With the norms and activations that are on by default."""
    return vit_fpn(setting, linear=False)


def pooled(setting: Setting) -> dict[str, Variant]:
    """The linear FPN averaged over its cells: one vector per photo."""
    torch.manual_seed(0)
    neck = ViTFPN(setting.channels, setting.layers, OUT, norm=None, activation=None)
    neck = neck.to(setting.device, setting.dtype)
    published, fixed, tokens = PlainFPN(neck, fixed=False), PlainFPN(neck, fixed=True), setting.tokens()

    def means(module: PlainFPN) -> Tensor:
        return torch.cat([level.mean(dim=(2, 3)) for level in module(tokens)], dim=1)

    return {
        "as published, then the mean": Variant("published", lambda: means(published), published),
        "layout fixed, then the mean": Variant("fixed", lambda: means(fixed), fixed),
        "ViTFPN.pooled": Variant("ours", lambda: neck.pooled(tokens), neck),
    }


def pooled_maps(setting: Setting) -> dict[str, Variant]:
    """Torchvision's pyramid on means of a group's maps beside ViTFPN(downsample="pool"); weights of their own."""
    from torchvision.ops import FeaturePyramidNetwork

    torch.manual_seed(0)
    like = {"device": setting.device, "dtype": setting.dtype}
    neck = ViTFPN(setting.channels, setting.layers, OUT, downsample="pool", norm=None, activation=None, **like)
    published = FeaturePyramidNetwork([setting.channels] * 3, OUT).to(**like)
    fixed = copy.deepcopy(published).to(memory_format=torch.channels_last)
    tokens = setting.tokens()

    def run(module: nn.Module, to_map: object) -> list[Tensor]:
        maps = {}
        for place, group in enumerate(neck.grouper.groups):
            level = sum(to_map(tokens.sequence[i][:, PREFIX:], tokens.grid) for i in group) / len(group)  # type: ignore[operator,misc]
            for _ in range(place):
                level = F.avg_pool2d(level, 2, ceil_mode=True, count_include_pad=False)
            maps[str(place)] = level
        return list(module(maps).values())

    return {
        "torchvision's FeaturePyramidNetwork on NCHW copies": Variant(
            "published", lambda: run(published, nchw), published
        ),
        "torchvision's FeaturePyramidNetwork on NHWC views": Variant("fixed", lambda: run(fixed, nhwc), fixed),
        'ViTFPN(downsample="pool")': Variant("ours", lambda: neck(tokens).maps, neck, same=False),
    }


class PlainPyramid(nn.Module):
    """ViTDet's pyramid on NCHW maps, module by module."""

    def __init__(self, neck: SimplePyramid, fixed: bool) -> None:
        super().__init__()
        self.fixed = fixed
        form = "copy" if fixed else "formula"
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
        _conv(level.project, False),
        norm(level.project_norm),
        copy.deepcopy(level.smooth),
        norm(level.smooth_norm),
    ]
    return nn.Sequential(*parts)


def simple_pyramid(setting: Setting) -> dict[str, Variant]:
    """Scales 2, 1, 1/2 of the last map."""
    torch.manual_seed(0)
    neck = SimplePyramid(setting.channels, OUT, (2.0, 1.0, 0.5)).to(setting.device, setting.dtype)
    published, fixed, tokens = PlainPyramid(neck, fixed=False), PlainPyramid(neck, fixed=True), setting.tokens()
    return {
        "ViTDet's pyramid, as published": Variant("published", lambda: published(tokens), published),
        "ViTDet's pyramid, layout fixed": Variant("fixed", lambda: fixed(tokens), fixed),
        "SimplePyramid": Variant("ours", lambda: neck(tokens).maps, neck),
    }


FPN_GOALS = {"forward float32": 1.3, "forward bfloat16": 1.5}
FPN_SETTINGS = [Setting(2, (30, 60), 384, 3), Setting(1, (60, 60), 768, 6)]
ROWS = [
    Row("ViT-FPN, linear as in the design source", vit_fpn, FPN_SETTINGS, {**FPN_GOALS, "saved float32": 6.0}),
    Row("ViT-FPN, norms and GELU", vit_fpn_default, FPN_SETTINGS, FPN_GOALS),
    Row("ViT-FPN, linear, pooled vector", pooled, FPN_SETTINGS, {"forward float32": 1.6}),
    Row("ViT-FPN on pooled maps (other function)", pooled_maps, FPN_SETTINGS),
    Row(
        "SimplePyramid",
        simple_pyramid,
        [Setting(1, (40, 40), 384), Setting(1, (60, 60), 768)],
        {"forward float32": 1.3},
    ),
]
