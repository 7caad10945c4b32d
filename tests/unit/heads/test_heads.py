"""Heads against their formulas: MLPs per patch, gates, linear probes, readouts of pyramids, ensembles, scales."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests import kit
from tests.unit.necks.test_dpt import small
from torch import Tensor, nn

from dinoneck import (
    Bins,
    CLSGating,
    CLSGatingHead,
    ConfigError,
    DataError,
    DenseHead,
    DPTHead,
    FeaturePyramid,
    FPNHead,
    HeadEnsemble,
    LinearHead,
    PatchMeanHead,
    PatchMeanMLP,
    PyramidHead,
    TargetTransform,
    Task,
    Tokens,
    register,
)
from dinoneck.heads import Head
from dinoneck.heads.head import TokenScale
from dinoneck.kinds import Kind
from dinoneck.layers.inputs import TokensLike, as_tokens
from dinoneck.necks import Neck

STATE = Task("state", dim=3, kind="classification")
RATIO = Task("ratio", dim=3, kind="ratio")
MASS = Task(
    "mass",
    kind="density",
    activation="softplus",
    unit="g",
    transform=TargetTransform(area=0.21, std=30.0),
)


def plain_mlp(mlp: PatchMeanMLP, x: torch.Tensor) -> torch.Tensor:
    """The published formula, written out in float64."""
    x = x.double()
    hidden = x @ mlp.hidden.weight.double().T + mlp.hidden.bias.double()
    hidden = torch.where(hidden > 0, hidden, 0.01 * hidden)
    out = hidden @ mlp.out.weight.double().T + mlp.out.bias.double()
    if mlp.activation == "relu":
        out = out.clamp_min(0)
    elif mlp.activation == "softplus":
        out = torch.log1p(out.exp())
    elif mlp.activation == "sigmoid":
        out = 1 / (1 + (-out).exp())
    return out


@pytest.mark.parametrize("activation", ["relu", "softplus", "sigmoid", None])
@pytest.mark.parametrize("out_dim", [1, 3])
def test_the_mlp_of_a_patch_is_the_formula(activation: Any, out_dim: int) -> None:
    mlp = PatchMeanMLP(16, 8, out_dim, activation)
    x = torch.randn(3, 7, 16)

    per_patch = mlp.per_patch(x)

    assert torch.allclose(per_patch.double(), plain_mlp(mlp, x), atol=1e-6)


@pytest.mark.parametrize("activation", ["relu", "softplus", "sigmoid", None])
@pytest.mark.parametrize("out_dim", [1, 3])
def test_the_answer_for_an_image_is_the_mean_over_its_patches(
    activation: Any, out_dim: int
) -> None:
    mlp = PatchMeanMLP(16, 8, out_dim, activation)
    x = torch.randn(3, 7, 16)

    answer = mlp(x)

    assert torch.allclose(answer.double(), plain_mlp(mlp, x).mean(dim=1), atol=1e-6)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_no_relu_head_is_dead_at_the_start(scale: float) -> None:
    """On tokens that share a large common part, as DINO's do, every patch must let gradients through."""
    for seed in range(40):
        torch.manual_seed(seed)
        mlp = PatchMeanMLP(64)
        x = (torch.randn(1, 1, 64) * 3 + torch.randn(4, 32, 64) * 0.3) * scale
        mlp(x).sum().backward()
        alive = mlp.per_patch(x) > 0
        assert alive.float().mean() > 0.95
        assert mlp.hidden.weight.grad.abs().max() > 0  # type: ignore[union-attr]


def plain_gate(gating: CLSGating, cls_token: torch.Tensor, patches: torch.Tensor) -> torch.Tensor:
    """The gate written out, patch by patch, of a gate at its own grid."""
    if gating.mode == "query":
        query = cls_token @ gating.query.weight.T + gating.query.bias
        keys = patches @ gating.key.weight.T
        logits = (query[:, None] * keys).sum(dim=-1) / gating.width**0.5
    else:
        hidden = cls_token @ gating.hidden.weight.T + gating.hidden.bias
        hidden = hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))
        logits = hidden @ gating.out.weight.T + gating.out.bias
    raised = (logits - logits.amax(dim=1, keepdim=True)).exp()
    return raised / raised.sum(dim=1, keepdim=True)


