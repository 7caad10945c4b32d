"""Keys, voxels, look-ups and sparse pyramids against plain dictionaries and dense grids."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
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


def random_coords(count: int, low: int = -REACH, end: int = REACH) -> Tensor:
    return torch.randint(low, end, (count, 3))


def is_increasing(keys: Tensor) -> bool:
    return bool((keys[1:] > keys[:-1]).all())


@pytest.fixture
def coords() -> Tensor:
    """Near 0, anywhere, and at the ends of the range."""
    return torch.cat((torch.tensor(EXTREMES), random_coords(300), random_coords(100, -3, 3)))


@pytest.fixture
def batch(coords: Tensor) -> Tensor:
    """Samples, with the first and the last that there may be."""
    samples = torch.randint(0, BATCHES, (len(coords),))
    samples[:2] = torch.tensor([0, BATCHES - 1])
    return samples


def test_keys_are_those_of_plain_integers(coords: Tensor, batch: Tensor) -> None:
    keys = encode(coords, batch)

    expected = []
    for (x, y, z), sample in zip(coords.tolist(), batch.tolist(), strict=True):
        expected.append(morton(x, y, z, sample))
    assert keys.tolist() == expected


def test_keys_hold_their_coordinates_and_samples(coords: Tensor, batch: Tensor) -> None:
    decoded_coords, decoded_batch = decode(encode(coords, batch))

    assert torch.equal(decoded_coords, coords)
    assert torch.equal(decoded_batch, batch)


def test_the_largest_key_is_the_largest_integer_of_64_bits() -> None:
    last_corner = torch.tensor([[REACH - 1, REACH - 1, REACH - 1]])
    last_sample = torch.tensor([BATCHES - 1])

    assert encode(last_corner, last_sample).tolist() == [(1 << 63) - 1]


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
    (700, 720),
    (-REACH, REACH - 1),
]


def coords_of_span(lowest: int, highest: int) -> Tensor:
    """Coordinates of which some repeat, with both ends."""
    corners = torch.tensor([[lowest] * 3, [highest] * 3, [lowest, highest, lowest]])
    random = random_coords(200, lowest, highest + 1)
    return torch.cat((random, random[:50], corners))


@pytest.mark.parametrize(("lowest", "highest"), SPANS)
@pytest.mark.parametrize("samples", [1, 2, 3, 8, 9, BATCHES])
def test_distinct_keys_are_those_of_all_coordinates_and_samples(
    lowest: int, highest: int, samples: int
) -> None:
    coords = coords_of_span(lowest, highest)
    batch = (torch.rand(len(coords)) * samples).long()
    batch[0] = samples - 1

    keys, inverse = distinct(coords, batch)

    expected_keys, expected_inverse = torch.unique(encode(coords, batch), return_inverse=True)
    assert torch.equal(keys, expected_keys)
    assert torch.equal(inverse, expected_inverse)


@pytest.mark.parametrize(("lowest", "highest"), SPANS)
def test_distinct_keys_without_samples_are_those_of_all_coordinates(
    lowest: int, highest: int
) -> None:
    coords = coords_of_span(lowest, highest)

    keys, inverse = distinct(coords, None)

    expected_keys, expected_inverse = torch.unique(encode(coords, None), return_inverse=True)
    assert torch.equal(keys, expected_keys)
    assert torch.equal(inverse, expected_inverse)


@pytest.fixture
def sorted_keys() -> Tensor:
    """Keys of three samples."""
    coords = torch.cat((torch.tensor(EXTREMES), random_coords(200), random_coords(200, -20, 20)))
    return encode(coords, torch.arange(len(coords)) % 3).sort().values


@pytest.mark.parametrize("level", range(AXIS_BITS))
def test_cells_of_any_stride_round_down(level: int, sorted_keys: Tensor) -> None:
    stride = 1 << level
    coords, batch = decode(sorted_keys)

    corners, samples = decode(at_stride(sorted_keys, stride))

    assert torch.equal(corners, torch.div(coords, stride, rounding_mode="floor") * stride)
    assert torch.equal(samples, batch)


@pytest.mark.parametrize("level", range(AXIS_BITS))
def test_cells_of_any_stride_keep_the_order(level: int, sorted_keys: Tensor) -> None:
    cells = at_stride(sorted_keys, 1 << level)

    assert (cells[1:] >= cells[:-1]).all()


@dataclass(frozen=True)
class Cloud:
    """Points of three samples."""

    points: Tensor
    batch: Tensor

    def cells(
        self, size: tuple[float, ...], origin: tuple[float, ...]
    ) -> list[tuple[int, int, int, int]]:
        """The (sample, x, y, z) of the voxel of every point, by Python's floats."""
        cells = []
        for point, sample in zip(self.points.double().tolist(), self.batch.tolist(), strict=True):
            x, y, z = (math.floor((point[i] - origin[i]) / size[i]) for i in range(3))
            cells.append((sample, x, y, z))
        return cells


