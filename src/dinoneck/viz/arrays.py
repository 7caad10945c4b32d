"""Tensors and arrays as finite float64 numbers, or a message that says why not."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from torch import Tensor

from dinoneck.errors import DataError, ShapeError

_Floats = np.ndarray[Any, Any]


def numbers(values: Any, name: str, axes: str, *, missing: bool = False) -> _Floats:
    """Return values as float64, checked.

    Args:
        values: a tensor (of any dtype and device), an array or nested lists.
        name: what the message calls them.
        axes: names of the axes, comma-separated; a number is the length that an axis must have.
        missing: whether NaN stands for a missing value.

    Raises:
        ShapeError: if the shape is another one, or holds nothing.
        DataError: if they are no numbers, or not finite.
    """
    try:
        array = np.asarray(values.detach().cpu().double() if isinstance(values, Tensor) else values, np.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"{name} are no numbers: {error}") from error
    wanted = axes.split(", ")
    fits = array.ndim == len(wanted) and all(
        not axis.isdigit() or int(axis) == side for axis, side in zip(wanted, array.shape, strict=True)
    )
    if not fits or not array.size:
        raise ShapeError(f"{name} have shape {array.shape}; expected ({axes}), not empty")
    unfit = np.isinf(array) if missing else ~np.isfinite(array)
    if unfit.any():
        raise DataError(f"{name} hold {array[unfit][0]} ({int(unfit.sum())} of {array.size} values are not finite)")
    return array


def clipped(values: _Floats, minimum: float | None) -> _Floats:
    """Return a map whose cells below the task's ``minimum`` are at it: no picture shows an impossible value."""
    return values if minimum is None else np.maximum(values, minimum)


def clip_note(maps: Iterable[_Floats], minimum: float | None) -> str:
    """Return what a colour bar states about :func:`clipped` maps; empty where no cell of ``maps`` is below."""
    if minimum is None or not any((values < minimum).any() for values in maps):
        return ""
    return f", clipped at {minimum:g}"
