"""Detectors trained on real images of blood cells by the command line, and their held-out AP.

    python -m benchmarks.blood_cells DATA --out RUNS [--seeds 0 1] [--processes 2] [--only d-fine] [--short]

DATA is a folder with train.json, val.json and images/. Every run is one call of ``dinoneck train --boxes``, which the
table names; an interrupted run is continued, a finished one is read. Backbone: dinoneck_tiny, seeded random weights,
trained too. Prints the table of docs/explanation/detection.md; a whole run also writes
benchmarks/results/blood_cells.json.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.timing import machine

RESULTS = Path(__file__).with_name("results") / "blood_cells.json"
SHARED = (
    "--size 256x320 --augment both --layers 1 3 5 --batch-size 4 --lr 1e-3 --backbone-lr 1e-3 --warmup 0.1 "
    "--weight-decay 1e-4 --ema-decay 0.99 --eval-every 2 --backbone dinoneck_tiny --freeze 0=none"
)
DFINE = "--detector dfine --variant tiny --epochs 10 --clip-norm 0.1"
FCOS = "--detector fcos --clip-norm 5 --epochs 8"
VARIANTS = {
    "D-FINE, spatial tuning adapter": [*DFINE.split(), "--head", "spatial_tuning_adapter"],
    "D-FINE, STAPyramid": [*DFINE.split(), "--head", "sta_pyramid"],
    "FCOS, spatial tuning adapter": [*FCOS.split(), "--head", "{type: spatial_tuning_adapter, out_channels: 96}"],
    "FCOS, STAPyramid": [*FCOS.split(), "--head", "{type: sta_pyramid, out_channels: 96}"],
}
SHORT = "--epochs 1 --size 64x96"
SCORES = ("AP", "AP50", "AP75")
GOAL = 0.3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--processes", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--only", default="", help="variants whose name holds this")
    parser.add_argument("--short", action="store_true", help="one epoch of small images: checks the code")
    options = parser.parse_args()
    jobs = [(name, seed) for seed in options.seeds for name in VARIANTS if options.only.lower() in name.lower()]
    if not jobs:
        parser.error(f"--only {options.only} is in no variant's name; they are: {'; '.join(VARIANTS)}")
    with ThreadPoolExecutor(options.processes) as pool:
        found = list(pool.map(lambda job: trained(*job, options), jobs))
    rows: dict[str, dict[str, Any]] = {}
    for (name, seed), result in zip(jobs, found, strict=True):
        rows.setdefault(name, {"command": command(name), "seeds": {}})["seeds"][str(seed)] = result
    if not (options.only or options.short):
        RESULTS.write_text(json.dumps({"goal_AP50": GOAL, "rows": rows, "machine": machine()}, indent=2) + "\n")
    print(markdown(rows))


def command(name: str) -> str:
    """What is run, apart from the data, the folder and the seed."""
    return f"dinoneck train {SHARED} {shlex.join(VARIANTS[name])}"


def trained(name: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Run one variant with one seed, or read what it reached."""
    out = options.out / f"{name.lower().replace(',', '').replace('=', '-').replace(' ', '-')}-{seed}"
    if not (out / "report.json").exists():
        data = ["--boxes", options.data / "train.json", "--val-boxes", options.data / "val.json"]
        short = SHORT.split() if options.short else []
        words = [sys.executable, "-m", *shlex.split(command(name)), *short, *data, "--out", out, "--seed", seed]
        print(f"{name}, seed {seed}: {out}", flush=True)
        done = subprocess.run(
            [str(word) for word in words],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            sys.exit(f"{name}, seed {seed} failed:\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads((out / "report.json").read_text(encoding="utf-8"))
    return found


def markdown(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """The table of the docs page: means over seeds, and both; the classes by AP50."""
    classes = list(next(iter(next(iter(rows.values()))["seeds"].values()))["best"]["per_class"])
    lines = [
        f"| held out | AP | AP50 | AP75 | {', '.join(classes)} (AP50) | M parameters | minutes |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        runs = list(row["seeds"].values())
        scores = [_several([run["best"][score] for run in runs]) for score in SCORES]
        each = ", ".join(f"{_mean([run['best']['per_class'][c]['AP50'] for run in runs]):.2f}" for c in classes)
        size, minutes = runs[0]["parameters"] / 1e6, _mean([run["minutes"] for run in runs])
        lines.append(f"| {name} | {' | '.join(scores)} | {each} | {size:.2f} | {minutes:.0f} |")
    return "\n".join(lines)


def _mean(values: Sequence[float]) -> float:
    return statistics.fmean(values)


def _several(values: Sequence[float]) -> str:
    return f"{_mean(values):.2f} ({' / '.join(f'{value:.3f}' for value in values)})"


if __name__ == "__main__":
    main()
