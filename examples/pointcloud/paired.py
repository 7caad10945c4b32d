"""Means over seeds, and paired differences with intervals over seeds and over groups of scenes."""

from __future__ import annotations

import re
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from examples.pointcloud.instances import AP_OF, SceneMatches, precision_of, resampled_precision

# two-sided 95 % of Student's t, by degrees of freedom
STUDENT = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)
# as dinoneck's reports: with fewer, intervals of equal methods leave out 0 too often
LEAST_GROUPS = 5
DRAWS = 1000
_SCAN = re.compile(r"(scene\d{4})_\d{2}")  # ScanNet's names: several scans of one room


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Return mean and deviation; None for no value, or the deviation of a single one."""
    mean = statistics.fmean(values) if values else None
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": mean, "deviation": deviation, "each": list(values)}


def difference(a: Sequence[float], b: Sequence[float]) -> dict[str, Any]:
    """Return the paired difference of two rows over seeds, its 95 % interval, and whether that leaves out 0."""
    differences = [x - y for x, y in zip(a, b, strict=True)]
    seeds = len(differences)
    mean = statistics.fmean(differences)
    deviation = statistics.stdev(differences)
    half = STUDENT[seeds - 2] * deviation / seeds**0.5  # seeds - 1 degrees of freedom
    return {
        "mean": mean,
        "deviation": deviation,
        "half_width": half,
        "each": differences,
        "exceeds_noise": abs(mean) > half,
    }


def group_of(scene: str) -> str:
    """Return the room that a scene shows: of ScanNet's ``scene0011_00`` and ``_01`` it is one.

    Examples:
        >>> group_of("scene0011_01"), group_of("kitchen")
        ('scene0011', 'kitchen')
    """
    match = _SCAN.fullmatch(scene)
    return match[1] if match else scene


class PairedPrecision:
    """Differences of AP between rows, with intervals over groups of held-out scenes.

    Groups are drawn with replacement, the same ones for all rows and seeds; a draw's difference is
    the mean over seeds. Between scenes nothing is matched, so each draw is an AP of its own.

    Args:
        matches: row -> seed -> the held-out scenes, matched.
        groups: the group of every scene.
        names: of the classes.
        seed: of the draws.
    """

    def __init__(
        self,
        matches: Mapping[str, Sequence[Sequence[SceneMatches]]],
        groups: Sequence[str],
        names: Sequence[str],
        seed: int = 0,
    ) -> None:
        self.matches = matches
        self.names = names
        self.number = len(set(groups))
        self.counts = draw_counts(groups, seed)
        self._draws: dict[tuple[str, str], np.ndarray[Any, Any]] = {}

    def difference(self, a: str, b: str, score: str) -> dict[str, Any]:
        """Return the difference of two rows.

        Args:
            a: a row.
            b: another one.
            score: ``AP``, ``AP50`` or ``AP25``.

        Returns:
            ``difference``, its 95 % ``interval`` over groups (None for fewer than
            ``LEAST_GROUPS``), ``groups``, how many, and ``excludes_0``.
        """
        values = []
        for scenes_a, scenes_b in zip(self.matches[a], self.matches[b], strict=True):
            precision_a = precision_of(scenes_a, self.names)[score]
            precision_b = precision_of(scenes_b, self.names)[score]
            if precision_a is not None and precision_b is not None:
                values.append(precision_a - precision_b)
        interval = None
        if self.number >= LEAST_GROUPS:
            drawn = self._mean_draws(a, score) - self._mean_draws(b, score)
            drawn = drawn[~np.isnan(drawn)]
            if len(drawn):
                interval = [float(end) for end in np.percentile(drawn, [2.5, 97.5])]
        return {
            "difference": statistics.fmean(values) if values else None,
            "interval": interval,
            "groups": self.number,
            "excludes_0": None if interval is None else interval[0] > 0 or interval[1] < 0,
        }

    def _mean_draws(self, row: str, score: str) -> np.ndarray[Any, Any]:
        """The AP of a row, the mean over seeds, in every draw."""
        if (row, score) not in self._draws:
            of_seeds = []
            for scenes in self.matches[row]:
                of_seeds.append(resampled_precision(scenes, self.names, score, self.counts))
            self._draws[row, score] = np.mean(of_seeds, axis=0)
        return self._draws[row, score]


def draw_counts(groups: Sequence[str], seed: int) -> np.ndarray[Any, Any]:
    """Return how often each scene counts in each draw of groups, (DRAWS, scenes)."""
    generator = np.random.default_rng(seed)
    names = sorted(set(groups))
    drawn = generator.integers(len(names), size=(DRAWS, len(names)))
    of_group = np.stack([np.bincount(row, minlength=len(names)) for row in drawn])
    group_of_scene = [names.index(group) for group in groups]
    return of_group[:, group_of_scene].astype(float)


def precisions(tests: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the spread over seeds of every AP; nothing for runs on scenes without instance masks."""
    if not all("instances" in test for test in tests):
        return {}
    spreads = {}
    for score in AP_OF:
        values = [test["instances"][score] for test in tests]
        spreads[score] = spread([value for value in values if value is not None])
    return spreads
