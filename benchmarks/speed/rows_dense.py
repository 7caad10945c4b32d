"""Rows of necks for dense answers: DPT in transformers, in segmentation_models_pytorch, and ours."""

from __future__ import annotations

import copy
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.speed.peers_detection import dpt_neck, dpt_viewed, dpt_weights
from benchmarks.speed.rows import Row, Setting, Variant, nchw, nhwc, stirred
from dinoneck import DPTNeck


def widths(setting: Setting) -> tuple[int, ...]:
    """Of the four layers' maps: the published 96, 192, 384 and 768 at 256 channels."""
    return tuple(setting.out * eighths // 8 for eighths in (3, 6, 12, 24))


def dpt(setting: Setting) -> dict[str, Variant]:
    """Four layers with the CLS token read along, fused; the finest level doubled, as the peers hand it out."""
    torch.manual_seed(0)
    published = stirred(dpt_neck(setting.channels, widths(setting), setting.out).to(**setting.like))
    fixed = copy.deepcopy(published).to(memory_format=torch.channels_last)
    form = {"out_channels": setting.out, "readout": "project", "hidden_sizes": widths(setting)}
    neck = DPTNeck(setting.channels, **form, **setting.like)
    dpt_weights(published, neck)
    tokens = setting.tokens(prefix=1)  # transformers' neck knows no registers
    given, (rows, cols) = list(tokens.sequence), setting.grid

    def ours() -> Tensor:
        return F.interpolate(
            neck(tokens).maps[0], scale_factor=2, mode="bilinear", align_corners=False
        )

    name = "transformers' DPTNeck"
    variants = {
        f"{name}, as published": Variant(
            "published", lambda: published(given, rows, cols)[-1], published, given
        ),
        f"{name}, layout fixed": Variant(
            "fixed", lambda: dpt_viewed(fixed, given, setting.grid), fixed, given
        ),
    }
    if find_spec("segmentation_models_pytorch") is not None:
        variants |= smp(setting, given)
    return variants | {"DPTNeck": Variant("ours", ours, neck, given)}


def smp(setting: Setting, given: list[Tensor]) -> dict[str, Variant]:
    """The decoder of segmentation_models_pytorch: another function (batch norms in the residual units)."""
    from segmentation_models_pytorch.decoders.dpt.decoder import DPTDecoder

    made = DPTDecoder(
        [setting.channels] * 4, [16] * 4, True, "cat", list(widths(setting)), setting.out
    )
    published = stirred(made.to(**setting.like))
    fixed = copy.deepcopy(published).to(memory_format=torch.channels_last)

    def run(module: nn.Module, to_map: object) -> Tensor:
        maps = [to_map(x[:, 1:], setting.grid) for x in given]  # type: ignore[operator]
        decoded: Tensor = module(maps, [x[:, :1] for x in given])
        return decoded

    name = "segmentation_models_pytorch's DPTDecoder"
    return {
        f"{name}, as published": Variant(
            "published", lambda: run(published, nchw), published, given, same=False
        ),
        f"{name}, NHWC views": Variant("fixed", lambda: run(fixed, nhwc), fixed, given, same=False),
    }


# on a GPU a smaller batch: its maps have 16 times the cells of the others
ROWS = [Row("DPT", dpt, [Setting(1, (24, 24), 384, 4)], gpu_batch=8, neck=True)]
