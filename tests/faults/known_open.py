"""Faults that are known and not repaired yet. They count as silent, and the page lists them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple


class OpenCase(NamedTuple):
    """A known fault.

    Attributes:
        pattern: of the lines of the campaigns that show it, from their beginning.
        sentence: what happens, for the page.
    """

    pattern: str
    sentence: str


OPEN_CASES = (
    OpenCase(
        r"(the backbone.*: a write (to \.data|through NumPy): )"
        r"|(save_head.*: weights=written to \.data, backbone=its record; )",
        "torch does not count writes to `parameter.data`, or through a NumPy view of it. A "
        "Predictor, a loaded detector, an open store and tokens that were hashed before do not "
        "notice them, nor does `backbone.record()`. `save_head(backbone=backbone)` and "
        "`Detector.save` hash the weights again, and do.",
    ),
    OpenCase(
        r"train: unfreeze-last=1, layer-decay=0\.5: layer-decay has no effect",
        "`--layer-decay` has no effect where only the last block is trained "
        "(`--unfreeze-last 1`), and is not refused.",
    ),
    OpenCase(
        r"train --boxes: .*features-at=0\.5.*: AssertionError: error: unexpected ValueError: "
        r"Expected more than 1 value per channel",
        "A detector is not trained where its deepest map is one cell and a batch has one image, as "
        "with `--size 64x64` and `features_at: 0.5`: the command ends with torch's error of its "
        "batch norm, which names no remedy. Larger images are trained.",
    ),
)


def case_of(line: str) -> OpenCase | None:
    """Return the known case that a line of a campaign shows."""
    for case in OPEN_CASES:
        if re.match(case.pattern, line):
            return case
    return None


def unknown(lines: Sequence[str]) -> list[str]:
    """Return the lines that show no known case."""
    return [line for line in lines if case_of(line) is None]


def count(case: OpenCase, lines: Sequence[str]) -> int:
    """Return how many lines show a case."""
    return sum(case_of(line) is case for line in lines)