@pytest.fixture(params=[torch.float32, torch.float64], ids=str)
def point_cloud(request: pytest.FixtureRequest) -> Cloud:
    """Three of the points lie at or next to the sides of voxels."""
    points = (torch.randn(400, 3, dtype=torch.float64) * 2).to(request.param)
    points[:3] = torch.tensor([[-1e-9, 0, 1e-9], [0.6, -0.6, 0.0], [-0.02, 0.04, -0.3]])
    return Cloud(points=points, batch=torch.randint(0, 3, (400,)))


SIZES_AND_ORIGINS = [
    pytest.param((0.02, 0.02, 0.02), (0.0, 0.0, 0.0), id="small"),
    pytest.param((0.3, 0.3, 0.3), (0.0, 0.0, 0.0), id="large"),
    pytest.param((0.1, 0.2, 0.4), (0.0, 0.0, 0.0), id="of unequal sides"),
    pytest.param((0.02, 0.02, 0.02), (0.7, -3.0, 11.0), id="small, with an origin"),
    pytest.param((0.3, 0.3, 0.3), (0.7, -3.0, 11.0), id="large, with an origin"),
    pytest.param((0.1, 0.2, 0.4), (0.7, -3.0, 11.0), id="of unequal sides, with an origin"),
]


def cells_of(grid: VoxelGrid) -> Tensor:
    """(sample, x, y, z) of every voxel."""
    return torch.cat((grid.batch[:, None], grid.coords), dim=1)


@pytest.mark.parametrize(("size", "origin"), SIZES_AND_ORIGINS)
def test_points_lie_in_the_voxels_of_python_floats(
    size: Any, origin: Any, point_cloud: Cloud
) -> None:
    grid = VoxelGrid.from_points(point_cloud.points, size, origin, point_cloud.batch)

    cells_of_points = cells_of(grid)[grid.inverse].tolist()
    assert [tuple(cell) for cell in cells_of_points] == point_cloud.cells(size, origin)


@pytest.mark.parametrize(("size", "origin"), SIZES_AND_ORIGINS)
def test_a_grid_has_every_voxel_with_a_point_once(
    size: Any, origin: Any, point_cloud: Cloud
) -> None:
    grid = VoxelGrid.from_points(point_cloud.points, size, origin, point_cloud.batch)

    cells = [tuple(cell) for cell in cells_of(grid).tolist()]
    assert sorted(cells) == sorted(set(point_cloud.cells(size, origin)))


@pytest.mark.parametrize(("size", "origin"), SIZES_AND_ORIGINS)
def test_voxels_are_in_the_order_of_their_keys(size: Any, origin: Any, point_cloud: Cloud) -> None:
    grid = VoxelGrid.from_points(point_cloud.points, size, origin, point_cloud.batch)

    assert torch.equal(encode(grid.coords, grid.batch), grid.keys)
    assert is_increasing(grid.keys)


@pytest.mark.parametrize(("size", "origin"), SIZES_AND_ORIGINS)
def test_points_lie_within_half_a_voxel_of_its_centre(
    size: Any, origin: Any, point_cloud: Cloud
) -> None:
    grid = VoxelGrid.from_points(point_cloud.points, size, origin, point_cloud.batch)

    distances = (grid.centers()[grid.inverse] - point_cloud.points.double()).abs()
    distances_in_voxels = distances / torch.tensor(size, dtype=torch.float64)
    assert float(distances_in_voxels.max()) <= 0.5 + 1e-9


