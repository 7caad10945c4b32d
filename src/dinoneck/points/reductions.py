"""Weighted sums and maxima over groups of rows, with gradients in a fixed order."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def weighted_bags(table: Tensor, row: Tensor, weight: Tensor, starts: Tensor) -> Tensor:
    """Sum ``weight * table[row]`` over each stretch of the entries; gradients reach the table.

    Args:
        table: (T, C), of any float dtype; half precision is summed in float32.
        row: integers (E,), one per entry.
        weight: (E,) in the dtype of the table.
        starts: (R,) in the dtype of ``row``, where each bag's entries begin; empty bags give zeros.

    Returns:
        (R, C).
    """
    sums: Tensor = _WeightedBags.apply(table, row, weight, starts)
    return sums


class _WeightedBags(torch.autograd.Function):
    """``embedding_bag`` whose backward is one too, over the entries sorted by row: fast, in a fixed order."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, row: Tensor, weight: Tensor, starts: Tensor) -> Tensor:
        """Sum every bag."""
        ctx.save_for_backward(row, weight, starts)
        ctx.rows = table.shape[0]
        return _sums(table, row, weight, starts)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        """Bring a row's gradients together from all bags that name it."""
        row, weight, starts = ctx.saved_tensors
        order = torch.argsort(row, stable=True)
        bag = (
            torch.searchsorted(
                starts, order.to(row.dtype), right=True, out_int32=row.dtype == torch.int32
            )
            - 1
        )
        counts = torch.bincount(row, minlength=ctx.rows)
        begins = (counts.cumsum(0) - counts).to(row.dtype)
        return _sums(grad.contiguous(), bag, weight[order], begins), None, None, None


def _sums(table: Tensor, row: Tensor, weight: Tensor, starts: Tensor) -> Tensor:
    if not len(row) or not len(starts):
        return table.new_zeros(len(starts), table.shape[1])
    return F.embedding_bag(row, table, starts, mode="sum", per_sample_weights=weight)


def cell_max(rows: Tensor, cell: Tensor, cells: int) -> Tensor:
    """Return the maximum (cells, C) of the rows (L, C) of each cell, int64 (L,); zeros in empty ones."""
    pooled: Tensor = _CellMax.apply(rows, cell, cells)
    return pooled


class _CellMax(torch.autograd.Function):
    """Maximum per cell, zeros in empty ones; ties share the gradient."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, cell: Tensor, cells: int) -> Tensor:
        """Take every cell's maximum."""
        top = rows.new_zeros(cells, rows.shape[1])
        if len(rows):
            top.scatter_reduce_(
                0, cell.unsqueeze(1).expand_as(rows), rows, "amax", include_self=False
            )
        ctx.save_for_backward(rows, cell, top)
        return top

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        """Share a cell's gradient out among the rows that hold its maximum."""
        rows, cell, top = ctx.saved_tensors
        holds = (rows == top.index_select(0, cell)).to(
            torch.promote_types(grad.dtype, torch.float32)
        )
        # halves end at 65504
        holders = holds.new_zeros(grad.shape).index_add_(0, cell, holds).clamp_(min=1)
        return (grad / holders).index_select(0, cell).mul_(holds).to(grad.dtype), None, None
