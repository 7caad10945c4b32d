"""How tokens are stored: the dtypes, and the parts that one view of one image consists of.

fp16 and bf16 stores hold one part, ``tokens`` (L, P + N, C): the whole sequence of all layers. int8
stores hold three. ``prefix`` (L, P, C) float32 has CLS and registers as they are, ``scale`` (L, N)
float32 one number per patch token, and ``q`` (L, N, C) int8 the patches: value = q * scale *
channel scale. A batch of them is pooled or projected without a full-width float copy that is kept.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dinoneck.devices import bytes_of
from dinoneck.dtypes import HALF_DTYPES, float_dtype
from dinoneck.errors import ShapeError, StoreError
from dinoneck.tokens import Tokens

StoreDtype = Literal["fp16", "bf16", "int8"]
Columns = dict[str, tuple[Tensor, ...]]

_LARGEST_INT8 = 127.0  # -128 is left out, so that both signs have the same range


class Part(NamedTuple):
    """One tensor of a view.

    Attributes:
        name: its name in the shard, after the image's id.
        dtype: of its values.
        shape: (layers, ...).
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


def parts_of(
    dtype: StoreDtype, layers: int, prefix: int, width: int, patches: int
) -> tuple[Part, ...]:
    """Return the parts of one view of one image, in the order in which their bytes are hashed.

    Args:
        dtype: ``fp16``, ``bf16`` or ``int8``.
        layers: how many are stored.
        prefix: CLS and register tokens.
        width: channels of a token.
        patches: of the image.
    """
    if dtype != "int8":
        return (Part("tokens", HALF_DTYPES[dtype], (layers, prefix + patches, width)),)
    return (
        Part("prefix", torch.float32, (layers, prefix, width)),
        Part("scale", torch.float32, (layers, patches)),
        Part("q", torch.int8, (layers, patches, width)),
    )


def allocate(parts: Sequence[Part], count: int) -> Columns:
    """Return empty tensors for ``count`` views: part name -> one (count, ...) tensor per layer."""
    columns: Columns = {}
    for part in parts:
        num_layers, *row_shape = part.shape
        layers = [torch.empty(count, *row_shape, dtype=part.dtype) for _ in range(num_layers)]
        columns[part.name] = tuple(layers)
    return columns


def row_buffers(columns: Columns, count: int) -> list[list[list[memoryview]]]:
    """Return the memory of columns of ``count`` rows: row -> part -> one buffer per layer, which reads fill."""
    rows: list[list[list[memoryview]]] = [[] for _ in range(count)]
    for layers in columns.values():
        layer_buffers = [bytes_of(layer) for layer in layers]
        for number, row in enumerate(rows):
            row_of_layers = []
            for buffer in layer_buffers:
                row_bytes = len(buffer) // count
                row_of_layers.append(buffer[number * row_bytes : (number + 1) * row_bytes])
            row.append(row_of_layers)
    return rows


def encode(
    tokens: Tokens, dtype: StoreDtype, channel_scale: Tensor | None = None
) -> dict[str, Tensor]:
    """Return the parts of a batch as they are stored: part name -> (B, layers, ...).

    Args:
        tokens: on the CPU.
        dtype: of the store.
        channel_scale: (layers, channels), for ``int8``.

    Raises:
        StoreError: if values are not finite, or do not fit fp16.
    """
    _check_values(tokens, dtype)
    if dtype != "int8":
        layers = [x.to(HALF_DTYPES[dtype]) for x in tokens.sequence]
        return {"tokens": torch.stack(layers, dim=1)}
    if channel_scale is None:
        raise StoreError("an int8 store needs its channel scale before tokens are written")
    prefix = [x[:, : tokens.num_prefix_tokens].float() for x in tokens.sequence]
    quantised = []
    scales = []
    for patches, layer_scale in zip(tokens.patches, channel_scale, strict=True):
        q, scale = quantise(patches, layer_scale)
        quantised.append(q)
        scales.append(scale)
    return {
        "prefix": torch.stack(prefix, dim=1),
        "scale": torch.stack(scales, dim=1),
        "q": torch.stack(quantised, dim=1),
    }


def _check_values(tokens: Tokens, dtype: StoreDtype) -> None:
    """Raise a StoreError for tokens that are not finite, or too large for fp16."""
    numbers = tokens.layers or range(len(tokens.sequence))
    for layer, x in zip(numbers, tokens.sequence, strict=True):
        largest = x.abs().amax().item()
        if not math.isfinite(largest):
            raise StoreError(
                f"tokens of layer {layer} are not finite; load the backbone's weights again, or in "
                "float32"
            )
        if dtype == "fp16" and largest > torch.finfo(torch.float16).max:
            raise StoreError(
                f"tokens of layer {layer} reach {largest:g}, beyond float16 (65504); create the "
                "store with dtype='bf16' or 'int8', or load the backbone with norm=True"
            )


def channel_rms(batches: Sequence[Tokens]) -> Tensor:
    """Return the root mean square of every channel over all patch tokens: (layers, channels) float32; 1 for zeros."""
    total = torch.zeros(())
    count = 0
    for tokens in batches:
        layer_sums = [patches.double().square().sum(dim=(0, 1)) for patches in tokens.patches]
        total = total + torch.stack(layer_sums)
        count += len(tokens) * tokens.grid.count
    rms = (total / max(count, 1)).sqrt().float()
    return torch.where(rms > 0, rms, 1.0)


