"""What part of its backbone's time a neck takes: measured on a GPU, where that is a goal."""

from __future__ import annotations

from functools import cache

import torch

from benchmarks.speed.clocks import Gpu, TorchGpu, gpu_turns
from benchmarks.speed.rows import Setting
from dinoneck import load_backbone

BACKBONES = {
    384: "vit_small_patch16_dinov3",
    768: "vit_base_patch16_dinov3",
    1280: "vit_huge_plus_patch16_dinov3",
}


TURNS = 9  # a whole backbone takes long: a few turns say enough


def backbone_ms(setting: Setting, rounds: int, gpu: Gpu | None = None) -> float | None:
    """Return the milliseconds of the whole ViT that gives tokens of this width, batch and grid; None = no such ViT."""
    if setting.channels not in BACKBONES:
        return None
    return _whole_ms(setting.of(layers=1, out=1, learns=False), min(rounds, TURNS), gpu)


@cache  # many rows have tokens of one ViT
def _whole_ms(setting: Setting, rounds: int, gpu: Gpu | None) -> float:
    model = load_backbone(BACKBONES[setting.channels], pretrained=False, dtype=setting.dtype).to(setting.device)
    images = setting.images()

    def run() -> None:
        with torch.inference_mode():
            model(images)

    seconds = sorted(gpu_turns({"backbone": run}, gpu or TorchGpu(setting.device), rounds=rounds, warmup=3)["backbone"])
    return seconds[len(seconds) // 2] * 1e3
