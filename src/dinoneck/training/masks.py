"""Step 2 of a run: the masks of its images, and their labels per patch."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from dinoneck.data.class_colors import parse_colors
from dinoneck.data.labels import (
    ClassLabels,
    DenseLabels,
    MaskNumbers,
    prepared_classes,
    read_class_cells,
    read_number_cells,
)
from dinoneck.data.masks import ClassOptions, MaskClasses, MaskSurvey
from dinoneck.data.normals import NormalLabels
from dinoneck.data.table import Table
from dinoneck.errors import ConfigError, DataError
from dinoneck.images.decoding import read_image_size
from dinoneck.images.preprocessing import Preprocessing
from dinoneck.images.rasters import Raw
from dinoneck.kinds import MAP_KINDS
from dinoneck.tasks import TABLE_COLUMNS
from dinoneck.training.config import DataConfig, TrainConfig
from dinoneck.training.table import column_tasks, target_columns

Key = TypeVar("Key", bound=Hashable)
_MOST_KEPT = 2**29
"""Bytes of compressed maps that :class:`KeptMaps` keeps, 0.5 GiB: about 20,000 masks of ten megapixels."""
_KINDS_OF_VALUES = ("numbers", "normals")
"""Kinds of labels whose pixels hold values, no classes: their task is ``dense``."""


@dataclass(frozen=True)
class MapTask:
    """The task of a config's masks.

    Attributes:
        name: of the task; without a task in the config, numbers have that of their column or folder.
        kind: ``dense`` or ``segmentation``.
    """

    name: str
    kind: str


def map_kind(config: TrainConfig, columns: Collection[str] = ()) -> str | None:
    """Return the kind of the task of a config's masks, ``dense`` or ``segmentation``; None without masks.

    Args:
        config: the run.
        columns: of the table; without them the targets are those that the config names.
    """
    stated = _stated_map_tasks(config)
    if stated:
        return stated[0].kind
    if config.data.labels is None:
        return None
    return _default_map_kind(config, columns)


def _default_map_kind(config: TrainConfig, columns: Collection[str]) -> str:
    """The kind of the task of masks of which the config states nothing."""
    if config.data.label_kind in _KINDS_OF_VALUES:
        return "dense"
    # beside numbers of the images, the classes are learned as shares of the patches
    targets, _ = target_columns(config, columns)
    return "dense" if targets else "segmentation"


def map_task(config: TrainConfig, table: Table) -> MapTask | None:
    """Return the task of a config's masks; None without masks.

    Raises:
        ConfigError: if the config has several such tasks, a segmentation of numbers, or a task of
            masks without masks.
    """
    stated = _stated_map_tasks(config)
    if not stated and config.data.labels is None:
        return None
    if not stated:
        return _default_map_task(config, table)
    names = ", ".join(task.name for task in stated)
    if len(stated) > 1:
        raise ConfigError(
            f"tasks {names} are all per patch, and there is one column of masks; keep one of them"
        )
    if config.data.labels is None:
        raise ConfigError(
            f"task {names} is per patch, and no masks are named; name them with data.labels "
            "(--labels)"
        )
    [task] = stated
    if config.data.label_kind in _KINDS_OF_VALUES and task.kind == "segmentation":
        raise ConfigError(
            f"task {task.name} is a segmentation, and data.label_kind is "
            f"{config.data.label_kind!r}; write 'classes'"
        )
    return task


def _stated_map_tasks(config: TrainConfig) -> list[MapTask]:
    """The tasks of masks that the config describes."""
    stated = []
    for name, task in config.tasks.items():
        if task.kind in MAP_KINDS:
            stated.append(MapTask(name, kind=str(task.kind)))
    return stated


def _default_map_task(config: TrainConfig, table: Table) -> MapTask:
    """The task of masks of which the config states nothing."""
    kind = _default_map_kind(config, table.columns)
    if config.data.label_kind in _KINDS_OF_VALUES:
        folder = Path(str(config.data.labels))
        name = folder.name if folder.is_dir() else str(config.data.labels)
    elif kind == "dense":
        name = "cells"
    else:
        name = "segmentation"
    return MapTask(_free_name(name, config, table), kind)


def _free_name(name: str, config: TrainConfig, table: Table) -> str:
    """A name for the task of masks; ``name map`` where a column's task or a table's column is called so."""
    taken = {*column_tasks(config, table.columns), *TABLE_COLUMNS}
    while name in taken:
        name += " map"
    return name


@dataclass(frozen=True)
class TableMasks:
    """The masks of a table, of the images that have one.

    Attributes:
        rows: the row of each mask.
        files: each mask, a file or an array.
        image_sizes: (height, width) of the image of each mask.
    """

    rows: list[int]
    files: list[Any]
    image_sizes: list[tuple[int, int]]


def masks_of(table: Table) -> TableMasks:
    """Return the masks of a table; none without a column of them.

    Raises:
        DataError: if an image with a mask cannot be read.
    """
    masks = TableMasks(rows=[], files=[], image_sizes=[])
    if table.masks is None:
        return masks
    for row, (image, file) in enumerate(zip(table.images, table.masks, strict=True)):
        if file is not None:
            masks.rows.append(row)
            masks.files.append(file)
            masks.image_sizes.append(read_image_size(image))
    return masks


def class_options(data: DataConfig) -> ClassOptions:
    """Return what a config states of masks of classes."""
    return ClassOptions(
        names=data.classes,
        values=data.class_values,
        colours=parse_colors(data.class_colors),
        nodata=data.nodata,
    )


@dataclass(frozen=True)
class Maps:
    """The masks of a table, averaged over the patches of their images; n images, K classes or 1, of normals 3.

    Attributes:
        names: of the classes, or of the bands of numbers as far as they are named.
        values: (n, K, rows, cols) float32 in original units, of classes their shares of the patch;
            NaN where unknown.
        weight: (n, rows, cols) float32, how many labelled pixels a patch has.
        read_pixels: returns the classes (1, height, width) of a row's prepared image, -1 = none;
            without a mask (1, 1, 1). Of surface normals it returns these (3, height, width), NaN =
            none; without a mask (3, 1, 1).
        read_stored: returns the mask of a row, which has one, at its own size: classes (H, W) int64,
            -1 = unlabelled, or numbers (H, W, bands) float32, NaN = unlabelled; None for normals.
        classes: of masks of classes: which values they are; None of others.
        survey: of masks of classes: the values of each, in the order of the rows; None of others.
        numbers: of masks of numbers: what each holds, in the order of the rows; None of others.
    """

    names: tuple[str, ...]
    values: Tensor
    weight: Tensor
    read_pixels: Callable[[int], Tensor]
    read_stored: Callable[[int], Raw] | None = None
    classes: MaskClasses | None = None
    survey: MaskSurvey | None = None
    numbers: Sequence[MaskNumbers] | None = None


def read_maps(data: DataConfig, table: Table, preprocess: Preprocessing) -> Maps:
    """Read the masks of a table and average them over the patches; every mask is decoded once.

    Args:
        data: how the masks are read.
        table: of :func:`dinoneck.training.table.table_of`.
        preprocess: what prepares the images.

    Raises:
        DataError: if a mask cannot be used, has another size than its image, or comes to another
            grid than others; if the masks show fewer than two classes.
    """
    masks = masks_of(table)
    if data.label_kind == "normals":
        return _read_normals(table, masks, preprocess)
    if data.label_kind == "numbers":
        return _read_numbers(data, table, masks, preprocess)
    return _read_classes(data, table, masks, preprocess)


def _read_classes(
    data: DataConfig, table: Table, masks: TableMasks, preprocess: Preprocessing
) -> Maps:
    """Read the classes of a table and average them over the patches of their images."""
    cells = read_class_cells(masks.files, preprocess, class_options(data), masks.image_sizes)
    _check_shown(cells.classes)
    reader = ClassLabels(cells.classes.coding)
    values, weight = _of_all_rows(table, masks, cells.values, cells.weight)
    file_of_row = dict(zip(masks.rows, masks.files, strict=True))

    def read_index(row: int) -> Tensor:
        return torch.from_numpy(reader.stored_indices(file_of_row[row]))

    # those that the data summary draws are not decoded again where they are scored
    stored = KeptMaps(read_index)

    def read_pixels(row: int) -> Tensor:
        if row not in file_of_row:
            return torch.full((1, 1, 1), -1)
        return prepared_classes(stored.once(row), preprocess)[None]

    return Maps(
        cells.classes.names,
        values,
        weight=weight,
        read_pixels=read_pixels,
        read_stored=lambda row: stored(row).numpy(),
        classes=cells.classes,
        survey=cells.survey,
    )


def _read_numbers(
    data: DataConfig, table: Table, masks: TableMasks, preprocess: Preprocessing
) -> Maps:
    """Read the numbers per pixel of a table and average them over the patches of their images."""
    reader = number_reader(data)
    cells = read_number_cells(masks.files, preprocess, reader, masks.image_sizes)
    values, weight = _of_all_rows(table, masks, cells.values, cells.weight)
    file_of_row = dict(zip(masks.rows, masks.files, strict=True))
    return Maps(
        data.classes,
        values,
        weight=weight,
        read_pixels=_no_pixels,
        read_stored=lambda row: reader.stored_numbers(file_of_row[row]),
        numbers=cells.masks,
    )


def number_reader(data: DataConfig) -> DenseLabels:
    """Return what reads masks of numbers as a run states them."""
    return DenseLabels(scale=data.scale, offset=data.offset, nodata=data.nodata)


def _no_pixels(row: int) -> Tensor:
    """Raise an error: numbers are scored by patch."""
    raise TypeError(f"row {row} has numbers, which have no classes of pixels")


def _read_normals(table: Table, masks: TableMasks, preprocess: Preprocessing) -> Maps:
    """Read the surface normals of a table and average them over the patches."""
    reader = NormalLabels()
    mean, counts = reader.cells(masks.files, preprocess, masks.image_sizes)
    values, weight = _of_all_rows(table, masks, mean, counts)
    read_pixels = partial(
        read_normals_of_row,
        file_of_row=dict(zip(masks.rows, masks.files, strict=True)),
        preprocess=preprocess,
        size_of_row=dict(zip(masks.rows, masks.image_sizes, strict=True)),
    )
    return Maps((), values, weight=weight, read_pixels=read_pixels)


def read_normals_of_row(
    row: int,
    *,
    file_of_row: Mapping[int, Any],
    preprocess: Preprocessing,
    size_of_row: Mapping[int, Sequence[int]],
) -> Tensor:
    """Return the surface normals (3, height, width) of a row's prepared image, NaN = unknown.

    Without a file it is one pixel that is unknown.

    Args:
        row: of the table.
        file_of_row: row -> its file; only rows with one.
        preprocess: how the image is prepared.
        size_of_row: row -> (height, width) of its image; the same rows.
    """
    if row not in file_of_row:
        return torch.full((3, 1, 1), torch.nan)
    return NormalLabels().pixels(file_of_row[row], preprocess, size_of_row[row])


def _of_all_rows(
    table: Table, masks: TableMasks, mean: Tensor, counts: Tensor
) -> tuple[Tensor, Tensor]:
    """The means and counts of the masks as values and weights of all rows, NaN and 0 where there is no mask."""
    values = torch.full((len(table), *mean.shape[1:]), torch.nan)
    values[masks.rows] = mean.masked_fill(counts[:, None] == 0, torch.nan)
    weight = torch.zeros((len(table), *counts.shape[1:]))
    weight[masks.rows] = counts
    return values, weight


class KeptMaps(Generic[Key]):
    """Calls a function that reads maps, and keeps what it returns: compressed, up to 0.5 GiB.

    Maps beyond that are read again.

    Args:
        read: returns a map: class indices int64 below 32,768, or float32.
        most_bytes: compressed bytes that are kept.
    """

    def __init__(self, read: Callable[[Key], Tensor], *, most_bytes: int = _MOST_KEPT) -> None:
        self._read = read
        self._free_bytes = most_bytes
        self._kept: dict[Key, _CompressedMap] = {}

    def __call__(self, key: Key) -> Tensor:
        """Return the map of a key, such as a row, and keep it."""
        if key in self._kept:
            return self._kept[key].restore()
        tensor = self._read(key)
        compressed = _CompressedMap.of(tensor)
        if len(compressed.data) <= self._free_bytes:
            self._free_bytes -= len(compressed.data)
            self._kept[key] = compressed
        return tensor

    def once(self, key: Key) -> Tensor:
        """Return the map of a key, and keep it only if it is kept already."""
        if key in self._kept:
            return self._kept[key].restore()
        return self._read(key)


@dataclass(frozen=True)
class _CompressedMap:
    """A map of two bytes per class index, or of its numbers, compressed by zlib."""

    data: bytes
    shape: tuple[int, ...]
    is_of_classes: bool

    @classmethod
    def of(cls, tensor: Tensor) -> _CompressedMap:
        is_of_classes = not tensor.is_floating_point()
        values = tensor.numpy().astype(np.int16 if is_of_classes else np.float32)
        return cls(zlib.compress(values.tobytes(), 1), tuple(tensor.shape), is_of_classes)

    def restore(self) -> Tensor:
        dtype = np.int16 if self.is_of_classes else np.float32
        values = np.frombuffer(zlib.decompress(self.data), dtype).reshape(self.shape)
        return torch.from_numpy(values.astype(np.int64 if self.is_of_classes else np.float32))


def _check_shown(classes: MaskClasses) -> None:
    """Check that masks show two classes or more."""
    shown = [name for name, pixels in classes.pixels.items() if pixels]
    if len(shown) < 2:
        raise DataError(
            f"the masks hold the class {shown[0]!r} alone; expected two classes or more"
        )
