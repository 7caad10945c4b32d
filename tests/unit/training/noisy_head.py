"""A head with dropout and batch statistics, and a source that draws: whatever a resumed run could get wrong."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from dinoneck import Task, Tokens
from dinoneck.heads import Head
from dinoneck.training import MemoryTokens

WIDTH = 6


class NoisyHead(Head):
    def __init__(self, embed_dim: int, tasks: Sequence[Task], hidden_dim: int = 6) -> None:
        super().__init__()
        self.embed_dim, self.tasks = embed_dim, tuple(tasks)
        self.first, self.norm = nn.Linear(embed_dim, hidden_dim), nn.BatchNorm1d(hidden_dim)
        self.drop, self.last = nn.Dropout(0.3), nn.Linear(hidden_dim, 1)

    def forward(self, tokens: Tokens) -> dict[str, Tensor]:
        hidden = self.norm(self.first(tokens.patches[-1].mean(dim=1)))
        return {self.tasks[0].name: self.last(self.drop(hidden.relu()))}


class NoisySource(MemoryTokens):
    """Adds noise from the global generators of Python and NumPy."""

    def batch(self, ids: Sequence[str], patterns: Sequence[int] | None = None) -> Tokens:
        tokens = super().batch(ids, patterns)
        noise = 0.01 * random.random() + 0.01 * np.random.rand()
        if len(ids) == 1:
            return tokens
        return replace(tokens, sequence=tuple(layer + noise for layer in tokens.sequence))


def noisy_head(hidden_dim: int = 6) -> NoisyHead:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return NoisyHead(WIDTH, [Task("x")], hidden_dim)


def noisy_source(images: int, first: float = 0.0) -> NoisySource:
    generator = torch.Generator().manual_seed(0)
    patches = torch.randn(images, 6, WIDTH, generator=generator)
    patches[0] += first
    return NoisySource(
        [str(i) for i in range(images)], Tokens.from_patches(patches, grid=(2, 3), patch_size=16)
    )
