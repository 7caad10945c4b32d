"""Features on occupied voxels only."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from dinoneck.errors import ConfigError, DataError, ShapeError
from dinoneck.points.checks import check_integers, check_tensor
from dinoneck.points.keys import MAX_STRIDE, at_stride, encode


@dataclass(frozen=True, eq=False)
class SparseFeatures:
    """One feature vector per occupied cell, and whether any image saw it.

    Coordinates are in voxels of the finest grid at every stride (a cell of stride 4 at (-4, 0, 8) spans -4 ... -1,
    0 ... 3, 8 ... 11), so levels, engines and points are matched without knowing each other's units.

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
        >>> level = SparseFeatures(coords, torch.zeros(2).long(), torch.tensor([[5.0], [0.0]]), seen, stride=2)
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
                f"coords have shape {tuple(self.coords.shape)}, batch {tuple(self.batch.shape)} and feats "
                f"{tuple(self.feats.shape)}; expected (M, 3), (M,) and (M, C)"
            )
        if tuple(self.valid.shape) != (rows,) or self.valid.dtype != torch.bool:
            raise ShapeError(f"valid is {self.valid.dtype} {tuple(self.valid.shape)}; expected bool ({rows},)")

    @cached_property
    def keys(self) -> Tensor:
        """Morton keys int64 (M,) of the cells' corners, strictly rising.

        Raises:
            DataError: if rows are not sorted, repeat, or are no multiples of the stride.
        """
        keys = encode(self.coords, self.batch)
        if not bool((keys[1:] > keys[:-1]).all()) or not torch.equal(at_stride(keys, self.stride), keys):
            raise DataError(
                f"coords of stride {self.stride} must be multiples of it and sorted by key, without repeats; order "
                "rows by VoxelGrid.from_coords(coords, batch): feats_sorted[grid.inverse] = feats"
            )
        return keys

    def at(self, coords: Tensor, batch: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Look features up.

        Args:
            coords: integers (Q, 3) in voxels of the finest grid, anywhere within a cell.
            batch: integers (Q,); None = sample 0.

        Returns:
            feats (Q, C) and hit, bool (Q,). A hit is a cell that exists and was seen (``valid``); zeros elsewhere.

        Raises:
            ShapeError: if shapes do not fit.
            DataError: for a coordinate beyond -131072 ... 131071, or if the rows are not sorted by key.
        """
        wanted = at_stride(encode(coords, batch), self.stride)
        if not len(self):
            return self.feats.new_zeros(len(wanted), self.feats.shape[1]), torch.zeros_like(wanted, dtype=torch.bool)
        rows = torch.searchsorted(self.keys, wanted).clamp_(max=len(self) - 1)
        hit = (self.keys[rows] == wanted) & self.valid[rows]
        missed = (~hit).nonzero().squeeze(1)
        feats = self.feats.index_select(0, rows)
        return (feats.index_fill_(0, missed, 0) if len(missed) else feats), hit

    def __len__(self) -> int:
        return self.coords.shape[0]

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> SparseFeatures:
        """Return the features on another device, in another dtype; coordinates stay integers."""
        tensors = {name: getattr(self, name).to(device) for name in ("coords", "batch", "valid")}
        return replace(self, feats=self.feats.to(device, dtype), **tensors)

    def __repr__(self) -> str:
        seen = int(self.valid.sum())
        return f"SparseFeatures({seen} of {len(self)} cells seen, C={self.feats.shape[1]}, stride={self.stride})"


def check_stride(name: str, stride: int) -> None:
    """Refuse a stride that is not a power of two.

    Raises:
        ConfigError: naming it.
    """
    if isinstance(stride, bool) or not isinstance(stride, int) or not 0 < stride <= MAX_STRIDE or stride & (stride - 1):
        raise ConfigError(f"{name} is {stride!r}; expected a power of two, 1 ... {MAX_STRIDE}")
