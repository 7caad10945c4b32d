"""LoRA: the right places, nothing changed at first, everything trainable reached, merged and saved exactly."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.unit.backbones.official_objects import Dinov2Like, Dinov3Like
from tests.unit.backbones.test_libraries import tiny_dinov3
from torch import nn

from dinoneck import (
    Backbone,
    BackboneError,
    CheckpointError,
    FeatureStore,
    HeadCheckpoint,
    PatchMeanHead,
    Predictor,
    Task,
    load_backbone,
    load_head,
    save_head,
    wrap_backbone,
)
from dinoneck.backbones import lora

IMAGES = torch.randn(2, 3, 32, 48, generator=torch.Generator().manual_seed(4))


def official() -> Backbone:
    torch.manual_seed(6)
    return wrap_backbone(Dinov3Like(width=32, patch=16, registers=4))


MAKERS: dict[str, Callable[[], Backbone]] = {
    "timm": lambda: load_backbone("dinoneck_tiny"),
    "transformers": lambda: wrap_backbone(tiny_dinov3()),
    "official": official,
}


def train(backbone: Backbone, head: nn.Module, steps: int) -> None:
    """Real steps of AdamW on whatever is trainable in both."""
    learning = [p for module in (backbone, head) for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        head(backbone(IMAGES))["x"].sub(3.0).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("source", MAKERS)
@pytest.mark.parametrize("targets", ["attention", "all"])
def test_adapted_layers_are_those_of_the_blocks_and_nothing_changes_at_first(
    source: str, targets: str
) -> None:
    plain, backbone = MAKERS[source](), MAKERS[source]()
    before = {id(module): name for name, module in backbone.adapter.model.named_modules()}
    linear = {
        before[id(module)]
        for block in backbone.adapter.blocks
        for module in (
            getattr(block, backbone.adapter.attention) if targets == "attention" else block
        ).modules()
        if isinstance(module, nn.Linear)
    }
    backbone.add_lora(4, targets=targets)  # type: ignore[arg-type]
    assert {name.rpartition(".")[0] for name in lora.state(backbone.adapter)} == linear
    assert not any("patch_embed" in name for name in linear)
    assert torch.equal(backbone(IMAGES).sequence[0], plain(IMAGES).sequence[0])
    assert {id(p) for p in backbone.parameters() if p.requires_grad} == {
        id(p) for p in lora.parameters(backbone.adapter)
    }
    assert backbone.record()["weights_sha256"] == plain.record()["weights_sha256"], (
        "the base is still the base"
    )
    assert plain.record()["adapter"] is None
    record = backbone.record()["adapter"]
    assert (record["rank"], record["alpha"], record["targets"]) == (4, 4.0, targets)


@pytest.mark.slow
@pytest.mark.parametrize("source", MAKERS)
def test_every_lora_weight_learns_and_merging_keeps_the_tokens(source: str) -> None:
    plain, backbone = MAKERS[source](), MAKERS[source]().add_lora(4, alpha=8, targets="all")
    head = PatchMeanHead(backbone.embed_dim, [Task("x")])
    first = {name: value.clone() for name, value in lora.state(backbone.adapter).items()}
    train(backbone.train(), head, 20)
    for name, value in lora.state(backbone.adapter).items():
        assert not torch.equal(value, first[name]), name
    trained = backbone.eval()(IMAGES).sequence[0]
    assert (trained - plain(IMAGES).sequence[0]).abs().max() > 0.05
    with backbone.lora_disabled():
        assert torch.equal(backbone(IMAGES).sequence[0], plain(IMAGES).sequence[0])
    assert torch.equal(backbone(IMAGES).sequence[0], trained)
    assert all(parameter.requires_grad for parameter in lora.parameters(backbone.adapter))
    names = {name for name, _ in plain.adapter.model.named_parameters()}
    backbone.merge_lora()
    assert {name for name, _ in backbone.adapter.model.named_parameters()} == names
    assert torch.allclose(backbone(IMAGES).sequence[0], trained, atol=2e-5)
    assert backbone.record()["adapter"] is None
    assert backbone.record()["weights"]["kind"] == "merged"
    assert backbone.frozen


@pytest.mark.slow
def test_query_and_value_biases_do_not_pass_lora_by() -> None:
    """timm's DINOv3 with biases reads qkv.weight itself, past the adapted layer: LoRA on qkv would do nothing."""
    backbone = load_backbone("vit_small_patch16_dinov3_qkvb", pretrained=False, layers=[1])
    before = backbone(IMAGES).sequence[0]
    backbone.add_lora(2)
    assert torch.allclose(backbone(IMAGES).sequence[0], before, atol=1e-5)
    with torch.no_grad():
        for name, value in lora.state(backbone.adapter).items():
            if name.endswith("qkv.lora_B"):
                value.fill_(0.1)
    assert (backbone(IMAGES).sequence[0] - before).abs().max() > 0.05


