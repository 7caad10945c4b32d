"""Rows of necks for detectors: STAPyramid and the spatial tuning adapter."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.speed.peers_detection import DETAIL, OneMapPyramid, deim_encoder
from benchmarks.speed.rows import PREFIX, Form, Row, Setting, Variant, nchw, nhwc, perturb
from dinoneck import SpatialTuningAdapter, STAPyramid, load_backbone
from dinoneck.interop import PyramidEncoder

BACKBONES = {384: "vit_small_patch16_dinov3", 64: "dinoneck_tiny"}  # by width


def sta_simple(setting: Setting) -> dict[str, Variant]:
    """P8, P16, P32 of the last map, as a plain pyramid computes them."""
    torch.manual_seed(0)
    published = OneMapPyramid(setting.channels, setting.out).to(**setting.factory_kwargs)
    published = perturb(published)
    fixed = copy.deepcopy(published).to(memory_format=torch.channels_last)
    sizes = (setting.channels, setting.out)
    neck = STAPyramid(*sizes, **setting.factory_kwargs)
    bilinear = STAPyramid(*sizes, upsample="bilinear", **setting.factory_kwargs)
    avgpool = STAPyramid(*sizes, downsample="avgpool", **setting.factory_kwargs)

    # the 1x1 convolutions of the peer are linear layers in ours
    state = published.state_dict()
    for name in ("p8.weight", "p16.weight"):
        state[name] = state[name].flatten(1)
    neck.load_state_dict(state)
    converted = copy.deepcopy(neck).to(memory_format=torch.channels_last)

    tokens = setting.tokens()
    layers = tokens.sequence

    def run(module: nn.Module, to_map: Callable[..., Tensor]) -> list[Tensor]:
        maps = to_map(layers[-1][:, PREFIX:], tokens.grid)
        return list(module(maps))

    return {
        "plain pyramid, as published": Variant(
            "published", lambda: run(published, nchw), published, layers
        ),
        "plain pyramid, layout fixed": Variant("fixed", lambda: run(fixed, nhwc), fixed, layers),
        "STAPyramid": Variant("ours", lambda: neck(tokens).maps, neck, layers),
        "STAPyramid, channels-last weights": Variant(
            "option", lambda: converted(tokens).maps, converted, layers
        ),
        "STAPyramid, bilinear": Variant(
            "option", lambda: bilinear(tokens).maps, bilinear, layers, same=False
        ),
        "STAPyramid, avgpool": Variant(
            "option", lambda: avgpool(tokens).maps, avgpool, layers, same=False
        ),
    }


def aligned(setting: Setting) -> dict[str, Variant]:
    """DEIMv2's adapter in transformers, and ours, which aligns the image's detail with the patches."""
    torch.manual_seed(0)
    published = deim_encoder(setting.channels, setting.out).to(**setting.factory_kwargs)
    published = perturb(published)
    fixed = copy.deepcopy(published).to(memory_format=torch.channels_last)
    neck = adapter(setting, num_layers=3, detail="aligned")
    without_detail = adapter(setting, num_layers=3, detail=None)

    tokens = setting.tokens()
    published.backbone.tokens = tokens
    published.backbone.to_map = nchw
    fixed.backbone.tokens = tokens
    fixed.backbone.to_map = nhwc

    layers = tokens.sequence
    images = setting.images()
    images_nhwc = images.contiguous(memory_format=torch.channels_last)
    name = "transformers' DEIMv2 neck"
    return {
        f"{name}, as published": Variant(
            "published", lambda: published(images), published, (*layers, images)
        ),
        f"{name}, layout fixed": Variant(
            "fixed", lambda: fixed(images_nhwc), fixed, (*layers, images_nhwc)
        ),
        'SpatialTuningAdapter(detail="aligned")': Variant(
            "ours", lambda: neck(tokens, images).maps, neck, (*layers, images), same=False
        ),
        "SpatialTuningAdapter(detail=None)": Variant(
            "option", lambda: without_detail(tokens).maps, without_detail, layers, same=False
        ),
    }


def adapter(
    setting: Setting, num_layers: int, detail: str | None, **options: Any
) -> SpatialTuningAdapter:
    """Return our adapter of these sizes."""
    return SpatialTuningAdapter(
        setting.channels,
        setting.out,
        num_layers,
        detail,
        DETAIL,
        **options,
        **setting.factory_kwargs,
    )


def end_to_end(setting: Setting) -> dict[str, Variant]:
    """One image through ViT-S and adapter; the ViT and the neck alone; the ViT at half the size."""
    torch.manual_seed(0)
    name = BACKBONES[setting.channels]
    backbone = load_backbone(name, pretrained=False, dtype=setting.dtype).to(setting.device)
    last_layers = list(range(backbone.depth))[-setting.layers :]
    backbone = backbone.with_layers(last_layers)
    neck = adapter(setting, num_layers=setting.layers, detail="aligned")
    neck_at_image_size = adapter(
        setting, num_layers=setting.layers, detail="aligned", grid_from="image"
    )
    whole = PyramidEncoder(backbone, neck)
    half = PyramidEncoder(backbone, neck_at_image_size, 0.5)
    images = setting.images()
    tokens = backbone(images)

    def variant(form: Form, call: Callable[[], Any], module: nn.Module) -> Variant:
        same = form == "published"
        return Variant(form, lambda: list(call()), module, [images], same=same, capturable=False)

    return {
        "ViT and adapter": variant("published", lambda: whole(images), whole),
        "the ViT alone": variant("option", lambda: backbone(images).maps(), backbone),
        "the adapter alone": variant("option", lambda: neck(tokens, images).maps, neck),
        "the ViT at half the size": variant("option", lambda: half(images), half),
    }


ONE_LAYER = [Setting(1, (40, 40), 384), Setting(4, (40, 40), 384), Setting(1, (60, 60), 768)]
THREE_LAYERS = [Setting(1, (40, 40), 384, 3), Setting(4, (40, 40), 384, 3)]
ROWS = [
    Row("STA simple", sta_simple, ONE_LAYER, "detection", neck=True),
    Row("STA, aligned", aligned, THREE_LAYERS, "detection", neck=True),
    Row(
        "end to end",
        end_to_end,
        THREE_LAYERS[:1],
        "detection",
        steps=("forward",),
        gpu_batch=None,
    ),
]
