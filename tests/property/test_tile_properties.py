"""Tiles cover an image, fade into each other, and give back what they were cut from."""

from __future__ import annotations

import itertools

import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from dinoneck import Task, TokenGrid
from dinoneck.data import Preprocessing
from dinoneck.heads.outputs import HeadOutputs
from dinoneck.inference.tiles import (
    Assembly,
    TileAxis,
    Tiling,
    cut_tiles,
    tile_positions,
    tile_starts,
    windows,
)


@st.composite
def coverings(draw: st.DrawFn) -> tuple[int, int, int]:
    """How many patches there are, how many a tile has, and by how many neighbours overlap at least."""
    total = draw(st.integers(1, 300))
    length = draw(st.integers(1, 60))
    overlap = draw(st.integers(0, length - 1))
    return total, length, overlap


@st.composite
def tile_axes(draw: st.DrawFn) -> TileAxis:
    """An axis of a few patches in tiles."""
    total = draw(st.integers(1, 12))
    length = min(total, draw(st.integers(1, 6)))
    overlap = draw(st.integers(0, length - 1))
    return TileAxis(total=total, length=length, starts=tile_starts(total, length, overlap))


@given(coverings())
def test_tiles_begin_and_end_with_the_image(covering: tuple[int, int, int]) -> None:
    total, length, overlap = covering

    starts = tile_starts(total, length, overlap)

    assert starts[0] == 0
    assert starts[-1] == max(0, total - length)


@given(coverings())
def test_neighbours_overlap_by_what_was_asked_for(covering: tuple[int, int, int]) -> None:
    total, length, overlap = covering

    starts = tile_starts(total, length, overlap)

    steps = [later - earlier for earlier, later in itertools.pairwise(starts)]
    assert all(1 <= step <= length - overlap for step in steps)


@given(coverings())
def test_tiles_are_as_few_as_cover_the_image(covering: tuple[int, int, int]) -> None:
    total, length, overlap = covering

    num_tiles = len(tile_starts(total, length, overlap))

    # n tiles of this overlap reach as far as length + (n - 1) * (length - overlap)
    reach_of_one_less = length + (num_tiles - 2) * (length - overlap)
    assert num_tiles == 1 or reach_of_one_less < total


@given(coverings())
def test_tiles_are_spread_evenly(covering: tuple[int, int, int]) -> None:
    starts = tile_starts(*covering)

    steps = [later - earlier for earlier, later in itertools.pairwise(starts)]
    assert not steps or max(steps) - min(steps) <= 1


@given(tile_axes(), st.integers(1, 4))
def test_the_weights_of_tiles_add_up_to_one_at_every_cell(axis: TileAxis, finer: int) -> None:
    weights = windows(axis, finer)

    sums = torch.zeros(axis.total * finer, dtype=torch.float64)
    for start, weight in zip(axis.starts, weights, strict=True):
        sums[start * finer : (start + axis.length) * finer] += weight
    assert torch.allclose(sums, torch.ones_like(sums))
    assert (weights > 0).all()


@given(tile_axes(), tile_axes(), st.integers(1, 3))
def test_tiles_show_the_pixels_where_they_lie(rows: TileAxis, cols: TileAxis, patch: int) -> None:
    numbers = torch.arange(rows.total * cols.total * patch * patch)
    image = numbers.reshape(1, 1, rows.total * patch, cols.total * patch)
    positions = tile_positions(rows, cols)

    tiles = cut_tiles(image, rows, cols, positions)

    assert tiles.shape[2:] == (rows.length * patch, cols.length * patch)
    for tile, (row, col) in zip(tiles, positions, strict=True):
        top = rows.starts[row] * patch
        left = cols.starts[col] * patch
        bottom = top + rows.length * patch
        right = left + cols.length * patch
        assert tile[0, 0, 0] == image[0, 0, top, left]
        assert tile[0, -1, -1] == image[0, 0, bottom - 1, right - 1]


def assemble(rows: TileAxis, cols: TileAxis, cells: torch.Tensor, finer: int) -> Assembly:
    """The tiles of a map (rows, cols), finer than the patches, added to an assembly one by one."""
    assembly = Assembly(rows, cols)
    for position in tile_positions(rows, cols):
        tile = cut_tiles(cells[None, None], rows, cols, [position])
        outputs = HeadOutputs(values={"cover": torch.tensor([[3.0]])}, maps={"cover": tile})
        assembly.add([position], outputs)
    return assembly


@given(tile_axes(), tile_axes(), st.integers(1, 3))
def test_tiles_of_a_map_give_the_map_back(rows: TileAxis, cols: TileAxis, finer: int) -> None:
    cells = torch.rand(rows.total * finer, cols.total * finer)
    task = Task("cover")
    placement = Preprocessing(16).placement((rows.total * 16, cols.total * 16))

    outputs = assemble(rows, cols, cells, finer).outputs([task], by_cells=(), placement=placement)

    assert torch.allclose(outputs.maps["cover"][0, 0], cells, atol=1e-6)


@given(tile_axes(), tile_axes())
def test_a_value_that_all_tiles_have_is_that_of_the_image(rows: TileAxis, cols: TileAxis) -> None:
    cells = torch.zeros(rows.total, cols.total)
    task = Task("cover")
    placement = Preprocessing(16).placement((rows.total * 16, cols.total * 16))

    outputs = assemble(rows, cols, cells, 1).outputs([task], by_cells=(), placement=placement)

    assert torch.allclose(outputs.values["cover"], torch.tensor([[3.0]]))


@given(tile_axes(), tile_axes())
def test_a_value_by_cells_counts_every_cell_once(rows: TileAxis, cols: TileAxis) -> None:
    cells = torch.rand(rows.total, cols.total)
    task = Task("cover")
    placement = Preprocessing(16).placement((rows.total * 16, cols.total * 16))

    outputs = assemble(rows, cols, cells, 1).outputs([task], ["cover"], placement)

    assert torch.allclose(outputs.values["cover"], cells.mean().reshape(1, 1), atol=1e-6)


@given(
    st.integers(1, 400),
    st.integers(1, 400),
    st.integers(2, 8),
    st.floats(0, 0.9) | st.integers(0, 31),
)
def test_the_tiles_of_an_image_cover_its_grid(
    height: int, width: int, patches_of_tile: int, overlap: float
) -> None:
    side = 16 * patches_of_tile
    recipe = Preprocessing(16, size=(side, side))
    tiling = Tiling(tile=(side, side), stated_overlap=overlap)
    assume(not isinstance(overlap, int) or overlap < side - 16)
    assume(not isinstance(overlap, float) or overlap * patches_of_tile <= patches_of_tile - 1)
    placement = tiling.recipe((height, width), recipe).placement((height, width))
    grid = TokenGrid(16).size(placement.canvas)

    rows, cols = tiling.axes(grid, recipe)

    for axis, total in zip((rows, cols), grid, strict=True):
        covered = set()
        for start in axis.starts:
            covered.update(range(start, start + axis.length))
        assert covered == set(range(total))
