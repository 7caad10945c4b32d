"""Every sample of a batch mixed with another one, and which share of itself it keeps."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Self

import torch
from torch import Tensor

from dinoneck.tokens import Tokens

_ROUNDING = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Mixture:
    """Sample i becomes ``kept[i]`` of itself plus the rest of sample ``partner[i]``.

    Attributes:
        partner: (B,) a permutation of the samples.
        kept: (B,) float64.
        exact: dtypes that hold ``kept`` without rounding; worked out where a Mixture is made, as reading values in a
            forward would wait for a GPU.
    """

    partner: Tensor
    kept: Tensor
    exact: tuple[torch.dtype, ...] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if self.exact is None:
            exact = [dtype for dtype in _ROUNDING if torch.equal(self.kept.to(dtype).double(), self.kept)]
            object.__setattr__(self, "exact", (torch.float64, *exact))

    def to(self, device: torch.device | str) -> Self:
        """Return the same mixture on a device: its tensors are copied there once, not at every use."""
        dtype = torch.float32 if torch.device(device).type == "mps" else self.kept.dtype  # MPS has no float64
        return replace(self, partner=self.partner.to(device), kept=self.kept.to(dtype).to(device))

    def other(self, x: Tensor) -> Tensor:
        """The partners' values, as a copy of the same memory format."""
        return x[self.partner.to(x.device)]

    def share(self, like: Tensor) -> Tensor:
        """The share kept, (B, 1, ...) in the dtype and with the axes of ``like``."""
        return spread(self.kept.to(like.dtype).to(like.device), like.ndim)

    def linear(self, x: Tensor) -> Tensor:
        """Share * own + (1 - share) * other; exactly the own value where both are equal.

        In float32 where half precision would round the share that the targets were mixed by.
        """
        wide = x if x.dtype in (self.exact or ()) else x.float()
        return torch.lerp(self.other(wide), wide, self.share(wide)).to(x.dtype)

    def of(self, tokens: Tokens) -> Tokens:
        """Mix whole sequences, all layers."""
        return replace(tokens, sequence=tuple(self.linear(x) for x in tokens.sequence))


def spread(x: Tensor, ndim: int) -> Tensor:
    """The same values with as many size-1 axes behind them as are wanting."""
    return x.reshape(*x.shape, *(1,) * (ndim - x.ndim))
