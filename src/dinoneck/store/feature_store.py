"""FeatureStore: tokens of images on disk, extracted once, read view by view."""

from __future__ import annotations

import contextlib
import functools
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, Self

from dinoneck.backbones.backbone import Backbone, checked_backbone
from dinoneck.errors import ConfigError, StoreError
from dinoneck.grid import PadTo, PatchSize
from dinoneck.images.bands import RGB_CHANNELS
from dinoneck.images.recipe import Interpolation, Resize
from dinoneck.images.views import Views
from dinoneck.store import converters
from dinoneck.store.description import (
    DATA,
    Description,
    make_folder,
    named_views,
    read_description,
)
from dinoneck.store.encoding import StoreDtype
from dinoneck.store.extraction import Extracted, Extractor, check_shard
from dinoneck.store.files import Files, RemoteFiles, files_at
from dinoneck.store.images import PathLike, image_ids
from dinoneck.store.index import FILE
from dinoneck.store.reading import Check, Reader
from dinoneck.store.shards import SHARD_BYTES
from dinoneck.text import did_you_mean
from dinoneck.tokens import Tokens


@contextlib.contextmanager
def no_empty_store(path: PathLike) -> Iterator[None]:
    """Remove the store that the ``with`` block made, if the block raises before anything is stored.

    A store that was there before, or that holds an image, is kept. Not for several processes that
    work on one store: another one may be about to write.
    """
    folder = Path(path)
    was_there = folder.exists()
    try:
        yield
    except BaseException:
        is_empty = not any(file.is_file() for file in (folder / DATA).glob("*"))
        if not was_there and is_empty:
            shutil.rmtree(folder, ignore_errors=True)
        raise


