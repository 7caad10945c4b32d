"""The single-scale baseline: a mix per point, and x3 itself where nothing was seen."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dinoneck.points import GatedFusion


def points(count: int = 9) -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(count, 5), torch.randn(count, 6), torch.arange(count) % 3 > 0


def test_the_formula() -> None:
    fusion = GatedFusion(6, 5, 5, hidden=4, dtype=torch.float64)
    x3, x2, valid = (value.double() if value.is_floating_point() else value for value in points())
    out, weights = fusion(x3, x2, valid), fusion.state_dict()

    def linear(name: str, row: Tensor) -> Tensor:
        return weights[f"{name}.weight"] @ row + weights[f"{name}.bias"]

    gates = []
    for i in range(9):
        h = F.gelu(linear("project", x2[i]))
        gate = 1 / (1 + torch.exp(-linear("gate_out", F.gelu(linear("gate_hidden", torch.cat((x3[i], h)))))))
        expected = (1 - gate) * x3[i] + gate * linear("read", h) if valid[i] else x3[i]
        gates += [gate.item()] * bool(valid[i])
        assert torch.allclose(out[i], expected, rtol=0, atol=1e-12)
    assert fusion.stats == pytest.approx({"coverage": 2 / 3, "fusion_2d_ratio": sum(gates) / len(gates)}, abs=1e-6)
    fusion(x3, x2, torch.zeros_like(valid))
    assert fusion.stats == {"coverage": 0.0, "fusion_2d_ratio": 0.0}


def test_unseen_points_keep_their_bits_and_teach_nothing() -> None:
    fusion = GatedFusion(6, 5, 5)
    x3, x2, valid = points(64)
    x3[::7] = -0.0
    x3.requires_grad_()
    out = fusion(x3, x2, valid)
    assert torch.equal(out[~valid].view(torch.int32), x3.detach()[~valid].view(torch.int32))
    (gradient,) = torch.autograd.grad(out[~valid].sum(), x3)
    assert torch.equal(gradient, (~valid).float()[:, None].expand_as(x3))
    other = torch.where(valid[:, None], x2, torch.randn_like(x2))
    assert torch.equal(fusion(x3, other, valid), out)
