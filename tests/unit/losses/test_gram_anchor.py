"""GramAnchor: the plain formula, blind to turns and scale, and the reference is never taught."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from dinoneck import Tokens
from dinoneck.losses import GramAnchor

torch.manual_seed(0)
OWN = torch.randn(2, 6, 5, dtype=torch.float64)
REFERENCE = torch.randn(2, 6, 5, dtype=torch.float64)


def plain(tokens: torch.Tensor, reference: torch.Tensor) -> float:
    """Entry by entry, in Python."""

    def entry(x: torch.Tensor, b: int, i: int, j: int) -> float:
        u, v = x[b, i].tolist(), x[b, j].tolist()
        value = sum(p * q for p, q in zip(u, v, strict=True))
        return value / (math.sqrt(sum(p * p for p in u)) * math.sqrt(sum(q * q for q in v)))

    batch, count, _ = tokens.shape
    errors = [
        (entry(tokens, b, i, j) - entry(reference, b, i, j)) ** 2
        for b in range(batch)
        for i in range(count)
        for j in range(count)
    ]
    return sum(errors) / len(errors)


def make(patches: torch.Tensor, grid: tuple[int, int], prefix: float | None = None) -> Tokens:
    if prefix is None:
        return Tokens.from_patches(patches, grid=grid, patch_size=16)
    batch, _, width = patches.shape
    others = patches.new_full((batch, 3, width), prefix)
    return Tokens.from_patches(
        patches, grid=grid, patch_size=16, cls_token=others[:, 0], registers=others[:, 1:].contiguous()
    )


def test_it_is_the_plain_formula() -> None:
    loss = GramAnchor()(OWN, REFERENCE)
    assert loss.shape == ()
    assert loss.dtype == torch.float64
    assert abs(loss.item() - plain(OWN, REFERENCE)) < 1e-12 * loss.item()


@pytest.mark.parametrize("grid", [(4, 6), (3, 5), (1, 2), (5, 7)])
def test_a_reference_of_another_grid_is_resized(grid: tuple[int, int]) -> None:
    rows, cols = grid
    patches = torch.randn(2, rows * cols, 8, dtype=torch.float64, requires_grad=True)
    own = OWN.clone().requires_grad_()
    loss = GramAnchor()(make(own, (2, 3), 1.0), make(patches, grid, 2.0))
    maps = patches.detach().reshape(2, rows, cols, 8).permute(0, 3, 1, 2)
    by_hand = F.interpolate(maps, size=(2, 3), mode="bicubic", align_corners=False).permute(0, 2, 3, 1).reshape(2, 6, 8)
    assert abs(loss.item() - plain(OWN, by_hand)) < 1e-12
    loss.backward()
    assert own.grad is not None
    assert patches.grad is None
