"""L layers of a ViT -> G groups of a neck's width: bottlenecks, and fusion inside each group."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain, pairwise
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dinoneck.checks import check_minimum
from dinoneck.configured import Configured
from dinoneck.errors import ConfigError, ShapeError
from dinoneck.layers.blocks import TOKEN_NORM_EPS, reset
from dinoneck.layers.fused import is_fusable, is_replaceable, norm_linear, scaled_linear

Fusion = Literal["mean", "softmax", "pixel"]
Groups = tuple[tuple[int, ...], ...]
STD_FLOOR = 1e-3  # a channel of normed tokens that varies less is divided by it
MAX_LAYERS = 1024  # a file may ask for it


class Bottleneck(nn.Module):
    """LayerNorm over the channels (or nothing), then a linear layer C -> D."""

    def __init__(
        self, embed_dim: int, fpn_dim: int, norm: Literal["layer"] | None, **factory: Any
    ) -> None:
        super().__init__()
        self.norm = (
            nn.Identity()
            if norm is None
            else nn.LayerNorm(embed_dim, eps=TOKEN_NORM_EPS, **factory)
        )
        self.linear = nn.Linear(embed_dim, fpn_dim, **factory)

    @property
    def is_untouched(self) -> bool:
        """Whether the LayerNorm still has its initial scale (1) and shift (0)."""
        norm = self.norm
        return (
            isinstance(norm, nn.LayerNorm)
            and bool((norm.weight == 1).all())
            and not bool(norm.bias.any())
        )

    def forward(self, x: Tensor, share: Tensor | None = None) -> Tensor:
        """(B, N, C) -> (B, N, D), times ``share``."""
        # while gradients are recorded: the same value, without keeping norm(x) or linear(x) for the
        # backward pass
        if torch.is_grad_enabled():
            if is_fusable(x, self.norm, self.linear):
                return norm_linear(x, self.norm, self.linear, share)  # type: ignore[arg-type]
            has_norm = type(self.norm) is not nn.Identity
            if share is not None and not has_norm and is_replaceable(x, self.linear):
                return scaled_linear(x, self.linear, share)
        projected: Tensor = self.linear(self.norm(x))
        return projected if share is None else share.to(projected.dtype) * projected


class LayerGrouper(Configured, nn.Module):
    """Project the tokens of L layers to a neck's width and fuse them into G groups, shallow first.

    Every token is processed on its own, so necks pass whole sequences and slice CLS and registers
    off the narrower result. In training, the norm and the linear layer of a bottleneck and the
    scalar of ``softmax`` run as one operation that keeps no normed or projected tokens for the
    backward pass; hooks belong on the bottleneck, not on these modules.

    Args:
        embed_dim: channels C of the tokens.
        num_layers: L, the number of tensors in the list.
        fpn_dim: D, the width of the groups.
        num_groups: G.
        layer_groups: ``"auto"`` (contiguous, even, shallow first; the first groups take the
            remainder; with L < G neighbouring groups share a layer), or G tuples of positions 0 ...
            L-1 in the list given (not block indices); no position may repeat; layers left out are
            not read.
        use_separate_bottlenecks: one bottleneck (norm and linear layer) per layer, or one for all.
        norm: ``"layer"`` normalises every token over its channels before the linear layer; None
            does not.
        fusion: inside a group: ``mean``; ``softmax`` (one learned scalar per layer, equal at the
            start); ``pixel`` (every token weighs the layers by softmax(q · y / sqrt(D)) with one
            learned query q per group, equal at the start). A group of one layer has no weights; the
            last two need a group of several.
        device: torch factory keyword.
        dtype: torch factory keyword.

    Shape:
        list of L (B, N, C) -> list of G (B, N, D).

    Raises:
        ConfigError: if there are more than 1024 layers or groups, groups are too few or many,
            empty, repeat a position or name one that does not exist, or ``fusion`` has no effect.
        ShapeError: if the tensors are not L of (B, N, embed_dim).

    Examples:
        >>> grouper = LayerGrouper(embed_dim=384, num_layers=4, fpn_dim=64)
        >>> grouper.groups
        ((0, 1), (2,), (3,))
        >>> [y.shape for y in grouper([torch.zeros(2, 10, 384)] * 4)]
        [torch.Size([2, 10, 64]), torch.Size([2, 10, 64]), torch.Size([2, 10, 64])]

    Reference: grouping of ViT layers as in Lin et al., Feature Pyramid Networks for Object
    Detection, CVPR 2017, with groups of layers in place of a backbone's stages.
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
        check_minimum(
            1, embed_dim=embed_dim, num_layers=num_layers, fpn_dim=fpn_dim, num_groups=num_groups
        )
        if max(num_layers, num_groups) > MAX_LAYERS:
            raise ConfigError(
                f"num_layers is {num_layers} and num_groups {num_groups}; expected {MAX_LAYERS} "
                "or fewer"
            )
        self.embed_dim = embed_dim
        self.num_layers = num_layers
        self.fpn_dim = fpn_dim
        self.fusion = fusion
        self.groups: Groups
        if layer_groups == "auto":
            self.groups = auto_groups(num_layers, num_groups)
        else:
            self.groups = tuple(tuple(group) for group in layer_groups)
            _check_groups(self.groups, num_layers, num_groups)
        factory = {"device": device, "dtype": dtype}
        self._bottleneck_names: dict[int, str] = {}  # of every layer that a group reads
        self.bottlenecks = nn.ModuleDict()
        for layer in sorted(set(chain.from_iterable(self.groups))):
            name = str(layer) if use_separate_bottlenecks else "shared"
            self._bottleneck_names[layer] = name
            if name not in self.bottlenecks:
                self.bottlenecks[name] = Bottleneck(embed_dim, fpn_dim, norm, **factory)
        fuses_layers = any(len(group) > 1 for group in self.groups)
        if fusion != "mean" and not fuses_layers:
            raise ConfigError(
                f"fusion={fusion!r} has no effect: every one of the {len(self.groups)} groups "
                f"holds a single layer (num_layers={num_layers}); use more layers or fewer "
                "groups, or fusion='mean'"
            )
        self.fusion_weights = nn.ParameterDict()
        for index, group in enumerate(self.groups):
            if fusion == "mean" or len(group) == 1:
                continue
            width = len(group) if fusion == "softmax" else fpn_dim
            self.fusion_weights[str(index)] = nn.Parameter(torch.zeros(width, **factory))

    def reset_parameters(self) -> None:
        """Re-initialise the weights."""
        reset(self.bottlenecks)
        for weights in self.fusion_weights.values():
            nn.init.zeros_(weights)

    def bottleneck(self, layer: int) -> Bottleneck:
        """Return the bottleneck that the layer at this position goes through."""
        return cast("Bottleneck", self.bottlenecks[self._bottleneck_names[layer]])

    def forward(self, layers: Sequence[Tensor]) -> list[Tensor]:
        """Project and fuse: L tensors (B, N, C) -> G tensors (B, N, D)."""
        self._check(layers)
        fused: dict[tuple[int, ...], Tensor] = {}  # groups that share a layer share its result
        groups = []
        for index, group in enumerate(self.groups):
            if group not in fused:
                fused[group] = self._fuse(index, group, layers)
            groups.append(fused[group])
        return groups

    def _fuse(self, index: int, group: tuple[int, ...], layers: Sequence[Tensor]) -> Tensor:
        """Project the layers (B, N, C) of one group and fuse them -> (B, N, D)."""
        if len(group) == 1:
            return cast("Tensor", self.bottleneck(group[0])(layers[group[0]]))
        # sum of s_l y_l: the weights s are the softmax of one learned scalar per layer
        if self.fusion == "softmax":
            weights = self._softmax_weights(index).unbind()
            terms: list[Tensor] = [
                self.bottleneck(i)(layers[i], weight)
                for i, weight in zip(group, weights, strict=True)
            ]
            return sum(terms[1:], terms[0])
        projected: list[Tensor] = [self.bottleneck(i)(layers[i]) for i in group]  # (B, N, D) each
        if self.fusion == "mean":
            return sum(projected[1:], projected[0]) / len(group)
        # every token weighs its layers: softmax over L of q . y / sqrt(D)
        stacked = torch.stack(projected, dim=-2)  # (B, N, L, D)
        query = self.fusion_weights[str(index)]  # (D,)
        scores = torch.einsum("bnld,d->bnl", stacked, query.to(stacked.dtype)) * self.fpn_dim**-0.5
        return torch.einsum("bnl,bnld->bnd", scores.softmax(dim=-1).to(stacked.dtype), stacked)

    def layer_weights(self) -> list[Tensor]:
        """Return how much each layer counts in its group: per group a tensor with a weight per layer.

        The weights of a group add up to 1. They are learned with ``fusion="softmax"``; with
        ``"mean"``, and in a group of one layer, all layers count alike. They have no gradient.

        Raises:
            ConfigError: with ``fusion="pixel"``, where every token has weights of its own.
        """
        if self.fusion == "pixel":
            raise ConfigError(
                "fusion is 'pixel': every token weighs the layers on its own, so a layer has no "
                "single weight; layer_weights() is for 'softmax' and 'mean'"
            )
        weights = []
        for index, group in enumerate(self.groups):
            if str(index) in self.fusion_weights:
                weights.append(self._softmax_weights(index).detach())
            else:
                device = next(self.parameters()).device
                weights.append(torch.full((len(group),), 1.0 / len(group), device=device))
        return weights

    def _softmax_weights(self, index: int) -> Tensor:
        """The learned weights (L,) of the layers of a group of several, in float32 or wider."""
        logits = self.fusion_weights[str(index)]
        dtype = torch.promote_types(logits.dtype, torch.float32)
        weights: Tensor = logits.softmax(dim=0, dtype=dtype)
        return weights

    @torch.no_grad()
    def calibrate(self, batches: Iterable[Sequence[Tensor]]) -> bool:
        """Set untouched norms so that every channel of their tokens has mean 0 and standard deviation 1.

        Tokens of one backbone share a large offset per channel, which slows training; calibration
        removes it. Only norms with their initial scale (1) and shift (0) are set, so a trained
        grouper, or one from a file, keeps its.

        Args:
            batches: lists of L (B, N, C), patch tokens only; read once.

        Returns:
            Whether any norm was set.
        """
        untouched: dict[int, Bottleneck] = {}  # layer -> its bottleneck
        for layer in self._bottleneck_names:
            bottleneck = self.bottleneck(layer)
            if bottleneck.is_untouched:
                untouched[layer] = bottleneck
        if not untouched:
            return False
        sums: dict[Bottleneck, _ChannelSums] = {}
        for layers in batches:
            for layer, bottleneck in untouched.items():
                normed = F.layer_norm(layers[layer].float(), (self.embed_dim,), eps=TOKEN_NORM_EPS)
                sums.setdefault(bottleneck, _ChannelSums()).add(normed.double().flatten(0, 1))
        for bottleneck, channel_sums in sums.items():
            mean, std = channel_sums.mean_and_std()
            scale, shift = bottleneck.norm.parameters()
            scale.copy_(1.0 / std)
            shift.copy_(-mean / std)
        return bool(sums)

    def _check(self, layers: Sequence[Tensor]) -> None:
        is_list = isinstance(layers, Sequence) and not isinstance(layers, Tensor)
        if not is_list or len(layers) != self.num_layers:
            got = type(layers).__name__
            if isinstance(layers, list | tuple):
                got = f"{len(layers)} tensors"
            raise ShapeError(
                f"LayerGrouper takes a list of {self.num_layers} (B, N, {self.embed_dim}) "
                f"tensors, one per layer; got {got} (of Tokens: pass tokens.sequence)"
            )
        for x in layers:
            if x.ndim != 3 or x.shape[-1] != self.embed_dim or x.shape != layers[0].shape:
                raise ShapeError(
                    f"the layers have shapes {[tuple(y.shape) for y in layers]}; expected equal "
                    f"(B, N, {self.embed_dim})"
                )