@pytest.mark.parametrize(
    ("mode", "num_patches"), [("mlp", 12), ("resized", (3, 4)), ("query", None)]
)
@pytest.mark.parametrize("reduction", [1, 4])
def test_the_gate_is_the_formula(mode: Any, num_patches: Any, reduction: int) -> None:
    gating = CLSGating(16, num_patches, mode, reduction).double()
    cls_token = torch.randn(3, 16).double() * 3
    patches = torch.randn(3, 12, 16).double()

    pooled, weights = gating(cls_token, patches, (3, 4))

    expected = plain_gate(gating, cls_token, patches)
    assert torch.allclose(weights, expected, rtol=0, atol=1e-12)
    assert torch.allclose(pooled, (patches * expected[..., None]).sum(dim=1), rtol=0, atol=1e-12)
    assert expected.std() > 0.01, "equal weights would show nothing"


@pytest.mark.parametrize(
    ("mode", "num_patches", "needed"),
    [
        pytest.param("resized", 6, r"needs \(rows, cols\)", id="a number for a grid"),
        pytest.param("mlp", (2, 3), "needs one number", id="a grid for a number"),
        pytest.param("resized", None, r"needs \(rows, cols\)", id="no grid"),
    ],
)
def test_a_gate_over_positions_says_how_its_mode_counts_them(
    mode: Any, num_patches: Any, needed: str
) -> None:
    with pytest.raises(ConfigError, match=rf"num_patches is .*; mode '{mode}' {needed}"):
        CLSGating(8, num_patches, mode)


@pytest.fixture
def places() -> CLSGating:
    """A gate whose logits are r + 10 c at the centres of a grid of 3 x 5 cells, whatever the token."""
    gating = CLSGating(4, (3, 5), "resized")
    index = (torch.arange(3.0)[:, None] + 10 * torch.arange(5.0)).flatten()
    with torch.no_grad():
        gating.out.weight.zero_()
        gating.out.bias.copy_(index)
    return gating


def test_the_resized_logits_keep_their_places(places: CLSGating) -> None:
    """At twice the grid they are r + 10 c at the finer centres, and held at the edges."""
    logits = places.place_logits(torch.randn(1, 4), 60, (6, 10)).reshape(6, 10)

    rows = ((torch.arange(6) + 0.5) / 2 - 0.5).clamp(0, 2)
    cols = ((torch.arange(10) + 0.5) / 2 - 0.5).clamp(0, 4)
    assert torch.allclose(logits, rows[:, None] + 10 * cols, atol=1e-5)


def test_the_resized_weights_are_the_softmax_of_the_resized_logits(places: CLSGating) -> None:
    logits = places.place_logits(torch.randn(1, 4), 60, (6, 10))

    _, weights = places(torch.randn(1, 4), torch.randn(1, 60, 4), grid=(6, 10))

    assert torch.allclose(weights, logits.flatten().softmax(0)[None], atol=1e-6)


def test_the_resized_weights_depend_on_the_grid_and_not_on_its_count(places: CLSGating) -> None:
    _, weights = places(torch.randn(1, 4), torch.randn(1, 60, 4), grid=(6, 10))

    _, of_turned_grid = places(torch.randn(1, 4), torch.randn(1, 60, 4), grid=(10, 6))

    assert not torch.allclose(weights, of_turned_grid, atol=1e-3)


@pytest.mark.parametrize(
    ("pool", "layers"),
    [
        ("cls", 1),
        ("cls", 4),
        ("mean", 4),
        ("cls+mean", 1),
        ("cls+mean", 4),
    ],
)
def test_pooled_logits_are_one_product_of_the_concatenation(pool: Any, layers: int) -> None:
    tokens = kit.tokens(width=8, layers=layers, dtype=torch.float64)
    head = LinearHead(8, [STATE], layers, pool, dtype=torch.float64)

    logits = head(tokens)["state"]

    parts = []
    if "cls" in pool:
        parts += [x[:, 0] for x in tokens.sequence]
    if "mean" in pool:
        parts.append(tokens.sequence[-1][:, 5:].mean(dim=1))  # registers are left out
    weight, bias = head.state_dict().values()
    expected = torch.cat(parts, dim=1) @ weight.T + bias
    assert torch.allclose(logits, expected, rtol=0, atol=1e-12)


