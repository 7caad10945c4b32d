"""Which samples stand together in a step, under which pattern, and what is to be learnt of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from dinoneck.tasks import Task
from dinoneck.tokens import Tokens
from dinoneck.training.sources import Flips, TokenSource, in_batches
from dinoneck.training.targets import known

Rows = np.ndarray[Any, np.dtype[np.int64]]


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


STD_FLOOR = 1e-4


@runtime_checkable
class AbsorbsScale(Protocol):
    """A head whose first layer can take over an affine change of its tokens' channels."""

    def absorb_scale(self, mean: Tensor, std: Tensor) -> None:
        """Change the weights so that the new head says of x what the old one said of (x - mean) / std."""
        ...


@runtime_checkable
class CalibratesEntrance(Protocol):
    """A head with norms at its entrance that can be set to the tokens it will be trained on."""

    def calibrate(self, batches: Iterable[Tokens]) -> None:
        """Read the batches once and set the norms that are still untouched."""
        ...


@dataclass(frozen=True)
class TokenScale:
    """Mean and standard deviation of every channel, over the patch tokens of the last layer.

    Attributes:
        mean: (C,) float32.
        std: (C,) float32, at least 1e-4.
    """

    mean: Tensor
    std: Tensor

    @classmethod
    @torch.no_grad()
    def measure(cls, source: TokenSource, ids: Sequence[str], batch_size: int = 16) -> TokenScale:
        """Read the tokens of ``ids`` once; sums are kept in float64."""
        count, total, square = 0, torch.zeros(1), torch.zeros(1)
        for batch in in_batches(ids, batch_size):
            patches = source.batch(batch).last.patches[0].double()
            count += patches.shape[0] * patches.shape[1]
            total = total + patches.sum(dim=(0, 1)).cpu()
            square = square + patches.square().sum(dim=(0, 1)).cpu()
        mean = total / count
        std = (square / count - mean.square()).clamp_min(0.0).sqrt().clamp_min(STD_FLOOR)
        return cls(mean.float(), std.float())

    def inverse(self) -> TokenScale:
        """Return the scale that undoes this one."""
        return TokenScale(-self.mean / self.std, 1.0 / self.std)

    def apply(self, tokens: Tokens) -> Tokens:
        """Standardise every layer's tokens."""
        mean, std = (x.to(tokens.sequence[0]) for x in (self.mean, self.std))
        return replace(tokens, sequence=tuple((x - mean) / std for x in tokens.sequence))


@contextmanager
def standardised(
    head: object,
    source: TokenSource,
    ids: Sequence[str],
    *,
    enabled: bool = True,
    scale: TokenScale | None = None,
) -> Iterator[TokenScale | None]:
    """Within the block, ``head`` expects standardised tokens; after it, raw ones again, also after an error.

    Yields the scale to apply to its tokens, ``scale`` or a measured one; None if the head cannot absorb one or
    ``enabled`` is off.
    """
    if not enabled or not isinstance(head, AbsorbsScale):
        yield None
        return
    scale = scale or TokenScale.measure(source, ids)
    undo = scale.inverse()
    head.absorb_scale(undo.mean, undo.std)
    try:
        yield scale
    finally:
        head.absorb_scale(scale.mean, scale.std)
