"""Run every benchmark that a GPU can run, in at most eight minutes, and store what they measure.

    python -m benchmarks.gpu [--device cuda] [--minutes 8] [--only NAME ...] [--out FOLDER]

``make bench-gpu`` calls it. Each benchmark is a process of its own; if one fails, the next begins, and the exit status
names those that failed. When the time is up, the one that runs is stopped and the others are listed as not run: the
most important come first. Needs torch, timm, einops and what dinoneck itself depends on; rows whose peer is not
installed (transformers, segmentation_models_pytorch) are skipped and listed. Results lie in benchmarks/results
as ``*_cuda.json`` and ``*_cuda.md``, with the GPU's name and all versions.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import devices
from benchmarks.speed.results import RESULTS


@dataclass(frozen=True)
class Job:
    """One benchmark.

    Attributes:
        name: of the job.
        module: that runs.
        arguments: that keep it short.
    """

    name: str
    module: str
    arguments: tuple[str, ...] = ()


SPEED = ("--short", "--no-compile", "--rounds", "5")
# Estimated seconds on one H100, 385 in all, none of them measured yet; each job takes about 6 to import torch.
# speed: 20 rows x 2 dtypes x 2 steps x 3.3 variants, each called 34 times or for 0.5 s and 5 rounds: 9 s a row, and 25
# for whole backbones. Forwards alone as graphs in one dtype: 3 s a row.
JOBS = (
    Job("speed", "benchmarks.speed", (*SPEED, "--steps", "forward", "step")),  # 205
    Job("backbones", "benchmarks.backbones", ("--batch", "32", "--rounds", "7")),  # 40
    Job("graphs", "benchmarks.speed", (*SPEED, "--graphs", "--steps", "forward", "--dtypes", "bfloat16")),  # 65
    Job("detection_necks", "benchmarks.detection_necks", ("--batches", "1", "16", "--rounds", "11")),  # 30
    Job("feature_store", "benchmarks.feature_store", ("--images", "1", "--batch", "4")),  # 25
    Job("points", "benchmarks.points", ("--rounds", "5")),  # 20
)  # fmt: skip


def run(jobs: Sequence[Job], device: str, out: Path, seconds: float) -> dict[str, str]:
    """Run jobs one after the other; return what came of each: ``ok``, ``failed ...``, ``not run``.

    Args:
        jobs: in their order.
        device: such as ``cuda``.
        out: folder of the result files.
        seconds: for all of them.
    """
    end, found = time.monotonic() + seconds, {}
    for job in jobs:
        begin = time.monotonic()
        if begin >= end:
            found[job.name] = "not run: the time was up"
            continue
        print(f"== {job.name}", flush=True)
        command = [sys.executable, "-m", job.module, *job.arguments, "--device", device, "--out", str(out)]
        try:
            status = subprocess.run(command, timeout=end - begin, check=False).returncode
            found[job.name] = "ok" if status == 0 else f"failed with exit status {status}"
        except subprocess.TimeoutExpired:
            found[job.name] = "failed: stopped, the time was up"
        found[job.name] += f" ({time.monotonic() - begin:.0f} s)"
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--minutes", type=float, default=8.0, help="for everything")
    parser.add_argument("--only", nargs="+", choices=[job.name for job in JOBS], help="default: all")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    devices.gpu(options.device)
    jobs = [job for job in JOBS if not options.only or job.name in options.only]
    found = run(jobs, options.device, options.out, 60 * options.minutes)
    print("\n".join(f"{name}: {what}" for name, what in found.items()))
    if failed := [name for name, what in found.items() if what.startswith(("failed", "not run"))]:
        raise SystemExit(f"not measured in full: {', '.join(failed)}")


if __name__ == "__main__":
    main()
