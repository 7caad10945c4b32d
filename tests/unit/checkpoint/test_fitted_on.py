"""``save_head`` names a backbone whose tokens are not those that ``fit`` trained the head on."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from tests import kit
from tests.unit.tuned_backbones import train_blocks, train_lora

from dinoneck import (
    Backbone,
    BackboneError,
    CheckpointError,
    PatchMeanHead,
    Predictor,
    load_backbone,
    load_head,
    save_head,
)
from dinoneck.training import LiveTokens, MemoryTokens, Recipe, fit

IDS = ["a", "b", "c", "d"]
OTHER = "names weights that it was not trained on"


def seeded(seed: int) -> Backbone:
    return load_backbone("dinoneck_tiny", pretrained=False, seed=seed)


def fitted(backbone: Backbone) -> PatchMeanHead:
    """A head that one epoch trained on the backbone's tokens of four images."""
    torch.manual_seed(0)
    head = kit.head()
    tokens = MemoryTokens(IDS, backbone(torch.rand(4, 3, 32, 48)))
    targets = {head.tasks[0].name: torch.rand(4)}
    fit(head, tokens, targets, target_ids=IDS, recipe=Recipe(epochs=1, batch_size=2))
    return head


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if OTHER in record.getMessage()]


def test_another_backbone_than_that_of_the_tokens_is_refused(tmp_path: Path) -> None:
    made_tokens = seeded(1)
    other = seeded(2)
    head = fitted(made_tokens)
    with pytest.raises(CheckpointError, match="pass the backbone that made the tokens") as refused:
        save_head(tmp_path / "h.safetensors", head, backbone=other)
    assert str(made_tokens.fingerprint) in str(refused.value)
    assert str(other.fingerprint) in str(refused.value)
    assert not (tmp_path / "h.safetensors").exists()


def test_another_backbone_is_named_if_a_loop_trained_the_head_since(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made_tokens = seeded(1)
    other = seeded(2)
    head = fitted(made_tokens)
    with torch.no_grad():
        next(head.parameters()).add_(0.01)
    with caplog.at_level(logging.WARNING, logger="dinoneck"):
        save_head(tmp_path / "h.safetensors", head, backbone=other)
    (warning,) = warnings_of(caplog)
    assert str(made_tokens.fingerprint) in warning
    assert str(other.fingerprint) in warning


def test_the_backbone_of_the_tokens_gives_no_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    head = fitted(seeded(1))
    with caplog.at_level(logging.WARNING, logger="dinoneck"):
        save_head(tmp_path / "h.safetensors", head, backbone=seeded(1))
    assert warnings_of(caplog) == []


def saved_after_training_the_backbone(
    path: Path, head: PatchMeanHead, backbone: Backbone, caplog: pytest.LogCaptureFixture
) -> list[str]:
    """Change the backbone, save the head with its weights, and return the warnings of other weights."""
    with torch.no_grad():
        next(backbone.parameters()).add_(0.01)
    with caplog.at_level(logging.WARNING, logger="dinoneck"):
        save_head(path, head, backbone=backbone, backbone_weights=backbone.state_dict())
    return warnings_of(caplog)


def test_a_backbone_that_was_trained_after_the_head_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    backbone = seeded(1)
    head = fitted(backbone)
    made_tokens = str(backbone.fingerprint)
    (warning,) = saved_after_training_the_backbone(tmp_path / "h", head, backbone, caplog)
    assert made_tokens in warning
    assert str(backbone.fingerprint) in warning


def test_a_backbone_and_a_head_that_were_trained_after_fit_give_no_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    backbone = seeded(1)
    head = fitted(backbone)
    with torch.no_grad():
        next(head.parameters()).add_(0.01)
    assert saved_after_training_the_backbone(tmp_path / "h", head, backbone, caplog) == []


def test_a_predictor_names_a_backbone_that_a_second_head_trained(
    caplog: pytest.LogCaptureFixture,
) -> None:
    backbone = seeded(1).unfreeze_last(1)
    targets = torch.rand(4)
    first, second = kit.head(seed=1), kit.head(seed=2)
    for head in (first, second):
        live = LiveTokens(backbone, torch.rand(4, 3, 32, 48), IDS)
        recipe = Recipe(epochs=1, batch_size=2)
        fit(head, live, {head.tasks[0].name: targets}, target_ids=IDS, recipe=recipe)

    with caplog.at_level(logging.WARNING, logger="dinoneck"):
        Predictor(second, backbone)
    assert warnings_of(caplog) == []
    with caplog.at_level(logging.WARNING, logger="dinoneck"):
        Predictor(first, backbone)
    assert len(warnings_of(caplog)) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merged_lora_of_the_training_gives_no_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, dtype: torch.dtype
) -> None:
    backbone = seeded(1)
    train_lora(backbone)
    backbone.freeze()
    head = fitted(backbone)
    backbone.merge_lora().to(dtype)
    with caplog.at_level(logging.WARNING, logger="dinoneck"):
        save_head(tmp_path / "h", head, backbone=backbone, backbone_weights=backbone.state_dict())
        Predictor(head, backbone)
    assert warnings_of(caplog) == []


