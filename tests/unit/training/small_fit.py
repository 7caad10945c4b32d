"""A head with one number on six small samples, and a short call of fit."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dinoneck import PatchMeanHead, Task, Tokens
from dinoneck.training import MemoryTokens, fit

IDS = [f"s{i}" for i in range(6)]
Y = np.linspace(0.0, 5.0, 6)


def tokens(seed: int = 0, channels: int = 8, images: int = 6) -> Tokens:
    sequence = torch.randn(images, 7, channels, generator=torch.Generator().manual_seed(seed))
    return Tokens.from_sequence(sequence, image_size=(32, 48), patch_size=16, num_prefix_tokens=1)


def head(*tasks: Task) -> PatchMeanHead:
    torch.manual_seed(0)
    return PatchMeanHead(8, list(tasks) or [Task("y")], hidden_dim=4)


def run(module: Any = None, source: Any = None, **changes: Any) -> list[dict[str, float]]:
    given = {
        "targets": {"y": Y},
        "target_ids": IDS,
        "epochs": 1,
        "batch_size": 4,
        "lr": 1e-3,
        **changes,
    }
    return fit(module or head(), source or MemoryTokens(IDS, tokens()), **given)


def flat(module: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])
