"""Which samples stand together in a step, under which pattern, and what is to be learnt of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from dinoneck.tasks import Task
from dinoneck.tokens import Tokens
from dinoneck.training.sources import TokenSource
from dinoneck.training.targets import known

Rows = np.ndarray[Any, np.dtype[np.int64]]


class Flips(Protocol):
    """What a source says of its augmentation patterns."""

    def __len__(self) -> int:
        """How many there are; 0 is the photo as it is."""
        ...

    def flips(self, i: int) -> tuple[bool, bool]:
        """Whether pattern i flips left and right, top and bottom."""
        ...


@dataclass(frozen=True)
class Batch:
    """Samples by their rows in the labels, and a pattern for each; None = the images as they are."""

    rows: Rows
    patterns: Rows | None = None

    def part(self, places: Any) -> Batch:
        """Return some of the samples, by their places in the batch."""
        return Batch(self.rows[places], None if self.patterns is None else self.patterns[places])


def patterns_of(source: object) -> Flips | None:
    """Return the patterns of a source that has several."""
    found = getattr(source, "patterns", None)
    return found if found is not None and len(found) > 1 else None


class Order:
    """The batches of every epoch: a new permutation of the rows, and a random pattern for each sample.

    All of it follows from the seed and the epoch, so that a resumed run meets the same batches.

    Args:
        rows: of the training samples in the labels.
        size: samples per batch.
        seed: of the permutations and patterns.
        patterns: how many the source has.
    """

    def __init__(self, rows: Rows, size: int, seed: int, patterns: int = 1) -> None:
        self.rows, self.size, self.seed, self.patterns = rows, size, seed, patterns
        self._random, self._order, self._next = np.random.RandomState(seed), rows, 0

    @property
    def steps(self) -> int:
        """Batches per epoch."""
        return -(-len(self.rows) // self.size)

    def epoch(self, number: int) -> list[Batch]:
        """Return the batches of an epoch; epochs are asked for in ascending order."""
        while self._next <= number:
            self._order = self._random.permutation(self.rows)
            self._next += 1
        drawn = None
        if self.patterns > 1:
            drawn = np.random.default_rng([self.seed, number]).integers(0, self.patterns, len(self.rows))
        whole = Batch(self._order, drawn)
        return [whole.part(slice(begin, begin + self.size)) for begin in range(0, len(self.rows), self.size)]


@dataclass(frozen=True)
class Labels:
    """The targets of all samples of a run.

    Attributes:
        ids: of the samples, n.
        tasks: of the head.
        values: task or composition -> (n, ...) in model space.
        cells: dense task -> (n, rows, cols), how much every cell counts.
        flips: the source's patterns, which labels per cell follow.
    """

    ids: Sequence[str]
    tasks: Sequence[Task]
    values: Mapping[str, Tensor]
    cells: Mapping[str, Tensor]
    flips: Flips | None = None

    def ids_of(self, batch: Batch) -> list[str]:
        """Return the ids of a batch."""
        return [self.ids[row] for row in batch.rows]

    def tokens(self, batch: Batch, source: TokenSource) -> Tokens:
        """Read the tokens of a batch."""
        ids = self.ids_of(batch)
        return source.batch(ids) if batch.patterns is None else source.batch(ids, batch.patterns.tolist())

    def of(self, batch: Batch, device: torch.device) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the targets of a batch and its masks, maps flipped like the photos."""
        maps = {task.name for task in self.tasks if task.is_map}
        wanted = {name: value[batch.rows] for name, value in self.values.items()}
        cells = {name: weight[batch.rows] for name, weight in self.cells.items()}
        for table in (wanted, cells):
            table.update({name: self._flipped(table[name], batch) for name in maps & table.keys()})
        wanted = {name: value.to(device) for name, value in wanted.items()}
        masks = {name: known(value) for name, value in wanted.items()}
        return wanted, masks | {name: weight.to(device) for name, weight in cells.items()}

    def _flipped(self, maps: Tensor, batch: Batch) -> Tensor:
        if batch.patterns is None or self.flips is None:
            return maps
        turned = []
        for one, pattern in zip(maps, batch.patterns.tolist(), strict=True):
            horizontal, vertical = self.flips.flips(pattern)
            turned.append(one.flip([axis for axis, is_flipped in ((-1, horizontal), (-2, vertical)) if is_flipped]))
        return torch.stack(turned)
