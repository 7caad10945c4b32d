"""Rows that begin at tokens: the map and its projection, and several layers fused into one map."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from benchmarks.speed.peers import ChannelNorms, Projections
from benchmarks.speed.rows import PREFIX, Row, Setting, Variant, nhwc, perturb
from dinoneck import LayerGrouper
from dinoneck.grid import as_maps
from dinoneck.layers import ChannelNorm


def grouped(setting: Setting, norm: bool = False, fusion: str = "softmax") -> dict[str, Variant]:
    """All layers in one group, fused by learned scalars, or by their mean."""
    torch.manual_seed(0)
    if setting.layers == 1:
        fusion = "mean"  # there are no weights of one layer
        name = "1×1 convolution"
    else:
        name = "loop of 1×1 convolutions"
    grouper = LayerGrouper(
        setting.channels,
        setting.layers,
        setting.out,
        1,
        norm="layer" if norm else None,
        fusion=fusion,
    )
    perturb(grouper.to(**setting.factory_kwargs))
    published = Projections(grouper, fixed=False)
    fixed = Projections(grouper, fixed=True)
    tokens = setting.tokens()
    layers = tokens.sequence

    def ours() -> Tensor:
        fused = grouper(layers)[0]
        return as_maps(fused[:, PREFIX:], tokens.grid)

    return {
        f"copy to NCHW, {name}": Variant("published", lambda: published(tokens), published, layers),
        f"NHWC views, {name}": Variant("fixed", lambda: fixed(tokens), fixed, layers),
        "LayerGrouper": Variant("ours", ours, grouper, layers),
    }


def channel_norm(setting: Setting) -> dict[str, Variant]:
    """LayerNorm of a map."""
    torch.manual_seed(0)
    norm = perturb(ChannelNorm(setting.channels, eps=1e-6).to(**setting.factory_kwargs))
    formula = ChannelNorms(norm, "formula")
    copied = ChannelNorms(norm, "copy")
    viewed = ChannelNorms(norm, "view")
    tokens = setting.tokens()
    patches = tokens.sequence[0].detach()[:, PREFIX:]
    view = nhwc(patches, tokens.grid).requires_grad_(setting.learns)
    copy = view.detach().contiguous().requires_grad_(setting.learns)
    return {
        "mean and variance over axis 1, NCHW": Variant(
            "published", lambda: formula(copy), formula, [copy]
        ),
        "permuted, normalised, copied back": Variant(
            "published", lambda: copied(copy), copied, [copy]
        ),
        "permuted view, normalised": Variant("fixed", lambda: viewed(view), viewed, [view]),
        "ChannelNorm": Variant("ours", lambda: norm(view), norm, [view]),
    }


ONE_LAYER = [Setting(4, (60, 60), 384), Setting(2, (60, 60), 1280)]
FOUR = Setting(2, (30, 60), 384, 4)
SIX = Setting(1, (60, 60), 1280, 6)
TWELVE = Setting(1, (30, 60), 768, 12)
ROWS = [
    Row("tokens → map → 1×1", grouped, ONE_LAYER, "parts", neck=True),
    Row("LayerGrouper, learned scalars", grouped, [FOUR, SIX, TWELVE], "parts", neck=True),
    Row("LayerGrouper, mean", partial(grouped, fusion="mean"), [FOUR, TWELVE], "parts", neck=True),
    Row(
        "LayerGrouper, LayerNorm, learned scalars",
        partial(grouped, norm=True),
        [FOUR, SIX, TWELVE],
        "parts",
        neck=True,
    ),
    Row(
        "LayerGrouper, LayerNorm, mean",
        partial(grouped, norm=True, fusion="mean"),
        [FOUR, TWELVE],
        "parts",
        neck=True,
    ),
    Row("LayerNorm of a map", channel_norm, [Setting(2, (60, 60), 384)], "parts"),
]
