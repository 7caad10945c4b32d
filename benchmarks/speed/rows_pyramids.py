"""Rows of feature pyramids: ViT-FPN, torchvision's, ViTDet's, terratorch's."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from benchmarks.speed.peers import PlainFPN, PlainPyramid, add_up
from benchmarks.speed.rows import PREFIX, Row, Setting, Variant, nchw, nhwc, perturb
from dinoneck import SimplePyramid, ViTFPN


def three_forms(setting: Setting, linear: bool) -> tuple[ViTFPN, PlainFPN, PlainFPN]:
    """Return ours, and the plain FPN with its weights, as published and with its layout fixed."""
    torch.manual_seed(0)
    options = {"norm": None, "activation": None} if linear else {}
    neck = ViTFPN(setting.channels, setting.layers, setting.out, **options)
    neck = neck.to(**setting.factory_kwargs)
    perturb(neck)
    return neck, PlainFPN(neck, fixed=False), PlainFPN(neck, fixed=True)


def vit_fpn(setting: Setting, linear: bool = True) -> dict[str, Variant]:
    """P2, P3, P4 of groups of layers; linear: without norm and activation."""
    neck, published, fixed = three_forms(setting, linear)
    converted = copy.deepcopy(neck).to(memory_format=torch.channels_last)
    tokens = setting.tokens()
    layers = tokens.sequence

    def checkpointed() -> list[Tensor]:
        return list(checkpoint(lambda: neck(tokens).maps, use_reentrant=False))

    return {
        "as published": Variant("published", lambda: published(tokens), published, layers),
        "layout fixed": Variant("fixed", lambda: fixed(tokens), fixed, layers),
        "ViTFPN": Variant("ours", lambda: neck(tokens).maps, neck, layers),
        "ViTFPN, channels-last weights": Variant(
            "option", lambda: converted(tokens).maps, converted, layers
        ),
        "ViTFPN in torch.utils.checkpoint": Variant("option", checkpointed, neck, layers),
    }


def pooled_maps(setting: Setting) -> dict[str, Variant]:
    """Torchvision's pyramid on the mean maps of groups, next to ours.

    Torchvision projects the mean, ours projects the layers: by the same weights, which gives the
    same result, and as an option by weights of each layer.
    """
    from torchvision.ops import FeaturePyramidNetwork

    torch.manual_seed(0)
    sizes = (setting.channels, setting.layers, setting.out)
    options: dict[str, Any] = {"downsample": "pool", "norm": None, "activation": None}
    neck = ViTFPN(*sizes, use_separate_bottlenecks=False, **options)
    neck = neck.to(**setting.factory_kwargs)
    separate = ViTFPN(*sizes, **options, **setting.factory_kwargs)
    published = FeaturePyramidNetwork([setting.channels] * 3, setting.out)
    published = published.to(**setting.factory_kwargs)
    perturb(neck)
    load_composed(published, neck)
    fixed = copy.deepcopy(published).to(memory_format=torch.channels_last)
    tokens = setting.tokens()
    layers = tokens.sequence

    def run(module: nn.Module, to_map: Callable[..., Tensor]) -> list[Tensor]:
        levels = {}
        for number, group in enumerate(neck.grouper.groups):
            maps = [to_map(layers[layer][:, PREFIX:], tokens.grid) for layer in group]
            level = add_up(maps) / len(group)
            for _ in range(number):
                level = F.avg_pool2d(level, 2, ceil_mode=True, count_include_pad=False)
            levels[str(number)] = level
        return list(module(levels).values())

    peer = "torchvision's FeaturePyramidNetwork"
    ours = 'ViTFPN(downsample="pool"'
    return {
        f"{peer} on NCHW copies": Variant(
            "published", lambda: run(published, nchw), published, layers
        ),
        f"{peer} on NHWC views": Variant("fixed", lambda: run(fixed, nhwc), fixed, layers),
        f"{ours}, use_separate_bottlenecks=False)": Variant(
            "ours", lambda: neck(tokens).maps, neck, layers, own_weights=True
        ),
        f"{ours})": Variant("option", lambda: separate(tokens).maps, separate, layers, same=False),
    }


@torch.no_grad()
def load_composed(peer: nn.Module, neck: ViTFPN) -> None:
    """Copy our weights into torchvision's pyramid.

    It projects once where ours projects twice, by the bottleneck and by the lateral layer: it gets
    the product of the two.
    """
    bottleneck = neck.grouper.bottleneck(0).linear
    top_down = neck.top_down
    state = {}
    for level, lateral in enumerate(top_down.laterals):
        weight = lateral.weight @ bottleneck.weight
        bias = F.linear(bottleneck.bias, lateral.weight, lateral.bias)
        smooth = top_down.smooth[level].conv
        state[f"inner_blocks.{level}.0.weight"] = weight[:, :, None, None]
        state[f"inner_blocks.{level}.0.bias"] = bias
        state[f"layer_blocks.{level}.0.weight"] = smooth.weight
        state[f"layer_blocks.{level}.0.bias"] = smooth.bias
    peer.load_state_dict(state)


def simple_pyramid(setting: Setting) -> dict[str, Variant]:
    """Scales 2, 1, 1/2 of the last map."""
    torch.manual_seed(0)
    neck = SimplePyramid(setting.channels, setting.out, (2.0, 1.0, 0.5))
    neck = perturb(neck.to(**setting.factory_kwargs))
    published = PlainPyramid(neck, fixed=False)
    fixed = PlainPyramid(neck, fixed=True)
    tokens = setting.tokens()
    layers = tokens.sequence
    return {
        "ViTDet's pyramid, as published": Variant(
            "published", lambda: published(tokens), published, layers
        ),
        "ViTDet's pyramid, layout fixed": Variant("fixed", lambda: fixed(tokens), fixed, layers),
        "SimplePyramid": Variant("ours", lambda: neck(tokens).maps, neck, layers),
    }


class TerraNecks(nn.Module):
    """Three of terratorch's necks as its users chain them: to maps, to four scales, torchvision's FPN."""

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
        maps = self.to_maps(layers)
        scaled = self.scales(maps)
        levels: list[Tensor] = self.pyramid(scaled)
        return levels


def terratorch_necks(setting: Setting) -> dict[str, Variant]:
    """Levels of strides 4, 8, 16 and 32 of four layers, next to SimplePyramid with other weights."""
    torch.manual_seed(0)
    tokens = setting.tokens()
    layers = tokens.sequence
    published = TerraNecks(setting.channels, setting.grid[0], setting.out)
    published = perturb(published.to(**setting.factory_kwargs))
    fixed = copy.deepcopy(published).to(memory_format=torch.channels_last)
    neck = SimplePyramid(setting.channels, setting.out, **setting.factory_kwargs)

    def patches() -> list[Tensor]:
        return [layer[:, PREFIX:] for layer in layers]

    return {
        "terratorch's necks": Variant("published", lambda: published(patches()), published, layers),
        "terratorch's necks, channels-last weights": Variant(
            "fixed", lambda: fixed(patches()), fixed, layers
        ),
        "SimplePyramid": Variant("ours", lambda: neck(tokens).maps, neck, layers, same=False),
    }


SEVERAL_LAYERS = [Setting(2, (30, 60), 384, 3), Setting(1, (60, 60), 768, 6)]
ONE_LAYER = [Setting(1, (40, 40), 384), Setting(1, (60, 60), 768)]
ROWS = [
    Row("ViT-FPN, linear", vit_fpn, [*SEVERAL_LAYERS, Setting(1, (60, 60), 1280, 6)], neck=True),
    Row("ViT-FPN, norms and GELU", partial(vit_fpn, linear=False), SEVERAL_LAYERS, neck=True),
    Row("ViT-FPN on pooled maps", pooled_maps, SEVERAL_LAYERS, neck=True),
    Row("SimplePyramid", simple_pyramid, ONE_LAYER, neck=True),
    Row("terratorch's necks", terratorch_necks, [Setting(1, (40, 40), 384, 4)]),
]
