"""Layers that somebody hooked, wrapped, replaced or parametrized are called: no weight is read past them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.contract.cases import WIDTH, tokens_of
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

from dinoneck import LayerGrouper, SpatialTuningAdapter, Tokens, ViTFPN
from dinoneck.grid import as_maps
from dinoneck.layers.conv_block import MapLinear
from dinoneck.layers.mixture import Mixture

DOUBLE = torch.float64
LAYERS = 4
CONFIGS: dict[str, dict[str, Any]] = {
    "conv": {},
    "pool": {"downsample": "pool"},
    "pool-normless": {"downsample": "pool", "norm": None, "activation": None},
    "pool-shared": {"downsample": "pool", "fusion": "softmax", "use_separate_bottlenecks": False},
    "pixel": {"fusion": "pixel"},
}


class Adapted(nn.Module):
    """A layer plus something of low rank, not linear; its ``weight`` and ``bias`` are those of the layer alone."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer, self.weight, self.bias = layer, layer.weight, layer.bias
        self.low = nn.Linear(layer.in_features, 1, dtype=DOUBLE)

    def forward(self, x: Tensor) -> Tensor:
        low = self.low(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) if isinstance(self.layer, MapLinear) else self.low(x)
        return self.layer(x) + torch.tanh(low)  # type: ignore[no-any-return]


class Twice(nn.Module):
    """A parametrization."""

    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def louder(module: nn.Module) -> None:
    own = module.forward
    module.forward = lambda *args: 3 * own(*args)  # type: ignore[method-assign]


def child(owner: nn.Module, name: str) -> nn.Linear:
    return owner._modules[name]  # type: ignore[return-value]


TOUCHES: dict[str, Callable[[nn.Module, str], Any]] = {
    "hook": lambda owner, name: child(owner, name).register_forward_hook(lambda m, args, out: torch.tanh(3 * out)),
    "pre-hook": lambda owner, name: child(owner, name).register_forward_pre_hook(lambda m, args: (2 * args[0],)),
    "wrapped": lambda owner, name: owner.register_module(name, Adapted(child(owner, name))),
    "parametrized": lambda owner, name: parametrize.register_parametrization(child(owner, name), "weight", Twice()),
    "pruned": lambda owner, name: prune.l1_unstructured(child(owner, name), "weight", 0.5),  # type: ignore[no-untyped-call]
    "own forward": lambda owner, name: louder(child(owner, name)),
}


def stepwise(neck: ViTFPN, tokens: Tokens) -> list[Tensor]:
    """The pyramid, module by module."""
    grouper, levels = neck.grouper, []
    for place, group in enumerate(grouper.groups):
        each = torch.stack([grouper.bottleneck(layer)(tokens.sequence[layer]) for layer in group])
        scores = torch.zeros(len(group), 1, 1, dtype=DOUBLE)
        if str(place) in grouper.fusion_weights:
            query = grouper.fusion_weights[str(place)]
            scores = query[:, None, None] if grouper.fusion == "softmax" else each @ query * each.shape[-1] ** -0.5
        fused = (scores.softmax(dim=0)[..., None] * each).sum(dim=0)
        level = as_maps(fused[:, tokens.num_prefix_tokens :], tokens.grid)
        for _ in range(place * (neck.downsample == "pool")):
            level = F.avg_pool2d(level, 2, ceil_mode=True, count_include_pad=False)
        levels.append(neck.top_down.laterals[place](neck.down[place](level)))
    for place in range(len(levels) - 2, -1, -1):
        levels[place] = levels[place] + F.interpolate(levels[place + 1], size=levels[place].shape[-2:], mode="nearest")
    return [block(level) for block, level in zip(neck.top_down.smooth, levels, strict=True)]


def built(config: str) -> ViTFPN:
    torch.manual_seed(0)
    neck = ViTFPN(WIDTH, LAYERS, 6, **CONFIGS[config], dtype=DOUBLE)
    for parameter in neck.parameters():
        nn.init.normal_(parameter, std=0.3)
    return neck


def places(neck: ViTFPN) -> dict[str, list[tuple[nn.Module, str]]]:
    return {
        "linear": [(part, "linear") for part in neck.grouper.bottlenecks.values()],
        "lateral": [(neck.top_down.laterals, str(place)) for place in range(3)],
    }


