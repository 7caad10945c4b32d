"""Objects of the dinov2 and dinov3 repositories: the same tensors as their own method, and what it cannot give."""

from __future__ import annotations

import pytest
import torch
from tests.unit.backbones.official_objects import Dinov2Like, Dinov3Like, Official
from torch import nn

from dinoneck import wrap_backbone

IMAGES = torch.randn(2, 3, 12, 20, generator=torch.Generator().manual_seed(0))
OBJECTS = {
    "dinov2": lambda: Dinov2Like(),
    "dinov2, chunks": lambda: Dinov2Like(registers=2, chunks=2),
    "dinov3": lambda: Dinov3Like(registers=4),
    "dinov3, untied": lambda: Dinov3Like(registers=4, untied=True),
}


def truth(model: Official, layer: int, norm: bool) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        return model.outputs(IMAGES, [layer], norm)[0]


@pytest.mark.parametrize("kind", OBJECTS)
@pytest.mark.parametrize("norm", [True, False])
def test_tokens_are_the_objects_own(kind: str, norm: bool) -> None:
    torch.manual_seed(1)
    model = OBJECTS[kind]()
    backbone = wrap_backbone(model, layers=[3, 0, 0, -2], norm=norm)
    assert backbone.adapter.source == "official"
    tokens = backbone(IMAGES)
    assert tokens.layers == (3, 0, 0, 2)
    assert tokens.grid == (3, 5)
    registers = model.extra_tokens.shape[1]
    assert (tokens.num_cls, tokens.num_registers) == (1, registers)
    for layer, sequence in zip(tokens.layers, tokens.sequence, strict=True):
        assert torch.equal(sequence, truth(model, layer, norm))
    assert tokens.registers[0].shape == (2, registers, 8)


def test_rotary_positions_do_not_move_in_training() -> None:
    """The real ones are rescaled at random in train(): the same image would give other tokens each time."""
    model = Dinov3Like(registers=4)
    backbone = wrap_backbone(model)
    nn.Sequential(backbone).train()
    assert torch.equal(backbone(IMAGES).sequence[0], backbone(IMAGES).sequence[0])
    backbone.unfreeze_last(1).train()
    assert model.flat[-1].training
    assert not model.rope_embed.training
    assert torch.equal(backbone(IMAGES).sequence[0], backbone(IMAGES).sequence[0])