def quantise(patches: Tensor, channel_scale: Tensor) -> tuple[Tensor, Tensor]:
    """Return q (B, N, C) int8 and scale (B, N) float32 with patches ~ q * scale * channel_scale.

    The error of a value is at most half of its token's scale times its channel's.
    """
    x = patches.float() / channel_scale
    scale = x.abs().amax(dim=-1) / _LARGEST_INT8
    divisor = torch.where(scale > 0, scale, 1.0)  # a token of zeros has the scale 0
    q = (x / divisor[..., None]).round_().clamp_(-_LARGEST_INT8, _LARGEST_INT8)
    return q.to(torch.int8), scale


def units_between(encoded: Mapping[str, Tensor], stored: Columns, dtype: StoreDtype) -> float:
    """Return the largest difference between views and stored ones, in units of the store's rounding.

    The unit of a token is the step between numbers of the dtype at the token's largest value; of an
    int8 token it is its scale, and of prefix tokens there, which are not rounded, that of fp16.

    Args:
        encoded: of :func:`encode`.
        stored: of the same views: part name -> one (B, ...) tensor per layer.
        dtype: of the store.
    """
    largest = 0.0
    if dtype == "int8":
        for layer in range(len(stored["q"])):
            scale = encoded["scale"][:, layer, :, None]
            stored_scale = stored["scale"][layer][..., None]
            difference = encoded["q"][:, layer] * scale - stored["q"][layer] * stored_scale
            units = difference.abs() / _not_zero(torch.maximum(scale, stored_scale))
            largest = max(largest, units.max().item())
        part = "prefix"
        rounding = torch.float16
    else:
        part = "tokens"
        rounding = HALF_DTYPES[dtype]
    for layer, stored_values in enumerate(stored[part]):
        values = encoded[part][:, layer].double()
        difference = (values - stored_values.double()).abs()
        largest_of_token = torch.maximum(values.abs(), stored_values.double().abs())
        largest_of_token = largest_of_token.amax(dim=-1, keepdim=True)
        exponent = _not_zero(largest_of_token).log2().floor()
        units = difference / (torch.finfo(rounding).eps * 2.0**exponent)
        largest = max(largest, units.max().item())
    return largest


def _not_zero(values: Tensor) -> Tensor:
    """The values, with a 1 in the place of a 0."""
    return torch.where(values > 0, values, 1.0)


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
        return len(self.q[0])

    def to(self, device: torch.device | str, non_blocking: bool = False) -> QuantisedTokens:
        """Move to a device; values keep their dtypes, so a quarter of the bytes of float32 travels."""

        def move(layers: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return tuple(x.to(device, non_blocking=non_blocking) for x in layers)

        return replace(
            self,
            q=move(self.q),
            scale=move(self.scale),
            prefix=move(self.prefix),
            channel_scale=move(self.channel_scale),
        )

    def dequantise(self, dtype: torch.dtype | str = torch.float32) -> Tokens:
        """Return ordinary Tokens of a dtype of torch, or by its name."""
        dtype = float_dtype(dtype)
        wide = torch.promote_types(dtype, torch.float32)
        sequence = []
        for q, scale, prefix, channel_scale in self._layers():
            patches = q.to(wide).mul_(scale[..., None]).mul_(channel_scale)
            sequence.append(torch.cat([prefix.to(dtype), patches.to(dtype)], dim=1))
        return replace(self.like, sequence=tuple(sequence))

    def pool(
        self, weights: Tensor | None = None, dtype: torch.dtype | str = torch.float32
    ) -> tuple[Tensor, ...]:
        """Return the mean of the patches, or their weighted sum: (B, C) per layer.

        One matrix-vector product per image multiplies the int8 values by the token scales; the
        channel scale comes after.

        Args:
            weights: (B, N), for a weighted sum such as a gate; None: 1 / N each.
            dtype: of the computation and the result, of torch or by name.
        """
        dtype = float_dtype(dtype)
        pooled = []
        for q, scale, _, channel_scale in self._layers():
            token_weights = scale.to(dtype)  # (B, N)
            if weights is None:
                token_weights = token_weights / q.shape[1]
            else:
                token_weights = token_weights * weights.to(dtype)
            # image by image, so that the floats of only one are in memory
            images = [torch.mv(q[i].to(dtype).T, token_weights[i]) for i in range(len(q))]
            if images:
                sums = torch.stack(images)  # (B, C)
            else:
                sums = q.new_zeros((0, q.shape[2]), dtype=dtype)
            pooled.append(sums * channel_scale)
        return tuple(pooled)

    def linear(self, weight: Tensor, bias: Tensor | None = None) -> tuple[Tensor, ...]:
        """Return ``F.linear(sequence, weight, bias)`` of every layer's whole sequence.

        The channel scale is multiplied into the weight, and the token scale comes after the
        product. In float16 the product of large tokens may overflow before that; take bfloat16 or
        float32 for them.

        Args:
            weight: (D, C); computation and result have its dtype.
            bias: (D,), or None.

        Returns:
            (B, P + N, D) per layer: prefix tokens, then patches.

        Raises:
            ShapeError: if ``weight`` is for tokens of another width.
        """
        dtype = weight.dtype
        projected = []
        for q, scale, prefix, channel_scale in self._layers():
            if weight.ndim != 2 or weight.shape[1] != q.shape[2]:
                raise ShapeError(
                    f"weight has shape {tuple(weight.shape)}; expected (D, {q.shape[2]})"
                )
            prefix_tokens = F.linear(prefix.to(dtype), weight, bias)  # (B, P, D)
            patches = F.linear(q.to(dtype), weight * channel_scale.to(dtype))  # (B, N, D)
            patches = patches * scale[..., None].to(dtype)
            if bias is not None:
                patches = patches + bias
            projected.append(torch.cat([prefix_tokens, patches], dim=1))
        return tuple(projected)

    def _layers(self) -> zip[tuple[Tensor, Tensor, Tensor, Tensor]]:
        return zip(self.q, self.scale, self.prefix, self.channel_scale, strict=True)
