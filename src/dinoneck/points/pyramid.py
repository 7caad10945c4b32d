"""Coarser levels of features on voxels, as a 3D decoder wants them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from dinoneck.codec import normal
from dinoneck.errors import ConfigError, ShapeError
from dinoneck.points.keys import at_stride, decode
from dinoneck.points.reductions import cell_max, weighted_bags
from dinoneck.points.voxels import SparseFeatures, check_stride

Reduce = Literal["max", "mean"]


class SparsePyramid(nn.Module):
    """Pools features on voxels into cells of 2, 4, 8 ... voxels. It has no parameters.

    A cell that holds seen and unseen voxels is the usual case in a scan; there a zero for "unseen"
    would pass for a measured value and pull the maximum of negative channels up to 0. So only seen
    voxels take part, and a cell is ``valid`` if any of its voxels was seen; the others are zeros.

    Args:
        strides: voxels per cell of the levels wanted, rising powers of two; the first is at least
            that of the features given.
        reduce: ``"max"`` over the seen voxels, or their ``"mean"``. Every voxel counts once at
            every level: a mean is that of the rows given, not of the means of the level below, so
            it does not depend on which levels lie between.
        masked: False lets unseen voxels take part as zeros, as in the original; ``valid`` is the
            same.

    Shape:
        SparseFeatures of M voxels -> {stride: SparseFeatures}, all occupied cells, C channels, in
        the dtype given; means are summed in at least float32. Where several voxels hold a maximum,
        they share its gradient evenly.

    Raises:
        ConfigError: for strides that are no rising powers of two, an unknown ``reduce``, or
            features coarser than the first stride.
        ShapeError: for a mean of integers.

    Examples:
        >>> coords = torch.tensor([[0, 0, 0], [1, 0, 0], [5, 0, 0]])
        >>> feats, seen = torch.tensor([[-3.0], [0.0], [2.0]]), torch.tensor([True, False, True])
        >>> voxels = SparseFeatures(coords, torch.zeros(3).long(), feats, seen)
        >>> levels = SparsePyramid(strides=(2, 8))(voxels)
        >>> levels[2].coords.tolist(), levels[2].feats.flatten().tolist(), levels[8].feats.item()
        ([[0, 0, 0], [4, 0, 0]], [-3.0, 2.0], 2.0)
        >>> SparsePyramid(strides=(2,), masked=False)(voxels)[2].feats.flatten().tolist()
        [0.0, 2.0]

    Reference: the max pooling of DITR (Zeid et al., arXiv 2503.18944), where unseen points are
    zeros that take part.
    """

    def __init__(
        self, strides: Sequence[int] = (1, 2, 4, 8, 16), reduce: Reduce = "max", masked: bool = True
    ) -> None:
        super().__init__()
        for stride in strides:
            check_stride("a stride", stride)
        if not strides or any(fine >= coarse for fine, coarse in pairwise(strides)):
            raise ConfigError(
                f"strides is {tuple(strides)}; expected one or more powers of two, strictly rising"
            )
        normal(Reduce, reduce, "reduce")
        self.strides = tuple(strides)
        self.reduce = reduce
        self.masked = masked

    def extra_repr(self) -> str:
        """Show the options."""
        return f"strides={self.strides}, reduce={self.reduce!r}, masked={self.masked}"

    def forward(self, features: SparseFeatures) -> dict[int, SparseFeatures]:
        """Return all levels; a level of the features' own stride is these."""
        if self.reduce == "mean" and not features.feats.is_floating_point():
            raise ShapeError(
                f"feats are {features.feats.dtype}; a mean takes floats: "
                "features.to(dtype=torch.float32)"
            )
        if features.stride > self.strides[0]:
            raise ConfigError(
                f"features have stride {features.stride}; the first of strides {self.strides} is "
                "finer: lift to finer voxels or leave those strides out"
            )
        feats = features.feats
        if self.reduce == "mean" and feats.dtype in (torch.float16, torch.bfloat16):
            feats = feats.float()
        level = _Level(features.keys, feats, torch.ones_like(features.keys), features.valid)
        levels = {}
        for stride in self.strides:
            if stride == features.stride:
                levels[stride] = features
                continue
            level = _coarser(level, stride, self.reduce, self.masked)
            feats = level.feats.to(features.feats.dtype)
            levels[stride] = SparseFeatures(*decode(level.keys), feats, level.valid, stride)
        return levels


class _Level(NamedTuple):
    """Cells, and how many of the rows given count in each."""

    keys: Tensor
    feats: Tensor
    counts: Tensor
    valid: Tensor


def _coarser(level: _Level, stride: int, reduce: Reduce, masked: bool) -> _Level:
    """Cells of ``stride`` voxels from finer ones."""
    keys, cell = torch.unique_consecutive(at_stride(level.keys, stride), return_inverse=True)
    seen = level.valid.nonzero().squeeze(1)
    seen_cell = cell[seen]
    valid = torch.zeros_like(keys, dtype=torch.bool).index_fill_(0, seen_cell, True)
    counts = torch.zeros_like(keys)
    if masked:
        counts.index_add_(0, seen_cell, level.counts[seen])
    else:
        counts.index_add_(0, cell, level.counts)
    if reduce == "mean":
        # unseen rows are zeros: they change the counts only
        share = level.counts[seen].to(level.feats.dtype) / counts[seen_cell]
        sizes = torch.bincount(seen_cell, minlength=len(keys))
        starts = sizes.cumsum(0) - sizes
        means = weighted_bags(level.feats, seen, share, starts)
        return _Level(keys, means, counts, valid)
    rows = level.feats
    if len(seen) < len(cell):
        if masked:
            rows = rows.index_select(0, seen)
            cell = seen_cell
        else:
            rows = rows.index_fill(0, (~level.valid).nonzero().squeeze(1), 0)
    return _Level(keys, cell_max(rows, cell, len(keys)), counts, valid)