def test_tokens_in_memory_of_a_trainable_backbone_state_its_weights(tmp_path: Path) -> None:
    backbone = seeded(1).unfreeze_last(1)
    tokens = MemoryTokens.extract(backbone, torch.rand(4, 3, 32, 48), IDS)
    head = kit.head()
    fit(head, tokens, {head.tasks[0].name: torch.rand(4)}, target_ids=IDS, epochs=1)
    assert head.trained_on.source == seeded(1).fingerprint
    with pytest.raises(CheckpointError, match="pass the backbone that made the tokens"):
        save_head(tmp_path / "h", head, backbone=seeded(2))


def test_a_later_fit_with_live_tokens_replaces_the_earlier_backbone() -> None:
    backbone = seeded(1)
    head = fitted(seeded(2))
    assert head.trained_on.source == seeded(2).fingerprint
    images = torch.rand(4, 3, 32, 48)
    live = LiveTokens(backbone, images, IDS)
    targets = {head.tasks[0].name: torch.rand(4)}
    fit(head, live, targets, target_ids=IDS, recipe=Recipe(epochs=1, batch_size=2))
    assert head.trained_on.source == seeded(1).fingerprint


def test_lora_added_between_tokens_and_the_file_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    backbone = seeded(1)
    made_tokens = backbone.fingerprint
    head = fitted(backbone)
    train_lora(backbone)
    with caplog.at_level(logging.WARNING, logger="dinoneck"):
        save_head(tmp_path / "h.safetensors", head, backbone=backbone)
    (warning,) = warnings_of(caplog)
    assert made_tokens is not None
    assert made_tokens in warning


def test_lora_that_was_trained_with_the_head_in_a_loop_gives_no_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    backbone = seeded(1)
    head = fitted(backbone)
    train_lora(backbone)
    with torch.no_grad():
        next(head.parameters()).add_(0.01)
    with caplog.at_level(logging.WARNING, logger="dinoneck"):
        save_head(tmp_path / "h.safetensors", head, backbone=backbone)
    assert warnings_of(caplog) == []


def test_a_loaded_head_names_that_it_does_not_compare_a_trainable_backbone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    backbone = seeded(1)
    head = load_head(kit.saved_head(tmp_path / "h.safetensors", backbone=backbone))
    images = torch.rand(1, 3, 32, 48)
    train_blocks(backbone)

    with caplog.at_level(logging.WARNING, logger="dinoneck"), torch.no_grad():
        head(backbone(images))
        head(backbone(images))

    (warning,) = [record.getMessage() for record in caplog.records]
    assert "the weights are not compared: call backbone.freeze()" in warning
    backbone.freeze()
    with pytest.raises(BackboneError, match="was trained on other tokens"):
        head(backbone(images))


def test_training_a_loaded_head_with_its_backbone_gives_no_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    backbone = seeded(1)
    head = load_head(kit.saved_head(tmp_path / "h.safetensors", backbone=backbone))
    backbone.unfreeze_last(1)

    with caplog.at_level(logging.WARNING, logger="dinoneck"):
        head.train()(backbone(torch.rand(1, 3, 32, 48)))["mass"].sum().backward()

    assert caplog.records == []


def test_fit_of_a_loaded_head_takes_a_backbone_that_is_trained_and_frozen_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    backbone = seeded(1)
    head = load_head(kit.saved_head(tmp_path / "h.safetensors", backbone=backbone))
    images = torch.rand(4, 3, 32, 48)
    recipe = Recipe(epochs=2, batch_size=2, freeze=("0=last:1", "1=all"), lr=0.01, backbone_lr=0.01)

    with caplog.at_level(logging.WARNING, logger="dinoneck"):
        fit(
            head,
            LiveTokens(backbone, images, IDS),
            {"mass": torch.rand(4)},
            target_ids=IDS,
            val_ids=IDS[:2],
            ids=IDS[2:],
            recipe=recipe,
        )

    assert caplog.records == []
    assert backbone.frozen
    assert backbone.fingerprint != seeded(1).fingerprint
    assert head.trained_on.source == backbone.fingerprint
    head(backbone(images))
