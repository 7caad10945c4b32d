"""Rows of necks for dense answers: DPT in transformers, in segmentation_models_pytorch, and ours."""

from __future__ import annotations

import copy
from collections.abc import Callable
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.speed.peers_detection import dpt_neck, dpt_viewed, dpt_weights
from benchmarks.speed.rows import Row, Setting, Variant, nchw, nhwc, perturb
from dinoneck import DPTNeck


def widths(setting: Setting) -> tuple[int, ...]:
    """Return the channels of the maps of the four layers: at 256, the published 96, 192, 384, 768."""
    return tuple(setting.out * eighths // 8 for eighths in (3, 6, 12, 24))


def dpt(setting: Setting) -> dict[str, Variant]:
    """Four layers whose patches read the CLS token, fused; the finest level is doubled as by the peers."""
    torch.manual_seed(0)
    published = dpt_neck(setting.channels, widths(setting), setting.out)
    published = perturb(published.to(**setting.factory_kwargs))
    fixed = copy.deepcopy(published).to(memory_format=torch.channels_last)
    neck = DPTNeck(
        setting.channels,
        out_channels=setting.out,
        readout="project",
        hidden_sizes=widths(setting),
        **setting.factory_kwargs,
    )
    dpt_weights(published, neck)
    tokens = setting.tokens(prefix=1)  # transformers' neck knows no registers
    layers = list(tokens.sequence)
    rows, cols = setting.grid

    def ours() -> Tensor:
        return F.interpolate(
            neck(tokens).maps[0], scale_factor=2, mode="bilinear", align_corners=False
        )

    name = "transformers' DPTNeck"
    variants = {
        f"{name}, as published": Variant(
            "published", lambda: published(layers, rows, cols)[-1], published, layers
        ),
        f"{name}, layout fixed": Variant(
            "fixed", lambda: dpt_viewed(fixed, layers, setting.grid), fixed, layers
        ),
    }
    if find_spec("segmentation_models_pytorch") is not None:
        variants |= smp(setting, layers)
    variants["DPTNeck"] = Variant("ours", ours, neck, layers)
    return variants


def smp(setting: Setting, layers: list[Tensor]) -> dict[str, Variant]:
    """The decoder of segmentation_models_pytorch.

    It is another function: its residual units have batch norms.
    """
    from segmentation_models_pytorch.decoders.dpt.decoder import DPTDecoder

    published = DPTDecoder(
        encoder_out_channels=[setting.channels] * 4,
        encoder_output_strides=[16] * 4,
        encoder_has_prefix_tokens=True,
        readout="cat",
        intermediate_channels=list(widths(setting)),
        fusion_channels=setting.out,
    )
    published = perturb(published.to(**setting.factory_kwargs))
    fixed = copy.deepcopy(published).to(memory_format=torch.channels_last)

    def run(module: nn.Module, to_map: Callable[..., Tensor]) -> Tensor:
        maps = [to_map(layer[:, 1:], setting.grid) for layer in layers]
        cls_tokens = [layer[:, :1] for layer in layers]
        decoded: Tensor = module(maps, cls_tokens)
        return decoded

    name = "segmentation_models_pytorch's DPTDecoder"
    return {
        f"{name}, as published": Variant(
            "published", lambda: run(published, nchw), published, layers, same=False
        ),
        f"{name}, NHWC views": Variant(
            "fixed", lambda: run(fixed, nhwc), fixed, layers, same=False
        ),
    }


# on a GPU a smaller batch: its maps have 16 times the cells of the others
ROWS = [Row("DPT", dpt, [Setting(1, (24, 24), 384, 4)], gpu_batch=8, neck=True)]