class FeatureStore(Reader):
    """A folder of tokens: made with :meth:`create`, opened with :meth:`open`; a source for ``fit``.

    A container of image ids: ``len(store)``, ``image_id in store`` and ``for image_id in store``
    read no tokens. ``store[image_id]`` and ``store[image_id, view]`` do.

    Threads and worker processes may read through one object at once. Pickled, only the path
    travels.

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
        super().__init__(files, description, check=check)
        self.path = str(files)
        self.backbone_record = dict(description.backbone)
        self.preprocess = description.preprocess
        self.views = description.views
        self.dtype = description.dtype
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
        bits: int | None = None,
    ) -> Self:
        """Make a store, or open the one that is there if it was made with the same values.

        Args:
            path: a local folder; it and its parents are made.
            backbone: gives the tokens; its layers and norm are the store's.
            views: of every image: a name (see :meth:`dinoneck.data.Views.named`) or the object.
            image_size: (height, width) in pixels; None keeps each image's own.
            dtype: ``fp16`` (overflow is refused), ``bf16``, or ``int8`` with a scale per token and
                channel.
            resize: how an image comes to the size, and what becomes of a remainder, see
                :class:`dinoneck.data.Preprocessing`; None = ``stretch`` with a size, the backbone's
                without.
            pad_to: where ``pad`` puts the image, see there; None = the backbone's (``corner``).
            interpolation: see there; None = the backbone's (``bilinear``).
            blur: of all views, see there; None = the backbone's, which is none.
            bits: how many bits images of 16 bits use, see there; None = the backbone's, which is
                none.

        Raises:
            StoreError: if there is another store, naming the value that differs, or the folder
                cannot be used.
            GridError: if no whole patch is left of ``image_size``.
            ConfigError: if ``backbone`` is not a Backbone, or a value is out of range.
        """
        preprocess = checked_backbone(backbone).preprocess.changed(
            size=image_size,
            resize=resize,
            pad_to=pad_to,
            interpolation=interpolation,
            blur=blur,
            bits=bits,
        )
        stored_views = named_views(views)
        if preprocess.channels != RGB_CHANNELS and stored_views.changes_colours:
            which = views if isinstance(views, str) else "of your own"
            raise ConfigError(
                f"views {which} change colours, and the backbone takes {preprocess.channels} "
                "channels; choose views that flip and turn, such as 'flips4' or 'd6'"
            )
        description = Description(
            backbone=backbone.record(), preprocess=preprocess, views=stored_views, dtype=dtype
        )
        store = cls._create_or_open(path, description)
        store._backbone = backbone
        return store

    @classmethod
    def _create_or_open(cls, path: PathLike, asked: Description) -> Self:
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
            check: compare what is read with its checksum: ``first`` = at the first read of a view
                in this process, and after its shard was written to, which is not noticed behind a
                URL; ``always`` (a batch takes about a fifth longer) or ``never``. It finds damage
                and mix-ups, not forgery.

        Raises:
            StoreError: if the store does not exist, is damaged, or was written by a newer dinoneck.
            ConfigError: if ``check`` is another word.
        """
        files = files_at(path_or_url)
        return cls(files, read_description(files), check=check)

    def __len__(self) -> int:
        return len(self.entries)

    def __repr__(self) -> str:
        return f"FeatureStore({self.path!r}: {self._facts()})"

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

        It may be stopped at any time, by a kill too, and called again; several processes may work
        on one store.

        Args:
            paths: images and folders.
            root: folder that ids are relative to, see :func:`dinoneck.store.image_ids`; give it if
                more will follow.
            shard: (i, n): do every n-th part only; None = torchrun's rank, or everything.
            engine: ``ray``: a Ray cluster that sees store and images under one path; an actor per
                GPU, or per two CPUs.
            batch_size: views per backbone pass, of several images if an image has fewer; None = up
                to 32, fewer for large images or short lists. What is stored of an image depends in
                its last bits on the images in its pass; with 1 it depends on the image alone.
            skip_unusable: leave out images that cannot be decoded, and list them, instead of
                stopping.
            workers: threads that decode images ahead; None = one per core, at most 8.
            shard_bytes: size of the files that are written. One is also written with the first
                image that arrives 30 s after the last file. A kill costs the one in progress.

        Returns:
            What was written, present and left out.

        Raises:
            DataError: if an image cannot be used, or two have one id; all that was finished before
                is kept.
            StoreError: without a backbone or with a changed one; if the file of a stored image has
                changed; if an image is already stored under an id that another root gave it; if the
                images do not fit on the disk, or values do not fit in the dtype. Also if the
                backbone has another runtime than the store was begun with, and its tokens of the
                first ten stored images differ by more than a unit of the store's rounding.
            ConfigError: if an option is out of range.
            ImportError: naming the extra, if Ray is not installed.
        """
        if engine not in ("local", "ray"):
            raise ConfigError(
                f"engine is {engine!r}; expected local or ray.{did_you_mean(engine, ('local', 'ray'))}"
            )
        if engine == "ray" and shard is not None:
            raise ConfigError(
                f"shard is {shard!r}, and engine is 'ray', which shares the work itself; leave "
                "shard= (--shard) out"
            )
        for name, value in (("batch_size", batch_size), ("workers", workers)):
            if value is not None:
                _check_count(name, value)
        _check_count("shard_bytes", shard_bytes)
        if shard is not None:
            check_shard(shard)
        if self._backbone is None:
            raise StoreError(
                "this store was opened for reading; extract with FeatureStore.create(..., "
                "backbone=...)"
            )
        with_this_backbone = replace(self.description, backbone=self._backbone.record())
        self.description.check_equal(with_this_backbone, self.path)
        self.refresh()
        extractor = Extractor(
            reader=self,
            backbone=self._backbone,
            batch_size=batch_size,
            skip_unusable=skip_unusable,
            workers=workers,
            shard_bytes=shard_bytes,
            known=frozenset(self.ids),
        )
        items = list(image_ids(paths, root).items())
        return extractor.extract(items, shard, engine)

    def __getitem__(self, key: str | tuple[str, int]) -> Tokens:
        """Return the tokens of an image in view 0, or of ``store[image_id, view]``."""
        if isinstance(key, tuple):
            image_id, view = key
        else:
            image_id = key
            view = 0
        return self.batch([image_id], [view])

    def verify(self) -> list[str]:
        """Read every view and header; return the ids, sorted, that are damaged, of two images, or wrong in the index.

        A damaged shard whose images are not known is listed by its file. An index that is wrong is
        built again; remedy for the rest: delete what :meth:`shard_of` names for all of these, and
        extract again.
        """
        return sorted(self.damaged())

    def shard_of(self, image_id: str) -> str:
        """Return the file, relative to the store, that holds an image; of a file that :meth:`verify` lists, its name.

        Raises:
            DataError: if the id is not in the store.
            StoreError: if different images were stored under it, or the index is damaged.
        """
        entries = self.entries.lookup([image_id]).get(image_id)
        if entries is None:
            if image_id in (FILE, *self.shards.sizes()):
                return image_id
            entries = self.entries.find([image_id])
        _, entry = entries[0]
        return entry.shard

    @classmethod
    def from_npz(
        cls,
        folder: PathLike,
        path: PathLike,
        *,
        grid: Sequence[int],
        patch_size: PatchSize,
        views: str | Views = "none",
        dtype: StoreDtype = "fp16",
    ) -> Self:
        """Make a store of the ``.npz`` files in a folder tree (``cls_i``, ``patches_i``); ids are their paths.

        Args:
            folder: with the files.
            path: of the store.
            grid: (rows, cols); the files do not hold it.
            patch_size: in pixels.
            views: what view i was, such as ``flips4``.
            dtype: of the store, not int8.

        Raises:
            DataError: if a file holds anything else, naming it.
            StoreError: if another store is there.
        """
        make = functools.partial(cls._create_or_open, path)
        converters.convert(
            make, Path(folder), ".npz", views, dtype, patch_size=patch_size, grid=grid
        )
        return cls.open(path)

    @classmethod
    def from_pt(
        cls, folder: PathLike, path: PathLike, *, patch_size: PatchSize, dtype: StoreDtype = "fp16"
    ) -> Self:
        """Make a store of the ``.pt`` tensors (C, rows, cols) in a folder tree, read by the weights-only loader.

        Args:
            folder: with the files.
            path: of the store.
            patch_size: in pixels.
            dtype: of the store.

        Raises:
            DataError: if a file holds anything else, naming it.
            StoreError: if another store is there.
        """
        make = functools.partial(cls._create_or_open, path)
        converters.convert(make, Path(folder), ".pt", "none", dtype, patch_size=patch_size)
        return cls.open(path)


def _check_count(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"{name} is {value!r}; expected a whole number, 1 or more")
