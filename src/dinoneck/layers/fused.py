"""The one fast path: LayerNorm and a linear layer as one operation that keeps only its input for the backward pass."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BLOCK_BYTES = {"cpu": 1 << 21}  # of normed tokens at a time: what fits in the cache
DEVICE_BLOCK_BYTES = 1 << 26


def is_fusable(x: Tensor, norm: nn.Module, linear: nn.Module) -> bool:
    """Return whether :func:`norm_linear` replaces the two modules for this input while gradients are recorded.

    It does outside of graphs, for exactly these classes with parameters of their own: pruning,
    old-style weight and spectral normalisation and ``torch.func`` put other tensors in their place,
    and then the modules run.
    """
    if (
        torch.compiler.is_compiling()
        or type(norm) is not nn.LayerNorm
        or type(linear) is not nn.Linear
    ):
        return False
    fits = x.dtype == linear.weight.dtype or torch.is_autocast_enabled(x.device.type)
    has_scale, has_shift = (
        isinstance(norm.weight, nn.Parameter),
        isinstance(norm.bias, nn.Parameter),
    )
    return (
        fits
        and has_scale
        and has_shift
        and isinstance(linear.weight, nn.Parameter)
        and not linear.weight.is_meta
    )


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
    kind = x.device.type
    autocast = torch.is_autocast_enabled(kind) and x.dtype != torch.float64
    dtype = torch.get_autocast_dtype(kind) if autocast else linear.weight.dtype
    with torch.autocast(kind, enabled=False):
        # W (scale n + shift) + b = (W scale) (n - c) + (W (shift + scale c) + b) for any constant
        # c. With c = -shift / scale the factor n - c is as small as scale n + shift is: half
        # precision rounds it after the subtraction. |n| is at most sqrt(C), so a larger c gains
        # nothing, and could overflow
        most = x.shape[-1] ** 0.5
        centre = (-norm.bias / norm.weight).detach().nan_to_num(nan=0.0).clamp(-most, most)
        weight = linear.weight * norm.weight
        bias = linear.weight @ (norm.bias + norm.weight * centre)
        bias = bias if linear.bias is None else bias + linear.bias
        if share is not None:
            weight, bias = share * weight, share * bias
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
        with torch.autocast(x.device.type, enabled=False):
            blocks = [
                F.linear(
                    F.layer_norm(rows, rows.shape[-1:], bias=-centre, eps=eps).to(weight.dtype),
                    weight,
                    bias,
                )
                for rows in _blocks(x, x)
            ]
        return torch.cat(blocks).unflatten(0, x.shape[:-1])  # type: ignore[no-untyped-call,no-any-return]

    @staticmethod
    def setup_context(
        ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, Tensor, float], output: Tensor
    ) -> None:
        """Keep the input."""
        x, weight, _, centre, ctx.eps = inputs
        ctx.save_for_backward(x, centre, *([weight] if ctx.needs_input_grad[0] else []))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None, None]:
        """Normalise block by block again."""
        x, centre, *weight = ctx.saved_tensors
        # sums over tokens in float32 or wider
        wide = torch.promote_types(grad.dtype, torch.float32)
        of_weight, of_x = torch.zeros((), dtype=wide, device=grad.device), []
        with torch.autocast(x.device.type, enabled=False):
            for rows, part in zip(_blocks(x, x), _blocks(grad, x), strict=True):  # (n, C), (n, D)
                centred = F.layer_norm(rows, rows.shape[-1:], bias=-centre, eps=ctx.eps)  # (n, C)
                of_weight = of_weight + part.T @ centred.to(grad.dtype)  # (D, C)
                if weight:  # the derivative of LayerNorm
                    inner, n = (part @ weight[0]).to(wide), centred.to(wide) + centre.to(wide)
                    scale = (
                        rows.to(wide).var(dim=-1, correction=0, keepdim=True) + ctx.eps
                    ).rsqrt()
                    change = (
                        inner
                        - inner.mean(dim=-1, keepdim=True)
                        - n * (inner * n).mean(dim=-1, keepdim=True)
                    )
                    of_x.append((scale * change).to(x.dtype))
        back = torch.cat(of_x).view_as(x) if of_x else None
        of_bias = grad.reshape(-1, grad.shape[-1]).sum(dim=0, dtype=wide)  # (D,)
        return back, of_weight.to(grad.dtype), of_bias.to(grad.dtype), None, None


def _blocks(x: Tensor, like: Tensor) -> tuple[Tensor, ...]:
    """(..., D) -> blocks (n, D) of the rows that fit the cache in ``like`` (..., C)."""
    rows = BLOCK_BYTES.get(like.device.type, DEVICE_BLOCK_BYTES) // (
        like.shape[-1] * like.element_size()
    )
    return torch.split(x.reshape(-1, x.shape[-1]), max(1, rows))
