"""The one fast path: LayerNorm and a linear layer as one operation that keeps only its input for the backward pass."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BLOCK_BYTES = {"cpu": 1 << 21}  # of normed tokens at a time: what fits in the cache
DEVICE_BLOCK_BYTES = 1 << 26


def is_fusable(norm: nn.Module, linear: nn.Module) -> bool:
    """Return whether :func:`norm_linear` replaces the modules: in training, outside of graphs, for these classes."""
    recorded = torch.is_grad_enabled() and not torch.compiler.is_compiling()
    return recorded and type(norm) is nn.LayerNorm and type(linear) is nn.Linear and not linear.weight.is_meta


def norm_linear(x: Tensor, norm: nn.LayerNorm, linear: nn.Linear, share: Tensor | None = None) -> Tensor:
    """Return ``share * linear(norm(x))`` without keeping ``norm(x)``.

    The plain form keeps the normed tokens, which are as wide as the tokens, for the backward pass. Here blocks of them
    are computed, multiplied and dropped, and computed again in the backward pass. Scale and shift of the norm are
    folded into the weight, so frozen tokens need no product for their own gradient. Forward-mode derivatives need
    ``torch.no_grad()``, under which the modules run.

    Args:
        x: (..., C).
        norm: LayerNorm over C.
        linear: C -> D.
        share: a factor, () tensor; None = 1.

    Returns:
        (..., D), in the dtype of autocast where it is enabled.
    """
    kind = x.device.type
    autocast = torch.is_autocast_enabled(kind) and x.dtype != torch.float64
    dtype = torch.get_autocast_dtype(kind) if autocast else linear.weight.dtype
    # W (scale * n + shift) + b = (W * scale) n + (W shift + b)
    weight = linear.weight * norm.weight
    bias = linear.weight @ norm.bias
    bias = bias if linear.bias is None else bias + linear.bias
    if share is not None:
        weight, bias = share * weight, share * bias
    result: Tensor = _NormLinear.apply(x, weight.to(dtype), bias.to(dtype), norm.eps)
    return result


class _NormLinear(torch.autograd.Function):
    """``normalise(x) @ weight.T + bias``, block by block; keeps x, and the weight where x learns."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        """(..., C), (D, C), (D,) -> (..., D)."""
        with torch.autocast(x.device.type, enabled=False):
            blocks = [
                F.linear(F.layer_norm(rows, rows.shape[-1:], eps=eps).to(weight.dtype), weight, bias)
                for rows in _blocks(x)
            ]
        return torch.cat(blocks).unflatten(0, x.shape[:-1])  # type: ignore[no-untyped-call,no-any-return]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, float], output: Tensor) -> None:
        """Keep the input."""
        x, weight, _, ctx.eps = inputs
        ctx.save_for_backward(x, *([weight] if ctx.needs_input_grad[0] else []))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None]:
        """Normalise block by block again."""
        x, *weight = ctx.saved_tensors
        wide = torch.promote_types(grad.dtype, torch.float32)  # sums over tokens in float32 or wider
        of_weight, of_x = torch.zeros((), dtype=wide, device=grad.device), []
        grads = grad.reshape(-1, grad.shape[-1])  # (n, D)
        with torch.autocast(x.device.type, enabled=False):
            for rows, part in zip(_blocks(x), torch.split(grads, _rows_per_block(x)), strict=True):
                normed = F.layer_norm(rows, rows.shape[-1:], eps=ctx.eps)  # (n, C)
                of_weight = of_weight + part.T @ normed.to(grad.dtype)  # (D, C)
                if weight:  # the derivative of LayerNorm
                    inner, n = (part @ weight[0]).to(wide), normed.to(wide)
                    scale = (rows.to(wide).var(dim=-1, correction=0, keepdim=True) + ctx.eps).rsqrt()
                    centred = inner - inner.mean(dim=-1, keepdim=True) - n * (inner * n).mean(dim=-1, keepdim=True)
                    of_x.append((scale * centred).to(x.dtype))
        back = torch.cat(of_x).view_as(x) if of_x else None
        return back, of_weight.to(grad.dtype), grads.sum(dim=0, dtype=wide).to(grad.dtype), None


def _rows_per_block(x: Tensor) -> int:
    return max(1, BLOCK_BYTES.get(x.device.type, DEVICE_BLOCK_BYTES) // (x.shape[-1] * x.element_size()))


def _blocks(x: Tensor) -> Iterator[Tensor]:
    """(..., C) -> blocks (n, C)."""
    yield from torch.split(x.flatten(0, -2), _rows_per_block(x))
