"""Weights, tasks and loss of the published notebooks, each against their formulas written out."""

from __future__ import annotations

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from examples.biomass.published import cls_gating
from tests import kit
from torch import Tensor

from dinoneck import load_head, save_head

WIDTH, PLACES, HIDDEN = 32, 15, 24


def source_weights(seed: int = 0, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """A state dict with the source's names and shapes."""
    torch.manual_seed(seed)
    sizes = {
        "gate_mlp.0": (WIDTH // 4, WIDTH),
        "gate_mlp.2": (PLACES, WIDTH // 4),
        "shared_mlp.0": (HIDDEN, 2 * WIDTH),
        "main_head": (3, HIDDEN),
        "state_head": (4, HIDDEN),
        "height_head": (1, HIDDEN),
        "aux_head": (2, HIDDEN),
    }
    state = {f"{name}.weight": torch.randn(shape) / math.sqrt(shape[1]) for name, shape in sizes.items()}
    state |= {f"{name}.bias": torch.randn(shape[0]) for name, shape in sizes.items()}
    state |= {"shared_mlp.1.weight": torch.rand(HIDDEN) + 0.5, "shared_mlp.1.bias": torch.randn(HIDDEN)}
    return {name: value.to(dtype) for name, value in state.items()}


def source_forward(w: dict[str, Tensor], cls_token: Tensor, patches: Tensor) -> dict[str, Tensor]:
    """What the source's module computes, in eval mode."""

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    attention = torch.softmax(linear(F.gelu(linear(cls_token, "gate_mlp.0")), "gate_mlp.2"), dim=-1)
    pooled = (patches * attention.unsqueeze(-1)).sum(dim=1)
    x = linear(torch.cat([cls_token, pooled], dim=-1), "shared_mlp.0")
    x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    x = F.gelu(x * w["shared_mlp.1.weight"] + w["shared_mlp.1.bias"])
    predicted = {name: linear(x, f"{name}_head") for name in ("main", "state", "height", "aux")}
    return {name: value if name == "state" else F.softplus(value) for name, value in predicted.items()}


def test_the_gating_module_predicts_the_same(tmp_path: Path) -> None:
    state, path = source_weights(), tmp_path / "head.pt"
    torch.save(state, path)
    head = cls_gating(path, embed_dim=WIDTH, num_patches=PLACES, hidden_dim=HIDDEN)
    x = torch.randn(4, 20, WIDTH)
    predicted, expected = head(kit.tokens_from(x, 3, 5)), source_forward(state, x[:, 0], x[:, 5:])
    assert list(predicted) == ["main", "state", "height", "aux"]
    for name, values in expected.items():
        assert (predicted[name] - values).abs().max() <= 1e-6, name
    predicted = head.predict(kit.tokens_from(x, 3, 5))
    assert torch.allclose(predicted["state"], expected["state"].softmax(-1), atol=1e-6)
    save_head(tmp_path / "own", head)
    assert torch.equal(load_head(tmp_path / "own")(kit.tokens_from(x, 3, 5))["main"], predicted["main"])
