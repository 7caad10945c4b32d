"""The batches of a run: which samples, under which view, with which targets."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import closing, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dinoneck.data.loading import in_threads
from dinoneck.devices import send
from dinoneck.tasks import Task
from dinoneck.tokens import Tokens
from dinoneck.training.live_tokens import LiveTokens
from dinoneck.training.recipe import Recipe
from dinoneck.training.sources import MemoryTokens, TokenSource, is_stored, stored_tokens
from dinoneck.training.targets import known

Table = dict[str, Tensor]
Rows = np.ndarray[Any, np.dtype[np.int64]]
Inputs = tuple[Tokens | Tensor, Table, Table]  # tokens, or images of live tokens; targets; masks


class Samples:
    """The samples of a run; the first ``trained`` of them are trained on, the others validate.

    Args:
        source: of tokens.
        ids: of the samples, n.
        trained: how many are training samples.
        tasks: of the head.
        values: task or composition -> (n, ...) in normalised units.
        cells: dense task -> (n, rows, cols), how much every cell counts.
        device: where batches are sent.
    """

    def __init__(
        self,
        source: TokenSource,
        ids: Sequence[str],
        trained: int,
        tasks: Sequence[Task],
        values: Mapping[str, Tensor],
        cells: Mapping[str, Tensor],
        device: torch.device,
    ) -> None:
        self.source, self.ids, self.trained = source, ids, trained
        self.values, self.cells, self.device = values, cells, device
        self.maps = {task.name for task in tasks if task.is_map}
        self.in_memory = isinstance(source, MemoryTokens)
        self.views: Any = getattr(source, "views", None)
        self.stream = torch.cuda.current_stream(device) if device.type == "cuda" else None

    def training(
        self, epoch: int, recipe: Recipe, rank: int, count: int
    ) -> Generator[tuple[int, Sequence[Any]], None, None]:
        """Yield the batches of an epoch, of which this process reads its share: images, and (inputs, ..., mixes).

        The order and the view of every sample follow from seed and epoch. Where the samples of a batch do not divide
        among the processes, its first ones are repeated. ``mixes`` states whether the step blends samples.
        """
        random = np.random.default_rng([recipe.seed, epoch])
        order = random.permutation(self.trained)
        several = self.views is not None and len(self.views) > 1
        views = random.integers(0, len(self.views), self.trained) if several else None
        begins = range(0, self.trained, recipe.batch_size)
        sizes = [min(recipe.batch_size, self.trained - begin) for begin in begins]
        whole = [np.resize(np.arange(n), -(-n // count) * count) for n in sizes]
        own = [begin + places[rank::count] for begin, places in zip(begins, whole, strict=True)]
        last_mixed = (1.0 - recipe.mixup_off_last) * recipe.epochs * len(own)
        with closing(self._loaded([(order[part], None if views is None else views[part]) for part in own])) as loaded:
            for number, (size, inputs) in enumerate(zip(sizes, loaded, strict=True)):
                yield size, (*inputs, epoch * len(own) + number < last_mixed)

    def held_out(self, size: int) -> Generator[tuple[int, Inputs], None, None]:
        """Yield the batches of the validation samples, as they are: images, and inputs, targets and masks."""
        every = range(self.trained, len(self.ids))
        rows = [np.arange(begin, min(begin + size, every.stop)) for begin in every[::size]]
        with closing(self._loaded([(part, None) for part in rows])) as loaded:
            yield from zip(map(len, rows), loaded, strict=True)

    def _loaded(self, batches: Sequence[tuple[Rows, Rows | None]]) -> Generator[Inputs, None, None]:
        """Yield inputs, targets and masks. A thread reads a batch while the step before computes.

        Of live tokens it reads up to the transform, which may draw random numbers. So may a source without ``stored``,
        which is read when its step has begun; so are tokens in memory on a CPU, where a thread would take the step's
        core.
        """
        if isinstance(self.source, LiveTokens):
            live = self.source
            with closing(in_threads(lambda batch: live.decoded(*self._named(*batch)), batches, workers=1)) as decoded:
                for batch, images in zip(batches, decoded, strict=True):
                    [moved], targets, masks = self._sent([live.prepared(images, self._named(*batch)[1])], *batch)
                    yield moved, targets, masks
        elif is_stored(self.source) and not (self.in_memory and self.device.type == "cpu"):
            yield from in_threads(self._read, batches, workers=1)
        else:
            yield from map(self._read, batches)

    def _read(self, batch: tuple[Rows, Rows | None]) -> Inputs:
        with nullcontext() if self.stream is None else torch.cuda.stream(self.stream):  # a thread has its own
            tensors, tokens = stored_tokens(self.source, *self._named(*batch))
            moved, targets, masks = self._sent(tensors, *batch)
            return tokens(moved), targets, masks

    def _named(self, rows: Rows, views: Rows | None) -> tuple[list[str], list[int] | None]:
        return [self.ids[row] for row in rows], None if views is None else views.tolist()

    def _sent(self, tensors: Sequence[Tensor], rows: Rows, views: Rows | None) -> tuple[list[Tensor], Table, Table]:
        """The tensors of a batch, its targets and its masks on the device, in one copy; maps flipped as the images."""
        tables = [
            {name: self._flipped(x[rows], views, name in self.maps) for name, x in table.items()}
            for table in (self.values, self.cells)
        ]
        arrived = iter(send([*tensors, *(x for table in tables for x in table.values())], self.device))
        moved = [next(arrived) for _ in tensors]
        values, cells = ({name: next(arrived) for name in table} for table in tables)
        return moved, values, {name: known(value) for name, value in values.items()} | cells

    def _flipped(self, x: Tensor, views: Iterable[int] | None, is_map: bool) -> Tensor:
        if not is_map or views is None:
            return x
        axes = [[a for a, flip in zip((-1, -2), self.views.flips(int(v)), strict=True) if flip] for v in views]
        return torch.stack([one.flip(own) for one, own in zip(x, axes, strict=True)])
