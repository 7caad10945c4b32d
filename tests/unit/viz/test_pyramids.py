"""Levels of a pyramid: every cell over the pixels that its stride says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from matplotlib import colormaps
from tests.unit.viz.drawn import captions, check_no_overlap, colour_at, pixels

from dinoneck import ConfigError, DataError, FeaturePyramid, ShapeError, SimplePyramid, Tokens, ViTFPN
from dinoneck.viz import pca_rgb, pyramid_figure


def levels(rows: int, cols: int, channels: int = 6, batch: int = 2) -> FeaturePyramid:
    generator = torch.Generator().manual_seed(0)
    sizes = [(rows, cols), (-(-rows // 2), -(-cols // 2)), (-(-rows // 4), -(-cols // 4))]
    return FeaturePyramid(tuple(torch.randn(batch, channels, *size, generator=generator) for size in sizes),
                          (16.0, 32.0, 64.0))  # fmt: skip


@pytest.mark.parametrize("how", ["pca", "norm"])
def test_cells_cover_what_their_stride_says(how: str) -> None:
    pyramid = levels(5, 7)
    photo = np.zeros((80, 112, 3), np.uint8)
    figure = pyramid_figure(pyramid, photo, how=how, sample=1)
    sheet = pixels(figure, 200)
    drawn = [axes for axes in figure.axes if axes.images]
    for axes, level, stride in zip(drawn[1:], pyramid.maps, pyramid.strides, strict=True):
        assert (axes.get_xlim(), axes.get_ylim()) == ((0, 112), (80, 0))
        rows, cols = level.shape[2:]
        assert tuple(axes.images[0].get_extent()) == (0, cols * stride, rows * stride, 0)
        lengths = level[1].double().norm(dim=0).numpy()
        shares = (lengths - lengths.min()) / (lengths.max() - lengths.min())
        expected = pca_rgb(level[1:])[0] if how == "pca" else colormaps["viridis"](shares)[..., :3]
        for r in range(rows):
            for c in range(cols):
                right, bottom = min((c + 1) * stride, 112), min((r + 1) * stride, 80)
                for x, y in ((c * stride + 1, r * stride + 1), (right - 1, bottom - 1)):
                    np.testing.assert_allclose(colour_at(sheet, axes, x, y), expected[r, c], atol=2.5 / 255)
    check_no_overlap(figure)


def test_titles_tell_the_strides_of_real_necks() -> None:
    tokens = Tokens.from_sequence(
        [torch.randn(1, 5 + 15, 32) for _ in range(4)], image_size=(48, 80), patch_size=16, num_prefix_tokens=5
    )
    with torch.no_grad():
        figure = pyramid_figure(ViTFPN(32, 4, 8)(tokens), np.zeros((48, 80, 3), np.uint8))
        assert [captions(axes)[0] for axes in figure.axes] == [
            "photo", "level 0: stride 16 px, 3 x 5 cells", "level 1: stride 32 px, 2 x 3 cells",
            "level 2: stride 64 px, 1 x 2 cells",
        ]  # fmt: skip
        patch_14 = Tokens.from_patches(torch.randn(1, 15, 32), grid=(3, 5), patch_size=14)
        figure = pyramid_figure(SimplePyramid(32, 8, patch_size=14)(patch_14), np.zeros((42, 70, 3), np.uint8))
    assert captions(figure.axes[1]) == ["level 0: stride 3.5 px, 12 x 20 cells"]
    check_no_overlap(figure)


def test_without_a_photo_the_finest_level_tells_the_size() -> None:
    figure = pyramid_figure(levels(3, 4))
    assert len(figure.axes) == 3
    assert all((axes.get_xlim(), axes.get_ylim()) == ((0, 64), (48, 0)) for axes in figure.axes)
    other = pyramid_figure(levels(3, 4), sample=-1)
    assert not np.array_equal(figure.axes[0].images[0].get_array(), other.axes[0].images[0].get_array())


def test_what_does_not_fit_is_refused() -> None:
    pyramid = levels(3, 4)
    with pytest.raises(ShapeError, match=r"level 0 has 3 x 4 cells of 16 px, which do not fit a photo of 32x64 px"):
        pyramid_figure(pyramid, np.zeros((32, 64, 3), np.uint8))
    with pytest.raises(ConfigError, match="how is 'mean'"):
        pyramid_figure(pyramid, how="mean")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="sample is 2; this pyramid is of 2 photos"):
        pyramid_figure(pyramid, sample=2)
    with pytest.raises(ShapeError, match="no levels"):
        pyramid_figure(FeaturePyramid((), ()))
    with pytest.raises(ShapeError, match=r"level 0 have shape"):
        pyramid_figure(FeaturePyramid((torch.zeros(1, 3, 4),), (16.0,)))
    with pytest.raises(DataError, match="level 0 hold nan"):
        pyramid_figure(FeaturePyramid((torch.full((1, 3, 2, 2), torch.nan),), (16.0,)))
