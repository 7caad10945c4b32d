"""``save_head`` names a backbone whose tokens are not those that ``fit`` trained the head on."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from tests import kit

from dinoneck import Backbone, PatchMeanHead, load_backbone, save_head
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


def test_another_backbone_than_that_of_the_tokens_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made_tokens = seeded(1)
    other = seeded(2)
    head = fitted(made_tokens)
    with caplog.at_level(logging.WARNING, logger="dinoneck"):
        save_head(tmp_path / "h.safetensors", head, backbone=other)
    (warning,) = warnings_of(caplog)
    assert made_tokens.fingerprint in warning
    assert other.fingerprint in warning


def test_the_backbone_of_the_tokens_gives_no_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    head = fitted(seeded(1))
    with caplog.at_level(logging.WARNING, logger="dinoneck"):
        save_head(tmp_path / "h.safetensors", head, backbone=seeded(1))
    assert warnings_of(caplog) == []


def test_a_backbone_that_was_trained_after_the_head_gives_no_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    backbone = seeded(1)
    head = fitted(backbone)
    with torch.no_grad():
        next(backbone.parameters()).add_(0.01)
    with caplog.at_level(logging.WARNING, logger="dinoneck"):
        save_head(
            tmp_path / "h.safetensors",
            head,
            backbone=backbone,
            backbone_weights=backbone.state_dict(),
        )
    assert warnings_of(caplog) == []


def test_a_later_fit_with_live_tokens_forgets_the_earlier_backbone() -> None:
    backbone = seeded(1)
    head = fitted(seeded(2))
    assert head.fitted_on == seeded(2).fingerprint
    images = torch.rand(4, 3, 32, 48)
    live = LiveTokens(backbone, images, IDS)
    targets = {head.tasks[0].name: torch.rand(4)}
    fit(head, live, targets, target_ids=IDS, recipe=Recipe(epochs=1, batch_size=2))
    assert head.fitted_on is None
