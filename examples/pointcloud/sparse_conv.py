"""Convolutions on occupied voxels in plain PyTorch: per kernel position gather rows, multiply, add.

A level is a list of cells sorted by Morton key; who neighbours whom is found by binary search once
per level and kernel size, and shared by all convolutions of that level. It runs on any device, in
float32; on GPUs it means many launches: training on large scans needs a library such as spconv.
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

_AXES = tuple(int("1" * AXIS_BITS, 8) << shift for shift in (2, 1, 0))  # every third bit: x, y, z


class Pairs(NamedTuple):
    """Which row feeds which: (kernel position, rows of the input, rows of the output)."""

    rows: int  # of the output
    entries: Sequence[tuple[int, Tensor, Tensor]]


class Level:
    """The occupied cells of one stride, and who neighbours whom; found when first asked for.

    Attributes:
        keys: int64 (M,), rising.
        stride: voxels per cell.
        coords: int64 (M, 3), base units.
        batch: int64 (M,).
    """

    def __init__(self, keys: Tensor, stride: int = 1) -> None:
        self.keys, self.stride = keys, stride
        self.coords, self.batch = decode(keys)
        self._neighbours: dict[int, Pairs] = {}

    def neighbours(self, size: int) -> Pairs:
        """Return the pairs of a kernel of ``size`` cells along each axis; positions count z first, then y, x."""
        if size not in self._neighbours:
            self._neighbours[size] = self._found(size)
        return self._neighbours[size]

    @cached_property
    def coarser(self) -> tuple[Level, Pairs]:
        """The cells of twice the stride and the pairs that lead there; positions are octants."""
        keys, cell = torch.unique_consecutive(
            at_stride(self.keys, 2 * self.stride), return_inverse=True
        )
        octant = self.keys >> 3 * (self.stride.bit_length() - 1) & 7
        children = [(octant == position).nonzero().squeeze(1) for position in range(8)]
        entries = [
            (position, rows, cell[rows]) for position, rows in enumerate(children) if len(rows)
        ]
        return Level(keys, 2 * self.stride), Pairs(len(keys), entries)

    def _found(self, size: int) -> Pairs:
        centre, rows = size**3 // 2, len(self.keys)
        every = torch.arange(rows, device=self.keys.device)
        entries = [(centre, every, every)]
        moved = [self.coords + (step - size // 2) * self.stride for step in range(size)]
        codes = [encode(places.clamp(-REACH, REACH - 1)) for places in moved]
        beyond = [(places < -REACH) | (places >= REACH) for places in moved]
        along = [
            [
                torch.where(out[:, axis], -1, code & bits)
                for code, out in zip(codes, beyond, strict=True)
            ]
            for axis, bits in enumerate(_AXES)
        ]
        sample = self.keys >> 3 * AXIS_BITS << 3 * AXIS_BITS
        # the other half are the same pairs, the other way round
        for position in range(centre if rows else 0):
            x, y, z = position // size**2, position // size % size, position % size
            # -1, no key, where an axis leaves the range
            wanted = sample | along[0][x] | along[1][y] | along[2][z]
            source = torch.searchsorted(self.keys, wanted).clamp_(max=rows - 1)
            target = (self.keys[source] == wanted).nonzero().squeeze(1)
            if len(target):
                entries.append((position, source[target], target))
                entries.append((size**3 - 1 - position, target, source[target]))
        return Pairs(rows, entries)


@dataclass(frozen=True)
class LevelSparse(PlainSparse):
    """A sparse tensor whose voxels are a :class:`Level`; ``with_feats`` keeps it, and with it all that was found."""

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

    def convolved(self, feats: Tensor, pairs: Pairs) -> Tensor:
        """Return the output's features: per kernel position gather rows, multiply, add."""
        kernels = self.weight.flatten(1, 3)  # (C_out, k^3, C_in)
        out = feats.new_zeros(pairs.rows, len(kernels))
        for position, source, target in pairs.entries:
            # no row occurs twice in target, so the sum does not depend on the order of threads
            out = out.index_add(0, target, feats[source] @ kernels[:, position].T)
        return out


class SubmanifoldConv(_Convolution):
    """A convolution at the occupied voxels: what ``conv3d`` with zeros elsewhere gives, read there. No bias.

    ``weight`` is (C_out, k, k, k, C_in), k odd, kernel axes in the order of the coordinates:
    spconv's own layout.
    """

    def __init__(self, c_in: int, c_out: int, kernel_size: int = 3) -> None:
        super().__init__(c_in, c_out, kernel_size)

    def forward(self, x: LevelSparse) -> LevelSparse:
        """Return other features on the same voxels."""
        return replace(x, feats=self.convolved(x.feats, x.level.neighbours(self.weight.shape[1])))


class DownConv(_Convolution):
    """Kernel 2, stride 2: to all cells that hold a voxel.

    Even coordinates begin a cell, negative ones too.
    """

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__(c_in, c_out, 2)

    def forward(self, x: LevelSparse) -> LevelSparse:
        """Return features on the cells of twice the stride."""
        level, pairs = x.level.coarser
        return LevelSparse(level.coords, level.batch, self.convolved(x.feats, pairs), level)


class UpConv(_Convolution):
    """The way back: the transposed convolution, read at the voxels that were there."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__(c_in, c_out, 2)

    def forward(self, x: LevelSparse, finer: LevelSparse) -> LevelSparse:
        """Return features on the voxels of ``finer``."""
        _, pairs = finer.level.coarser  # x is on these cells: DownConv made it of ``finer``
        back = Pairs(
            len(finer.feats), [(position, cell, rows) for position, rows, cell in pairs.entries]
        )
        return replace(finer, feats=self.convolved(x.feats, back))
