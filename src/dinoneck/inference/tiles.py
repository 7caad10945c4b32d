"""Tiles that cover a large image exactly, and the outputs of its tiles put together."""

from __future__ import annotations

import functools
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self, cast

import torch
from torch import Tensor

from dinoneck.codec import normal
from dinoneck.errors import ConfigError, DataError, ShapeError
from dinoneck.grid import GridSize, TokenGrid, patch_pair
from dinoneck.heads.outputs import HeadOutputs
from dinoneck.images.preprocessing import Preprocessing
from dinoneck.images.recipe import Placement, Size
from dinoneck.tasks import GATE, MAP, Task

ROUNDING = 1e-9  # 0.3 * 10 is 3, despite the last bit
_SAME_PROPORTIONS = 0.01  # a tile of whole pixels rarely has the proportions of the heads' size


@dataclass(frozen=True)
class TrainedBoxes:
    """The boxes of a training, as the head file keeps them for predictions in tiles.

    Attributes:
        longest_box: the longest side of a box, in pixels of its image; None = it is unknown.
        tile: (height, width) of the tiles that the images were cut into; None = they were not.
        overlap: pixels that these tiles shared at least, where the training stated them.
    """

    longest_box: float | None
    tile: tuple[int, int] | None = None
    overlap: int | None = None

    @classmethod
    def from_record(cls, training: Mapping[str, Any] | None) -> Self | None:
        """Return what the entry ``training`` of a head file states; None if it states neither box nor tile."""
        if training is None:
            return None
        longest_box = training.get("longest_box")
        tile = training.get("tile")
        if longest_box is None and tile is None:
            return None
        return cls(
            longest_box=longest_box,
            tile=None if tile is None else (tile[0], tile[1]),
            overlap=training.get("overlap"),
        )

    def record(self) -> dict[str, Any]:
        """Return the entries of ``training`` that :meth:`from_record` reads; those that are None are left out."""
        record: dict[str, Any] = {}
        if self.longest_box is not None:
            record["longest_box"] = self.longest_box
        if self.tile is not None:
            record["tile"] = list(self.tile)
        if self.overlap is not None:
            record["overlap"] = self.overlap
        return record


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
    length = axis.length * finer
    cells = torch.arange(length, dtype=torch.float64)
    ramp = torch.minimum(cells + 0.5, length - cells - 0.5)
    sums = torch.zeros(axis.total * finer, dtype=torch.float64)
    for start in axis.starts:
        sums[start * finer : start * finer + length] += ramp
    weights = []
    for start in axis.starts:
        weights.append(ramp / sums[start * finer : start * finer + length])
    return torch.stack(weights)


