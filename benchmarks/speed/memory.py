"""Bytes: what a call adds at its peak, what autograd keeps of it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from benchmarks.backbones import peak_mib as traced_peak_mib
from benchmarks.speed.rows import Variant, tensors_of


def saved_mib(variant: Variant) -> float:
    """MiB that autograd keeps of one forward in train mode, each storage once, weights and inputs left out."""
    variant.module.train()
    given = (*variant.module.parameters(), *variant.module.buffers(), *variant.inputs)
    own = {x.untyped_storage().data_ptr() for x in given}
    kept: dict[int, Any] = {}

    def pack(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        kept[storage.data_ptr()] = storage  # held, so that no address is used twice
        return x

    with saved_tensors_hooks(pack, lambda x: x):
        results = tensors_of(variant.call())
    if not results:
        raise ValueError("the variant gives no tensor")
    return sum(storage.nbytes() for place, storage in kept.items() if place not in own) / 2**20


def peak_mib(run: Callable[[], Any], device: str) -> float:
    """MiB that one call adds at its peak, its result included."""
    with quiet():
        return traced_peak_mib(run, device)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the profiler's lines off the terminal: they come from C++, so the file descriptor is turned away."""
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(nowhere)
        os.close(kept)
