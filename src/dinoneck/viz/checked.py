"""Checked numbers for pictures, and how they are written. A tensor is taken without an import of torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from dinoneck.errors import DataError, ShapeError

Floats = np.ndarray[Any, Any]
_EQUAL = 1e-5  # values that differ by less, relative to the largest, differ by rounding only


def numbers(values: Any, name: str, axes: str) -> Floats:
    """Return values as float64, checked.

    Args:
        values: a tensor (of any dtype and device), an array or nested lists.
        name: what the message calls them.
        axes: names of the axes, comma-separated; a number is the length that an axis must have.

    Raises:
        ShapeError: if the shape does not fit, or is empty.
        DataError: if they are not numbers, or not finite.
    """
    try:
        array = np.asarray(from_tensor(values), np.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"{name} are not numbers: {error}") from error
    if not array.size or not _has_axes(array, axes.split(", ")):
        raise ShapeError(f"{name} have shape {array.shape}; expected ({axes}), not empty")
    is_unfit = ~np.isfinite(array)
    if is_unfit.any():
        first = array[is_unfit][0]
        count = int(is_unfit.sum())
        raise DataError(f"{name} hold {first} ({count} of {array.size} values are not finite)")
    return array


def _has_axes(array: Floats, axes: Sequence[str]) -> bool:
    """Whether an array has these axes; an axis that is a number must have this length."""
    if array.ndim != len(axes):
        return False
    for axis, length in zip(axes, array.shape, strict=True):
        if not axis.isalpha() and int(axis) != length:
            return False
    return True


def from_tensor(values: Any) -> Any:
    """Return a tensor of any dtype and device as an array, floats as float64; other values as they are."""
    if not hasattr(values, "is_floating_point"):
        return values
    values = values.detach().cpu()
    return (values.double() if values.is_floating_point() else values).numpy()


def span(values: Sequence[Floats]) -> tuple[float, float]:
    """Return the lowest and the highest value; if they differ by rounding only, a range around them."""
    low = min(float(array.min()) for array in values)
    high = max(float(array.max()) for array in values)
    if high - low <= _EQUAL * max(abs(low), abs(high)):
        half = 0.5 * (abs(low) or 1.0)
        return low - half, high + half
    return low, high


def minus(text: str) -> str:
    """Return a text whose negative numbers have a minus sign instead of a hyphen."""
    return re.sub(r"(?<![^\s(])-(?=\d)", "\N{MINUS SIGN}", text)
