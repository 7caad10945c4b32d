"""What every function of this package refuses: other types, shapes and dtypes, tensors on several devices."""

from __future__ import annotations

from numbers import Integral
from typing import Any, get_args

import torch
from torch import Tensor

from dinoneck.errors import ConfigError, DataError, ShapeError

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
