"""The functional probe: the same weights pass in any library or dtype, other ones never."""

from __future__ import annotations

import pytest
import torch

from dinoneck import CheckpointError, HeadCheckpoint, PatchMeanHead, Task, load_backbone
from dinoneck.backbones.weight_hashes import differs

NAME = "vit_small_patch16_dinov3"


def test_other_weights_norms_layers_and_recipes_are_noticed() -> None:
    backbone = load_backbone("dinoneck_tiny").unfreeze_last(1).train()
    own = backbone.probe()
    assert backbone.adapter.blocks[-1].training
    others = [
        load_backbone("dinoneck_tiny", seed=1),
        load_backbone("dinoneck_tiny", norm=False),
        load_backbone("dinoneck_tiny", layers=[4]),
    ]
    for other in others:
        assert differs(own, other.probe()) is not None
    for noise in (1.0, 0.1, 2e-3):
        nudged = load_backbone("dinoneck_tiny")
        with torch.no_grad():
            for parameter in nudged.parameters():
                parameter.mul_(1 + noise * torch.randn_like(parameter))
        assert differs(own, nudged.probe()) is not None, noise
    native, official = (
        load_backbone("vit_small_patch14_dinov2", pretrained=False, pos_embed=p) for p in ("native", "official")
    )
    assert differs(native.probe(), official.probe()) is not None
    assert differs(own, own[:-1]) == float("inf")


def test_it_passes_the_same_weights_in_another_library_and_dtype() -> None:
    head = PatchMeanHead(384, [Task("x")])
    trained = load_backbone(NAME, pretrained=False)
    checkpoint = HeadCheckpoint.from_module(head, backbone=trained)
    same = load_backbone(NAME, pretrained=False, source="transformers")
    checkpoint.check_backbone(same, probe=True)
    checkpoint.check_backbone(load_backbone(NAME, pretrained=False, dtype=torch.bfloat16), probe=True)
    checkpoint.check_backbone(same)  # seeded weights are known by their seed in any library
    for other in (
        load_backbone(NAME, pretrained=False, seed=1, source="transformers"),
        load_backbone(NAME, pretrained=False, seed=1, dtype=torch.bfloat16),
    ):
        with pytest.raises(CheckpointError, match="gives other outputs"):
            checkpoint.check_backbone(other, probe=True)
