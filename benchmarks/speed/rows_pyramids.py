"""Rows of feature pyramids: ViT-FPN, torchvision's, ViTDet's, terratorch's."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from benchmarks.speed.peers import PlainFPN, PlainPyramid
from benchmarks.speed.rows import PREFIX, Row, Setting, Variant, nchw, nhwc, stirred
from dinoneck import SimplePyramid, ViTFPN


def three_forms(setting: Setting, linear: bool) -> tuple[ViTFPN, PlainFPN, PlainFPN]:
    """Return ours, and the plain FPN of its weights as published and with its layout fixed."""
    torch.manual_seed(0)
    options = {"norm": None, "activation": None} if linear else {}
    neck = ViTFPN(setting.channels, setting.layers, setting.out, **options).to(**setting.like)  # type: ignore[arg-type]
    stirred(neck)
    return neck, PlainFPN(neck, fixed=False), PlainFPN(neck, fixed=True)


def vit_fpn(setting: Setting, linear: bool = True) -> dict[str, Variant]:
    """P2, P3, P4 of groups of layers; linear: without norm and activation."""
    neck, published, fixed = three_forms(setting, linear)
    tokens = setting.tokens()
    given = tokens.sequence

    def recomputed() -> list[Tensor]:
        return list(checkpoint(lambda: neck(tokens).maps, use_reentrant=False))

    return {
        "as published": Variant("published", lambda: published(tokens), published, given),
        "layout fixed": Variant("fixed", lambda: fixed(tokens), fixed, given),
        "ViTFPN": Variant("ours", lambda: neck(tokens).maps, neck, given),
        "ViTFPN in torch.utils.checkpoint": Variant("option", recomputed, neck, given),
    }


def pooled_maps(setting: Setting) -> dict[str, Variant]:
    """Torchvision's pyramid on means of a group's maps; ours with one projection for all, and with one per layer."""
    from torchvision.ops import FeaturePyramidNetwork

    torch.manual_seed(0)
    options = {"downsample": "pool", "norm": None, "activation": None}
    sizes = setting.channels, setting.layers, setting.out
    neck = ViTFPN(*sizes, use_separate_bottlenecks=False, **options).to(**setting.like)  # type: ignore[arg-type]
    richer = ViTFPN(*sizes, **options, **setting.like)  # type: ignore[arg-type]
    published = FeaturePyramidNetwork([setting.channels] * 3, setting.out).to(**setting.like)
    load_composed(published, stirred(neck))  # type: ignore[arg-type]
    fixed = copy.deepcopy(published).to(memory_format=torch.channels_last)
    tokens = setting.tokens()
    given = tokens.sequence

    def run(module: nn.Module, to_map: Callable[..., Tensor]) -> list[Tensor]:
        maps = {}
        for place, group in enumerate(neck.grouper.groups):
            each = [to_map(given[i][:, PREFIX:], tokens.grid) for i in group]
            level = sum(each[1:], each[0]) / len(group)
            for _ in range(place):
                level = F.avg_pool2d(level, 2, ceil_mode=True, count_include_pad=False)
            maps[str(place)] = level
        return list(module(maps).values())

    name, own = "torchvision's FeaturePyramidNetwork", 'ViTFPN(downsample="pool"'
    return {
        f"{name} on NCHW copies": Variant(
            "published", lambda: run(published, nchw), published, given
        ),
        f"{name} on NHWC views": Variant("fixed", lambda: run(fixed, nhwc), fixed, given),
        f"{own}, use_separate_bottlenecks=False)": Variant(
            "ours", lambda: neck(tokens).maps, neck, given, own_weights=True
        ),
        f"{own})": Variant("option", lambda: richer(tokens).maps, richer, given, same=False),
    }


@torch.no_grad()
def load_composed(peer: nn.Module, neck: ViTFPN) -> None:
    """Give torchvision's pyramid, which projects once, the product of ours's projection and lateral layers."""
    first, top = neck.grouper.bottleneck(0).linear, neck.top_down
    state = {}
    for place, lateral in enumerate(top.laterals):
        state[f"inner_blocks.{place}.0.weight"] = (lateral.weight @ first.weight)[:, :, None, None]  # type: ignore[operator]
        state[f"inner_blocks.{place}.0.bias"] = F.linear(first.bias, lateral.weight, lateral.bias)
        state[f"layer_blocks.{place}.0.weight"] = top.smooth[place].conv.weight
        state[f"layer_blocks.{place}.0.bias"] = top.smooth[place].conv.bias
    peer.load_state_dict(state)  # type: ignore[arg-type]


def simple_pyramid(setting: Setting) -> dict[str, Variant]:
    """Scales 2, 1, 1/2 of the last map."""
    torch.manual_seed(0)
    neck = stirred(SimplePyramid(setting.channels, setting.out, (2.0, 1.0, 0.5)).to(**setting.like))
    published, fixed, tokens = (
        PlainPyramid(neck, fixed=False),
        PlainPyramid(neck, fixed=True),
        setting.tokens(),
    )  # type: ignore[arg-type]
    given = tokens.sequence
    return {
        "ViTDet's pyramid, as published": Variant(
            "published", lambda: published(tokens), published, given
        ),
        "ViTDet's pyramid, layout fixed": Variant("fixed", lambda: fixed(tokens), fixed, given),
        "SimplePyramid": Variant("ours", lambda: neck(tokens).maps, neck, given),
    }


class TerraNecks(nn.Module):
    """Three of terratorch's necks in a row, as its users chain them: to maps, to four scales, torchvision's FPN."""

    def __init__(self, channels: int, rows: int, out: int) -> None:
        super().__init__()
        from terratorch.models.necks import (
            FeaturePyramidNetworkNeck,
            LearnedInterpolateToPyramidal,
            ReshapeTokensToImage,
        )

        self.scales = LearnedInterpolateToPyramidal([channels] * 4)
        self.to_maps = ReshapeTokensToImage([channels] * 4, remove_cls_token=False, h=rows)
        sizes = self.scales.process_channel_list([channels] * 4)
        self.pyramid = FeaturePyramidNetworkNeck(sizes, out, output_ordered_dict=False)

    def forward(self, layers: list[Tensor]) -> list[Tensor]:
        """Four (B, N, C) -> four levels."""
        levels: list[Tensor] = self.pyramid(self.scales(self.to_maps(layers)))
        return levels


def terratorch_necks(setting: Setting) -> dict[str, Variant]:
    """Levels of strides 4, 8, 16 and 32 out of four layers, next to SimplePyramid; weights of their own."""
    torch.manual_seed(0)
    tokens = setting.tokens()
    given = tokens.sequence
    views = stirred(TerraNecks(setting.channels, setting.grid[0], setting.out).to(**setting.like))
    fixed = copy.deepcopy(views).to(memory_format=torch.channels_last)
    neck = SimplePyramid(setting.channels, setting.out, **setting.like)

    def patches() -> list[Tensor]:
        return [x[:, PREFIX:] for x in given]

    return {
        "terratorch's necks": Variant("published", lambda: views(patches()), views, given),
        "terratorch's necks, channels-last weights": Variant(
            "fixed", lambda: fixed(patches()), fixed, given
        ),
        "SimplePyramid": Variant("ours", lambda: neck(tokens).maps, neck, given, same=False),
    }


SETTINGS = [Setting(2, (30, 60), 384, 3), Setting(1, (60, 60), 768, 6)]
ROWS = [
    Row("ViT-FPN, linear", vit_fpn, [*SETTINGS, Setting(1, (60, 60), 1280, 6)], neck=True),
    Row("ViT-FPN, norms and GELU", partial(vit_fpn, linear=False), SETTINGS, neck=True),
    Row("ViT-FPN on pooled maps", pooled_maps, SETTINGS, neck=True),
    Row(
        "SimplePyramid",
        simple_pyramid,
        [Setting(1, (40, 40), 384), Setting(1, (60, 60), 768)],
        neck=True,
    ),
    Row("terratorch's necks", terratorch_necks, [Setting(1, (40, 40), 384, 4)]),
]
