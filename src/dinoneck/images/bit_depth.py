"""16-bit values of images as shares of their range: that of the type, or of the ``bits`` that are stated.

A camera of 12 or 14 bits often stores its numbers unchanged in a file of 16 bits. No file tells it from
a dark scene, and nothing is told from the values: ``bits`` states it, and the data summary shows the
largest value.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dinoneck.errors import ConfigError, DataError

Values = np.ndarray[Any, Any]

_FEWEST_BITS = 8  # arrays of 8 bits that were converted to 16
FILE_BITS = 16
FULL = (1 << FILE_BITS) - 1


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
        bits: ``2**bits - 1`` becomes 1; None is 16.
        name: of the image, for messages.
        white_is_zero: 0 becomes 1, and ``2**bits - 1`` becomes 0.

    Raises:
        DataError: if a value is above ``2**bits - 1``.
    """
    largest = (1 << (bits or FILE_BITS)) - 1
    _check_largest(values, largest, name)
    if white_is_zero:
        values = largest - values
    scaled: Values = values.astype(np.float32) / np.float32(largest)
    return scaled


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
