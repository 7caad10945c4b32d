"""Composed outputs add up exactly, in the right order and units; their loss is the plain formula."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from dinoneck import Composition, TargetTransform, Task
from dinoneck.codec import encode, normal
from dinoneck.losses import CompositionLoss, TaskLoss

torch.manual_seed(0)
MEAN, STD = 210.0, 130.0
# the transform, its inverse without the area, and what an error is divided by
UNITS: dict[str, tuple[TargetTransform, Callable[[float], float], float]] = {
    "area": (TargetTransform(area=0.21, mean=MEAN, std=STD), lambda x: x * STD + MEAN, STD),
    "no area": (TargetTransform(mean=MEAN, std=STD), lambda x: x * STD + MEAN, STD),
    "no scale": (TargetTransform(), lambda x: x, 1.0),
    "log": (TargetTransform(0.21, True, 5.0, 0.7), lambda x: math.expm1(x * 0.7 + 5.0), 0.7 * math.exp(5.0)),
}
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


def plain(loss: CompositionLoss, units: str, target: list[list[float]] | None = None) -> float:
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
            if loss.loss == "mse":
                errors.append(x * x)
            else:
                errors.append(0.5 * x * x / loss.beta if abs(x) < loss.beta else abs(x) - 0.5 * loss.beta)
        result += (loss.weights or (0.2,) * 5)[k] * sum(errors) / len(errors)
    return result


def run(own: CompositionLoss, units: str, **targets: torch.Tensor) -> torch.Tensor:
    tasks = Task("total", transform=UNITS[units][0]), Task("ratio", dim=3, kind="ratio")
    return TaskLoss(tasks, [own])(OUTPUTS, TARGETS | targets)[1][own.name]


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
@pytest.mark.parametrize("units", UNITS)
def test_the_loss_is_the_plain_formula_in_grams_per_square_metre(units: str, options: dict[str, Any]) -> None:
    loss = CompositionLoss(FIVE, **options)
    assert run(loss, units).item() == pytest.approx(plain(loss, units), rel=1e-10)
    own = torch.rand(4, 5, dtype=torch.float64) * 300
    assert run(loss, units, five=own).item() == pytest.approx(plain(loss, units, own.tolist()), rel=1e-10)


def test_parts_that_match_a_total_keep_their_shares() -> None:
    composed = FIVE.of_shares(torch.tensor([[10.0], [0.0]]), torch.tensor([[0.2, 0.3, 0.5]] * 2))
    matched = FIVE.rescaled_to(composed, torch.tensor([[40.0], [0.0]]))
    assert matched.tolist()[0] == pytest.approx([8.0, 12.0, 20.0, 28.0, 40.0])
    assert matched.tolist()[1] == [0.0] * 5
