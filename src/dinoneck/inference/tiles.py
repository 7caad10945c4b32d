"""Views and tiles of an image: test-time augmentation, tiles that cover a large image exactly, and the way back."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from dinoneck.codec import normal
from dinoneck.data.preprocessing import Preprocessing
from dinoneck.errors import ConfigError, ShapeError
from dinoneck.grid import GridSize, TokenGrid, patch_pair
from dinoneck.heads.head import recompute_derived
from dinoneck.inference.results import GATE, BatchPredictions, check_finite
from dinoneck.tasks import Task


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
        tile: (height, width) in pixels of the image, or one number for both. A tile is to show as much
            ground as one image of the training did: it is brought to the heads' size as that was.
        overlap: how far neighbours overlap at least: an int in the same pixels, or a float, the share of a tile.

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
            raise ConfigError(f"tile is {self.tile}; expected pixels: one positive integer, or (height, width)")
        most = min(self.tile) if isinstance(self.overlap, int) else 1.0
        if not 0 <= self.overlap < most:
            raise ConfigError(
                f"overlap is {self.overlap}; expected 0 or more and less than {most}: an int is pixels of the tile's "
                f"{self.tile}, a float a share of it"
            )

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
        if recipe.size is not None and recipe.resize != "stretch":
            ratios = [own / side for own, side in zip(recipe.size, self.tile, strict=True)]
            if not math.isclose(*ratios, rel_tol=0.01):
                width = round(self.tile[0] * recipe.size[1] / recipe.size[0])
                raise ConfigError(
                    f"tile is {self.tile} px, the heads' images are {recipe.size} px (height, width) and "
                    f"resize={recipe.resize!r} keeps proportions; pass a tile of the same, such as "
                    f"{(self.tile[0], width)}"
                )
        for length, overlap in zip(*self._lengths(recipe), strict=True):
            if overlap >= length:
                raise ConfigError(
                    f"overlap is {self.overlap!r}: {overlap} of the {length} patches of a tile, so that tiles would "
                    "not move on; choose less"
                )

    def fits(self, image_size: tuple[int, int]) -> bool:
        """Whether an image of (height, width) pixels needs no cutting."""
        return all(side <= limit for side, limit in zip(image_size, self.tile, strict=True))

    def recipe(self, image_size: tuple[int, int], recipe: Preprocessing) -> Preprocessing:
        """Return how an image of (height, width) pixels is prepared as a whole, before it is cut.

        An image that fits a tile is prepared as without tiles. Heads with a size of their own: a larger image is
        resampled by the scale that brings a tile to that size, rounded to whole patches (so that every pixel counts,
        by at most half a patch in all). Heads without: it keeps its own size, and ``resize`` of the recipe decides what
        becomes of a remainder.
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

    def axes(self, grid: GridSize, recipe: Preprocessing) -> tuple[TileAxis, TileAxis]:
        """Return where tiles lie on the patch grid of a prepared image; ``recipe`` is the heads'."""
        lengths, overlaps = self._lengths(recipe)
        rows, cols = (
            TileAxis(total, min(length, total), _starts(total, length, overlap))
            for total, length, overlap in zip(grid, lengths, overlaps, strict=True)
        )
        return rows, cols

    def _lengths(self, recipe: Preprocessing) -> tuple[tuple[int, int], tuple[int, int]]:
        """(rows, cols) of a tile, and of its overlap, in patches."""
        canvas = recipe.placement(recipe.size or self.tile).canvas
        lengths = TokenGrid(recipe.patch_size).size(canvas)
        shares = [self.overlap / side if isinstance(self.overlap, int) else self.overlap for side in self.tile]
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


