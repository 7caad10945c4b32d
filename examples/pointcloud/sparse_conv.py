"""Convolutions on occupied voxels in plain PyTorch: per kernel position gather rows, multiply, add.

A level is a list of cells sorted by Morton key. The neighbours of its cells are found by binary
search once per kernel size, and shared by all convolutions of the level. It runs on any device, in
float32; on GPUs it launches many kernels: training on large scans needs a library such as spconv.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dinoneck.points import PlainSparse, VoxelGrid
from dinoneck.points.keys import AXIS_BITS, REACH, at_stride, decode, encode

_EVERY_THIRD_BIT = int("1" * AXIS_BITS, 8)
_AXIS_MASKS = (_EVERY_THIRD_BIT << 2, _EVERY_THIRD_BIT << 1, _EVERY_THIRD_BIT)  # x, y, z of a key
_NO_KEY = -1


class Pairs(NamedTuple):
    """The pairs of input and output rows of a kernel.

    Attributes:
        rows: number of rows of the output.
        entries: kernel position, rows of the input, rows of the output.
    """

    rows: int
    entries: Sequence[tuple[int, Tensor, Tensor]]


class Level:
    """The occupied cells of one stride and their neighbours, which are computed when needed.

    Attributes:
        keys: int64 (M,), rising.
        stride: voxels per cell.
        coords: int64 (M, 3), base units.
        batch: int64 (M,).
    """

    def __init__(self, keys: Tensor, stride: int = 1) -> None:
        self.keys = keys
        self.stride = stride
        self.coords, self.batch = decode(keys)
        self._neighbours: dict[int, Pairs] = {}

    def neighbours(self, size: int) -> Pairs:
        """Return the pairs of a kernel of ``size`` cells along each axis.

        Its positions count z first, then y, x.
        """
        if size not in self._neighbours:
            self._neighbours[size] = self._find_neighbours(size)
        return self._neighbours[size]

    @cached_property
    def coarser(self) -> tuple[Level, Pairs]:
        """The cells of twice the stride and the pairs that lead there; positions are octants."""
        stride = 2 * self.stride
        keys, cell = torch.unique_consecutive(at_stride(self.keys, stride), return_inverse=True)
        octant = self.keys >> 3 * (self.stride.bit_length() - 1) & 7
        entries = []
        for position in range(8):
            rows = (octant == position).nonzero().squeeze(1)
            if len(rows) > 0:
                entries.append((position, rows, cell[rows]))
        return Level(keys, stride), Pairs(len(keys), entries)

    def _find_neighbours(self, size: int) -> Pairs:
        num_rows = len(self.keys)
        centre = size**3 // 2
        all_rows = torch.arange(num_rows, device=self.keys.device)
        entries = [(centre, all_rows, all_rows)]
        if num_rows == 0:
            return Pairs(num_rows, entries)

        # step along an axis -> the bits of that axis in the key of the neighbour
        x_bits = self._moved_bits(size, axis=0)
        y_bits = self._moved_bits(size, axis=1)
        z_bits = self._moved_bits(size, axis=2)
        batch_bits = self.keys >> 3 * AXIS_BITS << 3 * AXIS_BITS
        last_position = size**3 - 1
        # positions behind the centre have the same pairs, the other way round
        for position in range(centre):
            x = position // size**2
            y = position // size % size
            z = position % size
            neighbour_keys = batch_bits | x_bits[x] | y_bits[y] | z_bits[z]
            source = torch.searchsorted(self.keys, neighbour_keys).clamp_(max=num_rows - 1)
            target = (self.keys[source] == neighbour_keys).nonzero().squeeze(1)
            if len(target) > 0:
                entries.append((position, source[target], target))
                entries.append((last_position - position, target, source[target]))
        return Pairs(num_rows, entries)

    def _moved_bits(self, size: int, axis: int) -> list[Tensor]:
        """Return the bits of an axis for every step of a kernel.

        Where a step leaves the range of keys they are ``_NO_KEY``, which stays so with any other
        bits.
        """
        bits = []
        for step in range(size):
            moved = self.coords + (step - size // 2) * self.stride
            keys = encode(moved.clamp(-REACH, REACH - 1))
            along_axis = moved[:, axis]
            is_outside = (along_axis < -REACH) | (along_axis >= REACH)
            bits.append(torch.where(is_outside, _NO_KEY, keys & _AXIS_MASKS[axis]))
        return bits


@dataclass(frozen=True)
class LevelSparse(PlainSparse):
    """A sparse tensor whose voxels are a :class:`Level`.

    ``with_feats`` keeps the level, and with it the neighbours that were found.
    """

    level: Level


def sparse(grid: VoxelGrid, feats: Tensor) -> LevelSparse:
    """Return features (M, C) on the voxels of a grid."""
    level = Level(grid.keys)
    return LevelSparse(level.coords, level.batch, feats, level)


class _Convolution(nn.Module):
    def __init__(self, c_in: int, c_out: int, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(c_out, size, size, size, c_in))
        with torch.no_grad():
            nn.init.kaiming_normal_(self.weight.flatten(1), nonlinearity="relu")

    def convolve(self, feats: Tensor, pairs: Pairs) -> Tensor:
        """Return the output's features: per kernel position gather rows, multiply, add."""
        kernels = self.weight.flatten(1, 3)  # (C_out, k^3, C_in)
        out = feats.new_zeros(pairs.rows, len(kernels))
        for position, source, target in pairs.entries:
            # no row occurs twice in target, so the sum does not depend on the order of threads
            out = out.index_add(0, target, feats[source] @ kernels[:, position].T)
        return out


class SubmanifoldConv(_Convolution):
    """A convolution at the occupied voxels, without bias.

    It equals ``conv3d`` with zeros elsewhere, read at the occupied voxels. ``weight`` is (C_out, k,
    k, k, C_in), k odd, kernel axes in the order of the coordinates: spconv's own layout.
    """

    def __init__(self, c_in: int, c_out: int, kernel_size: int = 3) -> None:
        super().__init__(c_in, c_out, kernel_size)

    def forward(self, x: LevelSparse) -> LevelSparse:
        """Return other features on the same voxels."""
        kernel_size = self.weight.shape[1]
        pairs = x.level.neighbours(kernel_size)
        return replace(x, feats=self.convolve(x.feats, pairs))


class DownConv(_Convolution):
    """A convolution of kernel 2 and stride 2 to all cells that contain a voxel.

    Cells begin at even coordinates, also at negative ones.
    """

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__(c_in, c_out, 2)

    def forward(self, x: LevelSparse) -> LevelSparse:
        """Return features on the cells of twice the stride."""
        level, pairs = x.level.coarser
        feats = self.convolve(x.feats, pairs)
        return LevelSparse(level.coords, level.batch, feats, level)


class UpConv(_Convolution):
    """The transposed convolution of kernel 2 and stride 2, read at voxels that are given."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__(c_in, c_out, 2)

    def forward(self, x: LevelSparse, finer: LevelSparse) -> LevelSparse:
        """Return features on the voxels of ``finer``."""
        _, pairs = finer.level.coarser  # x has these cells: it comes from ``finer`` by DownConv
        transposed = [(position, cells, rows) for position, rows, cells in pairs.entries]
        feats = self.convolve(x.feats, Pairs(len(finer.feats), transposed))
        return replace(finer, feats=feats)