def test_saved_weights_come_back_under_any_circumstances(tmp_path: Path) -> None:
    backbone = load_backbone("dinoneck_tiny").add_lora(2).unfreeze_last(1)
    head = PatchMeanHead(64, [Task("x")])
    train(backbone.train(), head, 3)
    backbone.eval().freeze()
    with backbone.lora_disabled():
        base = backbone(IMAGES).sequence[0]
    backbone.save_weights(tmp_path / "base.safetensors")
    again = load_backbone("dinoneck_tiny", checkpoint=tmp_path / "base.safetensors")
    assert torch.equal(again(IMAGES).sequence[0], base)
    assert again.name == "dinoneck_tiny"
    backbone.merge_lora()
    weights = backbone.state_dict()
    save_head(
        tmp_path / "h.safetensors",
        head,
        backbone=backbone,
        backbone_weights=weights,
        preprocess=backbone.preprocess,
    )
    backbone.save_weights(tmp_path / "merged.safetensors")
    merged = load_backbone("dinoneck_tiny", checkpoint=tmp_path / "merged.safetensors")
    image = torch.rand(3, 32, 48)
    assert Predictor(tmp_path / "h.safetensors", merged)(image) == Predictor(head, backbone)(image)


def test_only_the_blocks_own_layers_are_adapted() -> None:
    """Peft matches the ends of names: a second tower with the same names would be adapted too."""
    model = Dinov2Like(width=32, patch=16)
    model.teacher = nn.Module()
    model.teacher.blocks = copy.deepcopy(model.blocks)
    backbone = wrap_backbone(model).add_lora(2)
    assert not any("teacher" in name for name in lora.state(backbone.adapter))


def test_the_seed_decides_and_no_state_of_torch_changes() -> None:
    def a_of(seed: int) -> torch.Tensor:
        return next(
            iter(lora.state(load_backbone("dinoneck_tiny").add_lora(2, seed=seed).adapter).values())
        )

    torch.manual_seed(1)
    state = torch.get_rng_state()
    assert torch.equal(a_of(0), a_of(0))
    assert not torch.equal(a_of(0), a_of(1))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.slow
def test_weights_that_were_trained_on_are_not_taken_for_the_published_ones() -> None:
    """In another dtype or library the digest cannot tell, so the record must."""
    head = PatchMeanHead(64, [Task("x")])
    thawed = load_backbone("dinoneck_tiny").unfreeze_last(1)
    with torch.no_grad():
        thawed.adapter.blocks[5].mlp.fc1.weight.mul_(2)
    half = load_backbone("dinoneck_tiny", dtype=torch.bfloat16)
    for tuned in (thawed, thawed.freeze(), thawed.with_layers([5])):
        assert tuned.record()["weights"]["kind"] == "modified"
        weights = tuned.state_dict()
        checkpoint = HeadCheckpoint.from_module(head, backbone=tuned, backbone_weights=weights)
        with pytest.raises(CheckpointError, match="weights:"):
            checkpoint.check_backbone(half)
        with pytest.raises(
            CheckpointError, match=r"seeded random weights \(seed 0\), changed by training"
        ):
            Predictor(checkpoint, load_backbone("dinoneck_tiny"))
    merged = tuned_lora()
    sibling = merged.with_layers([0, 5])
    merged.merge_lora()
    assert sibling.record()["weights"]["kind"] == "merged"
    unchanged = load_backbone("dinoneck_tiny").add_lora(2).merge_lora()
    assert unchanged.record()["weights"]["kind"] == "seeded"
    untouched = load_backbone("dinoneck_tiny").unfreeze_last(1)
    assert untouched.record()["weights"]["kind"] == "seeded"


def tuned_lora() -> Backbone:
    backbone = load_backbone("dinoneck_tiny").add_lora(2)
    with torch.no_grad():
        for value in lora.state(backbone.adapter).values():
            value.add_(0.1)
    return backbone.freeze()


def test_tokens_stores_and_heads_are_recorded_as_the_bases(tmp_path: Path) -> None:
    base, backbone = load_backbone("dinoneck_tiny"), tuned_lora()
    before = backbone.record()
    Image.fromarray(np.full((32, 32, 3), 90, np.uint8)).save(tmp_path / "a.png")
    with backbone.lora_disabled():
        tokens = backbone(IMAGES[:1])
        assert backbone.record() == base.record()
        store = FeatureStore.create(tmp_path / "store", backbone=backbone, image_size=(32, 32))
        store.extract(tmp_path / "a.png")
        save_head(tmp_path / "h.safetensors", PatchMeanHead(64, [Task("x")]), backbone=backbone)
    assert (tokens.source, store["a"].source) == (base.fingerprint, base.fingerprint)
    assert torch.equal(tokens.sequence[0], base(IMAGES[:1]).sequence[0])
    assert not HeadCheckpoint.load(tmp_path / "h.safetensors").adapter_state
    load_head(tmp_path / "h.safetensors")(base(IMAGES[:1]))
    assert backbone.record() == before
    assert backbone.fingerprint != base.fingerprint


def test_a_head_of_lora_tokens_refuses_the_bases_and_leaves_the_switch_alone(
    tmp_path: Path,
) -> None:
    backbone = tuned_lora()
    save_head(tmp_path / "h.safetensors", PatchMeanHead(64, [Task("x")]), backbone=backbone)
    head, weights = load_head(tmp_path / "h.safetensors"), lora.record(backbone.adapter)
    head(backbone(IMAGES[:1]))
    with backbone.lora_disabled():
        with pytest.raises(BackboneError, match="source"):
            head(backbone(IMAGES[:1]))
        with pytest.raises(CheckpointError, match="switched off"):
            HeadCheckpoint.load(tmp_path / "h.safetensors").apply_adapter(backbone)
    assert lora.record(backbone.adapter) == weights
