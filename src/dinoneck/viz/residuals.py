"""Predictions compared with what was measured, as a whole and by group."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from dinoneck.errors import DataError
from dinoneck.viz.drawing import MARKERS, PALETTE, Floats, describe, fitted, legend, minus, new_figure, numbers, span

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SIDE, _GROUP = 3.6, 0.24
_LINE: dict[str, Any] = {"color": "0.3", "linewidth": 1.0, "linestyle": "--"}


class Scores(NamedTuple):
    """How far predictions are from known values.

    Attributes:
        images: images whose value is known.
        r2: 1 - squared errors / squared deviations of the known values from their mean; NaN if those do not differ.
        mae: mean absolute error.
        rmse: root of the mean squared error.
        bias: mean of predicted minus known.
        sd: standard deviation of the known values, which MAE and RMSE compare with.
    """

    images: int
    r2: float
    mae: float
    rmse: float
    bias: float
    sd: float


def scores(predicted: Sequence[float] | Floats, known: Sequence[float] | Floats) -> Scores:
    """Compare predictions with known values, at least one of them.

    Examples:
        >>> scores([1.0, 2.0, 4.0], [1.0, 2.0, 3.0]).r2
        0.5
    """
    truth = np.asarray(known, np.float64)
    gap, mse = (off := np.asarray(predicted, np.float64) - truth), float(np.square(off).mean())
    variance = float(truth.var())
    r2 = 1.0 - mse / variance if variance > 0 else math.nan
    return Scores(len(truth), r2, float(np.abs(gap).mean()), math.sqrt(mse), float(gap.mean()), float(truth.std()))


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
    known, predicted, labels = _pairs(truth, prediction, groups)
    order = list(dict.fromkeys(labels))
    members = [np.array([label == own for label in labels]) for own in order]
    below = 0.7 + _GROUP * len(order) if groups is not None else 0.0
    figure = new_figure(2 * _SIDE, _SIDE + 0.3 + below)
    grid = figure.add_gridspec(2 if below else 1, 2, height_ratios=[_SIDE, below] if below else None)
    left, right = figure.add_subplot(grid[0, 0]), figure.add_subplot(grid[0, 1])
    agreement_plot(left, known, predicted, members, unit, name)
    residual_plot(right, known, predicted, members, unit, name)
    if groups is not None:
        if len(order) <= len(PALETTE):
            legend(left, [str(own) for own in order], left.collections, "upper left")
        _by_group(figure.add_subplot(grid[1, :]), predicted - known, members, order, unit)
    return figure


def agreement_plot(
    axes: Axes, known: Floats, predicted: Floats, members: Sequence[Any], unit: str, name: str = ""
) -> None:
    """Draw predicted over known values with the line of equality; the title holds R² and RMSE."""
    for place, chosen in enumerate(members):
        axes.scatter(known[chosen], predicted[chosen], **_style(place, len(members)))
    low, high = span([known, predicted])
    room = 0.05 * (high - low)
    axes.set(xlim=(low - room, high + room), ylim=(low - room, high + room), aspect="equal", anchor="N")
    axes.axline((low, low), (high, high), **_LINE)
    found, suffix = scores(predicted, known), f" [{unit}]" if unit else ""
    r2 = "R² needs truths that differ" if math.isnan(found.r2) else minus(f"R² {found.r2:.3f}")
    title = f"{r2}, RMSE {f'{found.rmse:.3g} {unit}'.strip()}, n = {found.images}"
    describe(axes, title, f"true {name}".strip() + suffix, f"predicted {name}".strip() + suffix)


def residual_plot(
    axes: Axes, known: Floats, predicted: Floats, members: Sequence[Any], unit: str, name: str = ""
) -> None:
    """Draw predicted minus known over known values, with the line of none."""
    for place, chosen in enumerate(members):
        axes.scatter(known[chosen], (predicted - known)[chosen], **_style(place, len(members)))
    axes.axhline(0.0, **_LINE)
    axes.set_box_aspect(1.0)
    axes.set_anchor("N")  # its title stands as high as that of the other plot
    suffix = f" [{unit}]" if unit else ""
    describe(axes, "prediction \N{MINUS SIGN} truth", f"true {name}".strip() + suffix, f"residual{suffix}")


def _pairs(truth: Any, prediction: Any, groups: Sequence[Hashable] | None) -> tuple[Floats, Floats, list[Hashable]]:
    """Known values, what was predicted there, and their groups."""
    known = numbers(truth, "true values", "n", missing=True)
    predicted = numbers(prediction, "predicted values", f"{len(known)}", missing=True)
    if groups is not None and (isinstance(groups, str) or len(groups) != len(known)):
        raise DataError(f"groups are {groups!r:.60} for {len(known)} values; expected one per value")
    there = ~np.isnan(known)
    if not there.any():
        raise DataError(f"none of {len(known)} true values is known (all are NaN)")
    if np.isnan(predicted[there]).any():
        raise DataError(f"{int(np.isnan(predicted[there]).sum())} predicted values are NaN where the truth is known")
    labels = [""] * len(known) if groups is None else list(groups)
    return known[there], predicted[there], [label for label, kept in zip(labels, there, strict=True) if kept]


def _by_group(axes: Axes, residuals: Floats, members: Sequence[Floats], order: Sequence[Hashable], unit: str) -> None:
    for place, chosen in enumerate(members):
        style = _style(place, len(order))
        axes.barh(place, residuals[chosen].mean(), height=0.6, color=style["color"], alpha=0.35)
        axes.scatter(residuals[chosen], np.full(int(chosen.sum()), float(place)), **style)
    axes.axvline(0.0, **_LINE)
    names = [f"{fitted(str(own), 1.6, 1)} ({int(m.sum())})" for own, m in zip(order, members, strict=True)]
    axes.set_yticks(range(len(order)), names, parse_math=False)
    axes.set_ylim(len(order) - 0.4, -0.6)
    describe(axes, x=f"residual [{unit}]" if unit else "residual")


def _style(place: int, count: int) -> dict[str, Any]:
    """A colour and a mark per group, as far as they go."""
    own = place if count <= len(PALETTE) else 0
    return {"color": PALETTE[own], "marker": MARKERS[own], "s": 18.0, "alpha": 0.75, "linewidths": 0.0}
