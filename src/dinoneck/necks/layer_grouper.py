"""L layers of a ViT -> G groups of a neck's width: bottlenecks, and fusion inside each group."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import chain, pairwise
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dinoneck.configured import Configured, at_least, at_most
from dinoneck.errors import ConfigError, ShapeError
from dinoneck.layers.eager import plainly, untouched
from dinoneck.layers.projection import linear
from dinoneck.layers.token_products import Reading, folded, followed, product_dtype, scaled, token_products

Fusion = Literal["mean", "softmax", "pixel"]
Groups = tuple[tuple[int, ...], ...]
NORM_EPS, STD_FLOOR = 1e-6, 1e-3
AS_THEY_ARE = Reading()
MAX_LAYERS = 1024  # a file may ask for it


class Bottleneck(nn.Module):
    """LayerNorm over the channels (or nothing), then a linear layer C -> D."""

    def __init__(self, embed_dim: int, fpn_dim: int, norm: Literal["layer"] | None, **factory: Any) -> None:
        super().__init__()
        self.norm = nn.Identity() if norm is None else nn.LayerNorm(embed_dim, eps=NORM_EPS, **factory)
        self.linear = nn.Linear(embed_dim, fpn_dim, **factory)

    def reset_parameters(self) -> None:
        """Draw the weights anew."""
        if isinstance(self.norm, nn.LayerNorm):
            self.norm.reset_parameters()
        self.linear.reset_parameters()

    @property
    def is_untouched(self) -> bool:
        """Whether there is a norm whose scale and shift are those it was made with."""
        norm = self.norm
        return isinstance(norm, nn.LayerNorm) and bool((norm.weight == 1).all()) and not bool(norm.bias.any())

    def set_norm(self, mean: Tensor, std: Tensor) -> None:
        """Let the norm's result, of this mean and standard deviation per channel, have 0 and 1."""
        if isinstance(self.norm, nn.LayerNorm):
            self.norm.weight.copy_(1.0 / std)
            self.norm.bias.copy_(-mean / std)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, D)."""
        out: Tensor = self.linear(self.norm(x))
        return out


class LayerGrouper(Configured, nn.Module):
    """Project the tokens of L layers to a neck's width and fuse them into G groups, shallow first.

    It works on every token by itself, so necks hand it whole sequences and slice the prefix off the narrow result.
    Outside of ``torch.compile`` and export, ``mean`` and ``softmax`` groups run as one accumulating matrix product:
    no projected and no normed layer is kept, neither in memory nor for the backward pass. Bottlenecks that somebody
    hooked, wrapped, replaced or parametrized are called instead, so that what was put around a layer takes effect.

    Args:
        embed_dim: channels C of the tokens.
        num_layers: L, the number of tensors it is given.
        fpn_dim: D, the width of the groups.
        num_groups: G.
        layer_groups: ``"auto"`` (contiguous, even, shallow first; the first groups take what is left over; with
            L < G neighbouring groups share a layer), or G tuples of positions 0 ... L-1 in the list given (not block
            indices); no position may stand twice, and those left out are not read.
        use_separate_bottlenecks: one bottleneck (norm and linear layer) per layer, or one for all.
        norm: ``"layer"`` normalises every token over its channels before the linear layer; None does not.
        fusion: inside a group: ``mean``; ``softmax`` (one learned scalar per layer, equal at the start); ``pixel``
            (every token weighs the layers by softmax(q · y / sqrt(D)) with one learned query q per group, equal at
            the start). Groups of one layer have nothing to weigh: a ``UserWarning`` where that holds for all of them.
        device: torch factory keyword.
        dtype: torch factory keyword.

    Shape:
        list of L (B, N, C) -> list of G (B, N, D).

    Raises:
        ConfigError: if there are more than 1024 layers or groups, or groups are too few or many, empty, repeat a
            position or name one that does not exist.
        ShapeError: if the tensors are not L of (B, N, embed_dim).

    Examples:
        >>> grouper = LayerGrouper(embed_dim=384, num_layers=4, fpn_dim=64)
        >>> grouper.groups
        ((0, 1), (2,), (3,))
        >>> [y.shape for y in grouper([torch.zeros(2, 10, 384)] * 4)]
        [torch.Size([2, 10, 64]), torch.Size([2, 10, 64]), torch.Size([2, 10, 64])]

    Reference: design source "FPN spatial modelling", 3.2 and 4.1; the accumulating product is our own.
    """

    def __init__(
        self,
        embed_dim: int,
        num_layers: int,
        fpn_dim: int = 256,
        num_groups: int = 3,
        layer_groups: Literal["auto"] | Sequence[Sequence[int]] = "auto",
        use_separate_bottlenecks: bool = True,
        norm: Literal["layer"] | None = "layer",
        fusion: Fusion = "mean",
        *,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        at_least(1, embed_dim=embed_dim, num_layers=num_layers, fpn_dim=fpn_dim, num_groups=num_groups)
        at_most(MAX_LAYERS, num_layers=num_layers, num_groups=num_groups)
        self.embed_dim, self.num_layers, self.fpn_dim, self.fusion = embed_dim, num_layers, fpn_dim, fusion
        self.groups = auto_groups(num_layers, num_groups) if layer_groups == "auto" else _tuples(layer_groups)
        if layer_groups != "auto":
            _check_groups(self.groups, num_layers, num_groups)
        factory = {"device": device, "dtype": dtype}
        used = sorted(set(chain.from_iterable(self.groups)))
        self._place = {layer: str(layer) if use_separate_bottlenecks else "shared" for layer in used}
        self.bottlenecks = nn.ModuleDict(
            {name: Bottleneck(embed_dim, fpn_dim, norm, **factory) for name in dict.fromkeys(self._place.values())}
        )
        several = {place: group for place, group in enumerate(self.groups) if len(group) > 1 and fusion != "mean"}
        if fusion != "mean" and not several:  # a warning, not an error: files of version 0.1 may hold this
            warnings.warn(
                f"fusion={fusion!r} has no effect: every one of the {len(self.groups)} groups holds a single layer "
                f"(num_layers={num_layers}). Use more layers or fewer groups, or fusion='mean'",
                stacklevel=2,
            )
        self.fusion_weights = nn.ParameterDict(
            {
                str(place): nn.Parameter(torch.zeros(len(group) if fusion == "softmax" else fpn_dim, **factory))
                for place, group in several.items()
            }
        )

    def reset_parameters(self) -> None:
        """Draw the weights anew."""
        for bottleneck in self.bottlenecks.values():
            bottleneck.reset_parameters()  # type: ignore[operator]
        for weights in self.fusion_weights.values():
            nn.init.zeros_(weights)

    def bottleneck(self, layer: int) -> Bottleneck:
        """Return the bottleneck that the layer at this position goes through."""
        return cast("Bottleneck", self.bottlenecks[self._place[layer]])

    def forward(self, layers: Sequence[Tensor]) -> list[Tensor]:
        """Project and fuse."""
        self._check(layers)
        fused: dict[tuple[int, ...], Tensor] = {}  # groups that share a layer share its result
        for place, group in enumerate(self.groups):
            if group not in fused:
                fused[group] = self.fuse(place, layers)
        return [fused[group] for group in self.groups]

    def is_linear(self, place: int) -> bool:
        """Whether a group is, its norms aside, one linear map of its layers that its weights tell.

        They do not where somebody hooked, wrapped, replaced or parametrized a bottleneck: those are called.
        """
        if self._by_pixel(place):
            return False
        parts = self._parts(self.groups[place])
        return all(map(_as_made, parts)) and len({type(part._modules["norm"]) for part in parts}) == 1

    def _parts(self, group: Sequence[int]) -> list[Bottleneck]:
        own, names = self.bottlenecks, self._place
        return [cast("Bottleneck", own[names[layer]]) for layer in group]

    def _by_pixel(self, place: int) -> bool:
        return self.fusion == "pixel" and len(self.groups[place]) > 1

    def fuse(
        self, place: int, layers: Sequence[Tensor], how: Reading = AS_THEY_ARE, then: nn.Linear | None = None
    ) -> Tensor:
        """Project and fuse one group.

        Args:
            place: of the group.
            layers: L tensors (B, N, C).
            how: tokens to leave out; averaging of patches before the projection, for groups that are linear, see
                :meth:`is_linear`.
            then: a linear layer to follow, folded into the projections; likewise.

        Returns:
            (B, N, D), or as many cells as the averaging leaves.
        """
        group = self.groups[place]
        if self._by_pixel(place):
            projected = torch.stack([self._projected(layer, layers, how) for layer in group], dim=-2)
            query = self.fusion_weights[str(place)]
            scores = torch.einsum("bnld,d->bnl", projected, query.to(projected.dtype)) * self.fpn_dim**-0.5
            return torch.einsum("bnl,bnld->bnd", scores.softmax(dim=-1).to(projected.dtype), projected)
        weights = self._weights(place, len(group), layers[0]) if len(group) > 1 else None
        if plainly() or not self.is_linear(place):
            parts = [self.bottleneck(layer) for layer in group]
            if how.halvings:
                each = [part.linear(how.whole(part.norm(layers[own]))) for part, own in zip(parts, group, strict=True)]
            else:  # slicing the prefix off first would copy the tokens
                each = [how.whole(part(layers[own])) for part, own in zip(parts, group, strict=True)]
            total = each[0] if weights is None else _plain(each, weights)
            return total if then is None else F.linear(total, then.weight, then.bias)
        return self._accumulated(group, weights, layers, how, then)

    def _projected(self, layer: int, layers: Sequence[Tensor], how: Reading) -> Tensor:
        if plainly() or not _as_made(self.bottleneck(layer)):
            found: Tensor = self.bottleneck(layer)(layers[layer])
            return how.whole(found)
        return self._accumulated((layer,), None, layers, how, None)

    @torch.no_grad()
    def calibrate(self, batches: Iterable[Sequence[Tensor]]) -> bool:
        """Set untouched norms so that every channel of their tokens has mean 0 and standard deviation 1.

        Tokens of one backbone differ by little against what they have in common; gradient steps creep until that is
        taken off. Only norms that stand as they were made (scale 1, shift 0) are set, so a trained grouper, or one
        from a file, is left alone.

        Args:
            batches: lists of L (B, N, C), patch tokens only; read once.

        Returns:
            Whether any norm was set.
        """
        fresh = {layer: part for layer in self._place if (part := self.bottleneck(layer)).is_untouched}
        sums: dict[Bottleneck, list[Tensor]] = {}
        for layers in batches if fresh else ():
            for layer, part in fresh.items():
                x = F.layer_norm(layers[layer].float(), (self.embed_dim,), eps=NORM_EPS).double().flatten(0, 1)
                found = [torch.ones_like(x[:, 0]).sum(), x.sum(dim=0), x.square().sum(dim=0)]
                sums[part] = [old + new for old, new in zip(sums[part], found, strict=True)] if part in sums else found
        for part, (count, total, square) in sums.items():
            mean = total / count
            part.set_norm(mean, (square / count - mean.square()).clamp_min(0.0).sqrt().clamp_min(STD_FLOOR))
        return bool(sums)

    def layer_weights(self) -> list[Tensor]:
        """Return, per group, how much each of its layers counts: (len(group),), for ``mean`` and ``softmax``."""
        if self.fusion == "pixel":
            raise ConfigError("fusion='pixel' weighs layers by cell; there is no one weight per layer")
        like = next(self.parameters())
        return [self._weights(place, len(group), like).detach() for place, group in enumerate(self.groups)]

    def _weights(self, place: int, count: int, like: Tensor) -> Tensor:
        if str(place) in self.fusion_weights:
            own = self.fusion_weights[str(place)]
            shares: Tensor = own.softmax(dim=0, dtype=torch.promote_types(own.dtype, torch.float32))
            return shares
        dtype = torch.promote_types(like.dtype, torch.float32)
        return torch.full((count,), 1.0 / count, device=like.device, dtype=dtype)

    def _accumulated(
        self,
        group: tuple[int, ...],
        weights: Tensor | None,
        layers: Sequence[Tensor],
        how: Reading,
        then: nn.Linear | None,
    ) -> Tensor:
        """Sum of w_l (P_l norm(x_l) + b_l) without any projected or normed layer of its own."""
        parts = [self.bottleneck(layer) for layer in group]
        xs, first = [layers[layer] for layer in group], parts[0].linear
        reading = replace(how, eps=NORM_EPS) if isinstance(parts[0].norm, nn.LayerNorm) else how
        in_blocks = reading != AS_THEY_ARE or not all(x.is_contiguous() for x in xs)  # a slice would be copied whole
        if weights is None and then is None and not in_blocks:
            return linear(xs[0], first.weight, first.bias)
        mixed = weights is not None and all(part is parts[0] for part in parts)
        owners = parts[:1] if mixed else parts
        if then is None:
            shares = [None] * len(owners) if weights is None or mixed else list(weights)
            products = [folded(part.linear, part.norm, share) for part, share in zip(owners, shares, strict=True)]
        else:  # before the shares: what autograd keeps of it are parameters
            products = [followed(*folded(part.linear, part.norm), then.weight) for part in owners]
            if weights is not None and not mixed:
                shared_out = zip(weights, products, strict=True)
                products = [(scaled(weight, share), scaled(bias, share)) for share, (weight, bias) in shared_out]
        matrices, bias = [weight for weight, _ in products], torch.stack([bias for _, bias in products]).sum(dim=0)
        if then is not None and then.bias is not None:
            bias = bias + then.bias
        dtype = product_dtype(first.weight)
        matrices, bias = [matrix.to(dtype) for matrix in matrices], bias.to(dtype)
        if mixed or in_blocks:
            return token_products(xs, matrices, bias, reading, weights if mixed else None)
        return _summed(xs, matrices, bias)

    def _check(self, layers: Sequence[Tensor]) -> None:
        if isinstance(layers, Tensor) or not isinstance(layers, Sequence) or len(layers) != self.num_layers:
            count = f"{len(layers)} tensors" if isinstance(layers, list | tuple) else type(layers).__name__
            raise ShapeError(
                f"LayerGrouper takes a list of {self.num_layers} (B, N, {self.embed_dim}) tensors, one per layer; got "
                f"{count} (of Tokens: pass tokens.sequence)"
            )
        for x in layers:
            if x.ndim != 3 or x.shape[-1] != self.embed_dim or x.shape != layers[0].shape:
                raise ShapeError(
                    f"the layers have shapes {[tuple(y.shape) for y in layers]}; expected equal (B, N, "
                    f"{self.embed_dim})"
                )


def _as_made(part: nn.Module) -> bool:
    """Whether a bottleneck's weights tell all that it does."""
    norm, linear = part._modules.get("norm"), part._modules.get("linear")  # quicker than by name
    if norm is None or linear is None or not untouched(part, Bottleneck) or not untouched(linear, nn.Linear):
        return False
    if not isinstance(norm, nn.LayerNorm):
        return untouched(norm, nn.Identity)
    return untouched(norm, nn.LayerNorm) and norm.eps == NORM_EPS and norm.bias is not None


