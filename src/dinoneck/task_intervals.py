"""What a task holds of its prediction intervals: half widths by level, and of how many groups they are."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from dinoneck.codec import OMIT_DEFAULT, normalize_fields, restore
from dinoneck.errors import ConfigError
from dinoneck.intervals import LEVELS, count_groups, fewest_groups, group_quantile
from dinoneck.kinds import TTA

INTERVAL_KINDS = ("regression", "ratio", "density", "classification")
"""Kinds of tasks that have intervals, or prediction sets."""
LOW, HIGH, SET = " low", " high", " set"
"""What follows the name of a column of tables in those of the bounds of its interval, and of the set of its labels."""
NO_VIEWS: TTA = "none"
"""The views of predictions from the image alone."""
DEFAULT_LEVEL = 0.9
"""The level of the bounds in tables, where it is stored."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """The half widths of the prediction intervals of one output, by level, for images of new groups.

    The interval of a prediction at a level is the prediction minus and plus the half width.

    Args:
        levels: those that are stored, ascending, each between 0 and 1.
        half_widths: one per level: the quantile of held-out residuals, in the unit of the output.
            Of classes it is that of 1 - the probability of the true class.
        groups: of how many groups the held-out images are; a single image without a group is one.
        views: those that predictions were averaged over when the residuals were measured, such as
            ``"flip4"``. Predictions from fewer views are farther off.

    Raises:
        ConfigError: if a level is out of range or has no half width, half widths are negative or
            become smaller with the level, there are half widths without groups, or views are unknown.

    Examples:
        >>> interval = Interval(levels=(0.5, 0.9), half_widths=(1.5, 4.0), groups=12)
        >>> interval.half_width(0.9), interval.half_width(0.95)
        (4.0, nan)
    """

    levels: tuple[float, ...]
    half_widths: tuple[float, ...]
    groups: int
    views: TTA = field(default=NO_VIEWS, metadata=OMIT_DEFAULT)

    def __setstate__(self, state: object) -> None:
        restore(self, state)

    def __post_init__(self) -> None:
        normalize_fields(self)
        levels = self.levels
        if not all(0 < level < 1 for level in levels) or sorted({*levels}) != [*levels]:
            raise ConfigError(
                f"Interval: levels are {levels}; expected ascending numbers between 0 and 1"
            )
        if len(self.half_widths) != len(levels):
            raise ConfigError(
                f"Interval: half_widths are {self.half_widths}; expected {len(levels)}, one for each "
                "level"
            )
        becomes_smaller = any(first > second for first, second in pairwise(self.half_widths))
        if becomes_smaller or any(half_width < 0 for half_width in self.half_widths):
            raise ConfigError(
                f"Interval: half_widths are {self.half_widths}; expected numbers of 0 or more that "
                "do not become smaller with the level"
            )
        fewest = max((fewest_groups(level) for level in levels), default=0)
        if self.groups < fewest:
            raise ConfigError(
                f"Interval: groups is {self.groups}; expected {fewest} or more for the levels "
                f"{levels}"
            )

    @classmethod
    def of_residuals(cls, residuals: Any, groups: Sequence[Hashable]) -> Interval:
        """Return the interval of the levels that are reached by so many groups.

        Args:
            residuals: (n,), as of :func:`dinoneck.intervals.group_quantile`.
            groups: one label per residual.
        """
        levels = []
        half_widths = []
        for level in LEVELS:
            quantile = group_quantile(residuals, groups, level)
            if math.isfinite(quantile):
                levels.append(level)
                half_widths.append(quantile)
        return cls(
            levels=tuple(levels),
            half_widths=tuple(half_widths),
            groups=count_groups(residuals, groups),
        )

    def half_width(self, level: float) -> float:
        """Return the half width at a level; NaN where it is not stored."""
        if level not in self.levels:
            return math.nan
        return self.half_widths[self.levels.index(level)]


NO_INTERVAL = Interval(levels=(), half_widths=(), groups=0)
"""Of an output without held-out residuals, next to others that have some."""
