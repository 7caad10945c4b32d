"""A head's file holds its backbone's weights, names where they are, or is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tests import kit
from tests.unit.backbones.official_objects import Dinov2Like
from tests.unit.tuned_backbones import CHANGES, merge_lora, train_blocks, train_lora
from timm.models import VisionTransformer
from torch import nn

from dinoneck import (
    BackboneError,
    CheckpointError,
    HeadCheckpoint,
    PatchMeanHead,
    Predictor,
    Task,
    load_backbone,
    save_head,
    wrap_backbone,
)

IMAGE = torch.rand(3, 32, 48, generator=torch.Generator().manual_seed(0))
IN_THE_FILE = {"LoRA"}  # without weights of the base


def prediction(head: Any, backbone: Any = None) -> float:
    [row] = Predictor(head, backbone)(IMAGE)
    return float(row["y"])


def head() -> PatchMeanHead:
    return kit.randomised(PatchMeanHead(64, [Task("y")]))


@pytest.mark.parametrize("name", CHANGES)
def test_weights_that_are_in_no_file_are_refused(name: str, tmp_path: Path) -> None:
    backbone = load_backbone("dinoneck_tiny")
    CHANGES[name](backbone)
    backbone.freeze()
    if name in IN_THE_FILE:
        save_head(tmp_path / "h.safetensors", head(), backbone=backbone)
        return
    with pytest.raises(CheckpointError, match=r"backbone_weights=backbone\.state_dict\(\)"):
        save_head(tmp_path / "h.safetensors", head(), backbone=backbone)
    assert not (tmp_path / "h.safetensors").exists()


@pytest.mark.parametrize("wrapper", ["none", "compiled", "parallel", "the model's own names"])
@pytest.mark.parametrize("name", CHANGES)
def test_weights_that_are_passed_come_back(name: str, wrapper: str, tmp_path: Path) -> None:
    backbone = load_backbone("dinoneck_tiny")
    CHANGES[name](backbone)
    given: Any = backbone
    if wrapper == "compiled":
        given = torch.compile(backbone, backend="eager")
    elif wrapper == "parallel":
        given = nn.DataParallel(backbone)
    state = given.state_dict()
    if wrapper == "the model's own names":
        state = backbone.adapter.model.state_dict()
    trained = head()
    save_head(
        tmp_path / "h.safetensors",
        trained,
        backbone=given,
        backbone_weights=state,
        preprocess=backbone.preprocess,
    )
    assert prediction(tmp_path / "h.safetensors") == prediction(trained, backbone)
    checkpoint = HeadCheckpoint.load(tmp_path / "h.safetensors")
    tokens = checkpoint.load_backbone()(IMAGE[None])
    assert torch.equal(checkpoint.build()(tokens)["y"], trained(backbone(IMAGE[None]))["y"])


def test_a_record_of_trained_weights_is_refused(tmp_path: Path) -> None:
    backbone = load_backbone("dinoneck_tiny")
    train_blocks(backbone)
    with pytest.raises(CheckpointError, match="backbone_weights=the state dict"):
        save_head(tmp_path / "h.safetensors", head(), backbone=backbone.record())
    weights = backbone.state_dict()
    save_head(
        tmp_path / "h.safetensors", head(), backbone=backbone.record(), backbone_weights=weights
    )
    assert HeadCheckpoint.load(tmp_path / "h.safetensors").backbone_weights is not None


def test_a_head_without_a_backbone_warns_and_is_saved(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="without backbone="):
        save_head(tmp_path / "h.safetensors", head())
    assert (tmp_path / "h.safetensors").exists()


@pytest.mark.slow
def test_save_pretrained_follows_the_same_rule(tmp_path: Path) -> None:
    backbone = load_backbone("dinoneck_tiny")
    train_blocks(backbone)
    with pytest.raises(CheckpointError, match="backbone_weights="):
        head().save_pretrained(tmp_path, backbone=backbone)
    head().save_pretrained(tmp_path, backbone=backbone, backbone_weights=backbone.state_dict())
    assert prediction(tmp_path) == prediction(tmp_path, backbone)


def test_weights_that_were_saved_on_their_own_are_the_way_out(tmp_path: Path) -> None:
    backbone = load_backbone("dinoneck_tiny")
    merge_lora(backbone)
    backbone.save_weights(tmp_path / "vit.safetensors")
    loaded = load_backbone("dinoneck_tiny", checkpoint=tmp_path / "vit.safetensors")
    save_head(tmp_path / "h.safetensors", head(), backbone=loaded)
    again = load_backbone("dinoneck_tiny", checkpoint=tmp_path / "vit.safetensors")
    assert prediction(tmp_path / "h.safetensors", again) == prediction(head(), backbone)


def test_a_model_of_the_users_is_taken_as_it_was_wrapped(tmp_path: Path) -> None:
    backbone = wrap_backbone(load_backbone("dinoneck_tiny", seed=3).adapter.model)
    save_head(tmp_path / "h.safetensors", head(), backbone=backbone)
    train_blocks(backbone)
    assert backbone.record()["weights"] == {"kind": "modified", "base": {"kind": "object"}}
    with pytest.raises(CheckpointError, match="backbone_weights="):
        save_head(tmp_path / "h.safetensors", head(), backbone=backbone)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_in_half_precision_is_not_taken_for_a_changed_one(dtype: torch.dtype) -> None:
    model = load_backbone("dinoneck_tiny").adapter.model.to(dtype)
    backbone = wrap_backbone(model)
    assert backbone.record()["weights"]["kind"] == "object"
    assert backbone.to(torch.float32).record()["weights"]["kind"] == "object"
    train_blocks(backbone)
    assert backbone.record()["weights"]["kind"] == "modified"


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("own", [torch.bfloat16, torch.float64])
def test_a_cast_of_a_wrapped_model_is_no_training(
    own: torch.dtype, dtype: torch.dtype, tmp_path: Path
) -> None:
    model = load_backbone("dinoneck_tiny").adapter.model.to(own)
    backbone = wrap_backbone(model, dtype=dtype)
    assert backbone.record()["weights"] == {"kind": "object"}
    save_head(tmp_path / "h.safetensors", head().to(dtype), backbone=backbone)
    train_blocks(backbone)
    assert backbone.record()["weights"]["kind"] == "modified"


def test_weights_with_a_classifier_are_refused_until_it_is_taken_off(tmp_path: Path) -> None:
    model: Any = load_backbone("dinoneck_tiny").adapter.model
    model.reset_classifier(5)
    backbone = wrap_backbone(model)
    backbone.name = "dinoneck_tiny"
    train_blocks(backbone)
    weights = backbone.state_dict()
    with pytest.raises(CheckpointError, match=r"head\.weight.*reset_classifier\(0\)"):
        save_head(tmp_path / "h.safetensors", head(), backbone=backbone, backbone_weights=weights)
    model.reset_classifier(0)
    weights = backbone.state_dict()
    save_head(tmp_path / "h.safetensors", head(), backbone=backbone, backbone_weights=weights)
    assert prediction(tmp_path / "h.safetensors") == prediction(head(), backbone)


def test_an_official_object_is_named_where_it_would_be_built(tmp_path: Path) -> None:
    backbone = wrap_backbone(Dinov2Like())
    train_blocks(backbone)
    weights = backbone.state_dict()
    wide = PatchMeanHead(backbone.embed_dim, [Task("mass", unit="g")])
    save_head(tmp_path / "h.safetensors", wide, backbone=backbone, backbone_weights=weights)
    with pytest.raises(CheckpointError, match=r"wrap_backbone\(model\)"):
        HeadCheckpoint.load(tmp_path / "h.safetensors").load_backbone()
    again = Dinov2Like()
    again.load_state_dict(HeadCheckpoint.load(tmp_path / "h.safetensors").backbone_weights)
    HeadCheckpoint.load(tmp_path / "h.safetensors").check_backbone(wrap_backbone(again))


def test_a_model_without_a_published_name_says_how_its_weights_are_used(tmp_path: Path) -> None:
    def model() -> Any:
        return VisionTransformer(
            img_size=32, patch_size=16, embed_dim=64, depth=2, num_heads=2, num_classes=0
        )

    backbone = wrap_backbone(model())
    train_blocks(backbone)
    weights = backbone.state_dict()
    file = tmp_path / "h.safetensors"
    save_head(file, head(), backbone=backbone, backbone_weights=weights)
    checkpoint = HeadCheckpoint.load(file)
    with pytest.raises(CheckpointError, match=r"'VisionTransformer'.*load_state_dict"):
        checkpoint.load_backbone()
    again = model()
    again.load_state_dict(checkpoint.backbone_weights)
    image = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(2))
    expected = Predictor(head(), backbone)(image)
    assert Predictor(file, wrap_backbone(again))(image) == expected


def test_seeded_weights_have_no_licence_when_lora_is_merged_into_them() -> None:
    backbone = load_backbone("dinov3_vits16", pretrained=False)
    assert backbone.record()["license"] is None
    train_lora(backbone)
    backbone.merge_lora()
    assert backbone.record()["license"] is None


def test_the_licence_is_that_of_the_tag_where_the_model_states_none() -> None:
    backbone = wrap_backbone(load_backbone("dinov3_vits16", pretrained=False).adapter.model)
    backbone.name = "vit_small_patch16_dinov3_qkvb.eupe_lvd1689m"
    backbone.adapter.license = None
    assert backbone.record()["license"] == "fair-noncommercial-research-license"


def test_the_state_of_a_parallel_model_is_taken(tmp_path: Path) -> None:
    backbone = load_backbone("dinoneck_tiny")
    train_blocks(backbone)
    weights = torch.nn.DataParallel(backbone.adapter.model).state_dict()
    save_head(tmp_path / "h.safetensors", head(), backbone=backbone, backbone_weights=weights)
    assert prediction(tmp_path / "h.safetensors") == prediction(head(), backbone)


def test_the_same_weights_in_half_precision_have_the_same_fingerprint() -> None:
    backbone = load_backbone("dinoneck_tiny")
    fingerprint = backbone.fingerprint
    assert backbone.to(torch.bfloat16).fingerprint == fingerprint
    assert backbone.record()["weights"]["kind"] == "seeded"


def test_a_merge_of_nothing_leaves_the_weights_as_they_were(tmp_path: Path) -> None:
    backbone = load_backbone("dinoneck_tiny").add_lora(2).merge_lora()
    save_head(tmp_path / "h.safetensors", head(), backbone=backbone)
    assert prediction(tmp_path / "h.safetensors") == prediction(
        head(), load_backbone("dinoneck_tiny")
    )


def test_a_block_that_is_compiled_is_not_taken_for_a_changed_one(tmp_path: Path) -> None:
    backbone = load_backbone("dinoneck_tiny")
    model: Any = backbone.adapter.model
    model.blocks[1] = torch.compile(model.blocks[1], backend="eager")
    save_head(tmp_path / "h.safetensors", head(), backbone=backbone)
    record = HeadCheckpoint.load(tmp_path / "h.safetensors").meta["backbone"]
    assert record["weights_sha256"] == load_backbone("dinoneck_tiny").record()["weights_sha256"]


def test_a_head_with_lora_in_its_file_refuses_the_tokens_of_the_base(tmp_path: Path) -> None:
    backbone = load_backbone("dinoneck_tiny")
    train_lora(backbone)
    save_head(tmp_path / "h.safetensors", head(), backbone=backbone)
    loaded = HeadCheckpoint.load(tmp_path / "h.safetensors").build()
    with pytest.raises(BackboneError):
        loaded(load_backbone("dinoneck_tiny")(IMAGE[None]))


def test_weights_of_a_folder_of_transformers_are_used_as_the_message_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message is the same where the folder is at hand: nothing that a file names is opened."""
    torch.manual_seed(0)
    config = transformers.Dinov2Config(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=64, patch_size=16
    )
    transformers.Dinov2Model(config).save_pretrained(tmp_path / "own_vit")
    backbone = load_backbone(str(tmp_path / "own_vit"), source="transformers")
    with torch.no_grad():
        for parameter in backbone.adapter.blocks[-1].parameters():
            parameter.add_(0.01)
    module = PatchMeanHead(64, [Task("y")], hidden_dim=8)
    file = tmp_path / "h.safetensors"
    save_head(
        file,
        module,
        backbone=backbone,
        backbone_weights=backbone.state_dict(),
        preprocess=backbone.preprocess,
    )
    image = torch.rand(3, 64, 96, generator=torch.Generator().manual_seed(0))
    expected = Predictor(module, backbone)([image])
    for folder in (tmp_path, tmp_path / "own_vit"):
        monkeypatch.chdir(folder)
        with pytest.raises(CheckpointError, match=r"AutoModel\.from_pretrained\(folder\)"):
            Predictor(file)

    model = transformers.AutoModel.from_pretrained(tmp_path / "own_vit")
    model.load_state_dict(HeadCheckpoint.load(file).backbone_weights)

    assert Predictor(file, wrap_backbone(model))([image]) == expected


def test_a_backbone_that_fails_is_refused_by_name(tmp_path: Path) -> None:
    backbone = load_backbone("dinoneck_tiny")
    backbone.adapter.model.blocks[2] = nn.Identity()

    with pytest.raises(CheckpointError, match="'dinoneck_tiny' fails with an image") as refused:
        save_head(tmp_path / "h", head(), backbone=backbone, backbone_weights=backbone.state_dict())

    assert "wrap_backbone(model)" in str(refused.value)
