"""OpenVINO's tokens next to torch's: for every published architecture, and in the scores of heads.

    python -m benchmarks runtimes [--only architectures | scores] [--data DATA]
        [--official-dinov2 DIR] [--official-dinov3 DIR]

Two things are shown. ``architectures``: the largest differences of tokens over all blocks, images
of three sizes, with and without the final norm, in float32 and bfloat16; DIR is a checkout of
facebookresearch/dinov2 or dinov3, whose own models are then compared too. ``scores``: what a head
loses that is used with another runtime or precision than it was trained with, on crop_cover and
blood_cells in the folder DATA. Its weights are seeded random ones, or published ones where
DINONECK_WEIGHTS is set. The exit code is 1 if a difference is above its bound.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from benchmarks import parity_runtimes, runtime_scores
from benchmarks.evidence.run import DATA
from benchmarks.measure import Row
from dinoneck.backbones.known import KNOWN

ROUNDS = 1
PARTS = ("architectures", "scores")
SHORT_ARCHITECTURE = "vit_tiny_patch16_dinov3_qkvb"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--official-dinov2", type=Path, metavar="DIR")
    parser.add_argument("--official-dinov3", type=Path, metavar="DIR")


def measure(options: argparse.Namespace) -> Iterator[tuple[str, dict[str, Row]]]:
    """Yield the differences of tokens and the scores.

    Raises:
        SystemExit: if a difference is above its bound, or the data is missing.
    """
    parts = options.only or PARTS
    problems: list[str] = []
    if "architectures" in parts:
        architectures = KNOWN
        if options.short:
            architectures = tuple(known for known in KNOWN if known.name == SHORT_ARCHITECTURE)
        checkouts: dict[str, Path] = {}
        if options.official_dinov2:
            checkouts["dinov2"] = options.official_dinov2.resolve()
        if options.official_dinov3:
            checkouts["dinov3"] = options.official_dinov3.resolve()
        for library in parity_runtimes.LIBRARIES:
            rows = parity_runtimes.rows(library, architectures)
            yield f"architectures of {library}", table_of(rows, problems)
        if checkouts:
            rows = parity_runtimes.official_rows(checkouts, architectures)
            yield "architectures of the official code", table_of(rows, problems)
    if "scores" in parts:
        if not (options.data / "crop_cover" / "cover.csv").is_file():
            raise SystemExit(f"{options.data} holds no crop_cover; pass --data with its folder")
        yield from runtime_scores.tables(options.data, is_short=options.short)
    if problems:
        raise SystemExit(f"above the bound: {'; '.join(problems)}")


def table_of(rows: Iterator[tuple[str, Row, str | None]], problems: list[str]) -> dict[str, Row]:
    """Return the table of rows, and add to the problems what is above its bound."""
    table: dict[str, Row] = {}
    for name, row, problem in rows:
        print(name, flush=True)
        table[name] = row
        if problem is not None:
            problems.append(f"{name}: {problem}")
    return table
