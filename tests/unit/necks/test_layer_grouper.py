"""LayerGrouper and fused norms against plain formulas and the modules."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Literal

import pytest
import torch
from tests.kit import randomised, same
from torch import Tensor, nn
from torch.nn.utils import prune

from dinoneck import LayerGrouper, ShapeError
from dinoneck.layers import fused
from dinoneck.necks.layer_grouper import Fusion

CHANNELS = 12
LEVEL_CHANNELS = 8
NUM_TOKENS = 5


def random_layers(count: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Tokens (2, N, C) of several layers, whose channels have means of 0, 1, 2, ..."""
    means = torch.arange(CHANNELS, dtype=dtype)
    layers = []
    for _ in range(count):
        layers.append(torch.randn(2, NUM_TOKENS, CHANNELS, dtype=dtype) + means)
    return layers


def expected_levels(
    grouper: LayerGrouper, layers: list[Tensor], norm: str | None, fusion: Fusion
) -> list[Tensor]:
    """The formula in plain operations."""
    fusion_weights = dict(grouper.fusion_weights.items())
    levels = []
    for level, group in enumerate(grouper.groups):
        projected = []
        for layer in group:
            bottleneck: Any = grouper.bottleneck(layer)
            x = layers[layer]
            if norm == "layer":
                x = normed(x) * bottleneck.norm.weight + bottleneck.norm.bias
            linear = bottleneck.linear
            projected.append(torch.einsum("bnc,dc->bnd", x, linear.weight) + linear.bias)
        y = torch.stack(projected)
        shares = expected_shares(y, fusion_weights.get(str(level)), fusion)
        levels.append((shares[..., None] * y).sum(dim=0))
    return levels


def normed(x: Tensor) -> Tensor:
    centred = x - x.mean(dim=-1, keepdim=True)
    variance = centred.square().mean(dim=-1, keepdim=True)
    return centred / (variance + 1e-6).sqrt()


def expected_shares(projected: Tensor, learned: Any, fusion: Fusion) -> Tensor:
    """The share of every layer of a group in every token (layers, B, N)."""
    shape = projected.shape[:3]
    if learned is None:
        return torch.full(shape, 1 / len(projected), dtype=projected.dtype)
    if fusion == "softmax":
        shares: Tensor = learned.exp() / learned.exp().sum()
        return shares[:, None, None].expand(shape)
    scores: Tensor = (projected * learned).sum(dim=-1) / LEVEL_CHANNELS**0.5
    return scores.exp() / scores.exp().sum(dim=0)