class _ChannelSums:
    """Sums over tokens of the values of every channel and of their squares."""

    def __init__(self) -> None:
        self._count = 0
        self._total: Tensor | float = 0.0
        self._total_square: Tensor | float = 0.0

    def add(self, x: Tensor) -> None:
        """Add tokens (N, C)."""
        self._count += len(x)
        self._total = self._total + x.sum(dim=0)
        self._total_square = self._total_square + x.square().sum(dim=0)

    def mean_and_std(self) -> tuple[Tensor, Tensor]:
        """Return the mean and the standard deviation (C,), which is at least ``STD_FLOOR``."""
        mean = torch.as_tensor(self._total) / self._count
        variance = torch.as_tensor(self._total_square) / self._count - mean.square()
        return mean, variance.clamp_min(0.0).sqrt().clamp_min(STD_FLOOR)


def _check_groups(groups: Groups, num_layers: int, num_groups: int) -> None:
    """Check the positions that a user assigns to the levels; a position may be left out."""
    where = f"layer_groups is {groups}"
    if len(groups) != num_groups:
        raise ConfigError(f"{where}: {len(groups)} groups; expected {num_groups}, one per level")
    seen = set()
    for index, group in enumerate(groups):
        if not group:
            raise ConfigError(f"{where}: group {index} is empty; every level needs a layer")
        for position in group:
            if not 0 <= position < num_layers:
                raise ConfigError(
                    f"{where}: there is no position {position}; the {num_layers} layers have the "
                    f"positions 0 ... {num_layers - 1} in the list (these are not block indices)"
                )
            if position in seen:
                raise ConfigError(
                    f"{where}: position {position} appears twice; a layer belongs to one group"
                )
            seen.add(position)


def auto_groups(num_layers: int, num_groups: int) -> Groups:
    """Split positions 0 ... L-1 into contiguous groups, as even as can be, shallow first.

    The first groups take the remainder; with fewer layers than groups, group g reads layer g * L //
    G.

    Examples:
        >>> auto_groups(8, 3)
        ((0, 1, 2), (3, 4, 5), (6, 7))
        >>> auto_groups(2, 3)
        ((0,), (0,), (1,))
    """
    if num_layers < num_groups:
        return tuple((index * num_layers // num_groups,) for index in range(num_groups))
    size, remainder = divmod(num_layers, num_groups)
    begins = [index * size + min(index, remainder) for index in range(num_groups + 1)]
    return tuple(tuple(range(begin, end)) for begin, end in pairwise(begins))
