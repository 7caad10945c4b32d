"""The samples of a step: which, under which pattern, with which targets, and the scale of their tokens."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from dinoneck.tasks import Task
from dinoneck.tokens import Tokens
from dinoneck.training.sources import Flips, TokenSource, in_batches
from dinoneck.training.targets import as_array, known
from dinoneck.training.validation import validation_scores

Rows = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class Batch:
    """Samples by their rows in the labels, and a pattern for each; None = the images as they are."""

    rows: Rows
    patterns: Rows | None = None

    def part(self, places: Any) -> Batch:
        """Return some of the samples, by their places in the batch."""
        return Batch(self.rows[places], None if self.patterns is None else self.patterns[places])

    def pieces(self, size: int) -> list[Batch]:
        """Return consecutive batches of at most ``size`` samples."""
        return [self.part(slice(begin, begin + size)) for begin in range(0, len(self.rows), size)]


def patterns_of(source: object) -> Flips | None:
    """Return the patterns of a source that has several."""
    found = getattr(source, "patterns", None)
    return found if found is not None and len(found) > 1 else None


class Order:
    """The batches of every epoch: a new permutation of the samples, and a random pattern for each.

    All of it follows from the seed and the epoch, so that a resumed run meets the same batches.

    Args:
        count: training samples.
        size: samples per batch.
        seed: of the permutations and patterns.
        patterns: how many the source has.
    """

    def __init__(self, count: int, size: int, seed: int, patterns: int = 1) -> None:
        self.count, self.size, self.seed, self.patterns = count, size, seed, patterns
        self.steps = -(-count // size)
        self._random, self._order, self._next = np.random.RandomState(seed), np.arange(count), 0

    def epoch(self, number: int) -> list[Batch]:
        """Return the batches of an epoch; epochs are asked for in ascending order."""
        while self._next <= number:
            self._order = self._random.permutation(self.count)
            self._next += 1
        drawn = None
        if self.patterns > 1:
            drawn = np.random.default_rng([self.seed, number]).integers(0, self.patterns, self.count)
        return Batch(self._order, drawn).pieces(self.size)


@dataclass(frozen=True)
class Samples:
    """The samples of a run and their targets; the first ``trained`` of them are trained on, the others validate.

    Attributes:
        ids: of the samples, n.
        trained: how many are training samples.
        tasks: of the head.
        values: task or composition -> (n, ...) in model space.
        cells: dense task -> (n, rows, cols), how much every cell counts.
        flips: the source's patterns, which labels per cell follow.
        original: task -> (n, ...) in original units, for scores.
        score_weights: task -> weight in the overall R²; None = all alike.
    """

    ids: Sequence[str]
    trained: int
    tasks: Sequence[Task]
    values: Mapping[str, Tensor]
    cells: Mapping[str, Tensor]
    flips: Flips | None = None
    original: Mapping[str, Any] = field(default_factory=dict)
    score_weights: Mapping[str, float] | None = None

    def tokens(self, batch: Batch, source: TokenSource) -> Tokens:
        """Read the tokens of a batch."""
        ids = [self.ids[row] for row in batch.rows]
        return source.batch(ids) if batch.patterns is None else source.batch(ids, batch.patterns.tolist())

    def targets(self, batch: Batch, device: torch.device) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the targets of a batch and its masks, maps flipped like the images."""
        maps = {task.name for task in self.tasks if task.is_map}
        values, cells = (
            {name: self._flipped(x[batch.rows], batch, name in maps).to(device) for name, x in table.items()}
            for table in (self.values, self.cells)
        )
        return values, {name: known(value) for name, value in values.items()} | cells

    def scores(self, predictions: Mapping[str, Tensor], rows: list[int]) -> dict[str, float]:
        """Return the scores of predictions, in original units, of the samples in these rows."""
        targets = {task.name: as_array(self.original[task.name])[rows] for task in self.tasks}
        return validation_scores(self.tasks, predictions, targets, self.score_weights)

    def _flipped(self, x: Tensor, batch: Batch, is_map: bool) -> Tensor:
        if not is_map or batch.patterns is None or self.flips is None:
            return x
        flipped = []
        for one, pattern in zip(x, batch.patterns.tolist(), strict=True):
            horizontal, vertical = self.flips.flips(pattern)
            flipped.append(one.flip([axis for axis, flip in ((-1, horizontal), (-2, vertical)) if flip]))
        return torch.stack(flipped)


STD_FLOOR = 1e-4


@runtime_checkable
class AbsorbsScale(Protocol):
    """A head whose first layer can take over an affine change of its tokens' channels."""

    def absorb_scale(self, mean: Tensor, std: Tensor) -> None:
        """Fold the standardisation into the weights: ``new(x) == old((x - mean) / std)``."""
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
