"""Learned weights: the formula, its optimum, its bounds, and what is left out."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from dinoneck.losses import UncertaintyWeighting

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


@pytest.mark.parametrize("empty", [torch.tensor(0), torch.tensor(False), 0])
def test_what_counts_nowhere_is_left_out(empty: Tensor | int) -> None:
    weighting = weighting_at(0.5, -1.5, 2.0)
    losses = LOSSES | {"b": torch.tensor(math.nan, requires_grad=True), "a": LOSSES["a"].clone().requires_grad_()}
    total = weighting(losses, {"a": torch.tensor(3), "b": empty, "c": torch.tensor(True)})
    expected = sum(0.5 * math.exp(-s) * LOSSES[name].item() + 0.5 * s for name, s in (("a", 0.5), ("c", 2.0)))
    assert total.item() == pytest.approx(expected, rel=1e-6)
    total.backward()
    grad = weighting.log_variance.grad
    assert grad is not None
    assert grad[1] == 0
    assert grad[[0, 2]].abs().min() > 0
    assert losses["b"].grad == 0
    assert losses["a"].grad == pytest.approx(0.5 * math.exp(-0.5))


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
