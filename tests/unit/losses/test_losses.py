"""Losses: what a mask hides counts for nothing, and formulas are the textbook's."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from dinoneck.losses import masked_cross_entropy, masked_mse, masked_smooth_l1, ratio_mse, scale_invariant_log

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
