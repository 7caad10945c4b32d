"""Levels against dense pooling, a plain dictionary and each other."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dinoneck.points import SparseFeatures, SparsePyramid, VoxelGrid

SIDE, CHANNELS = 16, 3
CORNER = 16  # of the dense cube, below 0: a multiple of every stride
STRIDES = (1, 2, 4, 8, 16)
KINDS = [(reduce, masked) for reduce in ("max", "mean") for masked in (True, False)]


def cloud(
    occupied: float = 0.3, seen: float = 0.6, dtype: torch.dtype = torch.float64, channels: int = CHANNELS
) -> SparseFeatures:
    """Voxels of two samples in a cube that 0 halves."""
    half = SIDE // 2
    where = (torch.rand(2, SIDE, SIDE, SIDE) < occupied).nonzero()
    grid = VoxelGrid.from_coords(where[:, 1:] - half, where[:, 0])
    valid = torch.rand(len(grid)) < seen
    feats = torch.randn(len(grid), channels, dtype=torch.float64) - 0.5
    return SparseFeatures(grid.coords, grid.batch, torch.where(valid[:, None], feats, 0.0).to(dtype), valid)


def dense(features: SparseFeatures, values: Tensor, empty: float) -> Tensor:
    """(2, C, 32, 32, 32)."""
    found = values.new_full((2, 2 * CORNER, 2 * CORNER, 2 * CORNER, values.shape[1]), empty)
    x, y, z = (features.coords + CORNER).unbind(1)
    found[features.batch, x, y, z] = values
    return found.permute(0, 4, 1, 2, 3)


def read(pooled: Tensor, level: SparseFeatures) -> Tensor:
    x, y, z = ((level.coords + CORNER) // level.stride).unbind(1)
    return pooled[level.batch, :, x, y, z]


def truth(features: SparseFeatures, level: SparseFeatures, reduce: str, masked: bool) -> tuple[Tensor, Tensor]:
    """The level's features and validity by dense pooling."""
    stride = level.stride
    part = features.valid if masked else torch.ones_like(features.valid)
    if reduce == "max":
        values = torch.where(part[:, None], features.feats, -torch.inf)
        pooled = F.max_pool3d(dense(features, values, -torch.inf), stride)
        feats = read(pooled, level).clone()
        feats[feats == -torch.inf] = 0.0
    else:
        total = F.avg_pool3d(dense(features, features.feats * part[:, None], 0.0), stride)
        count = F.avg_pool3d(dense(features, part[:, None].to(features.feats), 0.0), stride)
        feats = read(total, level) / read(count, level).clamp_min(1e-12)
    seen = F.max_pool3d(dense(features, features.valid[:, None].to(features.feats), 0.0), stride)
    return feats, read(seen, level)[:, 0] > 0


@pytest.mark.parametrize(("reduce", "masked"), KINDS)
@pytest.mark.parametrize(("occupied", "seen"), [(0.3, 0.6), (0.02, 0.2), (1.0, 1.0), (0.1, 0.0), (0.0, 1.0)])
@pytest.mark.parametrize("strides", [STRIDES, (8,)])
def test_levels_are_dense_pooling(
    strides: tuple[int, ...], reduce: Any, masked: bool, occupied: float, seen: float
) -> None:
    features = cloud(occupied, seen)
    levels = SparsePyramid(strides, reduce, masked)(features)
    assert tuple(levels) == strides
    assert levels.get(1, features) is features
    for stride, level in levels.items():
        feats, valid = truth(features, level, reduce, masked)
        cells = torch.cat((features.batch[:, None], torch.div(features.coords, stride, rounding_mode="floor")), 1)
        assert {tuple(row) for row in cells.tolist()} == {
            (b, *(x // stride for x in c)) for b, c in zip(level.batch.tolist(), level.coords.tolist(), strict=True)
        }
        assert len(level) == len(cells.unique(dim=0))
        assert torch.equal(level.valid, valid)
        assert torch.allclose(level.feats, feats, rtol=0, atol=0 if reduce == "max" else 1e-12)
        assert not level.feats[~level.valid].any()
        assert bool((level.keys[1:] > level.keys[:-1]).all())


@pytest.mark.parametrize(("reduce", "masked"), KINDS)
def test_gradients(reduce: Any, masked: bool) -> None:
    features, pyramid = cloud(0.01, 0.6, channels=2), SparsePyramid((2, 4, 16), reduce, masked)

    def levels(feats: Tensor) -> tuple[Tensor, ...]:
        return tuple(level.feats for level in pyramid(replace(features, feats=feats)).values())

    leaf = features.feats.clone().requires_grad_()
    assert torch.autograd.gradcheck(levels, (leaf,), fast_mode=True)
    (grad,) = torch.autograd.grad(sum(level.sum() for level in levels(leaf)), leaf)
    assert not grad[~features.valid].any() and bool(grad[features.valid].any())


@pytest.mark.parametrize("reduce", ["max", "mean"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_every_dtype(reduce: Any, dtype: torch.dtype) -> None:
    features = cloud(1.0, 0.9, dtype)
    exact = SparsePyramid(STRIDES, reduce)(features.to(dtype=torch.float64))
    for stride, level in SparsePyramid(STRIDES, reduce)(features).items():
        assert level.feats.dtype == dtype
        tolerance = 0.0 if reduce == "max" else torch.finfo(dtype).eps * 4
        assert torch.allclose(level.feats.double(), exact[stride].feats, rtol=0, atol=tolerance)
    large = replace(features, feats=torch.full_like(features.feats, 3e4))
    mean = SparsePyramid((16,), "mean")(large)[16].feats  # the sum of 4096 such is beyond float16
    assert torch.allclose(mean.double(), torch.tensor(3e4, dtype=torch.float64), rtol=max(torch.finfo(dtype).eps, 1e-5))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_more_equal_maxima_than_halves_count_share_one_gradient(dtype: torch.dtype) -> None:
    grid = VoxelGrid.from_coords(torch.cartesian_prod(*[torch.arange(42)] * 3))
    feats = torch.zeros(len(grid), 1, dtype=dtype, requires_grad=True)
    voxels = SparseFeatures(grid.coords, grid.batch, feats, torch.ones(len(grid), dtype=torch.bool))
    SparsePyramid((64,))(voxels)[64].feats.sum().backward()
    assert feats.grad is not None and feats.grad.dtype == dtype
    assert float(feats.grad.double().sum()) == pytest.approx(1.0, rel=0.01)
