"""Maps at other cells: halved, or read where cells of another stride have their centres; in graphs of any size too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Upsample = Literal["nearest", "bilinear"]


def widened(maps: Tensor, step: int) -> Tensor:
    """Add zeros at the bottom and right, so that steps of ``step`` cells meet ceil(n / step) windows, not floor.

    Always ``step - 1`` of them when traced: what no window needs, none reads, while an amount
    computed from the size, or a branch, would tie the graph to one remainder.
    """
    if not torch.compiler.is_compiling() and not any(side % step for side in maps.shape[-2:]):
        return maps
    return F.pad(maps, (0, step - 1, 0, step - 1))


def halved(maps: Tensor) -> Tensor:
    """Means of 2x2 cells, ceil(n / 2) of them; the last of an odd number averages what it has."""
    if not torch.compiler.is_compiling():
        return F.avg_pool2d(maps, 2, ceil_mode=True, count_include_pad=False)
    filled = torch.ones_like(maps[:1, :1])
    return F.avg_pool2d(widened(maps, 2), 2) / F.avg_pool2d(widened(filled, 2), 2)


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
    wanted = (count * patch + stride - 1) // stride
    centre = (2 * torch.arange(wanted, device=cells.device) + 1) * stride  # in half-pixels
    if mode == "nearest":
        return cells.index_select(axis, (centre // (2 * patch)).clamp(max=count - 1))
    beyond = (centre - patch).clamp(0, 2 * patch * (count - 1))  # past the first cell's centre
    low = beyond // (2 * patch)
    high = (low + 1).clamp(max=count - 1)
    share = (beyond - 2 * patch * low).to(cells.dtype).div(2 * patch).view(-1, *(1,) * (3 - axis))
    first = cells.index_select(axis, low)
    between: Tensor = first + share * (cells.index_select(axis, high) - first)
    return between


def resampled(maps: Tensor, size: Sequence[int], image_size: Sequence[int], stride: int) -> Tensor:
    """Read maps of a whole image at the centres of cells of ``stride`` pixels, bilinearly.

    The cells may reach beyond the image, whose sides the stride need not divide: places are those
    in pixels, where resizing by size would stretch them. Going to less than half the cells averages
    over what lies between them.

    Args:
        maps: (B, D, r, c), which span the image.
        size: (rows, cols) of cells.
        image_size: (height, width) in pixels.
        stride: pixels per cell.

    Returns:
        (B, D, rows, cols), channels-last.
    """
    down = _readings(maps, maps.shape[-2], size[0], image_size[0], stride)
    across = _readings(maps, maps.shape[-1], size[1], image_size[1], stride)
    batch, rows, channels = maps.shape[0], size[0], maps.shape[1]
    tokens = maps.permute(0, 2, 3, 1).flatten(2)  # (B, r, c D)
    tall = torch.bmm(down.expand(batch, -1, -1), tokens).reshape(
        batch * rows, maps.shape[-1], channels
    )
    cells = torch.bmm(across.expand(batch * rows, -1, -1), tall)  # (B rows, cols, D)
    return cells.reshape(batch, rows, size[1], channels).permute(0, 3, 1, 2)


def _readings(maps: Tensor, length: int, cells: int, pixels: int, stride: int) -> Tensor:
    """(cells, length): the share of every token in every cell along one axis."""
    dtype = torch.float64 if maps.dtype == torch.float64 else torch.float32
    each = torch.arange(length, device=maps.device, dtype=dtype)
    # tokens per cell
    step = torch.ones((), device=maps.device, dtype=dtype) * (length * stride) / pixels
    places = (torch.arange(cells, device=maps.device, dtype=dtype) + 0.5) * step - 0.5
    places = torch.minimum(places.clamp_min(0.0), each[-1])
    shares = (1.0 - (places[:, None] - each).abs() / (step / 2).clamp_min(1.0)).clamp_min(0.0)
    return (shares / shares.sum(dim=1, keepdim=True)).to(maps.dtype)
