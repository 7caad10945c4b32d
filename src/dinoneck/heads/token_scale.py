"""The scale of the tokens that a head was trained on, as two buffers at its entrance."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from dinoneck.errors import DataError
from dinoneck.tokens import Tokens

STD_FLOOR = 1e-4


class TokenScale(nn.Module):
    """Standardise every channel of tokens, ``(x - mean) / std``, as a batch norm in eval mode does.

    Tokens pass unchanged until :meth:`measure` sets the buffers, ``mean`` (C,) and ``std`` (C,).

    Args:
        embed_dim: channels C.
        device: torch factory keyword.
        dtype: torch factory keyword.

    Shape:
        Tokens of any layers -> Tokens of the last one.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, embed_dim: int, *, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(embed_dim, device=device, dtype=dtype))
        self.register_buffer("std", torch.ones(embed_dim, device=device, dtype=dtype))

    def reset_parameters(self) -> None:
        """Let tokens pass unchanged again."""
        nn.init.zeros_(self.mean)
        nn.init.ones_(self.std)

    @property
    def is_measured(self) -> bool:
        """Whether the buffers were set."""
        return bool(self.mean.any() or (self.std != 1).any())

    def forward(self, tokens: Tokens) -> Tokens:
        """Return the standardised tokens of the last layer, CLS and registers too."""
        last = tokens.last
        centred = last.sequence[0] - self.mean  # (B, P + N, C)
        return replace(last, sequence=(centred.div_(self.std),))  # in place: tokens are large

    @torch.no_grad()
    def measure(self, batches: Iterable[Tokens]) -> None:
        """Set the buffers to the mean and the standard deviation of the patch tokens; sums are kept in float64.

        Raises:
            DataError: if they are not finite.
        """
        count, total, square = 0, torch.zeros(()), torch.zeros(())
        for tokens in batches:
            x = tokens.last.patches[0].double().flatten(0, 1).cpu()  # (B * N, C)
            count, total, square = count + len(x), total + x.sum(dim=0), square + x.square().sum(dim=0)
        mean = total / count
        std = (square / count - mean.square()).clamp_min(0.0).sqrt().clamp_min(STD_FLOOR)
        if not bool(mean.isfinite().all() and std.isfinite().all()):
            raise DataError("the tokens of the training images are not finite; extract them again")
        self.mean.copy_(mean)
        self.std.copy_(std)
