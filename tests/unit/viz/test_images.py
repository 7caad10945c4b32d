"""Figures of one row per image: every cell lies over its patch, in the colour of its value."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tests.unit.viz.drawn import captions, check_cells, check_no_overlap, colour_at, pixels

from dinoneck import (
    ConfigError,
    DataError,
    FeaturePyramid,
    ShapeError,
    Tokens,
    load_backbone,
)
from dinoneck.data import Preprocessing
from dinoneck.viz import PCABasis, gate_figure, pca_figure, pca_rgb, pyramid_figure


def viridis(shares: np.ndarray) -> np.ndarray:
    from matplotlib import colormaps

    return colormaps["viridis"](shares)[..., :3]


def image(rows: int, cols: int) -> np.ndarray:
    return np.random.default_rng(rows * cols).integers(0, 256, (rows * 16, cols * 16, 3), dtype=np.uint8)


def result(values: np.ndarray) -> dict[str, Any]:
    """A map (rows, cols) or (outputs, rows, cols) as the Predictor returns it."""
    maps = values[None] if values.ndim == 2 else values
    totals = maps.sum(axis=(1, 2))
    return {"mass": float(totals[0]) if len(totals) == 1 else totals, "maps": {"mass": maps}}


def gates(count: int = 1, rows: int = 3, cols: int = 5) -> np.ndarray:
    weights = np.random.default_rng(0).random((count, rows, cols)) ** 2
    return weights / weights.sum(axis=(1, 2), keepdims=True)


# -- gates -----------------------------------------------------------------------------------------------


def test_gates_share_one_scale_and_let_the_image_through() -> None:
    weights, grey = gates(3), np.full((48, 80, 3), 200, np.uint8)
    figure = gate_figure([grey] * 3, weights, alpha=0.25)
    for axes, gate in zip(figure.axes[1:6:2], weights, strict=True):
        assert axes.get_title() == f"gate, at most {gate.max() * 15:.3g} x the mean"
        assert axes.images[-1].get_clim() == (0.0, weights.max())
    expected = 0.25 * viridis(weights[0] / weights.max()) + 0.75 * 200 / 255
    check_cells(figure, figure.axes[1], expected, (48, 80))
    assert "adds up to 1" in figure.axes[-1].get_xlabel()


def test_what_is_not_a_gate_is_refused() -> None:
    [gate] = gates()
    for given, error, message in (
        (gate[None] * 2, DataError, "gate 0 adds up to 2 "),
        ([np.array([[-0.5, 1.5]])], DataError, "smallest weight is -0.5"),
        (gate.reshape(1, -1), ShapeError, r"gate 0 have shape \(15,\); expected \(rows, cols\)"),
        (gates(2), DataError, "1 images with 2"),
    ):
        with pytest.raises(error, match=message):
            gate_figure(image(3, 5), given)


# -- features --------------------------------------------------------------------------------------------


def test_features_of_a_padded_image_lie_over_its_patches() -> None:
    colours = np.random.default_rng(0).integers(0, 256, (4, 3, 3), dtype=np.uint8)
    recipe = Preprocessing(size=(64, 96), resize="pad")
    picture = recipe.picture(colours.repeat(16, axis=0).repeat(16, axis=1))
    means = picture.unfold(1, 16, 16).unfold(2, 16, 16).mean(dim=(-1, -2))  # what a patch shows, as a feature
    tokens = Tokens.from_patches(means[None].flatten(2).mT, grid=(4, 6), patch_size=16, layers=[11])
    figure = pca_figure(picture, tokens)
    expected = np.concatenate([colours / 255.0, np.broadcast_to(recipe.mean, (4, 3, 3))], axis=1)
    check_cells(figure, figure.axes[0], expected, (64, 96))
    check_cells(figure, figure.axes[1], pca_rgb(tokens)[0], (64, 96))
    assert captions(figure.axes[1]) == ["tokens of block 11"]


def test_all_images_of_a_batch_share_their_colours() -> None:
    backbone = load_backbone("dinoneck_tiny")
    images = torch.rand(3, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    tokens = backbone(backbone.preprocess(images))
    figure = pca_figure(images, tokens)
    shown = np.stack([axes.images[-1].get_array() for axes in figure.axes[1::2]])
    np.testing.assert_array_equal(shown, pca_rgb(tokens))
    assert [axes.get_title() for axes in figure.axes[::2]] == ["image 1", "image 2", "image 3"]
    assert [axes.get_title() for axes in figure.axes[1::2]] == ["tokens of block 5", "", ""], "one title"
    alone = pca_figure(images[1], tokens[1], basis=PCABasis.fit(tokens))
    np.testing.assert_allclose(alone.axes[1].images[-1].get_array(), shown[1], atol=1e-12)
    with pytest.raises(DataError, match="1 images with 3"):
        pca_figure(images[0], tokens)


@pytest.mark.parametrize("size", [(32, 640), (640, 160), (16, 16)])
def test_long_names_find_room(size: tuple[int, int]) -> None:
    names = ["2015/Tasmania/site_07_$5$_a_rather_long_name_that_goes_on_and_on_without_end_0001.jpg", "b " * 80]
    patches = torch.rand(2, size[0] * size[1] // 256, 4)
    tokens = Tokens.from_patches(patches, grid=(size[0] // 16, size[1] // 16), patch_size=16)
    check_no_overlap(pca_figure(np.zeros((2, *size, 3), np.uint8), tokens, names=names))


@pytest.mark.parametrize("size", [(48, 64), (32, 96)])
def test_a_figure_of_tokens_is_as_high_as_its_images(size: tuple[int, int]) -> None:
    patches = torch.rand(4, size[0] * size[1] // 256, 4)
    tokens = Tokens.from_patches(patches, grid=(size[0] // 16, size[1] // 16), patch_size=16)
    sheet = pixels(pca_figure(np.zeros((4, *size, 3), np.uint8), tokens))
    drawn = np.flatnonzero((sheet < 255).any(axis=(1, 2)))
    assert max(drawn[0], len(sheet) - 1 - drawn[-1]) < 0.03 * len(sheet), "no white above and below"


# -- pyramids --------------------------------------------------------------------------------------------


def levels(rows: int, cols: int) -> FeaturePyramid:
    generator = torch.Generator().manual_seed(0)
    sizes = [(rows, cols), (-(-rows // 2), -(-cols // 2)), (-(-rows // 4), -(-cols // 4))]
    return FeaturePyramid(tuple(torch.randn(2, 6, *size, generator=generator) for size in sizes), (16.0, 32.0, 64.0))


@pytest.mark.parametrize("how", ["pca", "norm"])
def test_cells_of_a_level_cover_the_pixels_of_their_stride(how: str) -> None:
    pyramid = levels(5, 7)
    figure = pyramid_figure(pyramid, np.zeros((80, 112, 3), np.uint8), how=how, sample=1)  # type: ignore[arg-type]
    sheet = pixels(figure, 200)
    for axes, level, stride in zip(figure.axes[1:4], pyramid.maps, pyramid.strides, strict=True):
        assert (axes.get_xlim(), axes.get_ylim()) == ((0, 112), (80, 0))
        rows, cols = level.shape[2:]
        lengths = level[1].double().norm(dim=0).numpy()
        shares = (lengths - lengths.min()) / (lengths.max() - lengths.min())
        expected = pca_rgb(level[1:])[0] if how == "pca" else viridis(shares)
        for r in range(rows):
            for c in range(cols):
                right, bottom = min((c + 1) * stride, 112), min((r + 1) * stride, 80)
                for x, y in ((c * stride + 1, r * stride + 1), (right - 1, bottom - 1)):
                    np.testing.assert_allclose(colour_at(sheet, axes, x, y), expected[r, c], atol=2.5 / 255)


def test_levels_that_do_not_fit_are_refused() -> None:
    pyramid = levels(3, 4)
    with pytest.raises(ShapeError, match=r"3 x 4 cells of 16 px does not fit an image of 32x64 px"):
        pyramid_figure(pyramid, np.zeros((32, 64, 3), np.uint8))
    with pytest.raises(ConfigError, match="how is 'mean'"):
        pyramid_figure(pyramid, how="mean")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="level 0 hold nan"):
        pyramid_figure(FeaturePyramid((torch.full((1, 3, 2, 2), torch.nan),), (16.0,)))
