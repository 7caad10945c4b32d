"""Where the pixels of an image lie between the cells of a map, as plain numbers.

:mod:`dinoneck.runtime.maps` samples maps there with NumPy, :mod:`dinoneck.inference.resolution` with
torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from dinoneck.images.recipe import ImageRecipe, Size
from dinoneck.patches import patch_pair

Array = np.ndarray[Any, Any]
_NUMBERS_PER_STRIP = 1 << 24  # 64 MiB of float32


class PixelAxis(NamedTuple):
    """Where the pixels of one side of an image lie between the cells of a map.

    Attributes:
        below: int64, index of the cell whose centre lies before the pixel's.
        above: int64, that of the next one; at the border the same.
        share: float32, weight of the cell above, 0 ... 1.
        seen: bool, whether the prepared image shows the pixel, up to the remainder of a patch.
    """

    below: Array
    above: Array
    share: Array
    seen: Array

    @classmethod
    def of(
        cls,
        *,
        pixels: int,
        cells: int,
        shown_cells: slice,
        resized: int,
        canvas: int,
        corner: int,
        patch: int,
    ) -> PixelAxis:
        """Place the pixels of one side.

        Args:
            pixels: of the result.
            cells: of the map, which divide the canvas.
            shown_cells: those that show any pixel of the image.
            resized: pixels of the image on the canvas.
            canvas: pixels of the prepared image.
            corner: where the image begins on the canvas; below 0 if it is cropped.
            patch: pixels of a patch.
        """
        centres = (np.arange(pixels, dtype=np.float64) + 0.5) * resized / pixels + corner
        last_cell = shown_cells.stop - 1
        position = (centres * cells / canvas - 0.5).clip(shown_cells.start, last_cell)
        below = np.floor(position).astype(np.int64)
        return cls(
            below=below,
            above=np.minimum(below + 1, last_cell),
            share=(position - below).astype(np.float32),
            seen=(centres > -patch) & (centres < canvas + patch),
        )

    def part(self, begin: int, end: int) -> PixelAxis:
        """Return some of the pixels."""
        return PixelAxis(
            below=self.below[begin:end],
            above=self.above[begin:end],
            share=self.share[begin:end],
            seen=self.seen[begin:end],
        )


class PixelGrid(NamedTuple):
    """The pixels of an image, or of a strip of it, between the cells of a map."""

    rows: PixelAxis
    cols: PixelAxis

    @classmethod
    def of(
        cls, *, pixels: Size, cells: Sequence[int], size: Size, recipe: ImageRecipe
    ) -> PixelGrid:
        """Place the pixels of an image on a map.

        Args:
            pixels: (height, width) of the result.
            cells: (rows, cols) of the map.
            size: (height, width) of the upright image.
            recipe: how the image was prepared.
        """
        placement = recipe.placement(size)
        shown_cells = placement.shown_cells(cells)
        patch = patch_pair(recipe.patch_size)
        axes = []
        for side in range(2):
            axis = PixelAxis.of(
                pixels=pixels[side],
                cells=cells[side],
                shown_cells=shown_cells[side],
                resized=placement.resized[side],
                canvas=placement.canvas[side],
                corner=placement.corner[side],
                patch=patch[side],
            )
            axes.append(axis)
        rows, cols = axes
        return cls(rows=rows, cols=cols)

    @property
    def unseen(self) -> Array:
        """Which pixels (height, width) lie a patch or more beyond what the prepared image shows."""
        unseen: Array = ~(self.rows.seen[:, None] & self.cols.seen)
        return unseen

    def strips(self, channels: int) -> Iterator[PixelGrid]:
        """Yield the image in strips of rows, so that maps of many channels need little memory."""
        height = len(self.rows.share)
        width = len(self.cols.share)
        rows_per_strip = max(1, _NUMBERS_PER_STRIP // (channels * width))
        for begin in range(0, height, rows_per_strip):
            yield PixelGrid(rows=self.rows.part(begin, begin + rows_per_strip), cols=self.cols)
