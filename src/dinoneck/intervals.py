"""Prediction intervals of numbers and prediction sets of classes, which hold for an image of a new group.

Groups are fields, patients, sites or days. The residuals of held-out images form a distribution in
which every group counts the same, and a group that was not seen is as good as infinitely far::

    G groups with known residuals  ->  mass 1 / (G + 1) each, spread evenly over its images
    the new group                  ->  mass 1 / (G + 1) at infinity

Its quantile at a level is the half width of the interval. If the groups are exchangeable with the
new one, an image of it lies inside with at least the probability of the level, averaged over draws
of all groups (hierarchical conformal prediction: arXiv 2306.06342; Dunn, Wasserman and Ramdas, JASA
118 (2023) 2491). With one image per group it is split conformal prediction.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from dinoneck.errors import ConfigError, DataError

LEVELS = (0.5, 0.8, 0.9, 0.95)  # that a file stores
# masses are sums of floats; one that misses a level by less is taken to reach it
_ROUNDING = 1e-9
_Floats = np.ndarray[Any, np.dtype[np.float64]]
_Integers = np.ndarray[Any, np.dtype[np.int64]]


def group_quantile(residuals: Any, groups: Sequence[Hashable], level: float) -> float:
    """Return the smallest residual at which the mass of the groups reaches a level.

    Args:
        residuals: (n,), of held-out images: absolute errors in the unit of the target, or those of
            :func:`class_residuals`; NaN where the truth is missing, which leaves the image out. A
            group without known residuals is left out too.
        groups: one label per image.
        level: between 0 and 1, for example 0.9.

    Returns:
        The half width of the interval in the unit of the residuals; ``math.inf`` for fewer groups
        than :func:`fewest_groups`.

    Raises:
        ConfigError: for a level that is not between 0 and 1.
        DataError: if the numbers of residuals and groups differ.
    """
    _check_level(level)
    known, group_of_image = _known_residuals(residuals, groups)
    images_of_group = np.bincount(group_of_image)
    order = np.argsort(known, kind="stable")
    mass = np.cumsum(1 / images_of_group[group_of_image[order]])  # in groups
    needed_mass = level * (len(images_of_group) + 1)
    rank = int(np.searchsorted(mass, needed_mass - _ROUNDING))
    if rank == len(known):
        return math.inf
    return float(known[order[rank]])


def count_groups(residuals: Any, groups: Sequence[Hashable]) -> int:
    """Return the number of groups with a known residual; arguments as of :func:`group_quantile`."""
    _, group_of_image = _known_residuals(residuals, groups)
    return len(np.unique(group_of_image))


def fewest_groups(level: float) -> int:
    """Return the number of groups from which on a level has an interval: 9 for 0.9, 19 for 0.95.

    Raises:
        ConfigError: for a level that is not between 0 and 1.
    """
    _check_level(level)
    # G groups have the mass G / (G + 1)
    return math.ceil(level / (1 - level) - _ROUNDING)


def class_residuals(probabilities: Any, classes: Any) -> _Floats:
    """Return 1 - the probability of the true class, (n,); NaN where the class is missing.

    Args:
        probabilities: (n, classes).
        classes: (n,) indices; -1 or NaN = missing.
    """
    rows = np.asarray(probabilities, np.float64)
    true = np.asarray(classes, np.float64)
    is_known = true >= 0
    residuals = np.full(len(rows), np.nan)
    residuals[is_known] = 1 - rows[is_known, true[is_known].astype(np.int64)]
    return residuals


def prediction_set(probabilities: Any, quantile: float) -> list[int]:
    """Return the indices of the labels of a set, the likeliest first.

    A label belongs to it if 1 - its probability is at most the quantile. The likeliest label always
    belongs to it: sets are not empty, and hold the true label no less often than promised.

    Args:
        probabilities: (classes,) of an image.
        quantile: of :func:`group_quantile` over :func:`class_residuals`.
    """
    residuals = 1 - np.asarray(probabilities, np.float64)
    order = np.argsort(residuals, kind="stable").tolist()
    return [order[0], *(label for label in order[1:] if residuals[label] <= quantile)]


def _known_residuals(residuals: Any, groups: Sequence[Hashable]) -> tuple[_Floats, _Integers]:
    """Return the residuals that are no NaN, and the number of the group of each."""
    values = np.asarray(residuals, np.float64)
    if values.shape != (len(groups),):
        raise DataError(
            f"residuals have the shape {values.shape} for {len(groups)} groups; expected one "
            "residual and one group per image"
        )
    is_known = ~np.isnan(values)
    labels = list(groups)  # by position, also those of a Series
    number_of_group: dict[Hashable, int] = {}
    group_of_image = []
    for row in np.flatnonzero(is_known).tolist():
        number = number_of_group.setdefault(labels[row], len(number_of_group))
        group_of_image.append(number)
    return values[is_known], np.array(group_of_image, np.int64)


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ConfigError(f"the level is {level}; expected a number between 0 and 1, such as 0.9")
