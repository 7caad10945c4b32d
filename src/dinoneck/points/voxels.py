"""Which voxel every point lies in."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Real

import torch
from torch import Tensor

from dinoneck.errors import ConfigError, ShapeError
from dinoneck.points.checks import check_finite, check_integers, check_tensor
from dinoneck.points.keys import decode, distinct

_FAR = 2.0**53  # beyond any key, within int64


@dataclass(frozen=True, eq=False)
class VoxelGrid:
    """The occupied voxels of a point cloud, sorted by key, and the way from points to voxels.

    Cells are found by rounding down in float64, never by truncation, so that the two cells next to 0 are as large as
    all others. Samples of a batch stay apart: the same place in two samples is two voxels. Build it with
    :meth:`from_points` from metres, or with :meth:`from_coords` where a 3D engine has already made voxels.

    Attributes:
        keys: int64 (M,), Morton keys of the voxels, strictly rising (see ``dinoneck.points.keys``).
        inverse: int64 (N,), the voxel (row of ``keys``) of every point.
        size: metres per voxel along x, y, z; 1 when built from coordinates.
        origin: metres of the corner of voxel (0, 0, 0).
        coords: int64 (M, 3), voxel coordinates.
        batch: int64 (M,), the sample of every voxel.

    Examples:
        >>> points = torch.tensor([[0.1, 0.0, 0.0], [-0.1, 0.0, 0.0], [0.3, 0.2, 0.1]])
        >>> grid = VoxelGrid.from_points(points, size=0.5)
        >>> grid.coords.tolist(), grid.inverse.tolist()
        ([[-1, 0, 0], [0, 0, 0]], [1, 0, 1])
    """

    keys: Tensor
    coords: Tensor
    batch: Tensor
    inverse: Tensor
    size: tuple[float, float, float] = (1.0, 1.0, 1.0)
    origin: tuple[float, float, float] = (0.0, 0.0, 0.0)

    @classmethod
    def from_points(
        cls,
        points: Tensor,
        size: float | Sequence[float],
        origin: float | Sequence[float] = 0.0,
        batch: Tensor | None = None,
    ) -> VoxelGrid:
        """Make voxels of points.

        Args:
            points: (N, 3) in metres, finite; N may be 0.
            size: metres per voxel, one number or one per axis.
            origin: metres of the corner of voxel (0, 0, 0), one number or one per axis. Coarser cells begin there
                too: for cells that lie alike in several clouds, take the same origin.
            batch: integers (N,), the sample of every point, 0 ... 511; None = one sample.

        Raises:
            ConfigError: for a size that is not positive, or an origin that is not finite.
            ShapeError: if shapes do not fit.
            DataError: for a point that is not finite or further than 131072 voxels from the origin.
        """
        sizes, start = _triple("size", size), _triple("origin", origin)
        if min(sizes) <= 0:
            raise ConfigError(f"size is {size}; expected metres per voxel > 0")
        check_tensor("points", points)
        if points.ndim != 2 or points.shape[1] != 3 or points.is_complex():
            raise ShapeError(f"points are {points.dtype} of shape {tuple(points.shape)}; expected (N, 3) in metres")
        exact = points.detach().double()
        check_finite(exact)
        cells = ((exact - exact.new_tensor(start)) / exact.new_tensor(sizes)).floor_()
        coords = cells.clamp_(-_FAR, _FAR).long()
        return replace(cls.from_coords(coords, batch), size=sizes, origin=start)

    @classmethod
    def from_coords(cls, coords: Tensor, batch: Tensor | None = None) -> VoxelGrid:
        """Take voxel coordinates that are there already; repeated ones become one voxel.

        Args:
            coords: integers (N, 3), -131072 ... 131071, in the order that features and points have; N may be 0.
            batch: integers (N,), 0 ... 511; None = one sample.

        Raises:
            ShapeError: if shapes do not fit, or ``coords`` are no integers.
            DataError: for a coordinate or a sample out of range.
        """
        check_integers("coords", coords, 3)
        keys, inverse = distinct(coords, batch)
        return cls(keys, *decode(keys), inverse)

    def __len__(self) -> int:
        return self.keys.shape[0]

    def centers(self) -> Tensor:
        """Return the voxels' centres (M, 3) in metres, float64."""
        cells = self.coords.double() + 0.5
        return cells * cells.new_tensor(self.size) + cells.new_tensor(self.origin)

    def to(self, device: torch.device | str) -> VoxelGrid:
        """Return the grid on another device."""
        tensors = {name: getattr(self, name).to(device) for name in ("keys", "coords", "batch", "inverse")}
        return replace(self, **tensors)

    def __repr__(self) -> str:
        points = self.inverse.shape[0]
        return f"VoxelGrid({len(self)} voxels of {points} points, size={self.size}, origin={self.origin})"


def _triple(name: str, value: float | Sequence[float]) -> tuple[float, float, float]:
    given: object = value.tolist() if hasattr(value, "tolist") else value  # tensors and arrays
    sides = given if isinstance(given, Sequence) else (given,) * 3
    numbers = tuple(float(x) for x in sides if isinstance(x, Real) and not isinstance(x, bool))
    if len(sides) != 3 or len(numbers) != 3 or not all(math.isfinite(x) for x in numbers):
        raise ConfigError(f"{name} is {value!r}; expected a finite number, or three of them")
    return numbers
