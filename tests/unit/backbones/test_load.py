"""Loading by name: every DINO ViT of timm, nothing else, and errors that help."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub
import pytest
import timm
import torch

from dinoneck import load_backbone
from dinoneck.backbones import timm as adapter
from dinoneck.backbones.known import family_of

ALL = adapter.names()
# one real forward for every family: with and without registers, MLP and gated, with and without biases
FAMILIES = [
    "vit_small_patch14_dinov2",
    "vit_small_patch14_reg4_dinov2",
    "vit_small_patch16_dinov3",
    "vit_small_plus_patch16_dinov3",
    "vit_small_patch16_dinov3_qkvb",
]


def test_the_list_is_timms_list() -> None:
    vits = [name for name in timm.list_models("*dinov2*") + timm.list_models("*dinov3*") if name.startswith("vit_")]
    assert sorted(ALL) == sorted(set(vits))
    assert len(ALL) >= 19


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name not in FAMILIES)) for name in ALL]
)
def test_every_name_gives_tokens_of_the_right_shape(name: str) -> None:
    with torch.device("meta"):
        backbone = load_backbone(name, pretrained=False, layers=[-1, 0, 0])
        patch, width = backbone.adapter.patch_size[0], backbone.embed_dim
        tokens = backbone(torch.zeros(2, 3, 3 * patch, 5 * patch))
    assert patch == (14 if "patch14" in name else 16)
    registers = 4 if ("reg4" in name or "dinov3" in name) else 0
    assert tokens.num_registers == registers
    assert tokens.layers == (backbone.depth - 1, 0, 0)
    assert all(x.shape == (2, 1 + registers + 15, width) for x in tokens.sequence)
    record = backbone.record()
    assert record["family"] == family_of(name)
    assert record["weights_sha256"] is None


def test_cached_weights_are_used_without_asking_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors.torch import save_file

    source = load_backbone("vit_small_patch16_dinov3_qkvb", pretrained=False, seed=9)
    model = tmp_path / "models--timm--vit_small_patch16_dinov3_qkvb.lvd1689m"
    snapshot = model / "snapshots" / ("a" * 40)
    for folder in (snapshot, model / "refs"):
        folder.mkdir(parents=True)
    (model / "refs" / "main").write_text("a" * 40)
    save_file(source.adapter.model.state_dict(), snapshot / "model.safetensors")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    loaded = load_backbone("vit_small_patch16_dinov3_qkvb")
    assert loaded.record()["weights_sha256"] == source.record()["weights_sha256"]
    assert loaded.weights == {
        "kind": "hub", "repo": "timm/vit_small_patch16_dinov3_qkvb.lvd1689m", "revision": "a" * 40
    }  # fmt: skip
    assert loaded.record()["license"] == "dinov3-license"
    assert loaded.name == "vit_small_patch16_dinov3_qkvb.lvd1689m"
