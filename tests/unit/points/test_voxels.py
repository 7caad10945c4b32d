"""Keys, voxels and look-ups against plain dictionaries and Python integers."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from dinoneck.points import SparseFeatures, VoxelGrid
from dinoneck.points.keys import AXIS_BITS, BATCHES, REACH, at_stride, decode, distinct, encode

EXTREMES = [
    (x, y, z) for x in (-REACH, -1, 0, REACH - 1) for y in (-REACH, 0, REACH - 1) for z in (-REACH, -1, REACH - 1)
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
    assert keys.dtype == torch.int64
    assert keys.tolist() == [morton(*c, b) for c, b in zip(coords.tolist(), batch.tolist(), strict=True)]
    again, samples = decode(keys)
    assert torch.equal(again, coords)
    assert torch.equal(samples, batch)
    assert int(encode(torch.tensor([[REACH - 1] * 3]), torch.tensor([BATCHES - 1]))) == (1 << 63) - 1


SPANS = [(0, 0), (-1, 0), (-1, 1), (0, 1), (-7, 8), (-256, 255), (-257, 3), (3, 256), (-512, 511), (-513, 5), (0, 512)]


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
def test_points_lie_in_the_voxels_of_python_floats(size: Any, origin: Any, dtype: torch.dtype) -> None:
    points, batch = (torch.randn(400, 3, dtype=torch.float64) * 2).to(dtype), torch.randint(0, 3, (400,))
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
    assert torch.equal(encode(grid.coords, grid.batch), grid.keys) and bool((grid.keys[1:] > grid.keys[:-1]).all())
    away = (grid.centers()[grid.inverse] - points.double()).abs() / torch.tensor(sizes, dtype=torch.float64)
    assert float(away.max()) <= 0.5 + 1e-9


def test_no_points() -> None:
    grid = VoxelGrid.from_points(torch.zeros(0, 3), 0.1)
    assert grid.coords.shape == grid.centers().shape == (0, 3) and grid.batch.shape == grid.inverse.shape == (0,)
    nothing = SparseFeatures(grid.coords, grid.batch, torch.zeros(0, 4), torch.zeros(0).bool())
    feats, hit = nothing.at(torch.zeros(3, 3).long())
    assert torch.equal(feats, torch.zeros(3, 4)) and not hit.any()


def sparse(count: int = 200, stride: int = 1, channels: int = 3) -> SparseFeatures:
    grid = VoxelGrid.from_coords(drawn(count, -6, 6) * stride, torch.randint(0, 2, (count,)))
    valid = torch.rand(len(grid)) > 0.3
    feats = torch.where(valid[:, None], torch.randn(len(grid), channels), 0.0)
    return SparseFeatures(grid.coords, grid.batch, feats, valid, stride)


@pytest.mark.parametrize("stride", [1, 2, 8])
def test_looking_up_is_a_dictionary(stride: int) -> None:
    features = sparse(stride=stride)
    rows = {
        (b, *c): row
        for row, (c, b) in enumerate(zip(features.coords.tolist(), features.batch.tolist(), strict=True))
        if features.valid[row]
    }
    coords, batch = drawn(500, -9 * stride, 9 * stride), torch.randint(0, 3, (500,))
    feats, hit = features.at(coords, batch)
    for place, sample, found, seen in zip(coords.tolist(), batch.tolist(), feats, hit, strict=True):
        row = rows.get((sample, *(x // stride * stride for x in place)))
        assert bool(seen) == (row is not None)
        assert torch.equal(found, torch.zeros(3) if row is None else features.feats[row])
    assert 0 < int(hit.sum()) < 500
    leaf = features.feats.double().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: replace(features, feats=x).at(coords[:40], batch[:40])[0], (leaf,), fast_mode=True
    )
