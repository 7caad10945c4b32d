"""Random numbers of a training run: those of every step follow from the seed and the step alone.

Nothing of the generators' state has to be kept, so that a resumed run draws what the uninterrupted one drew; and the
caller's own generators stand after the run where they stood before.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def seed_step(seed: int, step: int, rank: int, *, validation: bool = False) -> None:
    """Seed Python, NumPy and torch (all devices) for one step of one process, or the validation after it."""
    words = np.random.SeedSequence([seed, step, rank, int(validation)]).generate_state(3)
    random.seed(int(words[0]))
    np.random.seed(int(words[1]))  # noqa: NPY002 (sources may draw from the global generator)
    torch.default_generator.manual_seed(int(words[2]))
    if _cuda_runs():  # else torch.manual_seed would queue a call for later at every step
        torch.cuda.manual_seed_all(int(words[2]))


@contextmanager
def own_random_numbers() -> Iterator[None]:
    """After the block the generators of Python, NumPy and torch are as they were before it."""
    devices = range(torch.cuda.device_count()) if _cuda_runs() else []
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002


def _cuda_runs() -> bool:
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]
