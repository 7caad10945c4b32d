"""What an injection needs of a sparse tensor of any engine: where its voxels are, their features, a new one.

Three functions per engine; none of the engines is imported, what their tensors have is enough to tell them apart.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from dinoneck.errors import ShapeError


class SparseAdapter(Protocol):
    """The three functions that connect an engine; an object of your own with them connects any other.

    Examples:
        >>> class Pairs:
        ...     def coords(self, x, stride):
        ...         return x[0][:, 1:] * stride, x[0][:, 0]
        ...     def features(self, x):
        ...         return x[1]
        ...     def with_features(self, x, feats):
        ...         return x[0], feats
        >>> adapter: SparseAdapter = Pairs()
    """

    def coords(self, x: Any, stride: int) -> tuple[Tensor, Tensor]:
        """Return coords (M, 3) int64 in base voxel units (a cell's first voxel) and batch (M,) int64."""

    def features(self, x: Any) -> Tensor:
        """Return the features (M, C)."""

    def with_features(self, x: Any, feats: Tensor) -> Any:
        """Return a tensor of the engine with other features; ``x`` stays as it was."""


@dataclasses.dataclass(frozen=True)
class PlainSparse:
    """A sparse tensor of three plain ones, for networks without an engine.

    Attributes:
        coords: (M, 3) int64 in base voxel units, multiples of the stride on coarse levels.
        batch: (M,) int64, the sample of each voxel.
        feats: (M, C).
    """

    coords: Tensor
    batch: Tensor
    feats: Tensor

    def with_feats(self, feats: Tensor) -> Self:
        """Return the same voxels with other features."""
        return dataclasses.replace(self, feats=feats)


class PlainAdapter:
    """For :class:`PlainSparse`."""

    def coords(self, x: PlainSparse, stride: int) -> tuple[Tensor, Tensor]:
        """Return its coordinates and batch as they are."""
        return x.coords, x.batch

    def features(self, x: PlainSparse) -> Tensor:
        """Return ``feats``."""
        return x.feats

    def with_features(self, x: PlainSparse, feats: Tensor) -> PlainSparse:
        """Return the same voxels with other features."""
        return x.with_feats(feats)


class SpconvAdapter:
    """For spconv's ``SparseConvTensor``: indices (batch, a, b, c) count cells of the level they are on.

    The order of the axes is whatever the network was given: build the grid from the same indices,
    ``VoxelGrid.from_coords(x.indices[:, 1:], batch=x.indices[:, 0])``. spconv 2.3.8 gives wrong numbers without a word,
    on a CPU at least, for an odd ``spatial_shape`` (going down drops the last plane: round it up to a multiple of the
    coarsest stride), for indices that are not contiguous, and where samples times volume reach 2^31.
    """

    def coords(self, x: Any, stride: int) -> tuple[Tensor, Tensor]:
        """Return the indices in base voxel units."""
        indices = x.indices.long()
        return indices[:, 1:] * stride, indices[:, 0]

    def features(self, x: Any) -> Tensor:
        """Return ``features``."""
        found: Tensor = x.features
        return found

    def with_features(self, x: Any, feats: Tensor) -> Any:
        """Return ``x.replace_feature(feats)``, which keeps its table of neighbours."""
        return x.replace_feature(feats)


class PointceptAdapter:
    """For Pointcept's ``Point``, a dict with ``grid_coord`` in cells of its level and ``batch`` or ``offset``.

    Pointcept shifts ``grid_coord`` to begin at 0 in every sample: build the grid from the shifted ones. Run against
    Pointcept's PointTransformerV3 and ``Point`` (commit d74c646).
    """

    def coords(self, x: Any, stride: int) -> tuple[Tensor, Tensor]:
        """Return ``grid_coord`` in base voxel units."""
        places = x["grid_coord"].long() * stride
        if "batch" in x:
            return places, x["batch"].long()
        sizes = torch.diff(x["offset"].long(), prepend=x["offset"].new_zeros(1).long())
        return places, torch.repeat_interleave(torch.arange(len(sizes), device=places.device), sizes)

    def features(self, x: Any) -> Tensor:
        """Return ``feat``."""
        found: Tensor = x["feat"]
        return found

    def with_features(self, x: Any, feats: Tensor) -> Any:
        """Return a copy with the features in ``feat`` and in ``sparse_conv_feat``."""
        again = type(x)(x)  # the encoder may hold on to x: it is not written to
        again["feat"] = feats
        if "sparse_conv_feat" in x:
            again["sparse_conv_feat"] = x["sparse_conv_feat"].replace_feature(feats)
        return again


def adapter_of(x: Any) -> SparseAdapter:
    """Return the adapter of a sparse tensor, by what it has.

    Raises:
        ShapeError: if it is none of the known.
    """
    if isinstance(x, PlainSparse):
        return PlainAdapter()
    if isinstance(x, Mapping) and "grid_coord" in x and "feat" in x:  # first: an addict.Dict has any attribute
        return PointceptAdapter()
    if hasattr(type(x), "replace_feature"):
        return SpconvAdapter()
    raise ShapeError(
        f"{type(x).__name__} is not a known sparse tensor (PlainSparse, spconv, Pointcept's Point); "
        "pass adapter=, an object with the three functions of dinoneck.points.SparseAdapter"
    )
