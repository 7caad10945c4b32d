"""What a figure looks like: its pixels, and the colour at a place of its axes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="figures need matplotlib, the extra [viz]")
from matplotlib.backends.backend_agg import FigureCanvasAgg


def pixels(figure: Any, dpi: float = 120.0) -> np.ndarray:
    """The figure as (height, width, 3) bytes."""
    figure.set_dpi(dpi)
    FigureCanvasAgg(figure).draw()
    return np.asarray(figure.canvas.buffer_rgba())[..., :3].copy()


def check_no_overlap(figure: Any) -> None:
    """No caption, label or tick label lies over another or leaves the figure."""
    pixels(figure)
    renderer = figure.canvas.get_renderer()
    boxes = []
    for axes in figure.axes:
        texts = [*axes.texts, axes.title, axes.xaxis.label, axes.yaxis.label]
        texts += [text for text in axes.get_xticklabels() if _is_within(text.get_position()[0], axes.get_xlim())]
        texts += [text for text in axes.get_yticklabels() if _is_within(text.get_position()[1], axes.get_ylim())]
        for text in texts:
            if text.get_text() and text.get_visible():
                boxes.append((text.get_text(), text.get_window_extent(renderer)))
    for place, (one, box) in enumerate(boxes):
        assert figure.bbox.x0 - 1 <= box.x0, one
        assert box.x1 <= figure.bbox.x1 + 1, one
        assert figure.bbox.y0 - 1 <= box.y0, one
        assert box.y1 <= figure.bbox.y1 + 1, one
        for other, neighbour in boxes[place + 1 :]:
            apart = box.x1 <= neighbour.x0 or neighbour.x1 <= box.x0 or box.y1 <= neighbour.y0 or neighbour.y1 <= box.y0
            assert apart, (one, other)


def _is_within(place: float, limits: tuple[float, float]) -> bool:
    """Whether a tick is drawn: locators offer one more on each side."""
    low, high = sorted(limits)
    room = 1e-9 * (high - low)
    return low - room <= place <= high + room