@pytest.mark.parametrize("where", ["linear", "lateral"])
@pytest.mark.parametrize("touch", TOUCHES)
@pytest.mark.parametrize("config", CONFIGS)
def test_what_stands_around_a_layer_takes_effect(config: str, touch: str, where: str) -> None:
    neck, tokens = built(config), tokens_of(3, 12, 17, layers=LAYERS, dtype=DOUBLE)
    mixture = Mixture(torch.tensor([2, 0, 1]), torch.tensor([0.0, 1.0, 0.3], dtype=DOUBLE))
    before = neck(tokens).maps[0].detach()
    for owner, name in places(neck)[where]:
        TOUCHES[touch](owner, name)
    for graph in (True, False):
        with torch.set_grad_enabled(graph):
            wanted, mixed = stepwise(neck, tokens), stepwise(neck, mixture.of(tokens))
            pairs = [*zip(neck(tokens).maps, wanted, strict=True)]
            pairs += zip(neck.mixed(tokens, mixture).maps, mixed, strict=True)
            pairs += [(neck.pooled(tokens), torch.cat([x.mean(dim=(2, 3)) for x in wanted], dim=1))]
            assert all((x - y).abs().max() < 1e-11 for x, y in pairs)
    assert (wanted[0] - before).abs().max() > 1e-4


@pytest.mark.parametrize("config", CONFIGS)
def test_every_module_on_the_way_is_called_if_it_has_a_hook(config: str) -> None:
    neck, tokens = built(config), tokens_of(1, 12, 17, layers=LAYERS, dtype=DOUBLE)
    quiet = neck(tokens).maps, neck.pooled(tokens)
    watched = [part for own in (neck.grouper, neck.top_down) for part in own.modules()]
    watched = [part for part in watched if not isinstance(part, nn.ModuleList | nn.ModuleDict | nn.ParameterDict)]
    for part in watched:
        heard: list[nn.Module] = []
        handle = part.register_forward_hook(lambda module, args, out, heard=heard: heard.append(module))  # type: ignore[misc]
        assert all((x - y).abs().max() < 1e-11 for x, y in zip(neck(tokens).maps, quiet[0], strict=True))
        assert part in heard
        heard.clear()
        assert (neck.pooled(tokens) - quiet[1]).abs().max() < 1e-11
        assert part in heard
        handle.remove()


def test_norms_that_are_not_the_own_are_called() -> None:
    x = [torch.randn(2, 5, WIDTH, dtype=DOUBLE) for _ in range(2)]
    own = LayerGrouper(WIDTH, 2, 6, 1, dtype=DOUBLE)
    for norm in (nn.RMSNorm(WIDTH), nn.LayerNorm(WIDTH, eps=0.5), nn.LayerNorm(WIDTH, bias=False), nn.Identity()):
        grouper = copy.deepcopy(own)
        grouper.bottleneck(1).norm = norm.double()  # type: ignore[assignment]
        wanted = (grouper.bottleneck(0)(x[0]) + grouper.bottleneck(1)(x[1])) / 2
        assert (grouper(x)[0] - wanted).abs().max() < 1e-12


def test_what_a_hook_kept_is_not_written_over() -> None:
    """Where no graph is recorded, the coarser level is added in place, but not to what somebody may hold."""
    neck, tokens, kept = built("conv"), tokens_of(1, 12, 17, layers=LAYERS, dtype=DOUBLE), []
    neck.top_down.laterals[0].register_forward_hook(lambda module, args, out: kept.append((out, out.clone())))
    with torch.no_grad():
        neck(tokens)
    assert all(torch.equal(out, copy) for out, copy in kept)


@pytest.mark.parametrize("grid_from", ["features", "image"])
@pytest.mark.parametrize("detail", [None, "aligned"])
def test_the_layers_of_an_adapter_are_called(detail: Any, grid_from: Any) -> None:
    torch.manual_seed(0)
    options = {"detail": detail, "norm": "layer"} | ({"grid_from": grid_from} if detail else {})
    neck = SpatialTuningAdapter(WIDTH, 8, 5, **options, dtype=DOUBLE).eval()
    tokens = tokens_of(2, 6, 8, layers=5, dtype=DOUBLE)
    images = torch.randn(2, 3, 96, 128, dtype=DOUBLE) if detail else None
    before = neck(tokens, images).maps
    handles = [layer.register_forward_hook(lambda module, args, out: 3 * out) for layer in neck.project]
    heard = neck(tokens, images).maps
    for handle in handles:
        handle.remove()
    with torch.no_grad():
        for layer in neck.project:
            layer.weight.mul_(3)  # type: ignore[operator,union-attr]
    for found, wanted, quiet in zip(heard, neck(tokens, images).maps, before, strict=True):
        assert (found - wanted).abs().max() < 1e-11
        assert (found - quiet).abs().max() > 1e-9
