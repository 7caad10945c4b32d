"""What the machine can do at most: bytes copied and products of random matrices per second, measured."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from benchmarks import devices
from benchmarks.speed.clocks import TorchGpu, cpu_clock, gpu_turns
from benchmarks.timing import turns

GIB = 1 << 30
CPU_COPY, GPU_COPY = GIB // 4, GIB
CPU_SIDE, GPU_SIDE = 1536, 8192


def ceilings(device: str, dtypes: list[str], rounds: int = 5, side: int | None = None) -> dict[str, float]:
    """Return ``copy``, bytes read and written per second, and FLOP/s per dtype; the best of some turns.

    Args:
        device: where.
        dtypes: such as ``float32``.
        rounds: turns.
        side: of the square matrices; None = as fits the device. The numbers in them are random: zeros are faster.
    """
    gpu = devices.is_gpu(device)
    size = GPU_COPY if gpu else CPU_COPY
    side = side or (GPU_SIDE if gpu else CPU_SIDE)
    source = torch.ones(size // 4, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    runs: dict[str, Callable[[], Any]] = {"copy": lambda: target.copy_(source)}
    for dtype in dtypes:
        a, b = (torch.randn(side, side, device=device).to(getattr(torch, dtype)) for _ in range(2))
        runs[dtype] = lambda a=a, b=b: a @ b  # type: ignore[misc]
    if gpu:
        seconds = gpu_turns(runs, TorchGpu(device), rounds=rounds, warmup=3)
    else:
        seconds = turns(runs, rounds=rounds, warmup=1, clock=cpu_clock())
    best = {name: min(found) for name, found in seconds.items()}
    return {name: (2.0 * size if name == "copy" else 2.0 * side**3) / best[name] for name in runs}


def floor_ms(work: tuple[float, float], dtype: str, limits: dict[str, float]) -> dict[str, Any]:
    """Return the least milliseconds that (FLOPs, bytes) take at these ceilings, and which of them binds."""
    flops, moved = work
    computing, moving = flops / limits[dtype] * 1e3, moved / limits["copy"] * 1e3
    bound = "arithmetic" if computing >= moving else "memory"
    return {"flops": flops, "bytes": moved, "ms": max(computing, moving), "bound": bound}
