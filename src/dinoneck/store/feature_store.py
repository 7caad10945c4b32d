"""FeatureStore: tokens of images on disk, extracted once, read view by view."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

import torch

from dinoneck.backbones.backbone import Backbone, checked_backbone
from dinoneck.data.resizing import Interpolation, Resize
from dinoneck.data.views import Views
from dinoneck.errors import ConfigError, StoreError
from dinoneck.grid import PadTo, PatchSize
from dinoneck.store import converters, extraction, ray_engine, reading
from dinoneck.store.description import Description, make_folder, named_views, read_description
from dinoneck.store.encoding import QuantisedTokens, StoreDtype
from dinoneck.store.extraction import Extracted
from dinoneck.store.files import Files, RemoteFiles, files_at
from dinoneck.store.images import PathLike, image_ids
from dinoneck.store.reading import Check, Reader, Stored
from dinoneck.store.shards import SHARD_BYTES
from dinoneck.tokens import Tokens


class FeatureStore:
    """A folder of tokens: made with :meth:`create`, opened with :meth:`open`; a source for ``fit``.

    Threads and worker processes may read through one object at once. Pickled, only the path travels.

    Attributes:
        path: folder or URL.
        preprocess: how images were prepared.
        views: the stored views of every image: flips, turns, colour changes.
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
        ...         f"{folder}/store", backbone=backbone, views="flips4", image_size=(32, 64))
        ...     extracted = store.extract(folder)
        ...     tokens = store.batch(["b", "a"], views=[3, 0])
        >>> extracted.written, store.ids, tokens.sequence[0].shape
        (['a', 'b'], ('a', 'b'), torch.Size([2, 11, 64]))
    """

    def __init__(self, files: Files, description: Description, *, check: Check = "first") -> None:
        self.path, self.description = str(files), description
        self.preprocess, self.views, self.dtype = description.preprocess, description.views, description.dtype
        self.backbone_record = dict(description.backbone)
        self.reader = Reader(files, description, check=check)
        self._backbone: Backbone | None = None

    @classmethod
    def create(
        cls,
        path: PathLike,
        *,
        backbone: Backbone,
        views: str | Views = "none",
        image_size: int | Sequence[int] | None,
        dtype: StoreDtype = "fp16",
        resize: Resize | None = None,
        pad_to: PadTo | None = None,
        interpolation: Interpolation | None = None,
        blur: int | None = None,
    ) -> Self:
        """Make a store, or open the one that is there if it was made with the same values.

        Args:
            path: a local folder; it and its parents are made.
            backbone: gives the tokens; its layers and norm are the store's.
            views: of every image: a name (see :meth:`dinoneck.data.Views.named`) or the object.
            image_size: (height, width) in pixels; None keeps each image's own.
            dtype: ``fp16`` (overflow is refused), ``bf16``, or ``int8`` with a scale per token and channel.
            resize: how an image comes to the size, and what becomes of a remainder, see
                :class:`dinoneck.data.Preprocessing`; None = ``stretch`` with a size, the backbone's without.
            pad_to: where ``pad`` puts the image, see there; None = the backbone's (``corner``).
            interpolation: see there; None = the backbone's (``bilinear``).
            blur: of all views, see there; None = the backbone's, which is none.

        Raises:
            StoreError: if there is another store, naming the value that differs, or the folder cannot be used.
            ConfigError: if ``backbone`` is not a Backbone, or a value is out of range.
        """
        own = checked_backbone(backbone).preprocess
        prepare = own.changed(size=image_size, resize=resize, pad_to=pad_to, interpolation=interpolation, blur=blur)
        store = cls._made(path, Description(backbone.record(), prepare, named_views(views), dtype))
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
    def open(cls, path_or_url: PathLike, check: Check = "first") -> Self:
        """Open a store for reading.

        Args:
            path_or_url: a folder, which may be read-only, or a URL that fsspec knows.
            check: compare what is read with its checksum: ``first`` = at the first read of a view in this process,
                ``always`` (a batch takes about a fifth longer) or ``never``. It finds damage and mix-ups, not forgery.

        Raises:
            StoreError: if the store does not exist, is damaged, or was written by a newer dinoneck.
        """
        files = files_at(path_or_url)
        return cls(files, read_description(files), check=check)

    def __reduce__(self) -> Any:
        return functools.partial(type(self).open, check=self.reader.check), (self.path,)

    @property
    def ids(self) -> tuple[str, ...]:
        """All image ids, sorted; read from the index at the first use."""
        return self.reader.ids

    def __len__(self) -> int:
        return len(self.reader.entries)

    def __contains__(self, image_id: object) -> bool:
        return image_id in self.reader.entries

    def __repr__(self) -> str:
        return f"FeatureStore({self.path!r}, {len(self)} images x {len(self.views)} views, {self.dtype})"

    def record(self, ids: Sequence[str] | None = None) -> dict[str, Any]:
        """Return what identifies the tokens of these images; None = of all."""
        return self.reader.record(self.ids if ids is None else ids)

    def refresh(self) -> None:
        """Look again at what the store holds: other writers may have added images."""
        self.reader.refresh()

    def extract(
        self,
        paths: PathLike | Sequence[PathLike],
        root: PathLike | None = None,
        shard: tuple[int, int] | None = None,
        *,
        engine: Literal["local", "ray"] = "local",
        batch_size: int | None = None,
        skip_unusable: bool = False,
        workers: int | None = None,
        shard_bytes: int = SHARD_BYTES,
    ) -> Extracted:
        """Run the backbone over all images that the store does not hold yet; print what it takes and what is free.

        It may be stopped at any time, by a kill too, and called again; several processes may work on one store.

        Args:
            paths: images and folders.
            root: folder that ids are relative to, see :func:`dinoneck.store.image_ids`; give it if more will follow.
            shard: (i, n): do every n-th part only; None = torchrun's rank, or everything.
            engine: ``ray``: a Ray cluster that sees store and images under one path; an actor per GPU, or per two CPUs.
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
            StoreError: without a backbone, with a changed one, if the file of a stored image has changed, if the images
                do not fit on the disk, or values not in the dtype.
            ConfigError: if an option is out of range.
            ImportError: naming the extra, if Ray is not installed.
        """
        if engine not in ("local", "ray") or (engine == "ray" and shard is not None):
            raise ConfigError(f"engine is {engine!r}, shard is {shard!r}; expected 'local', or 'ray' without a shard")
        backbone = self._own_backbone()
        self.description.check_backbone(backbone.record(), self.path)
        settings = extraction.Settings(batch_size, skip_unusable, workers, shard_bytes)
        items = list(image_ids(paths, root).items())
        units = extraction.units_of(items, self.description, batch_size)
        share = units if engine == "ray" else extraction.share_of(units, shard)
        run = ray_engine.run_units if engine == "ray" else extraction.run_units
        return extraction.extract(items, share, self.reader, backbone, settings, run)

    def __getitem__(self, key: str | tuple[str, int]) -> Tokens:
        image_id, view = key if isinstance(key, tuple) else (key, 0)
        return self.batch([image_id], [view])

    def batch(
        self,
        ids: Sequence[str],
        views: int | Sequence[int] | None = None,
        *,
        dtype: torch.dtype | None = torch.float32,
    ) -> Tokens:
        """Read the tokens of these images, in this order, straight into one buffer per layer.

        Args:
            ids: image ids; repeats are allowed.
            views: one for each, or one for all; None = 0.
            dtype: of the Tokens; None = as stored, without a cast (float32 for int8 stores).

        Raises:
            DataError: if an id or a view is not in the store, or the images have different grids.
            StoreError: if a shard is missing, cut short or damaged, or different images were stored under one id.
        """
        return self.reader.assemble(*self.reader.columns(ids, views), dtype)

    def stored(self, ids: Sequence[str], views: Sequence[int] | None = None) -> Stored:
        """Read the tensors of a batch as they are stored, with a function that makes Tokens of them; for training."""
        return self.reader.stored(*self.reader.columns(ids, views))

    def quantised(self, ids: Sequence[str], views: int | Sequence[int] | None = None) -> QuantisedTokens:
        """Read int8 tokens as they are stored, to be pooled or projected without dequantising.

        Raises:
            StoreError: if this is not an int8 store; else like :meth:`batch`.
        """
        if self.dtype != "int8":
            raise StoreError(f"{self.path} holds {self.dtype}; only int8 stores give quantised tokens: use batch()")
        return self.reader.quantised(*self.reader.columns(ids, views))

    def verify(self) -> list[str]:
        """Read every view and header; return the ids, sorted, that are damaged, of two images, or wrong in the index.

        A damaged shard whose images are not known is listed by its file. An index that is wrong is built again; remedy
        for the rest: delete what :meth:`shard_of` names for all of these, and extract again.
        """
        return sorted(reading.damaged_shards(self.reader))

    def shard_of(self, image_id: str) -> str:
        """Return the file, relative to the store, that holds an image; of a file that :meth:`verify` lists, its name.

        Raises:
            DataError: if the id is not in the store.
        """
        return reading.shard_of(self.reader, image_id)

    @classmethod
    def from_npz(
        cls,
        folder: PathLike,
        path: PathLike,
        *,
        grid: Sequence[int],
        patch_size: PatchSize,
        views: str | Views | None = None,
        dtype: StoreDtype = "fp16",
    ) -> Self:
        """Make a store of the ``.npz`` files in a folder tree (``cls_i``, ``patches_i``); ids are their paths.

        Args:
            folder: with the files.
            path: of the store.
            grid: (rows, cols); the files do not hold it.
            patch_size: in pixels.
            views: what view i was; None = by their number: 1 ``none``, 4 ``flips4``, 20 ``color20``.
            dtype: of the store.

        Raises:
            DataError: if a file holds anything else, naming it.
            StoreError: if another store is there.
        """
        read = functools.partial(converters.read_npz, grid=grid, patch_size=patch_size)
        return cls._converted(path, converters.files_in(Path(folder), ".npz"), read, views, dtype)

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
        read = functools.partial(converters.read_pt, grid=grid, patch_size=patch_size)
        return cls._converted(path, converters.files_in(Path(folder), ".pt"), read, None, dtype)

    @classmethod
    def _converted(
        cls, path: PathLike, files: dict[str, Path], read: converters.Read, views: Any, dtype: StoreDtype
    ) -> Self:
        """Make a store, or open an equal one, and add the files that it lacks."""
        store = cls._made(path, converters.describe(read(next(iter(files.values()))), views, dtype))
        converters.convert(files, read, store.reader, Path(store.path))
        return store

    def _own_backbone(self) -> Backbone:
        if isinstance(self.reader.files, RemoteFiles):
            raise StoreError(f"{self.path} is a URL; extraction writes to local folders only")
        if self._backbone is None:
            raise StoreError("this store was opened for reading; extract with FeatureStore.create(..., backbone=...)")
        return self._backbone
