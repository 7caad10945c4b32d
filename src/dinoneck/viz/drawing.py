"""Scores, plots of predictions over known values, and charts of a page."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from dinoneck.metrics import BIAS, MAE, R2, RMSE, standard_deviation, value_terms
from dinoneck.text import printable
from dinoneck.viz.checked import Floats, numbers
from dinoneck.viz.style import DPI, PALETTE

_CURVES = {"training loss": ["loss"], "held-out AP": ["AP", "AP50", "AP75"]}
_TEXT: dict[str, Any] = {"fontsize": 9.0, "parse_math": False}  # dollar signs are text
_LONGEST_LABEL = 60  # characters of the label of an axis
_MOST_VECTOR_POINTS = 2000  # of a chart; more points are drawn as pixels
_LINE: dict[str, Any] = {"color": "0.3", "linewidth": 1.0, "linestyle": "--"}
_DOTS: dict[str, Any] = {"color": PALETTE[0], "s": 18.0, "alpha": 0.75, "linewidths": 0.0}
# what matplotlib writes and a page does not need: the head of the file, metadata, and ids that
# would occur once per chart
_NOT_OF_PAGE = r'(?s)^.*?<svg |<metadata>.*?</metadata>| id="[A-Za-z.]+\d*[A-Za-z]*_\d+"'
_BLACKS = "#000000|#4d4d4d"  # of matplotlib's text and of _LINE


class Chart(NamedTuple):
    """A chart of a page.

    Attributes:
        name: of the target, or of the curves.
        what: it shows.
        svg: the attributes and the content of its svg element.
    """

    name: str
    what: str
    svg: str


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
    terms = value_terms(truth, np.asarray(predicted, np.float64))
    sums = terms.sum(axis=0)
    compared: dict[str, float] = {"images": len(truth)}
    for metric in (R2, MAE, RMSE, BIAS):
        compared[metric.name] = float(metric.of_sums(sums))
    [sd] = standard_deviation(sums)
    compared["sd"] = float(sd)
    return compared


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
    """Return axes with their labels as SVG: text stays text, black is the page's text colour, ids are unique."""
    from matplotlib import rc_context

    axes.set_xlabel(printable(x)[:_LONGEST_LABEL], **_TEXT)
    axes.set_ylabel(printable(y)[:_LONGEST_LABEL], **_TEXT)
    axes.tick_params(labelsize=8.0)
    buffer = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": f"{name!a} {what}"}):
        axes.figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    content = re.sub(_NOT_OF_PAGE, "", buffer.getvalue())
    content = content.replace(PALETTE[0], "var(--link)")
    content = re.sub(_BLACKS, "currentColor", content)
    return Chart(name=name, what=what, svg=content)


def agreement_charts(
    name: str, known: Any, predicted: Any, unit: str, links: Sequence[str | None] | None = None
) -> list[Chart]:
    """Return the charts of predicted over known values, and of residuals; a point links to its image."""
    truth = numbers(known, f"known {name}", "n")
    values = numbers(predicted, f"predicted {name}", "n")
    if not draws_charts():
        return []
    is_rasterized = len(truth) > _MOST_VECTOR_POINTS

    axes = new_axes(3.2, 3.2)
    axes.scatter(truth, values, urls=links, rasterized=is_rasterized, **_DOTS)
    axes.axline((truth[0], truth[0]), slope=1.0, **_LINE)
    over_known = chart(axes, name, "predicted over known", f"true {unit}", f"predicted {unit}")

    axes = new_axes(3.2, 3.2)
    axes.scatter(truth, values - truth, urls=links, rasterized=is_rasterized, **_DOTS)
    axes.axline((truth[0], 0.0), slope=0.0, **_LINE)
    residuals = chart(axes, name, "residual over known", f"true {unit}", f"residual {unit}")
    return [over_known, residuals]


def curves(log: Sequence[Mapping[str, Any]]) -> list[Chart]:
    """Return the charts of the training loss and the held-out AP of every epoch."""
    if not log or not draws_charts():
        return []
    charts = []
    for name, keys in _CURVES.items():
        axes = new_axes(3.2, 2.4)
        for colour, key in zip(PALETTE, keys, strict=False):
            scored = [row for row in log if row.get(key) is not None]
            epochs = np.array([row["epoch"] for row in scored], np.float64)
            values = np.array([row[key] for row in scored], np.float64)
            axes.plot(epochs, values, color=colour, marker=".", label=key)
        axes.locator_params(axis="x", integer=True)
        axes.set_ylim(bottom=0)
        axes.legend(fontsize=8.0, framealpha=0.0)
        charts.append(chart(axes, name, "by epoch", "epoch", name))
    return charts
