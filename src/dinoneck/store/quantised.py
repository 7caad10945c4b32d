"""Stored int8 tokens, used as they are: pooled or projected without a full-width float copy kept."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from dinoneck.errors import ShapeError
from dinoneck.tokens import Tokens


@dataclass(frozen=True, eq=False)
class QuantisedTokens:
    """A batch of int8 records: value of a patch = ``q * scale * channel_scale``.

    Attributes:
        q: (B, N, C) int8 per layer.
        scale: (B, N) float32 per layer, one per patch token.
        prefix: (B, P, C) float32 per layer: CLS and registers, not quantised.
        channel_scale: (C,) float32 per layer, the same for the whole store.
        like: Tokens without tensors, which hold grid, patch size, layers and norm.
    """

    q: tuple[Tensor, ...]
    scale: tuple[Tensor, ...]
    prefix: tuple[Tensor, ...]
    channel_scale: tuple[Tensor, ...]
    like: Tokens

    def __len__(self) -> int:
        return self.q[0].shape[0]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> QuantisedTokens:
        """Move to a device; the values stay int8."""
        q, scale, prefix, channel_scale = (
            tuple(x.to(device, non_blocking=non_blocking) for x in part)
            for part in (self.q, self.scale, self.prefix, self.channel_scale)
        )
        return QuantisedTokens(q, scale, prefix, channel_scale, self.like)

    def dequantise(self, dtype: torch.dtype = torch.float32) -> Tokens:
        """Return ordinary Tokens."""
        whole, wide = [], torch.promote_types(dtype, torch.float32)
        for q, scale, prefix, channel in self._layers():
            patches = q.to(wide).mul_(scale[..., None]).mul_(channel)
            whole.append(torch.cat([prefix.to(dtype), patches.to(dtype)], dim=1))
        return replace(self.like, sequence=tuple(whole))

    def pool(self, weights: Tensor | None = None, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
        """Return the mean of the patches, or their sum under given weights: (B, C) per layer.

        One batched matrix-vec product of the token scales with the int8 values; the channel scale comes after.

        Args:
            weights: (B, N), for a weighted sum such as a gate; None = 1 / N each.
            dtype: of the computation and the result.
        """
        pooled = []
        for q, scale, _, channel in self._layers():
            factor = scale.to(dtype)
            factor = factor / q.shape[1] if weights is None else factor * weights.to(dtype)
            rows = [torch.mv(q[i].to(dtype).T, factor[i]) for i in range(len(q))]  # one sample's floats at a time
            pooled.append((torch.stack(rows) if rows else q.new_zeros((0, q.shape[2]), dtype=dtype)) * channel)
        return tuple(pooled)

    def linear(self, weight: Tensor, bias: Tensor | None = None) -> tuple[Tensor, ...]:
        """Return ``F.linear(tokens, weight, bias)`` of whole sequences: (B, P + N, D) per layer, in weight's dtype.

        The channel scale is folded into the weight and the token scale comes after the product.

        Args:
            weight: (D, C).
            bias: (D,) or None.

        Raises:
            ShapeError: if weight has another width.
        """
        projected = []
        for q, scale, prefix, channel in self._layers():
            if weight.ndim != 2 or weight.shape[1] != q.shape[2]:
                raise ShapeError(f"weight has shape {tuple(weight.shape)}; expected (D, {q.shape[2]})")
            folded = weight * channel.to(weight.dtype)
            patches = F.linear(q.to(weight.dtype), folded) * scale[..., None].to(weight.dtype)
            if bias is not None:
                patches = patches + bias
            projected.append(torch.cat([F.linear(prefix.to(weight.dtype), weight, bias), patches], dim=1))
        return tuple(projected)

    def _layers(self) -> zip[tuple[Tensor, Tensor, Tensor, Tensor]]:
        return zip(self.q, self.scale, self.prefix, self.channel_scale, strict=True)
