"""Charts: points are the values and the residuals."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest

from dinoneck import Task
from dinoneck.viz import ReportEntry, drawing, html_report

pytest.importorskip("matplotlib", reason="figures need matplotlib, the extra [viz]")
TRUE, PREDICTED = np.array([10.0, 20.0, 30.0]), np.array([12.0, 17.0, 31.0])


def test_points_are_the_values_and_residuals(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(drawing, "chart", lambda figure, name, what: drawn.append(figure.axes[0]))
    drawing.agreement_charts("mass", TRUE, PREDICTED, "g")
    expected = ([[10, 12], [20, 17], [30, 31]], [[10, 2], [20, -3], [30, 1]])
    for axes, points, label in zip(drawn, expected, ("predicted g", "residual g"), strict=True):
        np.testing.assert_array_equal(axes.collections[0].get_offsets(), points)
        assert (axes.get_xlabel(), axes.get_ylabel()) == ("true g", label)


def test_a_report_without_matplotlib_leaves_out_the_charts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    entries = [ReportEntry(str(i), {"mass": TRUE[i]}, known={"mass": PREDICTED[i]}) for i in range(3)]
    page = html_report(entries, [Task("mass")])
    assert "pip install &#39;dinoneck[viz]&#39;" in page and "<svg" not in page and "RMSE" in page
