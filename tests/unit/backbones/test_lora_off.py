"""While LoRA is switched off, tokens, stores and files are those of the base without it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dinoneck import (
    Backbone,
    BackboneError,
    CheckpointError,
    FeatureStore,
    HeadCheckpoint,
    PatchMeanHead,
    Task,
    load_backbone,
    load_head,
    save_head,
)
from dinoneck.backbones import lora

IMAGES = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(4))


def tuned() -> Backbone:
    backbone = load_backbone("dinoneck_tiny").add_lora(2)
    with torch.no_grad():
        for value in lora.state(backbone.adapter).values():
            value.add_(0.1)
    return backbone.freeze()


def test_tokens_stores_and_heads_are_recorded_as_the_bases(tmp_path: Path) -> None:
    base, backbone = load_backbone("dinoneck_tiny"), tuned()
    before = backbone.record()
    Image.fromarray(np.full((32, 32, 3), 90, np.uint8)).save(tmp_path / "a.png")
    with backbone.lora_disabled():
        tokens = backbone(IMAGES)
        assert backbone.record() == base.record()
        store = FeatureStore.create(tmp_path / "store", backbone=backbone, image_size=(32, 32))
        store.extract(tmp_path / "a.png")
        save_head(tmp_path / "h.safetensors", PatchMeanHead(64, [Task("x")]), backbone=backbone)
    assert (tokens.source, store["a"].source) == (base.fingerprint, base.fingerprint)
    assert torch.equal(tokens.sequence[0], base(IMAGES).sequence[0])
    assert not HeadCheckpoint.load(tmp_path / "h.safetensors").adapter_state
    load_head(tmp_path / "h.safetensors")(base(IMAGES))
    assert backbone.record() == before
    assert backbone.fingerprint != base.fingerprint


def test_a_head_of_lora_tokens_refuses_the_bases_and_leaves_the_switch_alone(tmp_path: Path) -> None:
    backbone = tuned()
    save_head(tmp_path / "h.safetensors", PatchMeanHead(64, [Task("x")]), backbone=backbone)
    head, weights = load_head(tmp_path / "h.safetensors"), lora.record(backbone.adapter)
    head(backbone(IMAGES))
    with backbone.lora_disabled():
        with pytest.raises(BackboneError, match="source"):
            head(backbone(IMAGES))
        with pytest.raises(CheckpointError, match="switched off"):
            HeadCheckpoint.load(tmp_path / "h.safetensors").apply_adapter(backbone)
    assert lora.record(backbone.adapter) == weights
