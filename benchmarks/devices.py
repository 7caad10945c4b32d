"""What benchmarks ask of the device they run on: the same calls for a CPU and for any GPU that torch knows."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch


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
        raise SystemExit(f"torch {torch.__version__} sees no {kind} device here; leave --device out for the CPU")
    return module


def clock(device: str) -> Callable[[], float]:
    """CPU time of the process; on a GPU the wall clock, which :func:`waiting` makes right."""
    return time.perf_counter if is_gpu(device) else time.process_time


def waiting(device: str) -> Callable[[], None]:
    """Return what waits until the device has finished."""
    if is_gpu(device):
        return lambda: gpu(device).synchronize()
    return lambda: None


def name_of(device: str) -> dict[str, str]:
    """Return ``{"gpu": name}``, to be stored with the machine; nothing on a CPU."""
    return {"gpu": gpu(device).get_device_name()} if is_gpu(device) else {}


def stem(name: str, device: str) -> str:
    """Return the name of result files without its ending: ``speed`` on a CPU, ``speed_cuda`` on CUDA."""
    return f"{name}_{torch.device(device).type}" if is_gpu(device) else name


def no_tf32() -> None:
    """Compute float32 products in float32."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
