"""Plots: predictions over known values, fusion weights of layers, point clouds."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from dinoneck.errors import ConfigError, DataError
from dinoneck.necks.layer_grouper import LayerGrouper
from dinoneck.viz.drawing import PALETTE, Floats, describe, fitted, minus, new_figure, numbers, scores, span

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SIDE, _GROUP = 3.6, 0.24  # inches of a plot, and of a group's row
_BAR_WIDTH, _BAR_HEIGHT = 1.9, 2.4  # inches of a group's bars
_MOST = 20_000  # points; of more a random choice is drawn
_LINE: dict[str, Any] = {"color": "0.3", "linewidth": 1.0, "linestyle": "--"}
_DOTS: dict[str, Any] = {"color": PALETTE[0], "s": 18.0, "alpha": 0.75, "linewidths": 0.0}


def residual_figure(
    truth: Any,
    prediction: Any,
    *,
    groups: Sequence[Hashable] | None = None,
    unit: str = "",
    name: str = "",
) -> Figure:
    """Draw predicted against true values and residuals against true values; by group, such as site or state, too.

    On the left, the dashed line is where prediction equals truth, and the title gives R² = 1 - SSE / SST and the root
    mean squared error. On the right, a residual is prediction minus truth. With groups there is a row below: every
    residual of a group, and their mean as a bar: a bar away from zero is a bias of that site.

    Args:
        truth: (n,) known values; NaN = not known, left out.
        prediction: (n,) in the same units.
        groups: one per value; drawn in order of first appearance.
        unit: of the values.
        name: of what is predicted.

    Returns:
        a ``matplotlib.figure.Figure`` of two plots, or three with groups.

    Raises:
        ShapeError: if no value is known.
        DataError: if a prediction is not finite, or truths, predictions and groups differ in number.
        ImportError: if matplotlib is missing.

    Examples:
        >>> figure = residual_figure([10.0, 20.0, 30.0], [12.0, 18.0, 30.0], unit="g", name="mass")
        >>> figure.axes[0].get_title(), figure.axes[1].get_ylabel()
        ('R² 0.960, RMSE 1.63 g, n = 3', 'residual [g]')
    """
    given, labels = np.asarray(truth, np.float64), [""] * len(truth) if groups is None else [*groups]
    there = ~np.isnan(given)
    if not len(given) == len(prediction) == len(labels):
        raise DataError(
            f"{len(given)} true values, {len(prediction)} predictions, {len(labels)} groups; expected as many"
        )
    known = numbers(given[there], "known true values", "n")
    predicted = numbers(np.asarray(prediction)[there], "predictions", "n")
    order = list(dict.fromkeys(label for label, kept in zip(labels, there, strict=True) if kept))
    places = np.array([order.index(label) for label, kept in zip(labels, there, strict=True) if kept])
    below = 0.7 + _GROUP * len(order) if groups is not None else 0.0
    figure = new_figure(2 * _SIDE, _SIDE + 0.3 + below)
    grid = figure.add_gridspec(2 if below else 1, 2, height_ratios=[_SIDE, below] if below else None)
    agreement_plot(figure.add_subplot(grid[0, 0]), known, predicted, unit, name)
    residual_plot(figure.add_subplot(grid[0, 1]), known, predicted, unit, name)
    if below:
        _by_group(figure.add_subplot(grid[1, :]), predicted - known, places, order, unit)
    return figure


def agreement_plot(axes: Axes, known: Floats, predicted: Floats, unit: str, name: str = "") -> None:
    """Draw predicted over known values with the line of equality; the title holds R² and RMSE."""
    axes.scatter(known, predicted, **_DOTS)
    low, high = span([known, predicted])
    room = 0.05 * (high - low)
    axes.set(xlim=(low - room, high + room), ylim=(low - room, high + room), aspect="equal", anchor="N")
    axes.axline((low, low), (high, high), **_LINE)
    found = scores(predicted, known)
    r2 = "R² needs truths that differ" if np.isnan(found["r2"]) else minus(f"R² {found['r2']:.3f}")
    rmse = f"{found['rmse']:.3g} {unit}".strip()
    title = f"{r2}, RMSE {rmse}, n = {found['images']}"
    describe(axes, title, _label(f"true {name}", unit), _label(f"predicted {name}", unit))


def residual_plot(axes: Axes, known: Floats, predicted: Floats, unit: str, name: str = "") -> None:
    """Draw predicted minus known over known values, with the line of none."""
    axes.scatter(known, predicted - known, **_DOTS)
    axes.axhline(0.0, **_LINE)
    axes.set_box_aspect(1.0)
    axes.set_anchor("N")  # its title stands as high as that of the other plot
    describe(axes, "prediction \N{MINUS SIGN} truth", _label(f"true {name}", unit), _label("residual", unit))


def _by_group(axes: Axes, residuals: Floats, places: Floats, order: Sequence[Hashable], unit: str) -> None:
    """Draw every residual in the row of its group, and their mean as a bar; ``places`` are the groups' numbers."""
    counts = np.bincount(places)
    axes.barh(range(len(order)), np.bincount(places, residuals) / counts, height=0.6, color=PALETTE[0], alpha=0.35)
    axes.scatter(residuals, places, **_DOTS)
    axes.axvline(0.0, **_LINE)
    names = [f"{fitted(str(own), 1.6, 1)} ({count})" for own, count in zip(order, counts, strict=True)]
    axes.set_yticks(range(len(order)), names, parse_math=False)
    axes.invert_yaxis()
    describe(axes, x=_label("residual", unit))


