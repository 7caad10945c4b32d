"""MinkowskiEngine's kernels lie where its rule puts them, and its tensors are injected into; with a stand-in."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dinoneck import ShapeError
from dinoneck.points import (
    DecoderInjection,
    MinkowskiAdapter,
    SparseFeatures,
    SparsePyramid,
    VoxelGrid,
    adapter_of,
    minkowski_offsets,
    minkowski_to_conv3d,
)

BOX = 12  # cells along each axis of a dense box


class Mapped:
    """What MinkowskiEngine's tensors have: a coordinate map that is shared, base units, batch first, int32."""

    def __init__(
        self,
        feats: Tensor,
        coordinates: Tensor | None = None,
        tensor_stride: int = 1,
        *,
        coordinate_map_key: Any = None,
        coordinate_manager: Any = None,
    ) -> None:
        if coordinates is not None:
            coordinate_map_key = (tensor_stride,) * 3
            coordinate_manager = {coordinate_map_key: coordinates}
        self.F = feats
        self.coordinate_map_key = coordinate_map_key
        self.coordinate_manager = coordinate_manager

    @property
    def C(self) -> Tensor:
        return self.coordinate_manager[self.coordinate_map_key]

    @property
    def tensor_stride(self) -> list[int]:
        return list(self.coordinate_map_key)


class EngineMapped(Mapped):
    """One with the engine's look-up, which notes what it is asked."""

    def features_at_coordinates(self, query: Tensor) -> Tensor:
        self.asked = query
        return torch.full((len(query), self.F.shape[1]), 7.0)


def tensor_of(grid: VoxelGrid, feats: Tensor, stride: int = 1) -> Mapped:
    """Rows in another order than the grid's, as those of a hash table."""
    order = torch.randperm(len(grid), generator=torch.Generator().manual_seed(1))
    coordinates = torch.cat((grid.batch[:, None], grid.coords), dim=1).int()
    return Mapped(feats[order], coordinates[order], stride)


def cloud(stride: int = 1, samples: int = 2) -> VoxelGrid:
    generator = torch.Generator().manual_seed(0)
    taken = (torch.rand(samples, 4, 5, 3, generator=generator) < 0.5).nonzero()
    return VoxelGrid.from_coords((taken[:, 1:] - 2) * stride, batch=taken[:, 0])


# -- the order of kernels


