"""One run in several processes: DistributedDataParallel averages the gradients of their shares of a batch."""

from __future__ import annotations

import atexit
import os
import random
from collections.abc import Iterable, Iterator
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
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ
    if not dist.is_available() or not (several or dist.is_initialized()):
        return 0, 1
    if not dist.is_initialized():
        if device.type == "cuda":
            torch.cuda.set_device(device)  # NCCL takes one process per GPU
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        atexit.register(_close)
    return dist.get_rank(), dist.get_world_size()


def _close() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def wrapped(model: nn.Module, parameters: Iterable[nn.Parameter]) -> nn.Module:
    """Return the model in DistributedDataParallel, which gets the weights of the first process; alone, the model.

    Args:
        model: whose ``forward`` returns the losses.
        parameters: whose gradients are averaged, also those that are frozen now and trained later.
    """
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
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
    if dist.is_available() and dist.is_initialized():
        dist.broadcast_object_list(values)
    return values[0]


def averaged(row: dict[str, float], device: torch.device) -> dict[str, float]:
    """Return the means of numbers over all processes."""
    if not dist.is_available() or not dist.is_initialized():
        return row
    values = torch.tensor([*row.values()], dtype=torch.float64, device=device)
    dist.all_reduce(values)
    return dict(zip(row, (values / dist.get_world_size()).tolist(), strict=True))


@torch.no_grad()
def same(tensors: Iterable[Tensor]) -> None:
    """Give all processes the values of the first."""
    if dist.is_available() and dist.is_initialized():
        for tensor in tensors:
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
def own_random_numbers(*, cuda: bool = True) -> Iterator[None]:
    """After the block the generators of Python, NumPy and torch (with ``cuda`` of all devices) are as before it."""
    devices = range(torch.cuda.device_count()) if cuda and _cuda_runs() else []
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002


def _cuda_runs() -> bool:
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]
