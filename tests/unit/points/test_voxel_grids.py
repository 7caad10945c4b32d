"""Keys, voxels, look-ups and sparse pyramids against plain dictionaries and dense grids."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dinoneck.points import SparseFeatures, SparsePyramid, VoxelGrid
from dinoneck.points.keys import AXIS_BITS, BATCHES, REACH, at_stride, decode, distinct, encode

EXTREMES = [
    (x, y, z)
    for x in (-REACH, -1, 0, REACH - 1)
    for y in (-REACH, 0, REACH - 1)
    for z in (-REACH, -1, REACH - 1)
]


def morton(x: int, y: int, z: int, batch: int = 0) -> int:
    key = batch << 3 * AXIS_BITS
    for bit in range(AXIS_BITS):
        for axis, value in enumerate((x, y, z)):
            key |= ((value + REACH) >> bit & 1) << (3 * bit + 2 - axis)
    return key


def drawn(count: int, low: int = -REACH, end: int = REACH) -> Tensor:
    return torch.randint(low, end, (count, 3))


def test_keys_are_those_of_plain_integers() -> None:
    coords = torch.cat((torch.tensor(EXTREMES), drawn(300), drawn(100, -3, 3)))
    batch = torch.randint(0, BATCHES, (len(coords),))
    batch[:2] = torch.tensor([0, BATCHES - 1])
    keys = encode(coords, batch)
    assert keys.tolist() == [
        morton(*c, b) for c, b in zip(coords.tolist(), batch.tolist(), strict=True)
    ]
    again, samples = decode(keys)
    assert torch.equal(again, coords)
    assert torch.equal(samples, batch)
    assert (
        int(encode(torch.tensor([[REACH - 1] * 3]), torch.tensor([BATCHES - 1]))) == (1 << 63) - 1
    )


SPANS = [
    (0, 0),
    (-1, 0),
    (-1, 1),
    (0, 1),
    (-7, 8),
    (-256, 255),
    (-257, 3),
    (3, 256),
    (-512, 511),
    (-513, 5),
    (0, 512),
]


@pytest.mark.parametrize("span", [*SPANS, (700, 720), (-REACH, REACH - 1)])
def test_distinct_keys_are_those_of_all_coordinates(span: tuple[int, int]) -> None:
    lowest, highest = span
    for samples in (None, 1, 2, 3, 8, 9, BATCHES):
        coords = drawn(200, lowest, highest + 1)
        corners = torch.tensor([[lowest] * 3, [highest] * 3, [lowest, highest, lowest]])
        coords = torch.cat((coords, coords[:50], corners))
        batch = None if samples is None else (torch.rand(len(coords)) * samples).long()
        if samples is not None:
            batch[0] = samples - 1
        keys, rows = torch.unique(encode(coords, batch), return_inverse=True)
        found, inverse = distinct(coords, batch)
        assert torch.equal(found, keys) and torch.equal(inverse, rows)


def test_cells_of_any_stride_round_down_and_keep_the_order() -> None:
    coords = torch.cat((torch.tensor(EXTREMES), drawn(200), drawn(200, -20, 20)))
    keys = encode(coords, torch.arange(len(coords)) % 3).sort().values
    coords, batch = decode(keys)
    for level in range(AXIS_BITS):
        stride = 1 << level
        cells = at_stride(keys, stride)
        assert bool((cells[1:] >= cells[:-1]).all())
        corners, samples = decode(cells)
        assert torch.equal(corners, torch.div(coords, stride, rounding_mode="floor") * stride)
        assert torch.equal(samples, batch)


@pytest.mark.parametrize("size", [0.02, 0.3, (0.1, 0.2, 0.4)])
@pytest.mark.parametrize("origin", [0.0, (0.7, -3.0, 11.0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_points_lie_in_the_voxels_of_python_floats(
    size: Any, origin: Any, dtype: torch.dtype
) -> None:
    points, batch = (
        (torch.randn(400, 3, dtype=torch.float64) * 2).to(dtype),
        torch.randint(0, 3, (400,)),
    )
    points[:3] = torch.tensor([[-1e-9, 0, 1e-9], [0.6, -0.6, 0.0], [-0.02, 0.04, -0.3]])
    grid = VoxelGrid.from_points(points, size, origin, batch)
    sizes, start = (value if isinstance(value, tuple) else (value,) * 3 for value in (size, origin))
    expected = [
        (b, *(math.floor((x - o) / s) for x, o, s in zip(p, start, sizes, strict=True)))
        for p, b in zip(points.double().tolist(), batch.tolist(), strict=True)
    ]
    found = torch.cat((grid.batch[:, None], grid.coords), dim=1)
    assert [tuple(row) for row in found[grid.inverse].tolist()] == expected
    assert sorted(map(tuple, found.tolist())) == sorted(set(expected))
    assert torch.equal(encode(grid.coords, grid.batch), grid.keys) and bool(
        (grid.keys[1:] > grid.keys[:-1]).all()
    )
    away = (grid.centers()[grid.inverse] - points.double()).abs() / torch.tensor(
        sizes, dtype=torch.float64
    )
    assert float(away.max()) <= 0.5 + 1e-9


def test_no_points() -> None:
    grid = VoxelGrid.from_points(torch.zeros(0, 3), 0.1)
    assert grid.coords.shape == grid.centers().shape == (
        0,
        3,
    ) and grid.batch.shape == grid.inverse.shape == (0,)
    nothing = SparseFeatures(grid.coords, grid.batch, torch.zeros(0, 4), torch.zeros(0).bool())
    feats, hit = nothing.at(torch.zeros(3, 3).long())
    assert torch.equal(feats, torch.zeros(3, 4)) and not hit.any()


@pytest.mark.parametrize("stride", [1, 2, 8])
def test_looking_up_is_a_dictionary(stride: int) -> None:
    fine = cloud(0.05)
    features = SparseFeatures(fine.coords * stride, fine.batch, fine.feats, fine.valid, stride)
    rows = {
        (b, *c): row
        for row, (c, b) in enumerate(
            zip(features.coords.tolist(), features.batch.tolist(), strict=True)
        )
        if features.valid[row]
    }
    coords, batch = drawn(500, -9 * stride, 9 * stride), torch.randint(0, 3, (500,))
    feats, hit = features.at(coords, batch)
    for place, sample, found, seen in zip(coords.tolist(), batch.tolist(), feats, hit, strict=True):
        row = rows.get((sample, *(x // stride * stride for x in place)))
        assert bool(seen) == (row is not None)
        assert torch.equal(found, torch.zeros(3).double() if row is None else features.feats[row])
    assert 0 < int(hit.sum()) < 500
    leaf = features.feats.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: replace(features, feats=x).at(coords[:40], batch[:40])[0], (leaf,), fast_mode=True
    )


SIDE, CHANNELS = 16, 3


CORNER = 16  # of the dense cube, below 0: a multiple of every stride


STRIDES = (1, 2, 4, 8, 16)


KINDS = [(reduce, masked) for reduce in ("max", "mean") for masked in (True, False)]


def cloud(
    occupied: float = 0.3,
    seen: float = 0.6,
    dtype: torch.dtype = torch.float64,
    channels: int = CHANNELS,
) -> SparseFeatures:
    """Voxels of two samples in a cube that 0 halves."""
    half = SIDE // 2
    where = (torch.rand(2, SIDE, SIDE, SIDE) < occupied).nonzero()
    grid = VoxelGrid.from_coords(where[:, 1:] - half, where[:, 0])
    valid = torch.rand(len(grid)) < seen
    feats = torch.randn(len(grid), channels, dtype=torch.float64) - 0.5
    return SparseFeatures(
        grid.coords, grid.batch, torch.where(valid[:, None], feats, 0.0).to(dtype), valid
    )


def dense(features: SparseFeatures, values: Tensor, empty: float) -> Tensor:
    """(2, C, 32, 32, 32)."""
    found = values.new_full((2, 2 * CORNER, 2 * CORNER, 2 * CORNER, values.shape[1]), empty)
    x, y, z = (features.coords + CORNER).unbind(1)
    found[features.batch, x, y, z] = values
    return found.permute(0, 4, 1, 2, 3)


def read(pooled: Tensor, level: SparseFeatures) -> Tensor:
    x, y, z = ((level.coords + CORNER) // level.stride).unbind(1)
    return pooled[level.batch, :, x, y, z]


def pooled(
    features: SparseFeatures, level: SparseFeatures, reduce: str, masked: bool
) -> tuple[Tensor, Tensor]:
    """The level's features and validity by dense pooling."""
    stride = level.stride
    part = features.valid if masked else torch.ones_like(features.valid)
    if reduce == "max":
        values = torch.where(part[:, None], features.feats, -torch.inf)
        feats = read(F.max_pool3d(dense(features, values, -torch.inf), stride), level).clone()
        feats[feats == -torch.inf] = 0.0
    else:
        total = F.avg_pool3d(dense(features, features.feats * part[:, None], 0.0), stride)
        count = F.avg_pool3d(dense(features, part[:, None].to(features.feats), 0.0), stride)
        feats = read(total, level) / read(count, level).clamp_min(1e-12)
    seen = F.max_pool3d(dense(features, features.valid[:, None].to(features.feats), 0.0), stride)
    return feats, read(seen, level)[:, 0] > 0


