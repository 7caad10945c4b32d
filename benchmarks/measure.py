"""Ratios of times: all variants take turns in one process; the median of the rounds' ratios counts."""

from __future__ import annotations

import functools
import os
import platform
import random
import statistics
import time
from collections.abc import Callable, Collection, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.results import processor
from dinoneck.version import versions

Variants = Mapping[str, Callable[[], Any]]
Timer = Callable[[Callable[[], Any]], float]
Row = dict[str, Any]
PEERS = (
    "torchvision",
    "transformers",
    "segmentation_models_pytorch",
    "onnxruntime",
    "fastapi",
    "uvicorn",
    "pillow",
    "lmdb",
    "datasets",
)
FLUSH_BYTES = 256 << 20  # overwritten between calls: more than any second-level cache
# calls before a GPU's first time, at most so many and for so long
GPU_WARMUP = 25
WARMUP_S = 0.5
GRAPH_WARMUP = 3  # calls before a capture, as torch asks for
ORDER_SEED = 6


def wall(run: Callable[[], Any]) -> float:
    """Return the seconds of a call by the wall clock."""
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def cpu(run: Callable[[], Any]) -> float:
    """Return the CPU seconds that the process spends on a call."""
    begin = time.process_time()
    run()
    return time.process_time() - begin


def per_sample(run: Callable[[], int]) -> float:
    """Return the seconds per sample of a call that returns how many it saw."""
    begin = time.perf_counter()
    count = run()
    return (time.perf_counter() - begin) / count


def turns(
    variants: Variants,
    *,
    rounds: int,
    timer: Timer = wall,
    warmup: int = 1,
    before: Callable[[], Any] | None = None,
) -> dict[str, list[float]]:
    """Return the seconds of every variant in every round; ``before`` runs untimed before each.

    The order of each round is drawn: if it never changed, a variant would always find the caches as
    the same other variant leaves them.
    """
    for _ in range(warmup):
        for run in variants.values():
            timer(run)
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    generator = random.Random(ORDER_SEED)
    for _ in range(rounds):
        for name in generator.sample(list(variants), len(variants)):
            if before is not None:
                before()
            seconds[name].append(timer(variants[name]))
    return seconds


class Clock(NamedTuple):
    """What a clock says of variants that took turns.

    Attributes:
        first: the seconds of every variant's first run, the warm-up.
        seconds: those of every round after it.
    """

    first: dict[str, float]
    seconds: dict[str, list[float]]


def turns_by_both_clocks(variants: Variants, *, rounds: int) -> tuple[Clock, Clock]:
    """Return what the wall clock and the CPU time of the process say of the same runs."""
    by_wall_clock: dict[str, list[float]] = {name: [] for name in variants}
    by_cpu_time: dict[str, list[float]] = {name: [] for name in variants}

    def run_on_cpu_clock(name: str) -> None:
        cpu_seconds = cpu(variants[name])
        by_cpu_time[name].append(cpu_seconds)

    def run_on_both_clocks(name: str) -> None:
        wall_seconds = wall(functools.partial(run_on_cpu_clock, name))
        by_wall_clock[name].append(wall_seconds)

    runs = {name: functools.partial(run_on_both_clocks, name) for name in variants}
    turns(runs, rounds=rounds)
    return _after_first(by_wall_clock), _after_first(by_cpu_time)


def _after_first(seconds: Mapping[str, list[float]]) -> Clock:
    first = {name: times[0] for name, times in seconds.items()}
    others = {name: times[1:] for name, times in seconds.items()}
    return Clock(first, others)


def ratios(seconds: Mapping[str, list[float]], peer: str, label: str = "× peer") -> dict[str, Row]:
    """Return variant -> median milliseconds, and the median and quartiles of peer / variant."""
    rows: dict[str, Row] = {}
    for name, times in seconds.items():
        of_rounds = []
        for peer_time, time_ in zip(seconds[peer], times, strict=True):
            of_rounds.append(peer_time / time_)
        if len(of_rounds) > 1:
            low, middle, high = statistics.quantiles(of_rounds, n=4)
        else:
            low = middle = high = of_rounds[0]
        rows[name] = {
            "ms": statistics.median(times) * 1e3,
            label: middle,
            "quartiles": [low, high],
        }
    return rows