def plain_depth(head: LinearHead, tokens: Tokens) -> Tensor:
    """The depth of a linear head on two layers, each with its CLS token: resized first, then the product."""
    parts = []
    for x in tokens.sequence:
        parts += [x[:, 5:], x[:, :1].expand(-1, 15, -1)]
    maps = torch.cat(parts, dim=2).transpose(1, 2).reshape(2, 32, 3, 5)
    maps = F.interpolate(maps, scale_factor=4, mode="bilinear")
    weight, bias = head.state_dict().values()
    logits = torch.einsum("bchw,kc->bkhw", maps, weight) + bias[:, None, None]
    weights = logits.clamp_min(0) + 0.1
    shares = weights / weights.sum(dim=1, keepdim=True)
    centres = torch.linspace(0.001, 10.0, 16, dtype=torch.float64)
    return torch.einsum("bkhw,k->bhw", shares, centres)[:, None]


def test_upsampled_bins_are_those_of_the_upsampled_concatenation() -> None:
    tokens = kit.tokens(width=8, layers=2, dtype=torch.float64)
    depth = Task("depth", kind="dense", unit="m", maximum=5.0)
    bins = Bins(0.001, 10.0, 16)
    head = LinearHead(8, [depth], 2, None, use_cls=True, upsample=4, bins=bins, dtype=torch.float64)

    output = head(tokens)["depth"]
    predicted = head.predict_maps(tokens)["depth"]

    expected = plain_depth(head, tokens)
    assert torch.allclose(output, expected, rtol=0, atol=1e-12)
    assert torch.allclose(predicted, expected.clamp_max(5.0), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("spacing", "middle"),
    [
        pytest.param("linear", 4.5, id="linear"),
        pytest.param("log", 8**0.5, id="log"),
        pytest.param("mixed", (4.5 + 8**0.5) / 2, id="mixed"),
    ],
)
def test_bins_without_a_positive_logit_give_their_mean(spacing: Any, middle: float) -> None:
    bins = Bins(1.0, 8.0, 3, spacing, eps=1e-8)
    no_positive = [-1.0, -1.0, -1.0]
    first_and_last = [2.0, 0.0, 6.0]
    logits = torch.tensor([no_positive, first_and_last], dtype=torch.float64)

    depths = bins(logits.T.reshape(1, 3, 1, 2))

    expected = [(1 + middle + 8) / 3, (2 * 1 + 6 * 8) / 8]
    assert depths.flatten().tolist() == pytest.approx(expected, rel=1e-7)


def fpn(*tasks: Task, layers: int = 2, **options: Any) -> FPNHead:
    return FPNHead(kit.WIDTH, tasks, layers, fpn_dim=8, **options).eval()


MEAN_COVER = Task(
    "cover", kind="density", aggregate="mean", transform=TargetTransform(mean=2.0, std=3.0)
)
SHIFTED_COUNT = Task("count", kind="density", transform=TargetTransform(mean=5.0, std=2.0))
DENSITIES = (MASS, MEAN_COVER, SHIFTED_COUNT)


@register
class AsTheyAre(Neck):
    """A neck of the user's own without parameters: its one level is the map of the patches."""

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.embed_dim = embed_dim
        self.out_channels = embed_dim
        self.patch_size = 16
        self.strides = (16.0,)

    def forward(
        self, tokens: TokensLike, images: Tensor | None = None, **plain: Any
    ) -> FeaturePyramid:
        maps = as_tokens(tokens, **plain, owner=self).last.maps()
        return FeaturePyramid(tuple(maps), self.strides)


@torch.no_grad()
def test_a_head_on_a_neck_without_parameters_has_the_dtype_that_was_asked_for() -> None:
    head = PyramidHead(neck=AsTheyAre(8), tasks=[Task("mass")], dtype=torch.float64).eval()
    tokens = kit.tokens(width=8, dtype=torch.float64)

    mass = head.predict(tokens)["mass"]

    pooled = nn.functional.layer_norm(tokens.patches[-1].mean(dim=1), (8,))
    expected = head.light[0](pooled)
    assert mass.dtype == torch.float64
    torch.testing.assert_close(mass, expected)


