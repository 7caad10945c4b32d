"""Number types for the command line: out of range is wrong usage, said before any work."""

from __future__ import annotations

import argparse
import math


def count(text: str) -> int:
    """Parse an integer of 1 or more."""
    return _integer(text, 1, 1_000_000)


def threads(text: str) -> int:
    """Parse a number of threads; torch dies of what no machine has."""
    return _integer(text, 1, 1024)


def whole(text: str) -> int:
    """Parse an integer of 0 or more."""
    return _integer(text, 0, 1_000_000)


def seed(text: str) -> int:
    """Parse a random seed."""
    return _integer(text, 0, 2**32 - 1)


def positive(text: str) -> float:
    """Parse a finite number above 0."""
    value = _number(text)
    if not 0.0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a finite number above 0")
    return value


def not_negative(text: str) -> float:
    """Parse a finite number of 0 or more."""
    value = _number(text)
    if not 0.0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a finite number of 0 or more")
    return value


def share(text: str) -> float:
    """Parse a number of 0 or more and below 1."""
    value = _number(text)
    if not 0.0 <= value < 1.0:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number of 0 or more and below 1")
    return value


def length(text: str) -> int | float:
    """Parse pixels (an integer of 0 or more), or with a point a share of 0 or more and below 1."""
    if text.isdecimal():
        return int(text)
    value = _number(text)
    if not 0.0 <= value < 1.0:
        raise argparse.ArgumentTypeError(f"{text!r}: expected pixels such as 64, or a share below 1 such as 0.25")
    return value


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _integer(text: str, low: int, high: int) -> int:
    try:
        value = int(text)
    except ValueError:
        value = low - 1
    if not low <= value <= high:
        raise argparse.ArgumentTypeError(f"{text!r}: expected an integer {low} ... {high}")
    return value
