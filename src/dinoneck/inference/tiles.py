"""The geometry of tiles: how a large image is cut, on whole patches, so that tiles cover it exactly."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dinoneck.data.preprocessing import Preprocessing
from dinoneck.errors import ConfigError
from dinoneck.grid import GridSize, TokenGrid, patch_pair


class TileAxis(NamedTuple):
    """One axis of an image in patches: ``total`` of them, covered by tiles of ``length`` that begin at ``starts``."""

    total: int
    length: int
    starts: tuple[int, ...]

    def windows(self, finer: int = 1) -> Tensor:
        """Return the weights (tiles, length * finer), float64, of the tiles' cells: 1 in all at every cell.

        A tile's weight falls linearly from its middle to its ends, relative to its neighbours': where tiles overlap
        one fades into the next; where only one is, it has all.

        Args:
            finer: cells per patch along this axis.
        """
        length, total = self.length * finer, self.total * finer
        places = torch.arange(length, dtype=torch.float64)
        ramp = torch.minimum(places + 0.5, length - places - 0.5)
        sums = torch.zeros(total, dtype=torch.float64)
        for start in self.starts:
            sums[start * finer : start * finer + length] += ramp
        return torch.stack([ramp / sums[start * finer : start * finer + length] for start in self.starts])


@dataclass(frozen=True)
class Tiling:
    """How images larger than a tile are cut.

    Args:
        tile: (height, width) in pixels of the image times ``scale``, or one number for both. A tile is to show as much
            ground as one image of the training did: it is brought to the heads' size as that was.
        overlap: how far neighbours overlap at least: an int in the same pixels, or a float, the share of a tile.
        scale: the image's sides are multiplied by it first; 1 = its own resolution.

    Raises:
        ConfigError: if a value is out of range.
    """

    tile: tuple[int, int]
    overlap: int | float = 0
    scale: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "tile", _pair(self.tile))
        if isinstance(self.overlap, bool) or not isinstance(self.overlap, Real):
            raise ConfigError(f"overlap is {self.overlap!r}; expected pixels (an int) or a share of the tile (a float)")
        pixels = isinstance(self.overlap, Integral)
        if pixels and not 0 <= self.overlap < min(self.tile):
            raise ConfigError(f"overlap is {self.overlap} px; expected 0 or more, less than the tile's {self.tile} px")
        if not pixels and not 0.0 <= self.overlap < 1.0:
            raise ConfigError(f"overlap is {self.overlap}; a float is a share of the tile, 0 or more and below 1")
        wrong = isinstance(self.scale, bool) or not isinstance(self.scale, Real)
        if wrong or not 0.0 < self.scale < math.inf:
            raise ConfigError(f"tile_scale is {self.scale!r}; expected a finite number above 0 (1 = the image's own)")

    def check(self, recipe: Preprocessing) -> None:
        """Refuse a tile that does not fit how the heads' images are prepared.

        Raises:
            ConfigError: saying what would.
        """
        patch = patch_pair(recipe.patch_size)
        if recipe.size is None and any(side % own for side, own in zip(self.tile, patch, strict=True)):
            near = tuple(max(1, round(side / own)) * own for side, own in zip(self.tile, patch, strict=True))
            raise ConfigError(
                f"tile is {self.tile} px (height, width) and the patch {patch} px, which does not divide it; "
                f"pass tile={near}"
            )
        if recipe.size is not None and recipe.fit != "stretch":
            ratios = [own / side for own, side in zip(recipe.size, self.tile, strict=True)]
            if not math.isclose(*ratios, rel_tol=0.01):
                width = round(self.tile[0] * recipe.size[1] / recipe.size[0])
                raise ConfigError(
                    f"tile is {self.tile} px, the heads' images are {recipe.size} px (height, width) and "
                    f"fit={recipe.fit!r} keeps proportions; pass a tile of the same, such as {(self.tile[0], width)}"
                )
        for length, overlap in zip(*self._lengths(recipe), strict=True):
            if overlap >= length:
                raise ConfigError(
                    f"overlap is {self.overlap!r}: {overlap} of the {length} patches of a tile, so that tiles would "
                    "not move on; choose less"
                )

    def fits(self, image_size: tuple[int, int]) -> bool:
        """Whether an image of (height, width) pixels needs no cutting."""
        return all(side <= limit for side, limit in zip(self._scaled(image_size), self.tile, strict=True))

    def recipe(self, image_size: tuple[int, int], recipe: Preprocessing) -> Preprocessing:
        """Return how an image of (height, width) pixels is prepared as a whole, before it is cut.

        An image that fits a tile is prepared as without tiles. Heads with a size of their own: a larger image is
        resampled by the scale that brings a tile to that size, rounded to whole patches (so that every pixel counts,
        by at most half a patch in all). Heads without: it keeps its (scaled) size, and the recipe's policy decides what
        becomes of a remainder.
        """
        if recipe.size is not None and self.fits(image_size):
            return recipe
        if recipe.size is None:
            return recipe if self.scale == 1 else recipe.changed(size=self._scaled(image_size), fit="stretch")
        lengths, _ = self._lengths(recipe)
        sides = [
            max(1, round(side * self.scale * length / tile)) * own
            for side, length, tile, own in zip(
                image_size, lengths, self.tile, patch_pair(recipe.patch_size), strict=True
            )
        ]
        return recipe.changed(size=(sides[0], sides[1]), fit="stretch")

    def axes(self, grid: GridSize, recipe: Preprocessing) -> tuple[TileAxis, TileAxis]:
        """Return where tiles lie on the patch grid of a prepared image; ``recipe`` is the heads'."""
        lengths, overlaps = self._lengths(recipe)
        rows, cols = (
            TileAxis(total, min(length, total), _starts(total, length, overlap))
            for total, length, overlap in zip(grid, lengths, overlaps, strict=True)
        )
        return rows, cols

    def _scaled(self, image_size: tuple[int, int]) -> tuple[int, int]:
        height, width = (max(1, round(side * self.scale)) for side in image_size)
        return height, width

    def _lengths(self, recipe: Preprocessing) -> tuple[tuple[int, int], tuple[int, int]]:
        """(rows, cols) of a tile, and of its overlap, in patches."""
        lengths = TokenGrid(recipe.patch_size, recipe.policy).size(recipe.size or self.tile)
        shares = [self.overlap / side if isinstance(self.overlap, Integral) else self.overlap for side in self.tile]
        rows, cols = (
            math.ceil(share * length - 1e-9)  # 0.3 * 10 is 3, despite the last bit
            for share, length in zip(shares, lengths, strict=True)
        )
        return (lengths.rows, lengths.cols), (rows, cols)


def _starts(total: int, length: int, overlap: int) -> tuple[int, ...]:
    """Evenly spread starts of as few tiles as cover ``total`` cells with at least this overlap."""
    if total <= length:
        return (0,)
    gaps = math.ceil((total - length) / (length - overlap))
    return tuple((2 * i * (total - length) + gaps) // (2 * gaps) for i in range(gaps + 1))


def _pair(tile: Any) -> tuple[int, int]:
    sides = list(tile) if isinstance(tile, tuple | list) else [tile, tile]
    if len(sides) != 2 or any(isinstance(s, bool) or not isinstance(s, Integral) or s < 1 for s in sides):
        raise ConfigError(f"tile is {tile!r}; expected pixels: one positive integer, or (height, width)")
    return int(sides[0]), int(sides[1])
