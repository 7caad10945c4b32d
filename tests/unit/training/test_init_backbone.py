"""A training that starts from an earlier file takes the backbone of that file too, or says what it leaves out."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.unit.training.meadow import a_run
from torch import Tensor

from dinoneck import CheckpointError, HeadCheckpoint
from dinoneck.data import Pasture
from dinoneck.training import train

TABLE = Pasture(seed=0, size=(32, 32)).table(range(8))
# of weights that a training left in place: Adam's steps are as large as the rate
SLOW = {"lr": 1e-12, "weight_decay": 0.0}
FAST = {"lr": 1e-2, "backbone_lr": 1e-2}


def run_of(backbone: Mapping[str, Any], **changes: Any) -> Any:
    return a_run(
        None,
        ["GDM_g"],
        **{
            "folds": {"only": 0},
            "optim": SLOW,
            **changes,
            "backbone": {"name": "dinoneck_tiny", **backbone},
        },
    )


def trained(folder: Path, backbone: Mapping[str, Any], **changes: Any) -> HeadCheckpoint:
    train(run_of(backbone, **changes), folder, table=TABLE)
    return HeadCheckpoint.load(folder / "head.safetensors")


def assert_close(weights: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> None:
    assert weights.keys() == others.keys()
    for name, value in weights.items():
        torch.testing.assert_close(value, others[name], rtol=0, atol=1e-6)


@pytest.fixture(scope="module")
def with_lora(tmp_path_factory: pytest.TempPathFactory) -> HeadCheckpoint:
    pytest.importorskip("peft", reason="needs dinoneck[lora]")
    return trained(tmp_path_factory.mktemp("lora"), {"lora": 2}, optim=FAST)


@pytest.fixture(scope="module")
def with_tuned_block(tmp_path_factory: pytest.TempPathFactory) -> HeadCheckpoint:
    return trained(tmp_path_factory.mktemp("tuned"), {"unfreeze_last": 1}, optim=FAST)


@pytest.mark.slow
def test_a_training_with_lora_starts_from_the_lora_weights_of_the_earlier_file(
    with_lora: HeadCheckpoint, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    started = trained(tmp_path / "run", {"lora": 2}, init=with_lora.source)

    assert_close(started.adapter_state, with_lora.adapter_state)
    assert_close(started.state_dict, with_lora.state_dict)
    assert "its LoRA weights of rank 2 are taken" in caplog.text


@pytest.mark.slow
def test_a_training_of_blocks_starts_from_the_tuned_blocks_of_the_earlier_file(
    with_tuned_block: HeadCheckpoint, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    started = trained(tmp_path / "run", {"unfreeze_last": 2}, init=with_tuned_block.source)

    assert started.backbone_weights is not None
    assert with_tuned_block.backbone_weights is not None
    assert_close(started.backbone_weights, with_tuned_block.backbone_weights)
    assert "its weights of the ViT are taken" in caplog.text


def test_lora_weights_are_added_to_the_tuned_blocks_of_the_earlier_file(
    with_tuned_block: HeadCheckpoint, tmp_path: Path
) -> None:
    pytest.importorskip("peft", reason="needs dinoneck[lora]")

    started = trained(tmp_path / "run", {"lora": 2}, init=with_tuned_block.source)

    assert started.backbone_weights is not None
    assert with_tuned_block.backbone_weights is not None
    assert_close(started.backbone_weights, with_tuned_block.backbone_weights)
    products = [x for name, x in started.adapter_state.items() if name.endswith("lora_B")]
    assert products
    assert all(float(product.abs().max()) < 1e-6 for product in products)


def test_the_log_of_a_frozen_training_says_that_lora_weights_are_left_out(
    with_lora: HeadCheckpoint, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        trained(tmp_path / "run", {}, init=with_lora.source, folds={"count": 2})

    lines = [line for line in caplog.messages if "LoRA" in line]
    assert len(lines) == 1
    assert "are left out" in lines[0]
    assert "--lora 2" in lines[0]


def test_the_log_of_a_frozen_training_says_that_tuned_blocks_are_left_out(
    with_tuned_block: HeadCheckpoint, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        trained(tmp_path / "run", {}, init=with_tuned_block.source, folds={"count": 2})

    lines = [line for line in caplog.messages if "weights of the ViT" in line]
    assert len(lines) == 1
    assert "are left out" in lines[0]
    assert "--unfreeze-last 1" in lines[0]


@pytest.mark.slow
def test_the_log_says_that_the_earlier_head_was_trained_on_another_backbone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trained(tmp_path / "earlier", {}, folds={"count": 2})
    init = str(tmp_path / "earlier" / "heads" / "fold-0.safetensors")

    with caplog.at_level(logging.WARNING):
        trained(tmp_path / "run", {"seed": 3}, init=init, folds={"count": 2})

    [line] = [line for line in caplog.messages if "starts on other tokens" in line]
    assert "seeded" in line


def test_lora_weights_of_another_backbone_are_refused(
    with_lora: HeadCheckpoint, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match="another ViT than this run's"):
        trained(tmp_path / "run", {"lora": 2, "seed": 3}, init=with_lora.source)
