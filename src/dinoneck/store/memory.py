"""A store for training: in memory, for sets that fit, and as a torch dataset."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from dinoneck.devices import send
from dinoneck.errors import DataError, StoreError, counted
from dinoneck.grid import GridSize
from dinoneck.store.encoding import Columns
from dinoneck.store.feature_store import FeatureStore
from dinoneck.store.reading import Stored, StoredTokens, ViewNumbers
from dinoneck.tokens import Tokens

Sample = tuple[Tokens, Tensor]
# of the free memory; the rest is left to the model and its batches
LARGEST_SHARE = 0.9


class MemoryStore(StoredTokens):
    """The views of a store in memory, in the stored dtype: the same ``ids`` and ``batch`` without reading.

    A container of the ids that are kept: ``len(store)``, ``image_id in store`` and ``for image_id
    in store``.

    Args:
        store: to read from, once.
        ids: images to keep; None = all. They must have one grid.
        device: where they are kept, such as ``cuda``; batches are made there.

    Attributes:
        preprocess: how images were prepared.
        backbone_record: of the backbone that made the tokens.

    Raises:
        DataError: if an id is unknown, or the grids differ.
        StoreError: if the tokens do not fit into the memory that is free (on Linux; other systems
            are not asked).
    """

    def __init__(
        self,
        store: FeatureStore,
        ids: Sequence[str] | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        self.store, self.description, self.dtype, self.views = (
            store,
            store.description,
            store.dtype,
            store.views,
        )
        self.preprocess = store.preprocess
        self.backbone_record = store.backbone_record
        self._ids = store.ids if ids is None else tuple(ids)
        pairs = [(image_id, view) for image_id in self.ids for view in range(len(store.views))]
        self._rows = {pair: row for row, pair in enumerate(pairs)}
        _check_memory(store, self._ids)
        columns, self._grid = store.columns([i for i, _ in pairs], [view for _, view in pairs])
        kept = {name: tuple(x.to(device) for x in part) for name, part in columns.items()}
        self._scale: Columns = (
            {"channel_scale": kept.pop("channel_scale")} if store.dtype == "int8" else {}
        )
        self._columns, self._device = kept, next(iter(kept.values()))[0].device

    @property
    def ids(self) -> tuple[str, ...]:
        """The ids that are kept, in the order in which they were given."""
        return self._ids

    def _has(self, image_id: str) -> bool:
        return (image_id, 0) in self._rows  # every image has a view 0

    def digest(self, ids: Sequence[str]) -> str:
        """Return one hash of the tokens of these images, see :meth:`FeatureStore.digest`."""
        return self.store.digest(ids)

    def columns(self, ids: Sequence[str], views: ViewNumbers = None) -> tuple[Columns, GridSize]:
        """Return views as they are stored, see :meth:`FeatureStore.columns`."""
        return self._chosen(self._places(ids, views)), self._grid

    def stored(self, ids: Sequence[str], views: Sequence[int] | None = None) -> Stored:
        """Return what a batch is made of: the records, or on a device their row numbers; for training."""
        if self._device.type == "cpu":
            return super().stored(ids, views)
        return [self._places(ids, views)], lambda moved: self.description.tokens(
            self._chosen(moved[0]), self._grid
        )

    def _places(self, ids: Sequence[str], views: ViewNumbers) -> Tensor:
        pairs = list(zip(ids, self.store.view_numbers(ids, views), strict=True))
        if missing := [image_id for image_id, view in pairs if (image_id, view) not in self._rows]:
            raise DataError(
                f"the image {missing[0]!r} is not among the {counted(len(self), 'image')} kept in "
                "memory; name it in ids= of the MemoryStore"
            )
        return torch.tensor([self._rows[pair] for pair in pairs])

    def _chosen(self, rows: Tensor) -> Columns:
        [rows] = send([rows], self._device)
        chosen = {
            name: tuple(x.index_select(0, rows) for x in part)
            for name, part in self._columns.items()
        }
        return chosen | self._scale


def _check_memory(store: FeatureStore, ids: Sequence[str]) -> None:
    """Reject a store that does not fit into memory: the system would end the process without a message."""
    free = free_memory()
    if free is None or not ids:
        return
    first, _ = store.columns(ids[:1])  # all images have one grid
    view_bytes = sum(x.nbytes for part in first.values() for x in part)
    needed = view_bytes * len(store.views) * len(ids)
    if needed > LARGEST_SHARE * free:
        sizes = [tqdm.format_sizeof(number, "B") for number in (needed, free)]
        raise StoreError(
            f"{counted(len(ids), 'image')} x {counted(len(store.views), 'view')} need {sizes[0]} of "
            f"memory, {sizes[1]} are free; keep fewer ids, or read from the FeatureStore itself"
        )


def free_memory() -> int | None:
    """Return the bytes of memory that a process can take without swapping, None where Linux does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        name, _, size = line.partition(":")
        if name == "MemAvailable":
            return int(size.removesuffix("kB")) * 1024
    return None


