"""16-bit values of images as shares of their range.

A camera of 12 or 14 bits often stores its numbers unchanged in a file of 16 bits. As shares of
65535 they are almost black. The content cannot tell such a file from a dark scene, so values are
never rescaled by content: an image that uses a part of the range is refused until ``bits`` states
the range.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dinoneck.errors import ConfigError, DataError

Values = np.ndarray[Any, Any]

_FEWEST_BITS = 8  # arrays of 8 bits that were converted to 16
FILE_BITS = 16
FULL = (1 << FILE_BITS) - 1
CAMERA_BITS = (8, 10, 12, 14)
# 14 bits fill a quarter of the range, the most that a camera of fewer than 16 bits can
_FEWEST_LEVELS = 1 << 14
# hot and dead pixels of a sensor are fewer; a bright object that people look for is larger
_OUTLIERS = 0.001
_FEWEST_OUTLIERS = 3  # one pixel, in each of three channels
# an image of fewer values has no outliers
_SMALLEST = 100


def check_bits(bits: int | None) -> None:
    """Check the number of bits that 16-bit images use.

    Raises:
        ConfigError: if it is not None or 8 ... 16.
    """
    if bits is None:
        return
    is_whole = isinstance(bits, int) and not isinstance(bits, bool)
    if not is_whole or not _FEWEST_BITS <= bits <= FILE_BITS:
        raise ConfigError(
            f"bits is {bits!r}; expected {_FEWEST_BITS} ... {FILE_BITS}, the bits that 16-bit "
            "images use, or None"
        )


def scale(values: Values, bits: int | None, name: str, *, white_is_zero: bool = False) -> Values:
    """Return 16-bit values as float32 in 0 ... 1.

    Args:
        values: uint16, any shape.
        bits: ``2**bits - 1`` becomes 1; None is 16, for images that use the whole range.
        name: of the image, for messages.
        white_is_zero: 0 becomes 1, and ``2**bits - 1`` becomes 0.

    Raises:
        DataError: if a value is above ``2**bits - 1``, or without ``bits`` if the image uses a part of
            the range.
    """
    if bits is None:
        check_range(values, name)
    largest = (1 << (bits or FILE_BITS)) - 1
    _check_largest(values, largest, name)
    if white_is_zero:
        values = largest - values
    scaled: Values = values.astype(np.float32) / np.float32(largest)
    return scaled


def may_hold_less(stated_bits: int) -> bool:
    """Whether a file that states so many bits may hold the numbers of a camera of fewer.

    No camera has 15 bits: a file that states them may hold 12 or 14 bits, as one of 16 bits may.
    """
    return stated_bits > CAMERA_BITS[-1]


def check_range(values: Values, name: str) -> None:
    """Check that 16-bit values use their range.

    Raises:
        DataError: naming the bits that fit, or the offset.
    """
    problem = range_problem(values)
    if problem is not None:
        raise DataError(f"{name} {problem}")


def range_problem(values: Values) -> str | None:
    """Return why 16-bit values do not seem to use 0 ... 65535; None if they do.

    Pixels of 0 and of 65535 are left out: borders, masked areas, dead and saturated pixels. So is
    one in a thousand of the others at either end.
    """
    if reaches_both_ends(values):
        return None
    counts = np.bincount(values.ravel(), minlength=FULL + 1)
    counts[0] = 0
    counts[FULL] = 0
    total = int(counts.sum())
    if not total:
        return None  # black, white or a silhouette
    outliers = max(_FEWEST_OUTLIERS, int(total * _OUTLIERS)) if total >= _SMALLEST else 0
    sums = counts.cumsum()
    low = int(np.searchsorted(sums, outliers, side="right"))
    high = int(np.searchsorted(sums, total - outliers, side="left"))
    largest = int(values.max())
    if high < _FEWEST_LEVELS:
        return _in_words_dark(high, largest)
    spread = high - low
    # a low contrast alone is a foggy picture
    if 0 < spread < _FEWEST_LEVELS and low > spread:
        occurring = np.flatnonzero(counts)
        lowest, highest = int(occurring[0]), int(occurring[-1])
        if highest - lowest < _FEWEST_LEVELS:
            return _in_words_offset(lowest, highest)
        return _in_words_offset(low, high)
    return None


def reaches_both_ends(values: Values) -> bool:
    """Return whether many values are dark and many are bright, without the cost of a histogram."""
    zeros = np.count_nonzero(values == 0)
    saturated = np.count_nonzero(values == FULL)
    # with half of the levels, a low end that is dark is below its distance to a high end that is
    # bright, so range_problem() finds no offset
    dark = np.count_nonzero(values < _FEWEST_LEVELS // 2) - zeros
    bright = np.count_nonzero(values >= _FEWEST_LEVELS) - saturated
    outliers = max(_FEWEST_OUTLIERS, (values.size - zeros - saturated) * _OUTLIERS)
    return bool(dark > outliers and bright > outliers)


def _in_words_dark(high: int, largest: int) -> str:
    fitting = next(bits for bits in CAMERA_BITS if high < 1 << bits)
    if largest < 1 << fitting:
        values = f"holds 16-bit values of at most {largest}"
    else:
        values = f"holds 16-bit values, 99.9 % of them at most {high} (the largest is {largest})"
    return (
        f"{values}, which fit {fitting} bits and are too dark as shares of {FULL}; state the bits "
        f"of the camera, such as bits={fitting} (--bits {fitting}), or read the values as they "
        f"are with bits={FILE_BITS}"
    )


def _in_words_offset(low: int, high: int) -> str:
    share = (high - low) / FULL
    return (
        f"holds 16-bit values from {low} to {high}: {share:.0%} of the range and far from 0, as "
        "if an offset such as 32768 was added; subtract it before, or read the values as they "
        f"are with bits={FILE_BITS} (--bits {FILE_BITS})"
    )


def _check_largest(values: Values, largest: int, name: str) -> None:
    if largest == FULL or not values.size:
        return
    above = np.count_nonzero(values > largest)
    if above:
        bits = largest.bit_length()
        raise DataError(
            f"{name} holds the value {int(values.max())} ({above} of {values.size} values are "
            f"above {largest}), and bits={bits} (--bits {bits}) ends there; state the bits of the "
            f"camera, or set defective pixels to {largest} before"
        )
