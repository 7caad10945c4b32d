"""Derivatives of every kind through necks: torch.func, twice, batched, recomputed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from tests.contract.cases import WIDTH, tokens_of
from torch import Tensor, nn

from dinoneck import LayerGrouper, SimplePyramid, SpatialTuningAdapter, STAPyramid, Tokens, ViTFPN

DOUBLE = torch.float64
LAYERS = 3
MODULES: dict[str, Callable[[], nn.Module]] = {
    "grouper": lambda: LayerGrouper(WIDTH, LAYERS, 4, 1),
    "grouper-shared": lambda: LayerGrouper(WIDTH, LAYERS, 4, 1, use_separate_bottlenecks=False, fusion="softmax"),
    "grouper-pixel": lambda: LayerGrouper(WIDTH, LAYERS, 4, 2, fusion="pixel"),
    "vit_fpn": lambda: ViTFPN(WIDTH, LAYERS, 4),
    "vit_fpn-pool": lambda: ViTFPN(WIDTH, LAYERS, 4, downsample="pool"),
    "sta-avgpool": lambda: STAPyramid(WIDTH, 4, downsample="avgpool"),
    "adapter": lambda: SpatialTuningAdapter(WIDTH, 4, LAYERS, detail=None, norm="layer"),
    "simple": lambda: SimplePyramid(WIDTH, 4, (2.0, 1.0, 0.5)),
}


def built(name: str) -> nn.Module:
    torch.manual_seed(0)
    module = MODULES[name]().double()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module


def read(name: str, sequence: Sequence[Tensor]) -> Any:
    """What the module is called with."""
    if name.startswith("grouper"):
        return list(sequence)
    tokens = Tokens.from_sequence(sequence, image_size=(48, 80), patch_size=16, num_prefix_tokens=5)
    return tokens.last if name.startswith("s") else tokens


def size(outputs: Any) -> Tensor:
    """A scalar whose first and second derivatives see every value."""
    maps = outputs if isinstance(outputs, list) else outputs.maps
    return torch.stack([x.square().sum() for x in maps]).sum()


def sequence_of(learns: bool = False) -> list[Tensor]:
    torch.manual_seed(1)
    return [x.clone().requires_grad_(learns) for x in tokens_of(2, 3, 5, layers=LAYERS, dtype=DOUBLE).sequence]


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch.func.jvp's own
@pytest.mark.parametrize("name", MODULES)
def test_functions_of_torch_func_agree_with_autograd(name: str) -> None:
    module, sequence = built(name), sequence_of()
    weights = {key: x.detach() for key, x in module.named_parameters()}

    def run(given: dict[str, Tensor], *xs: Tensor) -> Tensor:
        return size(torch.func.functional_call(module, given, (read(name, xs),)))

    wanted = dict(zip(weights, torch.autograd.grad(run(dict(module.named_parameters()), *sequence),
                                                   list(module.parameters())), strict=True))  # fmt: skip
    found = torch.func.grad(run)(weights, *sequence)
    assert all((found[key] - wanted[key]).abs().max() < 1e-10 for key in weights)

    direction = {key: torch.randn_like(x) for key, x in weights.items()}
    with torch.no_grad():  # forward mode does not know the fused operation of training
        _, along = torch.func.jvp(lambda given: run(given, *sequence), (weights,), (direction,))
    expected = torch.stack([(direction[key] * wanted[key]).sum() for key in weights]).sum()
    assert (along - expected).abs() < 1e-9 * expected.abs().clamp(min=1)

    each = torch.func.vmap(torch.func.grad(lambda given, *xs: run(given, *[x[None] for x in xs])),
                           in_dims=(None, *[0] * LAYERS))(weights, *sequence)  # fmt: skip
    assert all((each[key].sum(dim=0) - wanted[key]).abs().max() < 1e-10 for key in weights)
