"""The same records in LMDB and HF datasets, and functions that read a random batch into one buffer."""

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
    store = open_once(FeatureStore.open, root, check)
    ids = [f"images/{number:09d}" for number in numbers]
    return list(store.batch(ids, dtype=None).sequence)


@functools.cache
def open_once(open_function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function that opens files, once in every process."""
    return open_function(*arguments)


def records(count: int, shape: Shape) -> Iterator[tuple[bytes, bytes]]:
    """Yield keys and values."""
    for number in range(count):
        values = torch.full(shape, number % 1000, dtype=torch.float16)
        yield key_of(number), values.numpy().tobytes()


def key_of(number: int) -> bytes:
    """Return the key of a record."""
    return f"{number:09d}".encode()


def to_batch(values: Sequence[Any], shape: Shape) -> list[Tensor]:
    """Copy values, which are bytes, into a batch."""
    batch = torch.empty(len(values), *shape, dtype=torch.float16)
    for row, value in zip(batch.numpy(), values, strict=True):
        row[:] = np.frombuffer(value, np.float16).reshape(shape)
    return [batch]


def write_lmdb(root: Path, count: int, shape: Shape) -> None:
    """Write one value per image."""
    import lmdb

    with (
        lmdb.open(str(root), map_size=1 << 40) as environment,
        environment.begin(write=True) as transaction,
    ):
        for key, value in records(count, shape):
            transaction.put(key, value)


def open_lmdb(root: str) -> Any:
    """Open it for reading, without locks."""
    import lmdb

    return lmdb.open(root, readonly=True, lock=False, readahead=False)


def from_lmdb(root: Path, shape: Shape, numbers: list[int]) -> list[Tensor]:
    """Read a batch from LMDB; values are views of its map."""
    environment = open_once(open_lmdb, str(root))
    with environment.begin(buffers=True) as transaction:
        values = [transaction.get(key_of(number)) for number in numbers]
        return to_batch(values, shape)


def write_datasets(root: Path, count: int, shape: Shape) -> None:
    """Write a column of bytes."""
    import datasets

    def rows() -> Iterator[dict[str, bytes]]:
        for _, value in records(count, shape):
            yield {"tokens": value}

    datasets.disable_progress_bars()
    dataset = datasets.Dataset.from_generator(rows, cache_dir=str(root.with_name("cache")))
    dataset.save_to_disk(str(root))


def from_datasets(root: Path, shape: Shape, numbers: list[int]) -> list[Tensor]:
    """Read a batch from HF datasets."""
    import datasets

    dataset = open_once(datasets.load_from_disk, str(root))
    return to_batch(dataset[numbers]["tokens"], shape)


# name -> function that writes records, and one that reads a batch of them
PEERS = {"LMDB": (write_lmdb, from_lmdb), "HF datasets": (write_datasets, from_datasets)}
