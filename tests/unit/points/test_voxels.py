"""Keys, voxels and look-ups against plain dictionaries and Python integers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from dinoneck.errors import ConfigError, DataError, DinoneckError, ShapeError
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


@pytest.mark.parametrize("samples", [None, 1, 2, 3, 8, 9, BATCHES])
@pytest.mark.parametrize(
    ("lowest", "highest"),
    [(0, 0), (-1, 0), (-1, 1), (0, 1), (-7, 8), (-256, 255), (-257, 3), (3, 256), (-512, 511), (-513, 5), (0, 512),
     (700, 720), (-REACH, REACH - 1)],
)  # fmt: skip
def test_distinct_keys_are_those_of_all_coordinates(lowest: int, highest: int, samples: int | None) -> None:
    draw = torch.Generator().manual_seed(highest)
    coords = torch.randint(lowest, highest + 1, (200, 3), generator=draw)
    coords = torch.cat((coords, coords[:50], torch.tensor([[lowest] * 3, [highest] * 3, [lowest, highest, lowest]])))
    batch = None if samples is None else torch.randint(samples, (len(coords),), generator=draw)
    if batch is not None and samples is not None:
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


@pytest.mark.parametrize(
    ("coords", "batch", "message"),
    [
        ([[0, 0, 0], [0, REACH, 1]], None, rf"coords\[1\] is \[0, {REACH}, 1\].*larger voxels"),
        ([[0, -REACH - 1, 0]], None, rf"coords\[0\] is \[0, {-REACH - 1}, 0\]"),
        ([[0, 0, 0], [1, 1, 1]], [3, BATCHES], rf"batch\[1\] is {BATCHES}; expected 0 ... 511"),
        ([[0, 0, 0]], [-1], r"batch\[0\] is -1"),
    ],
)
def test_what_does_not_fit_a_key_is_named(coords: list[list[int]], batch: list[int] | None, message: str) -> None:
    with pytest.raises(DataError, match=message):
        encode(torch.tensor(coords), None if batch is None else torch.tensor(batch))
    with pytest.raises(DataError, match=message):
        VoxelGrid.from_coords(torch.tensor(coords), None if batch is None else torch.tensor(batch))


@pytest.mark.parametrize("size", [0.02, 0.3, (0.1, 0.2, 0.4)])
@pytest.mark.parametrize("origin", [0.0, (0.7, -3.0, 11.0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_points_lie_in_the_voxels_of_python_floats(
    size: float | tuple[float, ...], origin: float | tuple[float, ...], dtype: torch.dtype
) -> None:
    points = (torch.randn(400, 3, dtype=torch.float64) * 2).to(dtype)
    points[:3] = torch.tensor([[-1e-9, 0, 1e-9], [0.6, -0.6, 0.0], [-0.02, 0.04, -0.3]])
    batch = torch.randint(0, 3, (400,))
    grid = VoxelGrid.from_points(points, size, origin, batch)
    sizes = size if isinstance(size, tuple) else (size,) * 3
    start = origin if isinstance(origin, tuple) else (origin,) * 3
    expected = [
        (b, *(math.floor((x - o) / s) for x, o, s in zip(p, start, sizes, strict=True)))
        for p, b in zip(points.double().tolist(), batch.tolist(), strict=True)
    ]
    found = torch.cat((grid.batch[:, None], grid.coords), dim=1)
    assert [tuple(row) for row in found[grid.inverse].tolist()] == expected
    assert sorted(map(tuple, found.tolist())) == sorted(set(expected))
    assert bool((grid.keys[1:] > grid.keys[:-1]).all())
    assert torch.equal(encode(grid.coords, grid.batch), grid.keys)
    assert (grid.size, grid.origin) == (sizes, start)
    away = (grid.centers()[grid.inverse] - points.double()).abs() / points.new_tensor(sizes, dtype=torch.float64)
    assert float(away.max()) <= 0.5 + 1e-9


def test_no_points() -> None:
    for grid in (
        VoxelGrid.from_points(torch.zeros(0, 3), 0.1),
        VoxelGrid.from_coords(torch.zeros(0, 3).long(), torch.zeros(0).long()),
    ):
        assert len(grid) == 0
        assert grid.coords.shape == grid.centers().shape == (0, 3)
        assert grid.batch.shape == grid.inverse.shape == (0,)
    nothing = SparseFeatures(grid.coords, grid.batch, torch.zeros(0, 4), torch.zeros(0).bool())
    feats, hit = nothing.at(torch.zeros(3, 3).long())
    assert torch.equal(feats, torch.zeros(3, 4))
    assert not hit.any()
    assert "0 of 0" in repr(nothing)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((torch.tensor([[0.0, 0, 0], [0, math.nan, 0]]), 1.0), DataError, r"1 of 2 points .* points\[1\] = \[0.0, nan"),
        ((torch.tensor([[math.inf, 0, 0]]), 1.0), DataError, r"points\[0\] = \[inf"),
        ((torch.tensor([[1e5, 0, 0]]), 0.5), DataError, r"coords\[0\] is \[200000, 0, 0\].*larger voxels"),
        ((torch.tensor([[1e30, 0, 0]]), 0.5), DataError, r"coords\[0\]"),
        ((torch.tensor([[-1e30, 0, 0]]), 0.5), DataError, r"coords\[0\]"),
        ((torch.zeros(2, 2), 1.0), ShapeError, r"\(2, 2\)"),
        ((torch.zeros(2, 3), 0.0), ConfigError, "size is 0.0"),
        ((torch.zeros(2, 3), -1.0), ConfigError, "size is -1.0"),
        ((torch.zeros(2, 3), (1.0, 1.0)), ConfigError, "size is"),
        ((torch.zeros(2, 3), math.nan), ConfigError, "size is nan"),
        ((torch.zeros(2, 3), 1.0, math.inf), ConfigError, "origin is inf"),
        ((torch.zeros(2, 3), 1.0, 0.0, torch.zeros(3).long()), ShapeError, "batch has 3 entries for 2"),
        ((torch.zeros(2, 3), 1.0, 0.0, torch.zeros(2)), ShapeError, "batch are torch.float32"),
    ],
)
def test_what_makes_no_voxels_is_refused(
    arguments: tuple[object, ...], error: type[DinoneckError], message: str
) -> None:
    with pytest.raises(error, match=message):
        VoxelGrid.from_points(*arguments)  # type: ignore[arg-type]


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


def test_looking_up_own_rows_and_gradients() -> None:
    features = sparse()
    feats, hit = features.at(features.coords, features.batch)
    assert torch.equal(hit, features.valid)
    assert torch.equal(feats, features.feats)
    only = features.batch == 0
    feats, hit = features.at(features.coords[only])
    assert torch.equal(hit, features.valid[only])
    leaf = features.feats.double().requires_grad_()
    again = SparseFeatures(features.coords, features.batch, leaf, features.valid)
    coords, batch = drawn(40, -6, 6), torch.randint(0, 2, (40,))
    assert torch.autograd.gradcheck(
        lambda x: SparseFeatures(again.coords, again.batch, x, again.valid).at(coords, batch)[0], (leaf,)
    )


def test_moving_keeps_coordinates() -> None:
    features = sparse(stride=2)
    half = features.to(dtype=torch.float16)
    assert half.feats.dtype == torch.float16
    assert half.coords.dtype == half.batch.dtype == torch.int64
    assert half.stride == 2
    meta = features.to("meta")
    assert all(x.is_meta for x in (meta.coords, meta.batch, meta.feats, meta.valid))
    grid = VoxelGrid.from_points(torch.randn(5, 3), 0.5, 1.0).to("meta")
    assert grid.keys.is_meta
    assert grid.inverse.is_meta
    assert grid.size == (0.5,) * 3


def test_rows_that_do_not_fit_are_refused() -> None:
    features = sparse()
    parts = [features.coords, features.batch, features.feats, features.valid]
    for place, wrong in enumerate((parts[0][:-1], parts[1][:-1], parts[2][:-1], parts[3][:-1])):
        with pytest.raises(ShapeError):
            SparseFeatures(*[wrong if place == at else part for at, part in enumerate(parts)])
    with pytest.raises(ShapeError, match="valid is torch.float32"):
        SparseFeatures(*parts[:3], features.valid.float())
    upside_down = SparseFeatures(*[part.flip(0) for part in parts])
    with pytest.raises(DataError, match="sorted by key"):
        upside_down.at(features.coords)
    with pytest.raises(DataError, match="stride 2 must be multiples"):
        SparseFeatures(*parts, 2).at(features.coords)
    twice = SparseFeatures(*[part[:1].expand(2, *part.shape[1:]) for part in parts])
    with pytest.raises(DataError, match="without repeats"):
        twice.at(features.coords)
    with pytest.raises(DataError, match="coords"):
        features.at(torch.tensor([[REACH, 0, 0]]))
