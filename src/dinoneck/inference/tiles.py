"""Views and tiles of an image: test-time augmentation, and tiles that cover a large image exactly."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from dinoneck.codec import normal
from dinoneck.data.preprocessing import Preprocessing
from dinoneck.data.views import Views
from dinoneck.errors import ConfigError, ShapeError
from dinoneck.grid import GridSize, TokenGrid, patch_pair
from dinoneck.tasks import MAP


class TileAxis(NamedTuple):
    """One axis of an image in patches: ``total`` of them, covered by tiles of ``length`` that begin at ``starts``."""

    total: int
    length: int
    starts: tuple[int, ...]


@functools.lru_cache(maxsize=32)
def windows(axis: TileAxis, finer: int = 1) -> Tensor:
    """Return the weights (tiles, length * finer), float64, of the tiles' cells: 1 in all at every cell.

    A tile's weight falls linearly from its middle to its ends, relative to its neighbours': where
    tiles overlap one fades into the next; where only one is, it has all.

    Args:
        axis: of the image.
        finer: cells per patch along it.
    """
    length, total = axis.length * finer, axis.total * finer
    places = torch.arange(length, dtype=torch.float64)
    ramp = torch.minimum(places + 0.5, length - places - 0.5)
    sums = torch.zeros(total, dtype=torch.float64)
    for start in axis.starts:
        sums[start * finer : start * finer + length] += ramp
    return torch.stack(
        [ramp / sums[start * finer : start * finer + length] for start in axis.starts]
    )


@dataclass(frozen=True)
class Tiling:
    """How images larger than a tile are cut.

    Args:
        tile: (height, width) in pixels of the image, or one number for both. A tile is to show as
            much ground as one image of the training did: it is brought to the heads' size as that
            was.
        overlap: how far neighbours overlap at least: an int in the same pixels, or a float, the
            share of a tile.

    Raises:
        ConfigError: if a value is out of range.
    """

    tile: tuple[int, int]
    overlap: int | float = 0

    def __post_init__(self) -> None:
        tile = self.tile if isinstance(self.tile, Sequence) else (self.tile, self.tile)
        object.__setattr__(self, "tile", normal(tuple[int, int], tile, "tile"))
        object.__setattr__(self, "overlap", normal(int | float, self.overlap, "overlap"))
        if min(self.tile) < 1:
            raise ConfigError(
                f"tile is {self.tile}; expected pixels: one positive integer, or (height, width)"
            )
        if isinstance(self.overlap, int) and not 0 <= self.overlap < min(self.tile):
            raise ConfigError(
                f"overlap is {self.overlap} px; expected 0 or more, and less than the tile's "
                f"{min(self.tile)} px"
            )
        if isinstance(self.overlap, float) and not 0.0 <= self.overlap < 1.0:
            raise ConfigError(
                f"overlap is {self.overlap}; a float is a share of the tile, 0 or more and below 1 "
                "(an int is pixels)"
            )

    def check(self, recipe: Preprocessing) -> None:
        """Refuse a tile that does not fit how the heads' images are prepared.

        Raises:
            ConfigError: saying what would.
        """
        patch = patch_pair(recipe.patch_size)
        if recipe.size is None and any(
            side % own for side, own in zip(self.tile, patch, strict=True)
        ):
            near = tuple(
                max(1, round(side / own)) * own for side, own in zip(self.tile, patch, strict=True)
            )
            raise ConfigError(
                f"tile is {self.tile} px (height, width) and the patch {patch} px, which does not "
                f"divide it; pass tile={near}"
            )
        if recipe.size is not None and recipe.resize != "stretch":
            width = self.tile[0] * recipe.size[1] / recipe.size[0]
            if not math.isclose(width, self.tile[1], rel_tol=0.01):
                raise ConfigError(
                    f"tile is {self.tile} px, the heads' images are {recipe.size} px (height, "
                    f"width) and resize={recipe.resize!r} keeps proportions; pass such as "
                    f"tile={(self.tile[0], round(width))}"
                )
        for length, overlap in zip(*self._lengths(recipe), strict=True):
            if overlap >= length:
                raise ConfigError(
                    f"overlap is {self.overlap!r}, rounded up to {overlap} of the {length} patches "
                    "of a tile, so that tiles would not move on; choose less, or larger tiles"
                )

    def fits(self, image_size: tuple[int, int]) -> bool:
        """Whether an image of (height, width) pixels needs no cutting."""
        return all(side <= limit for side, limit in zip(image_size, self.tile, strict=True))

    def recipe(self, image_size: tuple[int, int], recipe: Preprocessing) -> Preprocessing:
        """Return how an image of (height, width) pixels is prepared as a whole, before it is cut.

        An image that fits a tile is prepared as without tiles. Heads with a size of their own: a
        larger image is resampled by the scale that brings a tile to that size, rounded to whole
        patches (so that every pixel counts, by at most half a patch in all). Heads without: it
        keeps its own size, and ``resize`` of the recipe decides what becomes of a remainder.
        """
        if recipe.size is None or self.fits(image_size):
            return recipe
        lengths, _ = self._lengths(recipe)
        sides = [
            max(1, round(side * length / tile)) * own
            for side, length, tile, own in zip(
                image_size, lengths, self.tile, patch_pair(recipe.patch_size), strict=True
            )
        ]
        return recipe.changed(size=(sides[0], sides[1]), resize="stretch", pad_to="corner")

    def axes(self, grid: GridSize, recipe: Preprocessing) -> list[TileAxis]:
        """Return where tiles lie on the patch grid of a prepared image; ``recipe`` is the heads'."""
        return [
            TileAxis(total, min(length, total), _starts(total, length, overlap))
            for total, length, overlap in zip(grid, *self._lengths(recipe), strict=True)
        ]

    def _lengths(self, recipe: Preprocessing) -> tuple[GridSize, list[int]]:
        """(rows, cols) of a tile, and of its overlap, in patches."""
        lengths = TokenGrid(recipe.patch_size).size(
            recipe.placement(recipe.size or self.tile).canvas
        )
        shares = [
            self.overlap / side if isinstance(self.overlap, int) else self.overlap
            for side in self.tile
        ]
        # 0.3 * 10 is 3, despite the last bit
        return lengths, [
            math.ceil(share * length - 1e-9) for share, length in zip(shares, lengths, strict=True)
        ]


