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


class Dense:
    """A box of cells of one stride with room around all voxels, beginning at a multiple of 16."""

    LOW, SIZE = -16, 32

    def __init__(self, stride: int) -> None:
        self.stride, self.cells = stride, self.SIZE // stride

    def at(self, coords: Tensor, batch: Tensor) -> tuple[Tensor, ...]:
        return (batch, *((coords - self.LOW) // self.stride).T)

    def filled(self, x: PlainSparse) -> Tensor:
        """(2, C, cells, cells, cells), zeros where nothing is."""
        box = x.feats.new_zeros(2, *[self.cells] * 3, x.feats.shape[1])
        return box.index_put(self.at(x.coords, x.batch), x.feats).permute(0, 4, 1, 2, 3)

    def read(self, box: Tensor, x: PlainSparse) -> Tensor:
        """(M, C) at the voxels of x."""
        return box.permute(0, 2, 3, 4, 1)[self.at(x.coords, x.batch)]


def kernel(weight: Tensor, transposed: bool = False) -> Tensor:
    """(C_out, k, k, k, C_in) as conv3d, or conv_transpose3d, takes it."""
    return weight.permute(4, 0, 1, 2, 3) if transposed else weight.permute(0, 4, 1, 2, 3)


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


class Masked:
    """The same network on boxes of cells, zero wherever no voxel is."""

    def __init__(self, net: Res16UNet, grid: VoxelGrid) -> None:
        self.net = net
        self.masks, self.boxes = [], [Dense(1 << level) for level in range(5)]
        for box in self.boxes:
            ones = torch.zeros(2, 1, *[box.cells] * 3, dtype=torch.float64)
            batch, *place = box.at(grid.coords, grid.batch)
            ones[batch, 0, place[0], place[1], place[2]] = 1
            self.masks.append(ones)

    def normed(self, norm: nn.Module, x: Tensor, level: int) -> Tensor:
        return self.per_voxel(norm, x) * self.masks[level]

    def per_voxel(self, layer: nn.Module, x: Tensor) -> Tensor:
        rows = x.permute(0, 2, 3, 4, 1)
        done: Tensor = layer(rows.flatten(0, 3)).unflatten(0, rows.shape[:4])
        return done.permute(0, 4, 1, 2, 3)

    def stage(self, name: str, x: Tensor, level: int) -> Tensor:
        step: Any = self.net.get_submodule(name)
        weight = step.conv.weight
        if name == "stem":
            moved = F.conv3d(x, kernel(weight), padding=2)
        elif name.startswith("down"):
            moved = F.conv3d(x, kernel(weight), stride=2)
        else:
            moved = F.conv_transpose3d(x, kernel(weight, transposed=True), stride=2)
        return self.normed(step.norm, moved, level).relu()

    def block(self, name: str, x: Tensor, level: int) -> Tensor:
        for part in self.net.get_submodule(name).children():
            module: Any = part
            first = F.conv3d(x, kernel(module.first.conv.weight), padding=1)
            out = F.conv3d(
                self.normed(module.first.norm, first, level).relu(),
                kernel(module.conv.weight),
                padding=1,
            )
            shortcut = self.per_voxel(module.shortcut, x) * self.masks[level]
            x = (self.normed(module.norm, out, level) + shortcut).relu()
        return x

    def __call__(self, x: PlainSparse) -> Tensor:
        out, skips = self.stage("stem", self.boxes[0].filled(x), 0), []
        for level in range(1, 5):
            skips.append(out)
            out = self.block(f"block{level}", self.stage(f"down{level}", out, level), level)
        for number in range(5, 9):
            up = self.stage(f"up{number}", out, 8 - number)
            out = self.block(
                f"block{number}", torch.cat((up, skips[8 - number]), dim=1), 8 - number
            )
        return self.boxes[0].read(out, x)


def test_it_is_the_dense_network_with_zeros_outside() -> None:
    """Values, and the gradients of all weights: of every kind of convolution, at every stride."""
    net, grid = small().eval(), cloud()
    x = net.sparse(grid, torch.randn(len(grid), C_IN, dtype=torch.float64))
    own, dense = net(x), Masked(net, grid)(x)
    torch.testing.assert_close(own, dense, rtol=0, atol=1e-11)
    weights, loss = list(net.parameters()), torch.randn_like(own)
    grads = (torch.autograd.grad((out * loss).sum(), weights) for out in (own, dense))
    for got, expected in zip(*grads, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


def test_the_defaults_are_res16unet34c() -> None:
    with torch.device("meta"):
        net = Res16UNet(3)
    assert sum(p.numel() for p in net.parameters()) == 37_854_112
    assert net.out_channels == 96 and net.levels() == {8: 256, 4: 128, 2: 96, 1: 96}
