"""Rotary frequencies travel with the weights that they belong to: they are in no state dict and in no hash."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from tests import kit
from tests.unit.detection.test_tuned_detector import are_equal, boxes_of, detector_on
from tests.unit.tuned_backbones import train_blocks

from dinoneck import (
    Backbone,
    BackboneError,
    CheckpointError,
    HeadCheckpoint,
    Predictor,
    load_backbone,
    save_head,
    wrap_backbone,
)
from dinoneck.backbones import rotary
from dinoneck.detection import Detector

IMAGE = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))


def from_a_file_of_meta(folder: Path) -> Backbone:
    """The built-in ViT from a file with periods that were rounded, as in Meta's files."""
    model: Any = load_backbone("dinoneck_tiny").adapter.model
    state = model.state_dict()
    state["rope_embed.periods"] = model.rope.periods.bfloat16().float()
    torch.save(state, folder / "meta.pth")
    return load_backbone("dinoneck_tiny", checkpoint=folder / "meta.pth")


def tokens_of(backbone: Backbone) -> torch.Tensor:
    return backbone(IMAGE).sequence[0]


def test_rounded_periods_give_other_tokens_under_the_same_fingerprint(tmp_path: Path) -> None:
    rounded = from_a_file_of_meta(tmp_path)
    plain = load_backbone("dinoneck_tiny")
    assert not torch.equal(tokens_of(rounded), tokens_of(plain))
    assert rounded.fingerprint == plain.fingerprint


def test_a_file_of_weights_holds_them(tmp_path: Path) -> None:
    backbone = from_a_file_of_meta(tmp_path)
    train_blocks(backbone)
    backbone.save_weights(tmp_path / "tuned.safetensors")
    again = load_backbone("dinoneck_tiny", checkpoint=tmp_path / "tuned.safetensors")
    assert torch.equal(tokens_of(again), tokens_of(backbone))


def test_a_head_file_with_the_backbones_weights_holds_them(tmp_path: Path) -> None:
    backbone = from_a_file_of_meta(tmp_path)
    train_blocks(backbone)
    head = kit.head()
    weights = backbone.state_dict()
    save_head(tmp_path / "h.safetensors", head, backbone=backbone, backbone_weights=weights)
    again = HeadCheckpoint.load(tmp_path / "h.safetensors").load_backbone()
    assert torch.equal(tokens_of(again), tokens_of(backbone))
    assert again.record()["weights_sha256"] == backbone.record()["weights_sha256"]


def test_published_frequencies_are_not_written(tmp_path: Path) -> None:
    backbone = load_backbone("dinoneck_tiny")
    train_blocks(backbone)
    weights = backbone.state_dict()
    save_head(tmp_path / "h.safetensors", kit.head(), backbone=backbone, backbone_weights=weights)
    checkpoint = HeadCheckpoint.load(tmp_path / "h.safetensors")
    assert checkpoint.backbone_weights is not None
    assert checkpoint.backbone_weights.keys() == backbone.adapter.model.state_dict().keys()


@pytest.mark.parametrize("name", ["vit_small_patch16_dinov3", "vit_7b_patch16_dinov3"])
def test_published_frequencies_are_those_of_timm_to_the_last_bit(name: str) -> None:
    setting: dict[str, Any] = {"vit_small_patch16_dinov3": {"embed_dim": 64, "num_heads": 1}}.get(
        name, {"embed_dim": 256, "num_heads": 2}
    )
    model = timm.create_model(name, pretrained=False, num_classes=0, depth=1, **setting)
    assert rotary.buffers_of(model).keys() == {"rope.periods"}
    assert rotary.changed_buffers(model) == {}


@pytest.mark.slow
def test_the_model_of_transformers_has_none_that_changed() -> None:
    backbone = load_backbone("dinov3_vits16", source="transformers", pretrained=False)
    model: Any = backbone.adapter.model
    assert rotary.buffers_of(model).keys() == {"rope_embeddings.inv_freq"}
    assert rotary.changed_buffers(model) == {}


def test_another_temperature_is_another_model(tmp_path: Path) -> None:
    model: Any = load_backbone("dinoneck_tiny").adapter.model
    model.rope.temperature = 30.0
    model.rope.reset_parameters()
    backbone = wrap_backbone(model)
    backbone.save_weights(tmp_path / "w.safetensors")
    again = load_backbone("dinoneck_tiny", checkpoint=tmp_path / "w.safetensors")
    assert torch.equal(tokens_of(again), tokens_of(backbone))