@dataclass(frozen=True)
class Tiling:
    """How images larger than a tile are cut.

    Args:
        tile: (height, width) in pixels of the image, or one number for both. A tile is to show as
            much ground as one image of the training did: it is brought to the heads' size as that
            was.
        stated_overlap: how far neighbours overlap at least, as the caller states it: an int in the
            same pixels, or a float, the share of a tile.
        longest_box: the longest side of an object, in the same pixels: of tiles for objects,
            neighbours overlap by as much too, up to half a tile, so that the object is whole in one
            of them; None = unknown. :meth:`overlap_px` is the larger of both.

    Raises:
        ConfigError: if a value is out of range.
    """

    tile: tuple[int, int]
    stated_overlap: int | float = 0
    longest_box: float | None = None

    def __post_init__(self) -> None:
        tile = self.tile if isinstance(self.tile, Sequence) else (self.tile, self.tile)
        object.__setattr__(self, "tile", normal(tuple[int, int], tile, "tile"))
        overlap = normal(int | float, self.stated_overlap, "overlap")
        object.__setattr__(self, "stated_overlap", overlap)
        if min(self.tile) < 1:
            raise ConfigError(
                f"tile is {self.tile}; expected pixels: one positive integer, or (height, width)"
            )
        if isinstance(overlap, int) and not 0 <= overlap < min(self.tile):
            raise ConfigError(
                f"overlap is {overlap} px; expected 0 or more, and less than the tile's "
                f"{min(self.tile)} px"
            )
        if isinstance(overlap, float) and not 0.0 <= overlap < 1.0:
            raise ConfigError(
                f"overlap is {overlap}; a float is a share of the tile, 0 or more and below 1 "
                "(an int is pixels)"
            )

    def overlap_px(self, side: int) -> int:
        """Return by how many pixels neighbours for objects overlap at least, along a side of a tile.

        Args:
            side: of the tile, in pixels.

        Raises:
            ConfigError: if it is as long as the side, so that tiles would not move on.
        """
        if isinstance(self.stated_overlap, int):
            overlap = self.stated_overlap
        else:
            overlap = math.ceil(self.stated_overlap * side - ROUNDING)
        if self.longest_box is not None:
            # at most half: the number of tiles grows by (1 - share)^-2, and one long box would make
            # thousands
            overlap = max(overlap, min(math.ceil(self.longest_box), side // 2))
        if overlap >= side:
            raise ConfigError(
                f"overlap is {self.stated_overlap!r}, {overlap} of the {side} pixels of a tile, so "
                "that tiles would not move on; choose less, or larger tiles"
            )
        return overlap

    def check(self, preprocess: Preprocessing) -> None:
        """Refuse a tile that does not fit how the heads' images are prepared.

        Raises:
            ConfigError: saying what would.
        """
        if preprocess.size is None:
            self._check_whole_patches(preprocess)
        elif preprocess.resize != "stretch":
            self._check_proportions(preprocess, preprocess.size)
        lengths = self._lengths(preprocess)
        overlaps = self._overlaps(preprocess)
        for length, overlap in zip(lengths, overlaps, strict=True):
            if overlap >= length:
                raise ConfigError(
                    f"overlap is {self.stated_overlap!r}, rounded up to {overlap} of the {length} patches "
                    "of a tile, so that tiles would not move on; choose less, or larger tiles"
                )

    def check_shown(self, image_size: Size, preprocess: Preprocessing) -> None:
        """Refuse an image whose tiles would lose their sides as they are prepared, with what lies there.

        An image that is shorter than a tile on one side has tiles of other proportions.

        Raises:
            DataError: naming both sizes.
        """
        if preprocess.size is None or preprocess.resize != "crop":
            return
        height = min(image_size[0], self.tile[0])
        width = min(image_size[1], self.tile[1])
        shown_width = height * preprocess.size[1] / preprocess.size[0]
        if not math.isclose(width, shown_width, rel_tol=_SAME_PROPORTIONS):
            raise DataError(
                f"an image is {image_size[0]} x {image_size[1]} (height x width), so that its tiles "
                f"are {height} x {width} in the place of {self.tile[0]} x {self.tile[1]}, and "
                "resize='crop' would cut off what has other proportions; choose a tile that fits into "
                "the image, or predict such images without tiles"
            )

    def _check_whole_patches(self, preprocess: Preprocessing) -> None:
        patch = patch_pair(preprocess.patch_size)
        nearest = []
        for side, patch_side in zip(self.tile, patch, strict=True):
            nearest.append(max(1, round(side / patch_side)) * patch_side)
        if any(side % patch_side for side, patch_side in zip(self.tile, patch, strict=True)):
            raise ConfigError(
                f"tile is {self.tile} px (height, width) and the patch {patch} px, which does not "
                f"divide it; pass tile={tuple(nearest)}"
            )

    def _check_proportions(self, preprocess: Preprocessing, size: Size) -> None:
        width = self.tile[0] * size[1] / size[0]
        if not math.isclose(width, self.tile[1], rel_tol=_SAME_PROPORTIONS):
            raise ConfigError(
                f"tile is {self.tile} px, the heads' images are {size} px (height, "
                f"width) and resize={preprocess.resize!r} keeps proportions; pass such as "
                f"tile={(self.tile[0], round(width))}"
            )

    def fits(self, image_size: Size) -> bool:
        """Whether an image of (height, width) pixels needs no cutting."""
        return image_size[0] <= self.tile[0] and image_size[1] <= self.tile[1]

    def recipe(self, image_size: Size, preprocess: Preprocessing) -> Preprocessing:
        """Return how an image of (height, width) pixels is prepared as a whole, before it is cut.

        An image that fits a tile is prepared as without tiles. For heads with a size of their own,
        a larger image is resampled by the scale that brings a tile to that size. Its sides are
        rounded to whole patches, a half to the even number, so that every pixel counts; this
        changes a side by at most half a patch. For heads without a size it keeps its own, and
        ``resize`` of the recipe decides what becomes of a remainder of the patch. ``keep``, the
        default without a size, raises a GridError when the image is prepared; ``stretch``, ``crop``
        and ``pad`` take any image.
        """
        if preprocess.size is None or self.fits(image_size):
            return preprocess
        lengths = self._lengths(preprocess)
        patch = patch_pair(preprocess.patch_size)
        sides = []
        for axis in range(2):
            num_patches = round(image_size[axis] * lengths[axis] / self.tile[axis])
            sides.append(max(1, num_patches) * patch[axis])
        height, width = sides
        return preprocess.changed(size=(height, width), resize="stretch", pad_to="corner")

    def axes(self, grid: GridSize, preprocess: Preprocessing) -> list[TileAxis]:
        """Return where tiles lie on the patch grid of a prepared image, along rows and columns."""
        lengths = self._lengths(preprocess)
        overlaps = self._overlaps(preprocess)
        axes = []
        for total, length, overlap in zip(grid, lengths, overlaps, strict=True):
            starts = tile_starts(total=total, length=length, overlap=overlap)
            axes.append(TileAxis(total=total, length=min(length, total), starts=starts))
        return axes

    def _lengths(self, preprocess: Preprocessing) -> GridSize:
        """(rows, cols) of a tile, in patches."""
        canvas = preprocess.placement(preprocess.size or self.tile).canvas
        return TokenGrid(preprocess.patch_size).size(canvas)

    def _overlaps(self, preprocess: Preprocessing) -> list[int]:
        """The stated overlap of tiles along rows and columns, in patches."""
        overlaps = []
        for side, length in zip(self.tile, self._lengths(preprocess), strict=True):
            share = self.stated_overlap
            if isinstance(share, int):
                share = share / side
            overlaps.append(math.ceil(share * length - ROUNDING))
        return overlaps


def tiling_of(tile: int | tuple[int, int] | None, overlap: int | float | None) -> Tiling | None:
    """Return how images are cut into tiles of a size; None: they are not.

    Args:
        tile: (height, width) in pixels of the image, or one number for both; None: no tiles.
        overlap: by how much tiles overlap at least; None: 0.

    Raises:
        ConfigError: for an overlap without tiles, and values that are out of range.
    """
    if tile is not None:
        return Tiling(cast("tuple[int, int]", tile), 0 if overlap is None else overlap)
    if overlap:
        raise ConfigError(f"overlap is {overlap!r}, but tile is None; give the size of a tile")
    return None


def tile_starts(total: int, length: int, overlap: int) -> tuple[int, ...]:
    """Return evenly spread starts of as few tiles as cover ``total`` patches or pixels with at least this overlap."""
    if total <= length:
        return (0,)
    num_steps = math.ceil((total - length) / (length - overlap))
    last_start = total - length
    starts = []
    for step in range(num_steps + 1):
        # the nearest integer to step / num_steps * last_start
        starts.append((2 * step * last_start + num_steps) // (2 * num_steps))
    return tuple(starts)


def tile_positions(rows: TileAxis, cols: TileAxis) -> list[tuple[int, int]]:
    """Return the (row, column) of all tiles: which of the starts of both axes they have."""
    positions = []
    for row in range(len(rows.starts)):
        for col in range(len(cols.starts)):
            positions.append((row, col))
    return positions


def cut_tiles(
    image: Tensor, rows: TileAxis, cols: TileAxis, positions: Sequence[tuple[int, int]]
) -> Tensor:
    """Return the tiles (T, C, h, w) at some positions of a prepared image (1, C, H, W)."""
    patch_height = image.shape[-2] // rows.total
    patch_width = image.shape[-1] // cols.total
    height = rows.length * patch_height
    width = cols.length * patch_width
    tiles = []
    for row, col in positions:
        top = rows.starts[row] * patch_height
        left = cols.starts[col] * patch_width
        tiles.append(image[0, :, top : top + height, left : left + width])
    return torch.stack(tiles)


class Assembly:
    """The outputs of one head for the tiles of an image, put together in float64.

    Every tile counts by the area that it stands for. The weights of the tiles that show a cell add
    up to one, so that a sum over the blended map counts every cell once.

    Args:
        rows: the tiles' rows on the image's patch grid.
        cols: their columns.
    """

    def __init__(self, rows: TileAxis, cols: TileAxis) -> None:
        self.rows = rows
        self.cols = cols
        self._values: dict[str, Tensor] = {}  # (dim,)
        self._maps: dict[str, Tensor] = {}  # (dim, rows, cols)
        self._shown_maps: dict[str, Tensor] | None = None  # as maps, of HeadOutputs.shown_maps
        self._gate: Tensor | None = None  # (rows, cols)

    def add(self, positions: Sequence[tuple[int, int]], outputs: HeadOutputs) -> None:
        """Take the outputs for the tiles at some positions; not those of the members of an ensemble.

        Raises:
            ShapeError: if a map has no whole number of cells per patch.
        """
        for i, (row, col) in enumerate(positions):
            share = self._share_of_area(row, col)
            for name, values in outputs.values.items():
                self._values[name] = self._values.get(name, 0.0) + share * values[i].double()
            self._draw_maps(self._maps, outputs.maps, i, row, col)
            if outputs.shown_maps is not None:
                if self._shown_maps is None:
                    self._shown_maps = {}
                self._draw_maps(self._shown_maps, outputs.shown_maps, i, row, col)
            if outputs.gate is not None:
                self._gate = self._draw(self._gate, outputs.gate[i].double(), row, col, GATE)

    def outputs(
        self, tasks: Sequence[Task], by_cells: Collection[str], placement: Placement
    ) -> HeadOutputs:
        """Return the outputs for the whole image, as a batch of one in float32.

        Args:
            tasks: of the head.
            by_cells: names of the tasks whose value is the sum or mean of their map.
            placement: of the image on its canvas: cells of padding do not count where the value of
                a task that is a map is the mean of it.

        Raises:
            ConfigError: if the head gives no map of a task in ``by_cells``.
        """
        values = dict(self._values)
        for task in tasks:
            if task.name not in by_cells:
                continue
            if task.name not in self._maps:
                raise ConfigError(
                    f"the head gives no map of {task.name!r}, and in tiles its value is the sum or "
                    f"mean of the map; return it from forward as '{task.name}{MAP}', or predict "
                    "without tile="
                )
            cells = self._maps[task.name]
            if task.is_map:
                shown_rows, shown_cols = placement.shown_cells(cells.shape[1:])
                cells = cells[:, shown_rows, shown_cols]
            adds_up = task.kind == "density" and task.aggregate == "sum"
            value = cells.sum(dim=(1, 2)) if adds_up else cells.mean(dim=(1, 2))
            values[task.name] = task.clamp(value)
        gate = None if self._gate is None else self._gate / self._gate.sum()
        shown_maps = None
        if self._shown_maps is not None:
            shown_maps = _with_unit_vectors(self._shown_maps, tasks)
        maps = _with_unit_vectors(self._maps, tasks)
        whole = HeadOutputs(values=values, maps=maps, shown_maps=shown_maps, gate=gate)
        return whole.map_tensors(lambda tensor: tensor[None].float())

    def _share_of_area(self, row: int, col: int) -> Tensor:
        """The share of the image that a tile stands for."""
        row_weight = windows(self.rows)[row].sum()
        col_weight = windows(self.cols)[col].sum()
        return row_weight * col_weight / (self.rows.total * self.cols.total)

    def _draw_maps(
        self,
        drawn_maps: dict[str, Tensor],
        maps: Mapping[str, Tensor],
        i: int,
        row: int,
        col: int,
    ) -> None:
        """Add the maps of the i-th tile of a batch to those of the image."""
        for name, cells in maps.items():
            drawn = drawn_maps.get(name)
            drawn_maps[name] = self._draw(drawn, cells[i].double(), row, col, name)

    def _draw(
        self, drawn: Tensor | None, cells: Tensor, row: int, col: int, task_name: str
    ) -> Tensor:
        """Add a tile's map (..., rows, cols), weighted, to what is drawn of the image's map."""
        height, width = cells.shape[-2:]
        cells_per_row = height // self.rows.length
        cells_per_col = width // self.cols.length
        if (height, width) != (self.rows.length * cells_per_row, self.cols.length * cells_per_col):
            raise ShapeError(
                f"the map of {task_name!r} has {height}x{width} cells for a tile "
                f"of {self.rows.length}x{self.cols.length} patches; tiles are put together from "
                "whole cells per patch. Predict without tile=, or with a head whose finest map is "
                "as fine as the patches or finer"
            )
        if drawn is None:
            size = (self.rows.total * cells_per_row, self.cols.total * cells_per_col)
            drawn = cells.new_zeros(*cells.shape[:-2], *size)
        top = self.rows.starts[row] * cells_per_row
        left = self.cols.starts[col] * cells_per_col
        row_weights = windows(self.rows, cells_per_row)[row]
        col_weights = windows(self.cols, cells_per_col)[col]
        weights = row_weights[:, None] * col_weights
        drawn[..., top : top + height, left : left + width] += weights * cells
        return drawn


def _with_unit_vectors(maps: Mapping[str, Tensor], tasks: Sequence[Task]) -> dict[str, Tensor]:
    """The blended maps (dim, rows, cols); those of surface normals have the length 1."""
    finished = dict(maps)
    for task in tasks:
        if task.name in finished:
            finished[task.name] = task.of_unit_length(finished[task.name])
    return finished
