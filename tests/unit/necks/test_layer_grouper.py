"""LayerGrouper and fused norms against plain formulas and the modules."""

from __future__ import annotations

import copy
from typing import Any, get_args

import pytest
import torch
from tests.kit import randomised, same
from torch import Tensor, nn
from torch.nn.utils import prune

from dinoneck import LayerGrouper
from dinoneck.layers import fused
from dinoneck.necks.layer_grouper import Fusion

C, D, N = 12, 8, 5


def layers_of(count: int, dtype: torch.dtype = torch.float64, channels: int = C) -> list[Tensor]:
    return [
        torch.randn(2, N, channels, dtype=dtype) + torch.arange(channels, dtype=dtype)
        for _ in range(count)
    ]


def plain(grouper: LayerGrouper, xs: list[Tensor], norm: bool, fusion: str) -> list[Tensor]:
    """The formula, written for one token at a time's sake with plain operations only."""
    results = []
    for place, group in enumerate(grouper.groups):
        projected = []
        for layer in group:
            part = grouper.bottleneck(layer)
            x = xs[layer]
            if norm:
                centred = x - x.mean(dim=-1, keepdim=True)
                x = centred / (centred.square().mean(dim=-1, keepdim=True) + 1e-6).sqrt()
                x = x * part.norm.weight + part.norm.bias
            projected.append(torch.einsum("bnc,dc->bnd", x, part.linear.weight) + part.linear.bias)
        y = torch.stack(projected)
        own = dict(grouper.fusion_weights.items()).get(str(place))
        if own is None:
            shares = torch.full(y.shape[:3], 1 / len(group), dtype=y.dtype)
        elif fusion == "softmax":
            shares = (own.exp() / own.exp().sum())[:, None, None].expand(y.shape[:3])
        else:
            scores = (y * own).sum(dim=-1) / D**0.5
            shares = scores.exp() / scores.exp().sum(dim=0)
        results.append((shares[..., None] * y).sum(dim=0))
    return results


@pytest.mark.parametrize("separate", [True, False])
@pytest.mark.parametrize("norm", ["layer", None])
@pytest.mark.parametrize(
    ("fusion", "count", "groups"),
    [
        ("mean", 1, 3),
        ("mean", 2, 3),
        ("mean", 3, 3),
        *((f, *n) for f in get_args(Fusion) for n in ((4, 3), (7, 2))),
    ],
)
def test_it_equals_the_plain_formula_and_so_do_its_gradients(
    fusion: Any, separate: bool, norm: Any, count: int, groups: int
) -> None:
    grouper = randomised(
        LayerGrouper(C, count, D, groups, "auto", separate, norm, fusion, dtype=torch.float64), 0.5
    )
    xs = [x.requires_grad_() for x in layers_of(count)]
    leaves = [*xs, *grouper.parameters()]
    found, wanted = grouper(xs), plain(grouper, xs, norm == "layer", fusion)
    weights = [torch.randn_like(y) for y in wanted]
    assert same(found, wanted, 1e-12)
    one = torch.autograd.grad(
        sum((y * w).sum() for y, w in zip(found, weights, strict=True)), leaves
    )
    two = torch.autograd.grad(
        sum((y * w).sum() for y, w in zip(wanted, weights, strict=True)), leaves
    )
    assert same(one, two, 1e-10)


@pytest.mark.parametrize(
    ("count", "sizes"), [(1, [1]), (12, [4, 4, 4]), (7, [3, 2, 2]), (29, [6, 6, 6, 6, 5])]
)
def test_auto_groups_are_contiguous_even_and_shallow_first(count: int, sizes: list[int]) -> None:
    found = LayerGrouper(C, count, D, len(sizes)).groups
    assert [len(group) for group in found] == sizes
    assert [layer for group in found for layer in group] == list(range(count))
    assert LayerGrouper(C, 3, D, 5).groups == ((0,), (0,), (1,), (1,), (2,)), (
        "layers are read again where they are few"
    )


def test_layer_weights_are_the_softmax_of_what_was_learned() -> None:
    grouper = LayerGrouper(C, 5, D, 2, fusion="softmax")  # groups of three and two layers
    with torch.no_grad():
        grouper.fusion_weights["1"].copy_(torch.tensor([1.0, 3.0]).log())
    first, second = grouper.layer_weights()
    assert torch.allclose(first, torch.tensor([1 / 3, 1 / 3, 1 / 3]))
    assert torch.allclose(second, torch.tensor([0.25, 0.75]))
    assert not second.requires_grad


@pytest.mark.parametrize("fusion", ["mean", "softmax"])
def test_layer_weights_say_what_a_layer_adds_to_its_group(fusion: Any) -> None:
    """A group is the sum of its projected layers, each times its weight."""
    grouper = randomised(LayerGrouper(C, 3, D, 2, norm=None, fusion=fusion, dtype=torch.float64))
    xs = layers_of(3)
    groups = grouper(xs)
    for group, weights, result in zip(grouper.groups, grouper.layer_weights(), groups, strict=True):
        expected = torch.zeros_like(result)
        for layer, weight in zip(group, weights, strict=True):
            expected += weight.double() * grouper.bottleneck(layer)(xs[layer])
        assert torch.allclose(result, expected, atol=1e-7)


