"""Measure the rows of the speed table.

    OMP_NUM_THREADS=1 python -m benchmarks.speed [--rows NAME ...] [--dtypes float32 bfloat16] [--threads 1]
                      [--device cpu] [--rounds 15] [--short] [--steps forward step] [--no-compile] [--graphs] [--repeat]
                      [--out FOLDER]

Variants of a row share weights and tokens and take turns, in another order each round. Before anything is timed their
results and gradients are checked equal in float64 (1e-9), and their results in the dtype measured. One CPU thread is
timed by its own CPU time, several by the wall clock, a GPU by events with the second-level cache overwritten before
each turn. Numbers are medians of the rounds' ratios. Rows whose peer is not installed are skipped and listed. Writes
speed.json and speed.md (speed_2_threads.*; on a GPU speed_cuda.* and, with --graphs, speed_cuda_graphs.*) to
benchmarks/results, merged with what the same machine measured before; --repeat adds the medians of a second run. --page
writes docs/explanation/speed.md from what is stored, and measures nothing.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from benchmarks import devices
from benchmarks.sources import source_hash
from benchmarks.speed import page
from benchmarks.speed.checks import check
from benchmarks.speed.measure import measured
from benchmarks.speed.results import RESULTS, merged, save, stem_of, stored
from benchmarks.speed.roofline import ceilings, floor_ms
from benchmarks.speed.rows import STEPS, Row
from benchmarks.speed.share import backbone_ms
from benchmarks.speed.summary import document
from benchmarks.speed.table import markdown
from benchmarks.speed.table_rows import ROWS, goals_of
from benchmarks.timing import machine

PEERS = ("torchvision", "transformers", "segmentation_models_pytorch", "terratorch")


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", help="names, or parts of them; default: all")
    parser.add_argument(
        "--dtypes", nargs="+", default=["float32", "bfloat16"], choices=["float32", "bfloat16", "float16"]
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--short", action="store_true", help="the first setting of every row only")
    parser.add_argument("--steps", nargs="+", default=STEPS, choices=STEPS, help="default: all")
    parser.add_argument("--no-compile", action="store_true", help="leave the compiled variants out")
    parser.add_argument("--graphs", action="store_true", help="on a GPU, replay forwards as CUDA graphs (to *_graphs)")
    parser.add_argument("--repeat", action="store_true", help="a second run: medians next to those stored")
    parser.add_argument("--page", action="store_true", help="write the page of the docs and stop")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the result files")
    return parser.parse_args(arguments)


def described(options: argparse.Namespace) -> dict[str, Any]:
    """Say on what and how this run measures."""
    found = machine(options.device)
    for name in PEERS:
        try:
            found["versions"][name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def results_of(row: Row, options: argparse.Namespace, limits: dict[str, float]) -> dict[str, Any]:
    """Measure one row."""
    gpu = devices.is_gpu(options.device)
    goals = goals_of(row, gpu)
    found: dict[str, Any] = {"goals": goals, "why": row.why, "results": {}, "floors": {}}
    if gpu and row.neck and not options.graphs:
        found["backbones"] = {}
    for setting in row.settings_on(options.device)[: 1 if options.short else None]:
        check(row, setting)
        for dtype in options.dtypes:
            here = setting.of(dtype=getattr(torch, dtype))
            title = f"{setting.title}, {dtype}"
            if row.work is not None:
                found["floors"][title] = floor_ms(row.work(here), dtype, limits)
            if "backbones" in found:
                found["backbones"][title] = backbone_ms(here, options.rounds)
            found["results"][title] = measured(
                row,
                here,
                rounds=options.rounds,
                compiled=not options.no_compile,
                graphs=options.graphs,
                steps=options.steps,
            )
    return found


def place_of(name: str) -> int:
    """The place of a row in the tables; rows that are not known here come last."""
    return next((place for place, row in enumerate(ROWS) if row.name == name), len(ROWS))


def main(arguments: Sequence[str] | None = None) -> None:
    options = parsed(arguments)
    if options.page:
        page.write()
        return
    torch.set_num_threads(options.threads)
    devices.no_tf32()
    rows = [row for row in ROWS if not options.rows or any(part in row.name for part in options.rows)]
    limits = ceilings(options.device, options.dtypes)
    report: dict[str, Any] = {
        "machine": described(options), "threads": options.threads, "device": options.device,
        "ceilings": limits, "rows": {}, "sources": source_hash("speed"),
    }  # fmt: skip
    stem, skipped = stem_of(options.device, options.threads, options.graphs), {}
    for row in rows:
        try:
            report["rows"] = {row.name: results_of(row, options, limits)}
        except ModuleNotFoundError as error:  # a peer that is not installed
            skipped[row.name] = str(error)
            continue
        whole = merged(stored(options.out, stem), report, second=options.repeat)
        whole["rows"] = {name: whole["rows"][name] for name in sorted(whole["rows"], key=place_of)}
        save(whole, options.out, stem, document(whole))  # after every row: what was measured is kept
        print(markdown(row.name, whole["rows"][row.name]), flush=True)
    for name, why in skipped.items():
        print(f"skipped: {name} ({why})")


if __name__ == "__main__":
    main()
