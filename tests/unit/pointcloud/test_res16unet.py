"""The sparse U-Net against a dense one."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from examples.pointcloud.res16unet import Res16UNet
from torch import Tensor, nn

from dinoneck.points import PlainSparse, VoxelGrid

C_IN = 3
SMALL: dict[str, Any] = {
    "planes": (5, 6, 7, 8, 9, 10, 11, 12),
    "layers": (1, 2, 1, 1, 2, 1, 1, 1),
    "init_dim": 4,
}


def cloud() -> VoxelGrid:
    """Extents 13, 7 and 5 around 0; half the places of sample 1 are those of sample 0."""
    taken = torch.rand(2, 13, 7, 5) < 0.3
    taken[1, ::2] = taken[0, ::2]
    places = taken.nonzero()
    return VoxelGrid.from_coords(places[:, 1:] - torch.tensor([7, 3, 2]), places[:, 0])


class CellBox:
    """A box of cells of one stride, for two samples, with room around all voxels."""

    LOW = -16  # the first coordinate of every axis; a multiple of all strides
    SIZE = 32

    def __init__(self, stride: int) -> None:
        self.stride = stride
        self.cells = self.SIZE // stride

    def index(self, coords: Tensor, batch: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the index of voxels in a box (2, cells, cells, cells, C)."""
        x, y, z = ((coords - self.LOW) // self.stride).T
        return batch, x, y, z

    def scatter(self, x: PlainSparse) -> Tensor:
        """Return (2, C, cells, cells, cells), with zeros where no voxel is."""
        channels = x.feats.shape[1]
        box = x.feats.new_zeros(2, self.cells, self.cells, self.cells, channels)
        box = box.index_put(self.index(x.coords, x.batch), x.feats)
        return box.permute(0, 4, 1, 2, 3)

    def gather(self, box: Tensor, x: PlainSparse) -> Tensor:
        """Return (M, C): the box (2, C, cells, cells, cells) at the voxels of x."""
        rows = box.permute(0, 2, 3, 4, 1)
        return rows[self.index(x.coords, x.batch)]


def kernel(weight: Tensor, transposed: bool = False) -> Tensor:
    """Return a weight (C_out, k, k, k, C_in) as conv3d or conv_transpose3d takes it."""
    if transposed:
        return weight.permute(4, 0, 1, 2, 3)
    return weight.permute(0, 4, 1, 2, 3)


def small() -> Res16UNet:
    torch.manual_seed(0)
    net = Res16UNet(C_IN, **SMALL).double()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm1d):  # as after some training
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
            nn.init.uniform_(module.running_mean, -0.3, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return net


class DenseRes16UNet:
    """The same network on boxes of cells, zero wherever no voxel is."""

    def __init__(self, net: Res16UNet, grid: VoxelGrid) -> None:
        self.net = net
        self.finest = CellBox(stride=1)
        self.masks = []  # of each level, (2, 1, cells, cells, cells): 1 where a voxel is
        for level in range(5):
            box = CellBox(stride=2**level)
            batch, x, y, z = box.index(grid.coords, grid.batch)
            mask = torch.zeros(2, 1, box.cells, box.cells, box.cells, dtype=torch.float64)
            mask[batch, 0, x, y, z] = 1
            self.masks.append(mask)

    def at_voxels(self, layer: nn.Module, x: Tensor, level: int) -> Tensor:
        """Apply a layer of rows (M, C) to every cell, and put zeros where no voxel is."""
        box = x.permute(0, 2, 3, 4, 1)
        rows = box.flatten(0, 3)
        done: Tensor = layer(rows).unflatten(0, box.shape[:4])
        return done.permute(0, 4, 1, 2, 3) * self.masks[level]

    def stage(self, name: str, x: Tensor, level: int) -> Tensor:
        step: Any = self.net.get_submodule(name)
        weight = step.conv.weight
        if name == "stem":
            x = F.conv3d(x, kernel(weight), padding=2)
        elif name.startswith("down"):
            x = F.conv3d(x, kernel(weight), stride=2)
        else:
            x = F.conv_transpose3d(x, kernel(weight, transposed=True), stride=2)
        return self.at_voxels(step.norm, x, level).relu()

    def blocks(self, name: str, x: Tensor, level: int) -> Tensor:
        """Apply the residual blocks of this name."""
        for child in self.net.get_submodule(name).children():
            block: Any = child
            out = F.conv3d(x, kernel(block.first.conv.weight), padding=1)
            out = self.at_voxels(block.first.norm, out, level).relu()
            out = F.conv3d(out, kernel(block.conv.weight), padding=1)
            out = self.at_voxels(block.norm, out, level)
            shortcut = self.at_voxels(block.shortcut, x, level)
            x = (out + shortcut).relu()
        return x

    def __call__(self, x: PlainSparse) -> Tensor:
        out = self.stage("stem", self.finest.scatter(x), level=0)
        skips = []
        for level in range(1, 5):
            skips.append(out)
            out = self.stage(f"down{level}", out, level)
            out = self.blocks(f"block{level}", out, level)
        for number in range(5, 9):
            level = 8 - number
            up = self.stage(f"up{number}", out, level)
            out = torch.cat([up, skips[level]], dim=1)
            out = self.blocks(f"block{number}", out, level)
        return self.finest.gather(out, x)


def test_values_and_gradients_are_those_of_a_dense_network_with_zeros_outside() -> None:
    """Values, and the gradients of all weights: of every kind of convolution, at every stride."""
    net = small().eval()
    grid = cloud()
    x = net.sparse(grid, torch.randn(len(grid), C_IN, dtype=torch.float64))

    sparse = net(x)
    dense = DenseRes16UNet(net, grid)(x)

    torch.testing.assert_close(sparse, dense, rtol=0, atol=1e-11)
    weights = list(net.parameters())
    grad_output = torch.randn_like(sparse)
    sparse_grads = torch.autograd.grad(sparse, weights, grad_output)
    dense_grads = torch.autograd.grad(dense, weights, grad_output)
    for got, expected in zip(sparse_grads, dense_grads, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


def test_the_defaults_are_res16unet34c() -> None:
    with torch.device("meta"):
        net = Res16UNet(3)
    num_parameters = sum(parameter.numel() for parameter in net.parameters())

    assert num_parameters == 37_854_112
    assert net.out_channels == 96
    assert net.levels() == {8: 256, 4: 128, 2: 96, 1: 96}
