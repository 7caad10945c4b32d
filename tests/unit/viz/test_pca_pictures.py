"""Photos beside their features: every patch at its place."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.unit.viz.drawn import captions, check_cells, check_no_overlap, pixels

from dinoneck import DataError, Tokens, load_backbone
from dinoneck.data import Preprocessing
from dinoneck.viz import PCABasis, pca_figure, pca_rgb


def blocks(rows: int, cols: int, patch: int = 16, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A photo of one colour per patch, and those colours."""
    colours = np.random.default_rng(seed).integers(0, 256, (rows, cols, 3), dtype=np.uint8)
    return colours.repeat(patch, axis=0).repeat(patch, axis=1), colours / 255.0


@pytest.mark.parametrize(("rows", "cols"), [(3, 5), (5, 2), (1, 1), (1, 12)])
def test_every_patch_lies_over_its_pixels(rows: int, cols: int) -> None:
    photo, colours = blocks(rows, cols)
    maps = torch.randn(1, 8, rows, cols, generator=torch.Generator().manual_seed(0))
    tokens = Tokens.from_patches(maps.flatten(2).transpose(1, 2), grid=(rows, cols), patch_size=16, layers=[11])
    figure = pca_figure(photo, tokens)
    seen, features = figure.axes
    for axes in figure.axes:
        assert axes.get_xlim() == (0, cols * 16)
        assert axes.get_ylim() == (rows * 16, 0)
        assert tuple(axes.images[0].get_extent()) == (0, cols * 16, rows * 16, 0)
    assert features.images[0].get_array().shape == (rows, cols, 3)
    check_cells(figure, seen, colours, photo.shape[:2])
    check_cells(figure, features, pca_rgb(tokens)[0], photo.shape[:2])
    assert captions(features) == ["features of block 11"]


def test_a_padded_photo_keeps_patches_and_pixels_together(tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    photo, colours = blocks(4, 3)
    Image.fromarray(photo).save(path)
    recipe = Preprocessing(size=(64, 96), fit="pad")
    picture = recipe.picture(path)
    means = picture.unfold(1, 16, 16).unfold(2, 16, 16).mean(dim=(-1, -2))  # what a patch shows, as a feature
    figure = pca_figure(picture, Tokens.from_patches(means[None].flatten(2).mT, grid=(4, 6), patch_size=16))
    expected = np.concatenate([colours, np.broadcast_to(recipe.mean, (4, 3, 3))], axis=1)
    check_cells(figure, figure.axes[0], expected, (64, 96))
    shown = figure.axes[1].images[0].get_array()
    assert (shown[:, 3:] == shown[0, 3]).all()  # the padding is one feature
    assert not (shown[:, :3] == shown[0, 3]).all(axis=-1).any()


def test_all_photos_of_a_batch_share_their_colours() -> None:
    backbone = load_backbone("dinoneck_tiny")
    photos = torch.rand(3, 3, 32, 48, generator=torch.Generator().manual_seed(0))
    tokens = backbone(backbone.preprocess(photos))
    figure = pca_figure(photos, tokens, names=["a", "b", "c"])
    shown = np.stack([axes.images[0].get_array() for axes in figure.axes[1::2]])
    np.testing.assert_array_equal(shown, pca_rgb(tokens))
    assert [captions(axes)[0] for axes in figure.axes[::2]] == ["a", "b", "c"]
    alone = pca_figure(photos[1], tokens[1], basis=PCABasis.fit(tokens))
    np.testing.assert_allclose(alone.axes[1].images[0].get_array(), shown[1], atol=1e-12)
    masked = pca_figure(photos, tokens, foreground=0.5)
    assert (masked.axes[1].images[0].get_array() == 0.0).any()


@pytest.mark.parametrize("size", [(32, 640), (640, 32), (16, 16), (96, 160)])
def test_long_names_find_room(size: tuple[int, int]) -> None:
    names = ["2015/Tasmania/site_07_$5$_a_rather_long_name_that_goes_on_and_on_without_end_0001.jpg", "b " * 80]
    photos = np.zeros((2, *size, 3), np.uint8)
    tokens = Tokens.from_patches(torch.rand(2, size[0] * size[1] // 256, 4), grid=(size[0] // 16, size[1] // 16),
                                 patch_size=16)  # fmt: skip
    figure = pca_figure(photos, tokens, names=names)
    check_no_overlap(figure)
    assert captions(figure.axes[0])[0].startswith("2015")


def test_a_figure_draws_the_same_every_time() -> None:
    photo, _ = blocks(3, 4)
    tokens = Tokens.from_patches(torch.randn(1, 12, 8), grid=(3, 4), patch_size=16)
    np.testing.assert_array_equal(pixels(pca_figure(photo, tokens)), pixels(pca_figure(photo, tokens)))


def test_what_does_not_fit_is_refused() -> None:
    tokens = Tokens.from_patches(torch.randn(2, 12, 8), grid=(3, 4), patch_size=16)
    photo, _ = blocks(3, 4)
    with pytest.raises(DataError, match="1 photos with tokens of 2"):
        pca_figure(photo, tokens)
    with pytest.raises(DataError, match="expected 2, one per photo"):
        pca_figure([photo, photo], tokens, names=["one"])
    with pytest.raises(DataError, match="0 photos"):
        pca_figure([], tokens)
    with pytest.raises(DataError, match=r"49 photos; one figure takes 1 \.\.\. 48"):
        pca_figure([photo] * 49, tokens)
    with pytest.raises(DataError, match="not normalised"):
        pca_figure(torch.full((3, 48, 64), -2.0), tokens[0])
