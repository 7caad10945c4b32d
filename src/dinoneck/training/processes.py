"""One run in several processes: DistributedDataParallel averages the gradients of their shares of a batch."""

from __future__ import annotations

import atexit
import os
import random
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


def joined(device: torch.device) -> tuple[int, int]:
    """Return this process' rank and the number of processes; open the group of ``torchrun`` where it is not open.

    The group stays open until the process ends: opened a second time it would find the addresses of the first.

    Args:
        device: of the model, which decides between NCCL and Gloo.
    """
    if dist.is_available() and not dist.is_initialized() and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        if device.type == "cuda":
            torch.cuda.set_device(device)  # NCCL takes one process per GPU
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        atexit.register(lambda: dist.destroy_process_group() if _are_several() else None)
    return (dist.get_rank(), dist.get_world_size()) if _are_several() else (0, 1)


def _are_several() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def wrapped(model: nn.Module, parameters: Sequence[nn.Parameter]) -> nn.Module:
    """Return the model in DistributedDataParallel, which gets the weights of the first process; alone, the model.

    Args:
        model: whose ``forward`` returns the losses.
        parameters: whose gradients are averaged, also those that are frozen now and trained later.
    """
    if not _are_several():
        return model
    frozen = [parameter for parameter in parameters if not parameter.requires_grad]
    for parameter in frozen:  # the wrapper only knows parameters that are trainable now
        parameter.requires_grad = True
    found = DistributedDataParallel(model, find_unused_parameters=True)
    for parameter in frozen:
        parameter.requires_grad = False
    return found


def from_first(value: Any) -> Any:
    """Return the first process' value in all processes."""
    values = [value]
    if _are_several():
        dist.broadcast_object_list(values)
    return values[0]


def averaged(row: dict[str, float]) -> dict[str, float]:
    """Return the means of numbers over all processes."""
    if not _are_several():
        return row
    rows: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(rows, row)
    return {name: sum(own[name] for own in rows) / len(rows) for name in row}


@torch.no_grad()
def same(tensors: Iterable[Tensor]) -> None:
    """Give all processes the values of the first."""
    for tensor in tensors if _are_several() else ():
        whole = tensor.contiguous()
        dist.broadcast(whole, 0)
        tensor.copy_(whole)


def seed_all(*words: int) -> None:
    """Seed Python, NumPy and torch (all devices) by some numbers, such as seed, epoch and rank."""
    states = np.random.SeedSequence(words).generate_state(3)
    random.seed(int(states[0]))
    np.random.seed(int(states[1]))  # noqa: NPY002 (sources may draw from the global generator)
    torch.default_generator.manual_seed(int(states[2]))
    if _cuda_runs():  # else torch.manual_seed would queue a call for later
        torch.cuda.manual_seed_all(int(states[2]))


@contextmanager
def own_random_numbers() -> Iterator[None]:
    """After the block the generators of Python, NumPy and torch (all devices) are as before it."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(devices=range(torch.cuda.device_count()) if _cuda_runs() else []):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002


def _cuda_runs() -> bool:
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]
