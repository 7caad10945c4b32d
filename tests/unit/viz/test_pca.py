"""PCA colours of planted directions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dinoneck import Tokens
from dinoneck.viz import PCABasis, pca_rgb


def directions(channels: int, count: int, seed: int = 0) -> np.ndarray:
    """(count, channels): orthonormal, the largest entry of each positive."""
    table = np.linalg.qr(np.random.default_rng(seed).normal(size=(channels, count)))[0].T
    return table * np.sign(table[np.arange(count), np.abs(table).argmax(axis=1)])[:, None]


def planted(
    rows: int = 6, cols: int = 9, batch: int = 2, channels: int = 32
) -> tuple[Tokens, np.ndarray, np.ndarray]:
    """Tokens whose first direction tells the row and whose second tells the column and the image."""
    first, second = directions(channels, 2)
    down = np.broadcast_to(np.arange(rows)[None, :, None], (batch, rows, cols)).astype(float)
    along = (
        np.broadcast_to(np.arange(cols)[None, None], (batch, rows, cols))
        + 0.5 * np.arange(batch)[:, None, None]
    )
    values = 10.0 * down[..., None] * first + along[..., None] * second + 3.0
    patches = torch.from_numpy(values.reshape(batch, rows * cols, channels))
    return Tokens.from_patches(patches, grid=(rows, cols), patch_size=16), down, along


def stretched(values: np.ndarray) -> np.ndarray:
    low, high = np.percentile(values, (1, 99))
    return np.clip((values - low) / (high - low), 0, 1)


@pytest.mark.parametrize("channels", [32, 300])  # fewer and more than there are patches
def test_two_planted_directions_come_out_as_red_and_green(channels: int) -> None:
    tokens, down, along = planted(channels=channels)
    colours = pca_rgb(tokens)
    np.testing.assert_allclose(colours[..., 0], stretched(down), atol=1e-9)
    np.testing.assert_allclose(colours[..., 1], stretched(along), atol=1e-9)
    np.testing.assert_array_equal(colours[..., 2], 0.5)  # nothing is left for the third


def test_with_a_shared_basis_one_image_looks_as_in_its_batch() -> None:
    tokens, _, _ = planted(batch=3)
    basis = PCABasis.fit(tokens)
    together = pca_rgb(tokens)
    for place in range(3):
        np.testing.assert_allclose(
            pca_rgb(tokens[place], basis=basis)[0], together[place], atol=1e-12
        )
    # its own range is another
    assert not np.allclose(pca_rgb(tokens[2])[0], together[2], atol=1e-3)
    rows = tokens.patches[0].reshape(-1, 32)
    np.testing.assert_array_equal(pca_rgb(rows, basis=basis).reshape(together.shape), together)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_foreground_is_what_the_edges_are_not(sign: float) -> None:
    subject, inside = directions(16, 2)
    front = np.zeros((1, 8, 10))
    front[0, 2:6, 3:8] = 1.0
    texture = np.random.default_rng(0).normal(size=(1, 8, 10))
    values = sign * 50.0 * front[..., None] * subject + texture[..., None] * inside
    maps = torch.from_numpy(np.moveaxis(values, -1, 1))
    colours = pca_rgb(maps, foreground=0.5)
    assert (colours[front == 0] == 0.0).all()
    along = texture[front == 1]
    np.testing.assert_allclose(colours[front == 1][:, 0], stretched(along), atol=1e-6)
    basis = PCABasis.fit(maps, foreground=0.5)
    np.testing.assert_array_equal(pca_rgb(maps, basis=basis), colours)


def test_one_patch_is_grey_and_rare_patches_are_seen() -> None:
    assert (pca_rgb(torch.ones(1, 8, 1, 1)) == 0.5).all()
    rare = torch.zeros(1, 8, 30, 30)
    rare[0, 2, 5, 7] = 1.0  # beyond the percentiles
    colours = pca_rgb(rare)[..., 0]
    assert colours[0, 5, 7] == 1.0
    assert colours.sum() == 1.0
