"""MinkowskiEngine: its sparse tensors, and the order of its kernels. The engine itself is not imported.

Conventions are those of MinkowskiEngine 0.5.4 (``src/kernel_region.hpp``,
``src/coordinate_map_cpu.hpp``), which its CPU and GPU code share. They were read and not run: the
engine could not be built without CUDA.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import torch
from torch import Tensor

from dinoneck.checks import check_minimum
from dinoneck.codec import normal
from dinoneck.errors import DataError, ShapeError
from dinoneck.points.checks import check_tensor
from dinoneck.points.keys import encode

_AXES = 3


class MinkowskiAdapter:
    """For MinkowskiEngine's ``SparseTensor``: coordinates (batch, x, y, z) in base voxel units at every stride.

    Build the grid from the same coordinates:
    ``VoxelGrid.from_coords(x.C[:, 1:], batch=x.C[:, 0])``. Tested with a stand-in, never with the
    engine itself.
    """

    def coords(self, x: Any, stride: int) -> tuple[Tensor, Tensor]:
        """Return ``C`` as coordinates (M, 3) and batch (M,).

        Raises:
            ShapeError: if the tensor's own stride is another, naming it.
        """
        tensor_stride = self.strides(x)
        if tensor_stride != (stride,) * _AXES:
            raise ShapeError(
                f"the tensor has tensor_stride {list(tensor_stride)} where stride {stride} is "
                "injected; name the module at that stride"
            )
        batched_coords = x.C.long()  # (M, 4): batch, x, y, z
        return batched_coords[:, 1:], batched_coords[:, 0]

    def features(self, x: Any) -> Tensor:
        """Return ``F``, (M, C)."""
        feats: Tensor = x.F
        return feats

    def with_features(self, x: Any, feats: Tensor) -> Any:
        """Return a tensor with other features on the same coordinate map, so that skips still fit."""
        return type(x)(
            feats,
            coordinate_map_key=x.coordinate_map_key,
            coordinate_manager=x.coordinate_manager,
        )

    def strides(self, x: Any) -> tuple[int, ...]:
        """Return ``tensor_stride``: base voxels per cell along x, y, z."""
        return tuple(int(stride) for stride in x.tensor_stride)

    def features_at_coordinates(self, x: Any, coords: Tensor, batch: Tensor) -> Tensor:
        """Return features at places anywhere in space, linear between the cells around, 0 where no cell is.

        The engine's own function where the tensor has it; elsewhere the same rule in torch. At a
        cell's own coordinate this is the cell's features.

        Args:
            x: with ``C``, ``F`` and ``tensor_stride``.
            coords: (Q, 3) in base voxel units, integers or floats.
            batch: integers (Q,), the sample of each place.

        Returns:
            (Q, C), in the dtype of the features.

        Raises:
            ShapeError: if the shapes do not fit.
            DataError: if a place is not finite, or a sample is no whole number.
        """
        check_tensor("coords", coords)
        check_tensor("batch", batch)
        if coords.ndim != 2 or coords.shape[1] != _AXES or batch.shape != coords.shape[:1]:
            raise ShapeError(
                f"coords are {tuple(coords.shape)} and batch {tuple(batch.shape)}; expected (Q, 3) "
                "and (Q,)"
            )
        not_finite = ~coords.isfinite().all(dim=1)
        if not_finite.any():
            raise DataError(
                f"coords have {int(not_finite.sum())} of {len(coords)} places that are NaN or infinite; "
                "look features up at finite ones"
            )
        not_whole = batch != batch.long()
        if not_whole.any():
            first = float(batch[not_whole][0])
            raise DataError(f"batch holds {first:g}; expected the whole number of a sample")
        if hasattr(x, "features_at_coordinates"):
            query = torch.cat((batch[:, None], coords), dim=1).to(x.F.dtype)
            feats: Tensor = x.features_at_coordinates(query)
            return feats
        return self._interpolated(x, coords, batch)

    def _interpolated(self, x: Any, coords: Tensor, batch: Tensor) -> Tensor:
        batched_coords = x.C.long()  # (M, 4): batch, x, y, z
        keys, order = torch.sort(encode(batched_coords[:, 1:], batched_coords[:, 0]))
        stride = coords.new_tensor(self.strides(x), dtype=torch.float64)
        cells = coords.double() / stride
        low = cells.floor()
        feats = self.features(x)
        result = feats.new_zeros(len(coords), feats.shape[1])
        if not len(keys):
            return result
        for step in product((0, 1), repeat=_AXES):  # the eight cells around a place
            corner = low + low.new_tensor(step)
            weight = (1 - (cells - corner).abs()).prod(dim=1)  # (Q,)
            corner_keys = encode((corner * stride).long(), batch.long())
            row = torch.searchsorted(keys, corner_keys).clamp_(max=len(keys) - 1)
            weight = weight * (keys[row] == corner_keys)
            result = result + weight[:, None].to(result) * feats[order[row]]
        return result


def minkowski_offsets(kernel_size: int, tensor_stride: int = 1) -> Tensor:
    """Return which cell each row of a MinkowskiEngine kernel belongs to, relative to the output's cell.

    Row k is k mod K along x, k // K mod K along y and k // K² along z; cells are counted from
    -(K // 2) where K is odd, and from 0 where it is even.

    Args:
        kernel_size: K.
        tensor_stride: base voxels per cell of the input.

    Returns:
        int64 (K³, 3), x, y, z in base voxel units.

    Raises:
        ConfigError: for a number that is no integer, or below 1.

    Examples:
        >>> minkowski_offsets(2)[:3].tolist(), minkowski_offsets(3, tensor_stride=2)[0].tolist()
        ([[0, 0, 0], [1, 0, 0], [0, 1, 0]], [-2, -2, -2])

    Reference: ``coordinate_at`` of MinkowskiEngine 0.5.4, region type HYPER_CUBE. Others (HYPER_CROSS)
    have another order, which the shape of a kernel does not show.
    """
    kernel_size = normal(int, kernel_size, "kernel_size")
    tensor_stride = normal(int, tensor_stride, "tensor_stride")
    check_minimum(1, kernel_size=kernel_size, tensor_stride=tensor_stride)
    first = -(kernel_size // 2) if kernel_size % 2 else 0
    steps = torch.arange(first, first + kernel_size) * tensor_stride
    z, y, x = torch.meshgrid(steps, steps, steps, indexing="ij")
    return torch.stack((x, y, z), dim=-1).reshape(-1, _AXES)


def minkowski_to_conv3d(kernel: Tensor) -> Tensor:
    """Return a MinkowskiEngine kernel as a weight of ``torch.nn.functional.conv3d`` on (batch, C, x, y, z).

    With an odd K use ``padding=K // 2``. With an even one the window begins at the output's own
    cell: pad K - 1 at the end, or take ``stride=K``. The kernel of a transposed convolution becomes
    the weight of ``conv_transpose3d`` after ``.transpose(0, 1)``.

    Args:
        kernel: (K³, C_in, C_out), or (C_in, C_out) of a single cell.

    Returns:
        (C_out, C_in, K, K, K), a view.

    Raises:
        ShapeError: if it is no such kernel.

    Examples:
        >>> minkowski_to_conv3d(torch.arange(8.0).reshape(8, 1, 1))[0, 0, 1, 0, 0].item()
        1.0
    """
    check_tensor("kernel", kernel)
    rows = kernel[None] if kernel.ndim == 2 else kernel
    size = 0
    if rows.ndim == 3:  # (K³, C_in, C_out)
        size = round(len(rows) ** (1 / _AXES))
    if not size or size**_AXES != len(rows):
        raise ShapeError(
            f"the kernel is {tuple(kernel.shape)}; expected (K³, C_in, C_out), such as (27, 32, 64)"
        )
    cells = rows.reshape(size, size, size, *rows.shape[1:])  # (z, y, x, C_in, C_out)
    return cells.permute(4, 3, 2, 1, 0)
