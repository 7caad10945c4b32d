"""What necks and heads say of tokens that they were not built for, and which ones they take."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from tests import kit
from torch import nn

from dinoneck import (
    BackboneError,
    FPNHead,
    PatchMeanHead,
    ShapeError,
    Task,
    Tokens,
    ViTFPN,
    load_head,
    save_head,
)
from dinoneck.layers.inputs import Origin, check_tokens

GRID = (2, 3)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        pytest.param(torch.zeros(1, 6, 8).numpy(), "got ndarray", id="an array"),
        pytest.param(None, "got NoneType", id="nothing"),
        pytest.param({"patches": torch.zeros(1, 6, 8)}, "got dict", id="a dict"),
    ],
)
def test_what_is_no_tensor_is_named_by_its_type(given: Any, named: str) -> None:
    head = PatchMeanHead(8, [Task("mass")], hidden_dim=4)

    with pytest.raises(ShapeError, match=named):
        head.predict(given, grid=GRID)


def test_too_few_layers_without_numbers_are_counted() -> None:
    neck = ViTFPN(8, 4, fpn_dim=4)

    with pytest.raises(ShapeError, match=r"the tokens hold 2 layers, this ViTFPN was built for 4"):
        neck([torch.zeros(1, 6, 8)] * 2, grid=GRID)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_module_without_parameters_takes_every_dtype(dtype: torch.dtype) -> None:
    tokens = Tokens.from_patches(torch.zeros(1, 6, 8, dtype=dtype), grid=GRID, patch_size=16)

    checked = check_tokens(tokens, nn.Identity(), 8)

    assert checked is tokens


@torch.no_grad()
def test_under_autocast_a_head_takes_tokens_in_half_precision() -> None:
    head = kit.randomised(PatchMeanHead(8, [Task("mass")], hidden_dim=4)).eval()
    tokens = kit.tokens(width=8)
    expected = head.predict(tokens)["mass"]

    with torch.autocast("cpu", dtype=torch.bfloat16):
        mass = head.predict(tokens.to(dtype=torch.bfloat16))["mass"]

    torch.testing.assert_close(mass.float(), expected, rtol=0.05, atol=0.02)


IMAGES = torch.linspace(0, 1, 3 * 32 * 48).reshape(1, 3, 32, 48)


@pytest.fixture
def head_of_two_layers(tmp_path: Path) -> Any:
    """A head of a file that reads blocks 1 and 5 of whatever layers it is given."""
    neck_options = {"num_layers": 2, "fpn_dim": 8, "layer_indices": (1, 5)}
    head = kit.randomised(FPNHead(64, [Task("mass")], **neck_options))
    save_head(tmp_path / "h", head, backbone=kit.backbone(layers=[1, 3, 5]))
    return load_head(tmp_path / "h")


@pytest.mark.parametrize(
    "layers",
    [
        pytest.param([1, 5], id="those that it reads"),
        pytest.param([5, 1], id="in another order"),
        pytest.param([0, 1, 2, 4, 5], id="more"),
    ],
)
def test_a_head_that_names_its_layers_finds_them_among_others(
    layers: list[int], head_of_two_layers: Any
) -> None:
    expected = head_of_two_layers.predict(kit.backbone(layers=[1, 3, 5])(IMAGES))["mass"]

    mass = head_of_two_layers.predict(kit.backbone(layers=layers)(IMAGES))["mass"]

    torch.testing.assert_close(mass, expected)


def test_tokens_without_a_layer_that_a_head_reads_are_refused(head_of_two_layers: Any) -> None:
    tokens = kit.backbone(layers=[1, 3])(IMAGES)

    with pytest.raises(BackboneError, match=r"layers: trained on \(1, 5\), got \(1, 3\)"):
        head_of_two_layers.predict(tokens)


def test_where_nothing_is_recorded_tokens_without_a_record_give_no_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    head = PatchMeanHead(8, [Task("mass")], hidden_dim=4)
    head.trained_on = Origin(patch_size=16)
    tokens = Tokens.from_patches(torch.zeros(1, 6, 8), grid=GRID, patch_size=16)

    with caplog.at_level(logging.WARNING, logger="dinoneck"):
        head.predict(tokens)

    assert caplog.records == []