@pytest.fixture(params=["pyramid", "patches"])
def density_head(request: pytest.FixtureRequest) -> Head:
    """A head of a mass, a mean and a count, on a pyramid or on the patches."""
    if request.param == "pyramid":
        return fpn(*DENSITIES)
    return DenseHead(kit.WIDTH, DENSITIES, 8)


def test_density_maps_add_up_to_the_answer(density_head: Head) -> None:
    tokens = kit.tokens(2, 5, 7, layers=2)

    values = density_head.predict(tokens)
    maps = density_head.predict_maps(tokens)

    assert torch.allclose(maps["mass"].sum(dim=(2, 3)), values["mass"], rtol=1e-5)
    assert torch.allclose(maps["count"].sum(dim=(2, 3)), values["count"], rtol=1e-4)
    assert torch.allclose(maps["cover"].mean(dim=(2, 3)), values["cover"], rtol=1e-5)


def test_a_density_with_softplus_and_no_offset_is_a_mass_everywhere(density_head: Head) -> None:
    maps = density_head.predict_maps(kit.tokens(2, 5, 7, layers=2))

    assert (maps["mass"] >= 0).all()


def test_the_output_of_a_density_is_the_sum_of_its_map_before_the_transform_too(
    density_head: Head,
) -> None:
    output = density_head(kit.tokens(2, 5, 7, layers=2))

    assert torch.allclose(output["mass.map"].sum(dim=(2, 3)), output["mass"])


def test_patch_ratios_are_the_mean_of_the_cells_shares() -> None:
    head = fpn(RATIO, ratio_readout="patch")
    tokens = kit.tokens(2, 4, 5, layers=2)

    shares = head.predict(tokens)["ratio"]
    maps = head.predict_maps(tokens)["ratio"]

    assert maps.shape == (2, 3, 4, 5)
    assert torch.allclose(maps.sum(dim=1), torch.ones(2, 4, 5), atol=1e-6)
    assert torch.allclose(maps.mean(dim=(2, 3)), shares, atol=1e-6)


def test_ratios_of_the_whole_image_have_no_map() -> None:
    assert "ratio" not in fpn(RATIO).predict_maps(kit.tokens(2, 4, 5, layers=2))


@pytest.fixture
def logarithmic_heads() -> list[PatchMeanHead]:
    """Three heads of one number, each with a transform of its own."""
    heads = []
    for i in range(3):
        transform = TargetTransform(log1p=True, mean=float(i), std=1.0 + i)
        heads.append(PatchMeanHead(8, [Task("a", transform=transform, minimum=0.5)]))
    return heads


def test_members_are_averaged_in_natural_units(logarithmic_heads: list[PatchMeanHead]) -> None:
    tokens = kit.tokens(width=8)
    ensemble = HeadEnsemble.from_heads(logarithmic_heads)

    predicted = ensemble.predict(tokens)["a"]

    of_members = torch.stack([head.predict(tokens)["a"] for head in logarithmic_heads])
    assert torch.allclose(predicted, of_members.mean(dim=0), rtol=1e-6)


def test_an_ensemble_gives_natural_units_when_it_is_called(
    logarithmic_heads: list[PatchMeanHead],
) -> None:
    tokens = kit.tokens(width=8)

    ensemble = HeadEnsemble.from_heads(logarithmic_heads)

    assert ensemble.tasks[0].transform is None
    assert torch.allclose(ensemble(tokens)["a"], ensemble.predict(tokens)["a"], rtol=1e-6)


def test_members_are_averaged_with_their_weights(logarithmic_heads: list[PatchMeanHead]) -> None:
    tokens = kit.tokens(width=8)
    ensemble = HeadEnsemble.from_heads(logarithmic_heads, weights=[1.0, 0.0, 3.0])

    predicted = ensemble.predict(tokens)["a"]

    first, _, third = (head.predict(tokens)["a"] for head in logarithmic_heads)
    assert torch.allclose(predicted, (first + 3 * third) / 4, rtol=1e-6)


@pytest.mark.parametrize("kind", ["classification", "ratio"])
def test_classes_leave_forward_as_logarithms_whose_softmax_is_the_mean(kind: Kind) -> None:
    heads = [PatchMeanHead(8, [Task("c", dim=3, kind=kind)]) for _ in range(3)]
    ensemble = HeadEnsemble.from_heads(heads)
    tokens = kit.tokens(width=8)

    output = ensemble(tokens)["c"]

    mean = torch.stack([head.predict(tokens)["c"] for head in heads]).mean(dim=0)
    assert torch.allclose(output.softmax(dim=-1), mean, atol=1e-6)


