"""How much each layer of the backbone counts in the groups of a neck."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from dinoneck.errors import ConfigError, DataError, ShapeError
from dinoneck.necks.layer_grouper import LayerGrouper
from dinoneck.tokens import Tokens
from dinoneck.viz.sheet import CAPTION_PT, TICK_PT, new_figure, wrapped

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_Floats = np.ndarray[Any, Any]

_COLOUR, _EVEN = "#31688e", "#b5452c"
_MOST = 24  # groupers in one figure
_WIDTH, _HEIGHT = 1.9, 2.1


def fusion_figure(
    neck_or_head: nn.Module, *, layers: Sequence[int] | None = None, tokens: Tokens | None = None
) -> Figure:
    """Draw bars of the layer-fusion weights: one plot per group, one bar per layer, labelled by block index.

    The bars of a group add up to one; a line marks even weights. With ``fusion="mean"`` they are even by construction.
    With ``"pixel"`` every patch weighs the layers by itself: give tokens, and the bars are the mean over their patches.
    Equal weights do not say that layers matter equally: a layer's bottleneck can be large or small.

    Args:
        neck_or_head: a LayerGrouper, or anything that holds one or more: ViTFPN, FPNHead, an ensemble of them.
        layers: block indices of the layers it is given, in their order (``tokens.layers``). None = the tokens', or the
            head's ``layer_indices``; where nobody says, bars are labelled by position.
        tokens: to average per-patch weights over, for ``fusion="pixel"``.

    Returns:
        a ``matplotlib.figure.Figure``: one row per LayerGrouper, one plot per group, ``axes.patches`` are the bars.

    Raises:
        ConfigError: if there is no LayerGrouper in it or more than 24, ``layers`` are more or fewer than it reads, or
            ``fusion="pixel"`` comes without tokens.
        ShapeError: if the tokens are not what it was built for.
        ImportError: if matplotlib is missing.

    Examples:
        >>> from dinoneck import ViTFPN
        >>> neck = ViTFPN(64, num_layers=4, fpn_dim=16, num_levels=2, fusion="softmax")
        >>> figure = fusion_figure(neck, layers=(2, 5, 8, 11))
        >>> [[label.get_text() for label in axes.get_xticklabels()] for axes in figure.axes]
        [['2', '5'], ['8', '11']]
    """
    found = [(name, part) for name, part in neck_or_head.named_modules() if isinstance(part, LayerGrouper)]
    if not 0 < len(found) <= _MOST:
        raise ConfigError(
            f"{type(neck_or_head).__name__} holds {len(found)} LayerGroupers; expected 1 ... {_MOST}: a LayerGrouper, "
            "a ViTFPN or a head on one"
        )
    columns = max(len(part.groups) for _, part in found)
    blocks = [_blocks(neck_or_head, name, part, layers, tokens) for name, part in found]
    weights = [_weights(part, tokens, own) for (_, part), own in zip(found, blocks, strict=True)]
    widest = max(len(group) for _, part in found for group in part.groups)
    size = (0.5 + columns * max(_WIDTH, 0.5 + 0.32 * widest), 0.5 + _HEIGHT * len(found))
    figure = new_figure(*size, layout="constrained")
    top = min(1.05, 1.25 * max(float(group.max()) for own in weights for group in own))
    for row, (name, part) in enumerate(found):
        labels = blocks[row] or range(part.num_layers)
        for place, group in enumerate(part.groups):
            axes = figure.add_subplot(len(found), columns, row * columns + place + 1)
            _bars(axes, weights[row][place], [str(labels[layer]) for layer in group], top)
            owner = f"{name.removesuffix('.grouper')}\n" if len(found) > 1 else ""
            axes.set_title(wrapped(f"{owner}group {place}", _WIDTH), fontsize=CAPTION_PT, parse_math=False)
            if row == len(found) - 1:
                axes.set_xlabel("block" if blocks[row] else "position of the layer", fontsize=CAPTION_PT)
            if place == 0:
                axes.set_ylabel("weight", fontsize=CAPTION_PT)
    return figure


def _bars(axes: Axes, weights: _Floats, labels: Sequence[str], top: float) -> None:
    places = np.arange(len(weights))
    axes.bar(places, weights, color=_COLOUR, width=0.7)
    axes.axhline(1.0 / len(weights), color=_EVEN, linewidth=1.0, linestyle="--")
    axes.set_xlim(-0.6, len(weights) - 0.4)
    axes.set_ylim(0.0, top)
    axes.set_xticks(places, labels)
    axes.tick_params(labelsize=TICK_PT)
    axes.spines[["top", "right"]].set_visible(False)


def _blocks(
    owner: nn.Module, name: str, part: LayerGrouper, layers: Sequence[int] | None, tokens: Tokens | None
) -> tuple[int, ...]:
    """The blocks that a grouper reads, in its order; none where nobody says."""
    told = layers if layers is not None else _own_blocks(owner, name)
    if told is None:
        told = (tokens.layers if tokens is not None else None) or ()
    if told and len(told) != part.num_layers:
        raise ConfigError(f"layers are {tuple(told)}; this LayerGrouper reads {part.num_layers}")
    return tuple(told)


def _own_blocks(owner: nn.Module, name: str) -> Sequence[int] | None:
    """The block indices that the nearest head around a grouper names."""
    path = name
    while path:
        path = path.rpartition(".")[0]
        found: Sequence[int] | None = getattr(owner.get_submodule(path), "layer_indices", None)
        if found is not None:
            return found
    return None


def _weights(part: LayerGrouper, tokens: Tokens | None, blocks: tuple[int, ...]) -> list[_Floats]:
    """Per group, how much each of its layers counts."""
    if part.fusion != "pixel":
        found = [weights.double().cpu().numpy() for weights in part.layer_weights()]
    elif tokens is None:
        raise ConfigError("fusion='pixel' weighs the layers of every patch by itself; give tokens= to average over")
    else:
        fed = tokens.select(blocks) if blocks and tokens.layers not in (None, blocks) else tokens
        found = [_mean_weights(part, place, fed) for place in range(len(part.groups))]
    if not all(np.isfinite(weights).all() for weights in found):
        raise DataError("fusion weights are not finite; the training of this neck, or the backbone, has failed")
    return found


@torch.no_grad()
def _mean_weights(part: LayerGrouper, place: int, tokens: Tokens) -> _Floats:
    """The weights of a ``pixel`` group, averaged over all patches."""
    group = part.groups[place]
    if len(group) == 1:
        return np.ones(1)
    patches = tokens.patches
    if len(patches) != part.num_layers or patches[0].shape[-1] != part.embed_dim:
        raise ShapeError(
            f"tokens hold {len(patches)} layers of {patches[0].shape[-1]} channels; this LayerGrouper reads "
            f"{part.num_layers} of {part.embed_dim}"
        )
    query = part.fusion_weights[str(place)]
    scores = torch.stack([part.bottleneck(layer)(patches[layer].to(query.dtype)) @ query for layer in group], dim=-1)
    shares = (scores.double() * part.fpn_dim**-0.5).softmax(dim=-1)
    mean: _Floats = shares.mean(dim=(0, 1)).cpu().numpy()
    return mean
