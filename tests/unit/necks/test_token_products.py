"""Products of normed or averaged tokens in blocks, against the plain formula in float64: values and gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.contract.cases import WIDTH, tokens_of
from torch import Tensor, nn

from dinoneck import LayerGrouper, SpatialTuningAdapter, ViTFPN
from dinoneck.grid import GridSize, as_maps
from dinoneck.layers import token_products as products
from dinoneck.layers.token_products import Reading, folded, followed, token_products

B, C, D, P = 3, 10, 7, 2
GRID = GridSize(7, 9)
DOUBLE = torch.float64


def plain(
    layers: Sequence[Tensor], weights: Sequence[Tensor], bias: Tensor, reading: Reading, shares: Tensor | None
) -> Tensor:
    """Whole maps, one after the other."""
    total: Any = 0
    for place, x in enumerate(layers):
        x = x[:, reading.prefix :]
        if reading.eps is not None:
            centred = x - x.mean(dim=-1, keepdim=True)
            x = centred / (centred.square().mean(dim=-1, keepdim=True) + reading.eps).sqrt()
        maps = as_maps(x, reading.grid) if reading.halvings else None
        for _ in range(reading.halvings):
            maps = F.avg_pool2d(maps, 2, ceil_mode=True, count_include_pad=False)  # type: ignore[arg-type]
        x = x if maps is None else maps.flatten(2).mT
        total = total + (x @ weights[place].T if shares is None else shares[place] * (x @ weights[0].T))
    return total + bias  # type: ignore[no-any-return]


@pytest.mark.parametrize("fits", [1, 20, 70, 10_000])  # tokens per block: a line, several, a sample, the batch
@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize(
    "reading",
    [
        Reading(),
        Reading(eps=1e-6),
        Reading(prefix=P, grid=GRID),
        Reading(1e-6, 1, P, GRID),
        Reading(None, 2, P, GRID),
        Reading(1e-6, 3, P, GRID),
    ],
    ids=str,
)
def test_values_and_gradients_are_those_of_whole_maps(
    fits: int, mixed: bool, reading: Reading, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(products.BLOCK_BYTES, "cpu", fits * C * 8)
    layers = [torch.randn(B, P + GRID.count, C, dtype=DOUBLE, requires_grad=True) for _ in range(3)]
    weights = [torch.randn(D, C, dtype=DOUBLE, requires_grad=True) for _ in range(1 if mixed else 3)]
    bias = torch.randn(D, dtype=DOUBLE, requires_grad=True)
    shares = torch.rand(3, dtype=DOUBLE).requires_grad_() if mixed else None
    leaves = [*layers, *weights, bias, *([] if shares is None else [shares])]
    found, wanted = (
        token_products(layers, weights, bias, reading, shares),
        plain(layers, weights, bias, reading, shares),
    )
    assert found.shape == wanted.shape
    assert (found - wanted).abs().max() < 1e-12
    given = torch.randn_like(wanted)
    for a, b in zip(torch.autograd.grad(found, leaves, given), torch.autograd.grad(wanted, leaves, given), strict=True):
        assert (a - b).abs().max() < 1e-11


def test_only_what_learns_gets_a_gradient() -> None:
    frozen, learns = torch.randn(B, 5, C, dtype=DOUBLE), torch.randn(B, 5, C, dtype=DOUBLE, requires_grad=True)
    weight, other = torch.randn(D, C, dtype=DOUBLE, requires_grad=True), torch.randn(D, C, dtype=DOUBLE)

    def run(x: Tensor, w: Tensor) -> Tensor:
        return token_products([frozen, x], [w, other], None, Reading(eps=1e-6))

    assert torch.autograd.gradcheck(run, (learns, weight))
    one = token_products([frozen], [weight], None, Reading(eps=1e-6))
    assert torch.autograd.grad(one.sum(), [weight])[0].abs().sum() > 0


def kept_by(call: Callable[[], Any], *given: Tensor) -> list[tuple[int, ...]]:
    """Shapes of what autograd keeps of a call, weights and inputs left out; vectors and scalars left out."""
    own, kept = {x.untyped_storage().data_ptr() for x in given}, {}

    def pack(x: Tensor) -> Tensor:
        kept[x.untyped_storage().data_ptr()] = x
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        call()
    return [tuple(x.shape) for place, x in kept.items() if place not in own and x.ndim > 1]


@pytest.mark.parametrize("fold", [False, True])
def test_frozen_tokens_leave_nothing_of_a_projection_to_keep(fold: bool) -> None:
    """Neither tokens, nor maps, nor weights composed of scale, share and lateral layer."""
    grouper = LayerGrouper(C, 3, D, 1, norm=None, dtype=DOUBLE)
    layers = [torch.randn(B, P + 6, C, dtype=DOUBLE) for _ in range(3)]
    then = nn.Linear(D, D, dtype=DOUBLE) if fold else None
    given = (*layers, *grouper.parameters(), *(then.parameters() if then is not None else ()))
    assert kept_by(lambda: grouper.fuse(0, layers, Reading(prefix=P), then), *given) == []
    layers[0].requires_grad_()
    assert kept_by(lambda: grouper.fuse(0, layers, Reading(prefix=P), then), *given) == [(D, C)] * 3


def test_a_norm_and_the_layer_behind_fold_into_a_linear_layer() -> None:
    norm, linear, then = nn.LayerNorm(C), nn.Linear(C, D), nn.Linear(D, 4)
    for module in (norm, linear, then):
        module.double()
        for parameter in module.parameters():
            nn.init.normal_(parameter)
    x = torch.randn(B, 5, C, dtype=DOUBLE)
    weight, shift = folded(linear, norm)
    weight, bias = followed(weight, shift, then.weight)
    found = F.linear(F.layer_norm(x, (C,), eps=norm.eps), weight, bias + then.bias)
    assert (found - then(linear(norm(x)))).abs().max() < 1e-12


def test_slices_of_tokens_are_read_where_they_lie() -> None:
    grouper = LayerGrouper(WIDTH, 2, 8, 1, norm=None, dtype=DOUBLE)
    tokens = tokens_of(layers=2, dtype=DOUBLE)
    whole, sliced = grouper(tokens.sequence)[0][:, 5:], grouper(tokens.patches)[0]
    assert (whole - sliced).abs().max() < 1e-12


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_and_autocast_stay_near(dtype: torch.dtype) -> None:
    grouper = LayerGrouper(64, 6, 32, 1)
    xs = [torch.randn(2, 9, 64) for _ in range(6)]
    exact = grouper.double()([x.to(dtype).double() for x in xs])[0]
    low = grouper.to(dtype)([x.to(dtype) for x in xs])[0]
    assert low.dtype == dtype
    assert (low.double() - exact).norm() / exact.norm() < 2 * torch.finfo(dtype).eps
    with torch.autocast("cpu", dtype):
        cast = grouper.float()(xs)[0]
        cast.float().sum().backward()
    assert cast.dtype == dtype
    assert (cast.double() - exact).norm() / exact.norm() < 4 * torch.finfo(dtype).eps
    assert all(parameter.grad is not None for parameter in grouper.parameters())


def whole_fpn(neck: ViTFPN, tokens: Any) -> list[Tensor]:
    """ViTFPN(downsample="pool"), step by step: projections, means, laterals."""
    maps: list[Tensor] = []
    for place, group in enumerate(neck.grouper.groups):
        fused = sum(neck.grouper.bottleneck(i)(tokens.sequence[i]) for i in group) / len(group)
        level = as_maps(fused[:, tokens.num_prefix_tokens :], tokens.grid)  # type: ignore[index]
        for _ in range(place):
            level = F.avg_pool2d(level, 2, ceil_mode=True, count_include_pad=False)
        maps.append(level)
    laterals = [lateral(level) for lateral, level in zip(neck.top_down.laterals, maps, strict=True)]
    for place in range(len(maps) - 2, -1, -1):
        size = laterals[place].shape[-2:]
        laterals[place] = laterals[place] + F.interpolate(laterals[place + 1], size=size, mode="nearest")
    return [block(level) for block, level in zip(neck.top_down.smooth, laterals, strict=True)]


@pytest.mark.parametrize("separate", [True, False])
@pytest.mark.parametrize("norm", ["layer", None])
@pytest.mark.parametrize("grid", [(12, 17), (2, 3)])  # laterals folded, and not worth it
def test_a_pooled_pyramid_averages_first_and_folds_its_laterals(
    separate: bool, norm: Any, grid: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    neck = ViTFPN(
        WIDTH, 5, 12, downsample="pool", norm=norm, use_separate_bottlenecks=separate, activation="gelu", dtype=DOUBLE
    )
    tokens = tokens_of(3, *grid, layers=5, dtype=DOUBLE)
    asked: list[bool] = []
    own = neck._lateral_to_fold
    monkeypatch.setattr(neck, "_lateral_to_fold", lambda *a: (asked.append(own(*a) is not None), own(*a))[1])
    found = neck(tokens).maps
    assert any(asked) == (grid == (12, 17))
    wanted = whole_fpn(neck, tokens)
    given = [torch.randn_like(level) for level in wanted]
    for a, b in zip(found, wanted, strict=True):
        assert (a - b).abs().max() < 1e-12
    leaves = list(neck.parameters())
    ours = torch.autograd.grad(list(found), leaves, given)
    theirs = torch.autograd.grad(wanted, leaves, given)
    for x, y in zip(ours, theirs, strict=True):
        assert (x - y).abs().max() < 1e-10
    with torch.no_grad():  # where upsampling adds in place
        for a, b in zip(neck(tokens).maps, wanted, strict=True):
            assert (a - b).abs().max() < 1e-12


def test_an_adapter_mixes_its_layers_block_by_block() -> None:
    torch.manual_seed(0)
    neck = SpatialTuningAdapter(WIDTH, 8, 5, detail=None, norm="layer", dtype=DOUBLE)
    tokens = tokens_of(2, 7, 9, layers=5, dtype=DOUBLE)
    found = neck(tokens).maps
    assert neck.mix is not None
    for place, (level, share) in enumerate(zip(found, neck.mix.softmax(dim=1), strict=True)):
        mixed = sum(s * x for s, x in zip(share, tokens.sequence, strict=True))
        maps = as_maps(mixed[:, 5:], tokens.grid)  # type: ignore[index]
        if place == 2:
            maps = F.avg_pool2d(maps, 2, ceil_mode=True, count_include_pad=False)
        maps = F.conv2d(maps, neck.project[place].weight[:, :, None, None])
        if place == 0:
            maps = F.interpolate(maps, size=(14, 18), mode="bilinear", align_corners=False)
        assert (level - neck.norms[place](maps)).abs().max() < 1e-12