class StoreDataset(Dataset[Sample]):
    """Samples of a store.

    Each is (Tokens, numbers): ``numbers`` (B,) int64 number the samples, to look targets up.

    Workers of a ``DataLoader`` open the store themselves; its content is never copied to them.

    Args:
        store: to read from.
        ids: images; None = all.
        views: ``"random"``: each image once, another view at every epoch (training); a number: each
            image once in this view (validation: 0); several numbers: each image in each of them,
            images in the outer loop (test-time augmentation): sample s is image s // k under
            ``views[s % k]``.
        seed: with the epoch and the sample's number it decides on random views.

    Raises:
        DataError: if an id or a view is not in the store.

    Examples:
        ``StoreDataset(store, train_ids, "random").loader(32,
        shuffle=True)``; call ``set_epoch(epoch)`` before each.
    """

    def __init__(
        self,
        store: FeatureStore | MemoryStore,
        ids: Sequence[str] | None = None,
        views: Literal["random"] | int | Sequence[int] = "random",
        seed: int = 0,
    ) -> None:
        self.store, self.seed = store, seed
        self.ids = store.ids if ids is None else tuple(ids)
        if unknown := set(self.ids).difference(store.ids):
            raise DataError(
                f"{len(unknown)} ids are not in the store, the first is {min(unknown)!r}"
            )
        numbers = range(len(store.views))
        self.views: Sequence[Any] = (
            [views] if isinstance(views, int) else [] if views == "random" else list(views)
        )
        if views != "random" and (not self.views or not set(self.views).issubset(numbers)):
            raise DataError(
                f"views is {views!r}; expected 'random', or numbers in 0 ... {len(numbers) - 1}"
            )
        # workers that live on see it change
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that random views are drawn for; workers that are running see it too."""
        self._epoch.fill_(epoch)

    def view_of(self, sample: int) -> int:
        """Return the view that a sample has, in this epoch."""
        if self.views:
            return int(self.views[sample % len(self.views)])
        return random.Random(f"{self.seed}/{int(self._epoch)}/{sample}").randrange(
            len(self.store.views)
        )

    def id_of(self, sample: int) -> str:
        """Return the image that a sample shows."""
        return self.ids[sample // len(self.views or [0])]

    def __len__(self) -> int:
        return len(self.ids) * len(self.views or [0])

    def __getitem__(self, sample: int) -> Sample:
        return self.__getitems__([range(len(self))[sample]])

    def __getitems__(self, samples: Sequence[int]) -> Sample:
        """Read a whole batch in one go."""
        numbers = [int(sample) for sample in samples]
        tokens = self.store.batch(
            [self.id_of(n) for n in numbers], [self.view_of(n) for n in numbers]
        )
        return tokens, torch.tensor(numbers)

    def loader(self, batch_size: int, **options: Any) -> DataLoader[Sample]:
        """Return a ``DataLoader`` over batches; ``options`` go to it."""
        # a batch is collated when it is read
        return DataLoader(self, batch_size=batch_size, collate_fn=tuple, **options)
