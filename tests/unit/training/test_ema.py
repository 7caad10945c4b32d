"""EMA against its recursion in float64."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dinoneck.training import EMA


def walk(model: nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))


@pytest.mark.parametrize("warmup", [True, False])
def test_it_follows_its_recursion(warmup: bool) -> None:
    model = nn.Linear(3, 2).double()
    average = EMA(model, decay=0.6, warmup=warmup)
    expected = model.weight.detach().clone()
    for t in range(20):
        walk(model)
        average.update(model)
        decay = min(0.6, (1 + t) / (10 + t)) if warmup else 0.6
        expected = decay * expected + (1 - decay) * model.weight.detach()
    assert torch.allclose(average.values["weight"], expected, rtol=1e-12)
    assert average.updates == 20


def test_averages_are_float32_and_hold_changes_that_bfloat16_cannot() -> None:
    model = nn.Linear(1, 1, bias=False).to(torch.bfloat16)
    nn.init.ones_(model.weight)
    average = EMA(model, decay=0.997, warmup=False)
    nn.init.constant_(model.weight, 1.5)
    average.update(model)
    assert average.values["weight"].dtype == torch.float32
    assert average.values["weight"].item() == pytest.approx(1.0 + 0.003 * 0.5, rel=1e-6)
    average.copy_to(model)
    assert model.weight.dtype == torch.bfloat16


def test_buffers_are_copied_and_frozen_weights_join_when_they_are_unfrozen() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    model[0].requires_grad_(False)
    average = EMA(model, decay=0.5, warmup=False)
    model(torch.randn(8, 2) + 3)
    average.update(model)
    assert "0.weight" not in average.values
    assert torch.equal(average.values["1.running_mean"], model[1].running_mean)
    model[0].requires_grad_(True)
    average.update(model)
    start = model[0].weight.detach().clone()
    walk(model)
    average.update(model)
    own = model[0].weight.detach().clone()
    assert torch.allclose(average.values["0.weight"], (start + own) / 2)
    with average.applied(model):
        assert torch.equal(model[0].weight, average.values["0.weight"])
    assert torch.equal(model[0].weight, own)
    other = EMA(model, decay=0.5, warmup=False)
    other.load_state_dict(average.state_dict())
    walk(model)
    for one in (average, other):
        one.update(model)
    assert all(torch.equal(value, other.values[name]) for name, value in average.values.items())
