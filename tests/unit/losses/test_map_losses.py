"""Losses of maps: weights weigh, NaN without weight is nothing, labels are never resized, regularisers are sums."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dinoneck import Task
from dinoneck.losses import DensityRegulariser, TaskLoss, dense_masked_mse, map_cross_entropy

torch.manual_seed(0)
PRED = torch.randn(2, 3, 2, 4, dtype=torch.float64)
TRUE = torch.randn(2, 3, 2, 4, dtype=torch.float64)
WEIGHT = torch.rand(2, 2, 4, dtype=torch.float64) * 5
WEIGHT[0, 1, 2] = WEIGHT[1, 0, 0] = 0.0


def dense_masked_smooth_l1(pred: Tensor, target: Tensor, weight: Tensor | None = None, beta: float = 1.0) -> Tensor:
    task = Task("a", dim=pred.shape[1], kind="dense", loss="smooth_l1", beta=beta)
    return TaskLoss([task])({"a": pred}, {"a": target}, {} if weight is None else {"a": weight})[0]


def plain(weight: Tensor, error: Callable[[float], float]) -> float:
    """Cell by cell, in Python."""
    above = below = 0.0
    for b, k, r, c in itertools.product(range(2), range(3), range(2), range(4)):
        w = float(weight[b, r, c])
        above += w * error(float(PRED[b, k, r, c] - TRUE[b, k, r, c]))
        below += w
    return above / below


def huber(beta: float) -> Callable[[float], float]:
    return lambda x: 0.5 * x * x / beta if abs(x) < beta else abs(x) - 0.5 * beta


@pytest.mark.parametrize("weight", [WEIGHT, WEIGHT > 1.5, None])
def test_dense_losses_are_the_weighted_mean(weight: Tensor | None) -> None:
    own, weight = weight, torch.ones(2, 2, 4) if weight is None else weight
    assert dense_masked_mse(PRED, TRUE, own).item() == pytest.approx(plain(weight, lambda x: x * x), rel=1e-12)
    for beta in (0.4, 1.0, 3.0):
        loss = dense_masked_smooth_l1(PRED, TRUE, weight, beta)
        assert loss.item() == pytest.approx(plain(weight, huber(beta)), rel=1e-12)
    assert torch.allclose(dense_masked_mse(PRED, TRUE, 7 * weight), dense_masked_mse(PRED, TRUE, weight))


@pytest.mark.parametrize("loss", [dense_masked_mse, dense_masked_smooth_l1])
@pytest.mark.parametrize("nothing", [torch.nan, torch.inf])
def test_cells_without_weight_count_for_nothing(loss: Callable[..., Tensor], nothing: float) -> None:
    empty = (WEIGHT == 0)[:, None].expand_as(PRED)
    pred = torch.where(empty, nothing, PRED).requires_grad_()
    total = loss(pred, torch.where(empty, nothing, TRUE), WEIGHT)
    assert torch.allclose(total, loss(PRED, TRUE, WEIGHT))
    total.backward()
    assert (pred.grad[empty] == 0).all()  # type: ignore[index]
    assert pred.grad[~empty].abs().min() > 0  # type: ignore[index]
    assert loss(pred, TRUE, torch.ones(2, 2, 4)).isfinite().item() is False


def test_cross_entropy_of_cells_is_torchs() -> None:
    labels = torch.randint(0, 3, (2, 2, 4))
    assert torch.allclose(map_cross_entropy(PRED, labels), F.cross_entropy(PRED, labels))
    shares = TRUE.softmax(dim=1)
    assert torch.allclose(map_cross_entropy(PRED, shares), F.cross_entropy(PRED, shares))


def test_regularisers_are_means_over_cells_and_pairs() -> None:
    pairs = [
        float(PRED[b, k, r, c] - PRED[b, k, r + i, c + j]) ** 2
        for b, k, r, c, (i, j) in itertools.product(range(2), range(3), range(2), range(4), ((0, 1), (1, 0)))
        if r + i < 2 and c + j < 4
    ]
    values = PRED.flatten().tolist()
    parts = DensityRegulariser("m", 1.0, 2.0, 3.0).parts(PRED)
    assert parts["m.smoothness"].item() == pytest.approx(sum(pairs) / len(pairs), rel=1e-12)
    assert parts["m.sparsity"].item() == pytest.approx(2 * sum(map(abs, values)) / len(values), rel=1e-12)
    assert parts["m.negativity"].item() == pytest.approx(3 * sum(max(-v, 0) for v in values) / len(values), rel=1e-12)
    one = torch.full((2, 3, 1, 1), -2.0)
    assert [part.item() for part in DensityRegulariser("m", 1.0, 1.0, 1.0).parts(one).values()] == [0, 2, 2]
