"""A store as a torch dataset: whole batches in one read, random patterns that can be repeated."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dinoneck.errors import ConfigError, DataError
from dinoneck.store.feature_store import FeatureStore
from dinoneck.store.memory import MemoryStore
from dinoneck.store.quantised import QuantisedTokens
from dinoneck.tokens import Tokens

Sample = tuple[Tokens | QuantisedTokens, Tensor]


class StoreDataset(Dataset[Sample]):
    """Samples of a store. Each is (Tokens, numbers): ``numbers`` (B,) int64 say which samples, to look targets up.

    Workers of a ``DataLoader`` open the store themselves; its content is never copied to them.

    Args:
        store: to read from.
        ids: images; None = all.
        patterns: ``"random"``: each image once, another pattern at every epoch (training); a number: each image once
            under this pattern (validation: 0); several numbers: each image under each of them, images in the outer
            loop (test-time augmentation): sample s is image s // k under ``patterns[s % k]``.
        seed: with the epoch and the sample's number it decides on random patterns.
        as_stored: hand tokens out without a cast: Tokens in the store's own dtype, QuantisedTokens from int8.

    Raises:
        DataError: if an id or a pattern is not in the store.

    Examples:
        ``StoreDataset(store, train_ids, "random").loader(32, shuffle=True)``; call ``set_epoch(epoch)`` before each.
    """

    def __init__(
        self,
        store: FeatureStore | MemoryStore,
        ids: Sequence[str] | None = None,
        patterns: Literal["random"] | int | Sequence[int] = "random",
        seed: int = 0,
        as_stored: bool = False,
    ) -> None:
        self.store = store
        self.as_stored = as_stored
        self.ids = tuple(store.ids if ids is None else ids)
        known = set(store.ids)
        unknown = [image_id for image_id in self.ids if image_id not in known]
        if unknown:
            raise DataError(f"{len(unknown)} ids are not in the store, the first is {unknown[0]!r}")
        if isinstance(patterns, str) and patterns != "random":
            raise ConfigError(f"patterns is {patterns!r}; expected 'random', a number or several numbers")
        self.random = patterns == "random"
        self.patterns: tuple[int, ...] = ()
        if not isinstance(patterns, str):
            self.patterns = (patterns,) if isinstance(patterns, int) else tuple(int(pattern) for pattern in patterns)
            wrong = [pattern for pattern in self.patterns if not 0 <= pattern < len(store.patterns)]
            if wrong or not self.patterns:
                raise DataError(f"patterns is {patterns!r}; the store holds 0 ... {len(store.patterns) - 1}")
        self.seed = seed
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]  # workers that live on see it change

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that random patterns are drawn for; workers that are running see it too."""
        self._epoch.fill_(epoch)

    def pattern_of(self, sample: int) -> int:
        """Return the pattern that a sample has, in this epoch."""
        if not self.random:
            return self.patterns[sample % len(self.patterns)]
        return random.Random(f"{self.seed}/{int(self._epoch)}/{sample}").randrange(len(self.store.patterns))

    def id_of(self, sample: int) -> str:
        """Return the image that a sample shows."""
        return self.ids[sample if self.random else sample // len(self.patterns)]

    def __len__(self) -> int:
        return len(self.ids) * (1 if self.random else len(self.patterns))

    def __getitem__(self, sample: int) -> Sample:
        if not -len(self) <= sample < len(self):
            raise IndexError(f"sample {sample} of {len(self)}")
        return self.__getitems__([sample % len(self)])

    def __getitems__(self, samples: Sequence[int]) -> Sample:
        """Read a whole batch in one go."""
        numbers = [int(sample) for sample in samples]
        ids, patterns = [self.id_of(n) for n in numbers], [self.pattern_of(n) for n in numbers]
        return self._read(ids, patterns), torch.tensor(numbers)

    def _read(self, ids: list[str], patterns: list[int]) -> Tokens | QuantisedTokens:
        if not self.as_stored:
            return self.store.batch(ids, patterns)
        if self.store.dtype == "int8":
            return self.store.quantised(ids, patterns)
        return self.store.batch(ids, patterns, dtype=None)

    @staticmethod
    def collate(batch: Any) -> Any:
        """Hand a batch on: :meth:`__getitems__` has collated it. Give it to a ``DataLoader`` as ``collate_fn``."""
        return batch

    def loader(self, batch_size: int, **options: Any) -> DataLoader[Sample]:
        """Return a ``DataLoader`` over batches; ``options`` go to it."""
        return DataLoader(self, batch_size=batch_size, collate_fn=self.collate, **options)
