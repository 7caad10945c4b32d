"""Losses: what a mask hides counts for nothing, formulas are the textbook's; learned weights; the Gram anchor."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from dinoneck import Tokens
from dinoneck.losses import (
    GramAnchor,
    UncertaintyWeighting,
    masked_cross_entropy,
    masked_mse,
    masked_smooth_l1,
    ratio_mse,
    scale_invariant_log,
)

torch.manual_seed(0)
PRED = torch.randn(4, 3, dtype=torch.float64)
TRUE = torch.randn(4, 3, dtype=torch.float64)


@pytest.mark.parametrize("mask", [torch.tensor([1, 0, 1, 1]), torch.rand(4, 3) > 0.4, torch.tensor([[1, 0, 1]])])
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
    pred, depth = (torch.rand(3, 5, 7, generator=generator, dtype=torch.float64) + 0.1 for _ in range(2))
    keep = torch.rand(3, 5, 7, generator=generator) > 0.3
    keep[2] = False  # an image without depth does not count
    values = []
    for i in (0, 1):
        d = pred[i][keep[i]].log() - depth[i][keep[i]].log()
        values.append(d.square().sum() / len(d) - lam * d.sum() ** 2 / len(d) ** 2)
    noisy = torch.where(keep, depth, torch.tensor([torch.nan, 0.0, -1.0]).repeat(35).reshape(3, 5, 7))
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
    expected = sum(0.5 * math.exp(-x) * loss.item() + 0.5 * x for x, loss in zip(s, LOSSES.values(), strict=True))
    assert total.item() == pytest.approx(expected, rel=1e-6)
    assert UncertaintyWeighting(["a"]).eval()({"a": torch.tensor(3.0)}).item() == 1.5, "s is 0 until training sets it"


def test_a_resumed_weighting_keeps_its_beginning_and_a_late_part_has_its_own() -> None:
    first = UncertaintyWeighting(["a", "b", "c"])
    first(LOSSES, {"a": 1, "b": 0, "c": 1})
    assert first.log_variances == pytest.approx({"a": math.log(4.0), "b": 0.0, "c": 0.0})
    resumed = UncertaintyWeighting(["a", "b", "c"])
    resumed.load_state_dict(first.state_dict())
    resumed({"a": torch.tensor(1.0), "b": torch.tensor(50.0), "c": torch.tensor(3.0)})
    assert resumed.log_variances == first.log_variances | {"b": pytest.approx(math.log(50.0))}, "b counts from here on"
    resumed({"a": torch.tensor(1.0), "b": torch.tensor(2.0), "c": torch.tensor(3.0)})
    assert resumed.log_variances["b"] == pytest.approx(math.log(50.0))


@pytest.mark.parametrize("large", [26126.0, 1e-4])
def test_every_loss_begins_with_the_same_part(large: float) -> None:
    losses = {"composed": torch.tensor(large, requires_grad=True), "index": torch.tensor(0.5, requires_grad=True)}
    weighting = UncertaintyWeighting(list(losses))
    total = weighting(losses)
    assert weighting.log_variances == pytest.approx({"composed": math.log(large), "index": math.log(0.5)}, rel=1e-6)
    total.backward()
    for loss in losses.values():  # a change by one per cent of the loss moves the total by as much
        assert (loss * loss.grad).item() == pytest.approx(0.5, rel=1e-5)  # type: ignore[operator]
    assert weighting.log_variance.grad is not None
    assert weighting.log_variance.grad.abs().max() < 1e-6, "s rests there"
    weighting({"composed": torch.tensor(7.0), "index": torch.tensor(9.0)})
    assert weighting.log_variances["composed"] == pytest.approx(math.log(large), rel=1e-6), "the first losses alone"


def test_the_bound_holds_and_the_way_back_stays_open() -> None:
    weighting = weighting_at(15.0, -17.0, 0.0)
    assert list(weighting.log_variances.values()) == [12.0, -12.0, 0.0]
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


def make(patches: torch.Tensor, grid: tuple[int, int], prefix: float | None = None) -> Tokens:
    if prefix is None:
        return Tokens.from_patches(patches, grid=grid, patch_size=16)
    batch, _, width = patches.shape
    others = patches.new_full((batch, 3, width), prefix)
    return Tokens.from_patches(
        patches, grid=grid, patch_size=16, cls_token=others[:, 0], registers=others[:, 1:].contiguous()
    )


def test_it_is_the_plain_formula() -> None:
    loss = GramAnchor()(OWN, REFERENCE)
    assert loss.shape == ()
    assert loss.dtype == torch.float64
    assert abs(loss.item() - plain(OWN, REFERENCE)) < 1e-12 * loss.item()


@pytest.mark.parametrize("grid", [(4, 6), (3, 5), (1, 2), (5, 7)])
def test_a_reference_of_another_grid_is_resized(grid: tuple[int, int]) -> None:
    rows, cols = grid
    patches = torch.randn(2, rows * cols, 8, dtype=torch.float64, requires_grad=True)
    own = OWN.clone().requires_grad_()
    loss = GramAnchor()(make(own, (2, 3), 1.0), make(patches, grid, 2.0))
    maps = patches.detach().reshape(2, rows, cols, 8).permute(0, 3, 1, 2)
    by_hand = F.interpolate(maps, size=(2, 3), mode="bicubic", align_corners=False).permute(0, 2, 3, 1).reshape(2, 6, 8)
    assert abs(loss.item() - plain(OWN, by_hand)) < 1e-12
    loss.backward()
    assert own.grad is not None
    assert patches.grad is None
