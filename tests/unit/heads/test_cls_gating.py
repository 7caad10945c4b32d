"""CLSGating and CLSGatingHead against the plain formula, and where a gate looks."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dinoneck import CLSGating


def plain_weights(gating: CLSGating, cls_token: torch.Tensor, patches: torch.Tensor) -> torch.Tensor:
    """The gate written out, patch by patch, of a gate at its own grid."""
    if gating.mode == "query":
        query = cls_token @ gating.query.weight.T + gating.query.bias
        keys = patches @ gating.key.weight.T
        logits = (query[:, None] * keys).sum(dim=-1) / gating.width**0.5
    else:
        hidden = cls_token @ gating.hidden.weight.T + gating.hidden.bias
        hidden = hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))
        logits = hidden @ gating.out.weight.T + gating.out.bias
    raised = (logits - logits.amax(dim=1, keepdim=True)).exp()
    return raised / raised.sum(dim=1, keepdim=True)


@pytest.mark.parametrize(("mode", "num_patches"), [("mlp", 12), ("resized", (3, 4)), ("query", None)])
@pytest.mark.parametrize("reduction", [1, 4])
def test_the_gate_is_the_formula(mode: Any, num_patches: Any, reduction: int) -> None:
    gating = CLSGating(16, num_patches, mode, reduction).double()
    cls_token, patches = torch.randn(3, 16).double() * 3, torch.randn(3, 12, 16).double()
    pooled, weights = gating(cls_token, patches, (3, 4))
    expected = plain_weights(gating, cls_token, patches)
    assert torch.allclose(weights, expected, rtol=0, atol=1e-12)
    assert torch.allclose(pooled, (patches * expected[..., None]).sum(dim=1), rtol=0, atol=1e-12)
    assert expected.std() > 0.01


def test_the_resized_logits_keep_their_places() -> None:
    """Logits that are r + 10 c at cell centres: at twice the grid they are so at the finer centres, edges held."""
    gating = CLSGating(4, (3, 5), "resized")
    index = (torch.arange(3.0)[:, None] + 10 * torch.arange(5.0)).flatten()
    with torch.no_grad():
        gating.out.weight.zero_(), gating.out.bias.copy_(index)
    logits = gating.place_logits(torch.randn(1, 4), 60, (6, 10)).reshape(6, 10)
    rows = ((torch.arange(6) + 0.5) / 2 - 0.5).clamp(0, 2)
    cols = ((torch.arange(10) + 0.5) / 2 - 0.5).clamp(0, 4)
    assert torch.allclose(logits, rows[:, None] + 10 * cols, atol=1e-5)
    weights = gating(torch.randn(1, 4), torch.randn(1, 60, 4), grid=(6, 10))[1]
    assert torch.allclose(weights, logits.flatten().softmax(0)[None], atol=1e-6)
    assert not torch.allclose(weights, gating(torch.randn(1, 4), torch.randn(1, 60, 4), grid=(10, 6))[1], atol=1e-3)
