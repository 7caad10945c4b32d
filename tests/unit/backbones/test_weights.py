"""Official weight files: every key lands, and the features are the model's own; hashes and probes of weights."""

from __future__ import annotations

import copy
import pickle
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dinoneck import (
    Backbone,
    BackboneError,
    CheckpointError,
    HeadCheckpoint,
    PatchMeanHead,
    ShapeError,
    Task,
    Tokens,
    collate,
    load_backbone,
)
from dinoneck.backbones import weight_hashes
from dinoneck.backbones.weight_hashes import differs

pytestmark = pytest.mark.slow

State = dict[str, torch.Tensor]


def official_dinov3(backbone: Backbone) -> State:
    """The state dict as the dinov3 repository writes it, from a timm model."""
    model = backbone.adapter.model
    state: State = {"mask_token": torch.randn(1, backbone.embed_dim)}
    own = model.state_dict()
    for key, value in own.items():
        stem, _, last = key.rpartition(".")
        if last in ("q_bias", "v_bias"):
            width = len(value)
            state[f"{stem}.qkv.bias"] = torch.cat(
                (own[f"{stem}.q_bias"], torch.zeros(width), own[f"{stem}.v_bias"])
            )
            state[f"{stem}.qkv.bias_mask"] = torch.cat(
                (torch.ones(width), torch.zeros(width), torch.ones(width))
            )
            continue
        key = re.sub(r"gamma_([12])$", r"ls\1.gamma", key).replace("reg_token", "storage_tokens")
        for mine, theirs in (("fc1_g", "w1"), ("fc1_x", "w2")):
            key = key.replace(f"mlp.{mine}.", f"mlp.{theirs}.")
        if any("fc1_g" in name for name in own):
            key = key.replace("mlp.fc2.", "mlp.w3.")
        state[key] = value
    state["rope_embed.periods"] = model.rope.periods.bfloat16().float()
    return state


def official_dinov2(backbone: Backbone, chunks: bool) -> State:
    """The state dict as the dinov2 repository writes it, from a timm model."""
    own = backbone.adapter.model.state_dict()
    state: State = {"mask_token": torch.zeros(1, backbone.embed_dim)}
    for key, value in own.items():
        if chunks and key.startswith("blocks."):
            number = int(key.split(".")[1])
            key = key.replace(f"blocks.{number}.", f"blocks.{number // 4}.{number}.", 1)
        state[key] = value.clone()
    if "reg_token" in state:
        share = torch.full((1, 1, backbone.embed_dim), 0.5)
        state["register_tokens"] = state.pop("reg_token")
        state["cls_token"] = state["cls_token"] - share
        state["pos_embed"] = torch.cat((share, state["pos_embed"]), dim=1)
    return state


def same_features(one: Backbone, other: Backbone, atol: float = 0.0) -> None:
    patch = one.adapter.patch_size[0]
    images = torch.randn(1, 3, 2 * patch, 3 * patch)
    a, b = one(images).sequence[0], other(images).sequence[0]
    assert torch.allclose(a, b, rtol=0, atol=atol), (a - b).abs().max()


@pytest.mark.parametrize(
    "name", ["vit_small_patch16_dinov3_qkvb", "vit_small_plus_patch16_dinov3_qkvb"]
)
def test_official_dinov3(name: str, tmp_path: Path) -> None:
    source = load_backbone(name, pretrained=False, seed=5)
    state = official_dinov3(source)
    torch.save(state, tmp_path / "w.pth")
    loaded = load_backbone(name, checkpoint=tmp_path / "w.pth")
    rope = loaded.adapter.model.rope
    assert torch.equal(rope.periods, state["rope_embed.periods"])
    source.adapter.model.rope.periods.copy_(state["rope_embed.periods"])
    same_features(source, loaded)
    assert loaded.weights == {"kind": "file"}
    save_file({key: value.contiguous() for key, value in state.items()}, tmp_path / "w.safetensors")
    same_features(source, load_backbone(name, checkpoint=tmp_path / "w.safetensors"))
    kept = loaded.to(torch.bfloat16).to(torch.float32)
    assert torch.equal(kept.adapter.model.rope.periods, state["rope_embed.periods"])


def test_biases_without_a_place_are_refused_and_zeros_are_not(tmp_path: Path) -> None:
    source = load_backbone("vit_small_patch16_dinov3_qkvb", pretrained=False, seed=5)
    state = official_dinov3(source)
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(BackboneError, match="query and value biases.*'_qkvb'"):
        load_backbone("vit_small_patch16_dinov3", checkpoint=tmp_path / "w.pth")
    silent = {
        key: torch.zeros_like(v) if key.endswith("qkv.bias") else v for key, v in state.items()
    }
    torch.save(silent, tmp_path / "z.pth")
    plain = load_backbone("vit_small_patch16_dinov3", checkpoint=tmp_path / "z.pth")
    same_features(
        plain, load_backbone("vit_small_patch16_dinov3_qkvb", checkpoint=tmp_path / "z.pth")
    )


