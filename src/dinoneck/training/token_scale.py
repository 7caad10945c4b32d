"""Training on standardised tokens without changing the head: the scale is absorbed into its first layer after.

Photos differ by little against what all tokens have in common, so gradient steps on raw tokens creep. On
channels of zero mean and unit spread they do not, and because a head's first layer is linear, the trained head
can be turned back exactly into one for raw tokens: no buffer, no option, the same file.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from dinoneck.tokens import Tokens
from dinoneck.training.sources import TokenSource, in_batches

STD_FLOOR = 1e-4


@runtime_checkable
class AbsorbsScale(Protocol):
    """A head whose first layer can take over an affine change of its tokens' channels."""

    def absorb_scale(self, mean: Tensor, std: Tensor) -> None:
        """Change the weights so that the new head says of x what the old one said of (x - mean) / std."""
        ...


@runtime_checkable
class CalibratesEntrance(Protocol):
    """A head with norms at its entrance that can be set to the tokens it will be trained on."""

    def calibrate(self, batches: Iterable[Tokens]) -> None:
        """Read the batches once and set the norms that are still untouched."""
        ...


@dataclass(frozen=True)
class TokenScale:
    """Mean and standard deviation of every channel, over the patch tokens of the last layer.

    Attributes:
        mean: (C,) float32.
        std: (C,) float32, at least 1e-4.
    """

    mean: Tensor
    std: Tensor

    @classmethod
    @torch.no_grad()
    def measure(cls, source: TokenSource, ids: Sequence[str], batch_size: int = 16) -> TokenScale:
        """Read the tokens of ``ids`` once; sums are kept in float64."""
        count, total, square = 0, torch.zeros(1), torch.zeros(1)
        for batch in in_batches(ids, batch_size):
            patches = source.batch(batch).last.patches[0].double()
            count += patches.shape[0] * patches.shape[1]
            total = total + patches.sum(dim=(0, 1)).cpu()
            square = square + patches.square().sum(dim=(0, 1)).cpu()
        mean = total / count
        std = (square / count - mean.square()).clamp_min(0.0).sqrt().clamp_min(STD_FLOOR)
        return cls(mean.float(), std.float())

    def inverse(self) -> TokenScale:
        """Return the scale that undoes this one."""
        return TokenScale(-self.mean / self.std, 1.0 / self.std)

    def apply(self, tokens: Tokens) -> Tokens:
        """Standardise every layer's tokens."""
        mean, std = (x.to(tokens.sequence[0]) for x in (self.mean, self.std))
        return replace(tokens, sequence=tuple((x - mean) / std for x in tokens.sequence))


@contextmanager
def standardised(
    head: object,
    source: TokenSource,
    ids: Sequence[str],
    *,
    enabled: bool = True,
    scale: TokenScale | None = None,
) -> Iterator[TokenScale | None]:
    """Within the block, ``head`` expects standardised tokens; after it, raw ones again, also after an error.

    Yields the scale to apply to its tokens, ``scale`` or a measured one; None if the head cannot absorb one or
    ``enabled`` is off.
    """
    if not enabled or not isinstance(head, AbsorbsScale):
        yield None
        return
    scale = scale or TokenScale.measure(source, ids)
    undo = scale.inverse()
    head.absorb_scale(undo.mean, undo.std)
    try:
        yield scale
    finally:
        head.absorb_scale(scale.mean, scale.std)
