"""The one fast path: LayerNorm, a linear layer and a factor, of which only the input is kept for the backward pass."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BLOCK_BYTES = {"cpu": 1 << 21}  # of normed tokens at a time: what fits in the cache
DEVICE_BLOCK_BYTES = 1 << 26  # elsewhere: large enough to keep a GPU busy


def is_fusable(x: Tensor, norm: nn.Module, linear: nn.Module) -> bool:
    """Return whether :func:`norm_linear` replaces the two modules for this input while gradients are recorded.

    It does outside of graphs, for exactly these classes, and only if their tensors are parameters:
    pruning, old-style weight and spectral normalisation and ``torch.func`` put other tensors there,
    and then the modules run.
    """
    if type(norm) is not nn.LayerNorm:
        return False
    if not all(isinstance(tensor, nn.Parameter) for tensor in (norm.weight, norm.bias)):
        return False
    return is_replaceable(x, linear)


def is_replaceable(x: Tensor, linear: nn.Module) -> bool:
    """Return whether the weights of a linear layer may be used without calling it, see :func:`is_fusable`."""
    if torch.compiler.is_compiling() or type(linear) is not nn.Linear:
        return False
    if not isinstance(linear.weight, nn.Parameter) or linear.weight.is_meta:
        return False
    return x.dtype == linear.weight.dtype or torch.is_autocast_enabled(x.device.type)


def scaled_linear(x: Tensor, linear: nn.Linear, share: Tensor) -> Tensor:
    """Return ``share * linear(x)`` without keeping ``linear(x)`` for the gradient of the factor.

    Args:
        x: (..., C).
        linear: C -> D.
        share: a factor, () tensor.

    Returns:
        (..., D), in the dtype of autocast where it is enabled.
    """
    bias = None if linear.bias is None else share * linear.bias
    return F.linear(x, share * linear.weight, bias)


def norm_linear(
    x: Tensor, norm: nn.LayerNorm, linear: nn.Linear, share: Tensor | None = None
) -> Tensor:
    """Return ``share * linear(norm(x))`` without keeping ``norm(x)``.

    The plain form keeps the normed tokens, which are as wide as the tokens, for the backward pass.
    Here blocks of them are computed, multiplied and dropped, and computed again in the backward
    pass. Scale and shift of the norm are folded into the weight, so frozen tokens need no product
    for their own gradient. Forward-mode derivatives need ``torch.no_grad()``, under which the
    modules run.

    Args:
        x: (..., C).
        norm: LayerNorm over C.
        linear: C -> D.
        share: a factor, () tensor; None = 1.

    Returns:
        (..., D), in the dtype of autocast where it is enabled.
    """
    device = x.device.type
    dtype = linear.weight.dtype
    if torch.is_autocast_enabled(device) and x.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device)
    with torch.autocast(device, enabled=False):
        # W (scale n + shift) + b = (W scale) (n - c) + (W (shift + scale c) + b) for any constant
        # c. With c = -shift / scale the factor n - c is as small as scale n + shift is: half
        # precision rounds it after the subtraction. |n| is at most sqrt(C), so a larger c gains
        # nothing, and could overflow
        largest = x.shape[-1] ** 0.5
        centre = (-norm.bias / norm.weight).detach()
        centre = centre.nan_to_num(nan=0.0).clamp(-largest, largest)
        weight = linear.weight * norm.weight
        bias = linear.weight @ (norm.bias + norm.weight * centre)
        if linear.bias is not None:
            bias = bias + linear.bias
        if share is not None:
            weight = share * weight
            bias = share * bias
    result: Tensor = _NormLinear.apply(
        x, weight.to(dtype), bias.to(dtype), centre.to(x.dtype), norm.eps
    )
    return result


class _NormLinear(torch.autograd.Function):
    """``(normalise(x) - centre) @ weight.T + bias``, block by block; keeps x, and the weight if x requires grad."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor, centre: Tensor, eps: float) -> Tensor:
        """(..., C), (D, C), (D,), (C,) -> (..., D)."""
        blocks = []
        with torch.autocast(x.device.type, enabled=False):
            for rows in _blocks(x, x):
                centred = F.layer_norm(rows, rows.shape[-1:], bias=-centre, eps=eps)  # (n, C)
                blocks.append(F.linear(centred.to(weight.dtype), weight, bias))
        return torch.cat(blocks).unflatten(0, x.shape[:-1])  # type: ignore[no-untyped-call,no-any-return]

    @staticmethod
    def setup_context(
        ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, Tensor, float], output: Tensor
    ) -> None:
        """Keep the input, and the weight if the input requires grad."""
        x, weight, _, centre, ctx.eps = inputs
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(x, centre, weight)
        else:
            ctx.save_for_backward(x, centre)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None, None]:
        """Normalise block by block again."""
        x, centre = ctx.saved_tensors[:2]
        needs_x_grad = len(ctx.saved_tensors) == 3  # the weight is kept then
        # sums over tokens in float32 or wider
        wide = torch.promote_types(grad.dtype, torch.float32)
        weight_grad = torch.zeros((), dtype=wide, device=grad.device)
        x_grads = []
        with torch.autocast(x.device.type, enabled=False):
            blocks = zip(_blocks(x, x), _blocks(grad, x), strict=True)
            for rows, row_grads in blocks:  # (n, C), (n, D)
                centred = F.layer_norm(rows, rows.shape[-1:], bias=-centre, eps=ctx.eps)  # (n, C)
                weight_grad = weight_grad + row_grads.T @ centred.to(grad.dtype)  # (D, C)
                if needs_x_grad:  # the derivative of LayerNorm
                    weight = ctx.saved_tensors[2]
                    inner = (row_grads @ weight).to(wide)
                    normed = centred.to(wide) + centre.to(wide)
                    variance = rows.to(wide).var(dim=-1, correction=0, keepdim=True)
                    scale = (variance + ctx.eps).rsqrt()
                    change = (
                        inner
                        - inner.mean(dim=-1, keepdim=True)
                        - normed * (inner * normed).mean(dim=-1, keepdim=True)
                    )
                    x_grads.append((scale * change).to(x.dtype))
        x_grad = torch.cat(x_grads).view_as(x) if x_grads else None
        bias_grad = grad.reshape(-1, grad.shape[-1]).sum(dim=0, dtype=wide)  # (D,)
        return x_grad, weight_grad.to(grad.dtype), bias_grad.to(grad.dtype), None, None


def _blocks(x: Tensor, like: Tensor) -> tuple[Tensor, ...]:
    """(..., D) -> blocks (n, D) of as many rows as ``like`` (..., C) has in the cache."""
    block_bytes = BLOCK_BYTES.get(like.device.type, DEVICE_BLOCK_BYTES)
    row_bytes = like.shape[-1] * like.element_size()
    return torch.split(x.reshape(-1, x.shape[-1]), max(1, block_bytes // row_bytes))
