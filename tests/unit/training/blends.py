"""Blends whose partners and shares can be read back: what the tests of mixup and cutmix share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dinoneck import (
    TargetTransform,
    Task,
    Tokens,
)
from dinoneck.losses import Composition
from dinoneck.training import manifold_mixup

HALVES = 1e14  # lambda is 1/2 to seven digits


STATE = Task("state", dim=4, kind="classification")


RATIO = [Task("total", transform=TargetTransform(log1p=True, mean=2.0, std=0.5)), Task("ratio", dim=3, kind="ratio")]


PARTS = Composition(("leaf", "stem", "root"), {"above": ("leaf", "stem")}, "parts", total="total", ratio="ratio")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def marked(batch: int, layers: int = 1, dtype: torch.dtype = torch.float64) -> Tokens:
    """Every token of sample i is the unit vector i, so that a blend names its sides and their shares."""
    eye = torch.eye(batch, dtype=dtype)[:, None, :].repeat(1, 3 + 6, 1)
    return Tokens.from_sequence([eye] * layers, image_size=(32, 48), patch_size=16, num_prefix_tokens=3)


def read_back(mixed: Tensor) -> tuple[Tensor, Tensor]:
    """Partner (B,) and share kept (B,) of blended unit vectors (B, B); samples that met themselves keep all."""
    batch = len(mixed)
    kept = mixed.diagonal().double().clone()
    rest = mixed.double().clone().fill_diagonal_(0)
    partner = torch.where(rest.sum(dim=1) > 0, rest.argmax(dim=1), torch.arange(batch))
    return partner, kept


def mix(targets: dict[str, Tensor], alpha: float = 1.0, seed: int = 0, **options: Any) -> tuple[Any, ...]:
    """(targets, partner, share kept) or (targets, masks, partner, share kept)."""
    batch = len(next(iter(targets.values())))
    tokens, *rest = manifold_mixup(marked(batch), targets, alpha, generator=seeded(seed), **options)
    return (*rest, *read_back(tokens.sequence[0][:, 0]))


def swap(alpha: float = 1.0) -> int:
    """The first seed by which the two samples of a batch meet each other."""
    return next(seed for seed in range(50) if mix({"x": torch.zeros(2, 1)}, alpha, seed)[1].tolist() == [1, 0])


def blended(own: Tensor, partner: Tensor, kept: Tensor) -> Tensor:
    rows = [kept[i] * own[i].double() + (1 - kept[i]) * own[partner[i]].double() for i in range(len(own))]
    return torch.stack(rows)


def ratio_targets(grams: list[float], shares: list[list[float]]) -> dict[str, Tensor]:
    transform = RATIO[0].transform
    assert transform is not None
    total = transform.forward(torch.tensor(grams, dtype=torch.float64)[:, None])
    return {"total": total, "ratio": torch.tensor(shares, dtype=torch.float64)}
