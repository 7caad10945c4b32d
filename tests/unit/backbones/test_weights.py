"""Official weight files: every key lands, and the features are the model's own, to the last bit."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dinoneck import Backbone, BackboneError, load_backbone

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
            state[f"{stem}.qkv.bias"] = torch.cat((own[f"{stem}.q_bias"], torch.zeros(width), own[f"{stem}.v_bias"]))
            state[f"{stem}.qkv.bias_mask"] = torch.cat((torch.ones(width), torch.zeros(width), torch.ones(width)))
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


@pytest.mark.parametrize("name", ["vit_small_patch16_dinov3_qkvb", "vit_small_plus_patch16_dinov3_qkvb"])
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
    silent = {key: torch.zeros_like(v) if key.endswith("qkv.bias") else v for key, v in state.items()}
    torch.save(silent, tmp_path / "z.pth")
    plain = load_backbone("vit_small_patch16_dinov3", checkpoint=tmp_path / "z.pth")
    same_features(plain, load_backbone("vit_small_patch16_dinov3_qkvb", checkpoint=tmp_path / "z.pth"))


@pytest.mark.parametrize(
    ("name", "chunks"), [("vit_small_patch14_dinov2", True), ("vit_small_patch14_reg4_dinov2", False)]
)
def test_official_dinov2(name: str, chunks: bool, tmp_path: Path) -> None:
    source = load_backbone(name, pretrained=False, seed=6)
    torch.save({"model": official_dinov2(source, chunks)}, tmp_path / "w.pth")
    same_features(source, load_backbone(name, checkpoint=tmp_path / "w.pth"), atol=1e-5 if "reg4" in name else 0.0)
