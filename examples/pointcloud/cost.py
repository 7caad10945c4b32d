"""Seconds and memory of a piece of work."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import torch

from dinoneck.devices import peak_memory_mb


@dataclass
class Cost:
    """What a piece of work took.

    Attributes:
        seconds: of the clock, the device's work included.
        peak_memory_mb: MiB; on a GPU the most that torch held since the work began, else the most
            that this process held since its start; 0 where the system does not tell it.
    """

    seconds: float = 0.0
    peak_memory_mb: float = 0.0

    def to_json(self) -> dict[str, float]:
        """Return it as plain values."""
        return asdict(self)


@contextmanager
def measured(device: torch.device | str) -> Iterator[Cost]:
    """Measure the ``with`` block; the numbers are there once it has ended."""
    device = torch.device(device)
    cost = Cost()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    begin = time.perf_counter()
    try:
        yield cost
    finally:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        cost.seconds = time.perf_counter() - begin
        cost.peak_memory_mb = peak_memory_mb(device) or 0.0
