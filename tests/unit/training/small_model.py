"""A backbone with a head and steps of its training; importable by the processes that tests start."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dinoneck import load_backbone


def batch(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, 3, 32, 32, generator=generator), torch.randn(2, 2, generator=generator)


def learn(model: nn.Module, optimizer: torch.optim.Optimizer, *seeds: int) -> None:
    """Take one step on the batches of these seeds together."""
    model.train()
    images, target = (torch.cat(part) for part in zip(*map(batch, seeds), strict=True))
    optimizer.zero_grad()
    (model(images) - target).square().mean().backward()
    optimizer.step()


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = load_backbone("dinoneck_tiny")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            self.head = nn.Linear(64, 2)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.backbone(images).patches[0].mean(dim=1))
