"""What figures and reports share: checked numbers, scores, figures, captions and charts of a page."""

from __future__ import annotations

import io
import math
import re
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from torch import Tensor

from dinoneck.errors import DataError, ShapeError, missing_extra, printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Floats = np.ndarray[Any, Any]

# for colour-blind readers
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000", "#8c6bb1")
_TEXT: dict[str, Any] = {"fontsize": 9.0, "parse_math": False}
_DPI = 120


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
        array = np.asarray(values.detach().cpu().double() if isinstance(values, Tensor) else values, np.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"{name} are not numbers: {error}") from error
    sides = axes.split(", ")
    fits = len(sides) == array.ndim and all(a.isalpha() or int(a) == n for a, n in zip(sides, array.shape, strict=True))
    if not fits or not array.size:
        raise ShapeError(f"{name} have shape {array.shape}; expected ({axes}), not empty")
    unfit = ~np.isfinite(array)
    if unfit.any():
        raise DataError(f"{name} hold {array[unfit][0]} ({int(unfit.sum())} of {array.size} values are not finite)")
    return array


def span(values: Sequence[Floats]) -> tuple[float, float]:
    """Return the lowest and the highest value; where they differ by rounding only, a range with them in its middle."""
    low, high = min(float(v.min()) for v in values), max(float(v.max()) for v in values)
    if high - low <= 1e-5 * max(abs(low), abs(high)):
        half = 0.5 * (abs(low) or 1.0)
        return low - half, high + half
    return low, high


def scores(predicted: Sequence[float] | Floats, known: Sequence[float] | Floats) -> dict[str, float]:
    """Compare predictions with known values, at least one of them.

    Returns:
        ``images`` with known values; ``r2``: 1 - squared errors / squared deviations of the known values from their
        mean, NaN if those do not differ; ``mae`` and ``rmse``; ``bias``: mean of predicted minus known; ``sd`` of the
        known values.

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


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure of this size in inches.

    Raises:
        ImportError: if matplotlib is missing, naming the extra.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise missing_extra("matplotlib", "viz") from error
    return Figure(figsize=(width, height), dpi=_DPI, layout="constrained")


def fitted(text: str, inches: float, lines: int = 3) -> str:
    """Break a text into lines of about ``inches``, cut after the last; control characters are spelled out."""
    return textwrap.fill(printable(text, keep="\n"), max(8, int(13 * inches)), max_lines=lines, placeholder=" …")


def describe(axes: Axes, title: str = "", x: str = "", y: str = "") -> None:
    """Set title and axis labels; dollar signs are text."""
    inches = 1.3 * axes.get_position().width * axes.figure.bbox.width / _DPI
    axes.set_title(fitted(title, inches), **_TEXT)
    axes.set_xlabel(fitted(x, inches, 2), **_TEXT)
    axes.set_ylabel(fitted(y, inches, 2), **_TEXT)
    axes.tick_params(labelsize=8.0)


class Chart(NamedTuple):
    """A chart of a page: what it is about, what it shows, and the attributes and content of its svg element."""

    name: str
    what: str
    svg: str


def chart(figure: Figure, name: str, what: str) -> Chart:
    """Return a figure as SVG: text stays text, black is the colour of the page's text, ids are unique in the page."""
    from matplotlib import rc_context

    buffer = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": f"{name!a} {what}"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    own = r'(?s)^.*?<svg |<metadata>.*?</metadata>| id="[A-Za-z.]+\d*[A-Za-z]*_\d+"'
    content = re.sub(own, "", buffer.getvalue()).replace(PALETTE[0], "var(--link)")
    return Chart(name, what, re.sub("#000000|#4d4d4d", "currentColor", content))
