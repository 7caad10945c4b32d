"""One run in several processes: each computes its share of every batch, and all take the same step.

Every process sends its samples through the model; outputs and targets are gathered, so that all compute the one loss
of the whole batch, whatever it masks or weighs. Each then backpropagates through its own samples, and the sum of the
gradients is the gradient of that loss: the same step as one process takes, up to rounding.
"""

from __future__ import annotations

import atexit
import os
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from dinoneck.errors import ConfigError


@dataclass(frozen=True)
class Processes:
    """This process among those of the run.

    Attributes:
        rank: its number; 0 writes.
        count: how many there are.
    """

    rank: int = 0
    count: int = 1

    @property
    def writes(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    def share(self, rows: Any) -> Any:
        """Return the rows of a batch that this process computes; a stand-in where there are too few for all."""
        own = rows[self.rank :: self.count]
        return own if len(own) else rows[:1]

    def order(self, rows: Any) -> list[Any]:
        """Return the rows of a batch in the order in which :meth:`gathered` has them."""
        return [row for rank in range(self.count) for row in rows[rank :: self.count]]

    def gathered(self, tables: Sequence[Mapping[str, Tensor]], size: int) -> list[dict[str, Tensor]]:
        """Return the tables of all processes' rows, those of a batch of ``size``; gradients flow to the own ones."""
        if self.count == 1:
            return [dict(table) for table in tables]
        counts = [len(range(rank, size, self.count)) for rank in range(self.count)]
        return [{name: self._gathered(x, counts) for name, x in table.items()} for table in tables]

    def _gathered(self, x: Tensor, counts: Sequence[int]) -> Tensor:
        sent = x.detach().to(torch.uint8) if x.dtype == torch.bool else x.detach()
        padded = sent.new_zeros((max(counts), *x.shape[1:]))
        padded[: counts[self.rank]] = sent[: counts[self.rank]]
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded)
        kept = [part[:count].to(x.dtype) for part, count in zip(parts, counts, strict=True)]
        kept[self.rank] = x[: counts[self.rank]]
        return torch.cat(kept)

    def add_gradients(self, parameters: Iterable[nn.Parameter], *, average: bool = False) -> None:
        """Sum the gradients over all processes; average those that every process has whole (rounding may differ)."""
        if self.count == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        for dtype in dict.fromkeys(gradient.dtype for gradient in gradients):
            own = [gradient for gradient in gradients if gradient.dtype == dtype]
            flat = torch.cat([gradient.reshape(-1) for gradient in own])
            dist.all_reduce(flat)
            flat = flat / self.count if average else flat
            for gradient, part in zip(own, torch.split(flat, [gradient.numel() for gradient in own]), strict=True):
                gradient.copy_(part.view_as(gradient))

    @torch.no_grad()
    def same(self, tensors: Iterable[Tensor]) -> None:
        """Give all processes the values of the first."""
        if self.count > 1:
            for tensor in tensors:
                whole = tensor.contiguous()
                dist.broadcast(whole, 0)
                tensor.copy_(whole)

    def agree(self, value: int, what: str) -> None:
        """Refuse to go on if the processes hold different values.

        Raises:
            ConfigError: naming them.
        """
        values: list[Any] = [value] * self.count
        if self.count > 1:
            dist.all_gather_object(values, value)
        if len(set(values)) > 1:
            raise ConfigError(f"the processes differ in {what}: {values}; give all of them the same call")


def joined(device: torch.device) -> Processes:
    """Return this process among those of ``torch.distributed``, or of ``torchrun``, whose group is opened here.

    The group stays open until the process ends: opened a second time it would find the addresses of the first.

    Args:
        device: of the model, which decides between NCCL and Gloo.
    """
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ
    if not dist.is_available() or not (several or dist.is_initialized()):
        return Processes()
    if not dist.is_initialized():
        if device.type == "cuda":
            torch.cuda.set_device(device)  # NCCL takes one process per GPU
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        atexit.register(_close)
    return Processes(dist.get_rank(), dist.get_world_size())


def _close() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def seed_step(seed: int, step: int, rank: int, *, validation: bool = False) -> None:
    """Seed Python, NumPy and torch (all devices) for one step of one process, or the validation after it."""
    words = np.random.SeedSequence([seed, step, rank, int(validation)]).generate_state(3)
    random.seed(int(words[0]))
    np.random.seed(int(words[1]))  # noqa: NPY002 (sources may draw from the global generator)
    torch.default_generator.manual_seed(int(words[2]))
    if _cuda_runs():  # else torch.manual_seed would queue a call for later at every step
        torch.cuda.manual_seed_all(int(words[2]))


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
