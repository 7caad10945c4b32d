"""The same records in LMDB and HF datasets, and what reads a random batch of them into one buffer."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dinoneck import FeatureStore

Shape = tuple[int, int, int]
ReadBatch = Callable[[list[int]], list[Tensor]]


def from_store(root: Path, check: Any, numbers: list[int]) -> list[Tensor]:
    """Read a batch from a store."""
    store = opened(FeatureStore.open, root, check)
    return list(store.batch([f"images/{number:09d}" for number in numbers], dtype=None).sequence)


@functools.cache
def opened(open_it: Callable[..., Any], *arguments: Any) -> Any:
    """Return what every process opens once."""
    return open_it(*arguments)


def records(count: int, shape: Shape) -> Iterator[tuple[bytes, bytes]]:
    """Yield keys and values."""
    for number in range(count):
        yield (
            f"{number:09d}".encode(),
            torch.full(shape, number % 1000, dtype=torch.float16).numpy().tobytes(),
        )


def filled(raws: Sequence[Any], shape: Shape) -> list[Tensor]:
    """Copy values into a batch."""
    batch = torch.empty(len(raws), *shape, dtype=torch.float16)
    for row, raw in zip(batch.numpy(), raws, strict=True):
        row[:] = np.frombuffer(raw, np.float16).reshape(shape)
    return [batch]


def write_lmdb(root: Path, count: int, shape: Shape) -> None:
    """Write one value per image."""
    import lmdb

    with (
        lmdb.open(str(root), map_size=1 << 40) as environment,
        environment.begin(write=True) as transaction,
    ):
        for key, raw in records(count, shape):
            transaction.put(key, raw)


def open_lmdb(root: str) -> Any:
    """Open it for reading, without locks."""
    import lmdb

    return lmdb.open(root, readonly=True, lock=False, readahead=False)


def from_lmdb(root: Path, shape: Shape, numbers: list[int]) -> list[Tensor]:
    """Read a batch from LMDB; values are views of its map."""
    with opened(open_lmdb, str(root)).begin(buffers=True) as transaction:
        return filled([transaction.get(f"{number:09d}".encode()) for number in numbers], shape)


def write_datasets(root: Path, count: int, shape: Shape) -> None:
    """Write a column of bytes."""
    import datasets

    def rows() -> Iterator[dict[str, bytes]]:
        return ({"tokens": raw} for _, raw in records(count, shape))

    datasets.disable_progress_bars()
    made = datasets.Dataset.from_generator(rows, cache_dir=str(root.with_name("cache")))
    made.save_to_disk(str(root))


def from_datasets(root: Path, shape: Shape, numbers: list[int]) -> list[Tensor]:
    """Read a batch from HF datasets."""
    import datasets

    rows = opened(datasets.load_from_disk, str(root))[numbers]["tokens"]
    return filled(rows, shape)


PEERS = {"LMDB": (write_lmdb, from_lmdb), "HF datasets": (write_datasets, from_datasets)}
"""Name -> what writes records, and what reads a batch of them."""
