"""Step 3 of a run: the tokens of the table's images, from a backbone or a store; ids are matched here."""

from __future__ import annotations

import copy
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from dinoneck.backbones.backbone import Backbone
from dinoneck.backbones.known import DINOV3_SMALL, TINY
from dinoneck.backbones.load import load_backbone
from dinoneck.checkpoint.head_checkpoint import HeadCheckpoint
from dinoneck.checkpoint.origins import is_changed
from dinoneck.checkpoint.schema import describe_weights
from dinoneck.data.table import Table
from dinoneck.devices import local_device
from dinoneck.dtypes import WEIGHT_DTYPES
from dinoneck.errors import ConfigError, DataError
from dinoneck.grid import TokenGrid
from dinoneck.images.decoding import ImageInput
from dinoneck.images.preprocessing import Preprocessing
from dinoneck.images.views import Views
from dinoneck.kinds import Runtime
from dinoneck.progress import progress
from dinoneck.store.description import FILE
from dinoneck.store.feature_store import FeatureStore
from dinoneck.store.images import check_unchanged
from dinoneck.text import some_of
from dinoneck.tokens import Tokens
from dinoneck.training.config import FrozenBackbone, HeadConfig, TrainConfig
from dinoneck.training.earlier import log_backbone, start_backbone
from dinoneck.training.folds import Rows
from dinoneck.training.ids import IdMatcher
from dinoneck.training.masks import map_task
from dinoneck.training.new_head import SEVERAL_LAYERS, head_type
from dinoneck.training.run_runtime import faster_runtime
from dinoneck.training.stated import stated_record
from dinoneck.training.token_sources import Extraction, LiveTokens, MemoryTokens, TokenSource

logger = logging.getLogger(__name__)
# how images are prepared: the fields that DataConfig and Preprocessing share
_PREPARATION = ("size", "interpolation", "blur", "bits", "resize", "pad_to")


