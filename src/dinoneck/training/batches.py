"""The batches of a run: what a step takes, read ahead where that is safe."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence, Set
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import torch
from torch import Tensor

from dinoneck.devices import send
from dinoneck.images.pixels import in_threads
from dinoneck.images.views import Views
from dinoneck.tokens import Tokens
from dinoneck.training.recipe import Recipe
from dinoneck.training.samples import Samples, Targets
from dinoneck.training.token_sources import (
    LiveTokens,
    MemoryTokens,
    Stored,
    TokenSource,
    has_stored,
    in_batches,
)


@dataclass(frozen=True)
class Batch:
    """Samples on the device.

    Attributes:
        inputs: Tokens, or images (B, 3, H, W) of live tokens.
        targets: of the samples.
        num_images: of the batch in all processes.
        mixes: whether the step blends samples.
    """

    inputs: Tokens | Tensor
    targets: Targets
    num_images: int
    mixes: bool


@dataclass(frozen=True)
class BatchRows:
    """The samples of a batch.

    Attributes:
        rows: of this process.
        views: one per row; None = the images as they are.
        num_images: of the batch in all processes.
        mixes: whether the step blends samples.
    """

    rows: Sequence[int]
    views: Sequence[int] | None
    num_images: int
    mixes: bool


@dataclass(frozen=True)
class BatchReader:
    """Reads the batches of a run.

    Attributes:
        source: of tokens.
        samples: of the run.
        maps: names of the tasks whose targets are maps; they are flipped as the images.
        device: where batches are sent.
        vector_maps: those of the maps whose cells are vectors, which are turned with the images.
    """

    source: TokenSource
    samples: Samples
    maps: Set[str]
    device: torch.device
    vector_maps: Set[str] = frozenset()

    def training_batches(
        self, epoch: int, recipe: Recipe, *, rank: int, num_processes: int
    ) -> Generator[Batch, None, None]:
        """Yield the batches of an epoch, of which this process reads its share.

        The order and the view of every sample follow from seed and epoch. Where the samples of a
        batch do not divide among the processes, its first ones are repeated.
        """
        random = np.random.default_rng([recipe.seed, epoch])
        count = self.samples.train_count
        order = random.permutation(count)
        num_views = len(getattr(self.source, "views", None) or ())
        views = random.integers(0, num_views, count) if num_views > 1 else None

        num_batches = math.ceil(count / recipe.batch_size)
        last_mixed_step = (1.0 - recipe.mixup_off_last) * recipe.epochs * num_batches
        step = epoch * num_batches
        batches = []
        for positions in in_batches(range(count), recipe.batch_size):
            # every process gets equally many samples, so that all take a step together
            num_per_process = math.ceil(len(positions) / num_processes)
            repeated = np.resize(positions, num_per_process * num_processes)
            positions_here = repeated[rank * num_per_process : (rank + 1) * num_per_process]
            batch = BatchRows(
                rows=order[positions_here],
                views=None if views is None else views[positions_here].tolist(),
                num_images=len(positions),
                mixes=step < last_mixed_step,
            )
            batches.append(batch)
            step += 1
        yield from self._read_all(batches, is_training=True)

    def validation_batches(self, batch_size: int) -> Generator[Batch, None, None]:
        """Yield the batches of the validation samples, as they are."""
        rows = range(self.samples.train_count, len(self.samples.ids))
        batches = []
        for batch_rows in in_batches(rows, batch_size):
            batches.append(
                BatchRows(batch_rows, views=None, num_images=len(batch_rows), mixes=False)
            )
        yield from self._read_all(batches, is_training=False)

    def training_tokens(self, batch_size: int) -> Generator[Tokens, None, None]:
        """Yield the tokens of the training samples, as they are, on the device."""
        train_ids = self.samples.ids[: self.samples.train_count]
        for ids in in_batches(train_ids, batch_size):
            tensors, make_tokens = _read_stored(self.source, ids, views=None)
            yield make_tokens(send(tensors, self.device))

    def read_first(self) -> Batch:
        """Return a batch of the first sample, as it is."""
        return self.read(BatchRows([0], views=None, num_images=1, mixes=False), is_training=False)

    def _read_all(
        self, batches: Sequence[BatchRows], *, is_training: bool
    ) -> Generator[Batch, None, None]:
        """Yield batches; a thread reads one while the step before computes, where that is safe."""
        stream = torch.cuda.current_stream(self.device) if self.device.type == "cuda" else None

        def read(rows: BatchRows) -> Batch:
            # a thread has a stream of its own, and would not wait for this one
            with nullcontext() if stream is None else torch.cuda.stream(stream):
                return self.read(rows, is_training=is_training)

        if self._reads_ahead(is_training=is_training):
            yield from in_threads(read, batches, workers=1)
        else:
            yield from map(read, batches)

    def _reads_ahead(self, *, is_training: bool) -> bool:
        """Whether a thread reads a batch while the step before computes.

        What may draw random numbers is read when its step has begun: a transform, a source without
        ``stored``. So are tokens in memory on a CPU, where a thread would take the step's core.
        """
        if is_training and getattr(self.source, "transform", None) is not None:
            return False
        if isinstance(self.source, MemoryTokens) and self.device.type == "cpu":
            return False
        return isinstance(self.source, LiveTokens) or has_stored(self.source)

    def read(self, batch: BatchRows, *, is_training: bool) -> Batch:
        """Return a batch on the device, in one copy; maps are flipped as the images."""
        ids = [self.samples.ids[row] for row in batch.rows]
        targets = self.samples.targets.take(batch.rows)
        tensors: Sequence[Tensor]
        if isinstance(self.source, LiveTokens):
            tensors = [self.source.images(ids, transformed=is_training)]
            finish: Callable[[Sequence[Tensor]], Tokens | Tensor] = _get_images
        else:
            tensors, finish = _read_stored(self.source, ids, batch.views)
        if batch.views is not None:
            targets = self._place(targets, batch.views)

        num_values = len(targets.values)
        target_tensors = [*targets.values.values(), *targets.cell_weights.values()]
        moved = send([*tensors, *target_tensors], self.device)
        moved_inputs = moved[: len(tensors)]
        moved_targets = moved[len(tensors) :]
        return Batch(
            inputs=finish(moved_inputs),
            targets=Targets(
                values=dict(zip(targets.values, moved_targets[:num_values], strict=True)),
                cell_weights=dict(
                    zip(targets.cell_weights, moved_targets[num_values:], strict=True)
                ),
            ),
            num_images=batch.num_images,
            mixes=batch.mixes,
        )

    def _place(self, targets: Targets, views: Sequence[int]) -> Targets:
        """Return targets whose maps are turned and mirrored as the views of the images are."""
        source_views = cast("Views", getattr(self.source, "views", None))

        def place(maps: Tensor) -> Tensor:
            placed = []
            for label, view in zip(maps, views, strict=True):
                placed.append(source_views.place(label, view))
            return torch.stack(placed)

        placed_targets = targets.with_maps(self.maps - self.vector_maps, place)
        values = dict(placed_targets.values)
        for name in self.vector_maps:
            vectors = []
            for label, view in zip(targets.values[name], views, strict=True):
                vectors.append(source_views.place_vectors(label, view))
            values[name] = torch.stack(vectors)
        return Targets(values, placed_targets.cell_weights)


def _read_stored(source: TokenSource, ids: Sequence[str], views: Sequence[int] | None) -> Stored:
    """Return tensors of a source, and what makes Tokens of them where they have arrived."""
    if has_stored(source):
        return source.stored(ids, views)
    tokens = source.batch(ids, views)

    def with_sequence(moved: Sequence[Tensor]) -> Tokens:
        return replace(tokens, sequence=tuple(moved))

    return tokens.sequence, with_sequence


def _get_images(tensors: Sequence[Tensor]) -> Tensor:
    """Return the images, the only tensor of a batch of live tokens."""
    [images] = tensors
    return images
