"""What every function of this package refuses: other types, shapes and dtypes."""

from __future__ import annotations

import warnings
from typing import Any, get_args

import torch
from torch import Tensor

from dinoneck.errors import ConfigError, DataError, ShapeError

_SAME_ASPECT = 0.03  # 480x640 depth of 968x1296 images differs by 0.004


def check_tensor(name: str, value: object) -> None:
    """Refuse arrays, lists and None where a tensor is taken.

    Raises:
        ShapeError: naming the value's type.
    """
    if not isinstance(value, Tensor):
        raise ShapeError(f"{name} is a {type(value).__name__}; expected a tensor (torch.from_numpy makes one)")


def check_integers(name: str, values: Tensor, columns: int | None) -> None:
    """Refuse anything but integers (N, columns), or (N,) for None.

    Raises:
        ShapeError: naming shape and dtype.
    """
    check_tensor(name, values)
    wanted = "(N,)" if columns is None else f"(N, {columns})"
    fits = values.ndim == (1 if columns is None else 2) and (columns is None or values.shape[1] == columns)
    if not fits or values.is_floating_point() or values.is_complex() or values.dtype == torch.bool:
        raise ShapeError(f"{name} are {values.dtype} of shape {tuple(values.shape)}; expected integers {wanted}")


def check_index(name: str, values: Tensor, length: int) -> None:
    """Refuse anything but int64 (length,).

    Raises:
        ShapeError: naming shape and dtype.
    """
    check_tensor(name, values)
    if values.dtype != torch.int64 or tuple(values.shape) != (length,):
        raise ShapeError(f"{name} is {values.dtype} {tuple(values.shape)}; expected torch.int64 ({length},)")


def check_finite(points: Tensor) -> None:
    """Refuse points (N, 3) that are not finite.

    Raises:
        DataError: with their number, and the first.
    """
    lost = ~points.isfinite().all(1)
    if lost.any():
        row = int(lost.nonzero()[0])
        raise DataError(
            f"{int(lost.sum())} of {len(points)} points are not finite, the first is points[{row}] = "
            f"{points[row].tolist()}; drop them: points[points.isfinite().all(1)]"
        )


def check_depth_sides(depth: Tensor, size: tuple[int, int]) -> None:
    """Refuse depth (V, rows, cols) that is transposed to images of ``size``; warn of any other aspect.

    Depth may have any size that shows the images' field of view, each axis scaled by itself: another aspect can be
    right. The images' own aspect the other way round comes from exchanged axes.

    Raises:
        ShapeError: naming both sizes.
    """
    (rows, cols), (height, width) = depth.shape[1:], size
    same, turned = (_same_aspect(rows, cols, *sides) for sides in (size, size[::-1]))
    if (rows, cols) != size and ((cols, rows) == size or (turned and not same)):
        raise ShapeError(
            f"depth has {rows}x{cols} px (rows x columns) for images of {height}x{width} px (height x width): it is "
            "transposed, or size is (width, height); pass depth.mT, or Cameras(size=(height, width))"
        )
    if not same:
        warnings.warn(
            f"depth of {rows}x{cols} px has another aspect than the images of {height}x{width} px; expected depth "
            "that shows all of the image: resize it so, or crop both alike (Cameras.crop)",
            stacklevel=3,
        )


def _same_aspect(rows: int, cols: int, height: int, width: int) -> bool:
    """Whether both sizes have one ratio of sides, up to a share and a pixel of each side of the first."""
    return abs(rows * width - cols * height) <= _SAME_ASPECT * rows * width + width + height


def check_choice(name: str, value: object, literal: Any) -> None:
    """Refuse a value that is not one of a ``Literal``.

    Raises:
        ConfigError: listing them.
    """
    if value not in get_args(literal):
        raise ConfigError(f"{name} is {value!r}; expected one of {', '.join(get_args(literal))}")
