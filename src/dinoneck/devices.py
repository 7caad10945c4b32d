"""Device names become devices (under ``torchrun`` that of LOCAL_RANK), and tensors travel in one copy, or as bytes."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Sequence

import torch
from torch import Tensor

from dinoneck.errors import ConfigError
from dinoneck.text import first_line


def local_device(device: torch.device | str | None) -> torch.device:
    """Return a device on which this process can make tensors.

    ``cuda`` without a number is ``cuda:LOCAL_RANK`` where ``torchrun`` started this process, and
    becomes torch's current device. A device with a number is kept.

    Args:
        device: such as ``cpu``, ``cuda`` or ``cuda:1``; None = ``cuda`` if there is a GPU, else
            ``cpu``.

    Raises:
        ConfigError: if the device does not exist here, or fewer GPUs than LOCAL_RANK needs.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    rank = os.environ.get("LOCAL_RANK")
    try:
        local = torch.device(device)
        if local.type == "cuda" and local.index is None and rank is not None:
            local = torch.device("cuda", int(rank))
            torch.cuda.set_device(local)
        torch.empty(1, device=local)
    except (RuntimeError, AssertionError, ValueError) as error:
        raise ConfigError(
            f"device {str(device)!r} cannot be used here (LOCAL_RANK {rank}, "
            f"{torch.cuda.device_count()} GPUs): {first_line(error)}"
        ) from error
    if local.type == "meta":
        raise ConfigError("device 'meta' holds no values; use cpu or cuda")
    return local


def peak_memory_mb(device: torch.device) -> float | None:
    """Return the most memory so far in MiB: of torch on a GPU, else of this process.

    None where the system does not tell it, as on Windows.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    try:
        import resource
    except ImportError:
        return None
    units_per_mb = 2**20 if sys.platform == "darwin" else 2**10  # bytes, or kilobytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / units_per_mb


def send(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Return the tensors on a device; those of the host travel in one copy that the host does not wait for.

    Args:
        tensors: of any dtypes; the ones that are on the device already are returned as they are.
        device: where to; on a CPU nothing is copied.
    """
    if device.type in ("cpu", "mps"):
        return [x.to(device) for x in tensors]
    from_host = [x for x in tensors if x.device.type == "cpu"]
    if not from_host:
        return [x.to(device) for x in tensors]
    offsets, num_bytes = _layout(from_host)
    pinned = torch.empty(num_bytes, dtype=torch.uint8, pin_memory=True)
    for view, x in zip(_views(pinned, offsets, from_host), from_host, strict=True):
        view.copy_(x)
    on_device = pinned.to(device, non_blocking=True)
    arrived = iter(_views(on_device, offsets, from_host))
    return [next(arrived) if x.device.type == "cpu" else x.to(device) for x in tensors]


def fetch(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return the tensors on the CPU; those of a GPU are joined there and read at once."""
    if not tensors or tensors[0].device.type in ("cpu", "mps"):
        return [x.cpu() for x in tensors]
    flat = [x.detach().contiguous().view(-1).view(torch.uint8) for x in tensors]
    joined = torch.cat(flat).cpu()
    on_cpu = []
    for x, content in zip(tensors, torch.split(joined, [x.nbytes for x in tensors]), strict=True):
        on_cpu.append(content.clone().view(x.dtype).view(x.shape))
    return on_cpu


_ALIGNMENT = 16  # bytes: of the largest dtype, complex128


def _layout(tensors: Sequence[Tensor]) -> tuple[list[int], int]:
    """The offsets at which tensors lie in one aligned buffer, and its number of bytes."""
    offsets = []
    end = 0
    for x in tensors:
        offsets.append(end)
        end += math.ceil(x.nbytes / _ALIGNMENT) * _ALIGNMENT
    return offsets, end


def _views(buffer: Tensor, offsets: Sequence[int], like: Sequence[Tensor]) -> list[Tensor]:
    """Views of a uint8 buffer in the dtypes and shapes of other tensors."""
    views = []
    for start, x in zip(offsets, like, strict=True):
        views.append(buffer[start : start + x.nbytes].view(x.dtype).view(x.shape))
    return views


def is_capturing(device: torch.device) -> bool:
    """Whether a CUDA graph is being captured there, during which no value can be read."""
    module = torch.get_device_module(device.type)
    is_stream_capturing = getattr(module, "is_current_stream_capturing", None)  # None on a CPU
    return is_stream_capturing is not None and bool(is_stream_capturing())


def bytes_of(tensor: Tensor) -> memoryview:
    """Return a tensor's values in row-major order; on the CPU they are not copied if they lie so already."""
    values = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return memoryview(values)  # type: ignore[arg-type]


def check_device(device: torch.device | str) -> None:
    """Check that tensors can be made on a device, ``meta`` included; the current device stays.

    Raises:
        ConfigError: if it does not exist here.
    """
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise ConfigError(
            f"device {str(device)!r} cannot be used here ({torch.cuda.device_count()} GPUs): "
            f"{first_line(error)}"
        ) from error
