"""Turns of variants, timed by the clock that fits the machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from typing import Any, Protocol

import torch

from benchmarks import devices
from benchmarks.timing import drawn_order, ratios, turns

FLUSH_BYTES = 256 << 20
GPU_WARMUP, WARMUP_S = 25, 0.5
SEED = 6  # of the order in each round
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


class TorchGpu:
    """A GPU that torch sees.

    Args:
        device: such as ``cuda``.
    """

    def __init__(self, device: str) -> None:
        self.module = devices.gpu(device)
        self.scratch = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device=device)

    def flush(self) -> None:
        """Overwrite 256 MiB, several times the cache."""
        self.scratch.zero_()

    def mark(self) -> Any:
        """Record an event."""
        event = self.module.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, begin: Any, end: Any) -> float:
        """Wait and subtract."""
        end.synchronize()
        return float(begin.elapsed_time(end)) * 1e-3

    def captured(self, run: Callable[[], Any]) -> Callable[[], Any]:
        """Capture after three calls on a side stream, as torch asks for."""
        gpu = self.module
        side = gpu.Stream()
        side.wait_stream(gpu.current_stream())
        with gpu.stream(side):
            for _ in range(3):
                run()
        gpu.current_stream().wait_stream(side)
        graph = gpu.CUDAGraph()
        with gpu.graph(graph):
            kept = run()

        def replay() -> Any:
            graph.replay()
            return kept

        return replay


def timed(
    runs: Runs, forms: Mapping[str, str], *, device: str, rounds: int, graphs: Collection[str] = ()
) -> dict[str, dict[str, Any]]:
    """Time all in turn, and say what each is of the peers in the same rounds.

    Returns:
        variant -> milliseconds, ``ratio`` to the first published form with its quartiles, ``fixed_ratio`` to the
        first layout-fixed one and ``best_ratio`` to the fastest peer of all, compiled ones included.
    """
    if devices.is_gpu(device):
        seconds = gpu_turns(runs, TorchGpu(device), rounds=rounds, graphs=graphs)
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
    runs: Runs, gpu: Gpu, *, rounds: int, graphs: Collection[str] = (), warmup: int = GPU_WARMUP
) -> dict[str, list[float]]:
    """Return the seconds of every variant in every round, in an order drawn for each; the cache is overwritten before.

    Args:
        runs: what to time.
        gpu: what takes the time.
        rounds: how often each has its turn.
        graphs: variants whose launches are replayed as one CUDA graph, which takes the time of launching out.
        warmup: calls of each beforehand; fewer where they take more than half a second together.
    """
    for run in runs.values():
        begin = gpu.mark()
        for _ in range(warmup):
            run()
            if gpu.seconds(begin, gpu.mark()) > WARMUP_S:
                break
    ready = {name: gpu.captured(run) if name in graphs else run for name, run in runs.items()}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for order in drawn_order(list(runs), rounds, SEED):
        for name in order:
            run = ready[name]
            gpu.flush()
            begin = gpu.mark()
            run()
            seconds[name].append(gpu.seconds(begin, gpu.mark()))
    return seconds
