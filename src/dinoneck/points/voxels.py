"""Which voxel every point lies in, and features on occupied voxels only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from dinoneck.codec import normal
from dinoneck.errors import ConfigError, DataError, ShapeError
from dinoneck.points.checks import check_finite, check_integers, check_tensor
from dinoneck.points.keys import MAX_STRIDE, at_stride, decode, distinct, encode

_FAR = 2.0**53  # beyond any key, within int64


@dataclass(frozen=True, eq=False)
class VoxelGrid:
    """The occupied voxels of a point cloud, sorted by key, and the way from points to voxels.

    Cells are found by rounding down in float64, never by truncation, so that the two cells next to
    0 are as large as all others. Samples of a batch stay apart: the same place in two samples is
    two voxels. Build it with :meth:`from_points` from metres, or with :meth:`from_coords` where a
    3D engine has already made voxels.

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
            origin: metres of the corner of voxel (0, 0, 0), one number or one per axis. Coarser
                cells begin there too: for cells that lie alike in several clouds, take the same
                origin.
            batch: integers (N,), the sample of every point, 0 ... 511; None = one sample.

        Raises:
            ConfigError: for a size that is not positive, or an origin that is not finite.
            ShapeError: if shapes do not fit.
            DataError: for a point that is not finite or further than 131072 voxels from the origin.
        """
        sizes = _triple("size", size)
        start = _triple("origin", origin)
        if min(sizes) <= 0:
            raise ConfigError(f"size is {size}; expected metres per voxel > 0")
        check_tensor("points", points)
        if points.ndim != 2 or points.shape[1] != 3 or points.is_complex():
            raise ShapeError(
                f"points are {points.dtype} of shape {tuple(points.shape)}; expected (N, 3) in "
                "metres"
            )
        exact = points.detach().double()
        check_finite(exact)
        cells = ((exact - exact.new_tensor(start)) / exact.new_tensor(sizes)).floor_()
        coords = cells.clamp_(-_FAR, _FAR).long()
        return replace(cls.from_coords(coords, batch), size=sizes, origin=start)

    @classmethod
    def from_coords(cls, coords: Tensor, batch: Tensor | None = None) -> VoxelGrid:
        """Take voxel coordinates that are there already; repeated ones become one voxel.

        Args:
            coords: integers (N, 3), -131072 ... 131071, in the order that features and points have;
                N may be 0.
            batch: integers (N,), 0 ... 511; None = one sample.

        Raises:
            ShapeError: if shapes do not fit, or ``coords`` are no integers.
            DataError: for a coordinate or a sample out of range.
        """
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
        return replace(
            self,
            keys=self.keys.to(device),
            coords=self.coords.to(device),
            batch=self.batch.to(device),
            inverse=self.inverse.to(device),
        )

    def __repr__(self) -> str:
        points = self.inverse.shape[0]
        return (
            f"VoxelGrid({len(self)} voxels of {points} points, size={self.size}, "
            f"origin={self.origin})"
        )


def _triple(name: str, value: float | Sequence[float]) -> tuple[float, float, float]:
    """Three numbers, one per axis, of as many or of one for all axes."""
    plain: object = value.tolist() if hasattr(value, "tolist") else value  # tensors and arrays
    numbers = normal(float | tuple[float, float, float], plain, name)
    if isinstance(numbers, tuple):
        return numbers
    return (numbers, numbers, numbers)


@dataclass(frozen=True, eq=False)
class SparseFeatures:
    """One feature vector per occupied cell, and whether any image saw it.

    Coordinates are in voxels of the finest grid at every stride, so levels, engines and points are
    matched without knowing each other's units. A cell of stride 4 at (-4, 0, 8) spans -4 ... -1, 0
    ... 3, 8 ... 11.

    Attributes:
        coords: int64 (M, 3), multiples of ``stride``.
        batch: int64 (M,).
        feats: (M, C); zeros where nothing was seen.
        valid: bool (M,); False where nothing was seen.
        stride: voxels per cell, a power of two.

    Rows are sorted by ``keys``, as those of :class:`dinoneck.points.VoxelGrid` are.

    Raises:
        ShapeError: if the shapes do not fit each other.
        ConfigError: for a stride that is not a power of two.

    Examples:
        >>> coords = torch.tensor([[-2, 0, 0], [0, 0, 0]])
        >>> seen = torch.tensor([True, False])
        >>> feats = torch.tensor([[5.0], [0.0]])
        >>> level = SparseFeatures(coords, torch.zeros(2).long(), feats, seen, stride=2)
        >>> feats, hit = level.at(torch.tensor([[-1, 1, 0], [1, 1, 1], [7, 0, 0]]))
        >>> feats.flatten().tolist(), hit.tolist()
        ([5.0, 0.0, 0.0], [True, False, False])
    """

    coords: Tensor
    batch: Tensor
    feats: Tensor
    valid: Tensor
    stride: int = 1

    def __post_init__(self) -> None:
        check_stride("stride", self.stride)
        check_integers("coords", self.coords, 3)
        check_integers("batch", self.batch, None)
        for name in ("feats", "valid"):
            check_tensor(name, getattr(self, name))
        rows = self.coords.shape[0]
        if self.feats.ndim != 2 or not self.batch.shape[0] == self.feats.shape[0] == rows:
            raise ShapeError(
                f"coords have shape {tuple(self.coords.shape)}, batch {tuple(self.batch.shape)} "
                f"and feats {tuple(self.feats.shape)}; expected (M, 3), (M,) and (M, C)"
            )
        if tuple(self.valid.shape) != (rows,) or self.valid.dtype != torch.bool:
            raise ShapeError(
                f"valid is {self.valid.dtype} {tuple(self.valid.shape)}; expected bool ({rows},)"
            )

    @cached_property
    def keys(self) -> Tensor:
        """Morton keys int64 (M,) of the cells' corners, strictly rising.

        Raises:
            DataError: if rows are not sorted, repeat, or are no multiples of the stride.
        """
        keys = encode(self.coords, self.batch)
        if not bool((keys[1:] > keys[:-1]).all()) or not torch.equal(
            at_stride(keys, self.stride), keys
        ):
            raise DataError(
                f"coords of stride {self.stride} must be multiples of it and sorted by key, "
                "without repeats; order rows by VoxelGrid.from_coords(coords, batch): "
                "feats_sorted[grid.inverse] = feats"
            )
        return keys

    def at(self, coords: Tensor, batch: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Look features up.

        Args:
            coords: integers (Q, 3) in voxels of the finest grid, anywhere within a cell.
            batch: integers (Q,); None = sample 0.

        Returns:
            feats (Q, C) and hit, bool (Q,). A hit is a cell that exists and was seen (``valid``);
            zeros elsewhere.

        Raises:
            ShapeError: if shapes do not fit.
            DataError: for a coordinate beyond -131072 ... 131071, or if the rows are not sorted by
                key.
        """
        keys = at_stride(encode(coords, batch), self.stride)
        if not len(self):
            feats = self.feats.new_zeros(len(keys), self.feats.shape[1])
            return feats, torch.zeros_like(keys, dtype=torch.bool)
        rows = torch.searchsorted(self.keys, keys).clamp_(max=len(self) - 1)
        is_hit = (self.keys[rows] == keys) & self.valid[rows]
        missed = (~is_hit).nonzero().squeeze(1)
        feats = self.feats.index_select(0, rows)
        if len(missed):
            feats.index_fill_(0, missed, 0)
        return feats, is_hit

    def __len__(self) -> int:
        return self.coords.shape[0]

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> SparseFeatures:
        """Return the features on another device, in another dtype; coordinates stay integers."""
        return replace(
            self,
            coords=self.coords.to(device),
            batch=self.batch.to(device),
            feats=self.feats.to(device, dtype),
            valid=self.valid.to(device),
        )

    def __repr__(self) -> str:
        seen = int(self.valid.sum())
        return (
            f"SparseFeatures({seen} of {len(self)} cells seen, C={self.feats.shape[1]}, "
            f"stride={self.stride})"
        )


def check_stride(name: str, stride: int) -> None:
    """Reject a stride that is not a power of two.

    Raises:
        ConfigError: naming it.
    """
    if (
        isinstance(stride, bool)
        or not isinstance(stride, int)
        or not 0 < stride <= MAX_STRIDE
        or stride & (stride - 1)
    ):
        raise ConfigError(f"{name} is {stride!r}; expected a power of two, 1 ... {MAX_STRIDE}")
