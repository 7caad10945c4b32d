"""Plots: points are the values, bars are the weights, nearer points cover farther ones; no global state."""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from tests.unit.viz.drawn import check_no_overlap, colour_at, pixels

from dinoneck import ConfigError, DataError, FPNHead, LayerGrouper, PatchMeanHead, ShapeError, Task, ViTFPN
from dinoneck.training import r2
from dinoneck.viz import PCABasis, fusion_figure, pca_rgb, points_figure, residual_figure

CLOUD = np.random.default_rng(1).random((200, 3))
RED, BLUE = [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]
FIGURES: dict[str, Callable[[], Any]] = {
    "fusion": lambda: fusion_figure(ViTFPN(8, 4, 8, num_levels=2, fusion="softmax")),
    "points": lambda: points_figure(CLOUD, CLOUD),
    "residual": lambda: residual_figure(CLOUD[:, 0], CLOUD[:, 1], groups=list("abcd") * 50),
}


def drawn(axes: Any) -> np.ndarray:
    return np.concatenate([np.asarray(part.get_offsets()) for part in axes.collections])


def bars(axes: Any) -> tuple[list[str], list[float]]:
    return [label.get_text() for label in axes.get_xticklabels()], [bar.get_height() for bar in axes.patches]


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
        FIGURES["residual"]()


# -- residuals -------------------------------------------------------------------------------------------


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


# -- fusion weights --------------------------------------------------------------------------------------


def test_softmax_weights_are_the_bars() -> None:
    neck = ViTFPN(16, 4, 8, num_levels=2, layer_groups=[[3, 0, 1], [2]], fusion="softmax")
    with torch.no_grad():
        neck.grouper.fusion_weights["0"].copy_(torch.tensor([2.0, 1.0, 3.0]).log())
    figure = fusion_figure(neck, layers=(2, 5, 8, 11))
    labels, heights = bars(figure.axes[0])
    assert labels == ["11", "2", "5"]
    np.testing.assert_allclose(heights, [2 / 6, 1 / 6, 3 / 6], atol=1e-6)
    assert bars(figure.axes[1]) == (["8"], [1.0])
    check_no_overlap(figure)


def test_a_mean_is_even_and_unknown_blocks_are_numbered_by_position() -> None:
    figure = fusion_figure(LayerGrouper(16, 5, 8, num_groups=2))
    assert [bars(axes)[0] for axes in figure.axes] == [["0", "1", "2"], ["3", "4"]]
    np.testing.assert_allclose(bars(figure.axes[0])[1], 1 / 3, atol=1e-6)
    head = FPNHead(16, [Task("mass")], 4, fpn_dim=8, num_levels=1, fusion="softmax")
    assert bars(fusion_figure(head).axes[0])[0] == ["0", "1", "2", "3"]


def test_modules_without_layer_weights_are_refused() -> None:
    neck = ViTFPN(16, 4, 8, fusion="softmax")
    for module, layers in (
        (PatchMeanHead(16, [Task("a")]), None),
        (neck, (1, 2)),
        (ViTFPN(16, 4, 8, fusion="pixel"), None),
    ):
        with pytest.raises(ConfigError):
            fusion_figure(module, layers=layers)
    with torch.no_grad():
        neck.grouper.fusion_weights["0"].fill_(torch.nan)
    with pytest.raises(DataError, match="nan"):
        fusion_figure(neck)


# -- points ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("nearer", "place"), [((0, 0, 1), 0), ((0, -1, 0), 1)])
def test_nearer_points_cover_farther_ones(nearer: tuple[int, ...], place: int) -> None:
    cloud = np.array([nearer, [0, 0, 0], [3, 3, 3], [-3, -3, -3]], float)  # it comes first, and is drawn last
    figure = points_figure(cloud, np.array([BLUE, RED, RED, RED]))
    axes = figure.axes[place]
    assert axes.get_aspect() == 1.0
    np.testing.assert_allclose(colour_at(pixels(figure), axes, 0.0, 0.0), BLUE, atol=1e-2)


def test_points_stand_at_their_places_in_the_colours_of_their_features() -> None:
    features = torch.randn(40, 12, generator=torch.Generator().manual_seed(0))
    cloud = torch.rand(40, 3, generator=torch.Generator().manual_seed(1))
    colours = pca_rgb(features)
    np.testing.assert_array_equal(colours, pca_rgb(features, basis=PCABasis.fit(features)))
    dots = points_figure(cloud, colours).axes[0].collections[-1]
    order = np.argsort(cloud[:, 2].numpy(), kind="stable")
    np.testing.assert_array_equal(dots.get_offsets(), cloud[order][:, :2].double())
    np.testing.assert_allclose(dots.get_facecolor()[:, :3], colours[order])


def test_bytes_are_colours() -> None:
    colours = np.array([[255, 0, 51], [0, 102, 255]], np.uint8)
    for given in (colours, colours / 255.0):
        dots = points_figure(np.array([[0.0, 0, 0], [1, 1, 1]]), given).axes[0].collections[-1]
        np.testing.assert_allclose(dots.get_facecolor()[:, :3], colours / 255.0)


def test_points_and_colours_that_do_not_fit_are_refused() -> None:
    for points, colours in ((CLOUD[:, :2], CLOUD), (CLOUD, CLOUD[:4])):
        with pytest.raises(ShapeError):
            points_figure(points, colours)
    with pytest.raises(DataError, match="7"):
        points_figure(CLOUD, CLOUD * 0.0 + 7.0)
