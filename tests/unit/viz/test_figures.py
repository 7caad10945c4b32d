"""Plots: points are the values and the residuals; no global state."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from tests.unit.viz.drawn import check_no_overlap, pixels

from dinoneck import DataError, ShapeError
from dinoneck.training import r2
from dinoneck.viz.drawing import _agreement_plot, _residual_plot, agreement_charts, new_figure

TRUE, PREDICTED = np.array([10.0, 20.0, 30.0]), np.array([12.0, 17.0, 31.0])


def plotted(known: np.ndarray = TRUE, predicted: np.ndarray = PREDICTED, unit: str = "g") -> Any:
    figure = new_figure(7.2, 3.9)
    left, right = figure.subplots(1, 2)
    _agreement_plot(left, known, predicted, unit)
    _residual_plot(right, known, predicted, unit)
    return figure


def test_points_are_the_values_and_residuals() -> None:
    figure = plotted()
    left, right = figure.axes
    for axes, points in ((left, [[10, 12], [20, 17], [30, 31]]), (right, [[10, 2], [20, -3], [30, 1]])):
        np.testing.assert_array_equal(axes.collections[0].get_offsets(), points)
    assert f"{r2(TRUE, PREDICTED):.3f}" in left.get_title() and "2.16 g" in left.get_title()
    assert right.get_ylabel() == "residual g"
    check_no_overlap(figure)


def test_two_threads_draw_what_one_draws() -> None:
    with ThreadPoolExecutor(2) as threads:
        for found in threads.map(lambda _: pixels(plotted(), 60), range(4)):
            np.testing.assert_array_equal(found, pixels(plotted(), 60))


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_the_titles_of_both_plots_stand_at_one_height(scale: float) -> None:
    truth = np.linspace(-1.0, 1.0, 9) * scale
    figure = plotted(truth, truth**3)
    pixels(figure)
    left, right = (axes.get_window_extent().y1 for axes in figure.axes)
    assert left == pytest.approx(right, abs=1)


def test_a_single_truth_has_no_r2() -> None:
    assert "RMSE 1," in plotted(np.ones(2), np.array([2.0, 0.0]), "").axes[0].get_title()


def test_charts_without_matplotlib_name_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"dinoneck\[viz\]"):
        agreement_charts("mass", TRUE, PREDICTED, "g")


@pytest.mark.parametrize(("known", "error"), [([], ShapeError), ([np.nan, 1.0], DataError)])
def test_values_that_cannot_be_drawn_are_refused(known: list[float], error: type[Exception]) -> None:
    with pytest.raises(error):
        agreement_charts("mass", known, known, "g")