class Assembly:
    """Collects the predictions of an image's tiles.

    The weights of the tiles that show a cell add up to one, so that a sum over the blended map counts every cell
    once. Sums are kept in float64.

    Args:
        rows: the tiles' rows on the image's patch grid.
        cols: their columns.
        tasks: what the heads predict.
        by_cells: names of the tasks whose value is the mean (densities that add up: the sum) of their map.
    """

    def __init__(self, rows: TileAxis, cols: TileAxis, tasks: Sequence[Task], by_cells: Collection[str]) -> None:
        self.rows, self.cols, self.tasks, self.by_cells = rows, cols, tasks, by_cells
        self.places = [(i, j) for i in range(len(rows.starts)) for j in range(len(cols.starts))]
        self._windows: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
        self._values: dict[str, Tensor] = {}
        self._maps: dict[str, Tensor] = {}

    def cut(self, images: Tensor, places: Sequence[tuple[int, int]]) -> Tensor:
        """Return the tiles (T, C, h, w) at these places of a prepared image (1, C, H, W)."""
        down, across = images.shape[-2] // self.rows.total, images.shape[-1] // self.cols.total
        tiles = []
        for i, j in places:
            top, left = self.rows.starts[i] * down, self.cols.starts[j] * across
            tiles.append(images[0, :, top : top + self.rows.length * down, left : left + self.cols.length * across])
        return torch.stack(tiles)

    def add(self, places: Sequence[tuple[int, int]], predictions: BatchPredictions) -> None:
        """Take the predictions for the tiles at these places.

        Raises:
            DataError: if a value is not finite.
            ShapeError: if a map has no whole number of cells per patch.
        """
        check_finite(predictions.values)
        down, across = self._weights(1, 1)
        area = self.rows.total * self.cols.total
        for number, (i, j) in enumerate(places):
            share = down[i].sum() * across[j].sum() / area  # of the image, every cell counted once
            for name, value in predictions.values.items():
                self._values[name] = self._values.get(name, 0.0) + share * value[number].double()
            for name, picture in predictions.maps.items():
                self._draw(name, picture[number], i, j)

    def whole(self) -> BatchPredictions:
        """Return the image's predictions, a batch of one."""
        exact = recompute_derived(self.tasks, {task.name: self._value(task)[None] for task in self.tasks})
        values = {name: value.float() for name, value in exact.items()}
        shares = {name: picture / picture.sum() if name == GATE else picture for name, picture in self._maps.items()}
        return BatchPredictions(values, {name: picture[None].float() for name, picture in shares.items()})

    def _value(self, task: Task) -> Tensor:
        if task.name not in self.by_cells:
            return self._values[task.name]
        cells = self._maps[task.name]
        adds_up = task.kind == "density" and task.aggregate == "sum"
        value = cells.sum(dim=(1, 2)) if adds_up else cells.mean(dim=(1, 2))
        return task.clamp(value)

    def _draw(self, name: str, picture: Tensor, i: int, j: int) -> None:
        """Add a tile's map (dim, rows, cols) to the image's, weighted."""
        finer = self._finer(name, picture)
        down, across = self._weights(*finer)
        if name not in self._maps:
            size = (len(picture), self.rows.total * finer[0], self.cols.total * finer[1])
            self._maps[name] = torch.zeros(size, dtype=torch.float64)
        top, left = self.rows.starts[i] * finer[0], self.cols.starts[j] * finer[1]
        place = self._maps[name][:, top : top + picture.shape[1], left : left + picture.shape[2]]
        place += down[i][:, None] * across[j] * picture.double()

    def _finer(self, name: str, picture: Tensor) -> tuple[int, int]:
        """Cells of a map per patch, down and across."""
        (rows, rows_left), (cols, cols_left) = (
            divmod(picture.shape[1], self.rows.length),
            divmod(picture.shape[2], self.cols.length),
        )
        if rows_left or cols_left or not rows or not cols:
            raise ShapeError(
                f"the map of {name!r} has {picture.shape[1]}x{picture.shape[2]} cells for a tile of "
                f"{self.rows.length}x{self.cols.length} patches; tiles are put together from whole cells per patch. "
                "Predict without tile=, or with a head whose finest map is as fine as the patches or finer"
            )
        return rows, cols

    def _weights(self, down: int, across: int) -> tuple[Tensor, Tensor]:
        if (down, across) not in self._windows:
            self._windows[down, across] = self.rows.windows(down), self.cols.windows(across)
        return self._windows[down, across]


TTA = Literal["none", "flip4", "d6"]


@dataclass(frozen=True)
class View:
    """A flip followed by a rotation, exact on pixels and cells.

    Attributes:
        name: for people.
        flip: axes flipped first: -1 left-right, -2 up-down.
        turns: quarter turns counter-clockwise after that.
    """

    name: str
    flip: tuple[int, ...] = ()
    turns: int = 0

    def apply(self, images: Tensor) -> Tensor:
        """Return this view of images (B, C, H, W); a quarter turn swaps H and W."""
        return torch.rot90(images.flip(self.flip), self.turns, dims=(-2, -1))

    def undo(self, maps: Tensor) -> Tensor:
        """Bring maps (B, C, rows, cols) of the view back to the original orientation."""
        return torch.rot90(maps, -self.turns, dims=(-2, -1)).flip(self.flip)


ORIGINAL = View("original")
_FLIPS = (ORIGINAL, View("hflip", (-1,)), View("vflip", (-2,)), View("hvflip", (-2, -1)))
VIEWS: dict[str, tuple[View, ...]] = {
    "none": (ORIGINAL,),
    "flip4": _FLIPS,
    "d6": (*_FLIPS, View("rot90", turns=1), View("rot270", turns=3)),
}
"""The views behind each value of ``tta``: none, the four flips, and those with both quarter turns."""
