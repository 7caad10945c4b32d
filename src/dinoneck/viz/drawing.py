"""Checked numbers, scores, plots of predictions over known values, and charts of a page."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from dinoneck.errors import DataError, ShapeError, printable
from dinoneck.viz.style import DPI, PALETTE

Floats = np.ndarray[Any, Any]
Chart = dict[str, str]  # name, what it shows, and the attributes and content of its svg element

_CURVES = {"training loss": ["loss"], "held-out AP": ["AP", "AP50", "AP75"]}
_TEXT: dict[str, Any] = {"fontsize": 9.0, "parse_math": False}
_LONGEST = 60  # characters of the label of an axis
_MANY = 2000  # points of a chart; more are drawn as pixels
_LINE: dict[str, Any] = {"color": "0.3", "linewidth": 1.0, "linestyle": "--"}
_DOTS: dict[str, Any] = {"color": PALETTE[0], "s": 18.0, "alpha": 0.75, "linewidths": 0.0}


def numbers(values: Any, name: str, axes: str) -> Floats:
    """Return values as float64, checked.

    Args:
        values: a tensor (of any dtype and device), an array or nested lists.
        name: what the message calls them.
        axes: names of the axes, comma-separated; a number is the length that an axis must have.

    Raises:
        ShapeError: if the shape does not fit, or is empty.
        DataError: if they are not numbers, or not finite.
    """
    try:
        array = np.asarray(
            values.detach().cpu().double() if isinstance(values, Tensor) else values, np.float64
        )
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"{name} are not numbers: {error}") from error
    sides = axes.split(", ")
    fits = len(sides) == array.ndim and all(
        a.isalpha() or int(a) == n for a, n in zip(sides, array.shape, strict=True)
    )
    if not fits or not array.size:
        raise ShapeError(f"{name} have shape {array.shape}; expected ({axes}), not empty")
    unfit = ~np.isfinite(array)
    if unfit.any():
        raise DataError(
            f"{name} hold {array[unfit][0]} ({int(unfit.sum())} of {array.size} values are not "
            "finite)"
        )
    return array


def span(values: Sequence[Floats]) -> tuple[float, float]:
    """Return the lowest and the highest value; where they differ by rounding only, a range with them in its middle."""
    low, high = min(float(v.min()) for v in values), max(float(v.max()) for v in values)
    if high - low <= 1e-5 * max(abs(low), abs(high)):
        half = 0.5 * (abs(low) or 1.0)
        return low - half, high + half
    return low, high


def scores(
    predicted: Sequence[float] | Floats, known: Sequence[float] | Floats
) -> dict[str, float]:
    """Compare predictions with known values, at least one of them.

    Returns:
        ``images`` with known values; ``r2``: 1 - squared errors / squared deviations of the known
        values from their mean, NaN if those do not differ; ``mae`` and ``rmse``; ``bias``: mean of
        predicted minus known; ``sd`` of the known values.

    Examples:
        >>> scores([1.0, 2.0, 4.0], [1.0, 2.0, 3.0])["r2"]
        0.5
    """
    truth = np.asarray(known, np.float64)
    gap, sd = np.asarray(predicted, np.float64) - truth, float(truth.std())
    mse = float(np.square(gap).mean())
    r2 = 1.0 - mse / sd**2 if sd > 0 else math.nan
    errors = {"mae": float(np.abs(gap).mean()), "rmse": math.sqrt(mse), "bias": float(gap.mean())}
    return {"images": len(truth), "r2": r2, **errors, "sd": sd}


def minus(text: str) -> str:
    """Return a text whose negative numbers have the minus sign of print."""
    return re.sub(r"(?<![^\s(])-(?=\d)", "\N{MINUS SIGN}", text)


def new_axes(width: float, height: float) -> Any:
    """Return the axes of an empty figure of this size in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=DPI, layout="constrained").subplots()


def draws_charts() -> bool:
    """Whether matplotlib, which draws the charts, is installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return False
    return True


def chart(axes: Any, name: str, what: str, x: str, y: str) -> Chart:
    """Return axes with their labels as SVG: text stays text, black is the colour of the page's text, ids are unique."""
    from matplotlib import rc_context

    axes.set_xlabel(printable(x)[:_LONGEST], **_TEXT)  # dollar signs are text
    axes.set_ylabel(printable(y)[:_LONGEST], **_TEXT)
    axes.tick_params(labelsize=8.0)
    buffer = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": f"{name!a} {what}"}):
        axes.figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    own = r'(?s)^.*?<svg |<metadata>.*?</metadata>| id="[A-Za-z.]+\d*[A-Za-z]*_\d+"'
    content = re.sub(own, "", buffer.getvalue()).replace(PALETTE[0], "var(--link)")
    return {"name": name, "what": what, "svg": re.sub("#000000|#4d4d4d", "currentColor", content)}


def agreement_charts(
    name: str, known: Any, predicted: Any, unit: str, links: Sequence[str | None] | None = None
) -> list[Chart]:
    """Return the charts of predicted over known values, and of residuals; a point leads to its image."""
    truth, values = (
        numbers(known, f"known {name}", "n"),
        numbers(predicted, f"predicted {name}", "n"),
    )
    charts = []
    for what, heights in (
        (("predicted", values), ("residual", values - truth)) if draws_charts() else ()
    ):
        axes = new_axes(3.2, 3.2)
        axes.scatter(truth, heights, urls=links, rasterized=len(truth) > _MANY, **_DOTS)
        axes.axline(
            (truth[0], truth[0] if heights is values else 0.0),
            slope=float(heights is values),
            **_LINE,
        )
        charts.append(chart(axes, name, f"{what} over known", f"true {unit}", f"{what} {unit}"))
    return charts


def curves(log: Sequence[Mapping[str, Any]]) -> list[Chart]:
    """Return the charts of the training loss and the held-out AP of every epoch."""
    charts = []
    for name, keys in _CURVES.items() if log and draws_charts() else ():
        axes = new_axes(3.2, 2.4)
        for colour, key in zip(PALETTE, keys, strict=False):
            points = [(row["epoch"], row[key]) for row in log if row.get(key) is not None]
            axes.plot(*np.reshape(points, (-1, 2)).T, color=colour, marker=".", label=key)
        axes.locator_params(axis="x", integer=True)
        axes.set_ylim(bottom=0)
        axes.legend(fontsize=8.0, framealpha=0.0)
        charts.append(chart(axes, name, "by epoch", "epoch", name))
    return charts
