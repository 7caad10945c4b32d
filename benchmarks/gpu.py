"""Run every benchmark that a GPU can run, in at most eight minutes, and store what they measure.

    python -m benchmarks gpu [--device cuda] [--minutes 8] [--only NAME ...] [--out FOLDER]

``make bench-gpu`` calls it. Each job is a process of its own; if one fails, the next begins, and
the exit status names those that failed. When the time is up, the one that runs is stopped and the
others are listed as not run: the most important come first. Needs torch, timm, einops and what
dinoneck itself depends on; rows whose peer is not installed
(transformers, segmentation_models_pytorch) are skipped and listed. Results lie in
benchmarks/results as ``*_cuda.json``, with the GPU's name, the commit and all versions.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Iterator

from benchmarks.measure import Row, gpu
from benchmarks.results import RESULTS

ROUNDS = 5
# job -> command. Estimated seconds on one H100, 385 in all, none of them measured yet; each job
# takes about 6 to import torch. necks and heads: 20 rows x 2 dtypes x 2 steps x 3.3 variants, each
# called 34 times or for 0.5 s and 5 rounds: 9 s a row, and 25 for whole backbones. Forwards alone
# as graphs in one dtype: 3 s a row.
SHORT = ("speed", "--short", "--rounds", "5", "--only", "necks", "heads", "parts", "detection")
JOBS = {
    "speed": SHORT,  # 205
    "backbones": ("speed", "--rounds", "7", "--only", "backbones"),  # 40
    "graphs": (*SHORT, "--graphs", "--steps", "forward", "--dtypes", "bfloat16"),  # 65
    "detection_necks": ("speed", "--rounds", "11", "--only", "detection"),  # 30
    "feature_store": ("store", "--images", "1", "--batch", "4"),  # 25
    "points": ("speed", "--rounds", "5", "--only", "points"),  # 20
}


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.set_defaults(device="cuda")
    parser.add_argument("--minutes", type=float, default=8.0, help="for everything")


def measure(options: argparse.Namespace) -> Iterator[tuple[str, dict[str, Row]]]:
    """Run the jobs and print what came of each; they write their own results.

    Raises:
        SystemExit: if one failed or was not run.
    """
    gpu(options.device)
    found: dict[str, str] = {}
    end = time.monotonic() + 60 * options.minutes
    for name in options.only or JOBS:
        begin = time.monotonic()
        print(f"== {name}", flush=True)
        words = [*JOBS[name], "--device", options.device, "--out", str(options.out or RESULTS)]
        try:
            command = [sys.executable, "-m", "benchmarks", *words]
            status = subprocess.run(command, timeout=max(0.0, end - begin), check=False).returncode
            result = "ok" if status == 0 else f"failed with exit status {status}"
        except subprocess.TimeoutExpired:
            result = "not run to its end: the time was up"
        found[name] = result
        print(f"{name}: {result} ({time.monotonic() - begin:.0f} s)", flush=True)
    yield from ()
    if failed := [name for name, result in found.items() if result != "ok"]:
        raise SystemExit(f"not measured in full: {', '.join(failed)}")
