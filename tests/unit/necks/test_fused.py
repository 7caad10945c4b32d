"""The fused norm and projection of training: values, gradients, what it keeps, and where the modules run instead."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from dinoneck import LayerGrouper
from dinoneck.layers import fused

B, N, C, D = 2, 70, 24, 5


def parts(dtype: torch.dtype = torch.float64) -> tuple[nn.LayerNorm, nn.Linear]:
    torch.manual_seed(0)
    norm, linear = nn.LayerNorm(C, eps=1e-6, dtype=dtype), nn.Linear(C, D, dtype=dtype)
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    return norm, linear


@pytest.mark.parametrize("rows", [1, 33, 10_000])  # per block: one, a part of a sample, all
@pytest.mark.parametrize("learns", [False, True])
def test_values_and_gradients_are_those_of_the_modules(
    rows: int, learns: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(fused.BLOCK_BYTES, "cpu", rows * C * 8)
    norm, linear = parts()
    x = torch.randn(B, N, C, dtype=torch.float64, requires_grad=learns)
    share = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    leaves = [*norm.parameters(), *linear.parameters(), share, *([x] if learns else [])]
    results = []
    for run in (lambda: fused.norm_linear(x, norm, linear, share), lambda: share * linear(norm(x))):
        y = run()
        results.append([y, *torch.autograd.grad(y.square().sum(), leaves)])
    for ours, expected in zip(*results, strict=True):
        assert (ours - expected).abs().max() < 1e-10


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch.func's own
@pytest.mark.parametrize("way", ["prune", "functional_call"])
def test_the_modules_run_where_their_weights_are_others(way: str) -> None:
    grouper, x = LayerGrouper(C, 1, D, 1), torch.randn(1, 4, C)
    part = grouper.bottleneck(0)
    assert fused.is_fusable(x, part.norm, part.linear)
    if way == "prune":
        prune.l1_unstructured(part.linear, "weight", 0.5)
        for _ in range(2):
            grouper([x])[0].sum().backward()
    else:
        weights = {name: weight.detach() for name, weight in grouper.named_parameters()}
        hessian = torch.func.hessian(lambda given: torch.func.functional_call(grouper, given, ([x],))[0].square().sum())
        assert hessian(weights)["bottlenecks.0.linear.bias"]["bottlenecks.0.linear.bias"].shape == (D, D)
