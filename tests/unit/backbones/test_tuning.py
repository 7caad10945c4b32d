"""Freezing is a mode: what learns, what does not, and in which mode each part runs."""

from __future__ import annotations

import pytest
import torch
from tests.unit.backbones.test_libraries import tiny_dinov3

from dinoneck import Backbone, load_backbone, wrap_backbone

IMAGES = torch.randn(2, 3, 32, 48, generator=torch.Generator().manual_seed(3))


def trained_parts(backbone: Backbone) -> set[str]:
    """Names of the parameters that get a gradient."""
    for parameter in backbone.parameters():
        parameter.grad = None
    backbone(IMAGES).patches[-1].square().mean().backward()
    return {name for name, parameter in backbone.adapter.model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize(
    "make", [lambda: load_backbone("dinoneck_tiny", layers=[1, 4]), lambda: wrap_backbone(tiny_dinov3())]
)
def test_unfreeze_last_trains_just_that(make) -> None:  # type: ignore[no-untyped-def]
    backbone = make()
    runs = max(backbone.layers) + 1
    assert backbone.frozen
    backbone.unfreeze_last(2)
    assert backbone.trainable_blocks == (runs - 2, runs - 1)
    learning = {name for name, p in backbone.adapter.model.named_parameters() if p.requires_grad}
    assert trained_parts(backbone) == learning
    assert any("norm" in name and not any(c.isdigit() for c in name) for name in learning), "the final norm too"
    backbone.unfreeze_last(1)
    assert backbone.trainable_blocks == (runs - 1,)
    backbone.freeze()
    assert backbone.frozen
    assert not backbone(IMAGES).sequence[0].requires_grad


def test_checkpointing_changes_no_gradient_and_touches_trainable_blocks_only() -> None:
    plain = load_backbone("dinoneck_tiny").unfreeze_last(2).train()
    thrifty = load_backbone("dinoneck_tiny").unfreeze_last(2).train().set_grad_checkpointing()
    runs: dict[int, int] = {}
    for number, block in enumerate(thrifty.adapter.blocks):
        block.register_forward_pre_hook(lambda m, i, n=number: runs.update({n: runs.get(n, 0) + 1}))
    gradients = []
    for backbone in (plain, thrifty):
        backbone(IMAGES).patches[0].square().mean().backward()
        gradients.append([p.grad for p in backbone.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(gradients[1]) > 10
    for a, b in zip(*gradients, strict=True):
        assert torch.allclose(a, b, atol=1e-7)
    assert [runs[n] for n in range(6)] == [1, 1, 1, 1, 2, 2]
    with torch.no_grad():
        thrifty(IMAGES)
    assert [runs[n] for n in range(6)] == [2, 2, 2, 2, 3, 3]
