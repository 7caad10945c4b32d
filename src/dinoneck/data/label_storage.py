"""Numbers of 16 bits that seem to have been stored in another way than they are read."""

from __future__ import annotations

import numpy as np

from dinoneck.data.label_tiffs import Raw

_HALF = 1 << 15  # of the range of 16 bits
_BYTE = 1 << 8  # from one value of the high byte to the next
_BYTE_OF_WHOLE_RANGE = 257  # 255 times it is 65535
_FEWEST = 9  # distinct numbers: fill values are eight at most
_FEWEST_STEPS = 20  # distinct numbers of which a common factor is no chance


def storage_problem(numbers: Raw) -> str:
    """Return what 16-bit numbers of a label seem to be, to follow "they seem to be"; "" = as they are read."""
    if numbers.dtype not in (np.uint16, np.int16):
        return ""
    distinct = _distinct(numbers)
    if numbers.dtype == np.uint16 and _has_hole_in_the_middle(distinct):
        return (
            "negative numbers that are read as unsigned ones: write them as int16, or pass "
            "array.view(np.int16)"
        )
    if numbers.dtype == np.int16 and _fills_both_ends(distinct):
        return (
            "numbers above 32767 that are read as signed ones: write them as uint16, or pass "
            "array.view(np.uint16)"
        )
    return _problem_of_steps(distinct)


def _distinct(numbers: Raw) -> Raw:
    """The distinct numbers, sorted, int64; counting is faster than sorting them."""
    lowest = np.iinfo(numbers.dtype).min
    counts = np.bincount(numbers.ravel().astype(np.int64) - lowest)
    return np.flatnonzero(counts) + lowest


def _has_hole_in_the_middle(distinct: Raw) -> bool:
    """Whether many numbers are near 0, many near 65535, and none in half of the range between."""
    if len(distinct) < 2 * _FEWEST:
        return False
    gaps = np.diff(distinct)
    last_below = int(gaps.argmax())
    num_below = last_below + 1
    num_above = len(distinct) - num_below
    has_hole = gaps[last_below] >= _HALF
    return bool(has_hole and min(num_below, num_above) >= _FEWEST)


def _fills_both_ends(distinct: Raw) -> bool:
    """Whether many numbers are near -32768 and many near 32767."""
    num_lowest = np.count_nonzero(distinct < -_HALF + _BYTE)
    num_highest = np.count_nonzero(distinct >= _HALF - _BYTE)
    return bool(min(num_lowest, num_highest) >= _FEWEST)


def _problem_of_steps(distinct: Raw) -> str:
    if len(distinct) < _FEWEST_STEPS:
        return ""
    step = int(np.gcd.reduce(distinct))
    if step % _BYTE == 0:
        return "numbers of 8 bits in the high byte, or in the other byte order: divide them by 256"
    if step % _BYTE_OF_WHOLE_RANGE == 0:
        return "numbers of 8 bits that were stretched to 16: divide them by 257"
    return ""
