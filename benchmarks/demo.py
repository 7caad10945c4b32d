"""Held-out scores of ``dinoneck demo``: of its head, and of the linear baseline on mean tokens.

    python -m benchmarks demo

The demo runs as a visitor runs it, with its seeded random weights and without a download. With
``--short`` it has few images and one epoch.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.measure import Row
from dinoneck.cli.demo import demo

ROUNDS = 1  # the demo is seeded
TARGET = "trees"
PREDICTORS = {"head": "head", "linear": "linear baseline on mean tokens"}  # of report.json
SHORT_IMAGES = 12
SHORT_FOLDS = 2
SHORT_EPOCHS = 1


def measure(options: argparse.Namespace) -> Iterator[tuple[str, dict[str, Row]]]:
    """Yield one table: R² and mean absolute error of the number of trees on held-out sites."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "demo"
        if options.short:
            demo(out, images=SHORT_IMAGES, folds=SHORT_FOLDS, epochs=SHORT_EPOCHS)
        else:
            demo(out)
        report = json.loads((out / "run" / "report.json").read_text())
    rows: dict[str, Row] = {}
    for key, name in PREDICTORS.items():
        scores = report["scores"][TARGET][key]
        rows[name] = {"R²": scores["r2"]["pooled"], "MAE, trees": scores["mae"]["pooled"]}
    yield "trees on held-out sites", rows
