"""Gates over photos: weights that add up to one, at their patches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from matplotlib import colormaps
from tests.unit.viz.drawn import captions, check_cells, check_no_overlap

from dinoneck import CLSGatingHead, ConfigError, DataError, Predictor, ShapeError, Task, load_backbone
from dinoneck.viz import gate_figure

PHOTO = np.full((48, 80, 3), 200, np.uint8)


def gates(count: int = 1, rows: int = 3, cols: int = 5) -> np.ndarray:
    weights = np.random.default_rng(0).random((count, rows, cols)) ** 2
    return weights / weights.sum(axis=(1, 2), keepdims=True)


def test_every_weight_has_its_colour_over_its_patch() -> None:
    [gate] = gates()
    figure = gate_figure(PHOTO, gate[None], alpha=1.0)
    check_cells(figure, figure.axes[1], colormaps["viridis"](gate / gate.max())[..., :3], (48, 80))
    image = figure.axes[1].images[-1]
    assert abs(image.get_array().sum() - 1.0) < 1e-12
    assert image.get_clim() == (0.0, gate.max())
    assert "adds up to 1" in figure.axes[2].get_xlabel()


def test_all_photos_share_one_scale_and_the_caption_tells_the_largest() -> None:
    found = gates(6)
    figure = gate_figure([PHOTO] * 6, found)
    maps = [axes for axes in figure.axes[:-1] if len(axes.images) == 2]
    assert {axes.images[-1].get_clim() for axes in maps} == {(0.0, found.max())}
    for axes, gate in zip(maps, found, strict=True):
        assert captions(axes) == [f"gate, at most {gate.max() * 15:.3g} x the even weight"]
        np.testing.assert_array_equal(axes.images[-1].get_array(), gate)
    check_no_overlap(figure)


def test_opacity_lets_the_photo_through() -> None:
    [gate] = gates()
    figure = gate_figure(PHOTO, gate[None], alpha=0.25)
    over = colormaps["viridis"](gate / gate.max())[..., :3]
    check_cells(figure, figure.axes[1], 0.25 * over + 0.75 * 200 / 255, (48, 80))


def test_it_takes_what_heads_and_predictors_give() -> None:
    backbone = load_backbone("dinoneck_tiny")
    head = CLSGatingHead(64, [Task("mass")], mode="query", hidden_dim=8)
    photos = torch.rand(2, 3, 32, 48)
    gate = head.gate(backbone(backbone.preprocess(photos)))
    results = Predictor(head, backbone)(list(photos), maps=True)
    one, other = gate_figure(photos, gate.half()), gate_figure(photos, [result["gate"] for result in results])
    for axes, same in zip(one.axes[:4], other.axes[:4], strict=True):
        np.testing.assert_allclose(axes.images[-1].get_array(), same.images[-1].get_array(), atol=1e-3)


def test_grids_may_differ_between_photos() -> None:
    figure = gate_figure([PHOTO, PHOTO.transpose(1, 0, 2)], [gates()[0], gates(1, 5, 3)[0]])
    maps = [axes.images[1] for axes in figure.axes if len(axes.images) == 2]
    assert [image.get_array().shape for image in maps] == [(3, 5), (5, 3)]


def test_what_is_no_gate_is_refused() -> None:
    [gate] = gates()
    with pytest.raises(DataError, match="gate 0 adds up to 2 "):
        gate_figure(PHOTO, gate[None] * 2)
    with pytest.raises(DataError, match="smallest weight is -0.5"):
        gate_figure(PHOTO, [np.array([[-0.5, 1.5]])])
    with pytest.raises(DataError, match="hold nan"):
        gate_figure(PHOTO, [np.array([[np.nan, 1.0]])])
    with pytest.raises(ShapeError, match=r"gate 0 have shape \(15,\); expected \(rows, cols\)"):
        gate_figure(PHOTO, gate.reshape(1, -1))
    with pytest.raises(DataError, match="1 photos with 2 gates"):
        gate_figure(PHOTO, gates(2))
    with pytest.raises(ConfigError, match="alpha is 2"):
        gate_figure(PHOTO, gate[None], alpha=2)
