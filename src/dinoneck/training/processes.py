"""The processes of ``torchrun``: their group, what they wait for and what they tell each other."""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def join_processes(device: torch.device) -> tuple[int, int]:
    """Return this process' rank and the number of processes; open the group of ``torchrun`` where it is not open.

    The group stays open until the process ends: opened a second time it would find the addresses of
    the first.

    Args:
        device: of the model, which decides between NCCL and Gloo.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        if device.type == "cuda":
            torch.cuda.set_device(device)  # NCCL takes one process per GPU
            dist.init_process_group("nccl")
        else:
            dist.init_process_group("gloo")
        atexit.register(_leave_processes)
    if not are_several():
        return 0, 1
    return dist.get_rank(), dist.get_world_size()


def _leave_processes() -> None:
    if are_several():
        dist.destroy_process_group()


def are_several() -> bool:
    """Return whether this process is one of several of a group that torch.distributed has opened."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def wait_for_all() -> None:
    """Wait until all processes of the group are here."""
    gather(None)


def gather(value: Any) -> list[Any]:
    """Return the values of all processes."""
    if not are_several():
        return [value]
    values = [value] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


@torch.no_grad()
def copy_from_first(tensors: Iterable[Tensor]) -> None:
    """Give all processes the values of the first."""
    if not are_several():
        return
    for tensor in tensors:
        contiguous = tensor.contiguous()
        dist.broadcast(contiguous, 0)
        tensor.copy_(contiguous)
