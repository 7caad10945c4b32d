"""Losses of values, maps and compositions: their formulas, masks, learned weights; the Gram anchor."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests import kit
from torch import Tensor

from dinoneck import Composition, TargetTransform, Task, Tokens
from dinoneck.codec import encode, normal
from dinoneck.losses import (
    CompositionLoss,
    DensityRegulariser,
    GramAnchor,
    TaskLoss,
    UncertaintyWeighting,
    dense_masked_mse,
    map_cross_entropy,
    masked_cross_entropy,
    masked_mse,
    masked_smooth_l1,
    ratio_mse,
    scale_invariant_log,
)

torch.manual_seed(0)
PRED = torch.randn(4, 3, dtype=torch.float64)
TRUE = torch.randn(4, 3, dtype=torch.float64)


@pytest.mark.parametrize(
    "mask", [torch.tensor([1, 0, 1, 1]), torch.rand(4, 3) > 0.4, torch.tensor([[1, 0, 1]])]
)
@pytest.mark.parametrize("loss", [masked_mse, masked_smooth_l1])
def test_masked_values_count_for_nothing(mask: torch.Tensor, loss) -> None:  # type: ignore[no-untyped-def]
    keep = (mask if mask.ndim == 2 else mask[:, None]).bool().expand(4, 3)
    pred = PRED.clone().requires_grad_()
    total = loss(pred, torch.where(keep, TRUE, torch.nan), mask)
    reference = {masked_mse: F.mse_loss, masked_smooth_l1: F.smooth_l1_loss}[loss]
    assert torch.allclose(total, reference(PRED[keep], TRUE[keep]))
    total.backward()
    assert (pred.grad[~keep] == 0).all()  # type: ignore[index]
    assert pred.grad[keep].abs().min() > 0  # type: ignore[index]


def test_everything_masked_is_zero_with_zero_gradient() -> None:
    none = torch.zeros(4, dtype=torch.bool)
    for loss in (masked_mse, masked_smooth_l1, ratio_mse):
        pred = PRED.clone().requires_grad_()
        total = loss(pred, torch.full_like(TRUE, torch.nan), none)
        total.backward()
        assert total.item() == 0
        assert (pred.grad == 0).all()
    pred = PRED.clone().requires_grad_()
    for target in (torch.full((4,), -1), torch.full((4, 3), torch.nan)):
        total = masked_cross_entropy(pred, target, none)
        total.backward()
        assert total.item() == 0
    assert (pred.grad == 0).all()
    assert masked_cross_entropy(PRED, torch.full((4,), 255), ignore_index=255).item() == 0


@pytest.mark.parametrize("lam", [0.0, 0.5, 1.0])
def test_the_depth_loss_is_equation_4_of_the_paper(lam: float) -> None:
    generator = torch.Generator().manual_seed(1)
    pred, depth = (
        torch.rand(3, 5, 7, generator=generator, dtype=torch.float64) + 0.1 for _ in range(2)
    )
    keep = torch.rand(3, 5, 7, generator=generator) > 0.3
    keep[2] = False  # an image without depth does not count
    values = []
    for i in (0, 1):
        d = pred[i][keep[i]].log() - depth[i][keep[i]].log()
        values.append(d.square().sum() / len(d) - lam * d.sum() ** 2 / len(d) ** 2)
    noisy = torch.where(
        keep, depth, torch.tensor([torch.nan, 0.0, -1.0]).repeat(35).reshape(3, 5, 7)
    )
    pred.requires_grad_()
    total = scale_invariant_log(pred, noisy, keep, lam)
    torch.testing.assert_close(total, torch.stack(values).mean(), rtol=1e-12, atol=0)
    total.backward()
    assert (pred.grad[~keep] == 0).all()  # type: ignore[index]
    assert pred.grad[keep].abs().min() > 0  # type: ignore[index]
    scaled = scale_invariant_log(7 * pred[:2], depth[:2], keep[:2], lam)
    assert torch.allclose(scaled, total) == (lam == 1)


def test_half_precision_is_compared_in_float32() -> None:
    pred = torch.full((2, 1), 800.0, dtype=torch.float16)
    assert masked_mse(pred, torch.zeros(2, 1, dtype=torch.float16)).item() == 640000.0


LOSSES = {"a": torch.tensor(4.0), "b": torch.tensor(0.25), "c": torch.tensor(1.0)}


def weighting_at(*values: float) -> UncertaintyWeighting:
    weighting = UncertaintyWeighting(["a", "b", "c"])
    with torch.no_grad():
        weighting.log_variance.copy_(torch.tensor(values))
        weighting.is_set.fill_(True)
    return weighting


def test_the_formula() -> None:
    s = (0.5, -1.5, 2.0)
    total = weighting_at(*s)({name: LOSSES[name] for name in ("c", "a", "b")})
    expected = sum(
        0.5 * math.exp(-x) * loss.item() + 0.5 * x
        for x, loss in zip(s, LOSSES.values(), strict=True)
    )
    assert total.item() == pytest.approx(expected, rel=1e-6)
    assert UncertaintyWeighting(["a"]).eval()({"a": torch.tensor(3.0)}).item() == 1.5, (
        "s is 0 until training sets it"
    )


def test_a_resumed_weighting_keeps_its_beginning_and_a_late_part_has_its_own() -> None:
    first = UncertaintyWeighting(["a", "b", "c"])
    first(LOSSES, {"a": 1, "b": 0, "c": 1})
    assert first.log_variance.tolist() == pytest.approx([math.log(4.0), 0.0, 0.0])
    resumed = UncertaintyWeighting(["a", "b", "c"])
    resumed.load_state_dict(first.state_dict())
    resumed({"a": torch.tensor(1.0), "b": torch.tensor(50.0), "c": torch.tensor(3.0)})
    set_late = pytest.approx([math.log(4.0), math.log(50.0), 0.0])
    assert resumed.log_variance.tolist() == set_late, "b counts from here on"
    resumed(LOSSES)
    assert resumed.log_variance.tolist() == set_late


@pytest.mark.parametrize("large", [26126.0, 1e-4])
def test_every_loss_begins_with_the_same_part(large: float) -> None:
    losses = {
        "composed": torch.tensor(large, requires_grad=True),
        "index": torch.tensor(0.5, requires_grad=True),
    }
    weighting = UncertaintyWeighting(list(losses))
    total = weighting(losses)
    assert weighting.log_variance.tolist() == pytest.approx(
        [math.log(large), math.log(0.5)], rel=1e-6
    )
    total.backward()
    for loss in losses.values():  # a change by one per cent of the loss moves the total by as much
        assert (loss * loss.grad).item() == pytest.approx(0.5, rel=1e-5)  # type: ignore[operator]
    assert weighting.log_variance.grad is not None
    assert weighting.log_variance.grad.abs().max() < 1e-6, "s rests there"
    weighting({"composed": torch.tensor(7.0), "index": torch.tensor(9.0)})
    assert weighting.log_variance[0].item() == pytest.approx(math.log(large), rel=1e-6), (
        "the first losses alone"
    )


def test_the_bound_holds_and_the_way_back_stays_open() -> None:
    weighting = weighting_at(15.0, -17.0, 0.0)
    weighting.eval()
    expected = 0.5 * (4 * math.exp(-12) + 0.25 * math.exp(12) + 1)
    assert weighting(LOSSES).item() == pytest.approx(expected, rel=1e-5)
    assert weighting.log_variance.tolist() == [15.0, -17.0, 0.0], "evaluation changes nothing"
    weighting.train()
    assert weighting(LOSSES).item() == pytest.approx(expected, rel=1e-5)
    assert weighting.log_variance.tolist() == [12.0, -12.0, 0.0]
    weighting(LOSSES).backward()
    grad = weighting.log_variance.grad
    assert grad is not None
    assert grad[0].item() == pytest.approx(0.5 - 0.5 * 4 * math.exp(-12), rel=1e-5)
    assert grad[1].item() == pytest.approx(0.5 - 0.5 * 0.25 * math.exp(12), rel=1e-5)


OWN = torch.randn(2, 6, 5, dtype=torch.float64)
REFERENCE = torch.randn(2, 6, 5, dtype=torch.float64)


def plain(tokens: torch.Tensor, reference: torch.Tensor) -> float:
    """Entry by entry, in Python."""

    def entry(x: torch.Tensor, b: int, i: int, j: int) -> float:
        u, v = x[b, i].tolist(), x[b, j].tolist()
        value = sum(p * q for p, q in zip(u, v, strict=True))
        return value / (math.sqrt(sum(p * p for p in u)) * math.sqrt(sum(q * q for q in v)))

    batch, count, _ = tokens.shape
    errors = [
        (entry(tokens, b, i, j) - entry(reference, b, i, j)) ** 2
        for b in range(batch)
        for i in range(count)
        for j in range(count)
    ]
    return sum(errors) / len(errors)


def test_it_is_the_plain_formula() -> None:
    assert GramAnchor()(OWN, REFERENCE).item() == pytest.approx(plain(OWN, REFERENCE), rel=1e-12)


def with_prefix(patches: torch.Tensor, grid: tuple[int, int]) -> Tokens:
    others = torch.randn(2, 3, patches.shape[-1], dtype=patches.dtype)
    return kit.tokens_from(torch.cat([others, patches], dim=1), *grid, 3)


@pytest.mark.parametrize("grid", [(4, 6), (3, 5), (1, 2), (5, 7)])
def test_a_reference_of_another_grid_is_resized(grid: tuple[int, int]) -> None:
    rows, cols = grid
    patches = torch.randn(2, rows * cols, 8, dtype=torch.float64, requires_grad=True)
    own = OWN.clone().requires_grad_()
    loss = GramAnchor()(with_prefix(own, (2, 3)), with_prefix(patches, grid))
    maps = patches.detach().reshape(2, rows, cols, 8).permute(0, 3, 1, 2)
    by_hand = (
        F.interpolate(maps, size=(2, 3), mode="bicubic", align_corners=False)
        .permute(0, 2, 3, 1)
        .reshape(2, 6, 8)
    )
    assert abs(loss.item() - plain(OWN, by_hand)) < 1e-12
    loss.backward()
    assert own.grad is not None
    assert patches.grad is None


torch.manual_seed(0)


PRED_MAPS = torch.randn(2, 3, 2, 4, dtype=torch.float64)


TRUE_MAPS = torch.randn(2, 3, 2, 4, dtype=torch.float64)


WEIGHT = torch.rand(2, 2, 4, dtype=torch.float64) * 5


WEIGHT[0, 1, 2] = WEIGHT[1, 0, 0] = 0.0


def dense_masked_smooth_l1(
    pred: Tensor, target: Tensor, weight: Tensor | None = None, beta: float = 1.0
) -> Tensor:
    task = Task("a", dim=pred.shape[1], kind="dense", loss="smooth_l1", beta=beta)
    return TaskLoss([task])({"a": pred}, {"a": target}, {} if weight is None else {"a": weight})[0]


def plain_mean(weight: Tensor, error: Callable[[float], float]) -> float:
    """Cell by cell, in Python."""
    above = below = 0.0
    for b, k, r, c in itertools.product(range(2), range(3), range(2), range(4)):
        w = float(weight[b, r, c])
        above += w * error(float(PRED_MAPS[b, k, r, c] - TRUE_MAPS[b, k, r, c]))
        below += w
    return above / below


def huber(beta: float) -> Callable[[float], float]:
    return lambda x: 0.5 * x * x / beta if abs(x) < beta else abs(x) - 0.5 * beta


@pytest.mark.parametrize("weight", [WEIGHT, WEIGHT > 1.5, None])
def test_dense_losses_are_the_weighted_mean(weight: Tensor | None) -> None:
    own, weight = weight, torch.ones(2, 2, 4) if weight is None else weight
    assert dense_masked_mse(PRED_MAPS, TRUE_MAPS, own).item() == pytest.approx(
        plain_mean(weight, lambda x: x * x), rel=1e-12
    )
    for beta in (0.4, 1.0, 3.0):
        loss = dense_masked_smooth_l1(PRED_MAPS, TRUE_MAPS, weight, beta)
        assert loss.item() == pytest.approx(plain_mean(weight, huber(beta)), rel=1e-12)
    assert torch.allclose(
        dense_masked_mse(PRED_MAPS, TRUE_MAPS, 7 * weight),
        dense_masked_mse(PRED_MAPS, TRUE_MAPS, weight),
    )


@pytest.mark.parametrize("loss", [dense_masked_mse, dense_masked_smooth_l1])
@pytest.mark.parametrize("nothing", [torch.nan, torch.inf])
def test_cells_without_weight_count_for_nothing(
    loss: Callable[..., Tensor], nothing: float
) -> None:
    empty = (WEIGHT == 0)[:, None].expand_as(PRED_MAPS)
    pred = torch.where(empty, nothing, PRED_MAPS).requires_grad_()
    total = loss(pred, torch.where(empty, nothing, TRUE_MAPS), WEIGHT)
    assert torch.allclose(total, loss(PRED_MAPS, TRUE_MAPS, WEIGHT))
    total.backward()
    assert (pred.grad[empty] == 0).all()  # type: ignore[index]
    assert pred.grad[~empty].abs().min() > 0  # type: ignore[index]
    assert loss(pred, TRUE_MAPS, torch.ones(2, 2, 4)).isfinite().item() is False


def test_cross_entropy_of_cells_is_torchs() -> None:
    labels = torch.randint(0, 3, (2, 2, 4))
    assert torch.allclose(map_cross_entropy(PRED_MAPS, labels), F.cross_entropy(PRED_MAPS, labels))
    shares = TRUE_MAPS.softmax(dim=1)
    assert torch.allclose(map_cross_entropy(PRED_MAPS, shares), F.cross_entropy(PRED_MAPS, shares))


def test_regularisers_are_means_over_cells_and_pairs() -> None:
    pairs = [
        float(PRED_MAPS[b, k, r, c] - PRED_MAPS[b, k, r + i, c + j]) ** 2
        for b, k, r, c, (i, j) in itertools.product(
            range(2), range(3), range(2), range(4), ((0, 1), (1, 0))
        )
        if r + i < 2 and c + j < 4
    ]
    values = PRED_MAPS.flatten().tolist()
    parts = DensityRegulariser("m", 1.0, 2.0, 3.0).parts(PRED_MAPS)
    assert parts["m.smoothness"].item() == pytest.approx(sum(pairs) / len(pairs), rel=1e-12)
    assert parts["m.sparsity"].item() == pytest.approx(
        2 * sum(map(abs, values)) / len(values), rel=1e-12
    )
    assert parts["m.negativity"].item() == pytest.approx(
        3 * sum(max(-v, 0) for v in values) / len(values), rel=1e-12
    )
    one = torch.full((2, 3, 1, 1), -2.0)
    assert [part.item() for part in DensityRegulariser("m", 1.0, 1.0, 1.0).parts(one).values()] == [
        0,
        2,
        2,
    ]


torch.manual_seed(0)


MEAN, STD = 210.0, 130.0


# the transform, its inverse without the area, and what an error is divided by
UNITS: dict[str, tuple[TargetTransform, Callable[[float], float], float]] = {
    "area": (TargetTransform(area=0.21, mean=MEAN, std=STD), lambda x: x * STD + MEAN, STD),
    "no area": (TargetTransform(mean=MEAN, std=STD), lambda x: x * STD + MEAN, STD),
    "no scale": (TargetTransform(), lambda x: x, 1.0),
    "log": (
        TargetTransform(0.21, True, 5.0, 0.7),
        lambda x: math.expm1(x * 0.7 + 5.0),
        0.7 * math.exp(5.0),
    ),
}


OUTPUTS = {
    "total": torch.randn(4, 1, dtype=torch.float64),
    "ratio": torch.randn(4, 3, dtype=torch.float64),
}


TARGETS = {
    "total": torch.randn(4, 1, dtype=torch.float64),
    "ratio": torch.randn(4, 3, dtype=torch.float64).softmax(dim=1),
}


PARTS, SUMS = (
    ("clover", "dead", "green"),
    {"GDM": ("clover", "green"), "total": ("clover", "dead", "green")},
)


FIVE = Composition(PARTS, SUMS, "five", "total", "ratio")  # type: ignore[arg-type]


WEIGHTS = (0.1, 0.1, 0.1, 0.2, 0.5)


def five(total: float, shares: list[float]) -> list[float]:
    """Clover, dead, green, GDM, total."""
    clover, dead, green = (total * share for share in shares)
    return [clover, dead, green, clover + green, clover + dead + green]


def plain_composed(
    loss: CompositionLoss, units: str, target: list[list[float]] | None = None
) -> float:
    """Sample by sample, in Python; grams per square metre."""
    result, (_, natural, scale) = 0.0, UNITS[units]
    for k in range(5):
        errors = []
        for b in range(4):
            logits = OUTPUTS["ratio"][b].tolist()
            whole = sum(map(math.exp, logits))
            pred = five(natural(OUTPUTS["total"][b].item()), [math.exp(x) / whole for x in logits])
            true = five(natural(TARGETS["total"][b].item()), TARGETS["ratio"][b].tolist())
            x = (pred[k] - (true if target is None else target[b])[k]) / scale
            errors.append(x * x if loss.loss == "mse" else huber(loss.beta)(x))
        result += (loss.weights or (0.2,) * 5)[k] * sum(errors) / len(errors)
    return result


def run(own: CompositionLoss, units: str, **targets: torch.Tensor) -> torch.Tensor:
    tasks = Task("total", transform=UNITS[units][0]), Task("ratio", dim=3, kind="ratio")
    return TaskLoss(tasks, [own])(OUTPUTS, TARGETS | targets)[1][own.name]


def test_the_five_outputs_add_up_in_their_order() -> None:
    composition = FIVE
    assert composition.names == ("clover", "dead", "green", "GDM", "total")
    total, logits = (
        torch.rand(6, 1, dtype=torch.float64) * 185,
        torch.randn(6, 3, dtype=torch.float64),
    )
    composed = composition(total, logits)
    for b in range(6):
        assert composed[b].tolist() == pytest.approx(
            five(total[b].item(), logits[b].softmax(0).tolist()), rel=1e-12
        )
    single = composition(torch.tensor([[60.0]]), torch.tensor([[0.0, math.log(2), math.log(3)]]))
    assert single.tolist()[0] == pytest.approx([10.0, 20.0, 30.0, 40.0, 60.0])
    assert torch.equal(composition.of_shares(total, logits.softmax(dim=1)), composed)
    assert torch.autograd.gradcheck(composition, (total.requires_grad_(), logits.requires_grad_()))


def test_any_parts_and_sums_and_their_forms() -> None:
    as_dict = Composition(parts=["a", "b"], sums={"both": ["b", "a"], "second": ("b",)})  # type: ignore[arg-type, dict-item]
    assert as_dict == Composition(parts=("a", "b"), sums=(("both", ("b", "a")), ("second", ("b",))))
    assert as_dict(torch.tensor([[8.0]]), torch.zeros(1, 2)).tolist() == [[4.0, 4.0, 8.0, 4.0]]
    loss = CompositionLoss(FIVE, weights=WEIGHTS, loss="smooth_l1")
    for value in (as_dict, FIVE, loss):
        assert (
            normal(type(value), json.loads(json.dumps(encode(value), sort_keys=True)), "value")
            == value
        )


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"weights": WEIGHTS},
        {"loss": "smooth_l1"},
        {"weights": WEIGHTS, "loss": "smooth_l1", "beta": 0.3},
    ],
)
@pytest.mark.parametrize("units", UNITS)
def test_the_loss_is_the_plain_formula_in_grams_per_square_metre(
    units: str, options: dict[str, Any]
) -> None:
    loss = CompositionLoss(FIVE, **options)
    assert run(loss, units).item() == pytest.approx(plain_composed(loss, units), rel=1e-10)
    own = torch.rand(4, 5, dtype=torch.float64) * 300
    assert run(loss, units, five=own).item() == pytest.approx(
        plain_composed(loss, units, own.tolist()), rel=1e-10
    )


def test_parts_that_match_a_total_keep_their_shares() -> None:
    composed = FIVE.of_shares(torch.tensor([[10.0], [0.0]]), torch.tensor([[0.2, 0.3, 0.5]] * 2))
    matched = FIVE.rescaled_to(composed, torch.tensor([[40.0], [0.0]]))
    assert matched.tolist()[0] == pytest.approx([8.0, 12.0, 20.0, 28.0, 40.0])
    assert matched.tolist()[1] == [0.0] * 5
