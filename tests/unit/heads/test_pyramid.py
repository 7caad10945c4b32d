"""PyramidHead, FPNHead and DenseHead: where answers come from, what they add up to, and what they refuse."""

from __future__ import annotations

from typing import Any

import torch
from tests.kit import WIDTH
from tests.kit import tokens as tokens_of

from dinoneck import (
    DenseHead,
    FPNHead,
    TargetTransform,
    Task,
)

RATIO = Task("ratio", dim=3, kind="ratio")
MASS = Task("mass", kind="density", activation="softplus", unit="g", transform=TargetTransform(area=0.21, std=30.0))


def fpn(*tasks: Task, layers: int = 2, **options: Any) -> FPNHead:
    torch.manual_seed(0)
    return FPNHead(WIDTH, tasks, layers, fpn_dim=8, **options).eval()


def test_density_maps_add_up_to_the_answer() -> None:
    mean = Task("cover", kind="density", aggregate="mean", transform=TargetTransform(mean=2.0, std=3.0))
    shifted = Task("count", kind="density", transform=TargetTransform(mean=5.0, std=2.0))
    for head in (fpn(MASS, mean, shifted), DenseHead(WIDTH, (MASS, mean, shifted), 8)):
        tokens = tokens_of(2, 5, 7, layers=2)
        values, maps = head.predict(tokens), head.predict_maps(tokens)
        assert torch.allclose(maps["mass"].sum(dim=(2, 3)), values["mass"], rtol=1e-5)
        assert torch.allclose(maps["count"].sum(dim=(2, 3)), values["count"], rtol=1e-4)
        assert torch.allclose(maps["cover"].mean(dim=(2, 3)), values["cover"], rtol=1e-5)
        assert (maps["mass"] >= 0).all(), "softplus without an offset is a mass everywhere"
        raw = head(tokens)
        assert torch.allclose(raw["mass.map"].sum(dim=(2, 3)), raw["mass"])


def test_patch_ratios_are_the_mean_of_the_cells_shares() -> None:
    head = fpn(RATIO, ratio_readout="patch")
    tokens = tokens_of(2, 4, 5, layers=2)
    shares = head.predict(tokens)["ratio"]
    maps = head.predict_maps(tokens)["ratio"]
    assert maps.shape == (2, 3, 4, 5)
    assert torch.allclose(maps.sum(dim=1), torch.ones(2, 4, 5), atol=1e-6)
    assert torch.allclose(maps.mean(dim=(2, 3)), shares, atol=1e-6)
    assert "ratio" not in fpn(RATIO).predict_maps(tokens)
