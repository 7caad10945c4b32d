"""timm's rotary positions on a GPU, where the adapter computes them itself: on the pretend device."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.pretend_device import NAME, pretend_device
from tests.unit.backbones.test_forward_check import eva, images_for
from torch import Tensor

from dinoneck import Backbone, wrap_backbone
from dinoneck.backbones import timm as timm_adapter


def scale_coordinates(model: Any) -> None:
    """Change an inner method of the rotary positions, which no list of changed methods names."""
    make = model.rope._get_pos_embed_from_coords
    model.rope._get_pos_embed_from_coords = lambda coords: make(coords * 0.9)


def rotary_on_a_gpu(backbone: Backbone, images: Tensor) -> Tensor:
    """Return the rotary embedding that the blocks get on a GPU."""
    with pretend_device():
        moved = backbone.to(NAME)
        _, rotary = moved.adapter.embed(images.to(NAME))
        return rotary[0].cpu()


def test_changed_rotary_positions_are_used_on_a_gpu_too() -> None:
    model = eva()
    scale_coordinates(model)
    expected = model.rope.get_embed((5, 2))
    backbone = wrap_backbone(model)

    rotary = rotary_on_a_gpu(backbone, images_for(backbone, rows=5, cols=2))

    assert torch.equal(rotary, expected)


def test_rotary_positions_that_are_changed_after_wrapping_are_used_on_a_gpu_too() -> None:
    model = eva()
    backbone = wrap_backbone(model)
    get_embed = model.rope.get_embed
    model.rope.get_embed = lambda shape=None: get_embed(shape=shape).flip(0)
    expected = get_embed((5, 2)).flip(0)

    rotary = rotary_on_a_gpu(backbone, images_for(backbone, rows=5, cols=2))

    assert torch.equal(rotary, expected)


def test_the_last_bit_of_positions_on_a_gpu_changes_no_comparison(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    exact = timm_adapter.rotary_of
    off = torch.finfo(torch.float32).eps
    monkeypatch.setattr(timm_adapter, "rotary_of", lambda *args: exact(*args) * (1 + off))
    model = eva()
    expected = model.rope.get_embed((5, 2)) * (1 + off)

    with pretend_device(), caplog.at_level("INFO", logger="dinoneck"):
        backbone = wrap_backbone(model.to(NAME))

    assert caplog.text == ""  # nothing differs, not even by rounding
    rotary = rotary_on_a_gpu(backbone, images_for(backbone, rows=5, cols=2))
    assert torch.equal(rotary, expected)  # and the positions of the device are kept
