"""One line per registered class: how the battery builds it, and what it is fed.

A new neck or head adds a case here; ``test_every_registered_class_has_a_case`` fails until it does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dinoneck import HeadEnsemble, PatchMeanHead, PatchMeanMLP, TargetTransform, Task, Tokens

WIDTH = 24
TASKS = (
    Task("mass", unit="g", activation="softplus", transform=TargetTransform(area=0.21)),
    Task("parts", dim=3, kind="ratio"),
    Task("state", dim=4, kind="classification", labels=("a", "b", "c", "d")),
)


def tokens_of(
    batch: int = 2, rows: int = 3, cols: int = 5, *, registers: int = 4, layers: int = 1, patch: int = 16, **to: Any
) -> Tokens:
    """Random tokens of a grid."""
    shape = (batch, 1 + registers + rows * cols, WIDTH)
    return Tokens.from_sequence(
        [torch.randn(shape) for _ in range(layers)],
        image_size=(rows * patch, cols * patch),
        patch_size=patch,
        num_prefix_tokens=1 + registers,
        layers=range(layers),
        normed=True,
    ).to(**to)


@dataclass(frozen=True)
class Case:
    """A registered class in one configuration."""

    name: str
    build: Callable[..., nn.Module]
    takes: str = "tokens"  # or "patches": a (B, N, C) tensor

    def inputs(self, **how: Any) -> Any:
        """What the module is called with."""
        tokens = tokens_of(**how)
        return tokens if self.takes == "tokens" else tokens.patches[0].contiguous()

    def __str__(self) -> str:
        return self.name


def outputs(result: Any) -> list[Tensor]:
    """The tensors of a result, in a fixed order."""
    return torch.utils._pytree.tree_leaves(result)


def member(seed: int) -> dict[str, Any]:
    return {"type": "patch_mean", "config": PatchMeanHead(WIDTH, TASKS, hidden_dim=8 + seed).config}


CASES = [
    Case("patch_mean_mlp", lambda **f: PatchMeanMLP(WIDTH, 8, 2, "softplus", **f), takes="patches"),
    Case("patch_mean", lambda **f: PatchMeanHead(WIDTH, TASKS, hidden_dim=8, **f)),
    Case("ensemble", lambda **f: HeadEnsemble([member(0), member(1), member(2)], **f)),
    Case("ensemble-median", lambda **f: HeadEnsemble([member(0), member(1)], reduce="median", **f)),
    Case("ensemble-weighted", lambda **f: HeadEnsemble([member(0), member(1)], weights=[1.0, 2.0], **f)),
]
