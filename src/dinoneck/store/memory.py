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
from dinoneck.errors import DataError, StoreError
from dinoneck.grid import GridSize
from dinoneck.store.encoding import Columns
from dinoneck.store.feature_store import FeatureStore
from dinoneck.store.reading import Stored, StoredTokens, ViewNumbers
from dinoneck.text import counted
from dinoneck.tokens import Tokens

Sample = tuple[Tokens, Tensor]
LARGEST_SHARE = 0.9  # of the free memory; the rest is left to the model and its batches


class MemoryStore(StoredTokens):
    """The views of a store in memory, in the stored dtype: the same ``ids`` and ``batch`` without reading.

    A container of the ids that are kept: ``len(store)``, ``image_id in store`` and ``for image_id
    in store``.

    Args:
        store: to read from, once.
        ids: images to keep; None: all. They must have one grid.
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
        self.store = store
        self.description = store.description
        self.dtype = store.dtype
        self.views = store.views
        self.preprocess = store.preprocess
        self.backbone_record = store.backbone_record
        self._ids = store.ids if ids is None else tuple(ids)
        _check_memory(store, self._ids)

        # a row per image and view
        self._rows: dict[tuple[str, int], int] = {}
        row_ids: list[str] = []
        row_views: list[int] = []
        for image_id in self._ids:
            for view in range(len(store.views)):
                self._rows[image_id, view] = len(row_ids)
                row_ids.append(image_id)
                row_views.append(view)
        columns, self._grid = store.columns(row_ids, row_views)
        self._columns: Columns = {}
        for name, layers in columns.items():
            self._columns[name] = tuple(layer.to(device) for layer in layers)
        self._scale: Columns = {}  # int8: (C,) per layer, the same for all rows
        if store.dtype == "int8":
            self._scale["channel_scale"] = self._columns.pop("channel_scale")
        first_part = next(iter(self._columns.values()))
        self._device = first_part[0].device

    @property
    def ids(self) -> tuple[str, ...]:
        """The ids that are kept, in the order in which they were given."""
        return self._ids

    def __repr__(self) -> str:
        return f"MemoryStore({self._facts()})"

    def _has(self, image_id: str) -> bool:
        return (image_id, 0) in self._rows  # every image has a view 0

    def digest(self, ids: Sequence[str]) -> str:
        """Return one hash of the tokens of these images, see :meth:`FeatureStore.digest`."""
        return self.store.digest(ids)

    def columns(self, ids: Sequence[str], views: ViewNumbers = None) -> tuple[Columns, GridSize]:
        """Return views as they are stored, see :meth:`FeatureStore.columns`."""
        return self._take(self._rows_of(ids, views)), self._grid

    def stored(self, ids: Sequence[str], views: Sequence[int] | None = None) -> Stored:
        """Return the tensors of a batch, or on a device its row numbers, and what makes Tokens of them."""
        if self._device.type == "cpu":
            return super().stored(ids, views)

        def make_tokens(tensors: Sequence[Tensor]) -> Tokens:
            [rows] = tensors
            return self.description.tokens(self._take(rows), self._grid)

        return [self._rows_of(ids, views)], make_tokens

    def _rows_of(self, ids: Sequence[str], views: ViewNumbers) -> Tensor:
        """Return the row of each image in its view, (B,) int64."""
        rows = []
        for image_id, view in zip(ids, self.store.view_numbers(ids, views), strict=True):
            row = self._rows.get((image_id, view))
            if row is None:
                raise DataError(
                    f"the image {image_id!r} is not among the {counted(len(self), 'image')} kept in "
                    "memory; name it in ids= of the MemoryStore"
                )
            rows.append(row)
        return torch.tensor(rows)

    def _take(self, rows: Tensor) -> Columns:
        """Return the columns of these rows."""
        [rows] = send([rows], self._device)
        columns: Columns = {}
        for name, layers in self._columns.items():
            columns[name] = tuple(layer.index_select(0, rows) for layer in layers)
        return columns | self._scale


def _check_memory(store: FeatureStore, ids: Sequence[str]) -> None:
    """Reject a store that does not fit into memory: the system would end the process without a message."""
    free = free_memory()
    if free is None or not ids:
        return
    first, _ = store.columns(ids[:1])  # all images have one grid
    view_bytes = 0
    for layers in first.values():
        view_bytes += sum(layer.nbytes for layer in layers)
    needed = view_bytes * len(store.views) * len(ids)
    if needed > LARGEST_SHARE * free:
        needed_size = tqdm.format_sizeof(needed, "B")
        free_size = tqdm.format_sizeof(free, "B")
        raise StoreError(
            f"{counted(len(ids), 'image')} x {counted(len(store.views), 'view')} need {needed_size} "
            f"of memory, {free_size} are free; keep fewer ids, or read from the FeatureStore itself"
        )


def free_memory() -> int | None:
    """Return the bytes of memory that a process can take without swapping, or None if they are not known."""
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
        self.store = store
        self.seed = seed
        self.ids = store.ids if ids is None else tuple(ids)
        unknown = set(self.ids).difference(store.ids)
        if unknown:
            raise DataError(
                f"{len(unknown)} ids are not in the store, the first is {min(unknown)!r}"
            )
        self.views: Sequence[Any] = []  # empty: random
        if isinstance(views, int):
            self.views = [views]
        elif views != "random":
            self.views = list(views)
        numbers = range(len(store.views))
        if views != "random" and (not self.views or not set(self.views).issubset(numbers)):
            raise DataError(
                f"views is {views!r}; expected 'random', or numbers in 0 ... {len(numbers) - 1}"
            )
        # shared memory: workers that live on see it change
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that random views are drawn for; workers that are running see it too."""
        self._epoch.fill_(epoch)

    def view_of(self, sample: int) -> int:
        """Return the view that a sample has, in this epoch."""
        if self.views:
            return int(self.views[sample % len(self.views)])
        draw = random.Random(f"{self.seed}/{int(self._epoch)}/{sample}")
        return draw.randrange(len(self.store.views))

    def id_of(self, sample: int) -> str:
        """Return the image that a sample shows."""
        return self.ids[sample // self._samples_per_image]

    def __len__(self) -> int:
        return len(self.ids) * self._samples_per_image

    @property
    def _samples_per_image(self) -> int:
        """One for each of the views; with random views one."""
        return len(self.views) if self.views else 1

    def __getitem__(self, sample: int) -> Sample:
        return self.__getitems__([range(len(self))[sample]])

    def __getitems__(self, samples: Sequence[int]) -> Sample:
        """Read a whole batch in one go."""
        numbers = [int(sample) for sample in samples]
        ids = [self.id_of(number) for number in numbers]
        views = [self.view_of(number) for number in numbers]
        return self.store.batch(ids, views), torch.tensor(numbers)

    def loader(self, batch_size: int, **options: Any) -> DataLoader[Sample]:
        """Return a ``DataLoader`` over batches; ``options`` go to it."""
        # a batch is collated when it is read
        return DataLoader(self, batch_size=batch_size, collate_fn=tuple, **options)
