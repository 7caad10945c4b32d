"""How much each layer of the backbone counts in the groups of a neck."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

import torch
from torch import nn

from dinoneck.errors import ConfigError, DataError
from dinoneck.necks.layer_grouper import LayerGrouper
from dinoneck.viz.drawing import Floats, describe, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_WIDTH, _HEIGHT = 1.9, 2.1


def fusion_figure(neck_or_head: nn.Module, *, layers: Sequence[int] | None = None) -> Figure:
    """Draw bars of the layer-fusion weights: one plot per group, one bar per layer, labelled by block index.

    The bars of a group add up to one; a line marks even weights. With ``fusion="mean"`` they are even by construction.
    Equal weights do not mean that layers matter equally: a layer's bottleneck can be large or small.

    Args:
        neck_or_head: a LayerGrouper, or anything that holds one or more: ViTFPN, FPNHead, an ensemble of them.
        layers: block indices of the layers it reads, in their order (``tokens.layers``). None = the head's
            ``layer_indices``; where it has none, bars are labelled by position.

    Returns:
        a ``matplotlib.figure.Figure``: one row per LayerGrouper, one plot per group, ``axes.patches`` are the bars.

    Raises:
        ConfigError: if it holds no LayerGrouper, ``layers`` are more or fewer than it reads, or
            it has ``fusion="pixel"``.
        ImportError: if matplotlib is missing.

    Examples:
        >>> from dinoneck import ViTFPN
        >>> neck = ViTFPN(64, num_layers=4, fpn_dim=16, num_levels=2, fusion="softmax")
        >>> figure = fusion_figure(neck, layers=(2, 5, 8, 11))
        >>> [[label.get_text() for label in axes.get_xticklabels()] for axes in figure.axes]
        [['2', '5'], ['8', '11']]
    """
    found = [(name, part) for name, part in neck_or_head.named_modules() if isinstance(part, LayerGrouper)]
    if not found:
        raise ConfigError(f"{type(neck_or_head).__name__} holds no LayerGrouper; give one, a ViTFPN or a head on one")
    columns = max(len(part.groups) for _, part in found)
    widest = max(len(group) for _, part in found for group in part.groups)
    blocks = [_blocks(neck_or_head, name, part, layers) for name, part in found]
    weights = [_weights(part) for _, part in found]
    figure = new_figure(0.5 + columns * max(_WIDTH, 0.5 + 0.32 * widest), 0.5 + _HEIGHT * len(found))
    top = min(1.05, 1.25 * max(float(group.max()) for own in weights for group in own))
    for row, (name, part) in enumerate(found):
        labels = blocks[row] or range(part.num_layers)
        owner = f"{name.removesuffix('.grouper')}, " if len(found) > 1 else ""
        for place, (group, own) in enumerate(zip(part.groups, weights[row], strict=True)):
            axes = figure.add_subplot(len(found), columns, row * columns + place + 1)
            axes.bar(range(len(own)), own, color="#31688e", width=0.7)
            axes.axhline(1.0 / len(own), color="#b5452c", linewidth=1.0, linestyle="--")
            axes.set(xlim=(-0.6, len(own) - 0.4), ylim=(0.0, top))
            axes.set_xticks(range(len(own)), [str(labels[layer]) for layer in group])
            axis = "block" if blocks[row] else "position of the layer"
            describe(axes, f"{owner}group {place}", axis, "" if place else "weight")
    return figure


def _blocks(owner: nn.Module, name: str, part: LayerGrouper, layers: Sequence[int] | None) -> tuple[int, ...]:
    """The blocks that a grouper reads, in its order: of the nearest head around it; () = unknown."""
    around = [owner, *(owner.get_submodule(path) for path in accumulate(name.split("."), "{}.{}".format))]
    own = (getattr(module, "layer_indices", None) for module in reversed(around))
    chosen = layers if layers is not None else next((indices for indices in own if indices is not None), ())
    if chosen and len(chosen) != part.num_layers:
        raise ConfigError(f"layers are {tuple(chosen)}; this LayerGrouper reads {part.num_layers}")
    return tuple(chosen)


@torch.no_grad()
def _weights(part: LayerGrouper) -> list[Floats]:
    """Per group, how much each of its layers counts."""
    weights = part.layer_weights()
    if not all(own.isfinite().all() for own in weights):
        raise DataError("fusion weights are not finite; the training of this neck, or the backbone, has failed")
    return [own.double().cpu().numpy() for own in weights]