def test_changed_by_hand_they_are_refused_without_the_weights(tmp_path: Path) -> None:
    backbone = load_backbone("dinoneck_tiny")
    backbone.adapter.model.rope.periods.mul_(1.5)
    with pytest.raises(CheckpointError, match=r"rope\.periods.*backbone_weights="):
        save_head(tmp_path / "h.safetensors", kit.head(), backbone=backbone)
    weights = backbone.state_dict()
    save_head(tmp_path / "h.safetensors", kit.head(), backbone=backbone, backbone_weights=weights)
    again = HeadCheckpoint.load(tmp_path / "h.safetensors").load_backbone()
    assert torch.equal(tokens_of(again), tokens_of(backbone))


def scaled(factor: float) -> Backbone:
    """The built-in ViT with other periods."""
    backbone = load_backbone("dinoneck_tiny")
    backbone.adapter.model.rope.periods.mul_(factor)
    return backbone


def test_a_backbone_with_changed_frequencies_does_not_fit_the_head_of_the_published_one(
    tmp_path: Path,
) -> None:
    file = kit.saved_head(tmp_path / "h.safetensors", backbone=kit.backbone())
    changed = scaled(1.5)

    with pytest.raises(CheckpointError, match=r"other outputs.*rope\.periods"):
        Predictor(file, changed)
    with pytest.raises(CheckpointError, match=r"other outputs.*rope\.periods"):
        HeadCheckpoint.load(file).check_backbone(changed)


def test_a_backbone_with_the_same_changed_frequencies_fits(tmp_path: Path) -> None:
    backbone = scaled(1.5)
    file = kit.saved_head(
        tmp_path / "h.safetensors", backbone=backbone, backbone_weights=backbone.state_dict()
    )
    [image] = kit.write_images(tmp_path, ["a.png"])

    given = Predictor(file, scaled(1.5))([image])
    own = Predictor(file)([image])

    assert given == own


def test_frequencies_that_metas_files_round_fit_the_head_of_the_published_ones(
    tmp_path: Path,
) -> None:
    rounded = from_a_file_of_meta(tmp_path)

    assert rotary.changed_buffers(rounded.adapter.model)
    assert not rotary.unusual_buffers(rounded.adapter.model)
    assert rotary.unusual_buffers(scaled(1.01).adapter.model).keys() == {"rope.periods"}


def test_a_predictor_notices_frequencies_that_change_after_it_was_made(tmp_path: Path) -> None:
    backbone = load_backbone("dinoneck_tiny")
    file = kit.saved_head(tmp_path / "h.safetensors", backbone=backbone)
    [image] = kit.write_images(tmp_path, ["a.png"])
    predictor = Predictor(file, backbone)
    predictor([image])

    backbone.adapter.model.rope.periods.mul_(1.5)

    with pytest.raises(BackboneError, match="changed after this Predictor was made"):
        predictor([image])


def test_a_detector_notices_frequencies_that_change_after_it_predicted() -> None:
    backbone = load_backbone("dinoneck_tiny")
    detector = detector_on(backbone)
    boxes_of(detector)

    backbone.adapter.model.rope.periods.mul_(1.5)

    with pytest.raises(BackboneError, match="changed after this detector"):
        boxes_of(detector)


def test_changed_by_hand_they_are_in_a_detectors_file(tmp_path: Path) -> None:
    backbone = load_backbone("dinoneck_tiny")
    backbone.adapter.model.rope.periods.mul_(1.5)
    detector = detector_on(backbone)
    detector.save(tmp_path / "d.safetensors")
    assert are_equal(boxes_of(Detector.load(tmp_path / "d.safetensors")), boxes_of(detector))


@pytest.mark.parametrize(
    ("value", "reason"),
    [(torch.ones(3), r"\(3,\).*\(4,\)"), (torch.zeros(4), "not positive")],
    ids=["another shape", "zeros"],
)
def test_others_in_a_file_are_refused(value: torch.Tensor, reason: str, tmp_path: Path) -> None:
    state = load_backbone("dinoneck_tiny").adapter.model.state_dict()
    torch.save({**state, "rope.periods": value}, tmp_path / "w.pth")
    with pytest.raises(BackboneError, match=reason):
        load_backbone("dinoneck_tiny", checkpoint=tmp_path / "w.pth")