@pytest.mark.parametrize("value", [0.02, 0.3])
def test_one_number_is_the_size_of_all_sides(value: float, point_cloud: Cloud) -> None:
    grid = VoxelGrid.from_points(point_cloud.points, value, batch=point_cloud.batch)

    same = VoxelGrid.from_points(point_cloud.points, (value,) * 3, batch=point_cloud.batch)
    assert torch.equal(grid.keys, same.keys)
    assert torch.equal(grid.centers(), same.centers())


@pytest.mark.parametrize("value", [0.0, 0.7])
def test_one_number_is_the_origin_of_all_axes(value: float, point_cloud: Cloud) -> None:
    grid = VoxelGrid.from_points(point_cloud.points, 0.3, value, point_cloud.batch)

    same = VoxelGrid.from_points(point_cloud.points, 0.3, (value,) * 3, point_cloud.batch)
    assert torch.equal(grid.keys, same.keys)
    assert torch.equal(grid.centers(), same.centers())


@pytest.fixture
def empty_grid() -> VoxelGrid:
    return VoxelGrid.from_points(torch.zeros(0, 3), 0.1)


def test_without_points_there_are_no_voxels(empty_grid: VoxelGrid) -> None:
    assert empty_grid.coords.shape == (0, 3)
    assert empty_grid.centers().shape == (0, 3)
    assert empty_grid.batch.shape == (0,)
    assert empty_grid.inverse.shape == (0,)


def test_without_voxels_nothing_is_looked_up(empty_grid: VoxelGrid) -> None:
    no_features = torch.zeros(0, 4)
    is_valid = torch.zeros(0, dtype=torch.bool)
    nothing = SparseFeatures(empty_grid.coords, empty_grid.batch, no_features, is_valid)

    feats, hit = nothing.at(torch.zeros(3, 3, dtype=torch.int64))

    assert torch.equal(feats, torch.zeros(3, 4))
    assert not hit.any()


def features_at_stride(stride: int) -> SparseFeatures:
    fine = cloud(0.05)
    return SparseFeatures(fine.coords * stride, fine.batch, fine.feats, fine.valid, stride)


@pytest.mark.parametrize("stride", [1, 2, 8])
def test_looking_up_is_a_dictionary(stride: int) -> None:
    features = features_at_stride(stride)
    coords = random_coords(500, -9 * stride, 9 * stride)
    batch = torch.randint(0, 3, (500,))

    feats, hit = features.at(coords, batch)

    feats_of_cell = {}
    for row in features.valid.nonzero()[:, 0].tolist():
        cell = (int(features.batch[row]), *features.coords[row].tolist())
        feats_of_cell[cell] = features.feats[row]
    nothing = torch.zeros(CHANNELS, dtype=torch.float64)
    corners = (torch.div(coords, stride, rounding_mode="floor") * stride).tolist()
    cells = [(sample, *corner) for sample, corner in zip(batch.tolist(), corners, strict=True)]
    assert hit.tolist() == [cell in feats_of_cell for cell in cells]
    assert torch.equal(feats, torch.stack([feats_of_cell.get(cell, nothing) for cell in cells]))
    assert 0 < int(hit.sum()) < 500


@pytest.mark.parametrize("stride", [1, 2, 8])
def test_gradients_reach_the_features_that_are_looked_up(stride: int) -> None:
    features = features_at_stride(stride)
    coords = random_coords(40, -9 * stride, 9 * stride)
    batch = torch.randint(0, 3, (40,))

    def look_up(feats: Tensor) -> Tensor:
        found, _ = replace(features, feats=feats).at(coords, batch)
        return found

    leaf = features.feats.requires_grad_()
    assert torch.autograd.gradcheck(look_up, (leaf,), fast_mode=True)


SIDE = 16  # of the cube of voxels
CHANNELS = 3
CORNER = 16  # of the dense cube, below 0: a multiple of every stride
STRIDES = (1, 2, 4, 8, 16)
KINDS = [
    pytest.param("max", True, id="maximum of valid voxels"),
    pytest.param("max", False, id="maximum of all voxels"),
    pytest.param("mean", True, id="mean of valid voxels"),
    pytest.param("mean", False, id="mean of all voxels"),
]


