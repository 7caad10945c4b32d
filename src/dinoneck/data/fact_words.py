"""Counts, quartiles and numbers as the lines of a data summary write them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
MOST_VALUES = 10  # distinct numbers or classes that are listed one by one
AT_ENDS = 4  # of more classes: how many of the largest and of the smallest are named
_QUARTILES = {"min": 0, "25 %": 25, "median": 50, "75 %": 75, "max": 100}


def counts_in_words(counts: Mapping[str, int]) -> str:
    """Return counts in their order, of many the largest and the smallest: ``rye 12, wheat 40``."""
    if len(counts) <= MOST_VALUES:
        return ", ".join(f"{_quoted(name)} {count}" for name, count in counts.items())
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    largest = ", ".join(f"{_quoted(name)} {count}" for name, count in ordered[:AT_ENDS])
    smallest = ", ".join(f"{_quoted(name)} {count}" for name, count in ordered[-AT_ENDS:])
    return f"{largest}, {len(ordered) - 2 * AT_ENDS} more, {smallest}"


def _quoted(name: str) -> str:
    """A name that holds a comma in quotes, so that it is no two."""
    return repr(name) if "," in name else name


def quartiles(values: Array) -> dict[str, float]:
    """Return minimum, quartiles and maximum; nothing of no values."""
    if not len(values):
        return {}
    numbers = np.percentile(values, list(_QUARTILES.values()))
    return {name: float(value) for name, value in zip(_QUARTILES, numbers, strict=True)}


def quartiles_in_words(numbers: Mapping[str, float]) -> str:
    """Return quartiles as ``min 0, 25 % 3.2, median 5, 75 % 7.1, max 80``."""
    return (
        ", ".join(f"{name} {in_digits(value)}" for name, value in numbers.items()) or "none known"
    )


def in_digits(value: float) -> str:
    """Return a number with four digits, a whole or large one with all before the point."""
    if value == round(value) and abs(value) < 1e15:
        return f"{value:.0f}"
    return f"{value:.0f}" if 1e4 <= abs(value) < 1e15 else f"{value:.4g}"


def in_percent(count: int, total: int) -> str:
    """Return a share in percent; one that is not 0 is not written as 0."""
    percent = 100 * count / total
    if 0 < percent < 0.1:
        return f"{percent:.1g} %"
    return f"{percent:.1f} %"
