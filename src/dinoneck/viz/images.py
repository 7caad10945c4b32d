"""Figures of a network: images next to gates, features or pyramid levels, and the weights of fused layers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from dinoneck.data.decoding import ImageInput
from dinoneck.errors import ConfigError, DataError, ShapeError
from dinoneck.necks.layer_grouper import LayerGrouper
from dinoneck.tokens import FeaturePyramid, Tokens
from dinoneck.viz.drawing import (
    SCALE,
    Floats,
    colour_bar,
    describe,
    image_rows,
    names_of,
    new_figure,
    numbers,
    show,
    span,
    trim,
)
from dinoneck.viz.pca import PCABasis, pca_rgb

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def gate_figure(
    images: ImageInput | Sequence[ImageInput],
    gates: Tensor | Floats | Sequence[Any],
    *,
    names: Sequence[str] | None = None,
    alpha: float = 0.65,
) -> Figure:
    """Draw every image next to its gate: how much each patch counts in what the head pools.

    The colours of all gates span 0 to the largest weight, so rows compare. The caption states how many times more than
    in a plain mean the heaviest patch counts.

    Args:
        images: the images that the gates are of, as the backbone saw them (``Preprocessing.picture``).
        gates: (B, rows, cols), or one (rows, cols) per image: ``CLSGatingHead.gate(tokens)``, or ``"gate"`` of the
            Predictor's results. Every gate adds up to one.
        names: one per image, shown above it.
        alpha: opacity of the gate over the image, 0 ... 1.

    Returns:
        a ``matplotlib.figure.Figure``: one row per image.

    Raises:
        DataError: if there are more or fewer images than gates, or a gate is negative or does not add up to one.
        ShapeError: if a gate is not a map.
        ImportError: if matplotlib is missing.

    Examples:
        >>> gate = np.array([[0.1, 0.2], [0.3, 0.4]])
        >>> figure = gate_figure(np.zeros((32, 32, 3), np.uint8), gate[None])
        >>> figure.axes[1].get_title()
        'gate, at most 1.6 x the mean'
    """
    named = names_of(images, names, len(gates))
    maps = [numbers(gate, f"the weights of gate {place}", "rows, cols") for place, gate in enumerate(gates)]
    for place, gate in enumerate(maps):
        if gate.min() < 0 or abs(gate.sum() - 1.0) > 1e-2:  # half precision over thousands of patches
            raise DataError(
                f"gate {place} adds up to {gate.sum():.4g} and its smallest weight is {gate.min():.3g}; expected "
                "weights of 0 or more that add up to 1"
            )
    tops = [f"gate, at most {gate.max() * gate.size:.3g} x the mean" for gate in maps]
    figure, axes = image_rows(images, list(zip(named, tops, strict=True)))
    top = max(float(gate.max()) for gate in maps)
    for own, gate in zip(axes[:, 1], maps, strict=True):
        drawn = show(own, gate, cmap=SCALE, vmin=0.0, vmax=top, alpha=alpha)
    colour_bar(drawn, axes[:, 1], "weight of one patch, one image adds up to 1")
    return figure


def pca_figure(
    images: ImageInput | Sequence[ImageInput],
    tokens: Tokens,
    *,
    layer: int = -1,
    basis: PCABasis | None = None,
    foreground: float | None = None,
    names: Sequence[str] | None = None,
) -> Figure:
    """Draw every image next to its patches as colours, which :func:`pca_rgb` chooses for all of them together.

    Args:
        images: the images that the tokens are of, as the backbone saw them (``Preprocessing.picture``), so that
            cropping and padding do not shift the patches.
        tokens: of these images, as one batch.
        layer: which of the tokens' layers, by position; -1 = the last.
        basis: directions and range to use; None = fitted on these tokens.
        foreground: None, or a share 0 ... 1 to leave out the background, see :meth:`PCABasis.fit`.
        names: one per image, shown above it.

    Returns:
        a ``matplotlib.figure.Figure``: one row per image.

    Raises:
        DataError: if there are more or fewer images than samples, or values are not finite.
        ShapeError: if the tokens do not fit the basis.
        ImportError: if matplotlib is missing.

    Examples:
        >>> import torch
        >>> from dinoneck import load_backbone
        >>> image, backbone = torch.rand(3, 32, 48), load_backbone("dinoneck_tiny")
        >>> len(pca_figure(image, backbone(backbone.preprocess(image))).axes)
        2
    """
    colours = pca_rgb(tokens, layer=layer, basis=basis, foreground=foreground)
    title = "tokens" if tokens.layers is None else f"tokens of block {tokens.layers[layer]}"
    named = names_of(images, names, len(colours))
    figure, axes = image_rows(images, [[name, "" if row else title] for row, name in enumerate(named)])
    for own, patches in zip(axes[:, 1], colours, strict=True):
        show(own, patches)
    trim(figure)
    return figure


def pyramid_figure(
    pyramid: FeaturePyramid,
    image: ImageInput | None = None,
    *,
    how: Literal["pca", "norm"] = "pca",
    sample: int = 0,
) -> Figure:
    """Draw every level of one image's pyramid, fine to coarse, in the image's pixels.

    A cell covers the pixels of its stride; where a level's last cell reaches over the image's edge, it is cut there.
    Levels have channels of their own: the colours of two levels do not compare, patterns do.

    Args:
        pyramid: the output of a neck.
        image: the image that went in, as the backbone saw it; None draws the levels alone.
        how: ``"pca"``: three principal components as colours, see :func:`pca_rgb`; ``"norm"``: the length of a cell's
            feature, one colour bar per level.
        sample: which of the batch.

    Returns:
        a ``matplotlib.figure.Figure`` of one row.

    Raises:
        ConfigError, IndexError: if ``how`` is another word, or the sample does not exist.
        ShapeError: if a level is not a map, or does not fit the image's size.
        DataError: if values are not finite.

    Examples:
        >>> import torch
        >>> levels = FeaturePyramid((torch.rand(1, 8, 5, 6), torch.rand(1, 8, 3, 3)), (16.0, 32.0))
        >>> figure = pyramid_figure(levels)
        >>> [axes.get_title() for axes in figure.axes]
        ['level 0: stride 16 px, 5 x 6 cells', 'level 1: stride 32 px, 3 x 3 cells']
        >>> [float(end) for end in figure.axes[1].images[-1].get_extent()]  # left, right, bottom, top
        [0.0, 96.0, 96.0, 0.0]
    """
    if how not in ("pca", "norm"):
        raise ConfigError(f"how is {how!r}; expected 'pca' or 'norm'")
    axes_of = "channels, rows, cols"
    levels = [numbers(level[sample], f"the values of level {i}", axes_of) for i, level in enumerate(pyramid.maps)]
    areas = [(m.shape[1] * stride, m.shape[2] * stride) for m, stride in zip(levels, pyramid.strides, strict=True)]
    first = np.ones((*(max(1, round(side)) for side in areas[0]), 3)) if image is None else image
    names = ["image"] * (image is not None) + [
        f"level {place}: stride {stride:g} px, {m.shape[1]} x {m.shape[2]} cells"
        for place, (m, stride) in enumerate(zip(levels, pyramid.strides, strict=True))
    ]
    figure, axes = image_rows(first, [names])
    shape = (axes[0, 0].get_ylim()[0], axes[0, 0].get_xlim()[1])
    for own, level, area, stride in zip(axes[0, -len(levels) :], levels, areas, pyramid.strides, strict=True):
        if not all(-1e-6 <= side - pixels < stride for side, pixels in zip(area, shape, strict=True)):
            raise ShapeError(
                f"a level of {level.shape[1]} x {level.shape[2]} cells of {stride:g} px does not fit an image of "
                f"{shape[0]:g}x{shape[1]:g} px; give the image as the backbone saw it (Preprocessing.picture)"
            )
        if how == "pca":
            show(own, pca_rgb(level[None])[0], area)
        else:
            low, high = span([lengths := np.linalg.norm(level, axis=0)])
            colour_bar(show(own, lengths, area, cmap=SCALE, vmin=low, vmax=high), [own], "length of a feature")
    return figure


_BAR_WIDTH, _BAR_HEIGHT = 1.9, 2.1


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
    figure = new_figure(0.5 + columns * max(_BAR_WIDTH, 0.5 + 0.32 * widest), 0.5 + _BAR_HEIGHT * len(found))
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
