"""Pixels, patches and views, for whatever sizes and points hypothesis thinks of."""

from __future__ import annotations

import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from dinoneck import GridSize, TokenGrid
from dinoneck.data import Preprocessing, Views, to_image_pixels, to_prepared_pixels
from dinoneck.images.views import View

sizes = st.integers(1, 200)
patches = st.sampled_from([14, 16, (8, 16), 1])
words = st.sampled_from(["crop", "pad", "resize"])
views_that_move = st.builds(
    View, horizontal=st.booleans(), vertical=st.booleans(), turns=st.integers(0, 3)
)


def grid_for(patch: object, on_remainder: str, height: int, width: int) -> TokenGrid:
    """The grid of a patch; cases that leave no whole patch of an image are not tried."""
    grid = TokenGrid(patch, on_remainder)  # type: ignore[arg-type]
    if on_remainder == "crop":
        assume(height >= grid.patch_height)
        assume(width >= grid.patch_width)
    return grid


# images and their patches


@given(sizes, sizes, patches, words)
def test_prepared_images_have_whole_patches(
    height: int, width: int, patch: object, word: str
) -> None:
    grid = grid_for(patch, word, height, width)

    prepared = grid.prepare(torch.zeros(1, 1, height, width))

    assert prepared.grid == grid.size((height, width))
    assert prepared.images.shape[-2] == prepared.grid.rows * grid.patch_height
    assert prepared.images.shape[-1] == prepared.grid.cols * grid.patch_width


@given(sizes, sizes, patches, words)
def test_prepared_points_come_back(height: int, width: int, patch: object, word: str) -> None:
    grid = grid_for(patch, word, height, width)
    prepared = grid.prepare(torch.zeros(1, 1, height, width))
    points = torch.tensor(
        [[0.0, 0.0], [width, height], [width / 3, height / 7]], dtype=torch.float64
    )

    returned = prepared.to_original(prepared.to_prepared(points))

    assert torch.allclose(returned, points, atol=1e-9)


@given(sizes, sizes, patches)
def test_resizing_takes_the_corner_to_the_corner(height: int, width: int, patch: object) -> None:
    prepared = TokenGrid(patch, "resize").prepare(  # type: ignore[arg-type]
        torch.zeros(1, 1, height, width)
    )
    corner = torch.tensor([width, height], dtype=torch.float64)

    prepared_corner = prepared.to_prepared(corner)

    assert torch.allclose(
        prepared_corner,
        torch.tensor([prepared.images.shape[-1], prepared.images.shape[-2]], dtype=torch.float64),
    )


@given(sizes, sizes, patches, words)
def test_every_cell_centre_is_read_from_its_own_cell(
    height: int, width: int, patch: object, word: str
) -> None:
    grid = grid_for(patch, word, height, width)
    rows, cols = grid.size((height, width))
    numbers = torch.arange(rows * cols, dtype=torch.float64)
    maps = numbers.reshape(1, 1, rows, cols)

    read = grid.sample(maps, grid.cell_centers((height, width)).double(), (height, width))

    assert torch.allclose(read[0, :, 0], numbers, atol=1e-2)


@given(sizes, sizes, patches, st.sampled_from(["pad", "resize"]))
def test_every_pixel_of_a_label_counts_once_unless_it_is_cropped(
    height: int, width: int, patch: object, word: str
) -> None:
    grid = grid_for(patch, word, height, width)
    labels = torch.rand(1, 1, height, width, dtype=torch.float64)

    values, weight = grid.reduce_labels(labels)

    assert torch.allclose(weight.sum(), torch.tensor(float(height * width), dtype=torch.float64))
    assert torch.allclose((values[:, 0] * weight).sum(), labels.sum())


@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 3), st.integers(1, 5))
def test_flattening_is_the_inverse_of_the_view_as_maps(
    rows: int, cols: int, batch: int, channels: int
) -> None:
    grid = TokenGrid(16)
    patch_tokens = torch.rand(batch, rows * cols, channels)

    maps = grid(patch_tokens, (rows * 16, cols * 16))

    assert maps.shape == (batch, channels, rows, cols)
    assert torch.equal(grid.flatten(maps), patch_tokens)


