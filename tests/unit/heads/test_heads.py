"""Heads against their formulas: MLPs per patch, gates, linear probes, readouts of pyramids, ensembles, scales."""

from __future__ import annotations

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
    FPNHead,
    HeadEnsemble,
    LinearHead,
    PatchMeanHead,
    PatchMeanMLP,
    TargetTransform,
    Task,
    Tokens,
)
from dinoneck.heads.head import TokenScale

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
def test_it_is_the_formula(activation: str | None, out_dim: int) -> None:
    mlp = PatchMeanMLP(16, 8, out_dim, activation)  # type: ignore[arg-type]
    x = torch.randn(3, 7, 16)
    assert torch.allclose(mlp.per_patch(x).double(), plain_mlp(mlp, x), atol=1e-6)
    assert torch.allclose(mlp(x).double(), plain_mlp(mlp, x).mean(dim=1), atol=1e-6)


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
    cls_token, patches = torch.randn(3, 16).double() * 3, torch.randn(3, 12, 16).double()
    pooled, weights = gating(cls_token, patches, (3, 4))
    expected = plain_gate(gating, cls_token, patches)
    assert torch.allclose(weights, expected, rtol=0, atol=1e-12)
    assert torch.allclose(pooled, (patches * expected[..., None]).sum(dim=1), rtol=0, atol=1e-12)
    assert expected.std() > 0.01


def test_the_resized_logits_keep_their_places() -> None:
    """Logits that are r + 10 c at cell centres: at twice the grid they are so at the finer centres, edges held."""
    gating = CLSGating(4, (3, 5), "resized")
    index = (torch.arange(3.0)[:, None] + 10 * torch.arange(5.0)).flatten()
    with torch.no_grad():
        gating.out.weight.zero_(), gating.out.bias.copy_(index)
    logits = gating.place_logits(torch.randn(1, 4), 60, (6, 10)).reshape(6, 10)
    rows = ((torch.arange(6) + 0.5) / 2 - 0.5).clamp(0, 2)
    cols = ((torch.arange(10) + 0.5) / 2 - 0.5).clamp(0, 4)
    assert torch.allclose(logits, rows[:, None] + 10 * cols, atol=1e-5)
    weights = gating(torch.randn(1, 4), torch.randn(1, 60, 4), grid=(6, 10))[1]
    assert torch.allclose(weights, logits.flatten().softmax(0)[None], atol=1e-6)
    assert not torch.allclose(
        weights, gating(torch.randn(1, 4), torch.randn(1, 60, 4), grid=(10, 6))[1], atol=1e-3
    )


@pytest.mark.parametrize(
    ("pool", "layers"), [("cls", 1), ("cls", 4), ("mean", 4), ("cls+mean", 1), ("cls+mean", 4)]
)
def test_pooled_logits_are_one_product_of_the_concatenation(pool: Any, layers: int) -> None:
    tokens, head = (
        kit.tokens(width=8, layers=layers, dtype=torch.float64),
        LinearHead(8, [STATE], layers, pool, dtype=torch.float64),
    )
    mean = tokens.sequence[-1][:, 5:].mean(dim=1)  # registers are left out
    parts = {"cls": [], "mean": [mean], "cls+mean": [mean]}[pool]
    x = torch.cat([*(x[:, 0] for x in tokens.sequence if pool != "mean"), *parts], dim=1)
    weight, bias = head.state_dict().values()
    assert torch.allclose(head(tokens)["state"], x @ weight.T + bias, rtol=0, atol=1e-12)


def test_upsampled_bins_are_those_of_the_upsampled_concatenation() -> None:
    tokens, bins = kit.tokens(width=8, layers=2, dtype=torch.float64), Bins(0.001, 10.0, 16)
    depth = Task("depth", kind="dense", unit="m", maximum=5.0)
    head = LinearHead(8, [depth], 2, None, use_cls=True, upsample=4, bins=bins, dtype=torch.float64)
    wide = torch.cat(
        [part for x in tokens.sequence for part in (x[:, 5:], x[:, :1].expand(-1, 15, -1))], dim=2
    )
    maps = F.interpolate(wide.transpose(1, 2).reshape(2, 32, 3, 5), scale_factor=4, mode="bilinear")
    weight, bias = head.state_dict().values()
    weights = (
        torch.einsum("bchw,kc->bkhw", maps, weight).add(bias[:, None, None]).clamp_min(0) + 0.1
    )
    shares = weights / weights.sum(dim=1, keepdim=True)
    expected = torch.einsum(
        "bkhw,k->bhw", shares, torch.linspace(0.001, 10.0, 16, dtype=torch.float64)
    )[:, None]
    assert torch.allclose(head(tokens)["depth"], expected, rtol=0, atol=1e-12)
    assert torch.allclose(
        head.predict_maps(tokens)["depth"], expected.clamp_max(5.0), rtol=0, atol=1e-12
    )


