"""Antialiased resampling in operators that runtimes compute alike.

DINOv2, TIPSv2 and RF-DETR resample the positions of their patches to the grid of an image. ONNX has
``Resize`` with ``antialias`` for it, which OpenVINO computes differently from torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from dinoneck.errors import CheckpointError

_CUBIC = -0.5  # parameter a of the cubic kernel, of torch's antialiased resampling


def resample_bicubic(
    maps: Tensor, size: Sequence[int] | None, align_corners: bool, scales: Sequence[float] | None
) -> Tensor:
    """Return maps as ``F.interpolate(mode="bicubic", antialias=True)`` does, by products of matrices.

    A decomposition of ``aten._upsample_bicubic2d_aa`` for
    :meth:`torch.export.ExportedProgram.run_decompositions`. The shares of cells are computed in
    float32 or wider.

    Args:
        maps: (B, C, rows, cols).
        size: (rows, cols) of the result; they may be symbols.
        align_corners: False.
        scales: None: the scale follows from the sizes.

    Shape:
        (B, C, *size).

    Raises:
        CheckpointError: for ``align_corners``, or scales in the place of a size.
    """
    return _resample(maps, _checked_size(size, align_corners, scales), _cubic)


def resample_bilinear(
    maps: Tensor, size: Sequence[int] | None, align_corners: bool, scales: Sequence[float] | None
) -> Tensor:
    """Return maps as ``F.interpolate(mode="bilinear", antialias=True)`` does, see :func:`resample_bicubic`."""
    return _resample(maps, _checked_size(size, align_corners, scales), _linear)


DECOMPOSITIONS: dict[Any, Callable[..., Any]] = {
    torch.ops.aten._upsample_bicubic2d_aa.vec: resample_bicubic,
    torch.ops.aten._upsample_bilinear2d_aa.vec: resample_bilinear,
}


def _checked_size(
    size: Sequence[int] | None, align_corners: bool, scales: Sequence[float] | None
) -> Sequence[int]:
    if size is None or align_corners or scales is not None:
        raise CheckpointError(
            "this model resamples with antialias and align_corners or scale_factor, which has no "
            "export; expected a size and align_corners=False",
            step="config",
        )
    return size


def _resample(maps: Tensor, size: Sequence[int], kernel: Callable[[Tensor], Tensor]) -> Tensor:
    rows, cols = maps.shape[-2:]
    wide = maps.to(torch.promote_types(maps.dtype, torch.float32))
    row_shares = _shares(rows, size[0], kernel, wide)  # (new rows, rows)
    col_shares = _shares(cols, size[1], kernel, wide)  # (new cols, cols)
    lines = torch.matmul(row_shares, wide)  # (B, C, new rows, cols)
    return torch.matmul(lines, col_shares.T).to(maps.dtype)


def _shares(cells: int, new_cells: int, kernel: Callable[[Tensor], Tensor], like: Tensor) -> Tensor:
    """How much of each cell a new cell takes (new_cells, cells); they add up to 1.

    A kernel is as wide as cells are, or as new cells if they are wider.
    """
    options: Any = {"dtype": like.dtype, "device": like.device}
    # cells per new cell; a quotient of tensors, since the number of new cells may be a symbol
    scale = torch.scalar_tensor(cells, **options) / torch.scalar_tensor(new_cells, **options)
    centres = (torch.arange(new_cells, **options) + 0.5) * scale
    places = torch.arange(cells, **options) + 0.5
    distances = (places - centres[:, None]).abs() / scale.clamp(min=1.0)
    shares = kernel(distances)
    return shares / shares.sum(dim=1, keepdim=True)


def _linear(distances: Tensor) -> Tensor:
    return (1.0 - distances).clamp(min=0.0)


def _cubic(distances: Tensor) -> Tensor:
    inner = ((_CUBIC + 2) * distances - (_CUBIC + 3)) * distances * distances + 1
    outer = (((distances - 5) * distances + 8) * distances - 4) * _CUBIC
    beyond_one = torch.where(distances < 2, outer, 0.0)
    return torch.where(distances < 1, inner, beyond_one)
