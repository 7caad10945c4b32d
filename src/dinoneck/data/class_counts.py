"""Refuse classes that nothing can be learned of."""

from __future__ import annotations

from collections.abc import Mapping

from dinoneck.errors import DataError


def check_class_counts(target: str, counts: Mapping[str, int]) -> None:
    """Check that a target has two classes or more, and two images a class on average.

    Args:
        target: its name.
        counts: class -> how many images have it; only classes that some have.

    Raises:
        DataError: naming the target and what it has.
    """
    if len(counts) < 2:
        raise DataError(
            f"target {target!r} has one class alone, {next(iter(counts), 'none')!r}, in "
            f"{sum(counts.values())} images; expected two classes or more"
        )
    if sum(counts.values()) < 2 * len(counts):
        raise DataError(
            f"target {target!r} has {len(counts)} classes in {sum(counts.values())} images; expected 2 "
            "images a class on average. Leave out the column if it holds names or notes"
        )