@pytest.mark.parametrize("kind", ["classification", "ratio"])
def test_the_task_of_an_ensemble_makes_of_its_output_what_it_predicts(kind: Kind) -> None:
    heads = [PatchMeanHead(8, [Task("c", dim=3, kind=kind)]) for _ in range(3)]
    ensemble = HeadEnsemble.from_heads(heads)
    tokens = kit.tokens(width=8)

    predicted = ensemble.tasks[0].predict(ensemble(tokens)["c"])

    assert torch.allclose(predicted, ensemble.predict(tokens)["c"], atol=1e-6)


def any_layer() -> Head:
    """A head that reads the last layer of whatever tokens it gets."""
    return PatchMeanHead(8, [Task("a")])


def one_layer() -> Head:
    """A head of one layer, without the index of its block."""
    return LinearHead(8, [Task("a")])


def four_layers() -> Head:
    """A head of four layers, without the indices of their blocks."""
    return LinearHead(8, [Task("a")], num_layers=4)


def named_layers() -> Head:
    """A head of three layers that it names."""
    return FPNHead(8, [Task("a")], num_layers=3, layer_indices=(0, 2, 5), fpn_dim=8)


def ensemble_of_four_layers() -> Head:
    return HeadEnsemble([four_layers()])


@pytest.mark.parametrize(
    "members",
    [
        pytest.param([four_layers, one_layer], id="four and one"),
        pytest.param([any_layer, one_layer, four_layers], id="any, one and four"),
        pytest.param([ensemble_of_four_layers, one_layer], id="an ensemble of four, and one"),
    ],
)
def test_members_that_no_tokens_suit_are_refused(members: list[Callable[[], Head]]) -> None:
    """Of different numbers of layers, without the block indices that each reads."""
    heads = [make() for make in members]

    with pytest.raises(ConfigError, match="layers="):
        HeadEnsemble.from_heads(heads)


@pytest.mark.parametrize(
    "members",
    [
        pytest.param([any_layer, four_layers], id="any and four"),
        pytest.param([four_layers, four_layers], id="four and four"),
        pytest.param([named_layers, any_layer], id="named and any"),
        pytest.param([named_layers, four_layers], id="named and four"),
    ],
)
def test_members_that_some_tokens_suit_make_an_ensemble(
    members: list[Callable[[], Head]],
) -> None:
    heads = [make() for make in members]

    assert len(HeadEnsemble.from_heads(heads).heads) == 2


def test_layers_that_are_stated_tell_which_tokens_suit_all_members() -> None:
    ensemble = HeadEnsemble.from_heads([four_layers(), one_layer()], layers=[(0, 1, 2, 3), (3,)])

    assert ensemble.layer_indices == (0, 1, 2, 3)


def test_layers_are_stated_for_each_member() -> None:
    with pytest.raises(ConfigError, match="for 2 members"):
        HeadEnsemble.from_heads([four_layers(), one_layer()], layers=[(0, 1, 2, 3)])


C = 16


