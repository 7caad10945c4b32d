"""The linear probe is one matrix product of what the papers concatenate."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests import kit

from dinoneck import Bins, LinearHead, Task, Tokens

STATE = Task("state", dim=3, kind="classification")


def tokens_of(layers: int) -> Tokens:
    return kit.tokens(width=8, layers=layers, dtype=torch.float64)


@pytest.mark.parametrize(("pool", "layers"), [("cls", 1), ("cls", 4), ("mean", 4), ("cls+mean", 1), ("cls+mean", 4)])
def test_pooled_logits_are_one_product_of_the_concatenation(pool: Any, layers: int) -> None:
    tokens, head = tokens_of(layers), LinearHead(8, [STATE], layers, pool, dtype=torch.float64)
    mean = tokens.sequence[-1][:, 5:].mean(dim=1)  # registers are left out
    parts = {"cls": [], "mean": [mean], "cls+mean": [mean]}[pool]
    x = torch.cat([*(x[:, 0] for x in tokens.sequence if pool != "mean"), *parts], dim=1)
    weight, bias = head.state_dict().values()
    assert torch.allclose(head(tokens)["state"], x @ weight.T + bias, rtol=0, atol=1e-12)


def test_upsampled_bins_are_those_of_the_upsampled_concatenation() -> None:
    tokens, bins = tokens_of(2), Bins(0.001, 10.0, 16)
    depth = Task("depth", kind="dense", unit="m", maximum=5.0)
    head = LinearHead(8, [depth], 2, None, use_cls=True, upsample=4, bins=bins, dtype=torch.float64)
    wide = torch.cat([part for x in tokens.sequence for part in (x[:, 5:], x[:, :1].expand(-1, 15, -1))], dim=2)
    maps = F.interpolate(wide.transpose(1, 2).reshape(2, 32, 3, 5), scale_factor=4, mode="bilinear")
    weight, bias = head.state_dict().values()
    weights = torch.einsum("bchw,kc->bkhw", maps, weight).add(bias[:, None, None]).clamp_min(0) + 0.1
    shares = weights / weights.sum(dim=1, keepdim=True)
    expected = torch.einsum("bkhw,k->bhw", shares, torch.linspace(0.001, 10.0, 16, dtype=torch.float64))[:, None]
    assert torch.allclose(head(tokens)["depth"], expected, rtol=0, atol=1e-12)
    assert torch.allclose(head.predict_maps(tokens)["depth"], expected.clamp_max(5.0), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("spacing", "middle"), [("linear", 4.5), ("log", 8**0.5), ("mixed", (4.5 + 8**0.5) / 2)])
def test_bins_without_a_positive_logit_give_their_mean(spacing: Any, middle: float) -> None:
    bins = Bins(1.0, 8.0, 3, spacing, eps=1e-8)
    logits = torch.tensor([[-1.0, 2.0], [-1.0, 0.0], [-1.0, 6.0]], dtype=torch.float64).reshape(1, 3, 1, 2)
    expected = [(1 + middle + 8) / 3, (2 * 1 + 6 * 8) / 8]
    assert bins(logits).flatten().tolist() == pytest.approx(expected, rel=1e-7)
