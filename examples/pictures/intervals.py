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
STEP = 11
HEIGHT = 300
MARGIN = 56
STYLE = """text { font: 15px system-ui, sans-serif; fill: #1e1e1e } .note { fill: #5f6b73 }
.axis { stroke: #9aa3ab; fill: none } .truth { fill: #1e1e1e }
.inside { stroke: #009e73; stroke-width: 5 } .outside { stroke: #d55e00; stroke-width: 5 }
@media (prefers-color-scheme: dark) { text, .truth { fill: #e6edf0 } .note { fill: #a9b4bb } }"""
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
    """Draw intervals as bars and the true masses as dots, sorted by the true mass.

    The SVG follows the reader's colour scheme.
    """
    largest = max(intervals.high.max(), intervals.truth.max())
    scale = HEIGHT / largest
    bottom = MARGIN + HEIGHT
    right = MARGIN + STEP * (len(intervals.truth) + 1)
    num_inside = int(intervals.is_inside.sum())
    label = f"{num_inside} of {len(intervals.truth)} intervals hold the true mass"
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {right + 8} {bottom + 40}" '
        f'role="img" aria-label="{label}"><style>{STYLE}</style>',
        f'<path class="axis" d="M{MARGIN} {MARGIN}V{bottom}H{right}"/>',
        '<text x="8" y="22">dry mass in g: 90 % intervals, and the truth (dots)</text>',
        f'<text x="{right}" y="22" class="note" text-anchor="end">{label}</text>',
        f'<text x="{right}" y="{bottom + 26}" class="note" text-anchor="end">'
        "images, by their true mass</text>",
    ]
    for grams in range(0, int(largest), 50):
        y = bottom - grams * scale
        lines.append(
            f'<text x="{MARGIN - 8}" y="{y + 5:.1f}" class="note" text-anchor="end">{grams}</text>'
        )
    for rank, row in enumerate(np.argsort(intervals.truth)):
        name = "inside" if intervals.is_inside[row] else "outside"
        x = MARGIN + STEP * (rank + 1)
        low = bottom - intervals.low[row] * scale
        high = bottom - intervals.high[row] * scale
        truth = bottom - intervals.truth[row] * scale
        lines.append(f'<path class="{name}" d="M{x} {low:.1f}V{high:.1f}" opacity=".5"/>')
        lines.append(f'<circle class="truth" cx="{x}" cy="{truth:.1f}" r="3"/>')
    return "\n".join([*lines, "</svg>\n"])
