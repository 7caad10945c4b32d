"""Heads next to the linear baseline and to the average of both, by runs of ``dinoneck train``."""

from __future__ import annotations

import json
import shlex
from argparse import Namespace
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from benchmarks.evidence.real import CLASSES, short_table, spread
from benchmarks.measure import Row
from dinoneck.cli.main import main as dinoneck

FIELDS = f"--targets {' '.join(CLASSES)} --minimum 0 --group group"
# name of the row -> options of dinoneck train
RUNS = {
    "A: 120 generated pasture images, `PatchMeanHead`, 12 epochs": "--pasture 120 --epochs 12",
    "B: the same, 40 epochs": "--pasture 120 --epochs 40",
    "C: 320 field images, `PatchMeanHead`, 20 epochs": f"{FIELDS} --size 192x256 --epochs 20",
    "D: 320 field images, `FPNHead`, 15 epochs": (
        f"{FIELDS} --size 96x128 --epochs 15 --layers 0 2 3 5 "
        "--head '{type: fpn, fpn_dim: 64, tower_depth: 1}'"
    ),
}
BASELINES = ("linear", "average")
METHODS = ("head", *BASELINES)


def baselines(options: Namespace) -> dict[str, Row]:
    """Return R² over all targets of images held out by group, on dinoneck_tiny, whose weights are random.

    Differences have 95 % intervals over groups.
    """
    table: dict[str, Row] = {}
    for title in RUNS:
        runs = []
        for seed in range(options.rounds):
            runs.append(overall_scores(options, title, seed))
        row: Row = {}
        for method in METHODS:
            row[method] = spread([scores[method]["r2"]["pooled"] for scores in runs])
        for method in BASELINES:
            row[f"head − {method}"] = difference(runs, method)
        table[title] = row
    return table


def overall_scores(options: Namespace, title: str, seed: int) -> dict[str, Any]:
    """Train by the command and return the scores over all targets.

    Args:
        options: of the benchmark.
        title: a key of ``RUNS``.
        seed: of the run.

    Raises:
        RuntimeError: if the command failed.
    """
    letter, _ = title.split(":", 1)
    out = options.runs / "baselines" / f"{letter}-{seed}"
    run_options = shlex.split(RUNS[title])

    command = ["train", "--backbone", "dinoneck_tiny", *run_options]
    if "--pasture" not in run_options:  # the fields
        images = options.data / "crop_cover"
        table = images / "cover.csv"
        if options.short:
            table = short_table(table, options.runs)
        command += ["--csv", str(table), "--images", str(images)]
    if options.short:
        command += ["--epochs", "1", "--folds", "2"]
    command += ["--seed", str(seed), "--device", options.device]
    command += ["--out", str(out), "--overwrite"]
    if dinoneck(command):
        raise RuntimeError(f"{title}, seed {seed} failed; its message is above")

    report = json.loads((out / "report.json").read_text())
    scores: dict[str, Any] = report["scores"]["overall"]
    return scores


def difference(runs: Sequence[Mapping[str, Any]], method: str) -> str:
    """Return how much larger the R² of the head is than that of a method, with its 95 % interval.

    The difference and both ends of the interval are means over the runs.
    """
    differences = []
    lows = []
    highs = []
    for scores in runs:
        head_r2 = scores["head"]["r2"]["pooled"]
        differences.append(head_r2 - scores[method]["r2"]["pooled"])
        low, high = scores[method]["head_minus"]["r2"]
        lows.append(low)
        highs.append(high)
    return f"{fmean(differences):z.3f} ({fmean(lows):z.3f} … {fmean(highs):z.3f})"
