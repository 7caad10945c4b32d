"""Plots: points are the values, bars the means of groups; no global state."""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from tests.unit.viz.drawn import check_no_overlap, pixels

from dinoneck import DataError, ShapeError
from dinoneck.training import r2
from dinoneck.viz import residual_figure

VALUES = np.random.default_rng(1).random((200, 3))
FIGURES: dict[str, Callable[[], Any]] = {
    "values": lambda: residual_figure(VALUES[:, 0], VALUES[:, 1]),
    "groups": lambda: residual_figure(VALUES[:, 0], VALUES[:, 1], groups=list("abcd") * 50),
}


def drawn(axes: Any) -> np.ndarray:
    return np.concatenate([np.asarray(part.get_offsets()) for part in axes.collections])


def test_two_threads_draw_what_one_draws() -> None:
    alone = {name: pixels(draw(), 60) for name, draw in FIGURES.items()}
    pairs = [name for name in FIGURES for _ in range(2)]  # the same figure in both threads, then the next
    with ThreadPoolExecutor(2) as threads:
        together = list(threads.map(lambda name: pixels(FIGURES[name](), 60), pairs))
    for name, found in zip(pairs, together, strict=True):
        np.testing.assert_array_equal(found, alone[name], err_msg=name)


@pytest.mark.parametrize("name", FIGURES)
def test_texts_keep_apart(name: str) -> None:
    check_no_overlap(FIGURES[name]())


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"dinoneck\[viz\]"):
        FIGURES["values"]()


def test_points_are_the_values_and_residuals() -> None:
    truth = np.array([10.0, 20.0, np.nan, 30.0])
    predicted = np.array([12.0, 17.0, np.nan, 31.0])
    figure = residual_figure(truth, predicted, unit="g", name="mass")
    left, right = figure.axes
    np.testing.assert_array_equal(drawn(left), [[10, 12], [20, 17], [30, 31]])
    np.testing.assert_array_equal(drawn(right), [[10, 2], [20, -3], [30, 1]])
    score = r2([10.0, 20.0, 30.0], [12.0, 17.0, 31.0])
    assert f"{score:.3f}" in left.get_title() and "2.16 g" in left.get_title()
    assert "mass" in left.get_xlabel() and "[g]" in right.get_ylabel()
    check_no_overlap(figure)


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_the_titles_of_both_plots_stand_at_one_height(scale: float) -> None:
    truth = np.linspace(-1.0, 1.0, 9) * scale
    figure = residual_figure(truth, truth**3, unit="g")
    pixels(figure)
    left, right = (axes.get_window_extent().y1 for axes in figure.axes)
    assert left == pytest.approx(right, abs=1)


def test_groups_have_their_residuals_and_their_mean() -> None:
    generator = np.random.default_rng(0)
    truth, groups = generator.gamma(2, 10, 60), [("Tas", "_NSW", r"$\frac$")[i % 3] for i in range(60)]
    truth[0] = np.nan
    predicted = np.nan_to_num(truth) + generator.normal(size=60)
    figure = residual_figure(truth, predicted, groups=groups)
    below = figure.axes[2]
    names = [text.get_text() for text in below.get_yticklabels()]
    assert names == ["_NSW (20)", r"$\frac$ (20)", "Tas (19)"], "in the order of known values, as they are called"
    for place, first in enumerate((1, 2, 3)):
        own = (predicted - truth)[first::3]
        assert below.patches[place].get_width() == pytest.approx(own.mean())
        np.testing.assert_allclose(drawn(below)[drawn(below)[:, 1] == place, 0], own)
    check_no_overlap(figure)


def test_a_single_truth_has_no_r2() -> None:
    assert "RMSE 1," in residual_figure([1.0, 1.0], [2.0, 0.0]).axes[0].get_title()


@pytest.mark.parametrize(
    ("truth", "predicted", "groups", "error"),
    [
        ([1.0, 2.0], [1.0, 2.0, 3.0], None, DataError),
        ([np.nan] * 2, [1.0, 2.0], None, ShapeError),
        ([1.0, 2.0], [np.nan, 2.0], None, DataError),
        ([1.0, 2.0], [1.0, 2.0], ["a"], DataError),
    ],
)
def test_values_that_do_not_fit_are_refused(truth: Any, predicted: Any, groups: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        residual_figure(truth, predicted, groups=groups)
