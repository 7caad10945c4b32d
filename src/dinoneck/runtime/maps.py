"""Maps in the pixels of an image, and the mean of a map, in NumPy alone.

It is what :mod:`dinoneck.inference.resolution` computes with torch, to rounding, in the same pixels.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dinoneck.images.recipe import ImageRecipe, Placement, Size
from dinoneck.runtime.pixel_grid import PixelGrid
from dinoneck.task_facts import SHORTEST_VECTOR, TaskFacts

Array = np.ndarray[Any, Any]
UNSEEN = -1
"""The class of pixels a patch or more beyond what the prepared image shows; their values are NaN."""


def mean_of_cells(cells: Array, placement: Placement) -> Array:
    """Return means (dim,) of a map (dim, rows, cols) over the cells that show the image."""
    rows, cols = placement.shown_cells(cells.shape[1:])
    mean: Array = cells[:, rows, cols].mean(axis=(1, 2), dtype=np.float64).astype(np.float32)
    return mean


def shown_weights(weights: Array, placement: Placement) -> Array:
    """Return the weights (rows, cols) of the cells that show the image, and 0 for those of padding."""
    rows, cols = placement.shown_cells(weights.shape)
    shown: Array = np.zeros_like(weights)
    shown[rows, cols] = weights[rows, cols]
    return shown


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
    grid = PixelGrid.of(pixels=pixels or size, cells=values.shape[1:], size=size, recipe=recipe)
    strips = []
    for strip in grid.strips(len(values)):
        sampled = _sample(values, strip)
        if is_classes and probabilities:
            sampled = np.exp(sampled - sampled.max(axis=0))
            sampled /= sampled.sum(axis=0)
        elif is_classes:
            sampled = sampled.argmax(axis=0)
        elif task.is_unit:
            sampled = _unit_vectors(sampled)
        strips.append(sampled)
    resampled = np.concatenate(strips, axis=-2)
    unseen = grid.unseen
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


def _sample(maps: Array, grid: PixelGrid) -> Array:
    """Maps (dim, rows, cols) at pixels, (dim, height, width), bilinearly."""
    upper = maps[:, grid.rows.below, :]
    lower = maps[:, grid.rows.above, :]
    lines = upper + (lower - upper) * grid.rows.share[:, None]
    left = lines[:, :, grid.cols.below]
    right = lines[:, :, grid.cols.above]
    sampled: Array = left + (right - left) * grid.cols.share
    return sampled