def cloud(
    occupied: float = 0.3,
    seen: float = 0.6,
    dtype: torch.dtype = torch.float64,
    channels: int = CHANNELS,
) -> SparseFeatures:
    """Voxels of two samples in a cube that 0 halves."""
    is_occupied = torch.rand(2, SIDE, SIDE, SIDE) < occupied
    places = is_occupied.nonzero()
    grid = VoxelGrid.from_coords(places[:, 1:] - SIDE // 2, places[:, 0])
    valid = torch.rand(len(grid)) < seen
    feats = torch.randn(len(grid), channels, dtype=torch.float64) - 0.5
    feats = torch.where(valid[:, None], feats, 0.0).to(dtype)
    return SparseFeatures(grid.coords, grid.batch, feats, valid)


def dense(features: SparseFeatures, values: Tensor, empty: float) -> Tensor:
    """The values of voxels in a cube, (2, C, 32, 32, 32)."""
    cube = values.new_full((2, 2 * CORNER, 2 * CORNER, 2 * CORNER, values.shape[1]), empty)
    x, y, z = (features.coords + CORNER).unbind(dim=1)
    cube[features.batch, x, y, z] = values
    return cube.permute(0, 4, 1, 2, 3)


def read(pooled_cube: Tensor, level: SparseFeatures) -> Tensor:
    """The values of a pooled cube at the voxels of a level."""
    x, y, z = ((level.coords + CORNER) // level.stride).unbind(dim=1)
    return pooled_cube[level.batch, :, x, y, z]


def pool(features: SparseFeatures, level: SparseFeatures, reduce: str, masked: bool) -> Tensor:
    """The level's features by dense pooling."""
    stride = level.stride
    is_pooled = features.valid if masked else torch.ones_like(features.valid)
    if reduce == "max":
        values = torch.where(is_pooled[:, None], features.feats, -torch.inf)
        maxima = read(F.max_pool3d(dense(features, values, -torch.inf), stride), level)
        return torch.where(maxima == -torch.inf, 0.0, maxima)
    values = features.feats * is_pooled[:, None]
    ones = is_pooled[:, None].to(features.feats)
    total = read(F.avg_pool3d(dense(features, values, 0.0), stride), level)
    count = read(F.avg_pool3d(dense(features, ones, 0.0), stride), level)
    return total / count.clamp_min(1e-12)


def pool_validity(features: SparseFeatures, level: SparseFeatures) -> Tensor:
    """Whether any voxel in a cell of the level is valid."""
    ones = features.valid[:, None].to(features.feats)
    return read(F.max_pool3d(dense(features, ones, 0.0), level.stride), level)[:, 0] > 0


def occupied_cells(features: SparseFeatures, stride: int) -> set[tuple[int, ...]]:
    """The (sample, x, y, z) of the cells of a stride that hold a voxel."""
    coords = torch.div(features.coords, stride, rounding_mode="floor")
    cells = torch.cat((features.batch[:, None], coords), dim=1)
    return {tuple(cell) for cell in cells.tolist()}


OCCUPATIONS = [
    pytest.param(0.3, 0.6, id="some voxels"),
    pytest.param(0.02, 0.2, id="few voxels"),
    pytest.param(1.0, 1.0, id="all voxels"),
    pytest.param(0.1, 0.0, id="no valid voxels"),
    pytest.param(0.0, 1.0, id="no voxels"),
]
LEVELS = [
    pytest.param(STRIDES, id="all strides"),
    pytest.param((8,), id="one stride"),
]


@pytest.mark.parametrize(("reduce", "masked"), KINDS)
@pytest.mark.parametrize(("occupied", "seen"), OCCUPATIONS)
@pytest.mark.parametrize("strides", LEVELS)
def test_levels_are_dense_pooling(
    strides: tuple[int, ...], reduce: Any, masked: bool, occupied: float, seen: float
) -> None:
    features = cloud(occupied, seen)

    levels = SparsePyramid(strides, reduce, masked)(features)

    tolerance = 0.0 if reduce == "max" else 1e-12
    assert tuple(levels) == strides
    for level in levels.values():
        expected = pool(features, level, reduce, masked)
        assert torch.equal(level.valid, pool_validity(features, level))
        assert torch.allclose(level.feats, expected, rtol=0, atol=tolerance)
        assert not level.feats[~level.valid].any()


@pytest.mark.parametrize(("reduce", "masked"), KINDS)
@pytest.mark.parametrize(("occupied", "seen"), OCCUPATIONS)
@pytest.mark.parametrize("strides", LEVELS)
def test_levels_have_the_cells_that_hold_a_voxel_in_the_order_of_keys(
    strides: tuple[int, ...], reduce: Any, masked: bool, occupied: float, seen: float
) -> None:
    features = cloud(occupied, seen)

    levels = SparsePyramid(strides, reduce, masked)(features)

    for stride, level in levels.items():
        assert occupied_cells(level, stride) == occupied_cells(features, stride)
        assert is_increasing(level.keys)


def test_the_level_of_stride_1_is_the_features_themselves() -> None:
    features = cloud()

    levels = SparsePyramid(STRIDES)(features)

    assert levels[1] is features


@pytest.fixture
def small_cloud() -> SparseFeatures:
    return cloud(0.01, 0.6, channels=2)


def level_features(pyramid: SparsePyramid, features: SparseFeatures) -> tuple[Tensor, ...]:
    return tuple(level.feats for level in pyramid(features).values())


@pytest.mark.parametrize(("reduce", "masked"), KINDS)
def test_gradients_of_levels_are_those_of_differences(
    reduce: Any, masked: bool, small_cloud: SparseFeatures
) -> None:
    pyramid = SparsePyramid((2, 4, 16), reduce, masked)

    def levels(feats: Tensor) -> tuple[Tensor, ...]:
        return level_features(pyramid, replace(small_cloud, feats=feats))

    leaf = small_cloud.feats.requires_grad_()
    assert torch.autograd.gradcheck(levels, (leaf,), fast_mode=True)


@pytest.mark.parametrize(("reduce", "masked"), KINDS)
def test_gradients_reach_valid_voxels_alone(
    reduce: Any, masked: bool, small_cloud: SparseFeatures
) -> None:
    pyramid = SparsePyramid((2, 4, 16), reduce, masked)
    leaf = small_cloud.feats.requires_grad_()
    levels = level_features(pyramid, small_cloud)

    (grad,) = torch.autograd.grad(sum(level.sum() for level in levels), leaf)

    assert not grad[~small_cloud.valid].any()
    assert grad[small_cloud.valid].any()


@pytest.mark.parametrize("reduce", ["max", "mean"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_levels_of_every_dtype_are_right_to_its_rounding(reduce: Any, dtype: torch.dtype) -> None:
    features = cloud(1.0, 0.9, dtype)

    levels = SparsePyramid(STRIDES, reduce)(features)

    exact = SparsePyramid(STRIDES, reduce)(features.to(dtype=torch.float64))
    tolerance = 0.0 if reduce == "max" else torch.finfo(dtype).eps * 4
    for stride, level in levels.items():
        assert level.feats.dtype == dtype
        expected = exact[stride].feats
        assert torch.allclose(level.feats.double(), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_means_of_large_numbers_do_not_overflow(dtype: torch.dtype) -> None:
    """The sum of 4096 numbers of 30,000 is beyond float16."""
    features = cloud(1.0, 0.9, dtype)
    large = replace(features, feats=torch.full_like(features.feats, 3e4))

    mean = SparsePyramid((16,), "mean")(large)[16].feats

    expected = torch.tensor(3e4, dtype=torch.float64)
    tolerance = max(torch.finfo(dtype).eps, 1e-5)
    assert torch.allclose(mean.double(), expected, rtol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_more_equal_maxima_than_halves_count_share_one_gradient(dtype: torch.dtype) -> None:
    side = torch.arange(42)
    grid = VoxelGrid.from_coords(torch.cartesian_prod(side, side, side))
    feats = torch.zeros(len(grid), 1, dtype=dtype, requires_grad=True)
    is_valid = torch.ones(len(grid), dtype=torch.bool)
    voxels = SparseFeatures(grid.coords, grid.batch, feats, is_valid)

    SparsePyramid((64,))(voxels)[64].feats.sum().backward()

    assert feats.grad is not None
    assert feats.grad.dtype == dtype
    assert float(feats.grad.double().sum()) == pytest.approx(1.0, rel=0.01)
