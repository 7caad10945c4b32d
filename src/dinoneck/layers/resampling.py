"""Resampling of maps: halved, or read at the cell centres of another stride. Traced graphs take any size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Upsample = Literal["nearest", "bilinear"]


def widened(maps: Tensor, step: int) -> Tensor:
    """Add zeros at the bottom and right, so that windows of stride ``step`` give ceil(n / step) cells, not floor.

    A traced graph always adds ``step - 1`` zeros: an amount computed from the size, or a branch,
    would tie the graph to one remainder. No window reads the zeros that are not needed.
    """
    if not torch.compiler.is_compiling() and not any(side % step for side in maps.shape[-2:]):
        return maps
    return F.pad(maps, (0, step - 1, 0, step - 1))


def halved(maps: Tensor) -> Tensor:
    """Means of 2x2 cells, ceil(n / 2) of them; at an odd side the last mean is over the cells that exist."""
    if not torch.compiler.is_compiling():
        return F.avg_pool2d(maps, 2, ceil_mode=True, count_include_pad=False)
    # the mean over 2x2 cells of which some are zeros, divided by the share of those that exist
    exists = torch.ones_like(maps[:1, :1])
    return F.avg_pool2d(widened(maps, 2), 2) / F.avg_pool2d(widened(exists, 2), 2)


def at_stride(maps: Tensor, patch: int, stride: int, mode: Upsample) -> Tensor:
    """Read maps of ``patch`` pixels per cell at the centres of cells of ``stride`` pixels.

    Args:
        maps: (B, D, rows, cols).
        patch: pixels per cell of the maps.
        stride: pixels per cell of the result.
        mode: ``nearest`` = the cell that the centre lies in; ``bilinear`` = between cell centres,
            clamped.

    Returns:
        (B, D, ceil(rows * patch / stride), ceil(cols * patch / stride)), channels-last.
    """
    cells = maps.permute(0, 2, 3, 1)
    for axis in (1, 2):
        cells = _read_axis(cells, axis, patch, stride, mode)
    return cells.permute(0, 3, 1, 2)


def _read_axis(cells: Tensor, axis: int, patch: int, stride: int, mode: Upsample) -> Tensor:
    """One axis of :func:`at_stride`, in whole half-pixels: no rounding moves a cell."""
    count = cells.shape[axis]
    result_count = (count * patch + stride - 1) // stride
    centre = (2 * torch.arange(result_count, device=cells.device) + 1) * stride  # in half-pixels
    if mode == "nearest":
        return cells.index_select(axis, (centre // (2 * patch)).clamp(max=count - 1))
    # half-pixels past the centre of the first cell
    distance = (centre - patch).clamp(0, 2 * patch * (count - 1))
    low = distance // (2 * patch)
    high = (low + 1).clamp(max=count - 1)
    high_weight = (distance - 2 * patch * low).to(cells.dtype).div(2 * patch)
    high_weight = high_weight.view(-1, *(1,) * (3 - axis))  # as many axes as follow `axis`
    at_low = cells.index_select(axis, low)
    at_high = cells.index_select(axis, high)
    between: Tensor = at_low + high_weight * (at_high - at_low)
    return between


def resample_at_stride(
    maps: Tensor, size: Sequence[int], image_size: Sequence[int], stride: int
) -> Tensor:
    """Read maps of a whole image at the centres of cells of ``stride`` pixels, bilinearly.

    The stride need not divide the sides of the image, so the last cells may reach beyond it.
    Positions are compared in pixels: resizing to ``size`` would stretch the maps. Where the result
    has less than half the cells, each of them averages over the cells around it.

    Args:
        maps: (B, D, r, c), which span the image.
        size: (rows, cols) of cells.
        image_size: (height, width) in pixels.
        stride: pixels per cell.

    Returns:
        (B, D, rows, cols), channels-last.
    """
    batch, channels, old_rows, old_cols = maps.shape
    rows, cols = size
    height, width = image_size
    row_weights = _axis_weights(maps, old_rows, rows, pixels=height, stride=stride)
    col_weights = _axis_weights(maps, old_cols, cols, pixels=width, stride=stride)
    x = maps.permute(0, 2, 3, 1).flatten(2)  # (B, r, c D)
    x = torch.bmm(row_weights.expand(batch, -1, -1), x)  # (B, rows, c D)
    x = x.reshape(batch * rows, old_cols, channels)
    x = torch.bmm(col_weights.expand(batch * rows, -1, -1), x)  # (B rows, cols, D)
    return x.reshape(batch, rows, cols, channels).permute(0, 3, 1, 2)


def _axis_weights(maps: Tensor, length: int, cells: int, *, pixels: int, stride: int) -> Tensor:
    """Return (cells, length): the weight of every old cell in every new one along an axis."""
    dtype = torch.float64 if maps.dtype == torch.float64 else torch.float32
    old_positions = torch.arange(length, device=maps.device, dtype=dtype)
    # old cells per new one
    step = torch.ones((), device=maps.device, dtype=dtype) * (length * stride) / pixels
    positions = (torch.arange(cells, device=maps.device, dtype=dtype) + 0.5) * step - 0.5
    positions = torch.minimum(positions.clamp_min(0.0), old_positions[-1])
    distances = (positions[:, None] - old_positions).abs()
    # linear interpolation between old cells; a wider triangle where a new cell spans more than two
    weights = (1.0 - distances / (step / 2).clamp_min(1.0)).clamp_min(0.0)
    return (weights / weights.sum(dim=1, keepdim=True)).to(maps.dtype)
