"""FeatureStore: tokens of images on disk, extracted once, read pattern by pattern."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch

from dinoneck.backbones.backbone import Backbone, checked_backbone
from dinoneck.data.patterns import Patterns
from dinoneck.data.preprocessing import Preprocessing
from dinoneck.data.resizing import Interpolation, Resize
from dinoneck.errors import StoreError
from dinoneck.grid import PadTo, PatchSize
from dinoneck.store import converters, extraction, reading, shards, writer
from dinoneck.store.description import (
    FILE,
    SCALE_FILE,
    Description,
    make_folder,
    named_patterns,
    read_description,
    upgrade_schema,
    write_scale,
)
from dinoneck.store.encoding import QuantisedTokens, StoreDtype
from dinoneck.store.extraction import Extracted, Item
from dinoneck.store.files import Files, LocalFiles, RemoteFiles, files_at
from dinoneck.store.images import PathLike, image_ids
from dinoneck.store.reading import Reader, Stored
from dinoneck.store.table import Ids
from dinoneck.tokens import Tokens


class FeatureStore:
    """A folder of tokens: made with :meth:`create`, opened with :meth:`open`; a source for ``fit``.

    Threads and worker processes may read through one object at once. Pickled, only the path travels.

    Attributes:
        path: folder or URL.
        preprocess: how images were prepared.
        patterns: the augmentation patterns.
        dtype: ``fp16``, ``bf16`` or ``int8``.
        backbone_record: the record of the backbone that made the tokens.

    Examples:
        >>> import tempfile
        >>> from dinoneck import load_backbone
        >>> from PIL import Image
        >>> backbone = load_backbone("dinoneck_tiny")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ("a", "b"):
        ...         Image.new("RGB", (64, 32), "green").save(f"{folder}/{name}.png")
        ...     store = FeatureStore.create(
        ...         f"{folder}/store", backbone=backbone, patterns="flips4", image_size=(32, 64))
        ...     extracted = store.extract(folder)
        ...     tokens = store.batch(["b", "a"], patterns=[3, 0])
        >>> extracted.written, store.ids, tokens.sequence[0].shape
        (['a', 'b'], ('a', 'b'), torch.Size([2, 11, 64]))
    """

    def __init__(self, files: Files, description: Description, *, check: bool = True) -> None:
        self.path = str(files)
        self.description = description
        self.reader = Reader(files, description, check=check)
        self._backbone: Backbone | None = None

    @classmethod
    def create(
        cls,
        path: PathLike,
        *,
        backbone: Backbone,
        patterns: PathLike | Patterns = "none",
        image_size: int | Sequence[int] | None,
        dtype: StoreDtype = "fp16",
        resize: Resize | None = None,
        pad_to: PadTo | None = None,
        interpolation: Interpolation | None = None,
    ) -> Self:
        """Make a store, or open the one that is there if it was made with the same values.

        Args:
            path: a local folder; it and its parents are made.
            backbone: gives the tokens; its layers and norm are the store's.
            patterns: of augmentation: a name, a file (see :meth:`dinoneck.data.Patterns.named`) or the object.
            image_size: (height, width) in pixels; None keeps each image's own.
            dtype: ``fp16`` (overflow is refused), ``bf16``, or ``int8`` with a scale per token and channel.
            resize: how an image comes to the size, and what becomes of a remainder, see
                :class:`dinoneck.data.Preprocessing`; None = ``stretch`` with a size, the backbone's without.
            pad_to: where ``pad`` puts the image, see there; None = the backbone's (``corner``).
            interpolation: see there; None = that of the store that is there, or else the backbone's (``bilinear``).

        Raises:
            StoreError: if there is another store, naming the value that differs, or the folder cannot be used.
            ConfigError: if ``backbone`` is not a Backbone, or a value is out of range.
        """
        own, files = checked_backbone(backbone).preprocess, files_at(path)
        if interpolation is None and isinstance(files, LocalFiles) and files.exists(FILE):
            interpolation = read_description(files).preprocess.interpolation
        prepare = own.changed(size=image_size, resize=resize, pad_to=pad_to, interpolation=interpolation)
        store = cls._made(path, Description(backbone.record(), prepare, named_patterns(patterns), dtype))
        store._backbone = backbone
        return store

    @classmethod
    def _made(cls, path: PathLike, asked: Description) -> Self:
        """Make a store that holds nothing yet, or open an equal one."""
        files = files_at(path)
        if isinstance(files, RemoteFiles):
            raise StoreError(f"{path} is a URL; stores are made in local folders and copied")
        make_folder(files.root, asked)
        store = cls.open(path)
        store.description.check_equal(asked, str(path))
        return store

    @classmethod
    def open(cls, path_or_url: PathLike, *, check: bool = True) -> Self:
        """Open a store for reading.

        Args:
            path_or_url: a folder, which may be read-only, or a URL that fsspec knows.
            check: compare the checksum of every record when it is read for the first time through this object.

        Raises:
            StoreError: if the store does not exist, is damaged, or was written by a newer dinoneck.
        """
        files = files_at(path_or_url)
        return cls(files, read_description(files), check=check)

    def __reduce__(self) -> Any:
        return functools.partial(type(self).open, check=self.reader.check), (self.path,)

    @property
    def preprocess(self) -> Preprocessing:
        """How images were prepared."""
        return self.description.preprocess

    @property
    def patterns(self) -> Patterns:
        """The augmentation patterns."""
        return self.description.patterns

    @property
    def dtype(self) -> StoreDtype:
        """What values are stored in."""
        return self.description.dtype

    @property
    def backbone_record(self) -> dict[str, Any]:
        """The record of the backbone that made the tokens."""
        return dict(self.description.backbone)

    @property
    def ids(self) -> Ids:
        """All image ids, sorted: a sequence that reads them from the index, equal to a tuple of them."""
        return self.reader.ids

    def __len__(self) -> int:
        return len(self.ids)

    def __contains__(self, image_id: object) -> bool:
        return image_id in self.reader.entries

    def __repr__(self) -> str:
        return f"FeatureStore({self.path!r}, {len(self)} images x {len(self.patterns)} patterns, {self.dtype})"

    def record(self, ids: Sequence[str] | None = None) -> dict[str, Any]:
        """Return what identifies the tokens of these images; None = of all."""
        return self.reader.record(self.ids if ids is None else ids)

    def refresh(self) -> None:
        """Read the index again: other writers may have added images; StoreError if a line of it is damaged."""
        self.reader.refresh()

    def extract(
        self,
        paths: PathLike | Sequence[PathLike],
        root: PathLike | None = None,
        shard: tuple[int, int] | None = None,
        *,
        batch_size: int | None = None,
        skip_unusable: bool = False,
        workers: int | None = None,
        shard_bytes: int = writer.SHARD_BYTES,
    ) -> Extracted:
        """Run the backbone over all images that the store does not hold yet.

        It may be stopped at any time, by a kill too, and called again; several processes may work on one store.

        Args:
            paths: images and folders.
            root: folder that ids are relative to, see :func:`dinoneck.store.image_ids`; give it if more images will
                follow.
            shard: (i, n): do every n-th part only; None = torchrun's rank, or everything.
            batch_size: views per backbone pass, of several images if an image has fewer; None = up to 32, fewer for
                large images or short lists. What is stored of an image depends in its last bits on the images in its
                pass; with 1 it depends on the image alone.
            skip_unusable: leave out images that cannot be decoded, and list them, instead of stopping.
            workers: threads that decode images ahead; None = one per core, at most 8.
            shard_bytes: size of the files that are written. One is also written with the first image that arrives 30 s
                after the last file. A kill costs the one in progress.

        Returns:
            What was written, present and left out.

        Raises:
            DataError: if an image cannot be used, or two have one id; all that was finished before is kept.
            StoreError: without a backbone, with a changed one, if the file of a stored image has changed, on a full
                disk, or if values do not fit the dtype.
        """
        units = extraction.share_of(self._plan(paths, root, batch_size, skip_unusable), shard)
        return self._run(units, batch_size, skip_unusable, workers, shard_bytes)

    def __getitem__(self, key: str | tuple[str, int]) -> Tokens:
        image_id, pattern = key if isinstance(key, tuple) else (key, 0)
        return self.batch([image_id], [pattern])

    def batch(
        self,
        ids: Sequence[str],
        patterns: int | Sequence[int] | None = None,
        *,
        dtype: torch.dtype | None = torch.float32,
    ) -> Tokens:
        """Read the tokens of these images, in this order, straight into one buffer per layer.

        Args:
            ids: image ids; repeats are allowed.
            patterns: one for each, or one for all; None = 0.
            dtype: of the Tokens; None = as stored, without a cast (float32 for int8 stores).

        Raises:
            DataError: if an id or a pattern is not in the store, or the images have different grids.
            StoreError: if a shard is missing, cut short or damaged.
        """
        return self.reader.assemble(*self.reader.columns(ids, patterns), dtype)

    def stored(self, ids: Sequence[str], patterns: Sequence[int] | None = None) -> Stored:
        """Read the tensors of a batch as they are stored, with a function that makes Tokens of them; for training."""
        return self.reader.stored(*self.reader.columns(ids, patterns))

    def quantised(self, ids: Sequence[str], patterns: int | Sequence[int] | None = None) -> QuantisedTokens:
        """Read int8 tokens as they are stored, to be pooled or projected without dequantising.

        Raises:
            StoreError: if this is not an int8 store; else like :meth:`batch`.
        """
        if self.dtype != "int8":
            raise StoreError(f"{self.path} holds {self.dtype}; only int8 stores give quantised tokens: use batch()")
        return self.reader.quantised(*self.reader.columns(ids, patterns))

    def verify(self) -> list[str]:
        """Read every record and header; return the ids, sorted, that are damaged, lost by the index, or of two images.

        A damaged shard without index lines is listed by its file. Remedy: delete what :meth:`shard_of` names for all of
        these, and extract again.
        """
        return sorted(reading.damaged_shards(self.reader))

    def shard_of(self, image_id: str) -> str:
        """Return the file, relative to the store, that holds an image; also for all that :meth:`verify` lists.

        Raises:
            DataError: if the id is not in the store.
        """
        return reading.shard_of(self.reader, image_id)

    def to_npz(self, folder: PathLike, layer: int | None = None) -> int:
        """Write ``<id>.npz`` per image with float32 ``cls_i`` (C,) and ``patches_i`` (N, C); return how many.

        Args:
            folder: made if it is not there.
            layer: block index, for a store of several layers.

        Raises:
            StoreError: if the store has several layers and none is named, or the disk is full.
        """
        return converters.write_files(self.reader, Path(folder), ".npz", [*range(len(self.patterns))], layer)

    def to_pt(self, folder: PathLike, layer: int | None = None, pattern: int = 0) -> int:
        """Write ``<id>.pt`` per image, a float16 tensor (C, rows, cols) of one pattern; return how many.

        Raises:
            StoreError: if the store has several layers and none is named, or the disk is full.
        """
        return converters.write_files(self.reader, Path(folder), ".pt", [pattern], layer)

    @classmethod
    def from_npz(
        cls,
        folder: PathLike,
        path: PathLike,
        *,
        grid: Sequence[int],
        patch_size: PatchSize,
        patterns: PathLike | Patterns | None = None,
        dtype: StoreDtype = "fp16",
    ) -> Self:
        """Make a store of the ``.npz`` files in a folder tree (``cls_i``, ``patches_i``); ids are their paths.

        Args:
            folder: with the files.
            path: of the store.
            grid: (rows, cols); the files do not hold it.
            patch_size: in pixels.
            patterns: what pattern i was; None = by their number: 1 ``none``, 4 ``flips4``, 20 ``color20``.
            dtype: of the store.

        Raises:
            DataError: if a file holds anything else, naming it.
            StoreError: if another store is there.
        """
        return cls._converted(folder, ".npz", grid, patch_size, path, patterns, dtype)

    @classmethod
    def from_pt(
        cls,
        folder: PathLike,
        path: PathLike,
        *,
        patch_size: PatchSize,
        grid: Sequence[int] | None = None,
        dtype: StoreDtype = "fp16",
    ) -> Self:
        """Make a store of the ``.pt`` tensors (C, rows, cols) in a folder tree, read by the weights-only loader.

        Args:
            folder: with the files.
            path: of the store.
            patch_size: in pixels.
            grid: (rows, cols) that all must have; None = each its own.
            dtype: of the store.

        Raises:
            DataError: if a file holds anything else, naming it.
            StoreError: if another store is there.
        """
        return cls._converted(folder, ".pt", grid, patch_size, path, None, dtype)

    @classmethod
    def _converted(
        cls,
        folder: PathLike,
        suffix: str,
        grid: Sequence[int] | None,
        patch_size: PatchSize,
        path: PathLike,
        patterns: PathLike | Patterns | None,
        dtype: StoreDtype,
    ) -> Self:
        read = functools.partial(converters.read_file, grid=grid, patch_size=patch_size)
        files = converters.files_in(Path(folder), suffix)
        store = cls._made(path, converters.describe(read(next(iter(files.values()))), patterns, dtype))
        converters.convert(files, read, store.reader, Path(store.path))
        store.refresh()
        return store

    def _plan(
        self, paths: PathLike | Sequence[PathLike], root: PathLike | None, batch_size: int | None, skip: bool
    ) -> list[list[Item]]:
        """Everything that comes before the images, for all processes alike; returns the units of all images."""
        local = self.reader.files
        if isinstance(local, RemoteFiles):
            raise StoreError(f"{self.path} is a URL; extraction writes to local folders only")
        backbone = self._own_backbone()
        self.description.check_backbone(backbone.record(), self.path)
        items = list(image_ids(paths, root).items())
        units = extraction.units_of(items, self.description, batch_size)
        writer.remove_leftovers(local.root)
        upgrade_schema(local)
        writer.take_in_orphans(local.root, self.description)
        self.refresh()
        if self.dtype == "int8" and not local.exists(SCALE_FILE) and not shards.names(local):
            write_scale(local.root, extraction.measure_scale(items, self.description, backbone, skip))
        return units

    def _run(
        self,
        units: Sequence[list[Item]],
        batch_size: int | None,
        skip_unusable: bool,
        workers: int | None,
        shard_bytes: int = writer.SHARD_BYTES,
    ) -> Extracted:
        """Extract what these units lack, as one writer."""
        out = writer.Writer(Path(self.path), shard_bytes, made=self.reader.made())
        try:
            return extraction.run_units(units, self.reader, out, self._own_backbone(), batch_size=batch_size,
                                        skip_unusable=skip_unusable, workers=workers)  # fmt: skip
        finally:
            self.refresh()

    def _own_backbone(self) -> Backbone:
        if self._backbone is None:
            raise StoreError("this store was opened for reading; extract with FeatureStore.create(..., backbone=...)")
        return self._backbone
