"""Backbones: the right block, the right place; what is frozen, trained and checkpointed."""

from __future__ import annotations

import pytest
import torch
from tests.kit import same
from tests.unit.backbones.test_libraries import tiny_dinov3
from torch import nn

from dinoneck import Backbone, load_backbone, wrap_backbone


def raw_blocks(backbone: Backbone, images: torch.Tensor) -> list[torch.Tensor]:
    """What every block really outputs, seen by hooks in a plain full forward."""
    model, seen = backbone.adapter.model, []
    hooks = [
        block.register_forward_hook(lambda m, i, out: seen.append(out)) for block in model.blocks
    ]
    with torch.no_grad():
        model.forward_features(images)
    for hook in hooks:
        hook.remove()
    return seen


def test_layers_are_block_outputs_in_the_callers_order(tiny: Backbone) -> None:
    images = torch.randn(2, 3, 48, 80)
    truth = raw_blocks(tiny, images)
    for norm in (True, False):
        backbone = wrap_backbone(tiny.adapter.model, layers=[4, 1, 1, -1], norm=norm)
        tokens = backbone(images)
        assert tokens.layers == (4, 1, 1, 5)
        assert tokens.normed is norm
        for layer, sequence in zip(tokens.layers, tokens.sequence, strict=True):
            expected = backbone.adapter.model.norm(truth[layer]) if norm else truth[layer]
            assert torch.equal(sequence, expected)


@pytest.mark.parametrize(
    "name", ["dinoneck_tiny", "vit_small_patch14_dinov2", "vit_small_patch14_reg4_dinov2"]
)
def test_a_patch_of_the_image_is_the_token_at_its_place(name: str) -> None:
    """With blocks that add nothing, painting patch (r, c) may change token r * cols + c and no other."""
    backbone = load_backbone(name, pretrained=False)
    with torch.no_grad():
        for key, parameter in backbone.adapter.model.named_parameters():
            if "gamma" in key:
                parameter.zero_()
    patch, rows, cols = backbone.adapter.patch_size[0], 3, 5
    images = torch.randn(1, 3, rows * patch, cols * patch)
    before = backbone(images).maps()[0]
    for r, c in ((0, 0), (0, 4), (1, 3), (2, 0), (2, 4)):
        painted = images.clone()
        painted[..., r * patch : (r + 1) * patch, c * patch : (c + 1) * patch] += 1.0
        changed = (backbone(painted).maps()[0] - before).abs().amax(dim=1)[0] > 1e-6
        assert changed.nonzero().tolist() == [[r, c]], name


def test_blocks_after_the_last_layer_do_not_run() -> None:
    backbone = load_backbone("dinoneck_tiny", layers=[2, 0])
    blocks, ran = [*backbone.adapter.model.blocks], list[int]()
    for number, block in enumerate(blocks):
        block.register_forward_pre_hook(lambda *_, number=number: ran.append(number))
    backbone(torch.randn(1, 3, 32, 32))
    assert ran == [0, 1, 2] and len(blocks) > 3


def test_frozen_is_frozen_for_good() -> None:
    backbone = load_backbone("dinoneck_tiny")
    model = nn.Sequential(backbone)
    model.train()
    assert not any(module.training for module in backbone.modules())
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    assert backbone.trainable_blocks == ()
    tokens = backbone(IMAGES).sequence[0]
    assert torch.equal(tokens, backbone(IMAGES).sequence[0])
    assert not tokens.requires_grad and not tokens.is_inference()


def test_low_precision_keeps_the_periods() -> None:
    backbone = load_backbone("dinoneck_tiny", dtype=torch.bfloat16)
    plain = load_backbone("dinoneck_tiny")
    periods = backbone.adapter.model.rope.periods
    assert periods.dtype == torch.float32
    assert torch.equal(periods, plain.adapter.model.rope.periods)
    odd = load_backbone("dinoneck_tiny")
    odd.adapter.model.rope.periods.mul_(1.01)
    assert torch.allclose(odd.to(torch.bfloat16).adapter.model.rope.periods, periods * 1.01)
    images = torch.randn(1, 3, 32, 32)
    tokens = backbone(images)
    assert tokens.sequence[0].dtype == torch.bfloat16
    assert (tokens.sequence[0].float() - plain(images).sequence[0]).abs().mean() < 0.02


IMAGES = torch.randn(2, 3, 32, 48, generator=torch.Generator().manual_seed(3))


def trained_parts(backbone: Backbone) -> set[str]:
    """Names of the parameters that get a gradient."""
    for parameter in backbone.parameters():
        parameter.grad = None
    backbone(IMAGES).patches[-1].square().mean().backward()
    return {
        name
        for name, parameter in backbone.adapter.model.named_parameters()
        if parameter.grad is not None
    }


@pytest.mark.parametrize(
    "make",
    [lambda: load_backbone("dinoneck_tiny", layers=[1, 4]), lambda: wrap_backbone(tiny_dinov3())],
)
def test_unfreeze_last_trains_just_that(make) -> None:  # type: ignore[no-untyped-def]
    backbone = make()
    runs = max(backbone.layers) + 1
    assert backbone.frozen
    backbone.unfreeze_last(2)
    assert backbone.trainable_blocks == (runs - 2, runs - 1)
    learning = {name for name, p in backbone.adapter.model.named_parameters() if p.requires_grad}
    assert trained_parts(backbone) == learning
    assert any("norm" in name and not any(c.isdigit() for c in name) for name in learning), (
        "the final norm too"
    )
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
    assert len(gradients[0]) > 10 and same(*gradients, 1e-7)
    assert [runs[n] for n in range(6)] == [1, 1, 1, 1, 2, 2]
    with torch.no_grad():
        thrifty(IMAGES)
    assert [runs[n] for n in range(6)] == [2, 2, 2, 2, 3, 3]
