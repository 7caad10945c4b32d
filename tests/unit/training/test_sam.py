"""SAM against its formula in float64, and the ways in which it is easily got wrong."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from dinoneck import DataError
from dinoneck.training import SAM


def closure_of(model: nn.Module, optimizer: torch.optim.Optimizer, loss: Callable[[], Tensor]) -> Callable[[], Tensor]:
    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    return closure


def published(weights: list[Tensor], loss: Callable[[list[Tensor]], Tensor], rho: float, lr: float) -> list[Tensor]:
    """The rule of the paper in plain float64: one norm over all weights, gradient descent by the second gradient."""
    first = torch.autograd.grad(loss(weights), weights)
    norm = torch.cat([g.flatten() for g in first]).norm()
    moved = [(w + rho * g / (norm + 1e-12)).detach().requires_grad_() for w, g in zip(weights, first, strict=True)]
    second = torch.autograd.grad(loss(moved), moved)
    return [(w - lr * g).detach().requires_grad_() for w, g in zip(weights, second, strict=True)]


def test_it_follows_the_published_rule_over_many_steps() -> None:
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1)).double()
    x, y = torch.randn(16, 3, dtype=torch.float64), torch.randn(16, 1, dtype=torch.float64)
    sam = SAM(model, torch.optim.SGD(model.parameters(), lr=0.05), rho=0.3)
    weights = [p.detach().clone().requires_grad_() for p in model.parameters()]

    def plain(w: list[Tensor]) -> Tensor:
        return ((x @ w[0].T + w[1]).tanh() @ w[2].T + w[3] - y).square().mean()

    for _ in range(10):
        sam.step(closure_of(model, sam, lambda: (model(x) - y).square().mean()))
        weights = published(weights, plain, 0.3, 0.05)
    for own, wanted in zip(model.parameters(), weights, strict=True):
        assert torch.allclose(own, wanted, rtol=1e-10, atol=1e-12)


def test_weights_come_back_after_an_error_in_the_second_pass() -> None:
    model, calls = nn.Linear(2, 1), [0]
    before = model.weight.detach().clone()
    sam = SAM(model, torch.optim.SGD(model.parameters(), lr=0.1))

    def closure() -> Tensor:
        calls[0] += 1
        if calls[0] == 2:
            assert not torch.equal(model.weight, before)
            raise RuntimeError("interrupted")
        sam.zero_grad()
        loss = model(torch.ones(1, 2)).square().sum()
        loss.backward()
        return loss

    with pytest.raises(RuntimeError, match="interrupted"):
        sam.step(closure)
    assert torch.equal(model.weight, before)


def test_batch_statistics_count_once_and_those_of_the_first_pass() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    twin = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    twin.load_state_dict(model.state_dict())
    x = torch.randn(8, 3)
    sam = SAM(model, torch.optim.SGD(model.parameters(), lr=0.1), rho=1.0)
    sam.step(closure_of(model, sam, lambda: (model(x) - 1).square().mean()))
    twin(x)
    for name, buffer in twin.named_buffers():
        assert torch.equal(dict(model.named_buffers())[name], buffer), name


def test_dropout_draws_the_same_masks_in_both_passes() -> None:
    model, masks = nn.Linear(4, 64), []
    sam = SAM(model, torch.optim.SGD(model.parameters(), lr=0.1))

    def loss() -> Tensor:
        masks.append(nn.functional.dropout(torch.ones(64)))
        return (model(torch.ones(1, 4)) * masks[-1]).square().mean()

    for _ in range(2):
        sam.step(closure_of(model, sam, loss))
    assert torch.equal(masks[0], masks[1]) and torch.equal(masks[2], masks[3])
    assert not torch.equal(masks[0], masks[2])


def test_a_gradient_that_is_not_finite_is_refused_and_moves_nothing() -> None:
    model = nn.Linear(2, 1)
    before = model.weight.detach().clone()
    sam = SAM(model, torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(DataError, match="nan"):
        sam.step(closure_of(model, sam, lambda: (model(torch.zeros(1, 2)) * torch.nan).sum()))
    assert torch.equal(model.weight, before)


def test_only_the_model_is_moved_and_all_parameters_step() -> None:
    """Parameters of the loss are in the base optimizer alone: not moved in between, stepped after."""
    model, own, seen = nn.Linear(1, 1, bias=False).double(), nn.Parameter(torch.tensor(2.0).double()), []
    nn.init.ones_(model.weight)
    sam = SAM(model, torch.optim.SGD([*model.parameters(), own], lr=0.1), rho=0.5)

    def loss() -> Tensor:
        seen.append((model.weight.item(), own.item()))
        return (own * model.weight.square()).sum()

    sam.step(closure_of(model, sam, loss))
    assert seen[1] == (pytest.approx(1.5, rel=1e-9), 2.0)
    assert own.item() == pytest.approx(2.0 - 0.1 * 1.5**2)
    assert model.weight.item() == pytest.approx(1.0 - 0.1 * 2 * 2.0 * 1.5)
