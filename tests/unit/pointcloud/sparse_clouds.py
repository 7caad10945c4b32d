"""Clouds of two samples, and their dense counterparts."""

from __future__ import annotations

import torch
from torch import Tensor

from dinoneck.points import PlainSparse, VoxelGrid


def cloud(seed: int = 0, share: float = 0.3, shift: tuple[int, int, int] = (0, 0, 0)) -> VoxelGrid:
    """Extents 13, 7 and 5 around 0; half the places of sample 1 are those of sample 0."""
    made = torch.Generator().manual_seed(seed)
    taken = torch.rand(2, 13, 7, 5, generator=made) < share
    taken[1, ::2] = taken[0, ::2]
    places = taken.nonzero()
    return VoxelGrid.from_coords(places[:, 1:] - torch.tensor([7, 3, 2]) + torch.tensor(shift), places[:, 0])


def features(grid: VoxelGrid, channels: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(len(grid), channels, generator=torch.Generator().manual_seed(seed), dtype=dtype)


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