@pytest.mark.parametrize("separate", [True, False])
def test_calibrated_norms_give_channels_of_mean_0_and_std_1(separate: bool) -> None:
    grouper = LayerGrouper(C, 2, D, 2, "auto", separate)
    batches = [layers_of(2, torch.float32) for _ in range(3)]
    assert grouper.calibrate(iter(batches))
    for layer in range(2) if separate else ():
        z = torch.cat([grouper.bottleneck(layer).norm(xs[layer]).flatten(0, 1) for xs in batches])
        assert torch.allclose(z.mean(dim=0), torch.zeros(C), atol=1e-4)
        assert torch.allclose(z.std(dim=0, correction=0), torch.ones(C), atol=1e-3)
    before = copy.deepcopy(grouper.state_dict())
    assert not grouper.calibrate(iter([[x * 3 + 1 for x in xs] for xs in batches])), (
        "set norms are left alone"
    )
    assert all(torch.equal(before[name], value) for name, value in grouper.state_dict().items())
    assert not LayerGrouper(C, 2, D, 2, norm=None).calibrate(iter(batches))


B, TOKENS, WIDE, NARROW = 2, 70, 24, 5


@pytest.mark.parametrize("rows", [1, 33, 10_000])  # per block: one, a part of a sample, all
@pytest.mark.parametrize("learns", [False, True])
def test_values_and_gradients_are_those_of_the_modules(
    rows: int, learns: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(fused.BLOCK_BYTES, "cpu", rows * WIDE * 8)
    norm = randomised(nn.LayerNorm(WIDE, eps=1e-6, dtype=torch.float64), 1.0)
    linear = nn.Linear(WIDE, NARROW, dtype=torch.float64)
    x = torch.randn(B, TOKENS, WIDE, dtype=torch.float64, requires_grad=learns)
    share = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    leaves = [*norm.parameters(), *linear.parameters(), share, *([x] if learns else [])]
    results = []
    for run in (lambda: fused.norm_linear(x, norm, linear, share), lambda: share * linear(norm(x))):
        y = run()
        results.append([y, *torch.autograd.grad(y.square().sum(), leaves)])
    assert same(*results, 1e-10)


@pytest.mark.parametrize("has_bias", [True, False])
def test_a_linear_layer_times_a_scalar_has_the_gradients_of_the_product(has_bias: bool) -> None:
    linear = nn.Linear(WIDE, NARROW, bias=has_bias, dtype=torch.float64)
    x = torch.randn(B, TOKENS, WIDE, dtype=torch.float64, requires_grad=True)
    share = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    leaves = [x, share, *linear.parameters()]
    results = []
    for y in (fused.scaled_linear(x, linear, share), share * linear(x)):
        results.append([y, *torch.autograd.grad(y.square().sum(), leaves)])
    assert same(*results, 1e-12)


@pytest.mark.parametrize("fusion", ["mean", "softmax"])
def test_without_a_norm_no_tokens_are_kept_for_the_backward_pass(fusion: Fusion) -> None:
    grouper = LayerGrouper(WIDE, 3, NARROW, 1, norm=None, fusion=fusion)
    layers = [torch.randn(B, TOKENS, WIDE) for _ in range(3)]
    addresses = {x.data_ptr() for x in (*layers, *grouper.parameters())}
    kept_numbers = []

    def keep(x: Tensor) -> Tensor:
        if x.data_ptr() not in addresses:
            kept_numbers.append(x.numel())
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        _result = grouper(layers)[0]
    # the three scalars, by which a weight and a bias are multiplied, and their softmax; of the mean
    # nothing, and never one of the 2 * 70 tokens
    expected = [3] + [1] * 6 if fusion == "softmax" else []
    assert sorted(kept_numbers, reverse=True) == expected


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch.func's own
@pytest.mark.parametrize("way", ["prune", "functional_call"])
def test_the_modules_run_where_their_weights_are_others(way: str) -> None:
    grouper, x = LayerGrouper(WIDE, 1, NARROW, 1), torch.randn(1, 4, WIDE)
    part = grouper.bottleneck(0)
    assert fused.is_fusable(x, part.norm, part.linear)
    if way == "prune":
        prune.l1_unstructured(part.linear, "weight", 0.5)
        for _ in range(2):
            grouper([x])[0].sum().backward()
    else:
        weights = {name: weight.detach() for name, weight in grouper.named_parameters()}
        hessian = torch.func.hessian(
            lambda given: torch.func.functional_call(grouper, given, ([x],))[0].square().sum()
        )
        assert hessian(weights)["bottlenecks.0.linear.bias"]["bottlenecks.0.linear.bias"].shape == (
            NARROW,
            NARROW,
        )
