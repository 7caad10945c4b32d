"""Linear layers on tokens and on channels-last maps, by the quickest of torch's kernels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dinoneck.layers.eager import plainly

FEW = 1024  # below that a convolution's preparations cost more than it saves


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return ``F.linear(x, weight, bias)``.

    In bfloat16 on a CPU, where no graph is recorded, a 1x1 convolution of the same numbers takes about a tenth less
    (``python -m benchmarks.speed --rows "tokens"``); its backward pass would take more.

    Args:
        x: (..., C).
        weight: (D, C).
        bias: (D,) or None.

    Returns:
        (..., D).
    """
    if (
        x.dtype != torch.bfloat16
        or weight.dtype != x.dtype
        or not (x.device.type == weight.device.type == "cpu")
        or torch.is_grad_enabled()
        or x.numel() < FEW * x.shape[-1]
        or plainly()
    ):
        return F.linear(x, weight, bias)
    lines = x.flatten(0, -3) if x.ndim > 2 else x[None]  # (n, cols, C)
    maps = lines[:, None].permute(0, 3, 1, 2)
    found = F.conv2d(maps, weight[:, :, None, None], bias).permute(0, 2, 3, 1)
    return found.reshape(*x.shape[:-1], weight.shape[0])
