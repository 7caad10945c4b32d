"""Sparse convolutions against dense ones, values and gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from examples.pointcloud import sparse_conv
from tests.unit.pointcloud.sparse_clouds import Dense, cloud, features, kernel
from torch import Tensor, nn

from dinoneck.points import PlainSparse, VoxelGrid
from dinoneck.points.keys import REACH

C_IN, C_OUT = 3, 4


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def leaf(x: PlainSparse, channels: int = C_IN) -> Any:
    made = torch.Generator().manual_seed(1)
    return x.with_feats(torch.randn(len(x.feats), channels, generator=made, dtype=torch.float64).requires_grad_())


def of_stride(stride: int) -> Any:
    x = sparse_conv.sparse(cloud(), features(cloud(), C_IN))
    for _ in range(stride.bit_length() - 1):
        x = sparse_conv.DownConv(C_IN, C_IN).double()(x)
    return leaf(x)


def compared(conv: nn.Module, x: Any, out: Tensor, dense: Tensor) -> None:
    """Values and both gradients."""
    made = torch.Generator().manual_seed(2)
    torch.testing.assert_close(out, dense, rtol=0, atol=1e-12)
    weights = torch.randn(out.shape, generator=made, dtype=out.dtype)
    own = torch.autograd.grad((out * weights).sum(), (x.feats, conv.weight))
    expected = torch.autograd.grad((dense * weights).sum(), (x.feats, conv.weight))
    for got, want in zip(own, expected, strict=True):
        assert want.abs().max() > 0
        torch.testing.assert_close(got, want, rtol=0, atol=1e-11)


@pytest.mark.parametrize("stride", [1, 2, 8])
@pytest.mark.parametrize("size", [3, 5])
def test_submanifold_is_a_dense_convolution_read_at_the_voxels(size: int, stride: int) -> None:
    x, conv, box = of_stride(stride), sparse_conv.SubmanifoldConv(C_IN, C_OUT, size).double(), Dense(stride)
    out = conv(x)
    assert torch.equal(out.coords, x.coords)
    dense = F.conv3d(box.filled(x), kernel(conv.weight), padding=size // 2)
    compared(conv, x, out.feats, box.read(dense, x))


@pytest.mark.parametrize("stride", [1, 2, 8])
def test_down_is_a_dense_convolution_at_every_cell_that_holds_a_voxel(stride: int) -> None:
    x, conv = of_stride(stride), sparse_conv.DownConv(C_IN, C_OUT).double()
    out = conv(x)
    cells = torch.cat((x.batch[:, None], x.coords.div(2 * stride, rounding_mode="floor") * (2 * stride)), dim=1)
    got = torch.cat((out.batch[:, None], out.coords), dim=1)
    assert torch.equal(got.unique(dim=0), cells.unique(dim=0))
    assert len(got) == len(got.unique(dim=0))
    dense = F.conv3d(Dense(stride).filled(x), kernel(conv.weight), stride=2)
    compared(conv, x, out.feats, Dense(2 * stride).read(dense, out))


@pytest.mark.parametrize("stride", [1, 2, 8])
def test_up_is_the_dense_transposed_convolution_at_the_finer_voxels(stride: int) -> None:
    finer, conv = of_stride(stride), sparse_conv.UpConv(C_IN, C_OUT).double()
    x = leaf(sparse_conv.DownConv(C_IN, C_IN).double()(finer))
    out = conv(x, finer)
    assert torch.equal(out.coords, finer.coords)
    assert torch.equal(out.batch, finer.batch)
    dense = F.conv_transpose3d(Dense(2 * stride).filled(x), kernel(conv.weight, transposed=True), stride=2)
    compared(conv, x, out.feats, Dense(stride).read(dense, finer))


def test_voxels_at_the_ends_of_the_range_are_no_neighbours() -> None:
    ends = torch.tensor([[-REACH, 0, 0], [REACH - 1, 0, 0], [REACH - 2, 0, 0], [0, -REACH, 5], [0, REACH - 1, 5]])
    grid = VoxelGrid.from_coords(ends)
    conv = sparse_conv.SubmanifoldConv(1, 1, 5)
    nn.init.ones_(conv.weight)
    out = conv(sparse_conv.sparse(grid, torch.ones(5, 1)))
    found = {
        tuple(place): value for place, value in zip(out.coords.tolist(), out.feats.flatten().tolist(), strict=True)
    }
    assert [found[tuple(place)] for place in ends.tolist()] == [1, 2, 2, 1, 1]
