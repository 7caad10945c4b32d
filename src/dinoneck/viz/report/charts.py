"""Charts of a report as SVG elements: a histogram, predicted against known values, residuals against predictions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dinoneck.viz.report.markup import Markup, element, joined
from dinoneck.viz.report.numbers import number, ticks

_WIDTH, _HEIGHT = 360, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 12, 12, 44
_MOST_BARS = 20


class Point(NamedTuple):
    """One photo in a chart.

    Attributes:
        x: across.
        y: up.
        told: what stands beside it when it is pointed at.
        link: the place in the page that it leads to; None = none.
    """

    x: float
    y: float
    told: str
    link: str | None = None


class _Axes:
    """Values -> places in the picture, along both sides."""

    def __init__(self, across: tuple[float, float], up: tuple[float, float], counts: bool = False) -> None:
        self.across, self.up, self.counts = _wide(across), _wide(up), counts

    def x(self, value: float) -> float:
        """The place of a value across."""
        low, high = self.across
        return round(_LEFT + (value - low) / (high - low) * (_WIDTH - _LEFT - _RIGHT), 2)

    def y(self, value: float) -> float:
        """The place of a value up."""
        low, high = self.up
        return round(_HEIGHT - _BOTTOM - (value - low) / (high - low) * (_HEIGHT - _TOP - _BOTTOM), 2)

    def drawn(self, across: str, up: str) -> Markup:
        """The frame with ticks and names."""
        left, right, top, bottom = _LEFT, _WIDTH - _RIGHT, _TOP, _HEIGHT - _BOTTOM
        parts = [_line(left, bottom, right, bottom, "axis"), _line(left, bottom, left, top, "axis")]
        for value in ticks(*self.across):
            parts.append(_line(self.x(value), bottom, self.x(value), bottom + 4, "axis"))
            parts.append(_text(number(value, 4), self.x(value), bottom + 16, "middle"))
        for value in (tick for tick in ticks(*self.up) if not self.counts or tick == round(tick)):
            parts.append(_line(left, self.y(value), right, self.y(value), "grid"))
            parts.append(_text(number(value, 4), left - 6, self.y(value) + 4, "end"))
        parts.append(_text(across, (left + right) / 2, _HEIGHT - 8, "middle"))
        middle = (top + bottom) / 2
        parts.append(_text(up, 12, middle, "middle", transform=f"rotate(-90 12 {middle:g})"))
        return joined(parts)


def histogram(values: Sequence[float], known: Sequence[float], unit: str, alt: str) -> Markup:
    """Return bars of how many photos have which prediction, and a stepped line of known values."""
    together = np.asarray([*values, *known], np.float64)
    low, high = float(together.min()), float(together.max())
    bars = int(np.clip(np.ceil(np.sqrt(len(values)) * 1.5), 5, _MOST_BARS)) if high > low else 1
    edges = np.linspace(low, high, bars + 1) if high > low else np.array([low - 0.5, low + 0.5])
    counts = np.histogram(values, edges)[0]
    truth = np.histogram(known, edges)[0] if len(known) else np.zeros(bars, int)
    axes = _Axes((float(edges[0]), float(edges[-1])), (0.0, float(max(counts.max(), truth.max()))), counts=True)
    drawn = [axes.drawn(unit or "predicted", "photos")]
    for place, count in enumerate(counts):
        left, right = axes.x(float(edges[place])), axes.x(float(edges[place + 1]))
        told = f"{number(float(edges[place]), 4)} … {number(float(edges[place + 1]), 4)}: {count}"
        top = axes.y(float(count))
        box = {"x": left + 0.5, "y": top, "width": round(right - left - 1, 2), "height": round(axes.y(0) - top, 2)}
        drawn.append(element("rect", element("title", told), class_="bar", **box))
    if len(known):
        steps = [(axes.x(float(edge)), axes.y(float(truth[i]))) for i in range(bars) for edge in edges[i : i + 2]]
        drawn.append(element("polyline", points=" ".join(f"{x:g},{y:g}" for x, y in steps), class_="known"))
    return _chart(drawn, alt)


def against(points: Sequence[Point], across: str, up: str, alt: str) -> Markup:
    """Return predicted over known values, both sides with the same numbers, and the line where they are equal."""
    both = [value for point in points for value in (point.x, point.y)]
    span = _margin(min(both), max(both))
    axes = _Axes(span, span)
    ideal = _line(axes.x(span[0]), axes.y(span[0]), axes.x(span[1]), axes.y(span[1]), "ideal")
    return _chart([axes.drawn(across, up), ideal, *(_dot(axes, point) for point in points)], alt)


def residuals(points: Sequence[Point], across: str, up: str, alt: str) -> Markup:
    """Return how far predictions are off, over the predictions, and the line of none."""
    xs, ys = [point.x for point in points], [point.y for point in points]
    axes = _Axes(_margin(min(xs), max(xs)), _margin(min(0.0, *ys), max(0.0, *ys)))
    ideal = _line(_LEFT, axes.y(0.0), _WIDTH - _RIGHT, axes.y(0.0), "ideal")
    return _chart([axes.drawn(across, up), ideal, *(_dot(axes, point) for point in points)], alt)


def _chart(parts: Sequence[Markup], alt: str) -> Markup:
    return element("svg", *parts, viewBox=f"0 0 {_WIDTH} {_HEIGHT}", role="img", aria_label=alt, class_="chart")


def _dot(axes: _Axes, point: Point) -> Markup:
    dot = element("circle", element("title", point.told), cx=axes.x(point.x), cy=axes.y(point.y), r=4, class_="dot")
    return dot if point.link is None else element("a", dot, href=f"#{point.link}", tabindex="-1")


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> Markup:
    return element("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=kind)


def _text(told: str, x: float, y: float, anchor: str, **attributes: object) -> Markup:
    return element("text", told, x=x, y=y, text_anchor=anchor, **attributes)


def _margin(low: float, high: float) -> tuple[float, float]:
    edge = 0.05 * (high - low) or 0.5
    return low - edge, high + edge


def _wide(span: tuple[float, float]) -> tuple[float, float]:
    low, high = span
    return (low, high) if high > low else (low - 0.5, high + 0.5)