def test_rows_of_a_kernel_count_x_first() -> None:
    offsets = minkowski_offsets(2)
    assert offsets.tolist() == [
        [0, 0, 0],
        [1, 0, 0],
        [0, 1, 0],
        [1, 1, 0],
        [0, 0, 1],
        [1, 0, 1],
        [0, 1, 1],
        [1, 1, 1],
    ]


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("size", "first"), [(2, 0), (3, -1), (5, -2)])
def test_offsets_are_the_engines_rule(size: int, first: int, stride: int) -> None:
    offsets = minkowski_offsets(size, stride)
    for row in range(size**3):
        index = row
        for axis in range(3):
            assert offsets[row, axis] == (index % size + first) * stride
            index //= size
    assert len(offsets) == size**3


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [2, 3, 5])
def test_every_number_of_an_index_kernel_is_at_its_position(size: int, stride: int) -> None:
    """One voxel at a time: its neighbour at an offset gets the number of the row of that offset, to the bit."""
    kernel = torch.arange(1.0, size**3 + 1).reshape(size**3, 1, 1)
    weight = minkowski_to_conv3d(kernel)
    before = size // 2 if size % 2 else 0
    after = size - 1 - before
    output = torch.tensor([4, 6, 2])  # a multiple of the stride
    for row, offset in enumerate(minkowski_offsets(size).tolist()):
        box = torch.zeros(1, 1, BOX, BOX, BOX)
        x, y, z = (output + torch.tensor(offset)).tolist()
        box[0, 0, x, y, z] = 1
        padded = F.pad(box, (before, after) * 3)
        result = F.conv3d(padded, weight, stride=stride)
        at = (output // stride).tolist()
        assert result[0, 0, at[0], at[1], at[2]].item() == row + 1


@pytest.mark.parametrize("size", [2, 3])
def test_a_transposed_kernel_leads_from_the_coarse_cell_to_its_offset(size: int) -> None:
    kernel = torch.arange(1.0, size**3 + 1).reshape(size**3, 1, 1)
    weight = minkowski_to_conv3d(kernel).transpose(0, 1)
    coarse = torch.zeros(1, 1, 5, 5, 5)
    coarse[0, 0, 2, 1, 2] = 1
    fine = F.conv_transpose3d(coarse, weight, stride=2, padding=size // 2 if size % 2 else 0)
    for row, offset in enumerate(minkowski_offsets(size).tolist()):
        x, y, z = (2 * torch.tensor([2, 1, 2]) + torch.tensor(offset)).tolist()
        assert fine[0, 0, x, y, z].item() == row + 1


def test_channels_stay_channels() -> None:
    kernel = torch.arange(27 * 2 * 4.0).reshape(27, 2, 4)
    weight = minkowski_to_conv3d(kernel)
    assert weight.shape == (4, 2, 3, 3, 3)
    assert weight[3, 1, 2, 0, 1] == kernel[2 + 3 * 0 + 9 * 1, 1, 3]
    single = minkowski_to_conv3d(kernel[0])
    assert torch.equal(single[:, :, 0, 0, 0], kernel[0].T)


@pytest.mark.parametrize("shape", [(26, 2, 4), (27,), (0, 2, 4), (3, 3, 3, 2, 4)])
def test_what_is_no_kernel_is_named(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match=r"expected \(K³, C_in, C_out\)"):
        minkowski_to_conv3d(torch.zeros(shape))


# -- the adapter


def test_the_adapter_reads_coordinates_strides_and_features() -> None:
    grid = cloud(stride=2)
    x = tensor_of(grid, torch.rand(len(grid), 3), stride=2)
    adapter = adapter_of(x)
    assert isinstance(adapter, MinkowskiAdapter)
    coords, batch = adapter.coords(x, 2)
    assert torch.equal(coords, x.C[:, 1:].long()) and torch.equal(batch, x.C[:, 0].long())
    assert adapter.strides(x) == (2, 2, 2)
    assert adapter.features(x) is x.F


def test_other_features_share_the_coordinate_map() -> None:
    grid = cloud()
    x = tensor_of(grid, torch.rand(len(grid), 3))
    again = MinkowskiAdapter().with_features(x, x.F * 2)
    assert again.coordinate_manager is x.coordinate_manager
    assert torch.equal(again.F, x.F * 2)
    assert again.tensor_stride == x.tensor_stride


def test_a_tensor_of_another_stride_is_named() -> None:
    grid = cloud(stride=4)
    x = tensor_of(grid, torch.rand(len(grid), 3), stride=4)
    with pytest.raises(ShapeError, match=r"tensor_stride \[4, 4, 4\] where stride 2"):
        MinkowskiAdapter().coords(x, 2)


@pytest.mark.parametrize("stride", [1, 2])
def test_features_at_cells_are_the_cells_features(stride: int) -> None:
    grid = cloud(stride)
    feats = torch.rand(len(grid), 3)
    x = tensor_of(grid, feats, stride)
    found = MinkowskiAdapter().features_at_coordinates(x, grid.coords, grid.batch)
    assert torch.equal(found, feats)
    outside = MinkowskiAdapter().features_at_coordinates(x, grid.coords + 100, grid.batch)
    assert not outside.any()


def test_features_of_a_tensor_without_cells_are_zero() -> None:
    empty = Mapped(torch.zeros(0, 3), torch.zeros(0, 4).int())

    found = MinkowskiAdapter().features_at_coordinates(empty, torch.rand(5, 3), torch.zeros(5))

    assert torch.equal(found, torch.zeros(5, 3))


@pytest.mark.parametrize("stride", [1, 2])
def test_features_between_cells_are_those_of_a_dense_box(stride: int) -> None:
    grid = cloud(stride, samples=1)
    feats = torch.rand(len(grid), 3, dtype=torch.float64)
    x = tensor_of(grid, feats, stride)
    dense = torch.zeros(1, 3, BOX, BOX, BOX, dtype=torch.float64)
    place = (grid.coords // stride + 4).unbind(1)
    dense[0, :, place[0], place[1], place[2]] = feats.T
    coords = torch.rand(50, 3, dtype=torch.float64) * 6 * stride - 3 * stride
    # grid_sample takes (z, y, x) of the last axes first, from -1 to 1 over the centres of cells
    relative = 2 * (coords / stride + 4) / (BOX - 1) - 1
    expected = F.grid_sample(dense, relative.flip(1)[None, None, None], align_corners=True)
    found = MinkowskiAdapter().features_at_coordinates(x, coords, torch.zeros(50).long())
    torch.testing.assert_close(found, expected[0, :, 0, 0].T)


def test_the_engines_own_look_up_is_used_where_there_is_one() -> None:
    grid = cloud()
    x = EngineMapped(torch.rand(len(grid), 3), torch.cat((grid.batch[:, None], grid.coords), 1))
    found = MinkowskiAdapter().features_at_coordinates(x, grid.coords[:2], grid.batch[:2])
    assert torch.equal(found, torch.full((2, 3), 7.0))
    assert x.asked.dtype == x.F.dtype
    assert torch.equal(x.asked[:, 1:].long(), grid.coords[:2])


def test_places_and_samples_that_do_not_fit_are_named() -> None:
    grid = cloud()
    x = tensor_of(grid, torch.rand(len(grid), 3))
    with pytest.raises(ShapeError, match=r"\(5, 3\) and batch \(4,\)"):
        MinkowskiAdapter().features_at_coordinates(x, torch.zeros(5, 3), torch.zeros(4))


UP = {8: 256, 4: 128, 2: 96, 1: 96}
SKIP = {8: 128, 4: 64, 2: 32, 1: 32}


class Decoder(nn.Module):
    """The decoder of Mask3D's and ESAM's Res16UNet34C by its names: each block gets [up, skip]."""

    def __init__(self) -> None:
        super().__init__()
        for number in (5, 6, 7, 8):
            self.add_module(f"block{number}", nn.Identity())

    def forward(self, levels: dict[int, Mapped]) -> dict[int, Tensor]:
        found = {}
        for number, (stride, x) in enumerate(levels.items(), start=5):
            found[stride] = self.get_submodule(f"block{number}")(x).F
        return found


def test_a_res16unet34c_of_the_engine_is_injected_into_by_name() -> None:
    grid = cloud()
    seen = torch.rand(len(grid)) < 0.7
    features = SparseFeatures(
        grid.coords, grid.batch, torch.rand(len(grid), 5) * seen[:, None], seen
    )
    pyramid = SparsePyramid((1, 2, 4, 8))(features)
    levels = {}
    for stride in (8, 4, 2, 1):
        cells = VoxelGrid.from_coords(pyramid[stride].coords, pyramid[stride].batch)
        width = UP[stride] + SKIP[stride]
        levels[stride] = tensor_of(cells, torch.rand(len(cells), width), stride)
    network = Decoder()
    injection = DecoderInjection(5, levels=UP, zero_init=False)
    injection.attach(network, {8: "block5", 4: "block6", 2: "block7", 1: "block8"})
    with injection.using(pyramid):
        found = network(levels)
    for stride, x in levels.items():
        up = UP[stride]
        coords, batch = MinkowskiAdapter().coords(x, stride)
        expected = injection.inject(x.F[:, :up], pyramid[stride], coords, batch)
        assert torch.equal(found[stride], torch.cat((expected, x.F[:, up:]), dim=1))
        assert injection.stats[stride].hit_rate == pytest.approx(
            float(pyramid[stride].valid.double().mean())
        )
