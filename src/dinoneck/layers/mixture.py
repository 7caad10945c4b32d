"""Every sample of a batch mixed with another one: of anything that is linear in the tokens, as of the tokens."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from dinoneck.layers.eager import plainly, redirected
from dinoneck.tokens import Tokens

_CALLS = ("mixed", "forward")
_ROUNDING = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Mixture:
    """Sample i becomes ``kept[i]`` of itself plus the rest of sample ``partner[i]``.

    What is linear in the tokens may be mixed in their place: the results of a linear layer, whose bias stays what it
    is, and weighted sums of patches. A module that can do so has a method ``mixed``.

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
        wide = self._wide(x)
        if plainly():
            return torch.lerp(self.other(wide), wide, self.share(wide)).to(x.dtype)
        if not wide.requires_grad:
            return self.other(wide).lerp_(wide, self.share(wide)).to(x.dtype)
        found: Tensor = _Mixed.apply(wide, self.partner.to(x.device), self.share(wide))
        return found.to(x.dtype)

    def weighed(self, weights: Tensor, tokens: Tensor) -> Tensor:
        """Return the weights' product with mixed tokens, reading every token once.

        A sample's tokens are weighed by its own weights and by those of the sample that it is the partner of.

        Args:
            weights: (B, K, n).
            tokens: (B, n, m), not mixed.

        Returns:
            (B, K, m).
        """
        partner = self.partner.to(tokens.device)
        both = torch.cat((weights, weights[partner.argsort()]), dim=1)
        product = torch.bmm(both, tokens)
        own, asked = self._wide(product).chunk(2, dim=1)
        return torch.lerp(self.other(asked), own, self.share(own)).to(product.dtype)

    def _wide(self, x: Tensor) -> Tensor:
        return x if x.dtype in (self.exact or ()) else x.float()

    def of(self, tokens: Tokens) -> Tokens:
        """Mix whole sequences, all layers."""
        return replace(tokens, sequence=tuple(self.linear(x) for x in tokens.sequence))


class _Mixed(torch.autograd.Function):
    """The mix of a batch whose gradient goes back by the inverse permutation: nothing is summed up by index."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, partner: Tensor, share: Tensor) -> Tensor:
        """Mix."""
        ctx.save_for_backward(partner, share)
        return x[partner].lerp_(x, share)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        """Give own and partner what is theirs."""
        partner, share = ctx.saved_tensors
        return torch.addcmul((grad * (1 - share))[partner.argsort()], grad, share), None, None


def mixes_itself(module: nn.Module) -> bool:
    """Whether ``module.mixed`` does what a call does: nobody changed, hooked or compiled ``forward`` alone."""
    order = type(module).__mro__
    mixed, forward = (next(place for place, own in enumerate(order) if name in vars(own)) for name in _CALLS)
    return mixed <= forward and not redirected(module)


def spread(x: Tensor, ndim: int) -> Tensor:
    """The same values with as many size-1 axes behind them as are wanting."""
    return x.reshape(*x.shape, *(1,) * (ndim - x.ndim))
