"""Honest ratios: all variants in one process, in turn, round after round; the median of the rounds' ratios."""

from __future__ import annotations

import platform
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks import devices
from dinoneck.version import versions

Variants = Mapping[str, Callable[[], Any]]


def compare(
    variants: Variants,
    *,
    peer: str,
    rounds: int = 21,
    warmup: int = 3,
    clock: Callable[[], float] = time.perf_counter,
    before: Callable[[], Any] | None = None,
) -> dict[str, dict[str, float]]:
    """Time the variants against ``peer``, by the wall clock or another; ``before`` runs untimed before each.

    Returns:
        variant -> median milliseconds, median of peer / variant over the rounds, and the rounds' quartiles of it.
    """
    return ratios(turns(variants, rounds=rounds, warmup=warmup, clock=clock, before=before), peer)


def turns(
    variants: Variants,
    *,
    rounds: int = 21,
    warmup: int = 3,
    clock: Callable[[], float] = time.perf_counter,
    before: Callable[[], Any] | None = None,
    seed: int | None = None,
) -> dict[str, list[float]]:
    """Return the seconds of every variant in every round.

    With a seed the order of each round is drawn: in one that never changes a variant gains from what always the same
    one before it leaves in the caches.
    """
    for _ in range(warmup):
        for run in variants.values():
            run()
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for order in drawn_order(list(variants), rounds, seed):
        for name in order:
            run = variants[name]
            if before is not None:
                before()
            begin = clock()
            run()
            seconds[name].append(clock() - begin)
    return seconds


def drawn_order(names: list[str], rounds: int, seed: int | None) -> Iterator[list[str]]:
    """Yield the order of each round, drawn where there is a seed."""
    drawn = None if seed is None else random.Random(seed)
    for _ in range(rounds):
        yield list(names) if drawn is None else drawn.sample(names, len(names))


def ratios(seconds: Mapping[str, list[float]], peer: str) -> dict[str, dict[str, float]]:
    """Return what :func:`compare` does, of seconds already taken: for a second peer in the same rounds."""
    result = {}
    for name, own in seconds.items():
        each = [a / b for a, b in zip(seconds[peer], own, strict=True)]
        low, middle, high = statistics.quantiles(each, n=4)
        result[name] = {"ms": statistics.median(own) * 1e3, "ratio": middle, "ratio_q1": low, "ratio_q3": high}
    return result


def machine(device: str = "cpu") -> dict[str, Any]:
    """Return what the numbers were measured on, under the names that stored results have; a GPU by its name."""
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.exists() else []
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), None)
    return {
        "cpu": model or platform.machine(),
        "cores": torch.get_num_threads(),
        "system": platform.system(),
        "versions": versions(),
        **devices.name_of(device),
    }


def markdown(title: str, rows: Mapping[str, Mapping[str, float]]) -> str:
    """Return one table."""
    lines = [f"**{title}**", "", "| variant | median ms | x peer (quartiles) |", "|---|---|---|"]
    lines += [
        f"| {name} | {row['ms']:.1f} | {row['ratio']:.2f} ({row['ratio_q1']:.2f} … {row['ratio_q3']:.2f}) |"
        for name, row in rows.items()
    ]
    return "\n".join(lines)
