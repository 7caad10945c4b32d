"""Rows of necks for detectors: STAPyramid and the spatial tuning adapter."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from benchmarks.speed import work
from benchmarks.speed.peers_detection import DETAIL, Source, deim_encoder
from benchmarks.speed.rows import PREFIX, Row, Setting, Variant, nchw, nhwc, stirred
from dinoneck import SpatialTuningAdapter, STAPyramid


def sta_simple(setting: Setting) -> dict[str, Variant]:
    """P8, P16, P32 of the last map, as a plain pyramid makes them."""
    torch.manual_seed(0)
    published = stirred(Source(setting.channels, setting.out).to(**setting.like))
    fixed = copy.deepcopy(published).to(memory_format=torch.channels_last)
    neck = STAPyramid(setting.channels, setting.out, **setting.like)
    flat = ("p8.weight", "p16.weight")
    neck.load_state_dict({k: v.flatten(1) if k in flat else v for k, v in published.state_dict().items()})
    tokens = setting.tokens()
    given, grid = tokens.sequence, tokens.grid

    def run(module: torch.nn.Module, to_map: object) -> list[Tensor]:
        return list(module(to_map(given[-1][:, PREFIX:], grid)))  # type: ignore[operator]

    return {
        "plain pyramid, as published": Variant("published", lambda: run(published, nchw), published, given),
        "plain pyramid, layout fixed": Variant("fixed", lambda: run(fixed, nhwc), fixed, given),
        "STAPyramid": Variant("ours", lambda: neck(tokens).maps, neck, given),
    }


def aligned(setting: Setting) -> dict[str, Variant]:
    """DEIMv2's adapter in transformers, and ours, whose detail of the image lies where the ViT's cells lie."""
    torch.manual_seed(0)
    published = stirred(deim_encoder(setting.channels, setting.out).to(**setting.like))
    fixed = copy.deepcopy(published).to(memory_format=torch.channels_last)
    neck = SpatialTuningAdapter(setting.channels, setting.out, 3, "aligned", DETAIL, **setting.like)
    tokens, images = setting.tokens(), setting.images()
    last = images.contiguous(memory_format=torch.channels_last)
    for module, to_map in ((published, nchw), (fixed, nhwc)):
        module.backbone.tokens, module.backbone.to_map = tokens, to_map  # type: ignore[union-attr,assignment]
    given, name = tokens.sequence, "transformers' DEIMv2 neck"
    return {
        f"{name}, as published": Variant("published", lambda: published(images), published, (*given, images)),
        f"{name}, layout fixed": Variant("fixed", lambda: fixed(last), fixed, (*given, last)),
        'SpatialTuningAdapter(detail="aligned")': Variant(
            "ours", lambda: neck(tokens, images).maps, neck, (*given, images), same=False
        ),
    }


SETTINGS = [Setting(1, (40, 40), 384, 3), Setting(4, (40, 40), 384, 3)]
WHY = "The convolutions on the image are the same on both sides and take a good part of the time."
ROWS = [
    Row(
        "STA simple", sta_simple, [Setting(1, (40, 40), 384), Setting(1, (60, 60), 768)],
        {"forward float32": 2.0, "forward bfloat16": 2.0}, work=work.sta_simple, neck=True,
        why="The strided 3x3 convolution at full width is the same work in both forms.",
    ),
    Row(
        "STA, aligned (other function)", aligned, SETTINGS, {"forward float32": 3.0, "forward bfloat16": 3.0},
        work=work.aligned, neck=True, why=WHY,
    ),
]  # fmt: skip