@pytest.mark.parametrize(
    ("name", "chunks"),
    [("vit_small_patch14_dinov2", True), ("vit_small_patch14_reg4_dinov2", False)],
)
def test_official_dinov2(name: str, chunks: bool, tmp_path: Path) -> None:
    source = load_backbone(name, pretrained=False, seed=6)
    torch.save({"model": official_dinov2(source, chunks)}, tmp_path / "w.pth")
    same_features(
        source,
        load_backbone(name, checkpoint=tmp_path / "w.pth"),
        atol=1e-5 if "reg4" in name else 0.0,
    )


IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))

# written once; other numbers on another machine or version would break every seeded checkpoint
FIRST = [0.7316123247146606, 0.5151512026786804, 0.8366293907165527]


TINY_SHA256 = "edd4e6176f4b2c50f202b7dc0845d1a9fef27ba257d54990239abaf6bc1e6984"


def test_it_is_one_for_all_forms_of_the_same_weights() -> None:
    backbone = load_backbone("dinoneck_tiny")
    record = backbone.record()
    own = backbone(IMAGES).source
    assert own == weight_hashes.fingerprint_from_record(record) == record["weights_sha256"][:16]
    assert "fingerprint" not in record  # in float32 it follows from the hashes
    half = load_backbone("dinoneck_tiny", dtype=torch.bfloat16)
    assert (
        half.record()["fingerprint"] == weight_hashes.fingerprint_from_record(half.record()) == own
    )
    copies = [half, copy.deepcopy(half), pickle.loads(pickle.dumps(half))]
    for same in (*copies, backbone.with_layers([2]), backbone.half()):
        assert same(IMAGES).source == own
    assert load_backbone("dinoneck_tiny", seed=1)(IMAGES).source not in (own, None)
    old = {key: value for key, value in half.record().items() if key != "fingerprint"}
    assert weight_hashes.fingerprint_from_record(old) is None


def test_it_is_taken_again_when_weights_change() -> None:
    backbone = load_backbone("dinoneck_tiny")
    seen = {backbone(IMAGES).source}
    with torch.no_grad():
        next(backbone.parameters()).mul_(1.01)
    seen.add(backbone(IMAGES).source)
    assert backbone.record()["weights_sha256"][:16] in seen
    assert backbone.unfreeze_last(1)(IMAGES).source is None
    with torch.no_grad():
        next(p for p in backbone.parameters() if p.requires_grad).mul_(2)
    seen.add(backbone.freeze()(IMAGES).source)
    assert backbone.add_lora(2)(IMAGES).source is None
    seen.add(backbone.freeze()(IMAGES).source)
    with backbone.lora_disabled():
        assert backbone(IMAGES).source == backbone.record()["weights_sha256"][:16]
    assert len(seen) == 4
    assert None not in seen


def test_tokens_keep_it_through_every_change() -> None:
    tokens = load_backbone("dinoneck_tiny", layers=[2, 5])(IMAGES)
    changed = tokens[0], tokens.last, tokens.select(2), tokens.to(torch.float16), tokens.detach()
    for same in (*changed, collate([tokens])):
        assert same.source == tokens.source
    assert Tokens.cat([tokens, tokens]).source == tokens.source
    plain = Tokens.from_patches(torch.zeros(1, 4, 8), grid=(2, 2), patch_size=16)
    named = Tokens.from_patches(torch.zeros(1, 4, 8), grid=(2, 2), patch_size=16, source="a")
    assert (plain.source, Tokens.cat([plain, named]).source) == (None, None)
    other = Tokens.from_patches(torch.zeros(1, 4, 8), grid=(2, 2), patch_size=16, source="b")
    for join in (Tokens.cat, collate):
        with pytest.raises(ShapeError, match="different backbones, a, b; extract"):
            join([named, plain, other])


def test_the_stream_is_fixed_for_ever() -> None:
    assert weight_hashes.uniform("norm.weight", 3, seed=0).tolist() == FIRST
    assert load_backbone("dinoneck_tiny").record()["weights_sha256"] == TINY_SHA256


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
        load_backbone("vit_small_patch14_dinov2", pretrained=False, pos_embed=p)
        for p in ("native", "official")
    )
    assert differs(native.probe(), official.probe()) is not None
    assert differs(own, own[:-1]) == float("inf")


def test_it_passes_the_same_weights_in_another_library_and_dtype() -> None:
    head = PatchMeanHead(384, [Task("x")])
    trained = load_backbone(NAME, pretrained=False)
    checkpoint = HeadCheckpoint.from_module(head, backbone=trained)
    same = load_backbone(NAME, pretrained=False, source="transformers")
    checkpoint.check_backbone(same, probe=True)
    checkpoint.check_backbone(
        load_backbone(NAME, pretrained=False, dtype=torch.bfloat16), probe=True
    )
    checkpoint.check_backbone(same)  # seeded weights are known by their seed in any library
    for other in (
        load_backbone(NAME, pretrained=False, seed=1, source="transformers"),
        load_backbone(NAME, pretrained=False, seed=1, dtype=torch.bfloat16),
    ):
        with pytest.raises(CheckpointError, match="gives other outputs"):
            checkpoint.check_backbone(other, probe=True)
