"""Rows of necks for detectors: STAPyramid and the spatial tuning adapter."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from benchmarks.speed.peers_detection import DETAIL, Source, deim_encoder
from benchmarks.speed.rows import PREFIX, Form, Row, Setting, Variant, nchw, nhwc, stirred
from dinoneck import SpatialTuningAdapter, STAPyramid, load_backbone
from dinoneck.interop import PyramidEncoder

BACKBONES = {384: "vit_small_patch16_dinov3", 64: "dinoneck_tiny"}


def sta_simple(setting: Setting) -> dict[str, Variant]:
    """P8, P16, P32 of the last map, as a plain pyramid makes them."""
    torch.manual_seed(0)
    published = stirred(Source(setting.channels, setting.out).to(**setting.like))
    fixed = copy.deepcopy(published).to(memory_format=torch.channels_last)
    neck = STAPyramid(setting.channels, setting.out, **setting.like)
    others = {
        "bilinear": STAPyramid(setting.channels, setting.out, upsample="bilinear", **setting.like),
        "avgpool": STAPyramid(setting.channels, setting.out, downsample="avgpool", **setting.like),
    }
    flat = ("p8.weight", "p16.weight")
    neck.load_state_dict(
        {k: v.flatten(1) if k in flat else v for k, v in published.state_dict().items()}
    )
    tokens = setting.tokens()
    given, grid = tokens.sequence, tokens.grid

    def run(module: nn.Module, to_map: object) -> list[torch.Tensor]:
        return list(module(to_map(given[-1][:, PREFIX:], grid)))  # type: ignore[operator]

    return {
        "plain pyramid, as published": Variant(
            "published", lambda: run(published, nchw), published, given
        ),
        "plain pyramid, layout fixed": Variant("fixed", lambda: run(fixed, nhwc), fixed, given),
        "STAPyramid": Variant("ours", lambda: neck(tokens).maps, neck, given),
        **{
            f"STAPyramid, {name}": Variant(
                "option", lambda own=own: own(tokens).maps, own, given, same=False
            )
            for name, own in others.items()
        },
    }


def aligned(setting: Setting) -> dict[str, Variant]:
    """DEIMv2's adapter in transformers, and ours, whose detail of the image lies where the ViT's cells lie."""
    torch.manual_seed(0)
    published = stirred(deim_encoder(setting.channels, setting.out).to(**setting.like))
    fixed = copy.deepcopy(published).to(memory_format=torch.channels_last)
    neck = SpatialTuningAdapter(setting.channels, setting.out, 3, "aligned", DETAIL, **setting.like)
    plain = SpatialTuningAdapter(setting.channels, setting.out, 3, None, DETAIL, **setting.like)
    tokens, images = setting.tokens(), setting.images()
    last = images.contiguous(memory_format=torch.channels_last)
    for module, to_map in ((published, nchw), (fixed, nhwc)):
        module.backbone.tokens, module.backbone.to_map = tokens, to_map  # type: ignore[union-attr,assignment]
    given, name = tokens.sequence, "transformers' DEIMv2 neck"
    return {
        f"{name}, as published": Variant(
            "published", lambda: published(images), published, (*given, images)
        ),
        f"{name}, layout fixed": Variant("fixed", lambda: fixed(last), fixed, (*given, last)),
        'SpatialTuningAdapter(detail="aligned")': Variant(
            "ours", lambda: neck(tokens, images).maps, neck, (*given, images), same=False
        ),
        "SpatialTuningAdapter(detail=None)": Variant(
            "option", lambda: plain(tokens).maps, plain, given, same=False
        ),
    }


def end_to_end(setting: Setting) -> dict[str, Variant]:
    """One image through ViT-S and adapter, the ViT alone, the neck alone, and the ViT at half the size."""
    torch.manual_seed(0)
    backbone = load_backbone(BACKBONES[setting.channels], pretrained=False, dtype=setting.dtype).to(
        setting.device
    )
    backbone = backbone.with_layers(list(range(backbone.depth))[-setting.layers :])
    sizes = (setting.channels, setting.out, setting.layers, "aligned", DETAIL)
    neck = SpatialTuningAdapter(*sizes, **setting.like)
    at_image = SpatialTuningAdapter(*sizes, grid_from="image", **setting.like)
    whole, half = PyramidEncoder(backbone, neck), PyramidEncoder(backbone, at_image, 0.5)
    images = setting.images()
    tokens = backbone(images)

    def parts(work: Callable[[], Any], module: nn.Module, form: Form = "option") -> Variant:
        return Variant(
            form, lambda: list(work()), module, [images], same=form == "published", capturable=False
        )

    return {
        "ViT and adapter": parts(lambda: whole(images), whole, "published"),
        "the ViT alone": parts(lambda: backbone(images).maps(), backbone),
        "the adapter alone": parts(lambda: neck(tokens, images).maps, neck),
        "the ViT at half the size": parts(lambda: half(images), half),
    }


SETTINGS = [Setting(1, (40, 40), 384, 3), Setting(4, (40, 40), 384, 3)]
SIMPLE = [Setting(batch, (40, 40), 384) for batch in (1, 4)]
ROWS = [
    Row("STA simple", sta_simple, [*SIMPLE, Setting(1, (60, 60), 768)], "detection", neck=True),
    Row("STA, aligned", aligned, SETTINGS, "detection", neck=True),
    Row("end to end", end_to_end, SETTINGS[:1], "detection", steps=("forward",), gpu_batch=None),
]