def machine(device: str = "cpu") -> dict[str, Any]:
    """Describe the machine: CPU, cores, threads, system, versions, and the name of the GPU."""
    described: dict[str, Any] = {
        "cpu": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": platform.system(),
        "versions": versions(),
    }
    for name in PEERS:
        try:
            described["versions"][name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    if is_gpu(device):
        described["gpu"] = gpu(device).get_device_name()
    return described


def resident(field: str) -> float:
    """Return the MiB of this process by a field of /proc: ``VmRSS``, or its peak ``VmHWM``.

    Raises:
        ValueError: if there is no such field.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            kib = float(line.split()[1])
            return kib / 2**10
    raise ValueError(f"/proc/self/status has no field {field!r}")


def is_gpu(device: str | torch.device) -> bool:
    """Whether the device runs next to the host, which then has to wait for results."""
    return torch.device(device).type != "cpu"


def gpu(device: str) -> Any:
    """Return torch's module of a GPU, such as ``torch.cuda``.

    Raises:
        SystemExit: if torch has none by this name, or sees no such device here.
    """
    kind = torch.device(device).type
    module: Any = getattr(torch, kind, None)
    if module is None or not module.is_available():
        raise SystemExit(
            f"torch {torch.__version__} sees no {kind} device here; leave --device out for the CPU"
        )
    return module


def synchronizer(device: str) -> Callable[[], Any]:
    """Return a function that waits until the device has finished."""
    if is_gpu(device):
        return gpu(device).synchronize
    return lambda: None


class GpuTimer:
    """Times calls by the GPU's events, each after the second-level cache was overwritten.

    Args:
        device: such as ``cuda``.
        graphs: calls to replay as one CUDA graph each, without the time of launches.
    """

    def __init__(self, device: str, graphs: Collection[Callable[[], Any]] = ()) -> None:
        self.module = gpu(device)
        self.graphs = graphs
        self.scratch = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device=device)
        self.ready: dict[Callable[[], Any], Callable[[], Any]] = {}

    def __call__(self, run: Callable[[], Any]) -> float:
        """Return the seconds of a call; the first one is a warm-up."""
        if run not in self.ready:
            self._warm_up(run)
            self.ready[run] = self._capture(run) if run in self.graphs else run
        self.scratch.zero_()
        begin = self._mark()
        self.ready[run]()
        return self._seconds(begin, self._mark())

    def _warm_up(self, run: Callable[[], Any]) -> None:
        begin = self._mark()
        for _ in range(GPU_WARMUP):
            run()
            if self._seconds(begin, self._mark()) > WARMUP_S:
                break

    def _mark(self) -> Any:
        event = self.module.Event(enable_timing=True)
        event.record()
        return event

    def _seconds(self, begin: Any, end: Any) -> float:
        end.synchronize()
        return float(begin.elapsed_time(end)) * 1e-3

    def _capture(self, run: Callable[[], Any]) -> Callable[[], Any]:
        """Return the replay of a graph, captured after some calls on a side stream."""
        side = self.module.Stream()
        side.wait_stream(self.module.current_stream())
        with self.module.stream(side):
            for _ in range(GRAPH_WARMUP):
                run()
        self.module.current_stream().wait_stream(side)
        graph: Any = self.module.CUDAGraph()
        with self.module.graph(graph):
            run()
        return graph.replay


def timer_of(device: str, graphs: Collection[Callable[[], Any]] = ()) -> Timer:
    """Return the clock: of a GPU, the CPU time of one thread, or the wall clock of several threads.

    Other processes hardly disturb the CPU time.
    """
    if is_gpu(device):
        return GpuTimer(device, graphs)
    if torch.get_num_threads() == 1:
        return cpu
    return wall
