"""PatchMeanMLP and PatchMeanHead against plain formulas."""

from __future__ import annotations

import pytest
import torch
from tests.kit import tokens_from as tokens_of

from dinoneck import PatchMeanHead, PatchMeanMLP, TargetTransform, Task


def plain(mlp: PatchMeanMLP, x: torch.Tensor) -> torch.Tensor:
    """The published formula, written out in float64."""
    x = x.double()
    hidden = x @ mlp.hidden.weight.double().T + mlp.hidden.bias.double()
    hidden = torch.where(hidden > 0, hidden, 0.01 * hidden)
    out = hidden @ mlp.out.weight.double().T + mlp.out.bias.double()
    if mlp.activation == "relu":
        out = out.clamp_min(0)
    elif mlp.activation == "softplus":
        out = torch.log1p(out.exp())
    elif mlp.activation == "sigmoid":
        out = 1 / (1 + (-out).exp())
    return out


@pytest.mark.parametrize("activation", ["relu", "softplus", "sigmoid", None])
@pytest.mark.parametrize("out_dim", [1, 3])
def test_it_is_the_formula(activation: str | None, out_dim: int) -> None:
    mlp = PatchMeanMLP(16, 8, out_dim, activation)  # type: ignore[arg-type]
    x = torch.randn(3, 7, 16)
    assert torch.allclose(mlp.per_patch(x).double(), plain(mlp, x), atol=1e-6)
    assert torch.allclose(mlp(x).double(), plain(mlp, x).mean(dim=1), atol=1e-6)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_no_relu_head_is_dead_at_the_start(scale: float) -> None:
    """On tokens that share a large common part, as DINO's do, every patch must let gradients through."""
    for seed in range(200):
        torch.manual_seed(seed)
        mlp = PatchMeanMLP(64)
        x = (torch.randn(1, 1, 64) * 3 + torch.randn(4, 32, 64) * 0.3) * scale
        mlp(x).sum().backward()
        alive = mlp.per_patch(x) > 0
        assert alive.float().mean() > 0.95
        assert mlp.hidden.weight.grad.abs().max() > 0  # type: ignore[union-attr]


def test_predictions_and_maps_in_natural_units() -> None:
    task = Task("a", transform=TargetTransform(area=0.5, mean=3.0, std=2.0), minimum=0.0)
    head = PatchMeanHead(8, [task, Task("r", dim=3, kind="ratio")])
    tokens = tokens_of(torch.randn(2, 5 + 12, 8), 3, 4)
    predicted, maps = head.predict(tokens), head.predict_maps(tokens)
    expected = ((head(tokens)["a"] * 2 + 3) * 0.5).clamp_min(0)
    assert torch.allclose(predicted["a"], expected, atol=1e-6)
    assert not predicted["a"].requires_grad
    assert maps["a"].shape == (2, 1, 3, 4)
    assert torch.allclose(maps["a"].mean(dim=(2, 3)), ((head(tokens)["a"] * 2 + 3) * 0.5), atol=1e-5)
    assert torch.allclose(maps["a"][1, 0, 2, 1], (head.per_patch(tokens)["a"][1, 2 * 4 + 1, 0] * 2 + 3) * 0.5)
    assert torch.allclose(maps["r"].sum(dim=1), torch.ones(2, 3, 4))
