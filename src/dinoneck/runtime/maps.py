"""Maps in the pixels of an image, and the mean of a map, in NumPy alone.

It is what :mod:`dinoneck.inference.resolution` computes with torch, to rounding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from dinoneck.data.recipe import ImageRecipe, Placement, Size
from dinoneck.patches import patch_pair
from dinoneck.task_facts import SHORTEST_VECTOR, TaskFacts

Array = np.ndarray[Any, Any]
UNSEEN = -1
"""The class of pixels a patch or more beyond what the prepared image shows; their values are NaN."""
_NUMBERS_PER_STRIP = 1 << 24  # 64 MiB of float32


class _Axis(NamedTuple):
    """Where the pixels of one side of an image lie between the cells of a map.

    Attributes:
        below: index of the cell whose centre lies before the pixel's.
        above: that of the next one; at the border the same.
        share: weight of the cell above, 0 ... 1.
        seen: whether the prepared image shows the pixel, up to the remainder of a patch.
    """

    below: Array
    above: Array
    share: Array
    seen: Array


def mean_of_cells(cells: Array, placement: Placement) -> Array:
    """Return means (dim,) of a map (dim, rows, cols) over the cells that show the image."""
    rows, cols = placement.shown_cells(cells.shape[1:])
    mean: Array = cells[:, rows, cols].mean(axis=(1, 2), dtype=np.float64).astype(np.float32)
    return mean


def at_image_size(
    cells: Array,
    task: TaskFacts,
    size: Size,
    recipe: ImageRecipe,
    *,
    probabilities: bool = False,
    pixels: Size | None = None,
) -> Array:
    """Resample a map from the cells of the prepared image to the pixels of the image, bilinearly.

    See :func:`dinoneck.inference.resolution.at_image_size`.

    Args:
        cells: (dim, rows, cols) in original units.
        task: whose map it is.
        size: (height, width) of the upright image.
        recipe: how the image was prepared.
        probabilities: return those of the classes of a segmentation, not the most probable class.
        pixels: (height, width) of the result; None = the image's.

    Returns:
        (dim, height, width) float32; for a segmentation (height, width) int64, class indices.
        Pixels that the prepared image does not show are NaN, or :data:`UNSEEN`.
    """
    values = np.ascontiguousarray(cells, np.float32)
    is_classes = task.kind == "segmentation"
    if is_classes:
        values = np.log(np.maximum(values, np.finfo(np.float32).tiny))
    rows, cols = _axes(pixels or size, values.shape[1:], size, recipe)
    strips = []
    for strip in _strips(rows, len(values) * len(cols.share)):
        sampled = _sample(values, strip, cols)
        if is_classes and probabilities:
            sampled = np.exp(sampled - sampled.max(axis=0))
            sampled /= sampled.sum(axis=0)
        elif is_classes:
            sampled = sampled.argmax(axis=0)
        elif task.is_unit:
            sampled = _unit_vectors(sampled)
        strips.append(sampled)
    resampled = np.concatenate(strips, axis=-2)
    unseen = ~(rows.seen[:, None] & cols.seen)
    if task.kind == "density" and task.aggregate == "sum":
        sampled_total = float(resampled[..., ~unseen].sum(dtype=np.float64))
        total = float(values.sum(dtype=np.float64))
        resampled *= np.float32(total / sampled_total if sampled_total else 0.0)
    resampled[..., unseen] = UNSEEN if is_classes and not probabilities else np.nan
    return resampled


def _unit_vectors(vectors: Array) -> Array:
    """Vectors (3, rows, cols) of length 1; one without a direction is zero, see :func:`dinoneck.tasks.unit_vectors`."""
    squared_length = np.square(vectors).sum(axis=0)
    has_no_direction = squared_length <= SHORTEST_VECTOR**2
    length = np.sqrt(np.where(has_no_direction, 1.0, squared_length))
    units: Array = np.where(has_no_direction, 0.0, vectors / length).astype(vectors.dtype)
    return units


def _axes(
    pixels: Size, cells: Sequence[int], size: Size, recipe: ImageRecipe
) -> tuple[_Axis, _Axis]:
    """The rows and columns of pixels between the cells of a map."""
    placement = recipe.placement(size)
    shown_cells = placement.shown_cells(cells)
    patch = patch_pair(recipe.patch_size)
    axes = []
    for side in range(2):
        resized = placement.resized[side]
        canvas = placement.canvas[side]
        shown = shown_cells[side]
        numbers = np.arange(pixels[side], dtype=np.float64)
        centres = (numbers + 0.5) * resized / pixels[side] + placement.corner[side]
        last_cell = shown.stop - 1
        position = (centres * cells[side] / canvas - 0.5).clip(shown.start, last_cell)
        below = np.floor(position).astype(np.int64)
        axis = _Axis(
            below=below,
            above=np.minimum(below + 1, last_cell),
            share=(position - below).astype(np.float32),
            seen=(centres > -patch[side]) & (centres < canvas + patch[side]),
        )
        axes.append(axis)
    rows, cols = axes
    return rows, cols


def _strips(rows: _Axis, numbers_per_row: int) -> Iterator[_Axis]:
    """Yield the rows in strips, so that maps of many channels need little memory."""
    rows_per_strip = max(1, _NUMBERS_PER_STRIP // numbers_per_row)
    for begin in range(0, len(rows.share), rows_per_strip):
        end = begin + rows_per_strip
        yield _Axis(
            below=rows.below[begin:end],
            above=rows.above[begin:end],
            share=rows.share[begin:end],
            seen=rows.seen[begin:end],
        )


def _sample(maps: Array, rows: _Axis, cols: _Axis) -> Array:
    """Maps (dim, rows, cols) at pixels, (dim, height, width), bilinearly."""
    upper = maps[:, rows.below, :]
    lower = maps[:, rows.above, :]
    lines = upper + (lower - upper) * rows.share[:, None]
    left = lines[:, :, cols.below]
    right = lines[:, :, cols.above]
    sampled: Array = left + (right - left) * cols.share
    return sampled
