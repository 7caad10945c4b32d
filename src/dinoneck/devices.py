"""Device names become devices (under ``torchrun`` that of LOCAL_RANK), and tensors travel in one copy, or as bytes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from dinoneck.errors import ConfigError, first_line


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
        found = torch.device(device)
        if found.type == "cuda" and found.index is None and rank is not None:
            found = torch.device("cuda", int(rank))
            torch.cuda.set_device(found)
        torch.empty(1, device=found)
    except (RuntimeError, AssertionError, ValueError) as error:
        raise ConfigError(
            f"device {str(device)!r} cannot be used here (LOCAL_RANK {rank}, "
            f"{torch.cuda.device_count()} GPUs): {first_line(error)}"
        ) from error
    if found.type == "meta":
        raise ConfigError("device 'meta' holds no values; use cpu or cuda")
    return found


def send(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Return the tensors on a device; those of the host travel in one copy that the host does not wait for.

    Args:
        tensors: of any dtypes; the ones that are on the device already are returned as they are.
        device: where to; on a CPU nothing is copied.
    """
    if device.type in ("cpu", "mps"):
        return [x.to(device) for x in tensors]
    leaving = [x for x in tensors if x.device.type == "cpu"]
    ends = accumulate((-(-x.nbytes // _ALIGNMENT) * _ALIGNMENT for x in leaving), initial=0)
    places = list(pairwise(ends))
    pinned = torch.empty(places[-1][1] if places else 0, dtype=torch.uint8, pin_memory=True)
    for part, x in zip(_parts(pinned, places, leaving), leaving, strict=True):
        part.copy_(x)
    arrived = iter(_parts(pinned.to(device, non_blocking=True), places, leaving) if leaving else [])
    return [next(arrived) if x.device.type == "cpu" else x.to(device) for x in tensors]


def fetch(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return the tensors on the CPU; those of a GPU are joined there and read at once."""
    if not tensors or tensors[0].device.type in ("cpu", "mps"):
        return [x.cpu() for x in tensors]
    joined = torch.cat([x.detach().contiguous().view(-1).view(torch.uint8) for x in tensors]).cpu()
    parts = torch.split(joined, [x.nbytes for x in tensors])
    return [
        part.clone().view(x.dtype).view(x.shape) for part, x in zip(parts, tensors, strict=True)
    ]


_ALIGNMENT = 16


def _parts(
    buffer: Tensor, places: Sequence[tuple[int, int]], like: Sequence[Tensor]
) -> list[Tensor]:
    """Views of a uint8 buffer in the dtypes and shapes of other tensors."""
    spans = zip(places, like, strict=True)
    return [buffer[begin : begin + x.nbytes].view(x.dtype).view(x.shape) for (begin, _), x in spans]


def is_capturing(device: torch.device) -> bool:
    """Whether a CUDA graph is being captured there, during which no value can be read."""
    # None on a CPU
    asked = getattr(torch.get_device_module(device.type), "is_current_stream_capturing", None)
    return asked is not None and bool(asked())


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


def check_float(dtype: object) -> None:
    """Check that this is a dtype of real numbers, for weights.

    Raises:
        ConfigError: for a dtype of integers, and for what is no torch dtype, such as its name.
    """
    if not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise ConfigError(
            f"dtype is {dtype!r}; expected a floating-point torch dtype such as torch.bfloat16"
        )