class RunTokens:
    """The tokens of a table's images: frozen ones, made once, and live ones of a backbone in training.

    Args:
        table: of :func:`dinoneck.training.table.table_of`.
        record: of the backbone that makes or made the tokens.
        preprocess: how the images are or were prepared.
        backbone: that makes them; None where they come from a store.
        stored: the tokens of the store; None where a backbone makes them.

    Attributes:
        stored: the tokens of the store; None where a backbone makes them.
        ids: of the images, or of the parts that they are cut into, see :meth:`cut`.
        example: the tokens of one image: the layers, grid and width that heads are built for.
    """

    def __init__(
        self,
        table: Table,
        record: Mapping[str, Any],
        preprocess: Preprocessing,
        *,
        backbone: Backbone | None = None,
        stored: StoreSubset | None = None,
    ) -> None:
        self.record = record
        self.preprocess = preprocess
        self.backbone = backbone
        self.stored = stored
        self.ids = table.ids
        self._images = table.images
        self._image_rows: Rows | None = None  # of the parts; None = images are not cut
        self._extracted: MemoryTokens | None = None
        source = stored if stored is not None else self._extract(1)
        self.example = source.batch(source.ids[:1])

    @classmethod
    def open(cls, config: TrainConfig, table: Table) -> RunTokens:
        """Open the store or the backbone of a config, and match the table's ids.

        Args:
            config: the run.
            table: of :func:`dinoneck.training.table.table_of`.

        Raises:
            ConfigError: if values contradict each other, or what the store or backbone is.
            DataError: if the store lacks images of the table.
            StoreError: if the store cannot be opened, or images were replaced since the
                extraction.
            BackboneError: if the backbone cannot be loaded.
        """
        if config.data.store is not None:
            return cls._from_store(config, table)
        mask_task = map_task(config, table)
        map_kind = None if mask_task is None else mask_task.kind
        return cls.from_backbone(config, table, type_name=head_type(config, map_kind))

    @classmethod
    def from_backbone(cls, config: HeadConfig, table: Table, type_name: str) -> RunTokens:
        """Open a backbone; for a head that reads several layers it gives four, if the config names none.

        A backbone with the runtime ``auto`` gets torch or openvino, which then computes the tokens
        of all images.

        Args:
            config: the run.
            table: the images.
            type_name: the registered name of the head.

        Raises:
            ConfigError: if values contradict each other.
            BackboneError: if the backbone cannot be loaded.
        """
        data = config.data
        backbone = open_backbone(config.backbone, config.device)
        if type_name in SEVERAL_LAYERS and config.backbone.layers is None:
            quarters = [backbone.depth * part // 4 - 1 for part in (1, 2, 3, 4)]
            backbone = backbone.with_layers(quarters)
        settings = {name: getattr(data, name) for name in _PREPARATION}
        if data.resize is None and data.size is None:
            settings["resize"] = "crop"
        preprocess = backbone.preprocess.changed(**settings)
        if backbone.runtime != "auto":
            return cls(table, backbone.record(), preprocess, backbone=backbone)
        in_torch = backbone.with_runtime("torch")
        tokens = cls(table, in_torch.record(), preprocess, backbone=in_torch)
        if not config.is_live:  # what trains along runs in torch
            runtime = faster_runtime(in_torch, table.images, preprocess)
            tokens.backbone = in_torch.with_runtime(runtime)
            tokens.record = tokens.backbone.record()
        return tokens

    @classmethod
    def _from_store(cls, config: TrainConfig, table: Table) -> RunTokens:
        """Open a store, which must be what the config asks for."""
        data = config.data
        root = Path(str(data.store))
        if root.is_dir() and not (root / FILE).exists() and any(root.rglob("*.npz")):
            raise ConfigError(
                f"{data.store} holds .npz files and is not a feature store; "
                "FeatureStore.from_npz(folder, path, grid=..., patch_size=...) converts them"
            )
        store = FeatureStore.open(str(data.store))
        stored = StoreSubset(store, table.ids, data.views)
        store.check_grids(stored.ids[:1], len(stored.views))
        is_imported = store.backbone_record.get("layers") is None  # from files of another program
        if is_imported:
            return cls._from_imported_store(config, table, stored)
        record = store.backbone_record
        _check_record_of_store(config, store)
        _check_weights_of_store(config.backbone, record, str(data.store))
        folder = Path(data.csv or ".").parent
        images = {}
        for store_id, image in zip(stored.ids, table.images, strict=True):
            is_elsewhere = isinstance(image, Path) and not image.is_file()
            images[store_id] = folder / image if is_elsewhere else image
        compare_images(store, images)
        record = _with_license(record, config.backbone.license)
        return cls(table, record, store.preprocess, stored=stored)

    @classmethod
    def _from_imported_store(
        cls, config: TrainConfig, table: Table, stored: StoreSubset
    ) -> RunTokens:
        """Take tokens of another program, of the backbone and the preparation that the config states."""
        store = stored.store
        record = stated_record(config.backbone, store.backbone_record, str(config.data.store))
        record = _with_license(record, config.backbone.license)
        first = stored.batch(stored.ids[:1])
        preprocess = _stated_preprocess(config, store, record, first)
        return cls(table, record, preprocess, stored=stored)

    def check_start(self, config: HeadConfig) -> None:
        """Reject a LoRA rank or weights of ``config.init`` that do not fit; log what is taken of that file.

        Raises:
            ConfigError: if the rank does not fit.
            CheckpointError: if the weights of ``config.init`` are of another backbone.
        """
        self.live(config)  # raises; the folds make their own
        log_backbone(config, self.record)

    def frozen(self) -> TokenSource:
        """Return the tokens of all images, in the table's order.

        This is the expensive step where a backbone extracts them, which is done once.
        """
        if self.stored is not None:
            return self.stored
        if self._extracted is None:
            self._extracted = self._extract(len(self.ids))
        return self._extracted

    def check_images(self) -> None:
        """Prepare all images once, of a run that makes no frozen tokens.

        Raises:
            DataError: if an image cannot be used.
        """
        for image in progress(self._images, desc="images", unit="image"):
            self.preprocess([image])

    def digest(self) -> str:
        """Return one hash of what the frozen tokens of all images are, in 32 hex digits; nothing is extracted.

        Of a backbone it is a hash of its weights, the settings and the contents of the images.

        Raises:
            OSError: if a file of an image cannot be read.
        """
        if self.stored is not None:
            return self.stored.digest(self.stored.ids)
        extraction = Extraction.of(self._opened_backbone(), self._images, self.preprocess)
        return extraction.digest(range(len(self._images)))

    @property
    def runtime(self) -> Runtime | None:
        """What computes the tokens; None where they come from a store."""
        return None if self.backbone is None else self.backbone.runtime

    def live(self, config: HeadConfig, file: Path | None = None) -> LiveTokens | None:
        """Return the images with a copy of the backbone, which a fold trains in parts.

        Args:
            config: the run; None is returned where it keeps the backbone frozen.
            file: of the fold's finished head, which holds the weights that its training changed.
                None = no weights are trained yet: they start as those in the file of
                ``config.init``.

        Raises:
            CheckpointError: if the weights of ``config.init`` are of another backbone.
        """
        if not config.is_live or self.backbone is None:
            return None
        # what trains runs in torch, and so does what is read from its file
        backbone = copy.deepcopy(self.backbone).with_runtime("torch")
        if file is None:
            _start_training(backbone, config)
        else:
            checkpoint = HeadCheckpoint.load(file)
            if checkpoint.backbone_weights is not None:
                backbone = checkpoint.load_backbone().to(local_device(config.device))
            elif checkpoint.adapter_state:
                checkpoint.apply_adapter(backbone)
        return LiveTokens(backbone, self._images, self.ids, self.preprocess)

    def take(self, rows: Sequence[int]) -> RunTokens:
        """Return the tokens of these rows alone, of the same backbone or store.

        Args:
            rows: positions in :attr:`ids`: of images, or of the parts that they are cut into.
        """
        subset = copy.copy(self)
        subset.ids = [self.ids[row] for row in rows]
        subset._images = [self._images[row] for row in rows]
        subset._extracted = None
        if self._image_rows is not None:
            subset._image_rows = self._image_rows[list(rows)]
        if self.stored is not None:
            subset.stored = self.stored.take(rows)
        return subset

    def cut(
        self, parts: Sequence[ImageInput], *, ids: Sequence[str], image_rows: Rows
    ) -> RunTokens:
        """Return the tokens of parts of the images, of the same backbone.

        Args:
            parts: of the images, in the order of these.
            ids: of the parts.
            image_rows: the row of the image of every part, (n,).
        """
        tokens = copy.copy(self)
        tokens.ids = list(ids)
        tokens._images = list(parts)
        tokens._image_rows = image_rows
        tokens._extracted = None
        first = tokens._extract(1)  # a part may have another grid than its image
        tokens.example = first.batch(first.ids)
        return tokens

    def rows_of(self, image_rows: Rows) -> Rows:
        """Return the rows of the tokens of these images of the table: those of all parts of an image that is cut."""
        if self._image_rows is None:
            return image_rows
        return np.flatnonzero(np.isin(self._image_rows, image_rows))

    def _extract(self, count: int) -> MemoryTokens:
        """Extract the tokens of the first images."""
        return MemoryTokens.extract(
            self._opened_backbone(),
            self._images[:count],
            self.ids[:count],
            preprocess=self.preprocess,
        )

    def _opened_backbone(self) -> Backbone:
        """Return the backbone that makes the tokens."""
        if self.backbone is None:
            raise ConfigError("the tokens need a backbone or a store; give one of them")
        return self.backbone


def _start_training(backbone: Backbone, config: HeadConfig) -> None:
    """Make parts of a backbone trainable; they start as in the file of ``config.init``."""
    rank = config.backbone.lora
    blocks = config.backbone.unfreeze_last
    has_lora = start_backbone(backbone, config)
    if rank is not None and not has_lora:
        backbone.add_lora(rank, seed=config.optim.seed)
    if blocks is not None:
        backbone.unfreeze_last(blocks)


class StoreSubset:
    """The stored tokens of a table's images, in the table's order.

    Args:
        store: the feature store.
        names: the table's ids: the store's, or these with the suffix of an image. If none is in the
            store, the folder that all begin with is left out of all, which a warning states.
        views: only the store's first augmented views are used, this many; None = all.

    Attributes:
        ids: the store's ids of the table's images.

    Raises:
        DataError: if the store lacks an image, or two names match one of its ids.
        ConfigError: if the store has fewer views.
    """

    def __init__(self, store: FeatureStore, names: Sequence[str], views: int | None = None) -> None:
        remedy = (
            f". Extract the images that are missing (dinoneck extract IMAGES --out {store.path}, "
            "with the options that made it), or remove the rows"
        )
        source_ids = IdMatcher(store.ids)
        spelt = _without_shared_folder(names, source_ids, store.path)
        self.store = store
        self.ids = source_ids.find_all(spelt, remedy)
        counts = Counter(self.ids)
        repeated = [
            name for name, store_id in zip(names, self.ids, strict=True) if counts[store_id] > 1
        ]
        if repeated:
            raise DataError(
                f"the images {some_of(repeated, 3)} are one image of the store; keep one of them"
            )
        if views is not None and views > len(store.views):
            raise ConfigError(
                f"views is {views} (--views) and the store has {len(store.views)}; ask for fewer"
            )
        self.views = Views(store.views.views[:views])

    def batch(self, ids: Sequence[str], views: Sequence[int] | None = None) -> Tokens:
        """Return the Tokens of these images, in this order."""
        return self.store.batch(ids, views)

    def stored(self, ids: Sequence[str], views: Sequence[int] | None = None) -> Any:
        """Return what :meth:`batch` is made of, see :class:`TokenSource`."""
        return self.store.stored(ids, views)

    def digest(self, ids: Sequence[str]) -> str:
        """Return one hash of the tokens of these images, see :meth:`FeatureStore.digest`."""
        return self.store.digest(ids)

    def take(self, rows: Sequence[int]) -> StoreSubset:
        """Return the stored tokens of these rows of the table alone."""
        subset = copy.copy(self)
        subset.ids = [self.ids[row] for row in rows]
        return subset


def _without_shared_folder(
    names: Sequence[str], source_ids: IdMatcher, store: Any
) -> Sequence[str]:
    """Return names without the folder that all begin with, if no name but all of these are in the store.

    An extraction of ``field/images`` has ids below this folder, a table in ``field`` names files
    below its own.
    """
    if not names or any(source_ids.find(name) is not None for name in names):
        return names
    parents = [PurePosixPath(name).parent.parts for name in names]
    num_shared = 0
    for folders in zip(*parents, strict=False):
        if len(set(folders)) > 1:
            break
        num_shared += 1
    for num_cut in range(1, num_shared + 1):
        shorter = [PurePosixPath(*PurePosixPath(name).parts[num_cut:]).as_posix() for name in names]
        if all(source_ids.find(name) is not None for name in shorter):
            prefix = PurePosixPath(*parents[0][:num_cut]).as_posix()
            logger.warning(
                "names without '%s/': %d of %d found in the store %s",
                prefix,
                len(names),
                len(names),
                store,
            )
            return shorter
    return names


def _check_record_of_store(config: TrainConfig, store: FeatureStore) -> None:
    """Compare the backbone and the preparation of images that a config asks for with those of a store.

    Raises:
        ConfigError: if they differ, or no file names the weights that made the store's tokens.
    """
    data = config.data
    backbone = config.backbone
    record = store.backbone_record
    check_weights_have_a_file(record, str(data.store))
    asked_and_stored = {
        "backbone": (backbone.name, record.get("name")),
        "source": (backbone.source, record.get("source")),
        "layers": (backbone.layers, tuple(record["layers"])),
    }
    for name in _PREPARATION:
        asked_and_stored[name] = (getattr(data, name), getattr(store.preprocess, name))
    for name, (asked, stored) in asked_and_stored.items():
        if asked is not None and asked != stored:
            raise ConfigError(
                f"the store {data.store} was made with {name} {stored}, not {asked}; leave it out, "
                "or extract the images again into another store"
            )


def check_weights_have_a_file(record: Mapping[str, Any], store: str) -> None:
    """Check that a head on the tokens of a store can be used on images: a file names the backbone's weights.

    Raises:
        ConfigError: if they were changed after they were loaded, or LoRA weights were added.
    """
    if is_changed(record) or record.get("adapter") is not None:
        weights = describe_weights(record["weights"])
        trained = weights if record.get("adapter") is None else f"{weights}, and LoRA"
        raise ConfigError(
            f"the store {store} was made with {trained}: no file names these weights, so a "
            "head could not be used on images. Save them (backbone.merge_lora() where there is "
            "LoRA, backbone.save_weights(FILE)), and extract the images again with the backbone "
            "that is loaded from that file"
        )


def _check_weights_of_store(
    backbone: FrozenBackbone, record: Mapping[str, Any], store: str
) -> None:
    """Compare the weights that a config asks for with those that made the store's tokens.

    A file of weights is read and hashed.

    Raises:
        ConfigError: if they differ.
    """
    stored = record["weights"]
    is_seeded = stored["kind"] == "seeded"
    if backbone.seed is not None and not (is_seeded and stored["seed"] == backbone.seed):
        asked = f"the random weights of seed {backbone.seed} (--backbone-seed)"
    elif backbone.random and not is_seeded:
        asked = "random weights (--random-backbone)"
    elif backbone.file is not None and not _is_made_with(backbone.file, record):
        asked = f"those of {backbone.file} (--backbone-file)"
    else:
        return
    raise ConfigError(
        f"the store {store} was made with {describe_weights(stored)}, not {asked}; leave it out, "
        "or extract the images again into another store"
    )


def _is_made_with(file: str, record: Mapping[str, Any]) -> bool:
    """Whether a file of weights holds those of a backbone's record."""
    backbone = load_backbone(
        record["name"],
        source=record["source"],
        checkpoint=file,
        dtype=WEIGHT_DTYPES[record["dtype"]],
    )
    return bool(backbone.record()["weights_sha256"] == record["weights_sha256"])


def _stated_preprocess(
    config: TrainConfig, store: FeatureStore, record: Mapping[str, Any], first: Tokens
) -> Preprocessing:
    """Return how the images of imported features were prepared, as far as it is stated and fits their grid.

    Raises:
        ConfigError: if images of the stated size have another grid.
    """
    data = config.data
    resize = data.resize
    if resize is None and data.size is not None:
        resize = "stretch"
    preprocess = replace(
        store.preprocess, mean=tuple(record["mean"]), std=tuple(record["std"])
    ).changed(
        size=data.size,
        resize=resize,
        pad_to=data.pad_to,
        interpolation=data.interpolation,
        blur=data.blur,
    )
    size = preprocess.size
    if size is not None:
        canvas = preprocess.placement(size).canvas
        grid = TokenGrid(preprocess.patch_size).size(canvas)
        if grid != tuple(first.grid):
            raise ConfigError(
                f"images of {size[0]}x{size[1]} px (--size) have a grid of "
                f"{grid[0]}x{grid[1]}, and the features of {store.path} one of "
                f"{first.grid[0]}x{first.grid[1]}"
            )
    return preprocess


def compare_images(store: FeatureStore, images: Mapping[str, Any]) -> None:
    """Reject files that are not those which the store was extracted from; a log line counts what was not compared.

    Args:
        store: the feature store.
        images: the store's id -> a file, or an image in memory, which is not compared.

    Raises:
        StoreError: naming the images that were replaced.
        DataError: if a file cannot be read.
    """
    # imported tokens come without hashes of images
    is_extracted = store.backbone_record.get("layers") is not None
    files = []
    for image_id, image in images.items():
        if is_extracted and isinstance(image, str | Path) and Path(image).is_file():
            files.append((image_id, Path(image)))
    check_unchanged(files, store.entries)
    if len(files) < len(images):
        line = "%d of %d images were compared with the store %s; name their folder (--images)"
        logger.warning(line, len(files), len(images), store.path)


def open_backbone(config: FrozenBackbone, device: str | None, *, norm: bool = True) -> Backbone:
    """Load the backbone that a config describes.

    Args:
        config: its description.
        device: such as cuda:1; None = a GPU if there is one, else the CPU.
        norm: whether the final norm is applied to the tokens.

    Raises:
        ConfigError: if the description contradicts itself, or the device cannot be used.
        BackboneError: if the weights cannot be loaded.
        ImportError: naming the extra, if the runtime is not installed.
    """
    if config.seed is not None and not config.random and config.name != TINY:
        raise ConfigError(
            f"the backbone's seed is {config.seed}, which chooses random weights; give it with "
            "backbone.random: true (--random-backbone), or leave it out (--backbone-seed)"
        )
    torch_device = local_device(device)  # refused before the weights are read
    backbone = load_backbone(
        config.name or DINOV3_SMALL,
        checkpoint=config.file,
        seed=config.seed,
        layers=config.layers,
        norm=norm,
        source=config.source or "timm",
        pretrained=not config.random,
        dtype=WEIGHT_DTYPES[config.precision],
    )
    if config.license is not None:
        _check_license(config.license, backbone.record())
        backbone.adapter.license = config.license
    backbone = backbone.to(torch_device)
    if config.runtime is None:
        return backbone
    return backbone.with_runtime(config.runtime)


def _check_license(stated: str, record: Mapping[str, Any]) -> None:
    """Check the licence of a backbone's weights that a config states: it counts where none is known.

    Raises:
        ConfigError: for random weights, and where another licence is known.
    """
    if record["weights"]["kind"] == "seeded":
        raise ConfigError(
            f"backbone.license is {stated!r}, and random weights have none; leave it out "
            "(--backbone-license)"
        )
    recorded = record["license"]
    if recorded not in (None, stated):
        raise ConfigError(
            f"backbone.license is {stated!r}, and the licence of {record['name']} is {recorded!r}; "
            "leave it out (--backbone-license)"
        )


def _with_license(record: dict[str, Any], stated: str | None) -> dict[str, Any]:
    """The record of the backbone of a store, with the licence of its weights that a config states.

    Raises:
        ConfigError: for random weights, and where another licence is known.
    """
    if stated is None:
        return record
    _check_license(stated, record)
    return {**record, "license": stated}
