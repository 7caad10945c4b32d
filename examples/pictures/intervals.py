"""Intervals of generated images of new samplings next to their known masses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from dinoneck import load_backbone
from dinoneck.data import Pasture
from dinoneck.intervals import group_quantile
from dinoneck.training import MemoryTokens, group_folds, ridge_probe

TARGET = "Dry_Total_g"
LEVEL = 0.9
FOLDS = 5
SIZE = (128, 256)  # height, width of an image
# seeds of the pastures whose residuals are known, and of the one that is new; images of each
KNOWN_PASTURES = (0, 1, 2, 3)
NEW_PASTURE = 4
KNOWN_IMAGES = 100
NEW_IMAGES = 60
# of the drawing, in pixels
SIDE = 460
MARGIN = 56
STYLE = """text { font: 15px system-ui, sans-serif; fill: #1e1e1e } .note { fill: #5f6b73 }
.axis { stroke: #9aa3ab; fill: none } .equal { stroke: #9aa3ab; stroke-dasharray: 5 4 }
.inside { stroke: #009e73; fill: #009e73; stroke-width: 2 }
.outside { stroke: #d55e00; fill: #d55e00; stroke-width: 2 }
@media (prefers-color-scheme: dark) { text { fill: #e6edf0 } .note { fill: #a9b4bb } }"""
Floats = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class Intervals:
    """Predictions of new images in grams.

    Attributes:
        truth: (n,).
        predicted: (n,).
        half_width: of every interval.
    """

    truth: Floats
    predicted: Floats
    half_width: float

    @property
    def low(self) -> Floats:
        """The lower ends: a mass is not below 0."""
        return np.maximum(self.predicted - self.half_width, 0.0)

    @property
    def high(self) -> Floats:
        """The upper ends."""
        return self.predicted + self.half_width

    @property
    def is_inside(self) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Whether an interval holds the truth."""
        return (self.low <= self.truth) & (self.truth <= self.high)


def intervals_of_new_samplings() -> Intervals:
    """Predict a pasture of which no image was seen, by ridge regression on tokens of dinoneck_tiny."""
    pictures = []
    truth = []
    groups = []
    for seed in (*KNOWN_PASTURES, NEW_PASTURE):
        pasture = Pasture(seed, size=SIZE)
        num_images = NEW_IMAGES if seed == NEW_PASTURE else KNOWN_IMAGES
        for index in range(num_images):
            sample = pasture.sample(index)
            pictures.append(sample.image)
            truth.append(sample.grams[TARGET])
            groups.append(f"{seed} | {sample.group}")
    num_known = KNOWN_IMAGES * len(KNOWN_PASTURES)
    ids = [str(number) for number in range(len(pictures))]
    source = MemoryTokens.extract(load_backbone("dinoneck_tiny"), pictures, ids)
    targets = np.array(truth)[:, None]

    folds = group_folds(groups[:num_known], FOLDS, seed=0)
    held_out = ridge_probe(source, targets, folds, target_ids=ids, groups=groups)
    residuals = np.abs(held_out - targets)[:num_known, 0]
    half_width = group_quantile(residuals, groups[:num_known], LEVEL)

    known_rows, new_rows = np.split(np.arange(len(ids)), [num_known])
    predictions = ridge_probe(
        source, targets, [(known_rows, new_rows)], target_ids=ids, groups=groups
    )
    return Intervals(
        truth=targets[new_rows, 0],
        predicted=np.maximum(predictions[new_rows, 0], 0.0),
        half_width=half_width,
    )


def interval_picture(intervals: Intervals) -> str:
    """Draw each interval as a bar at the true mass; it holds the truth where it meets the dashed line.

    The SVG follows the reader's colour scheme.
    """
    largest = max(intervals.high.max(), intervals.truth.max())
    scale = SIDE / largest
    bottom = MARGIN + SIDE
    width = SIDE + 2 * MARGIN
    height = SIDE + 2 * MARGIN
    num_inside = int(intervals.is_inside.sum())
    label = f"{num_inside} of {len(intervals.truth)} intervals hold the truth"
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{label}"><style>{STYLE}</style>',
        f'<path class="axis" d="M{MARGIN} {MARGIN}V{bottom}H{MARGIN + SIDE}"/>',
        f'<path class="equal" d="M{MARGIN} {bottom}L{MARGIN + SIDE} {MARGIN}"/>',
        f'<text x="{MARGIN}" y="24">predicted dry mass in g, with its 90 % interval</text>',
        f'<text x="{MARGIN}" y="44" class="note">{label}</text>',
        f'<text x="{MARGIN + SIDE}" y="{bottom + 44}" text-anchor="end">true dry mass in g</text>',
    ]
    for grams in range(0, int(largest), 50):
        offset = grams * scale
        lines.append(
            f'<text x="{MARGIN + offset:.1f}" y="{bottom + 20}" class="note" '
            f'text-anchor="middle">{grams}</text>'
        )
        lines.append(
            f'<text x="{MARGIN - 8}" y="{bottom - offset + 5:.1f}" class="note" '
            f'text-anchor="end">{grams}</text>'
        )
    for row, is_inside in enumerate(intervals.is_inside):
        name = "inside" if is_inside else "outside"
        x = MARGIN + intervals.truth[row] * scale
        low = bottom - intervals.low[row] * scale
        high = bottom - intervals.high[row] * scale
        predicted = bottom - intervals.predicted[row] * scale
        lines.append(f'<path class="{name}" d="M{x:.1f} {low:.1f}V{high:.1f}" opacity=".45"/>')
        lines.append(f'<circle class="{name}" cx="{x:.1f}" cy="{predicted:.1f}" r="2.5"/>')
    return "\n".join([*lines, "</svg>\n"])
