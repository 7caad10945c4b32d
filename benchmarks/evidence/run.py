"""Train and score on real data and generated images, store the tables, and push the heads if asked to.

    DINONECK_WEIGHTS=hub python -m benchmarks evidence [--data DATA] [--device cuda] [--push USER]
    python -m benchmarks evidence --random [--only PART ...]
    python -m benchmarks evidence --random --short        # checks the code: few images and epochs

PART is cover, baselines, cells, masks, resolution, boxes, heads, interval_fields, interval_pasture, gram,
arrangement or rooms.

``make evidence`` calls it. DATA holds crop_cover, blood_cells and rgbd_room; ``DINONECK_WEIGHTS``
is ``hub`` or a folder (see ``weights``). With --random weights are seeded random ones, and the
result is evidence_random.json. A step that fails is named, and the others run.
"""

from __future__ import annotations

import argparse
import os
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

from benchmarks.evidence import published, real
from benchmarks.evidence.baselines import baselines
from benchmarks.evidence.drawn import arrangement, gram, rooms
from benchmarks.evidence.intervals import interval_fields, interval_pasture
from benchmarks.evidence.peers import heads
from benchmarks.evidence.resolution import resolution
from benchmarks.evidence.weights import WEIGHTS
from benchmarks.measure import Row
from benchmarks.results import ROOT

ROUNDS = 3  # seeds
DATA = Path(os.environ.get("DINONECK_DATA", ROOT.parent / "shared" / "data"))
STEPS = {
    "parity": published.parity,
    "published": published.golden,
    "points": published.points,
    "cover": real.cover,
    "baselines": baselines,
    "cells": real.cells,
    "masks": real.masks,
    "resolution": resolution,
    "boxes": real.boxes,
    "heads": heads,
    "interval_fields": interval_fields,
    "interval_pasture": interval_pasture,
    "gram": gram,
    "arrangement": arrangement,
    "rooms": rooms,
}
NEED_WEIGHTS = ("published",)  # left out with random weights
# left out with published weights, unless asked for
NEED_NONE = ("baselines", "interval_pasture", "gram", "arrangement", "rooms")
# file of a run -> name of its repository on the Hub, after "dinoneck-"
PUSHED = {
    "cover/0/head.safetensors": "crop-cover",
    "boxes/FCOS-adapter-0/detector.safetensors": "blood-cells",
}


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument(
        "--runs", type=Path, default=Path("bench-results/evidence"), help="folder of the trainings"
    )
    parser.add_argument("--backbone", default="vit_small_patch16_dinov3.lvd1689m")
    parser.add_argument(
        "--random", action="store_true", help="seeded random weights instead of published ones"
    )
    parser.add_argument(
        "--push", metavar="USER", help="publish the trained heads as USER/dinoneck-NAME on the Hub"
    )


def stem(options: argparse.Namespace) -> str:
    """Return the name of the result."""
    return "evidence_random" if options.random else "evidence"


def measure(options: argparse.Namespace) -> Iterator[tuple[str, dict[str, Row]]]:
    """Yield the table of every step, and their minutes.

    Raises:
        SystemExit: without weights or data, or if a step failed.
    """
    if not (options.random or WEIGHTS):
        raise SystemExit("set DINONECK_WEIGHTS to hub or to a folder of weights, or pass --random")
    if options.push and (options.random or options.short):
        raise SystemExit("--push is for heads that were trained in full with published weights")
    if not (options.data / "crop_cover" / "cover.csv").is_file():
        raise SystemExit(
            f"{options.data} holds no crop_cover/cover.csv; pass --data with the folder of the "
            "data sets"
        )
    if options.short:
        options.rounds = 1
    left_out = NEED_WEIGHTS if options.random else NEED_NONE
    names = options.only or [name for name in STEPS if name not in left_out]

    failed: list[str] = []
    minutes: dict[str, Row] = {}
    for name in names:
        print(f"== {name}", flush=True)
        begin = time.perf_counter()
        try:
            yield name, STEPS[name](options)
        except Exception:
            traceback.print_exc()
            failed.append(name)
        minutes[name] = {"minutes": (time.perf_counter() - begin) / 60}
    yield "minutes", minutes
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")
    if options.push:
        push(options.runs, options.push)


def push(runs: Path, user: str) -> None:
    """Publish what this run trained: the ensemble and the detector."""
    from dinoneck.checkpoint import push_to_hub

    for file, name in PUSHED.items():
        path = runs / file
        if path.exists():
            commit = push_to_hub(path, f"{user}/dinoneck-{name}")
            print(commit.commit_url)
