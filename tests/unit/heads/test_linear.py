"""The linear probe is one matrix product of what the papers concatenate."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from dinoneck import LinearHead, Task, Tokens
from dinoneck.errors import ConfigError

STATE = Task("state", dim=3, kind="classification")
SOIL = Task("soil", dim=2, kind="segmentation")


def tokens_of(layers: int, batch: int = 2) -> Tokens:
    sequence = [torch.randn(batch, 1 + 4 + 15, 8, dtype=torch.float64) for _ in range(layers)]
    return Tokens.from_sequence(sequence, image_size=(48, 80), patch_size=16, num_prefix_tokens=5)


@pytest.mark.parametrize(("pool", "layers"), [("cls", 1), ("cls", 4), ("mean", 4), ("cls+mean", 1), ("cls+mean", 4)])
def test_pooled_logits_are_one_product_of_the_concatenation(pool: Any, layers: int) -> None:
    tokens, head = tokens_of(layers), LinearHead(8, [STATE], layers, pool, dtype=torch.float64)
    mean = tokens.sequence[-1][:, 5:].mean(dim=1)  # registers are left out
    parts = {"cls": [], "mean": [mean], "cls+mean": [mean]}[pool]
    x = torch.cat([*(x[:, 0] for x in tokens.sequence if pool != "mean"), *parts], dim=1)
    weight, bias = head.state_dict().values()
    assert torch.allclose(head(tokens)["state"], x @ weight.T + bias, rtol=0, atol=1e-12)


def test_a_map_is_one_product_per_patch() -> None:
    tokens, head = tokens_of(2), LinearHead(8, [SOIL], 2, None, dtype=torch.float64)
    x = torch.cat([x[:, 5:] for x in tokens.sequence], dim=2)
    weight, bias = head.state_dict().values()
    expected = (x @ weight.T + bias).reshape(2, 3, 5, 2).permute(0, 3, 1, 2)
    assert torch.allclose(head(tokens)["soil"], expected, rtol=0, atol=1e-12)
    assert torch.allclose(head.predict_maps(tokens)["soil"], expected.softmax(dim=1), rtol=0, atol=1e-12)


def test_it_learns_what_logistic_regression_learns() -> None:
    """Without a penalty both have one optimum on classes that overlap."""
    torch.manual_seed(0)
    tokens = tokens_of(1, batch=90)
    x = torch.cat([tokens.sequence[0][:, 0], tokens.sequence[0][:, 5:].mean(dim=1)], dim=1)
    y = (x[:, :3] + torch.randn(90, 3, dtype=torch.float64)).argmax(dim=1)
    head = LinearHead(8, [STATE], dtype=torch.float64)
    solver = torch.optim.LBFGS(head.parameters(), max_iter=500, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        solver.zero_grad()
        value = torch.nn.functional.cross_entropy(head(tokens)["state"], y)
        value.backward()
        return value

    solver.step(loss)  # type: ignore[arg-type]
    peer = LogisticRegression(C=float("inf"), tol=1e-9, max_iter=5000).fit(x.numpy(), y.numpy())
    expected = torch.from_numpy(peer.predict_proba(x.numpy()))
    assert torch.allclose(head.predict(tokens)["state"], expected, atol=1e-3)


@pytest.mark.parametrize(
    ("pool", "task", "named"),
    [("mean", SOIL, "segmentation"), (None, STATE, "classification"), ("max", STATE, "max")],
)
def test_kinds_that_the_pooling_does_not_give_are_refused(pool: Any, task: Task, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        LinearHead(8, [task], pool=pool)
