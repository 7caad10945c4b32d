"""Sparse convolutions against dense ones, on both engines."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from examples.pointcloud import sparse_conv
from tests.unit.pointcloud.sparse_clouds import ENGINES, Dense, cloud, features, kernel, layers_of, needs_spconv
from torch import Tensor, nn

from dinoneck.points import PlainAdapter, PlainSparse, VoxelGrid, adapter_of
from dinoneck.points.keys import REACH

C_IN, C_OUT = 3, 4


@pytest.fixture(params=ENGINES)
def layers(request: pytest.FixtureRequest) -> Any:
    torch.manual_seed(0)
    return layers_of(request.param)


def leaf(x: PlainSparse, channels: int = C_IN) -> Any:
    made = torch.Generator().manual_seed(1)
    return x.with_feats(torch.randn(len(x.feats), channels, generator=made, dtype=torch.float64).requires_grad_())


def of_stride(layers: Any, stride: int) -> Any:
    x = layers.sparse(cloud(), features(cloud(), C_IN))
    for _ in range(stride.bit_length() - 1):
        x = layers.DownConv(C_IN, C_IN).double()(x)
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
def test_submanifold_is_a_dense_convolution_read_at_the_voxels(layers: Any, size: int, stride: int) -> None:
    x, conv, box = of_stride(layers, stride), layers.SubmanifoldConv(C_IN, C_OUT, size).double(), Dense(stride)
    out = conv(x)
    assert torch.equal(out.coords, x.coords)
    dense = F.conv3d(box.filled(x), kernel(conv.weight), padding=size // 2)
    compared(conv, x, out.feats, box.read(dense, x))


@pytest.mark.parametrize("stride", [1, 2, 8])
def test_down_is_a_dense_convolution_at_every_cell_that_holds_a_voxel(layers: Any, stride: int) -> None:
    x, conv = of_stride(layers, stride), layers.DownConv(C_IN, C_OUT).double()
    out = conv(x)
    cells = torch.cat((x.batch[:, None], x.coords.div(2 * stride, rounding_mode="floor") * (2 * stride)), dim=1)
    got = torch.cat((out.batch[:, None], out.coords), dim=1)
    assert torch.equal(got.unique(dim=0), cells.unique(dim=0))
    assert len(got) == len(got.unique(dim=0))
    dense = F.conv3d(Dense(stride).filled(x), kernel(conv.weight), stride=2)
    compared(conv, x, out.feats, Dense(2 * stride).read(dense, out))


@pytest.mark.parametrize("stride", [1, 2, 8])
def test_up_is_the_dense_transposed_convolution_at_the_finer_voxels(layers: Any, stride: int) -> None:
    finer, conv = of_stride(layers, stride), layers.UpConv(C_IN, C_OUT).double()
    x = leaf(layers.DownConv(C_IN, C_IN).double()(finer))
    out = conv(x, finer)
    assert torch.equal(out.coords, finer.coords)
    assert torch.equal(out.batch, finer.batch)
    dense = F.conv_transpose3d(Dense(2 * stride).filled(x), kernel(conv.weight, transposed=True), stride=2)
    compared(conv, x, out.feats, Dense(stride).read(dense, finer))


def convolutions(layers: Any, x: Any) -> dict[str, tuple[nn.Module, Callable[[Tensor], Tensor], int]]:
    """Name -> module, what it does to features, their number of rows."""
    same, down, up = layers.SubmanifoldConv(C_IN, C_OUT), layers.DownConv(C_IN, C_OUT), layers.UpConv(C_IN, C_OUT)
    low = down.to(x.feats.dtype)(x)
    return {
        "same": (same, lambda feats: same(x.with_feats(feats)).feats, len(x.feats)),
        "down": (down, lambda feats: down(x.with_feats(feats)).feats, len(x.feats)),
        "up": (up, lambda feats: up(low.with_feats(feats), x).feats, len(low.feats)),
    }


@pytest.mark.parametrize("name", ["same", "down", "up"])
def test_gradients_are_those_of_finite_differences(name: str) -> None:
    torch.manual_seed(0)
    grid = cloud(share=0.08)
    conv, run, rows = convolutions(sparse_conv, sparse_conv.sparse(grid, features(grid, C_IN)))[name]
    conv.double()
    feats = torch.randn(rows, C_IN, dtype=torch.float64, requires_grad=True)

    def of(feats: Tensor, weight: Tensor) -> Tensor:
        return torch.func.functional_call(Runner(conv, run), {"conv.weight": weight}, (feats,))

    assert torch.autograd.gradcheck(of, (feats, conv.weight))
    (only,) = torch.autograd.grad(run(feats.detach()).sum(), (conv.weight,))  # the first layer of a network
    assert only.abs().max() > 0


class Runner(nn.Module):
    def __init__(self, conv: nn.Module, run: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.run = conv, run

    def forward(self, feats: Tensor) -> Tensor:
        return self.run(feats)


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


@needs_spconv
def test_spconv_coordinates_are_in_base_units_for_every_adapter() -> None:
    layers, grid = layers_of("spconv"), cloud(shift=(-1000, 70000, 33))
    x = layers.sparse(grid, features(grid, C_IN))
    y = layers.DownConv(C_IN, C_IN).double()(x)
    assert type(adapter_of(y)) is PlainAdapter
    again = adapter_of(y).with_features(y, y.feats * 2)
    assert again.frame is y.frame
    cells = sparse_conv.DownConv(C_IN, C_IN).double()(sparse_conv.sparse(grid, x.feats))
    found = torch.cat((y.batch[:, None], y.coords), dim=1)
    assert torch.equal(found.unique(dim=0), torch.cat((cells.batch[:, None], cells.coords), dim=1).unique(dim=0))
