"""Device names become devices; under ``torchrun`` each process takes the GPU of its LOCAL_RANK."""

from __future__ import annotations

import os

import torch
from torch import nn

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
