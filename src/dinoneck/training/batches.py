"""The samples of a step: which, under which augmentation, with which targets, and the scale of their tokens."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dinoneck.devices import send
from dinoneck.tasks import Task
from dinoneck.tokens import Tokens
from dinoneck.training.sources import Flips, TokenSource, in_batches, stored_tokens
from dinoneck.training.targets import as_array, known
from dinoneck.training.validation import validation_scores

Table = dict[str, Tensor]
Rows = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class Batch:
    """Samples by their rows in the labels, and an augmented view for each; None = the images as they are."""

    rows: Rows
    views: Rows | None = None

    def part(self, places: Any) -> Batch:
        """Return some of the samples, by their positions in the batch."""
        return Batch(self.rows[places], None if self.views is None else self.views[places])

    def pieces(self, size: int) -> list[Batch]:
        """Return consecutive batches of at most ``size`` samples."""
        return [self.part(slice(begin, begin + size)) for begin in range(0, len(self.rows), size)]


def views_of(source: object) -> Flips | None:
    """Return the augmented views of a source that has several."""
    views: Flips | None = getattr(source, "views", None)
    return views if views is not None and len(views) > 1 else None


def epochs(count: int, size: int, seed: int, views: int = 1) -> Iterator[list[Batch]]:
    """Yield the batches of every epoch: a new permutation of the samples, and a random view for each.

    All of it follows from the seed and the epoch, so that a resumed run gets the same batches.

    Args:
        count: training samples.
        size: samples per batch.
        seed: of the permutations and views.
        views: how many views the source has.
    """
    random = np.random.RandomState(seed)
    for epoch in itertools.count():
        drawn = None
        if views > 1:
            drawn = np.random.default_rng([seed, epoch]).integers(0, views, count)
        yield Batch(random.permutation(count), drawn).pieces(size)


@dataclass(frozen=True)
class Samples:
    """The samples of a run and their targets; the first ``trained`` of them are trained on, the others validate.

    Attributes:
        ids: of the samples, n.
        trained: how many are training samples.
        tasks: of the head.
        values: task or composition -> (n, ...) in normalised units.
        cells: dense task -> (n, rows, cols), how much every cell counts.
        flips: the source's augmented views, which labels per cell follow.
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

    def named(self, batch: Batch) -> tuple[list[str], list[int] | None]:
        """Return the ids and the views of a batch."""
        return [self.ids[row] for row in batch.rows], None if batch.views is None else batch.views.tolist()

    def read(self, batch: Batch, source: TokenSource, device: torch.device) -> tuple[Tokens, Table, Table]:
        """Return the tokens of a batch on a device, its targets and its masks."""
        tensors, tokens = stored_tokens(source, *self.named(batch))
        tensors, targets, masks = self.send(tensors, batch, device)
        return tokens(tensors), targets, masks

    def send(self, tensors: Sequence[Tensor], batch: Batch, device: torch.device) -> tuple[list[Tensor], Table, Table]:
        """Send the tensors of a batch to a device together with its targets and masks, maps flipped like the images."""
        maps = {task.name for task in self.tasks if task.is_map}
        values, cells = (
            {name: self._flipped(x[batch.rows], batch, name in maps) for name, x in table.items()}
            for table in (self.values, self.cells)
        )
        arrived = iter(send([*tensors, *values.values(), *cells.values()], device))
        moved = [next(arrived) for _ in tensors]
        values, cells = ({name: next(arrived) for name in table} for table in (values, cells))
        return moved, values, {name: known(value) for name, value in values.items()} | cells

    def scores(self, predictions: Mapping[str, Tensor], rows: list[int]) -> dict[str, float]:
        """Return the scores of predictions, in original units, of the samples in these rows."""
        targets = {task.name: as_array(self.original[task.name])[rows] for task in self.tasks}
        return validation_scores(self.tasks, predictions, targets, self.score_weights)

    def _flipped(self, x: Tensor, batch: Batch, is_map: bool) -> Tensor:
        if not is_map or batch.views is None or self.flips is None:
            return x
        flipped = []
        for one, view in zip(x, batch.views.tolist(), strict=True):
            horizontal, vertical = self.flips.flips(view)
            flipped.append(one.flip([axis for axis, flip in ((-1, horizontal), (-2, vertical)) if flip]))
        return torch.stack(flipped)


STD_FLOOR = 1e-4


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

    def to(self, device: torch.device) -> TokenScale:
        """Return the scale on a device."""
        return TokenScale(self.mean.to(device), self.std.to(device))

    def apply(self, tokens: Tokens) -> Tokens:
        """Standardise every layer's tokens."""
        mean, std = (x.to(tokens.sequence[0]) for x in (self.mean, self.std))
        return replace(tokens, sequence=tuple((x - mean).div_(std) for x in tokens.sequence))


@contextmanager
def standardised(head: Any, scale: TokenScale | None) -> Iterator[None]:
    """Within the block, ``head`` expects tokens of this scale; after it, raw ones again, also after an error.

    Args:
        head: with ``absorb_scale(mean, std)``, which folds the standardisation into its weights:
            ``new(x) == old((x - mean) / std)``.
        scale: None = the head is not changed.
    """
    if scale is None:
        yield
        return
    undo = scale.inverse()
    head.absorb_scale(undo.mean, undo.std)
    try:
        yield
    finally:
        head.absorb_scale(scale.mean, scale.std)
