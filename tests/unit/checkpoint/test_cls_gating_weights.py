"""The published weights, tasks and loss, each against their formulas written out."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from dinoneck import Tokens, load_head, save_head
from dinoneck.checkpoint import cls_gating_tasks, import_cls_gating
from dinoneck.losses import TaskLoss

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


def tokens_of(x: Tensor) -> Tokens:
    return Tokens.from_sequence(x, image_size=(48, 80), patch_size=16, num_prefix_tokens=5)


@pytest.mark.parametrize("form", ["dict", "safetensors", "pt"])
def test_imported_weights_predict_the_same(form: str, tmp_path: Path) -> None:
    state = source_weights()
    source: Any = state
    if form == "safetensors":
        source = tmp_path / "head.safetensors"
        save_file(state, source)
    elif form == "pt":
        source = str(tmp_path / "head.pt")
        torch.save(state, source)
    head = import_cls_gating(source)
    x = torch.randn(4, 20, WIDTH)
    predicted, expected = head(tokens_of(x)), source_forward(state, x[:, 0], x[:, 5:])
    assert list(predicted) == ["main", "state", "height", "aux"]
    for name, values in expected.items():
        assert (predicted[name] - values).abs().max() <= 1e-6, name
    assert not head.training and head.config["num_patches"] == PLACES and head.config["hidden_dim"] == HIDDEN
    predicted = head.predict(tokens_of(x))
    assert torch.allclose(predicted["state"], expected["state"].softmax(-1), atol=1e-6)
    save_head(tmp_path / "own", head)
    assert torch.equal(load_head(tmp_path / "own")(tokens_of(x))["main"], predicted["main"])


def test_the_tasks_are_the_sources() -> None:
    main, state, height, aux = cls_gating_tasks()
    assert (main.labels, main.activation, main.unit) == (("Dry_Total_g", "GDM_g", "Dry_Green_g"), "softplus", "g")
    assert (state.labels, state.kind, state.activation) == (("Tas", "NSW", "WA", "Vic"), "classification", None)
    assert (height.labels, height.activation, height.unit) == (("Height_Ave_cm",), "softplus", "cm")
    assert (aux.labels, aux.activation) == (("Dry_Dead_g", "Dry_Clover_g"), "softplus")
    assert all(task.loss == "smooth_l1" and task.beta == 1.0 for task in (main, height, aux))


@pytest.mark.parametrize("soft", [False, True])
def test_the_loss_is_the_sources(soft: bool) -> None:
    """1.0, 0.6 and 0.3 times a mean over the batch each, summed; 0.1 times each other mean."""

    def smooth(difference: Tensor) -> Tensor:
        size = difference.abs()
        return torch.where(size < 1.0, 0.5 * size**2, size - 0.5).mean()

    torch.manual_seed(0)
    sizes = {"main": 3, "state": 4, "height": 1, "aux": 2}
    predicted = {name: torch.randn(7, dim, dtype=torch.float64) * 2 for name, dim in sizes.items()}
    truth = {name: torch.randn(7, dim, dtype=torch.float64) * 2 for name, dim in sizes.items()}
    classes = torch.randint(4, (7,))
    shares = truth["state"].softmax(-1) if soft else F.one_hot(classes, 4).double()
    truth["state"] = shares if soft else classes
    main = sum(w * smooth(predicted["main"][:, i] - truth["main"][:, i]) for i, w in enumerate((1.0, 0.6, 0.3)))
    state = -(shares * predicted["state"].log_softmax(-1)).sum(-1).mean()
    rest = state + smooth(predicted["height"] - truth["height"]) + smooth(predicted["aux"] - truth["aux"])
    total, parts = TaskLoss(cls_gating_tasks())(predicted, truth)
    assert total.item() == pytest.approx(float(main + 0.1 * rest), rel=1e-12)
    assert parts["main"].item() == pytest.approx(float(main), rel=1e-12)
    assert parts["aux"].item() == pytest.approx(0.1 * smooth(predicted["aux"] - truth["aux"]).item(), rel=1e-12)
