"""A backbone and a head, small enough to train in a test; importable by the processes that tests start."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dinoneck import load_backbone


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = load_backbone("dinoneck_tiny")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            self.head = nn.Linear(64, 2)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.backbone(images).patches[0].mean(dim=1))
