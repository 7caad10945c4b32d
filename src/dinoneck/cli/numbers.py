"""Number types for the command line: out of range is wrong usage, said before any work."""

from __future__ import annotations

import argparse
import math


def count(text: str) -> int:
    """Parse an integer of 1 or more."""
    return _integer(text, 1, 1_000_000)


def seed(text: str) -> int:
    """Parse a random seed."""
    return _integer(text, 0, 2**32 - 1)


def positive(text: str) -> float:
    """Parse a finite number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0.0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a finite number above 0")
    return value


def _integer(text: str, low: int, high: int) -> int:
    try:
        value = int(text)
    except ValueError:
        value = low - 1
    if not low <= value <= high:
        raise argparse.ArgumentTypeError(f"{text!r}: expected an integer {low} ... {high}")
    return value
