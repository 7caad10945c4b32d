"""Rows that begin at tokens: the map and its projection, and several layers fused into one map."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from benchmarks.speed.peers import ChannelNorms, Projections
from benchmarks.speed.rows import PREFIX, Row, Setting, Variant, nhwc, stirred
from dinoneck import LayerGrouper
from dinoneck.grid import as_maps
from dinoneck.layers import ChannelNorm


def grouped(setting: Setting, norm: bool = False, fusion: str = "softmax") -> dict[str, Variant]:
    """All layers in one group, fused by learned scalars, or by their mean."""
    torch.manual_seed(0)
    entrance = "layer" if norm else None
    fusion = fusion if setting.layers > 1 else "mean"  # one layer has nothing to weigh
    grouper = LayerGrouper(
        setting.channels, setting.layers, setting.out, 1, norm=entrance, fusion=fusion
    )  # type: ignore[arg-type]
    stirred(grouper.to(**setting.like))
    published, fixed = Projections(grouper, fixed=False), Projections(grouper, fixed=True)
    tokens = setting.tokens()
    given = tokens.sequence
    name = "1×1 convolution" if setting.layers == 1 else "loop of 1×1 convolutions"

    def ours() -> Tensor:
        return as_maps(grouper(given)[0][:, PREFIX:], tokens.grid)

    return {
        f"copy to NCHW, {name}": Variant("published", lambda: published(tokens), published, given),
        f"NHWC views, {name}": Variant("fixed", lambda: fixed(tokens), fixed, given),
        "LayerGrouper": Variant("ours", ours, grouper, given),
    }


def channel_norm(setting: Setting) -> dict[str, Variant]:
    """LayerNorm of a map."""
    torch.manual_seed(0)
    own = stirred(ChannelNorm(setting.channels, eps=1e-6).to(**setting.like))
    formula, copied, viewed = (ChannelNorms(own, form) for form in ("formula", "copy", "view"))
    tokens = setting.tokens()
    view = nhwc(tokens.sequence[0].detach()[:, PREFIX:], tokens.grid).requires_grad_(setting.learns)
    copy = view.detach().contiguous().requires_grad_(setting.learns)
    return {
        "mean and variance over axis 1, NCHW": Variant(
            "published", lambda: formula(copy), formula, [copy]
        ),
        "permuted, normalised, copied back": Variant(
            "published", lambda: copied(copy), copied, [copy]
        ),
        "permuted view, normalised": Variant("fixed", lambda: viewed(view), viewed, [view]),
        "ChannelNorm": Variant("ours", lambda: own(view), own, [view]),
    }


SMALL, WIDE = Setting(4, (60, 60), 384), Setting(2, (60, 60), 1280)
FOUR, SIX, TWELVE = (
    Setting(2, (30, 60), 384, 4),
    Setting(1, (60, 60), 1280, 6),
    Setting(1, (30, 60), 768, 12),
)
NORMED = partial(grouped, norm=True)
ROWS = [
    Row("tokens → map → 1×1", grouped, [SMALL, WIDE], "parts", neck=True),
    Row("LayerGrouper, learned scalars", grouped, [FOUR, SIX, TWELVE], "parts", neck=True),
    Row("LayerGrouper, mean", partial(grouped, fusion="mean"), [FOUR, TWELVE], "parts", neck=True),
    Row(
        "LayerGrouper, LayerNorm, learned scalars", NORMED, [FOUR, SIX, TWELVE], "parts", neck=True
    ),
    Row(
        "LayerGrouper, LayerNorm, mean",
        partial(NORMED, fusion="mean"),
        [FOUR, TWELVE],
        "parts",
        neck=True,
    ),
    Row("LayerNorm of a map", channel_norm, [Setting(2, (60, 60), 384)], "parts"),
]
