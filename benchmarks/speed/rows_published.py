"""Rows of published heads: the depth decoder next to transformers', linear depth next to its published formulation."""

from __future__ import annotations

import copy

import torch
from tests.unit.published import official_files
from torch import Tensor

from benchmarks.speed.peers_detection import dpt_viewed
from benchmarks.speed.rows import STEPS, Row, Setting, Variant
from dinoneck import DPTHead, DPTNeck, LinearHead, Task
from dinoneck.published.loading import translate

DEPTH = Task("depth", kind="dense")


def decoder(setting: Setting) -> dict[str, Variant]:
    """DINOv2's DPT depth, from four layers to the logits of the decoder's cells."""
    from tests.unit.published import peers  # needs transformers

    name, hidden = "dinov2_vits14_nyu_dpt", tuple(setting.channels // part for part in (8, 4, 2, 1))
    state = official_files.random_state(
        official_files.decoder_shapes(name, setting.channels, hidden, setting.out)
    )
    published = peers.decoder(name, state, setting.channels, hidden, setting.out).to(**setting.like)
    fixed = copy.deepcopy(published).to(memory_format=torch.channels_last)
    form = {"readout": "project", "upsample": "double", "align_corners": True, "unit_bias": False}
    neck = DPTNeck(setting.channels, out_channels=setting.out, hidden_sizes=hidden, **form)
    head = DPTHead(setting.channels, [DEPTH], neck, add_projection=True)
    head.load_state_dict(translate(state, head.state_dict(), name))
    head.to(**setting.like, memory_format=torch.channels_last)  # as a Predictor does
    tokens = setting.tokens(prefix=1)
    given, grid = list(tokens.sequence), setting.grid
    title = "transformers' DPT depth"
    return {
        f"{title}, as published": Variant(
            "published",
            lambda: published["head"](published["neck"](given, *grid))[:, None],
            published,
            given,
        ),
        f"{title}, layout fixed": Variant(
            "fixed",
            lambda: fixed["head"]([dpt_viewed(fixed["neck"], given, grid)])[:, None],
            fixed,
            given,
        ),
        "DPTHead": Variant("ours", lambda: head.logits(tokens)[0], head, given),
    }


def linear(setting: Setting) -> dict[str, Variant]:
    """DINOv2's linear depth, from the layers to one logit per bin and cell."""
    task = Task("bins", kind="dense", dim=setting.out)
    shape = {"num_layers": setting.layers, "pool": None, "use_cls": True, "upsample": 4}
    head = LinearHead(setting.channels, [task], **shape).to(**setting.like)  # type: ignore[arg-type]
    own = head.readouts[0]
    state = {
        "decode_head.conv_depth.weight": own.weight[..., None, None],
        "decode_head.conv_depth.bias": own.bias,
    }
    tokens = setting.tokens(prefix=1)
    given = tokens.sequence

    def published() -> Tensor:
        return official_files.depth_logits(state, tokens)

    return {
        "concatenated, as published": Variant("published", published, head, given),
        "LinearHead": Variant("ours", lambda: head(tokens)["bins"], head, given),
    }


SMALL = [Setting(1, (16, 16), 384, 4), Setting(1, (24, 24), 384, 4)]
LARGE = [Setting(1, (37, 49), 1024, 4)]
FORM = {"group": "published", "steps": STEPS[:1], "gpu_batch": 8, "only_float32": True}
ROWS = [
    Row("DPT depth of ViT-S", decoder, SMALL, **FORM),
    Row("linear depth of ViT-L", linear, LARGE, **FORM),
]
