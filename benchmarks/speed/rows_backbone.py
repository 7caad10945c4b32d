"""The row of early layers: a frozen backbone next to what timm does by default."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.speed import work
from benchmarks.speed.rows import Row, Setting, Variant, nhwc
from dinoneck import load_backbone

MODEL, LAYERS, TINY = "vit_small_patch16_dinov3", (3, 5, 8), 64


def early_layers(setting: Setting) -> dict[str, Variant]:
    """Final-normed maps of three of twelve blocks; the peer as published computes in float32 whatever is asked.

    The widths that ``setting`` may ask for are those of a ViT-S and, for quick checks, of the built-in tiny model.
    """
    tiny = setting.channels == TINY
    name, layers, dtype = ("dinoneck_tiny", (1, 2), setting.dtype) if tiny else (MODEL, LAYERS, setting.dtype)
    exact = torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype
    full, own = (
        load_backbone(name, pretrained=False, layers=layers, dtype=kind).to(setting.device) for kind in (exact, dtype)
    )
    images = setting.images()
    wide, grid = images.to(exact), setting.grid

    def default() -> list[Tensor]:
        with torch.no_grad():
            return list(full.adapter.model.forward_intermediates(wide, indices=list(layers), norm=True)[1])

    def best() -> list[Tensor]:
        options = {"norm": True, "output_fmt": "NLC", "intermediates_only": True, "stop_early": True}
        with torch.no_grad():
            found = own.adapter.model.forward_intermediates(images, indices=list(layers), **options)
        return [nhwc(x, grid) for x in found]

    return {
        # timm makes the positions of every forward on the host
        "timm, as it comes, float32": Variant("published", default, full, [wide], capturable=False),
        "timm, stop_early, NLC, views": Variant("fixed", best, own, [images], capturable=False),
        "load_backbone(layers=...)": Variant("ours", lambda: own(images).maps(), own, [images]),
    }


def vit_work(setting: Setting) -> work.Work:
    """Blocks up to the last one asked for."""
    return work.vit(setting, LAYERS[-1] + 1, prefix=5)


ROWS = [
    Row(
        "backbone, early layers, frozen", early_layers, [Setting(1, (30, 30), 384)], {"forward bfloat16": 2.4},
        steps=("forward",), work=vit_work,
        why="Against timm told to stop early in the same dtype nothing is left to gain, and bfloat16 pays as much as "
        "the machine's arithmetic for it.",
    )
]  # fmt: skip