@given(sizes, sizes, patches)
def test_padding_never_gives_fewer_cells_than_cropping(
    height: int, width: int, patch: object
) -> None:
    cropped = grid_for(patch, "crop", height, width).size((height, width))
    resized = grid_for(patch, "resize", height, width).size((height, width))

    padded = grid_for(patch, "pad", height, width).size((height, width))

    assert cropped.rows <= resized.rows <= padded.rows <= cropped.rows + 1
    assert cropped.cols <= resized.cols <= padded.cols <= cropped.cols + 1
    assert isinstance(padded, GridSize)


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 2**31 - 1))
def test_sampling_an_affine_map_returns_the_point(rows: int, cols: int, seed: int) -> None:
    """A map that is affine in the cell centres is affine everywhere between them."""
    torch.manual_seed(seed)
    grid = TokenGrid(16)
    a, b, c = torch.randn(3, dtype=torch.float64)
    size = (rows * 16, cols * 16)
    centres = grid.cell_centers(size).double()
    maps = (a * centres[:, 0] + b * centres[:, 1] + c).reshape(1, 1, rows, cols)
    points = torch.rand(20, 2, dtype=torch.float64) * torch.tensor([cols - 1, rows - 1]) * 16 + 8

    read = grid.sample(maps, points, size)[0, :, 0]

    assert torch.allclose(read, a * points[:, 0] + b * points[:, 1] + c, atol=1e-8)


# images as heads see them


recipes = st.builds(
    Preprocessing,
    patch_size=st.sampled_from([14, 16]),
    size=st.tuples(st.integers(16, 200), st.integers(16, 200)),
    resize=st.sampled_from(["stretch", "crop", "pad", "keep"]),
)


@given(recipes, sizes, sizes, st.floats(-0.5, 1.5), st.floats(-0.5, 1.5))
def test_points_of_an_image_come_back_from_the_prepared_image(
    recipe: Preprocessing, height: int, width: int, x: float, y: float
) -> None:
    point = torch.tensor([x * width, y * height], dtype=torch.float64)

    prepared_point = to_prepared_pixels(point, recipe, (height, width))

    returned = to_image_pixels(prepared_point, recipe, (height, width))
    assert torch.allclose(returned, point, atol=1e-9)


@given(recipes, sizes, sizes)
def test_the_prepared_image_shows_the_image_s_centre_unless_it_is_padded(
    recipe: Preprocessing, height: int, width: int
) -> None:
    assume(recipe.resize != "pad")
    centre = torch.tensor([width / 2, height / 2], dtype=torch.float64)

    prepared_centre = to_prepared_pixels(centre, recipe, (height, width))

    canvas_height, canvas_width = recipe.placement((height, width)).canvas
    canvas_centre = torch.tensor([canvas_width / 2, canvas_height / 2], dtype=torch.float64)
    # an odd pixel that is cropped is cropped at one end
    assert (prepared_centre - canvas_centre).abs().max() < 0.5 + 1e-9


# views


@given(views_that_move, st.integers(1, 6), st.integers(1, 6))
def test_a_view_is_undone_to_the_bit(view: View, height: int, width: int) -> None:
    views = Views([view])
    image = torch.arange(2.0 * height * width).reshape(2, height, width)

    moved = views.place(image, 0)

    assert torch.equal(views.undo(moved, 0), image)


@given(views_that_move, st.integers(1, 6), st.integers(1, 6))
def test_vectors_of_a_view_are_undone_to_the_bit(view: View, height: int, width: int) -> None:
    views = Views([view])
    vectors = torch.arange(3.0 * height * width).reshape(3, height, width)

    moved = views.place_vectors(vectors, 0)

    assert torch.equal(views.undo_vectors(moved, 0), vectors)


@given(views_that_move, st.integers(2, 6), st.integers(2, 6))
def test_vectors_turn_as_the_slopes_of_the_image_do(view: View, height: int, width: int) -> None:
    """The slope of a moved image is the moved slope of the image, at every pixel of a plane."""
    views = Views([view])
    rows = torch.arange(height).reshape(-1, 1)
    cols = torch.arange(width)
    plane = 2.0 * cols + 5.0 * rows  # rises by 2 to the right and by 5 downwards
    slopes = torch.tensor([2.0, 5.0, 1.0]).reshape(3, 1, 1).expand(3, height, width)

    moved_plane = views.place(plane, 0)
    moved_slopes = views.place_vectors(slopes, 0)

    slope_to_the_right = moved_plane[0, 1] - moved_plane[0, 0]
    slope_downwards = moved_plane[1, 0] - moved_plane[0, 0]
    assert moved_slopes[:, 0, 0].tolist() == [slope_to_the_right, slope_downwards, 1.0]