def auto_groups(num_layers: int, num_groups: int) -> Groups:
    """Split positions 0 ... L-1 into contiguous groups, as even as can be, shallow first.

    The first groups take what is left over; with fewer layers than groups, group g reads layer g * L // G.

    Examples:
        >>> auto_groups(8, 3)
        ((0, 1, 2), (3, 4, 5), (6, 7))
        >>> auto_groups(2, 3)
        ((0,), (0,), (1,))
    """
    if num_layers < num_groups:
        return tuple((place * num_layers // num_groups,) for place in range(num_groups))
    size, left = divmod(num_layers, num_groups)
    begins = [place * size + min(place, left) for place in range(num_groups + 1)]
    return tuple(tuple(range(begin, end)) for begin, end in pairwise(begins))


def _tuples(groups: Sequence[Sequence[int]]) -> Groups:
    return tuple(tuple(group) for group in groups)


def _check_groups(groups: Groups, num_layers: int, num_groups: int) -> None:
    where = f"layer_groups is {groups}"
    if len(groups) != num_groups:
        raise ConfigError(f"{where}: {len(groups)} groups; expected {num_groups}, one per level")
    seen: set[int] = set()
    for place, group in enumerate(groups):
        if not group:
            raise ConfigError(f"{where}: group {place} is empty; every level needs a layer")
        for layer in group:
            if not 0 <= layer < num_layers:
                raise ConfigError(
                    f"{where}: there is no position {layer}; the {num_layers} layers given stand at 0 ... "
                    f"{num_layers - 1} (positions in the list, not block indices)"
                )
            if layer in seen:
                raise ConfigError(f"{where}: position {layer} stands twice; a layer belongs to one group")
            seen.add(layer)


def _plain(layers: Sequence[Tensor], weights: Tensor) -> Tensor:
    """Sum of w_l x_l."""
    total = weights[0].to(layers[0].dtype) * layers[0]
    for place in range(1, len(layers)):
        total = total + weights[place].to(layers[0].dtype) * layers[place]
    return total


def _summed(layers: Sequence[Tensor], weights: Sequence[Tensor], bias: Tensor) -> Tensor:
    """Sum of W_l x_l, plus the bias, in one map; in half precision it is summed up in float32."""
    total = linear(layers[0], weights[0], bias)
    if total.dtype in (torch.float32, torch.float64) and layers[0].dtype == total.dtype:
        flat = total.flatten(0, 1)
        for x, weight in zip(layers[1:], weights[1:], strict=True):
            flat = flat.addmm_(x.reshape(-1, x.shape[-1]), weight.T)
        return flat.view_as(total)
    low, total = total.dtype, total.float()  # half precision would round after every layer
    for x, weight in zip(layers[1:], weights[1:], strict=True):
        total = total.add_(linear(x, weight))
    return total.to(low)
