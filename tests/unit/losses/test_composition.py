"""Composed outputs add up exactly, in the right order and units; their loss is the plain formula."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from dinoneck import Composition, TargetTransform, Task
from dinoneck.codec import encode, normal
from dinoneck.losses import CompositionLoss, TaskLoss

torch.manual_seed(0)
AREA, MEAN, STD = 0.21, 210.0, 130.0
TASKS = (Task("total", transform=TargetTransform(area=AREA, mean=MEAN, std=STD)), Task("ratio", dim=3, kind="ratio"))
OUTPUTS = {"total": torch.randn(4, 1, dtype=torch.float64), "ratio": torch.randn(4, 3, dtype=torch.float64)}
TARGETS = {
    "total": torch.randn(4, 1, dtype=torch.float64),
    "ratio": torch.randn(4, 3, dtype=torch.float64).softmax(dim=1),
}
PARTS, SUMS = ("clover", "dead", "green"), {"GDM": ("clover", "green"), "total": ("clover", "dead", "green")}
FIVE = Composition(PARTS, SUMS, "five", "total", "ratio")  # type: ignore[arg-type]
WEIGHTS = (0.1, 0.1, 0.1, 0.2, 0.5)


def five(total: float, shares: list[float]) -> list[float]:
    """Clover, dead, green, GDM, total."""
    clover, dead, green = (total * share for share in shares)
    return [clover, dead, green, clover + green, clover + dead + green]


def plain(loss: CompositionLoss, rows: list[int], target: list[list[float]] | None = None) -> float:
    """Sample by sample, in Python; grams per square metre."""
    result = 0.0
    for k in range(5):
        errors = []
        for b in rows:
            logits = OUTPUTS["ratio"][b].tolist()
            whole = sum(map(math.exp, logits))
            pred = five(OUTPUTS["total"][b].item() * STD + MEAN, [math.exp(x) / whole for x in logits])
            true = five(TARGETS["total"][b].item() * STD + MEAN, TARGETS["ratio"][b].tolist())
            x = (pred[k] - (true if target is None else target[b])[k]) / STD
            if loss.loss == "mse":
                errors.append(x * x)
            else:
                errors.append(0.5 * x * x / loss.beta if abs(x) < loss.beta else abs(x) - 0.5 * loss.beta)
        result += (loss.weights or (0.2,) * 5)[k] * sum(errors) / len(errors)
    return result


def run(own: CompositionLoss, masks: dict[str, torch.Tensor] | None = None, **targets: torch.Tensor) -> torch.Tensor:
    _, parts = TaskLoss(TASKS, [own])(OUTPUTS, TARGETS | targets, masks)
    return parts[own.name]


def test_the_five_outputs_add_up_in_their_order() -> None:
    composition = FIVE
    assert composition.names == ("clover", "dead", "green", "GDM", "total")
    total, logits = torch.rand(6, 1, dtype=torch.float64) * 185, torch.randn(6, 3, dtype=torch.float64)
    composed = composition(total, logits)
    for b in range(6):
        assert composed[b].tolist() == pytest.approx(five(total[b].item(), logits[b].softmax(0).tolist()), rel=1e-12)
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
        assert normal(type(value), json.loads(json.dumps(encode(value), sort_keys=True)), "value") == value


@pytest.mark.parametrize(
    "options",
    [{}, {"weights": WEIGHTS}, {"loss": "smooth_l1"}, {"weights": WEIGHTS, "loss": "smooth_l1", "beta": 0.3}],
)  # fmt: skip
def test_the_loss_is_the_plain_formula_in_grams_per_square_metre(options: dict[str, Any]) -> None:
    loss = CompositionLoss(FIVE, **options)
    assert run(loss).item() == pytest.approx(plain(loss, [0, 1, 2, 3]), rel=1e-10)
    own = torch.rand(4, 5, dtype=torch.float64) * 300
    assert run(loss, five=own).item() == pytest.approx(plain(loss, [0, 1, 2, 3], own.tolist()), rel=1e-10)


def test_the_area_is_left_out_and_the_logarithm_is_not() -> None:
    loss = CompositionLoss(FIVE, loss="smooth_l1")
    target = torch.rand(4, 5, dtype=torch.float64) * 300
    results = []
    for transform in (TargetTransform(0.21, False, MEAN, STD), TargetTransform(None, False, MEAN, STD)):
        tasks = (replace(TASKS[0], transform=transform), TASKS[1])
        results.append(TaskLoss(tasks, [loss])(OUTPUTS, TARGETS | {"five": target})[1]["five"])
    assert torch.equal(*results)
    logarithmic = (replace(TASKS[0], transform=TargetTransform(0.21, True, 5.0, 0.7)), TASKS[1])
    grams = torch.expm1(OUTPUTS["total"] * 0.7 + 5.0)
    pred = torch.cat([grams * OUTPUTS["ratio"].softmax(1), torch.zeros(4, 2)], dim=1)
    pred[:, 3], pred[:, 4] = pred[:, 0] + pred[:, 2], pred[:, :3].sum(dim=1)
    error = F.smooth_l1_loss(pred / (0.7 * math.exp(5.0)), target / (0.7 * math.exp(5.0)), reduction="none")
    got = TaskLoss(logarithmic, [loss])(OUTPUTS, TARGETS | {"five": target})[1]["five"]
    assert torch.allclose(got, error.mean(), rtol=1e-6)


def test_parts_that_match_a_total_keep_their_shares() -> None:
    composed = FIVE.of_shares(torch.tensor([[10.0], [0.0]]), torch.tensor([[0.2, 0.3, 0.5]] * 2))
    matched = FIVE.rescaled_to(composed, torch.tensor([[40.0], [0.0]]))
    assert matched.tolist()[0] == pytest.approx([8.0, 12.0, 20.0, 28.0, 40.0])
    assert matched.tolist()[1] == [0.0] * 5
