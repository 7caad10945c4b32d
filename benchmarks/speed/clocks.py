"""Turns of variants, timed by the clock that fits the machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch

from benchmarks.timing import ratios, turns

FLUSH_BYTES = 256 << 20
GPU_WARMUP = 25
SEED = 6  # of the order in each round on a CPU, whose caches nothing empties between two turns
Runs = Mapping[str, Callable[[], Any]]


class Gpu(Protocol):
    """What timing needs of a GPU."""

    def flush(self) -> None:
        """Overwrite the second-level cache."""

    def mark(self) -> Any:
        """Record a point in the stream's time."""

    def seconds(self, begin: Any, end: Any) -> float:
        """Wait for ``end`` and return the time since ``begin``."""

    def captured(self, run: Callable[[], Any]) -> Callable[[], Any]:
        """Return what replays the launches of ``run`` as one graph."""


class Cuda:
    """The GPU that torch sees."""

    def __init__(self) -> None:
        self.scratch = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device="cuda")

    def flush(self) -> None:
        """Overwrite 256 MiB, several times the cache."""
        self.scratch.zero_()

    def mark(self) -> torch.cuda.Event:
        """Record an event."""
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, begin: torch.cuda.Event, end: torch.cuda.Event) -> float:
        """Wait and subtract."""
        end.synchronize()
        return float(begin.elapsed_time(end)) * 1e-3

    def captured(self, run: Callable[[], Any]) -> Callable[[], Any]:
        """Capture after three calls on a side stream, as torch asks for."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                run()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            kept = run()

        def replay() -> Any:
            graph.replay()
            return kept

        return replay


def timed(
    runs: Runs, forms: Mapping[str, str], *, device: str, rounds: int, graphs: bool = False
) -> dict[str, dict[str, Any]]:
    """Time all in turn, and say what each is of the peers in the same rounds.

    Returns:
        variant -> milliseconds, ``ratio`` to the first published form with its quartiles, ``fixed_ratio`` to the
        first layout-fixed one and ``best_ratio`` to the fastest peer of all, compiled ones included.
    """
    if device.startswith("cuda"):
        seconds = gpu_turns(runs, Cuda(), rounds=rounds, graphs=graphs)
    else:
        seconds = turns(runs, rounds=rounds, warmup=2, clock=cpu_clock(), seed=SEED)
    return compared(seconds, forms)


def cpu_clock() -> Callable[[], float]:
    """One thread: its own CPU time, which neighbours hardly disturb. Several: the wall clock."""
    return time.thread_time if torch.get_num_threads() == 1 else time.perf_counter


def compared(seconds: Mapping[str, list[float]], forms: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Ratios of seconds already taken."""
    first = {form: next((name for name in forms if forms[name] == form), None) for form in ("published", "fixed")}
    if first["published"] is None:
        raise ValueError(f"no variant is as published: {dict(forms)}")
    rows: dict[str, dict[str, Any]] = dict(ratios(seconds, first["published"]))
    fixed = ratios(seconds, first["fixed"]) if first["fixed"] is not None else {}
    peers = [name for name in seconds if forms[name] in ("published", "fixed")]
    fastest = min(peers, key=lambda name: rows[name]["ms"])
    best = ratios(seconds, fastest)
    for name, row in rows.items():
        row["fixed_ratio"] = fixed[name]["ratio"] if fixed else None
        row["best_ratio"] = best[name]["ratio"]
    return rows


def gpu_turns(
    runs: Runs, gpu: Gpu, *, rounds: int, graphs: bool = False, warmup: int = GPU_WARMUP
) -> dict[str, list[float]]:
    """Return the seconds of every variant in every round, the cache overwritten before each.

    Args:
        runs: what to time.
        gpu: what takes the time.
        rounds: how often each has its turn.
        graphs: replay the launches as one CUDA graph, which takes the time of launching out.
        warmup: calls of each beforehand.
    """
    for run in runs.values():
        for _ in range(warmup):
            run()
    ready = {name: gpu.captured(run) if graphs else run for name, run in runs.items()}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in ready.items():
            gpu.flush()
            begin = gpu.mark()
            run()
            seconds[name].append(gpu.seconds(begin, gpu.mark()))
    return seconds