def weighted_gradients(
    levels: Sequence[Tensor], weights: Sequence[Tensor], leaves: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """Gradients of the sum of all values of the levels, each times its weight."""
    total = torch.zeros((), dtype=torch.float64)
    for level, weight in zip(levels, weights, strict=True):
        total = total + (level * weight).sum()
    return torch.autograd.grad(total, leaves)


@pytest.mark.parametrize("separate", [True, False])
@pytest.mark.parametrize("norm", ["layer", None])
@pytest.mark.parametrize(
    ("fusion", "count", "groups"),
    [
        pytest.param("mean", 1, 3, id="mean, a layer for three groups"),
        pytest.param("mean", 2, 3, id="mean, two layers for three groups"),
        pytest.param("mean", 3, 3, id="mean, a layer per group"),
        pytest.param("mean", 4, 3, id="mean, four layers in three groups"),
        pytest.param("mean", 7, 2, id="mean, seven layers in two groups"),
        pytest.param("softmax", 4, 3, id="softmax, four layers in three groups"),
        pytest.param("softmax", 7, 2, id="softmax, seven layers in two groups"),
        pytest.param("pixel", 4, 3, id="pixel, four layers in three groups"),
        pytest.param("pixel", 7, 2, id="pixel, seven layers in two groups"),
    ],
)
def test_it_equals_the_plain_formula_and_so_do_its_gradients(
    fusion: Fusion, count: int, groups: int, norm: Literal["layer"] | None, separate: bool
) -> None:
    grouper = LayerGrouper(
        CHANNELS,
        num_layers=count,
        fpn_dim=LEVEL_CHANNELS,
        num_groups=groups,
        use_separate_bottlenecks=separate,
        norm=norm,
        fusion=fusion,
        dtype=torch.float64,
    )
    randomised(grouper, 0.5)
    layers = [x.requires_grad_() for x in random_layers(count)]

    levels = grouper(layers)

    expected = expected_levels(grouper, layers, norm, fusion)
    assert same(levels, expected, 1e-12)
    leaves = [*layers, *grouper.parameters()]
    weights = [torch.randn_like(level) for level in expected]
    gradients = weighted_gradients(levels, weights, leaves)
    expected_gradients = weighted_gradients(expected, weights, leaves)
    assert same(gradients, expected_gradients, 1e-10)


@pytest.mark.parametrize(
    ("count", "sizes"),
    [
        pytest.param(1, [1], id="one layer"),
        pytest.param(12, [4, 4, 4], id="even"),
        pytest.param(7, [3, 2, 2], id="one layer more"),
        pytest.param(29, [6, 6, 6, 6, 5], id="one layer less"),
    ],
)
def test_auto_groups_are_contiguous_even_and_shallow_first(count: int, sizes: list[int]) -> None:
    groups = LayerGrouper(CHANNELS, count, LEVEL_CHANNELS, num_groups=len(sizes)).groups
    in_order: list[int] = []
    for group in groups:
        in_order += group
    assert [len(group) for group in groups] == sizes
    assert in_order == list(range(count))


def test_layers_are_read_again_where_they_are_fewer_than_groups() -> None:
    grouper = LayerGrouper(CHANNELS, 3, LEVEL_CHANNELS, num_groups=5)
    assert grouper.groups == ((0,), (0,), (1,), (1,), (2,))


def test_layer_weights_are_the_softmax_of_what_was_learned() -> None:
    # groups of three and two layers
    grouper = LayerGrouper(CHANNELS, 5, LEVEL_CHANNELS, num_groups=2, fusion="softmax")
    with torch.no_grad():
        grouper.fusion_weights["1"].copy_(torch.tensor([1.0, 3.0]).log())

    first, second = grouper.layer_weights()

    assert torch.allclose(first, torch.tensor([1 / 3, 1 / 3, 1 / 3]))
    assert torch.allclose(second, torch.tensor([0.25, 0.75]))
    assert not second.requires_grad


@pytest.mark.parametrize("fusion", ["mean", "softmax"])
def test_layer_weights_say_what_a_layer_adds_to_its_group(fusion: Fusion) -> None:
    """A group is the sum of its projected layers, each times its weight."""
    grouper = LayerGrouper(
        CHANNELS,
        num_layers=3,
        fpn_dim=LEVEL_CHANNELS,
        num_groups=2,
        norm=None,
        fusion=fusion,
        dtype=torch.float64,
    )
    randomised(grouper)
    layers = random_layers(3)

    levels = grouper(layers)

    weights_of_groups = grouper.layer_weights()
    for group, weights, level in zip(grouper.groups, weights_of_groups, levels, strict=True):
        expected = torch.zeros_like(level)
        for layer, weight in zip(group, weights, strict=True):
            expected += weight.double() * grouper.bottleneck(layer)(layers[layer])
        assert torch.allclose(level, expected, atol=1e-7)


@pytest.fixture
def batches() -> list[list[Tensor]]:
    """Three batches of the tokens of two layers."""
    return [random_layers(2, torch.float32) for _ in range(3)]


def test_calibrated_norms_give_channels_of_mean_0_and_std_1(batches: list[list[Tensor]]) -> None:
    grouper = LayerGrouper(CHANNELS, 2, LEVEL_CHANNELS, num_groups=2)

    is_calibrated = grouper.calibrate(iter(batches))

    assert is_calibrated
    for layer in range(2):
        tokens = torch.cat([layers[layer].flatten(0, 1) for layers in batches])
        z = grouper.bottleneck(layer).norm(tokens)
        assert torch.allclose(z.mean(dim=0), torch.zeros(CHANNELS), atol=1e-4)
        assert torch.allclose(z.std(dim=0, correction=0), torch.ones(CHANNELS), atol=1e-3)


def test_a_shared_norm_is_calibrated_on_all_layers(batches: list[list[Tensor]]) -> None:
    grouper = LayerGrouper(
        CHANNELS, 2, LEVEL_CHANNELS, num_groups=2, use_separate_bottlenecks=False
    )

    is_calibrated = grouper.calibrate(iter(batches))

    assert is_calibrated
    tokens = torch.cat([torch.cat(layers).flatten(0, 1) for layers in batches])
    z = grouper.bottleneck(0).norm(tokens)
    assert torch.allclose(z.mean(dim=0), torch.zeros(CHANNELS), atol=1e-4)
    assert torch.allclose(z.std(dim=0, correction=0), torch.ones(CHANNELS), atol=1e-3)


@pytest.mark.parametrize("separate", [True, False])
def test_norms_that_are_set_are_not_calibrated_again(
    separate: bool, batches: list[list[Tensor]]
) -> None:
    grouper = LayerGrouper(
        CHANNELS, 2, LEVEL_CHANNELS, num_groups=2, use_separate_bottlenecks=separate
    )
    grouper.calibrate(iter(batches))
    before = copy.deepcopy(grouper.state_dict())
    others = [[3 * x + 1 for x in layers] for layers in batches]

    is_calibrated = grouper.calibrate(iter(others))

    assert not is_calibrated
    for name, value in grouper.state_dict().items():
        assert torch.equal(value, before[name])


def test_without_a_norm_nothing_is_calibrated(batches: list[list[Tensor]]) -> None:
    grouper = LayerGrouper(CHANNELS, 2, LEVEL_CHANNELS, num_groups=2, norm=None)
    assert not grouper.calibrate(iter(batches))


BATCH = 2
TOKENS = 70
WIDE = 24
NARROW = 5


@pytest.mark.parametrize(
    "rows",
    [
        pytest.param(1, id="one row per block"),
        pytest.param(33, id="a part of a sample per block"),
        pytest.param(10_000, id="all rows in one block"),
    ],
)
@pytest.mark.parametrize("learns", [False, True], ids=["frozen tokens", "tokens with gradients"])
def test_values_and_gradients_are_those_of_the_modules(
    rows: int, learns: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(fused.BLOCK_BYTES, "cpu", rows * WIDE * 8)
    norm = randomised(nn.LayerNorm(WIDE, eps=1e-6, dtype=torch.float64), 1.0)
    linear = nn.Linear(WIDE, NARROW, dtype=torch.float64)
    x = torch.randn(BATCH, TOKENS, WIDE, dtype=torch.float64, requires_grad=learns)
    share = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    leaves = [*norm.parameters(), *linear.parameters(), share]
    if learns:
        leaves.append(x)

    result = fused.norm_linear(x, norm, linear, share)
    gradients = torch.autograd.grad(result.square().sum(), leaves)

    expected = share * linear(norm(x))
    expected_gradients = torch.autograd.grad(expected.square().sum(), leaves)
    assert same(result, expected, 1e-10)
    assert same(gradients, expected_gradients, 1e-10)


@pytest.mark.parametrize("has_bias", [True, False])
def test_a_linear_layer_times_a_scalar_has_the_gradients_of_the_product(has_bias: bool) -> None:
    linear = nn.Linear(WIDE, NARROW, bias=has_bias, dtype=torch.float64)
    x = torch.randn(BATCH, TOKENS, WIDE, dtype=torch.float64, requires_grad=True)
    share = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    leaves = [x, share, *linear.parameters()]

    result = fused.scaled_linear(x, linear, share)
    gradients = torch.autograd.grad(result.square().sum(), leaves)

    expected = share * linear(x)
    expected_gradients = torch.autograd.grad(expected.square().sum(), leaves)
    assert same(result, expected, 1e-12)
    assert same(gradients, expected_gradients, 1e-12)


@pytest.mark.parametrize(
    ("fusion", "expected"),
    [
        pytest.param("mean", [], id="mean keeps nothing"),
        # the softmax of three scalars, and each scalar for a weight and for a bias
        pytest.param("softmax", [3, 1, 1, 1, 1, 1, 1], id="softmax keeps its scalars"),
    ],
)
def test_without_a_norm_no_tokens_are_kept_for_the_backward_pass(
    fusion: Fusion, expected: list[int]
) -> None:
    grouper = LayerGrouper(WIDE, 3, NARROW, num_groups=1, norm=None, fusion=fusion)
    layers = [torch.randn(BATCH, TOKENS, WIDE) for _ in range(3)]
    addresses = {x.data_ptr() for x in (*layers, *grouper.parameters())}
    kept_numbers = []

    def keep(x: Tensor) -> Tensor:
        if x.data_ptr() not in addresses:
            kept_numbers.append(x.numel())
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        _result = grouper(layers)[0]

    assert sorted(kept_numbers, reverse=True) == expected


@pytest.fixture
def narrow_grouper() -> LayerGrouper:
    """A grouper of one layer and one group, whose norm and linear layer run as one."""
    grouper = LayerGrouper(WIDE, 1, NARROW, num_groups=1)
    bottleneck = grouper.bottleneck(0)
    assert fused.is_fusable(torch.zeros(1, 4, WIDE), bottleneck.norm, bottleneck.linear)
    return grouper


def test_a_pruned_weight_is_used_and_learns(narrow_grouper: LayerGrouper) -> None:
    linear: Any = narrow_grouper.bottleneck(0).linear
    norm = narrow_grouper.bottleneck(0).norm
    prune.l1_unstructured(linear, "weight", 0.5)  # type: ignore[no-untyped-call]
    x = torch.randn(1, 4, WIDE)

    for _ in range(2):  # a graph that was freed is not used again
        [level] = narrow_grouper([x])
        level.sum().backward()

    is_kept = linear.weight_mask.bool()
    gradient = linear.weight_orig.grad
    assert torch.allclose(level, linear(norm(x)), atol=1e-5)
    assert gradient[is_kept].ne(0).all()
    assert gradient[~is_kept].eq(0).all()


def test_a_linear_layer_without_bias_gives_the_value_of_the_modules(
    narrow_grouper: LayerGrouper,
) -> None:
    bottleneck: Any = narrow_grouper.bottleneck(0)
    bottleneck.linear = nn.Linear(WIDE, NARROW, bias=False)
    randomised(bottleneck.norm, 1.0)
    x = torch.randn(1, 4, WIDE)

    [level] = narrow_grouper([x])

    assert torch.allclose(level, bottleneck.linear(bottleneck.norm(x)), atol=1e-5)


class Doubled(nn.Linear):
    """A linear layer with a forward of its own, as adapters have."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def test_a_linear_layer_of_another_class_is_called(narrow_grouper: LayerGrouper) -> None:
    bottleneck: Any = narrow_grouper.bottleneck(0)
    linear = bottleneck.linear
    doubled = Doubled(WIDE, NARROW)
    doubled.load_state_dict(linear.state_dict())
    bottleneck.linear = doubled
    x = torch.randn(1, 4, WIDE)

    [level] = narrow_grouper([x])

    assert torch.allclose(level, 2 * linear(bottleneck.norm(x)), atol=1e-5)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        pytest.param(torch.zeros(2, 4, WIDE), "got Tensor", id="a stack of layers"),
        pytest.param([torch.zeros(2, 4, WIDE)] * 2, "got 2 tensors", id="too many layers"),
    ],
)
def test_what_is_no_list_of_its_layers_is_named(
    given: Any, named: str, narrow_grouper: LayerGrouper
) -> None:
    with pytest.raises(ShapeError, match=f"{named}.*pass tokens.sequence"):
        narrow_grouper(given)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch.func's own
def test_second_derivatives_of_functional_calls_are_taken(narrow_grouper: LayerGrouper) -> None:
    x = torch.randn(1, 4, WIDE)
    weights = {name: weight.detach() for name, weight in narrow_grouper.named_parameters()}

    def sum_of_squares(given: dict[str, Tensor]) -> Tensor:
        [level] = torch.func.functional_call(narrow_grouper, given, ([x],))
        loss: Tensor = level.square().sum()
        return loss

    hessian = torch.func.hessian(sum_of_squares)(weights)

    # the bias is added to every one of the four tokens
    name = "bottlenecks.0.linear.bias"
    assert torch.allclose(hessian[name][name], 2 * 4 * torch.eye(NARROW), atol=1e-5)
