"""Projections of normed or averaged tokens, block by block: what is read is never held, now or for the backward pass.

LayerNorm, or the mean of 2x2 patches, of wide tokens followed by a linear layer makes a second set of wide tokens
that only the product reads. Here a block of them is made while it fits in the cache, multiplied and dropped; the
backward pass makes it again, which costs less than the reading of it would. LayerNorm's scale and shift are part of
the weight, so frozen tokens need no product for their gradient.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dinoneck.grid import GridSize, as_maps
from dinoneck.layers.eager import plainly
from dinoneck.layers.projection import linear
from dinoneck.layers.resampling import halved

BLOCK_BYTES = {"cpu": 1 << 21}
WIDE_BLOCK_BYTES = 1 << 26


@dataclass(frozen=True)
class Reading:
    """What is done to tokens before the product.

    Attributes:
        eps: of a LayerNorm without scale and shift; None = no norm.
        halvings: how often 2x2 patches are averaged, ceil(n / 2) of n remaining.
        prefix: tokens before the patches to leave out: all of them where patches are averaged.
        grid: of the patches; read where they are averaged.
    """

    eps: float | None = None
    halvings: int = 0
    prefix: int = 0
    grid: GridSize | None = None  # no GridSize as default: torch 2.6 cannot compile one

    @property
    def told(self) -> GridSize:
        """The grid, which whoever averages patches has told."""
        return cast("GridSize", self.grid)

    def __call__(self, tokens: Tensor) -> Tensor:
        """(B, n, C) -> (B, m, C): whole sequences, or whole lines of patches where they are averaged."""
        tokens = self.normed(tokens)
        if not self.halvings:
            return tokens
        cells: Tensor = tokens.unflatten(1, (-1, self.told.cols))  # type: ignore[no-untyped-call]
        maps = cells.permute(0, 3, 1, 2)
        for _ in range(self.halvings):
            maps = halved(maps)
        return maps.permute(0, 2, 3, 1).flatten(1, 2)

    def normed(self, tokens: Tensor) -> Tensor:
        """(B, n, C) -> the same, normalised over C where asked."""
        return tokens if self.eps is None else F.layer_norm(tokens, tokens.shape[-1:], eps=self.eps)

    def whole(self, tokens: Tensor) -> Tensor:
        """Average a whole sequence (B, P + N, C) at once, as graphs do; the norm is the caller's."""
        patches = tokens[:, self.prefix :]
        if not self.halvings:
            return patches
        maps = as_maps(patches, self.told)
        for _ in range(self.halvings):
            maps = halved(maps)
        return maps.permute(0, 2, 3, 1).flatten(1, 2)

    @property
    def size(self) -> GridSize:
        """Cells that remain of the grid."""
        rows, cols = self.told
        for _ in range(self.halvings):
            rows, cols = (rows + 1) // 2, (cols + 1) // 2
        return GridSize(rows, cols)


