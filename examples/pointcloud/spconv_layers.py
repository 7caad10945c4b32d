"""The layers of :mod:`examples.pointcloud.sparse_conv` on spconv: same names, same parameters, same numbers.

Importing this module needs spconv. What 2.3.8 does without a word, and what is done about it here:

- a coarser level loses cells where ``spatial_shape`` is odd: it is rounded up to a multiple of the coarsest stride;
- indices begin at 0: every sample is shifted by a multiple of that stride. Tensors carry coordinates in base units
  next to spconv's own, so injections and pyramids never meet the shift;
- indices that are not contiguous are misread: they are made contiguous;
- a kernel of one voxel is read in another layout than all others: refused, ``nn.Linear`` does it;
- on a CPU cells are counted in 32 bits, and voxels of a larger volume are mistaken for others: refused;
- on a CPU its backward asks for a CUDA stream: see ``_without_cuda``;
- it knows no bfloat16 on a CPU: there convolutions stay in the weights' dtype under autocast. On CUDA its own rule
  applies, float16 whichever dtype autocast has.

Run on a CPU only so far; its GPU kernels are chosen where the features are on CUDA, as spconv does by itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import spconv.pytorch as engine
import torch
from spconv.cppconstants import CPU_ONLY_BUILD
from spconv.pytorch import ops
from torch import Tensor

from dinoneck.errors import ConfigError, DataError, ShapeError
from dinoneck.points import PlainSparse, VoxelGrid
from examples.pointcloud.sparse_conv import check_centred, draw

COARSEST = 16
_CPU_CELLS = 2**31


def _without_cuda() -> int:
    """Stand in for spconv's question for the current CUDA stream, which on a machine without CUDA raises.

    Its backward asks even for CPU tensors, and does not use the answer there. Autograd runs backward long after a layer
    has returned, so nothing shorter than the process would do; with CUDA spconv is left as it is.
    """
    return 0


if not torch.cuda.is_available():
    ops.get_current_stream = _without_cuda


@dataclass(frozen=True)
class SpconvSparse(PlainSparse):
    """A sparse tensor with what spconv knows of its voxels.

    Attributes:
        frame: spconv's tensor on these voxels, without features: indices, shape, tables.
        stride: voxels per cell.
        shift: (samples, 3), where spconv's indices of each sample begin, base units.
    """

    frame: Any
    stride: int
    shift: Tensor


Sparse = SpconvSparse


def sparse(grid: VoxelGrid, feats: Tensor, coarsest: int = COARSEST) -> SpconvSparse:
    """Return features (M, C) on the voxels of a grid, for networks that go down to stride ``coarsest``.

    Raises:
        ConfigError: for features on CUDA where spconv was built for CPUs.
        DataError: on a CPU, if the box around the samples holds too many cells for spconv.
    """
    if feats.is_cuda and CPU_ONLY_BUILD:
        raise ConfigError(
            "the features are on CUDA and this spconv is built for CPUs only; replace it (pip uninstall spconv cumm; "
            "pip install 'dinoneck[spconv]') or take engine='torch'"
        )
    coords, batch = grid.coords, grid.batch
    samples = int(batch[-1]) + 1 if len(batch) else 1
    rows = batch[:, None].expand(-1, 3)
    lowest = coords.new_zeros(samples, 3).scatter_reduce(0, rows, coords, "amin", include_self=False)
    shift = lowest.div(coarsest, rounding_mode="floor") * coarsest
    inside = coords - shift[batch]
    extent = inside.amax(0).tolist() if len(batch) else [0, 0, 0]
    shape = [(largest // coarsest + 1) * coarsest for largest in extent]
    if not feats.is_cuda and samples * math.prod(shape) >= _CPU_CELLS:
        raise DataError(
            f"{samples} sample(s) of {' x '.join(map(str, shape))} voxels are 2**31 cells or more, which spconv on a "
            "CPU confuses; take larger voxels, fewer samples or engine='torch'"
        )
    indices = torch.cat((batch[:, None], inside), dim=1).int().contiguous()
    frame = engine.SparseConvTensor(feats.new_zeros(0, 0), indices, shape, samples)
    return SpconvSparse(coords, batch, feats, frame, 1, shift)


class SubmanifoldConv(engine.SubMConv3d):  # type: ignore[misc]
    """A convolution at the occupied voxels; see the other engine's."""

    def __init__(self, c_in: int, c_out: int, kernel_size: int = 3) -> None:
        check_centred(kernel_size)
        super().__init__(c_in, c_out, kernel_size, bias=False)

    def reset_parameters(self) -> None:
        """Draw new weights."""
        draw(self.weight)

    def forward(self, x: SpconvSparse) -> SpconvSparse:
        """Return other features on the same voxels."""
        if not len(x.feats):
            return replace(x, feats=_nothing(self, x))
        feats, frame = _run(self, super().forward, x, f"neighbours {self.kernel_size[0]} at stride {x.stride}")
        return replace(x, feats=feats, frame=frame)