@pytest.mark.parametrize(
    ("spacing", "middle"), [("linear", 4.5), ("log", 8**0.5), ("mixed", (4.5 + 8**0.5) / 2)]
)
def test_bins_without_a_positive_logit_give_their_mean(spacing: Any, middle: float) -> None:
    bins = Bins(1.0, 8.0, 3, spacing, eps=1e-8)
    logits = torch.tensor([[-1.0, 2.0], [-1.0, 0.0], [-1.0, 6.0]], dtype=torch.float64).reshape(
        1, 3, 1, 2
    )
    expected = [(1 + middle + 8) / 3, (2 * 1 + 6 * 8) / 8]
    assert bins(logits).flatten().tolist() == pytest.approx(expected, rel=1e-7)


def fpn(*tasks: Task, layers: int = 2, **options: Any) -> FPNHead:
    return FPNHead(kit.WIDTH, tasks, layers, fpn_dim=8, **options).eval()


def test_density_maps_add_up_to_the_answer() -> None:
    mean = Task(
        "cover", kind="density", aggregate="mean", transform=TargetTransform(mean=2.0, std=3.0)
    )
    shifted = Task("count", kind="density", transform=TargetTransform(mean=5.0, std=2.0))
    for head in (fpn(MASS, mean, shifted), DenseHead(kit.WIDTH, (MASS, mean, shifted), 8)):
        tokens = kit.tokens(2, 5, 7, layers=2)
        values, maps = head.predict(tokens), head.predict_maps(tokens)
        assert torch.allclose(maps["mass"].sum(dim=(2, 3)), values["mass"], rtol=1e-5)
        assert torch.allclose(maps["count"].sum(dim=(2, 3)), values["count"], rtol=1e-4)
        assert torch.allclose(maps["cover"].mean(dim=(2, 3)), values["cover"], rtol=1e-5)
        assert (maps["mass"] >= 0).all(), "softplus without an offset is a mass everywhere"
        raw = head(tokens)
        assert torch.allclose(raw["mass.map"].sum(dim=(2, 3)), raw["mass"])


def test_patch_ratios_are_the_mean_of_the_cells_shares() -> None:
    head = fpn(RATIO, ratio_readout="patch")
    tokens = kit.tokens(2, 4, 5, layers=2)
    shares = head.predict(tokens)["ratio"]
    maps = head.predict_maps(tokens)["ratio"]
    assert maps.shape == (2, 3, 4, 5)
    assert torch.allclose(maps.sum(dim=1), torch.ones(2, 4, 5), atol=1e-6)
    assert torch.allclose(maps.mean(dim=(2, 3)), shares, atol=1e-6)
    assert "ratio" not in fpn(RATIO).predict_maps(tokens)


def test_members_are_averaged_in_natural_units() -> None:
    heads = [
        PatchMeanHead(
            8,
            [
                Task(
                    "a",
                    transform=TargetTransform(log1p=True, mean=float(i), std=1.0 + i),
                    minimum=0.5,
                )
            ],
        )
        for i in range(3)
    ]
    tokens = kit.tokens(width=8)
    expected = torch.stack([head.predict(tokens)["a"] for head in heads])
    ensemble = HeadEnsemble.from_heads(heads)
    assert torch.allclose(ensemble.predict(tokens)["a"], expected.mean(dim=0), rtol=1e-6)
    assert torch.allclose(ensemble(tokens)["a"], expected.mean(dim=0), rtol=1e-6)
    assert ensemble.tasks[0].transform is None
    weighted = HeadEnsemble.from_heads(heads, weights=[1.0, 0.0, 3.0])
    assert torch.allclose(
        weighted.predict(tokens)["a"], (expected[0] + 3 * expected[2]) / 4, rtol=1e-6
    )


def test_classes_leave_forward_as_logarithms_whose_softmax_is_the_mean() -> None:
    for kind in ("classification", "ratio"):
        heads = [PatchMeanHead(8, [Task("c", dim=3, kind=kind)]) for _ in range(3)]  # type: ignore[arg-type]
        ensemble, tokens = HeadEnsemble.from_heads(heads), kit.tokens(width=8)
        mean = torch.stack([head.predict(tokens)["c"] for head in heads]).mean(dim=0)
        assert torch.allclose(ensemble(tokens)["c"].softmax(dim=-1), mean, atol=1e-6)
        assert torch.allclose(
            ensemble.tasks[0].predict(ensemble(tokens)["c"]),
            ensemble.predict(tokens)["c"],
            atol=1e-6,
        )


