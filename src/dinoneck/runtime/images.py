"""Images prepared for an exported file: decoded, resized, cut or padded, and not normalised, in NumPy alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from dinoneck.images.pixels import Picture, read_planes
from dinoneck.images.recipe import ImageRecipe, Placement, Size
from dinoneck.runtime.resampling import blur, resample, to_unit_range

Array = np.ndarray[Any, Any]
RGB = 3


@dataclass(frozen=True)
class PreparedImage:
    """An image as a file takes it.

    Attributes:
        pixels: (3, H, W) float32 in 0 ... 1.
        size: (height, width) of the upright image.
        placement: where it lies on its canvas.
    """

    pixels: Array
    size: Size
    placement: Placement


def prepare(image: Picture, recipe: ImageRecipe) -> PreparedImage:
    """Decode, resize, blur and pad or cut one image, as :class:`dinoneck.data.Preprocessing` does.

    Args:
        image: a path, a PIL image, or an array (H, W, 3) or (H, W).
        recipe: of the file.

    Raises:
        DataError: if the image cannot be read.
        GridError: if it does not come to a size that the patch divides.
    """
    planes = read_planes(image, recipe.bits)
    size = (planes.shape[-2], planes.shape[-1])
    placement = recipe.placement(size)
    pixels = resample(planes, placement.resized, recipe.interpolation)
    if recipe.resize != "pad":
        pixels = _cut(pixels, placement)
    pixels = to_unit_range(pixels).clip(0, 1)  # bicubic overshoots
    pixels = np.broadcast_to(pixels, (RGB, *pixels.shape[1:]))
    if recipe.blur is not None:
        pixels = blur(pixels, recipe.blur)
    if recipe.resize == "pad":
        pixels = _padded(pixels, placement, recipe.mean)
    return PreparedImage(np.ascontiguousarray(pixels, np.float32), size, placement)


def _cut(pixels: Array, placement: Placement) -> Array:
    """The part of the resized image that lies on its canvas."""
    top, left = placement.corner
    height, width = placement.canvas
    return pixels[:, -top : height - top, -left : width - left]


def _padded(pixels: Array, placement: Placement, mean: tuple[float, ...]) -> Array:
    """The image on its canvas, filled up with the mean colour, which the model turns into zeros."""
    colour = np.asarray(mean, np.float32)[:, None, None]
    canvas = np.broadcast_to(colour, (RGB, *placement.canvas)).copy()
    top, left = placement.corner
    height, width = placement.resized
    canvas[:, top : top + height, left : left + width] = pixels
    return canvas
