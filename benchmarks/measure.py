"""Honest ratios: all variants in one process, in turn, round after round; the median of the rounds' ratios."""

from __future__ import annotations

import os
import platform
import random
import statistics
import time
from collections.abc import Callable, Collection, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

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
FLUSH_BYTES = 256 << 20
GPU_WARMUP, WARMUP_S = 25, 0.5


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

    The order of each round is drawn: in one that never changes a variant gains from what always the
    same one before it leaves in the caches.
    """
    for _ in range(warmup):
        for run in variants.values():
            timer(run)
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    drawn = random.Random(6)
    for _ in range(rounds):
        for name in drawn.sample(list(variants), len(variants)):
            if before is not None:
                before()
            seconds[name].append(timer(variants[name]))
    return seconds


def ratios(seconds: Mapping[str, list[float]], peer: str, label: str = "× peer") -> dict[str, Row]:
    """Return variant -> median milliseconds, median of peer / variant over the rounds, and the rounds' quartiles."""
    rows: dict[str, Row] = {}
    for name, own in seconds.items():
        each = [a / b for a, b in zip(seconds[peer], own, strict=True)]
        low, middle, high = statistics.quantiles(each, n=4) if len(each) > 1 else each * 3
        rows[name] = {"ms": statistics.median(own) * 1e3, label: middle, "quartiles": [low, high]}
    return rows


def machine(device: str = "cpu") -> dict[str, Any]:
    """Return what the numbers are measured on; a GPU by its name."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), None
    )
    found = {
        "cpu": model or platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": platform.system(),
        "versions": versions(),
    }
    for name in PEERS:
        try:
            found["versions"][name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found | ({"gpu": gpu(device).get_device_name()} if is_gpu(device) else {})


def resident(which: str) -> float:
    """Return the MiB of this process by a name of /proc: ``VmRSS``, or its peak ``VmHWM``."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(which)) / 2**10


def is_gpu(device: str | torch.device) -> bool:
    """Whether work on this device runs next to the host, which then has to wait for it."""
    return torch.device(device).type != "cpu"


def gpu(device: str) -> Any:
    """Return torch's module of a GPU, such as ``torch.cuda``.

    Raises:
        SystemExit: if torch has none by this name, or sees no such device here.
    """
    kind = torch.device(device).type
    module = getattr(torch, kind, None)
    if module is None or not module.is_available():
        raise SystemExit(
            f"torch {torch.__version__} sees no {kind} device here; leave --device out for the CPU"
        )
    return module


def waiting(device: str) -> Callable[[], None]:
    """Return what waits until the device has finished."""
    return gpu(device).synchronize if is_gpu(device) else lambda: None  # type: ignore[no-any-return]


class GpuTimer:
    """Times calls by the GPU's events, each after the second-level cache was overwritten.

    Args:
        device: such as ``cuda``.
        graphs: calls to replay as one CUDA graph each, which takes the time of launching out.
    """

    def __init__(self, device: str, graphs: Collection[Callable[[], Any]] = ()) -> None:
        self.module, self.graphs = gpu(device), graphs
        self.scratch = torch.empty(FLUSH_BYTES, dtype=torch.uint8, device=device)
        self.ready: dict[Callable[[], Any], Callable[[], Any]] = {}

    def __call__(self, run: Callable[[], Any]) -> float:
        """Return the seconds of a call; the first one is a warm-up."""
        if run not in self.ready:
            self._warm_up(run)
            self.ready[run] = self._captured(run) if run in self.graphs else run
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

    def _captured(self, run: Callable[[], Any]) -> Callable[[], Any]:
        """Capture after three calls on a side stream, as torch asks for."""
        side = self.module.Stream()
        side.wait_stream(self.module.current_stream())
        with self.module.stream(side):
            for _ in range(3):
                run()
        self.module.current_stream().wait_stream(side)
        graph = self.module.CUDAGraph()
        with self.module.graph(graph):
            run()
        return graph.replay  # type: ignore[no-any-return]


def timer_of(device: str, graphs: Collection[Callable[[], Any]] = ()) -> Timer:
    """Return the clock that fits: CPU time for one thread, which neighbours hardly disturb; else the wall clock."""
    if is_gpu(device):
        return GpuTimer(device, graphs)
    return cpu if torch.get_num_threads() == 1 else wall