def _label(name: str, unit: str) -> str:
    """The label of an axis."""
    return f"{name.strip()} [{unit}]" if unit else name.strip()


def fusion_figure(neck_or_head: nn.Module, *, layers: Sequence[int] | None = None) -> Figure:
    """Draw bars of the layer-fusion weights: one plot per group, one bar per layer, labelled by block index.

    The bars of a group add up to one; a line marks even weights. With ``fusion="mean"`` they are even by construction.
    Equal weights do not mean that layers matter equally: a layer's bottleneck can be large or small.

    Args:
        neck_or_head: a LayerGrouper, or what holds one, such as ViTFPN and FPNHead.
        layers: block indices of the layers it reads, in their order (``tokens.layers``); None = bars are labelled by
            position.

    Returns:
        a ``matplotlib.figure.Figure``: one plot per group, ``axes.patches`` are the bars.

    Raises:
        ConfigError: if it does not hold one LayerGrouper, ``layers`` are more or fewer than it reads, or
            it has ``fusion="pixel"``.
        DataError: if weights are not finite.
        ImportError: if matplotlib is missing.

    Examples:
        >>> from dinoneck import ViTFPN
        >>> neck = ViTFPN(64, num_layers=4, fpn_dim=16, num_levels=2, fusion="softmax")
        >>> figure = fusion_figure(neck, layers=(2, 5, 8, 11))
        >>> [[label.get_text() for label in axes.get_xticklabels()] for axes in figure.axes]
        [['2', '5'], ['8', '11']]
    """
    found = [part for part in neck_or_head.modules() if isinstance(part, LayerGrouper)]
    if len(found) != 1:
        raise ConfigError(
            f"{type(neck_or_head).__name__} holds {len(found)} LayerGroupers; give a neck or head with one"
        )
    [part] = found
    blocks = range(part.num_layers) if layers is None else layers
    if len(blocks) != part.num_layers:
        raise ConfigError(f"layers are {tuple(blocks)}; this LayerGrouper reads {part.num_layers}")
    with torch.no_grad():
        weights = [numbers(own, "fusion weights", "layers") for own in part.layer_weights()]
    figure = new_figure(0.5 + len(weights) * _BAR_WIDTH, _BAR_HEIGHT)
    plots = figure.subplots(1, len(weights), squeeze=False)[0]
    for place, (axes, group, own) in enumerate(zip(plots, part.groups, weights, strict=True)):
        axes.bar(range(len(own)), own, color=PALETTE[0], width=0.7)
        axes.axhline(1.0 / len(own), color=PALETTE[1], linewidth=1.0, linestyle="--")
        axes.set(xlim=(-0.6, len(own) - 0.4), ylim=(0.0, 1.05))
        axes.set_xticks(range(len(own)), [str(blocks[layer]) for layer in group])
        describe(axes, f"group {place}", "position of the layer" if layers is None else "block", "weight")
    return figure


def points_figure(points: Tensor | Floats, colors: Tensor | Floats) -> Figure:
    """Draw a point cloud from above and from the side, without perspective, both with equal axes in metres.

    Nearer points cover farther ones. Of more than 20,000 points a random choice is drawn, the same at every call.

    Args:
        points: (N, 3), metres, z upwards. Of a camera's own axes give ``points[:, [0, 2, 1]] * [1, 1, -1]``.
        colors: (N, 3): RGB, uint8 or 0 ... 1, such as those of :func:`pca_rgb` for features (N, C).

    Raises:
        ShapeError: if points and colours differ in number.
        DataError: if values are not finite, or colours are out of range.
        ImportError: if matplotlib is missing.

    Examples:
        >>> cloud = torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, 2.0]])
        >>> figure = points_figure(cloud, torch.eye(3)[:2])
        >>> [(axes.get_title(), axes.get_ylabel()) for axes in figure.axes]
        [('from above, 2 points', 'y [m]'), ('from the side', 'z [m]')]
    """
    places = numbers(points, "points", "n, 3")
    shown = numbers(colors, "colours", f"{len(places)}, 3") / (255.0 if str(colors.dtype).endswith("uint8") else 1.0)
    if shown.min() < 0 or shown.max() > 1:
        raise DataError(
            f"colours span {shown.min():.3g} ... {shown.max():.3g}; expected uint8 or 0 ... 1: pca_rgb(...)"
        )
    drawn = np.random.default_rng(0).permutation(len(places))[:_MOST]
    title = "from above, " + (f"{len(drawn)} of " if len(drawn) < len(places) else "") + f"{len(places)} points"
    size = float(np.clip(12_000.0 / len(drawn), 1.5, 30.0))
    figure = new_figure(8.8, 4.5)
    # heading, the vertical axis, and how near a point is
    views = ((title, 1, places[:, 2]), ("from the side", 2, -places[:, 1]))
    for axes, (heading, vertical, nearness) in zip(figure.subplots(1, 2), views, strict=True):
        order = drawn[np.argsort(nearness[drawn], kind="stable")]
        axes.scatter(places[order, 0], places[order, vertical], size, shown[order], linewidths=0.0, rasterized=True)
        axes.set_aspect("equal", adjustable="datalim")
        describe(axes, heading, "x [m]", f"{'xyz'[vertical]} [m]")
    return figure
