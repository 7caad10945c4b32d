"""Point clouds: the right axes, nearest points on top, the colours of features."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from matplotlib import colormaps
from tests.unit.viz.drawn import check_no_overlap, colour_at, pixels

from dinoneck import ConfigError, DataError, ShapeError
from dinoneck.points import Links
from dinoneck.viz import PCABasis, points_figure

RED, BLUE = [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]


def links(seen: list[int], count: int) -> Links:
    points = torch.tensor(seen, dtype=torch.int64)
    zeros = torch.zeros(len(seen))
    return Links(torch.zeros_like(points), points, torch.zeros(len(seen), 2), zeros, count, 1, (10, 10))


@pytest.mark.parametrize(
    ("up", "above", "side", "over", "front"),
    [
        ("z", "xy", "xz", (0, 0, 1), (0, -1, 0)),
        ("y", "xz", "xy", (0, 1, 0), (0, 0, 1)),
        ("-y", "xz", "xy", (0, -1, 0), (0, 0, -1)),
    ],
)
def test_nearer_points_cover_farther_ones(
    up: str, above: str, side: str, over: tuple[int, ...], front: tuple[int, ...]
) -> None:
    for nearer, axes_names, place in ((over, above, 0), (front, side, 1)):
        cloud = np.array([nearer, [0, 0, 0], [3, 3, 3], [-3, -3, -3]], float)  # it comes first, and is drawn last
        figure = points_figure(cloud, np.array([BLUE, RED, RED, RED]), up=up)  # type: ignore[arg-type]
        axes = figure.axes[place]
        assert (axes.get_xlabel(), axes.get_ylabel()) == (f"{axes_names[0]} [m]", f"{axes_names[1]} [m]")
        np.testing.assert_allclose(colour_at(pixels(figure), axes, 0.0, 0.0), BLUE, atol=1e-2)


def test_what_is_up_is_drawn_up() -> None:
    cloud = np.array([[0.0, 0, 0], [1, 2, 3]])
    for up, (above, side) in {"z": (1, 1), "y": (-1, 1), "-y": (1, -1)}.items():
        figure = points_figure(cloud, np.eye(3)[:2], up=up)  # type: ignore[arg-type]
        for axes, sign in zip(figure.axes, (above, side), strict=True):
            low, high = axes.get_ylim()
            assert np.sign(high - low) == sign, (up, axes.get_title())
            assert axes.get_aspect() == 1.0
        check_no_overlap(figure)


def test_features_have_the_colours_of_their_basis() -> None:
    features = torch.randn(40, 12, generator=torch.Generator().manual_seed(0))
    cloud = torch.rand(40, 3, generator=torch.Generator().manual_seed(1))
    basis = PCABasis.fit(features)
    for given in ({}, {"basis": basis}):
        dots = points_figure(cloud, features, **given).axes[0].collections[-1]
        order = np.argsort(cloud[:, 2].numpy(), kind="stable")
        np.testing.assert_array_equal(dots.get_offsets(), cloud[order][:, :2].double())
        np.testing.assert_allclose(dots.get_facecolor()[:, :3], basis.apply(features)[order])


def test_points_that_no_image_sees_are_grey_beneath_and_count_for_nothing() -> None:
    features = torch.randn(30, 12, generator=torch.Generator().manual_seed(0))
    cloud = torch.rand(30, 3, generator=torch.Generator().manual_seed(1))
    features[20:] = 1e6
    figure = points_figure(cloud, features, links=links(list(range(20)), 30))
    unseen, seen = figure.axes[0].collections
    assert len(unseen.get_offsets()) == 10
    assert set(unseen.get_facecolor()[0][:3]) == {0.82}
    order = np.argsort(cloud[:20, 2].numpy(), kind="stable")
    expected = PCABasis.fit(features[:20]).apply(features[:20])[order]
    np.testing.assert_allclose(seen.get_facecolor()[:, :3], expected)
    assert figure.axes[0].get_title() == "from above, 30 points, 67% seen by an image"


def test_values_have_a_bar() -> None:
    cloud, values = np.random.default_rng(0).random((50, 3)), np.linspace(2.0, 5.0, 50)
    figure = points_figure(cloud, values, label="height [m]")
    dots = figure.axes[0].collections[-1]
    assert dots.get_clim() == (2.0, 5.0)
    pixels(figure)
    order = np.argsort(cloud[:, 2], kind="stable")
    np.testing.assert_allclose(dots.get_facecolor(), colormaps["viridis"]((values[order] - 2.0) / 3.0))
    assert figure.axes[2].get_xlabel() == "height [m]"
    check_no_overlap(figure)


def test_bytes_are_colours() -> None:
    colours = np.array([[255, 0, 51], [0, 102, 255]], np.uint8)
    for given in (colours, colours / 255.0):
        dots = points_figure(np.array([[0.0, 0, 0], [1, 1, 1]]), given).axes[0].collections[-1]
        np.testing.assert_allclose(dots.get_facecolor()[:, :3], colours / 255.0)


def test_what_cannot_be_drawn_is_refused() -> None:
    cloud = np.random.default_rng(0).random((5, 3))
    with pytest.raises(ShapeError, match=r"points have shape \(5, 2\); expected \(n, 3\)"):
        points_figure(cloud[:, :2], cloud)
    with pytest.raises(ShapeError, match=r"one per point, have shape \(4, 3\); expected \(5, channels\)"):
        points_figure(cloud, cloud[:4])
    with pytest.raises(DataError, match="these span 0 .* 7"):
        points_figure(cloud, np.full((5, 3), 7.0) * np.arange(5)[:, None].clip(0, 1))
    with pytest.raises(ShapeError, match="a cloud of 6 points; this one has 5"):
        points_figure(cloud, cloud, links=links([0], 6))
    with pytest.raises(DataError, match="no point is seen"):
        points_figure(cloud, cloud, links=links([], 5))
    with pytest.raises(ConfigError, match="max_points is 0"):
        points_figure(cloud, cloud, max_points=0)
    with pytest.raises(ConfigError, match="up is 'x'"):
        points_figure(cloud, cloud, up="x")  # type: ignore[arg-type]
