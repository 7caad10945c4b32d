"""The smallest score of the boxes that a detector predicts: one for all classes, or one for each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dinoneck.codec import normal
from dinoneck.errors import ConfigError


class LeastScores:
    """What a detector leaves out of its predictions, unless a call states a smallest score itself."""

    _min_score: float
    _thresholds: tuple[float, ...] = ()

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the labels."""
        raise NotImplementedError

    @property
    def min_score(self) -> float:
        """The smallest score of boxes of all classes; to set it removes the :attr:`thresholds`.

        Raises:
            ConfigError: to be set to what is no number 0 ... 1.
        """
        return self._min_score

    @min_score.setter
    def min_score(self, min_score: float) -> None:
        """Take one score for all classes."""
        self._min_score = checked_score(min_score)
        self._thresholds = ()

    @property
    def thresholds(self) -> tuple[float, ...]:
        """The smallest score of the boxes of each class, in the place of :attr:`min_score`; empty: there are none.

        Raises:
            ConfigError: to be set to another number of scores than there are classes, or to scores
                outside 0 ... 1.
        """
        return self._thresholds

    @thresholds.setter
    def thresholds(self, thresholds: Sequence[float]) -> None:
        """Take a score for each class."""
        check_thresholds(thresholds, len(self.classes))
        self._thresholds = tuple(float(threshold) for threshold in thresholds)


def checked_score(min_score: Any) -> float:
    """Return the smallest score of boxes as a float.

    Raises:
        ConfigError: if it is no number 0 ... 1.
    """
    score: float = normal(float, min_score, "min_score")
    if not 0.0 <= score <= 1.0:
        raise ConfigError(f"min_score is {score!r}; expected a number 0 ... 1")
    return score


def check_thresholds(thresholds: Sequence[float], num_classes: int) -> None:
    """Raise a ConfigError unless there is no threshold, or one for each class, 0 to 1."""
    if len(thresholds) not in (0, num_classes):
        raise ConfigError(
            f"thresholds are {list(thresholds)!r}; expected one for each of {num_classes} classes, or "
            "none"
        )
    for threshold in thresholds:
        if not isinstance(threshold, int | float) or not 0.0 <= threshold <= 1.0:
            raise ConfigError(
                f"thresholds are {list(thresholds)!r}, with {threshold!r}; expected scores, 0 to 1"
            )
