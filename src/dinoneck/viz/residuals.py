"""Predictions beside what was measured, as a whole and by group."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dinoneck.errors import DataError, ShapeError
from dinoneck.viz.arrays import numbers
from dinoneck.viz.scores import scores
from dinoneck.viz.sheet import CAPTION_PT, TICK_PT, legend, new_figure, span, wrapped

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_Floats = np.ndarray[Any, Any]

PALETTE = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#56b4e9",
    "#e69f00",
    "#000000",
    "#8c6bb1",
)  # for colour-blind eyes
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_MOST = 60  # groups
_SIDE, _GROUP = 3.2, 0.24
_WIDTH = 2 * _SIDE + 1.2


def residual_figure(
    truth: Any,
    prediction: Any,
    *,
    groups: Sequence[Hashable] | None = None,
    unit: str = "",
    name: str = "",
) -> Figure:
    """Draw predicted against true values and residuals against true values; by group, such as site or state, too.

    On the left, the dashed line is where prediction equals truth, and the title says R² = 1 - SSE / SST and the root
    mean squared error. On the right, a residual is prediction minus truth. With groups there is a row below: every
    residual of a group, and their mean as a bar: a bar away from zero is a bias of that site.

    Args:
        truth: (n,) known values; NaN = not known, left out.
        prediction: (n,) in the same units.
        groups: one per value; drawn in order of first appearance. Up to eight have a colour and a mark each.
        unit: of the values.
        name: of what is predicted.

    Returns:
        a ``matplotlib.figure.Figure`` of two plots, or three with groups.

    Raises:
        ShapeError: if truth and prediction are not of one length.
        DataError: if no value is known, a prediction is not finite, or groups are more or fewer than values.
        ImportError: if matplotlib is missing.

    Examples:
        >>> figure = residual_figure([10.0, 20.0, 30.0], [12.0, 18.0, 30.0], unit="g", name="mass")
        >>> figure.axes[0].get_title(), figure.axes[1].get_ylabel()
        ('R² 0.960, RMSE 1.63 g, n = 3', 'residual [g]')
    """
    known, said, labels = _pairs(truth, prediction, groups)
    residuals = said - known
    order, members = _members(labels)
    below = 0.7 + _GROUP * len(order) if groups is not None else 0.0
    figure = new_figure(_WIDTH, _SIDE + 0.7 + below, layout="constrained")
    grid = figure.add_gridspec(2 if below else 1, 2, height_ratios=[_SIDE + 0.7, below] if below else None)
    left, right = figure.add_subplot(grid[0, 0]), figure.add_subplot(grid[0, 1])
    for place, chosen in enumerate(members):
        style = _style(place, len(order))
        label = wrapped(str(order[place]), 1.4, 1, TICK_PT)
        left.scatter(known[chosen], said[chosen], label=label, **style)
        right.scatter(known[chosen], residuals[chosen], **style)
    _identity(left, known, said)
    right.set_box_aspect(1.0)
    right.axhline(0.0, color="0.3", linewidth=1.0, linestyle="--")
    in_unit = f" [{unit}]" if unit else ""
    left.set_title(_quality(known, said, unit), fontsize=CAPTION_PT, parse_math=False)
    _name(left, f"true {name}".strip() + in_unit, f"predicted {name}".strip() + in_unit)
    right.set_title("prediction - truth", fontsize=CAPTION_PT)
    _name(right, f"true {name}".strip() + in_unit, f"residual{in_unit}")
    if groups is not None:
        if len(order) <= len(PALETTE):
            legend(left, [str(mark.get_label()) for mark in left.collections], left.collections, "upper left")
        _by_group(figure.add_subplot(grid[1, :]), residuals, members, order)
        _name(figure.axes[-1], f"residual{in_unit}", "")
    return figure


def _pairs(truth: Any, prediction: Any, groups: Sequence[Hashable] | None) -> tuple[_Floats, _Floats, list[Hashable]]:
    """Known values, what was predicted there, and their groups."""
    known = numbers(truth, "true values", "n", missing=True)
    said = numbers(prediction, "predicted values", "n", missing=True)
    if known.shape != said.shape:
        raise ShapeError(f"there are {len(known)} true and {len(said)} predicted values; expected one of each")
    if groups is not None and (isinstance(groups, str) or len(groups) != len(known)):
        count = f"a string {groups!r}" if isinstance(groups, str) else len(groups)
        raise DataError(f"groups are {count} for {len(known)} values; expected one per value")
    there = ~np.isnan(known)
    if not there.any():
        raise DataError(f"none of {len(known)} true values is known (all are NaN)")
    if np.isnan(said[there]).any():
        raise DataError(f"{int(np.isnan(said[there]).sum())} predicted values are NaN where the truth is known")
    labels = [""] * len(known) if groups is None else list(groups)
    return known[there], said[there], [label for label, kept in zip(labels, there, strict=True) if kept]


def _members(labels: Sequence[Hashable]) -> tuple[list[Hashable], list[_Floats]]:
    """The groups in order of first appearance, and which values are theirs."""
    places = {label: place for place, label in enumerate(dict.fromkeys(labels))}
    if len(places) > _MOST:
        raise DataError(f"groups name {len(places)} groups; one figure takes {_MOST} at most")
    place_of = np.array([places[label] for label in labels])
    return list(places), [place_of == place for place in range(len(places))]


def _quality(known: _Floats, said: _Floats, unit: str) -> str:
    found = scores(said, known)
    told = "R² needs truths that differ" if np.isnan(found.r2) else f"R² {found.r2:.3f}"
    return f"{told}, RMSE {found.rmse:.3g}{f' {unit}' if unit else ''}, n = {found.photos}"


def _identity(axes: Axes, known: _Floats, said: _Floats) -> None:
    """Equal ranges on both axes, and the line on which prediction is truth."""
    low, high = span([known, said])
    room = 0.05 * (high - low)
    axes.set_xlim(low - room, high + room)
    axes.set_ylim(low - room, high + room)
    axes.set_aspect("equal", adjustable="box")
    axes.axline((low, low), (high, high), color="0.3", linewidth=1.0, linestyle="--")


def _by_group(axes: Axes, residuals: _Floats, members: Sequence[_Floats], order: Sequence[Hashable]) -> None:
    for place, chosen in enumerate(members):
        style = _style(place, len(order))
        axes.barh(place, residuals[chosen].mean(), height=0.6, color=style["color"], alpha=0.35)
        axes.scatter(residuals[chosen], np.full(int(chosen.sum()), float(place)), **style)
    axes.axvline(0.0, color="0.3", linewidth=1.0, linestyle="--")
    names = [f"{wrapped(str(own), 1.6, 1, TICK_PT)} ({int(m.sum())})" for own, m in zip(order, members, strict=True)]
    axes.set_yticks(range(len(order)), names, parse_math=False)
    axes.set_ylim(len(order) - 0.4, -0.6)


def _style(place: int, count: int) -> dict[str, Any]:
    """A colour and a mark per group, as far as they go."""
    alone = count > len(PALETTE)
    colour, marker = PALETTE[0 if alone else place], MARKERS[0 if alone else place]
    return {"color": colour, "marker": marker, "s": 18.0, "alpha": 0.75, "linewidths": 0.0}


def _name(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(wrapped(x, _SIDE, 2), fontsize=CAPTION_PT, parse_math=False)
    axes.set_ylabel(wrapped(y, _SIDE, 2), fontsize=CAPTION_PT, parse_math=False)
    axes.tick_params(labelsize=TICK_PT)
