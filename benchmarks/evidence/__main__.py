"""Run every step with published weights, store the numbers, write the page, and push the heads if asked to.

    DINONECK_WEIGHTS=hub python -m benchmarks.evidence [--data DATA] [--device cuda] [--push USER]
    python -m benchmarks.evidence --random --short        # checks the code: random weights, few images and epochs

``make evidence`` calls it. DATA holds crop_cover, blood_cells and rgbd_room; ``DINONECK_WEIGHTS`` is ``hub`` or a
folder (see the package). A step that fails is named, and the others run. A whole run with published weights writes
benchmarks/results/evidence.json and docs/explanation/results.md, any other one OUT/evidence.json alone.
"""

from __future__ import annotations

import argparse
import json
import os
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.evidence import WEIGHTS
from benchmarks.evidence.page import PAGE, RESULTS, filled
from benchmarks.evidence.steps import STEPS
from benchmarks.timing import machine
from dinoneck.inference.timing import peak_process_bytes

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("DINONECK_DATA", ROOT.parent / "shared" / "data"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; return 1 if a step failed, or libraries differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--out", type=Path, default=Path("bench-results/evidence"))
    parser.add_argument("--backbone", default="vit_small_patch16_dinov3.lvd1689m")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", nargs="+", choices=tuple(STEPS), default=list(STEPS))
    parser.add_argument("--random", action="store_true", help="seeded random weights instead of published ones")
    parser.add_argument("--short", action="store_true", help="few images and epochs")
    parser.add_argument("--push", metavar="USER", help="publish the trained heads as USER/dinoneck-NAME on the Hub")
    options = parser.parse_args(arguments)
    if not (options.random or WEIGHTS):
        parser.error(
            "set DINONECK_WEIGHTS to hub or to a folder of weights, or pass --random for seeded random weights"
        )
    if options.push and (options.random or options.short):
        parser.error("--push is for heads that were trained in full with published weights")
    if not (options.data / "crop_cover" / "cover.csv").is_file():
        parser.error(f"{options.data} holds no crop_cover/cover.csv; pass --data with the folder of the data sets")
    (options.out / "heads").mkdir(parents=True, exist_ok=True)
    report = {"steps": run(options), "backbone": options.backbone, "machine": machine(options.device)}
    (options.out / "evidence.json").write_text(json.dumps(report, indent=1) + "\n")
    failed = [name for name, step in report["steps"].items() if "failed" in step or step.get("holds") is False]
    if not (failed or options.random or options.short or set(STEPS) - set(options.only)):
        RESULTS.write_text(json.dumps(report, indent=1) + "\n")
        PAGE.write_text(filled(PAGE.read_text(), report))
    if options.push and not failed:
        push(options)
    print(f"written: {options.out}/evidence.json; failed: {', '.join(failed) or 'none'}")
    return int(bool(failed))


def run(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Return what each step gives, with its minutes and the process's peak memory up to its end."""
    found: dict[str, dict[str, Any]] = {}
    for name in options.only:
        print(f"== {name}", flush=True)
        begin = time.perf_counter()
        try:
            found[name] = STEPS[name](options)
        except Exception as error:
            traceback.print_exc()
            found[name] = {"failed": f"{type(error).__name__}: {error}"}
        minutes, peak = (time.perf_counter() - begin) / 60, (peak_process_bytes() or 0) / 2**30
        found[name] |= {"wall_minutes": minutes, "peak_GiB": peak}
    return found


def push(options: argparse.Namespace) -> None:
    """Publish what this run trained: the ensembles and the detector."""
    from dinoneck.checkpoint import push_to_hub

    trained = {
        "cover": ("heads/cover.safetensors", "crop-cover"),
        "cells": ("heads/cells.safetensors", "crop-cells"),
        "detector": ("detector/detector.safetensors", "blood-cells"),
    }
    for file, name in (trained[step] for step in options.only if step in trained):
        print(push_to_hub(options.out / file, f"{options.push}/dinoneck-{name}").url)


if __name__ == "__main__":
    raise SystemExit(main())
