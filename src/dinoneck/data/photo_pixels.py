"""Between pixels of the image that a backbone sees and pixels of the photo it was prepared from."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dinoneck.data.decoding import Photo, photo_size
from dinoneck.data.photos import Preprocessing
from dinoneck.data.resizing import fitted_size
from dinoneck.errors import DataError, ShapeError
from dinoneck.grid import TokenGrid


def to_photo_pixels(xy: Tensor, preprocess: Preprocessing, photo: Photo | Sequence[int]) -> Tensor:
    """Bring points of a prepared image home: where in the photo is what the backbone saw there?

    Args:
        xy: points (x, y) in pixels of the prepared image; (0, 0) is the outer corner of its first pixel.
        preprocess: how the photo was prepared.
        photo: the photo, or its (height, width) in pixels when upright.

    Returns:
        The points in pixels of the upright photo, of xy's dtype; those of padding lie outside of it.

    Shape:
        (..., 2) -> (..., 2).

    Raises:
        ShapeError: if the last axis has another length than 2.
        DataError: if points are integers, or the photo is none.
        GridError: if the patch does not divide the size and the policy is ``error``.

    Examples:
        >>> recipe = Preprocessing(16, size=(32, 64), fit="crop")
        >>> to_photo_pixels(torch.tensor([[0.0, 0.0], [64.0, 32.0]]), recipe, (120, 160)).tolist()
        [[0.0, 20.0], [160.0, 100.0]]
    """
    scale, offset = _map(_checked(xy), preprocess, photo)
    return (xy - offset) / scale


def to_prepared_pixels(xy: Tensor, preprocess: Preprocessing, photo: Photo | Sequence[int]) -> Tensor:
    """Bring points of a photo to the prepared image; the inverse of :func:`to_photo_pixels`, with its errors.

    Args:
        xy: points (x, y) in pixels of the upright photo.
        preprocess: how the photo is prepared.
        photo: the photo, or its (height, width) in pixels when upright.

    Shape:
        (..., 2) -> (..., 2).

    Examples:
        >>> recipe = Preprocessing(16, size=(32, 64), fit="pad")
        >>> to_prepared_pixels(torch.tensor([160.0, 120.0]), recipe, (120, 160)).round(decimals=3).tolist()
        [43.0, 32.0]
    """
    scale, offset = _map(_checked(xy), preprocess, photo)
    return xy * scale + offset


def _checked(xy: Tensor) -> Tensor:
    if not xy.ndim or xy.shape[-1] != 2:
        raise ShapeError(f"points have shape {tuple(xy.shape)}; expected (..., 2): x, y")
    if not xy.is_floating_point():
        raise DataError(f"points are {xy.dtype}; expected floating-point pixels, which scaling does not round")
    return xy


def _map(xy: Tensor, recipe: Preprocessing, photo: Photo | Sequence[int]) -> tuple[Tensor, Tensor]:
    """(x, y) scale and offset: prepared = photo * scale + offset."""
    height, width = _size_of(photo)
    resized, (top, left), seen = (height, width), (0, 0), (height, width)
    if recipe.size is not None:
        resized, (top, left) = fitted_size((height, width), recipe.size, recipe.fit)
        seen = resized if recipe.fit == "keep" else recipe.size
    blank = torch.empty(1, 1, *seen, device="meta")  # the grid's share, without pixels
    grid = TokenGrid(recipe.patch_size, recipe.policy).prepare(blank)
    scale = (grid.scale[0] * resized[1] / width, grid.scale[1] * resized[0] / height)
    offset = (grid.offset[0] - grid.scale[0] * left, grid.offset[1] - grid.scale[1] * top)
    return xy.new_tensor(scale), xy.new_tensor(offset)


def _size_of(photo: Photo | Sequence[int]) -> tuple[int, int]:
    if not isinstance(photo, Sequence) or isinstance(photo, str):
        return photo_size(photo)
    if len(photo) != 2 or not all(isinstance(side, int) and side > 0 for side in photo):
        raise DataError(f"the photo's size is {tuple(photo)}; expected (height, width) in pixels, each positive")
    return photo[0], photo[1]