def tokens_of(seed: int = 0) -> Tokens:
    """Two layers of different scales."""
    x = torch.randn(4, 11, C, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return kit.tokens_from([x, 3 * x + 3], 2, 3)


makers = pytest.mark.parametrize(
    "make", [PatchMeanHead, partial(CLSGatingHead, mode="query")], ids=["mean", "gate"]
)


@makers
def test_a_measured_head_sees_standardised_channels(make: Any) -> None:
    head = make(C, [Task("mass")]).double().eval()
    batches = [tokens_of(seed) for seed in range(3)]
    patches = torch.cat([tokens.patches[-1].flatten(0, 1) for tokens in batches])
    mean = patches.mean(dim=0)
    std = patches.std(dim=0, correction=0)
    expected = head(kit.tokens_from((batches[0].sequence[-1] - mean) / std, 2, 3))["mass"]

    head.calibrate(iter(batches))

    assert torch.allclose(head.scale.mean, mean)
    assert torch.allclose(head.scale.std, std)
    assert torch.allclose(head(batches[0])["mass"], expected, atol=1e-12)


@makers
def test_a_head_that_has_a_scale_keeps_it(make: Any) -> None:
    head = make(C, [Task("mass")]).double().eval()
    head.calibrate(iter([tokens_of(0)]))
    mean = head.scale.mean.clone()

    head.calibrate(iter([tokens_of(9)]))

    assert torch.equal(head.scale.mean, mean)


def test_tokens_pass_an_unmeasured_scale_as_they_are() -> None:
    tokens = tokens_of().to(torch.float32)

    scaled = TokenScale(C)(tokens)

    # the tokens themselves, and no copy of them
    assert scaled.sequence[0] is tokens.sequence[-1]


def test_a_scale_knows_whether_it_is_measured() -> None:
    scale = TokenScale(C)
    assert not scale.is_measured

    scale.measure([tokens_of()])
    assert scale.is_measured

    scale.reset_parameters()
    assert not scale.is_measured


def test_tokens_that_are_not_finite_are_no_measure() -> None:
    tokens = kit.tokens_from(torch.full((1, 11, C), torch.nan), 2, 3)

    with pytest.raises(DataError, match="not finite"):
        TokenScale(C).measure([tokens])


@pytest.mark.parametrize("measured", [False, True])
def test_heads_with_scales_of_their_own_run_as_one_under_vmap(measured: bool) -> None:
    heads = [PatchMeanHead(C, [Task("mass")]) for _ in range(3)]
    tokens = tokens_of().to(torch.float32)
    if measured:
        for seed, head in enumerate(heads):
            head.calibrate([tokens_of(seed).to(torch.float32)])
    weights, buffers = torch.func.stack_module_state(heads)

    def run(weights: Any, buffers: Any) -> Tensor:
        outputs: dict[str, Tensor] = torch.func.functional_call(
            heads[0], (weights, buffers), (tokens,)
        )
        return outputs["mass"]

    stacked = torch.vmap(run)(weights, buffers)
    expected = torch.stack([head(tokens)["mass"] for head in heads])
    assert torch.allclose(stacked, expected, atol=1e-6)


# maps of two cells a patch, which are resized to the pixels of the image
FINER = small(upsample="double")
CLASSES = Task("class", dim=3, kind="segmentation")


@torch.no_grad()
def test_values_are_bounded_before_they_are_resized() -> None:
    tokens = kit.tokens(1, 3, 5, layers=4)
    unbounded = DPTHead(kit.WIDTH, [Task("depth", kind="dense"), CLASSES], FINER).eval()
    depth, _ = unbounded.logits(tokens)
    bound = depth.median().item()  # which cuts half of the values
    bounded = Task("depth", kind="dense", maximum=bound)
    head = DPTHead(kit.WIDTH, [bounded, CLASSES], FINER).eval()
    head.load_state_dict(unbounded.state_dict())

    predicted = head.predict(tokens)["depth"]

    expected = at_image_size(depth.clamp_max(bound), tokens)
    spread = (expected - expected.mean()).norm()  # small next to the values
    assert (predicted - expected).norm() <= 1e-5 * spread


@torch.no_grad()
def test_classes_are_resized_before_they_are_shares() -> None:
    tokens = kit.tokens(1, 3, 5, layers=4)
    head = DPTHead(kit.WIDTH, [CLASSES], FINER).eval()
    [logits] = head.logits(tokens)

    predicted = head.predict(tokens)["class"]

    expected = at_image_size(logits, tokens).softmax(dim=1)
    assert torch.allclose(predicted, expected, atol=1e-6)


def at_image_size(maps: Tensor, tokens: Tokens) -> Tensor:
    """Maps in the pixels of the image."""
    return nn.functional.interpolate(maps, size=tokens.image_size, mode="bilinear")


@pytest.mark.parametrize("modes", [(False, False), (True, False), (True, True)], ids=str)
def test_an_ensemble_leaves_the_modes_of_its_members_alone(modes: tuple[bool, bool]) -> None:
    """It is in training mode where a member is."""
    members = [PatchMeanHead(8, [Task("y")], hidden_dim=4).train(mode) for mode in modes]

    ensemble = HeadEnsemble(members)

    assert tuple(member.training for member in members) == modes
    assert ensemble.training == ensemble.heads.training == any(modes)