def _starts(total: int, length: int, overlap: int) -> tuple[int, ...]:
    """Evenly spread starts of as few tiles as cover ``total`` cells with at least this overlap."""
    gaps = max(0, math.ceil((total - length) / (length - overlap)))
    return tuple((2 * i * (total - length) + gaps) // max(1, 2 * gaps) for i in range(gaps + 1))


class Assembly:
    """The sums over the tiles of an image, in float64: the mean of values, and whole maps.

    Every tile counts by the area that it stands for. The weights of the tiles that show a cell add
    up to one, so that a sum over the blended map counts every cell once.

    Args:
        rows: the tiles' rows on the image's patch grid.
        cols: their columns.

    Attributes:
        places: (row, column) of every tile.
        sums: name -> (dim,) or (dim, rows, cols).
    """

    def __init__(self, rows: TileAxis, cols: TileAxis) -> None:
        self.rows, self.cols = rows, cols
        self.places = [(i, j) for i in range(len(rows.starts)) for j in range(len(cols.starts))]
        self.sums: dict[Any, Tensor] = {}

    def cut(self, images: Tensor, places: Sequence[tuple[int, int]]) -> Tensor:
        """Return the tiles (T, C, h, w) at these places of a prepared image (1, C, H, W)."""
        down, across = images.shape[-2] // self.rows.total, images.shape[-1] // self.cols.total
        tiles = []
        for i, j in places:
            top, left = self.rows.starts[i] * down, self.cols.starts[j] * across
            tiles.append(
                images[
                    0,
                    :,
                    top : top + self.rows.length * down,
                    left : left + self.cols.length * across,
                ]
            )
        return torch.stack(tiles)

    def add(self, places: Sequence[tuple[int, int]], outputs: Mapping[Any, Tensor]) -> None:
        """Take the outputs for the tiles at these places: values (T, dim) and maps (T, dim, rows, cols).

        Raises:
            ShapeError: if a map has no whole number of cells per patch.
        """
        down, across = windows(self.rows), windows(self.cols)
        for number, (i, j) in enumerate(places):
            share = down[i].sum() * across[j].sum() / (self.rows.total * self.cols.total)
            for name, output in outputs.items():
                if output.ndim == 4:
                    self._draw(name, output[number].double(), i, j)
                else:
                    self.sums[name] = self.sums.get(name, 0.0) + share * output[number].double()

    def _draw(self, name: Any, cells: Tensor, i: int, j: int) -> None:
        """Add a tile's map (dim, rows, cols) to the image's, weighted."""
        down, across = cells.shape[1] // self.rows.length, cells.shape[2] // self.cols.length
        if cells.shape[1:] != (self.rows.length * down, self.cols.length * across):
            task = str(name[-1]).removesuffix(MAP)
            raise ShapeError(
                f"the map of {task!r} has {cells.shape[1]}x{cells.shape[2]} cells for a tile "
                f"of {self.rows.length}x{self.cols.length} patches; tiles are put together from "
                "whole cells per patch. Predict without tile=, or with a head whose finest map is "
                "as fine as the patches or finer"
            )
        size = (len(cells), self.rows.total * down, self.cols.total * across)
        whole = self.sums.setdefault(name, torch.zeros(size, dtype=torch.float64))
        top, left = self.rows.starts[i] * down, self.cols.starts[j] * across
        weights = windows(self.rows, down)[i][:, None] * windows(self.cols, across)[j]
        whole[:, top : top + cells.shape[1], left : left + cells.shape[2]] += weights * cells


TTA = Literal["none", "flip4", "d6"]
VIEWS = {"none": Views.named("none"), "flip4": Views.named("flips4"), "d6": Views.named("d6")}
"""The views behind each value of ``tta``: none, the four flips, and those with both quarter turns."""
