"""What every function of this package refuses: other types, shapes and dtypes, tensors on several devices."""

from __future__ import annotations

import warnings
from numbers import Integral
from typing import Any, get_args

import torch
from torch import Tensor

from dinoneck.errors import ConfigError, DataError, ShapeError

_SAME_ASPECT = 0.03  # 480x640 depth of 968x1296 images differs by 0.004
_UNSIGNED = (torch.uint16, torch.uint32, torch.uint64)


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
    if values.dtype in _UNSIGNED:
        raise ShapeError(f"{name} are {values.dtype}, which torch cannot compare; expected signed ones: {name}.long()")


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


def check_devices(**tensors: Tensor | None) -> None:
    """Refuse tensors on several devices; None counts for nothing.

    Raises:
        ShapeError: naming all of them.
    """
    devices = {name: tensor.device for name, tensor in tensors.items() if tensor is not None}
    if len(set(devices.values())) > 1:
        places = ", ".join(f"{name} on {device}" for name, device in devices.items())
        raise ShapeError(f"{places}; bring them to one device with .to(device)")


def check_dtype(name: str, values: Tensor, weight: Tensor) -> None:
    """Refuse features of another dtype than the weights, outside of autocast.

    Raises:
        ShapeError: naming both.
    """
    if values.dtype != weight.dtype and not torch.is_autocast_enabled(values.device.type):
        raise ShapeError(
            f"the dtype of {name} is {values.dtype}, that of the weights {weight.dtype}; convert one of them "
            "(.to(dtype=...)) or run under autocast"
        )


def check_choice(name: str, value: object, literal: Any) -> None:
    """Refuse a value that is not one of a ``Literal``.

    Raises:
        ConfigError: listing them.
    """
    if value not in get_args(literal):
        raise ConfigError(f"{name} is {value!r}; expected one of {', '.join(get_args(literal))}")


def check_count(name: str, value: object, what: str) -> None:
    """Refuse anything but a whole number, 1 or more.

    Raises:
        ConfigError: naming the value.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise ConfigError(f"{name} is {value!r}; expected a number of {what}, 1 or more")
