"""OpenVINO's tokens next to torch's for every published architecture: largest differences and bounds.

    python -m benchmarks runtimes [--only timm | transformers | rf_detr]
        [--official-dinov2 DIR] [--official-dinov3 DIR]

Compared are the tokens of all blocks, for images of three sizes, with and without the final norm,
in float32 and bfloat16. DIR is a checkout of facebookresearch/dinov2 or dinov3, whose own models
are then compared too; rf_detr are the ViTs of the RF-DETR detectors. The exit code is 1 if a
difference is above its bound.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from benchmarks import parity_runtimes
from benchmarks.measure import Row
from dinoneck.backbones.known import KNOWN
from dinoneck.published.detectors import DETECTORS

ROUNDS = 1
SHORT_ARCHITECTURE = "vit_tiny_patch16_dinov3_qkvb"
SHORT_DETECTOR = "rf_detr_seg_nano"
RF_DETR = "rf_detr"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--official-dinov2", type=Path, metavar="DIR")
    parser.add_argument("--official-dinov3", type=Path, metavar="DIR")


def measure(options: argparse.Namespace) -> Iterator[tuple[str, dict[str, Row]]]:
    """Yield a table per library.

    Raises:
        SystemExit: if a difference is above its bound, or for an unknown part.
    """
    parts = options.only or (*parity_runtimes.LIBRARIES, RF_DETR)
    for part in parts:
        if part not in (*parity_runtimes.LIBRARIES, RF_DETR):
            raise SystemExit(f"--only is {part!r}; expected timm, transformers or {RF_DETR}")
    architectures = KNOWN
    detectors = DETECTORS
    if options.short:
        architectures = tuple(known for known in KNOWN if known.name == SHORT_ARCHITECTURE)
        detectors = {SHORT_DETECTOR: DETECTORS[SHORT_DETECTOR]}
    checkouts: dict[str, Path] = {}
    if options.official_dinov2:
        checkouts["dinov2"] = options.official_dinov2.resolve()
    if options.official_dinov3:
        checkouts["dinov3"] = options.official_dinov3.resolve()
    problems: list[str] = []
    for part in parts:
        if part == RF_DETR:
            rows = parity_runtimes.rf_detr_rows(detectors)
            yield "detectors of RF-DETR", table_of(rows, problems)
        else:
            rows = parity_runtimes.rows(part, architectures)
            yield f"architectures of {part}", table_of(rows, problems)
    if checkouts:
        rows = parity_runtimes.official_rows(checkouts, architectures)
        yield "architectures of the official code", table_of(rows, problems)
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