def folded(linear: nn.Linear, norm: nn.Module | None = None, share: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the weight (D, C) and bias (D,) of a linear layer with the scale and shift of the LayerNorm before it.

    ``share``, a number in float32 or wider, multiplies both. A weight in half precision stays so.
    """
    weight = linear.weight
    bias: Tensor = weight.new_zeros(weight.shape[0]) if linear.bias is None else linear.bias
    scale = share
    if isinstance(norm, nn.LayerNorm) and norm.elementwise_affine:
        bias = torch.addmv(bias, weight, norm.bias)
        own = exact(norm.weight)
        scale = (own if share is None else own * share).to(weight.dtype)
    return weight if scale is None else scaled(weight, scale), bias if share is None else scaled(bias, share)


def followed(weight: Tensor, bias: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
    """Let one more linear layer follow a product; in its own dtype, where float32 would cost what it saves."""
    return own @ weight.to(own.dtype), torch.mv(own, bias.to(own.dtype))


def exact(x: Tensor) -> Tensor:
    """Float32 or wider: weights that are scaled are rounded once, after it."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def scaled(weight: Tensor, scale: Tensor) -> Tensor:
    """The weight times a number in float32 or wider, rounded once, if at all; or times one per column."""
    if weight.device.type == "cpu" or scale.dtype == weight.dtype:  # there a number keeps its digits: no wide copy
        return weight * scale
    return exact(weight) * scale


def product_dtype(like: Tensor) -> torch.dtype:
    """The dtype that matrix products of this weight run in, autocast considered, which leaves float64 alone."""
    kind = like.device.type
    if like.is_meta or like.dtype == torch.float64 or not torch.is_autocast_enabled(kind):
        return like.dtype
    return torch.get_autocast_dtype(kind)


def mixed_layers(layers: Sequence[Tensor], shares: Tensor) -> Tensor:
    """Sum of s_l x_l."""
    own = shares.to(layers[0].dtype)
    total = layers[0] * own[0]
    for place in range(1, len(layers)):
        total = torch.addcmul(total, layers[place], own[place])
    return total


def token_products(
    layers: Sequence[Tensor],
    weights: Sequence[Tensor],
    bias: Tensor | None,
    reading: Reading,
    shares: Tensor | None = None,
) -> Tensor:
    """Return the sum over layers of reading(x_l) W_l^T, plus the bias.

    Sums of several layers are kept in float32 or wider. Not for graphs: the caller writes the plain formulation there.
    A gradient that is itself differentiated, or taken for many outputs at once, is that of the plain formulation,
    which holds what it reads.

    Args:
        layers: L tensors (B, P + N, C).
        weights: one (D, C) per layer; with ``shares`` one for all.
        bias: (D,) or None.
        reading: norm and averaging before the product.
        shares: (L,) = the layers are first mixed by these; None = every layer has its weight.

    Returns:
        (B, tokens that are read, D); (B, cells that remain, D) where patches are averaged.
    """
    first, dtype = layers[0], weights[0].dtype
    total = first.new_zeros(weights[0].shape[0], dtype=dtype) if bias is None else bias
    if first.is_meta or plainly():
        return _plain_products(reading, shares, total, weights, layers)
    cast = dtype if torch.is_autocast_enabled(first.device.type) else first.dtype  # else a misfit is an error
    found: Tensor = _Products.apply(reading, cast, shares, total, len(weights), *weights, *layers)
    return found


def _plain_products(
    reading: Reading, shares: Tensor | None, bias: Tensor, weights: Sequence[Tensor], layers: Sequence[Tensor]
) -> Tensor:
    """The same of whole sequences, in operations of torch alone."""
    read = [reading.normed(x) for x in layers]
    if shares is not None:
        read = [mixed_layers(read, shares)]
    total = bias
    for x, weight in zip(read, weights, strict=True):
        total = total + F.linear(reading.whole(x), weight)
    return total


class _Products(torch.autograd.Function):
    """The product over blocks; keeps the tokens and the shares, and the weights where tokens or shares learn."""

    @staticmethod
    def forward(
        ctx: Any, reading: Reading, cast: torch.dtype, shares: Tensor | None, bias: Tensor, count: int, *given: Tensor
    ) -> Tensor:
        """Multiply block by block."""
        weights, layers = given[:count], given[count:]
        first = layers[0]
        cells = reading.size.count if reading.halvings else first.shape[1] - reading.prefix
        total = first.new_empty((first.shape[0], cells, weights[0].shape[0]), dtype=weights[0].dtype)
        with torch.autocast(first.device.type, enabled=False):
            for samples, tokens, places in _blocks(first, reading, shares):
                read = _read([x[samples, tokens] for x in layers], reading, shares, cast)
                _multiply(read, weights, bias, total[samples, places].flatten(0, 1))
        ctx.reading, ctx.count, ctx.has_shares = reading, count, shares is not None
        ctx.has_weights = any((ctx.needs_input_grad[2], *ctx.needs_input_grad[5 + count :]))
        kept = given if ctx.has_weights else layers
        ctx.save_for_backward(*kept, bias, *([] if shares is None else [shares]))
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        """Read block by block again; as whole sequences if that is to be differentiated itself."""
        saved = ctx.saved_tensors
        bias, shares = saved[len(saved) - ctx.has_shares - 1], saved[-1] if ctx.has_shares else None
        given = saved[: len(saved) - ctx.has_shares - 1]
        if not ctx.has_weights:  # a product is linear in its weight: its gradient is the same at any
            stand_in = grad.new_zeros(()).expand(grad.shape[-1], given[0].shape[-1])
            given = (*(stand_in.detach().requires_grad_(torch.is_grad_enabled()) for _ in range(ctx.count)), *given)
        weights, layers = given[: ctx.count], given[ctx.count :]
        wants = ctx.needs_input_grad[2:4] + ctx.needs_input_grad[5:]
        again = torch.is_grad_enabled()
        many = torch._C._functorch.is_legacy_batchedtensor(grad)  # autograd.grad(is_grads_batched=True)
        if again or many or plainly():
            learns = [x for x, want in zip((shares, bias, *given), wants, strict=True) if want]
            dtype = weights[0].dtype
            with torch.enable_grad():
                whole = _plain_products(ctx.reading, shares, bias, weights, [x.to(dtype) for x in layers])
            found = iter(torch.autograd.grad(whole, learns, grad, create_graph=again))
            of_shares, of_bias, *of_given = (next(found) if want else None for want in wants)
            return None, None, of_shares, of_bias, None, *of_given
        of_shares, of_given = _backward(ctx.reading, shares, weights, layers, grad, wants)
        of_bias = grad.sum(dim=(0, 1), dtype=torch.promote_types(grad.dtype, torch.float32)).to(grad.dtype)
        return None, None, of_shares, of_bias, None, *of_given


def _backward(
    reading: Reading,
    shares: Tensor | None,
    weights: Sequence[Tensor],
    layers: Sequence[Tensor],
    grad: Tensor,
    wants: Sequence[bool],
) -> tuple[Tensor | None, list[Tensor | None]]:
    """The gradients of the shares, and of weights and layers, block by block."""
    wide = torch.promote_types(grad.dtype, torch.float32)
    of_weights = [torch.zeros_like(weight, dtype=wide) for weight in weights]
    of_shares = torch.zeros_like(shares, dtype=wide) if shares is not None and wants[0] else None
    wanted = zip(layers, wants[2 + len(weights) :], strict=True)
    of_layers = [torch.zeros_like(x) if want else None for x, want in wanted]
    with torch.autocast(grad.device.type, enabled=False):
        for samples, tokens, places in _blocks(layers[0], reading, shares):
            part = grad[samples, places].flatten(0, 1)
            blocks = [x[samples, tokens] for x in layers]
            into = [None if x is None else x[samples, tokens] for x in of_layers]
            _back(part, blocks, weights, shares, reading, of_weights, of_shares, into)
    for_weights = [x.to(weight.dtype) for x, weight in zip(of_weights, weights, strict=True)]
    return None if of_shares is None or shares is None else of_shares.to(shares.dtype), [*for_weights, *of_layers]


def _blocks(x: Tensor, reading: Reading, shares: Tensor | None) -> Iterator[tuple[slice, slice, slice]]:
    """Samples, tokens and places of the result, so that a block of wide tokens stays small and in one piece."""
    makes = reading.eps is not None or reading.halvings or shares is not None  # anything of its own
    batch, count, channels = x.shape
    fits = max(1, BLOCK_BYTES.get(x.device.type, WIDE_BLOCK_BYTES) // (channels * x.element_size()))
    fits = fits if makes else max(fits, count)
    begin = reading.prefix
    line = reading.told.cols << reading.halvings if reading.halvings else 1  # tokens that are averaged together
    made = reading.size.cols if reading.halvings else 1
    if count - begin <= fits:
        samples = fits // max(1, count - begin)
        for sample in range(0, batch, samples):
            yield slice(sample, sample + samples), slice(begin, count), slice(None)
        return
    step = max(1, fits // line) * line
    for sample in range(batch):
        for token in range(begin, count, step):
            place = (token - begin) // line * made
            yield (
                slice(sample, sample + 1),
                slice(token, min(token + step, count)),
                slice(place, place + step // line * made),
            )


def _read(blocks: Sequence[Tensor], reading: Reading, shares: Tensor | None, dtype: torch.dtype) -> list[Tensor]:
    """(rows, C) per layer, or of all layers mixed, in the dtype of the product."""
    if shares is not None:  # averaging commutes with mixing: one mean for all layers
        blocks, reading = (
            [mixed_layers([reading.normed(block) for block in blocks], shares)],
            replace(reading, eps=None),
        )
    return [reading(block).flatten(0, 1).to(dtype) for block in blocks]


def _multiply(read: Sequence[Tensor], weights: Sequence[Tensor], bias: Tensor, out: Tensor) -> None:
    """Write the sum of the products of one block; half precision is summed up in float32."""
    if out.dtype in (torch.float32, torch.float64):
        torch.addmm(bias, read[0], weights[0].T, out=out)
        for x, weight in zip(read[1:], weights[1:], strict=True):
            out.addmm_(x, weight.T)
        return
    total = linear(read[0], weights[0], bias)
    for x, weight in zip(read[1:], weights[1:], strict=True):
        total = total.float()
        total += linear(x, weight)
    out.copy_(total)


def _back(
    grad: Tensor,
    blocks: Sequence[Tensor],
    weights: Sequence[Tensor],
    shares: Tensor | None,
    reading: Reading,
    of_weights: Sequence[Tensor],
    of_shares: Tensor | None,
    into: Sequence[Tensor | None],
) -> None:
    """Add one block's gradients: what was read is read again."""
    learns = any(x is not None for x in into)
    with torch.set_grad_enabled(learns or of_shares is not None):
        leaves = [block.detach().requires_grad_(learns) for block in blocks]
        if shares is not None and of_shares is not None:
            leaves.append(shares.detach().requires_grad_())
            shares = leaves[-1]
        read = _read(leaves[: len(blocks)], reading, shares, weights[0].dtype)
    for x, total in zip(read, of_weights, strict=True):
        _accumulate(total, grad, x.detach())
    if not learns and of_shares is None:
        return
    wanted = leaves if learns else leaves[-1:]
    found = torch.autograd.grad(read, wanted, [grad @ weight for weight in weights])
    if of_shares is not None:
        of_shares += found[-1]
    for place, x in zip(into, found, strict=False):
        if learns and place is not None:
            place.copy_(x)


def _accumulate(total: Tensor, grad: Tensor, x: Tensor) -> None:
    """Add grad^T x."""
    if total.dtype == grad.dtype:
        total.addmm_(grad.T, x)
    else:
        total += grad.T @ x