@pytest.mark.parametrize(("reduce", "masked"), KINDS)
@pytest.mark.parametrize(
    ("occupied", "seen"), [(0.3, 0.6), (0.02, 0.2), (1.0, 1.0), (0.1, 0.0), (0.0, 1.0)]
)
@pytest.mark.parametrize("strides", [STRIDES, (8,)])
def test_levels_are_dense_pooling(
    strides: tuple[int, ...], reduce: Any, masked: bool, occupied: float, seen: float
) -> None:
    features = cloud(occupied, seen)
    levels = SparsePyramid(strides, reduce, masked)(features)
    assert tuple(levels) == strides
    assert levels.get(1, features) is features
    for stride, level in levels.items():
        feats, valid = pooled(features, level, reduce, masked)
        cells = torch.cat(
            (features.batch[:, None], torch.div(features.coords, stride, rounding_mode="floor")), 1
        )
        assert {tuple(row) for row in cells.tolist()} == {
            (b, *(x // stride for x in c))
            for b, c in zip(level.batch.tolist(), level.coords.tolist(), strict=True)
        }
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
    assert torch.allclose(
        mean.double(),
        torch.tensor(3e4, dtype=torch.float64),
        rtol=max(torch.finfo(dtype).eps, 1e-5),
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_more_equal_maxima_than_halves_count_share_one_gradient(dtype: torch.dtype) -> None:
    grid = VoxelGrid.from_coords(torch.cartesian_prod(*[torch.arange(42)] * 3))
    feats = torch.zeros(len(grid), 1, dtype=dtype, requires_grad=True)
    voxels = SparseFeatures(grid.coords, grid.batch, feats, torch.ones(len(grid), dtype=torch.bool))
    SparsePyramid((64,))(voxels)[64].feats.sum().backward()
    assert feats.grad is not None and feats.grad.dtype == dtype
    assert float(feats.grad.double().sum()) == pytest.approx(1.0, rel=0.01)
