"""Rows of published heads: depth by a DPT decoder and by a linear layer, next to their originals."""

from __future__ import annotations

import copy

import torch
from tests.unit.published import official_files
from torch import Tensor

from benchmarks.speed.peers_detection import dpt_viewed
from benchmarks.speed.rows import STEPS, Row, Setting, Variant
from dinoneck import DPTHead, DPTNeck, LinearHead, Task
from dinoneck.published.loading import translate
from dinoneck.published.names import dinov2_name

DEPTH = Task("depth", kind="dense")


def decoder(setting: Setting) -> dict[str, Variant]:
    """DINOv2's DPT depth, from four layers to the logits of the decoder's cells."""
    from tests.unit.published import peers  # needs transformers

    name = "dinov2_vits14_nyu_dpt"
    channels = setting.channels
    hidden_sizes = (channels // 8, channels // 4, channels // 2, channels)
    shapes = official_files.decoder_shapes(name, channels, hidden_sizes, setting.out)
    state = official_files.random_state(shapes)
    published = peers.decoder(name, state, channels, hidden_sizes, setting.out)
    published = published.to(**setting.factory_kwargs)
    fixed = copy.deepcopy(published).to(memory_format=torch.channels_last)
    neck = DPTNeck(
        channels,
        out_channels=setting.out,
        hidden_sizes=hidden_sizes,
        readout="project",
        upsample="double",
        align_corners=True,
        unit_bias=False,
    )
    head = DPTHead(channels, [DEPTH], neck, add_projection=True)
    head.load_state_dict(translate(state, head.state_dict(), name, rename=dinov2_name))
    head.to(**setting.factory_kwargs, memory_format=torch.channels_last)  # as a Predictor does
    tokens = setting.tokens(prefix=1)
    layers = list(tokens.sequence)
    rows, cols = setting.grid

    def as_published() -> Tensor:
        features = published["neck"](layers, rows, cols)
        return published["head"](features)[:, None]

    def layout_fixed() -> Tensor:
        finest = dpt_viewed(fixed["neck"], layers, setting.grid)
        return fixed["head"]([finest])[:, None]

    title = "transformers' DPT depth"
    return {
        f"{title}, as published": Variant("published", as_published, published, layers),
        f"{title}, layout fixed": Variant("fixed", layout_fixed, fixed, layers),
        "DPTHead": Variant("ours", lambda: head.logits(tokens)[0], head, layers),
    }


def linear(setting: Setting) -> dict[str, Variant]:
    """DINOv2's linear depth, from the layers to one logit per bin and cell."""
    task = Task("bins", kind="dense", dim=setting.out)
    head = LinearHead(
        setting.channels, [task], num_layers=setting.layers, pool=None, use_cls=True, upsample=4
    )
    head = head.to(**setting.factory_kwargs)
    readout = head.readouts[0]
    state = {
        "decode_head.conv_depth.weight": readout.weight[..., None, None],
        "decode_head.conv_depth.bias": readout.bias,
    }
    tokens = setting.tokens(prefix=1)
    layers = tokens.sequence

    def published() -> Tensor:
        return official_files.depth_logits(state, tokens)

    return {
        "concatenated, as published": Variant("published", published, head, layers),
        "LinearHead": Variant("ours", lambda: head(tokens)["bins"], head, layers),
    }


SMALL = [Setting(1, (16, 16), 384, 4), Setting(1, (24, 24), 384, 4)]
LARGE = [Setting(1, (37, 49), 1024, 4)]
OPTIONS = {"group": "published", "steps": STEPS[:1], "gpu_batch": 8, "only_float32": True}
ROWS = [
    Row("DPT depth of ViT-S", decoder, SMALL, **OPTIONS),
    Row("linear depth of ViT-L", linear, LARGE, **OPTIONS),
]