def test_members_that_no_tokens_suit_are_refused() -> None:
    """Of different numbers of layers, without the block indices that each reads."""
    task = [Task("a")]
    plain, four, one = (
        PatchMeanHead(8, task),
        LinearHead(8, task, num_layers=4),
        LinearHead(8, task),
    )
    named = FPNHead(8, task, num_layers=3, layer_indices=(0, 2, 5), fpn_dim=8)
    for members in ([four, one], [plain, one, four], [HeadEnsemble([four]), one]):
        with pytest.raises(ConfigError, match="layers="):
            HeadEnsemble.from_heads(members)
    for members in ([plain, four], [four, four], [named, plain], [named, four]):
        HeadEnsemble.from_heads(members)
    assert HeadEnsemble.from_heads([four, one], layers=[(0, 1, 2, 3), (3,)]).layer_indices == (
        0,
        1,
        2,
        3,
    )
    with pytest.raises(ConfigError, match="for 2 members"):
        HeadEnsemble.from_heads([four, one], layers=[(0, 1, 2, 3)])


C = 16


def tokens_of(seed: int = 0) -> Tokens:
    """Two layers of different scales."""
    x = torch.randn(4, 11, C, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return kit.tokens_from([x, 3 * x + 3], 2, 3)


@pytest.mark.parametrize("make", [PatchMeanHead, partial(CLSGatingHead, mode="query")])
def test_a_measured_head_sees_standardised_channels(make: Any) -> None:
    head = make(C, [Task("mass")]).double().eval()
    batches = [tokens_of(seed) for seed in range(3)]
    patches = torch.cat([tokens.patches[-1].flatten(0, 1) for tokens in batches])
    mean, std = patches.mean(dim=0), patches.std(dim=0, correction=0)
    expected = head(kit.tokens_from((batches[0].sequence[-1] - mean) / std, 2, 3))["mass"]
    head.calibrate(iter(batches))
    assert torch.allclose(head.scale.mean, mean) and torch.allclose(head.scale.std, std)
    assert torch.allclose(head(batches[0])["mass"], expected, atol=1e-12)
    head.calibrate(iter([tokens_of(9)]))
    assert torch.allclose(head.scale.mean, mean), "a head that has a scale keeps it"


def test_tokens_pass_an_unmeasured_scale_bit_for_bit() -> None:
    scale, tokens = TokenScale(C), tokens_of().to(torch.float32)
    assert not scale.is_measured
    # the tokens themselves, and no copy of them
    assert scale(tokens).sequence[0] is tokens.sequence[-1]
    scale.measure([tokens])
    assert scale.is_measured
    scale.reset_parameters()
    assert not scale.is_measured
    with pytest.raises(DataError, match="not finite"):
        scale.measure([kit.tokens_from(torch.full((1, 11, C), torch.nan), 2, 3)])


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


def test_values_are_bounded_before_and_classes_resized_before_they_are_shares() -> None:
    tokens, classes = kit.tokens(1, 3, 5, layers=4), Task("class", dim=3, kind="segmentation")
    free = DPTHead(
        kit.WIDTH, [Task("depth", kind="dense"), classes], small(upsample="double")
    ).eval()
    with torch.no_grad():
        depth, logits = free.logits(tokens)
        middle = depth.median().item()
        head = DPTHead(
            kit.WIDTH, [Task("depth", kind="dense", maximum=middle), classes], free.neck
        ).eval()
        head.load_state_dict(free.state_dict())
        found = head.predict(tokens)
    size = (48, 80)
    bounded = nn.functional.interpolate(depth.clamp_max(middle), size=size, mode="bilinear")
    shares = nn.functional.interpolate(logits, size=size, mode="bilinear").softmax(dim=1)
    assert (found["depth"] - bounded).norm() <= 1e-5 * (bounded - bounded.mean()).norm()
    assert torch.allclose(found["class"], shares, atol=1e-6)


@pytest.mark.parametrize("modes", [(False, False), (True, False), (True, True)], ids=str)
def test_an_ensemble_leaves_the_modes_of_its_members_alone(modes: tuple[bool, bool]) -> None:
    """It is in training mode where a member is."""
    members = [PatchMeanHead(8, [Task("y")], hidden_dim=4).train(mode) for mode in modes]

    ensemble = HeadEnsemble(members)

    assert tuple(member.training for member in members) == modes
    assert ensemble.training == ensemble.heads.training == any(modes)
