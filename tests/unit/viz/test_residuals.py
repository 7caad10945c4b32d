"""Residual plots: the points are the values, the titles their R² and RMSE."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tests.unit.viz.drawn import check_no_overlap, pixels

from dinoneck import DataError, ShapeError
from dinoneck.training import r2
from dinoneck.viz import residual_figure
from dinoneck.viz.drawing import minus, new_figure
from dinoneck.viz.residuals import agreement_plot, residual_plot


def drawn(axes: object) -> np.ndarray:
    return np.concatenate([np.asarray(part.get_offsets()) for part in axes.collections])  # type: ignore[attr-defined]


def test_points_are_the_values_and_residuals() -> None:
    truth = np.array([10.0, 20.0, np.nan, 30.0])
    predicted = np.array([12.0, 17.0, np.nan, 31.0])
    figure = residual_figure(truth, predicted, unit="g", name="mass")
    left, right = figure.axes
    np.testing.assert_array_equal(drawn(left), [[10, 12], [20, 17], [30, 31]])
    np.testing.assert_array_equal(drawn(right), [[10, 2], [20, -3], [30, 1]])
    assert left.get_title() == f"R² {r2([10.0, 20.0, 30.0], [12.0, 17.0, 31.0]):.3f}, RMSE 2.16 g, n = 3"
    assert (left.get_xlabel(), left.get_ylabel()) == ("true mass [g]", "predicted mass [g]")
    assert right.get_ylabel() == "residual [g]"
    check_no_overlap(figure)


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_the_titles_of_both_plots_stand_at_one_height(scale: float) -> None:
    truth = np.linspace(-1.0, 1.0, 9) * scale
    alone = [new_figure(3.2, 3.2) for _ in range(2)]
    for figure, draw in zip(alone, (agreement_plot, residual_plot), strict=True):
        draw(figure.subplots(), truth, truth**3, [slice(None)], "g")
    assert top_of(*alone[0].axes) == pytest.approx(top_of(*alone[1].axes), abs=1)
    together = residual_figure(truth, truth**3, unit="g")
    pixels(together)
    left, right = (axes.get_window_extent().y1 for axes in together.axes)
    assert left == pytest.approx(right, abs=1)


def top_of(axes: Any) -> float:
    pixels(axes.figure)
    top: float = axes.title.get_window_extent(axes.figure.canvas.get_renderer()).y1
    return top


def test_negative_numbers_and_differences_have_a_minus_sign() -> None:
    left, right = residual_figure([1.0, 2.0, 3.0], [3.0, 2.0, 1.0]).axes
    assert left.get_title().startswith("R² \N{MINUS SIGN}3.000")
    assert right.get_title() == "prediction \N{MINUS SIGN} truth"
    assert minus("sugar-beet -0.5 (-3 g) 1e-05 2-3") == "sugar-beet −0.5 (−3 g) 1e-05 2-3"


def test_groups_have_their_points_their_mean_and_their_marks() -> None:
    generator = np.random.default_rng(0)
    truth, groups = generator.gamma(2, 10, 60), [("Tas", "NSW", "Vic")[i % 3] for i in range(60)]
    predicted = truth + generator.normal(size=60)
    figure = residual_figure(truth, predicted, groups=groups, unit="g")
    left, right, below = figure.axes
    assert [text.get_text() for text in left.get_legend().get_texts()] == ["Tas", "NSW", "Vic"]
    assert [text.get_text() for text in below.get_yticklabels()] == ["Tas (20)", "NSW (20)", "Vic (20)"]
    for place in range(3):
        own = (predicted - truth)[place::3]
        assert below.patches[place].get_width() == pytest.approx(own.mean())
        offsets = below.collections[place].get_offsets()
        np.testing.assert_allclose(offsets[:, 0], own)
        assert (offsets[:, 1] == place).all()
        np.testing.assert_allclose(right.collections[place].get_offsets()[:, 1], own)
    colours = {tuple(part.get_facecolor()[0]) for part in left.collections}
    marks = {part.get_paths()[0].vertices.shape for part in left.collections}
    assert len(colours) == 3
    assert len(marks) > 1  # not by colour alone
    check_no_overlap(figure)


def test_groups_are_called_what_they_are_called() -> None:
    names = ["_a", r"$\frac$", "b\x07"]
    figure = residual_figure([1.0, 2.0, 3.0], [1.0, 2.0, 2.0], groups=names)
    figure.canvas.draw()
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert labels == ["_a", r"$\frac$", r"b\x07"]


def test_a_single_truth_has_no_r2() -> None:
    assert residual_figure([1.0, 1.0], [2.0, 0.0]).axes[0].get_title() == "R² needs truths that differ, RMSE 1, n = 2"


def test_what_cannot_be_drawn_is_refused() -> None:
    with pytest.raises(ShapeError, match=r"predicted values have shape \(3,\); expected \(2\)"):
        residual_figure([1.0, 2.0], [1.0, 2.0, 3.0])
    with pytest.raises(DataError, match="none of 2 true values is known"):
        residual_figure([np.nan] * 2, [1.0, 2.0])
    with pytest.raises(DataError, match="1 predicted values are NaN"):
        residual_figure([1.0, 2.0], [np.nan, 2.0])
    with pytest.raises(DataError, match=r"groups are \['a'\] for 2 values"):
        residual_figure([1.0, 2.0], [1.0, 2.0], groups=["a"])
    with pytest.raises(DataError, match="groups are 'ab'"):
        residual_figure([1.0, 2.0], [1.0, 2.0], groups="ab")
