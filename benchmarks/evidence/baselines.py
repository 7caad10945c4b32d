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
METHODS = ("head", "linear", "average")


def baselines(options: Namespace) -> dict[str, Row]:
    """Return R² over all targets of images held out by group, on dinoneck_tiny, whose weights are random.

    Differences have the means of the ends of the reports' 95 % intervals over groups.
    """
    table: dict[str, Row] = {}
    for number, title in enumerate(RUNS):
        reports = [overall_scores(options, title, number, seed) for seed in range(options.rounds)]
        row: Row = {}
        for method in METHODS:
            row[method] = spread([scores[method]["r2"]["pooled"] for scores in reports])
        for method in METHODS[1:]:
            row[f"head − {method}"] = difference(reports, method)
        table[title] = row
    return table


def overall_scores(options: Namespace, title: str, number: int, seed: int) -> dict[str, Any]:
    """Train by the command and return the scores over all targets.

    Args:
        options: of the benchmark.
        title: a key of ``RUNS``.
        number: of the row.
        seed: of the run.

    Raises:
        RuntimeError: if the command failed.
    """
    out = options.runs / "baselines" / f"{number}-{seed}"
    command = ["train", "--backbone", "dinoneck_tiny", *shlex.split(RUNS[title])]
    if FIELDS in RUNS[title]:
        table = options.data / "crop_cover" / "cover.csv"
        if options.short:
            table = short_table(table, options.runs)
        command += ["--csv", str(table), "--images", str(options.data / "crop_cover")]
    if options.short:
        command += ["--epochs", "1", "--folds", "2"]
    command += ["--seed", str(seed), "--device", options.device, "--out", str(out), "--overwrite"]
    if dinoneck(command):
        raise RuntimeError(f"{title}, seed {seed} failed; its message is above")
    report = json.loads((out / "report.json").read_text())
    scores: dict[str, Any] = report["scores"]["overall"]
    return scores


def difference(reports: Sequence[Mapping[str, Any]], method: str) -> str:
    """Return the mean difference of the head and a method in R², and the mean interval over groups."""
    differences = []
    for scores in reports:
        differences.append(scores["head"]["r2"]["pooled"] - scores[method]["r2"]["pooled"])
    low, high = (
        fmean(scores[method]["head_minus"]["r2"][end] for scores in reports) for end in (0, 1)
    )
    return f"{fmean(differences):z.3f} ({low:z.3f} … {high:z.3f})"
