"""A store in memory: all records as they are stored, for training sets that fit."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from dinoneck.data.patterns import Patterns
from dinoneck.errors import DataError, StoreError
from dinoneck.store.encoding import Columns
from dinoneck.store.feature_store import FeatureStore
from dinoneck.store.quantised import QuantisedTokens
from dinoneck.tokens import Tokens

logger = logging.getLogger(__name__)

_SHARE = 0.9


class MemoryStore:
    """The records of a store in memory, in the stored dtype: the same ``ids`` and ``batch`` without reading.

    Args:
        store: to read from, once.
        ids: images to keep; None = all. They must have one grid.
        patterns: to keep; None = all.
        device: where they are kept, such as ``cuda``; batches are made there.

    Raises:
        StoreError: if they do not fit into the memory that is free.
        DataError: if an id or a pattern is unknown, or the grids differ.
    """

    def __init__(
        self,
        store: FeatureStore,
        ids: Sequence[str] | None = None,
        patterns: Sequence[int] | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        self.ids = store.ids if ids is None else tuple(ids)
        kept = _kept(store, patterns)
        first = store.patterns.patterns[: len(kept)]  # training draws from all that a source says it has
        self.patterns = Patterns(first) if first and list(kept) == list(range(len(kept))) else store.patterns
        pairs = [(image_id, pattern) for image_id in self.ids for pattern in kept]
        if shortage := _shortage(store, self.ids, len(kept)):
            raise StoreError(f"{shortage}; keep fewer ids or patterns, or read from the FeatureStore itself")
        self._rows = {pair: row for row, pair in enumerate(pairs)}
        columns, self._grid = store.reader.columns([i for i, _ in pairs], [p for _, p in pairs])
        self._columns: Columns = {name: tuple(x.to(device) for x in part) for name, part in columns.items()}
        self._reader = store.reader
        self.dtype = store.dtype
        self._scale = tuple(store.reader.scale().to(device)) if store.dtype == "int8" else ()

    @classmethod
    def if_it_fits(
        cls,
        store: FeatureStore,
        ids: Sequence[str] | None = None,
        patterns: Sequence[int] | None = None,
        device: torch.device | str | None = None,
    ) -> MemoryStore | FeatureStore:
        """Return the records in memory, or the store itself where they do not fit (which is logged).

        Raises:
            DataError: as the constructor does.
        """
        if shortage := _shortage(store, store.ids if ids is None else ids, len(_kept(store, patterns))):
            logger.info("%s; %s is read from disk", shortage, store)
            return store
        return cls(store, ids, patterns, device)

    def record(self, ids: Sequence[str] | None = None) -> dict[str, Any]:
        """Return what tells the tokens of these images from others; None = of all."""
        return self._reader.record(self.ids if ids is None else ids)

    def __len__(self) -> int:
        return len(self.ids)

    def batch(
        self,
        ids: Sequence[str],
        patterns: int | Sequence[int] | None = None,
        *,
        dtype: torch.dtype | None = torch.float32,
    ) -> Tokens:
        """Return the tokens of these images, in this order; see :meth:`FeatureStore.batch`."""
        columns = self._chosen(ids, patterns)
        if self._scale:
            return self._quantised(columns).dequantise(dtype or torch.float32)
        return self._reader.assemble(columns, self._grid, dtype)

    def quantised(self, ids: Sequence[str], patterns: int | Sequence[int] | None = None) -> QuantisedTokens:
        """Return int8 tokens as they are; see :meth:`FeatureStore.quantised`."""
        if not self._scale:
            raise StoreError("only int8 stores give quantised tokens: use batch()")
        return self._quantised(self._chosen(ids, patterns))

    def _chosen(self, ids: Sequence[str], patterns: int | Sequence[int] | None) -> Columns:
        pairs = list(zip(ids, self._reader.numbers(ids, patterns), strict=True))
        missing = [pair for pair in pairs if pair not in self._rows]
        if missing or not pairs:
            raise DataError(
                f"pattern {missing[0][1]} of {missing[0][0]!r} is not kept here" if missing else "no ids given"
            )
        rows = torch.tensor([self._rows[pair] for pair in pairs])
        return {name: tuple(x.index_select(0, rows.to(x.device)) for x in part) for name, part in self._columns.items()}

    def _quantised(self, columns: Columns) -> QuantisedTokens:
        like = self._reader.description.tokens((), self._grid)
        return QuantisedTokens(columns["q"], columns["scale"], columns["prefix"], self._scale, like)


def _kept(store: FeatureStore, patterns: Sequence[int] | None) -> Sequence[int]:
    return range(len(store.patterns)) if patterns is None else [int(pattern) for pattern in patterns]


def _shortage(store: FeatureStore, ids: Sequence[str], patterns: int) -> str | None:
    """Say by how much these records exceed the memory that is free; None if they fit."""
    needed = patterns * sum(store.reader.entry(image_id).length for image_id in ids)
    free = free_memory()
    if free is None or needed <= _SHARE * free:
        return None
    return f"{len(ids)} images x {patterns} patterns need {needed / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free"


def free_memory() -> int | None:
    """Return the bytes of memory that are free, or None where the system does not say."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None
