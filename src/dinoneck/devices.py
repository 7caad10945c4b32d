"""Device names become devices (under ``torchrun`` the GPU of LOCAL_RANK), and tensors travel in one copy."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import accumulate, pairwise

import torch
from torch import Tensor, nn

from dinoneck.errors import ConfigError


def local_device(device: torch.device | str | None) -> torch.device:
    """Return a device on which this process can make tensors.

    ``cuda`` without a number is ``cuda:LOCAL_RANK`` where ``torchrun`` started this process, and becomes torch's
    current device. A device with a number is kept.

    Args:
        device: such as ``cpu``, ``cuda`` or ``cuda:1``; None = ``cuda`` if there is a GPU, else ``cpu``.

    Raises:
        ConfigError: if the device does not exist here, or fewer GPUs than LOCAL_RANK needs.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        found = torch.device(device)
        rank = _local_rank()
        if found.type == "cuda" and found.index is None and rank is not None:
            found = torch.device("cuda", _checked(rank))
            torch.cuda.set_device(found)
        torch.empty(1, device=found)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device {str(device)!r} cannot be used here: {str(error).splitlines()[0]}") from error
    if found.type == "meta":
        raise ConfigError("device 'meta' holds no values; use cpu or cuda")
    return found


def to_local_device(*modules: nn.Module) -> None:
    """Move modules from ``cuda:0``, where ``module.cuda()`` puts them, to the GPU of this process's LOCAL_RANK.

    Modules on the CPU or on another GPU stay where they are, and so does everything in a process that sees one GPU.
    """
    rank = _local_rank()
    if not rank or torch.cuda.device_count() == 1:
        return
    for module in modules:
        first = next(module.parameters(), None)
        if first is not None and first.device == torch.device("cuda", 0):
            own = torch.device("cuda", _checked(rank))
            torch.cuda.set_device(own)
            module.to(own)


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
    return [part.clone().view(x.dtype).view(x.shape) for part, x in zip(parts, tensors, strict=True)]


_ALIGNMENT = 16


def _parts(buffer: Tensor, places: Sequence[tuple[int, int]], like: Sequence[Tensor]) -> list[Tensor]:
    """Views of a uint8 buffer in the dtypes and shapes of other tensors."""
    spans = zip(places, like, strict=True)
    return [buffer[begin : begin + x.nbytes].view(x.dtype).view(x.shape) for (begin, _), x in spans]


def is_capturing(device: torch.device) -> bool:
    """Whether a CUDA graph is being captured there, during which no value can be read."""
    if device.type == "cpu":
        return False
    asked = getattr(torch.get_device_module(device.type), "is_current_stream_capturing", None)
    return asked is not None and bool(asked())


def _local_rank() -> int | None:
    """The number of this process among those that torchrun started on this machine."""
    text = os.environ.get("LOCAL_RANK")
    if text is None:
        return None
    if not text.isdecimal():
        raise ConfigError(f"LOCAL_RANK is {text!r}; expected 0, 1, ... as torchrun sets it")
    return int(text)


def _checked(rank: int) -> int:
    """Return the rank if there is a GPU for it."""
    count = torch.cuda.device_count()
    if rank >= count:
        raise ConfigError(
            f"LOCAL_RANK is {rank}, and torch sees {count} GPU(s) here; start at most {count} process(es) on this "
            "machine (torchrun --nproc-per-node), or name the device of each process, such as cuda:0"
        )
    return rank