class DownConv(engine.SparseConv3d):  # type: ignore[misc]
    """Kernel 2, stride 2: to all cells that hold a voxel; their order is spconv's."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__(c_in, c_out, 2, 2, bias=False)

    def reset_parameters(self) -> None:
        """Draw new weights."""
        draw(self.weight)

    def forward(self, x: SpconvSparse) -> SpconvSparse:
        """Return features on the cells of twice the stride."""
        if any(size % 2 for size in x.frame.spatial_shape):
            raise ConfigError(
                f"stride {x.stride * 2} is coarser than the tensor was made for; pass sparse(..., coarsest=)"
            )
        if not len(x.feats):
            return replace(x, feats=_nothing(self, x), stride=2 * x.stride)
        feats, frame = _run(self, super().forward, x, _below(x.stride))
        places = frame.indices.long()
        batch = places[:, 0]
        coords = places[:, 1:] * (2 * x.stride) + x.shift[batch]
        return SpconvSparse(coords, batch, feats, frame, 2 * x.stride, x.shift)


class UpConv(engine.SparseInverseConv3d):  # type: ignore[misc]
    """The way back, to the voxels that were there."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__(c_in, c_out, 2, indice_key="", bias=False)  # every pass brings its own

    def reset_parameters(self) -> None:
        """Draw new weights."""
        draw(self.weight)

    def forward(self, x: SpconvSparse, finer: SpconvSparse) -> SpconvSparse:
        """Return features on the voxels of ``finer``."""
        made = x.frame.indice_dict.get(_below(finer.stride))
        if x.stride != 2 * finer.stride or (len(x.feats) and not _same(made, finer)):
            raise ShapeError(
                f"{len(x.feats)} cells of stride {x.stride} do not come from these {len(finer.feats)} of stride "
                f"{finer.stride}; pass the tensor that DownConv was given"
            )
        if not len(x.feats):
            return replace(finer, feats=_nothing(self, x))
        feats, frame = _run(self, super().forward, x, _below(finer.stride))
        return replace(finer, feats=feats, frame=frame)


def _run(conv: Any, forward: Callable[[Any], Any], x: SpconvSparse, key: str) -> tuple[Tensor, Any]:
    """Return features, and the frame with the tables found so far."""
    feats = x.feats
    if feats.shape[1] != conv.in_channels:
        raise ShapeError(f"the voxels have {feats.shape[1]} channels; this convolution takes {conv.in_channels}")
    if not feats.is_cuda:
        if not torch.is_autocast_enabled("cpu") and feats.dtype != conv.weight.dtype:
            raise ShapeError(
                f"the voxels' features are {feats.dtype}, the weights {conv.weight.dtype}; convert one of them"
            )
        feats = feats.to(conv.weight.dtype)
    own = vars(conv).setdefault("own_algo", conv.algo)
    conv.algo = own if feats.is_cuda else engine.ConvAlgo.Native  # a CUDA build's own does not run on CPU tensors
    conv.indice_key = key  # a layer does not know its level, the tensor does
    with nullcontext() if feats.is_cuda else torch.autocast("cpu", enabled=False):
        out = forward(x.frame.replace_feature(feats))
    return out.features, out.replace_feature(feats.new_zeros(0, 0))


def _nothing(conv: Any, x: SpconvSparse) -> Tensor:
    """No rows, in a graph that reaches the weights; spconv's backward refuses empty tensors."""
    rows: Tensor = x.feats.to(conv.weight.dtype) @ conv.weight[:, 0, 0, 0].T
    return rows


def _below(stride: int) -> str:
    return f"cells below stride {2 * stride}"


def _same(made: Any, finer: SpconvSparse) -> bool:
    """Whether the table leads back to these voxels."""
    mine = finer.frame.indices
    return made is not None and (made.indices.data_ptr(), made.indices.shape) == (mine.data_ptr(), mine.shape)
