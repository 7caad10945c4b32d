"""PCA colours of planted directions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from dinoneck import Tokens
from dinoneck.viz import PCABasis, pca_rgb

BLACK = 0.0
GREY = 0.5


def orthonormal_directions(channels: int, count: int) -> np.ndarray:
    """Directions of shape (count, channels) whose largest entry is positive, as that of PCA."""
    random_columns = np.random.default_rng(0).normal(size=(channels, count))
    orthonormal_columns, _ = np.linalg.qr(random_columns)
    directions = orthonormal_columns.T
    channel_of_largest = np.abs(directions).argmax(axis=1)
    largest_entries = directions[np.arange(count), channel_of_largest]
    return directions * np.sign(largest_entries)[:, None]


@dataclass
class PlantedTokens:
    """Tokens of two directions, and how far each patch lies along them, (batch, rows, cols)."""

    tokens: Tokens
    along_first: np.ndarray
    along_second: np.ndarray


def planted_tokens(channels: int = 32, batch: int = 2) -> PlantedTokens:
    """The first direction tells the row, the second one the column and the image."""
    rows, cols = 6, 9
    image, row, col = np.indices((batch, rows, cols)).astype(float)
    first, second = orthonormal_directions(channels, 2)
    along_first = row
    along_second = col + 0.5 * image
    values_of_first = 10.0 * along_first[..., None] * first
    values_of_second = along_second[..., None] * second
    values = values_of_first + values_of_second + 3.0
    patches = torch.from_numpy(values.reshape(batch, rows * cols, channels))
    tokens = Tokens.from_patches(patches, grid=(rows, cols), patch_size=16)
    return PlantedTokens(tokens, along_first, along_second)


def stretched(values: np.ndarray) -> np.ndarray:
    """The values from their first to their 99th percentile as 0 to 1."""
    low, high = np.percentile(values, (1, 99))
    return np.clip((values - low) / (high - low), 0, 1)


# Red, green and blue
# ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "channels",
    [
        pytest.param(32, id="fewer channels than patches"),
        pytest.param(300, id="more channels than patches"),
    ],
)
def test_two_planted_directions_come_out_as_red_and_green(channels: int) -> None:
    planted = planted_tokens(channels)

    colours = pca_rgb(planted.tokens)

    red = colours[..., 0]
    green = colours[..., 1]
    np.testing.assert_allclose(red, stretched(planted.along_first), atol=1e-9)
    np.testing.assert_allclose(green, stretched(planted.along_second), atol=1e-9)


def test_a_direction_along_which_nothing_varies_is_grey() -> None:
    planted = planted_tokens()

    blue = pca_rgb(planted.tokens)[..., 2]

    np.testing.assert_array_equal(blue, GREY)


def test_one_patch_is_grey() -> None:
    colours = pca_rgb(torch.ones(1, 8, 1, 1))

    np.testing.assert_array_equal(colours, GREY)


def test_a_patch_that_is_too_rare_for_the_percentiles_is_seen() -> None:
    maps = torch.zeros(1, 8, 30, 30)
    maps[0, 2, 5, 7] = 1.0

    red = pca_rgb(maps)[..., 0]

    assert red[0, 5, 7] == 1.0
    assert red.sum() == 1.0


# A shared basis
# ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("image", range(3))
def test_with_a_shared_basis_one_image_looks_as_in_its_batch(image: int) -> None:
    tokens = planted_tokens(batch=3).tokens
    in_batch = pca_rgb(tokens)[image]

    alone = pca_rgb(tokens[image], basis=PCABasis.fit(tokens))[0]

    np.testing.assert_allclose(alone, in_batch, atol=1e-12)


def test_without_a_basis_one_image_has_its_own_range() -> None:
    tokens = planted_tokens(batch=3).tokens
    in_batch = pca_rgb(tokens)[2]

    alone = pca_rgb(tokens[2])[0]

    assert not np.allclose(alone, in_batch, atol=1e-3)


def test_rows_of_vectors_have_the_colours_of_their_patches() -> None:
    tokens = planted_tokens().tokens
    basis = PCABasis.fit(tokens)
    vectors = tokens.patches[0].reshape(-1, 32)

    colours = pca_rgb(vectors, basis=basis)

    expected = pca_rgb(tokens)
    np.testing.assert_array_equal(colours.reshape(expected.shape), expected)


# The foreground
# ------------------------------------------------------------------------------------------------


@dataclass
class Subject:
    """Maps of a subject before an empty background, the subject's patches and its texture."""

    maps: torch.Tensor
    mask: np.ndarray
    texture: np.ndarray


@pytest.fixture(params=[1.0, -1.0], ids=["positive", "negative"])
def subject(request: pytest.FixtureRequest) -> Subject:
    """A subject away from the edges, on either side of the background along its direction."""
    subject_direction, texture_direction = orthonormal_directions(16, 2)
    mask = np.zeros((1, 8, 10), bool)
    mask[0, 2:6, 3:8] = True
    texture = np.random.default_rng(0).normal(size=(1, 8, 10))
    distance_from_background = 50.0 * request.param * mask
    values_of_subject = distance_from_background[..., None] * subject_direction
    values_of_texture = texture[..., None] * texture_direction
    values = values_of_subject + values_of_texture
    maps = torch.from_numpy(np.moveaxis(values, -1, 1))
    return Subject(maps, mask, texture)


def test_what_resembles_the_edges_of_the_image_is_black(subject: Subject) -> None:
    colours = pca_rgb(subject.maps, foreground=0.5)

    np.testing.assert_array_equal(colours[~subject.mask], BLACK)


def test_the_foreground_is_coloured_by_its_own_directions(subject: Subject) -> None:
    colours = pca_rgb(subject.maps, foreground=0.5)

    red = colours[subject.mask][:, 0]
    np.testing.assert_allclose(red, stretched(subject.texture[subject.mask]), atol=1e-6)


def test_a_basis_of_a_foreground_leaves_the_background_black_too(subject: Subject) -> None:
    basis = PCABasis.fit(subject.maps, foreground=0.5)

    colours = pca_rgb(subject.maps, basis=basis)

    np.testing.assert_array_equal(colours, pca_rgb(subject.maps, foreground=0.5))
