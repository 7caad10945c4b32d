"""A run as a training config describes it: everything checked and opened first, then trained and written."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, cast

from dinoneck.backbones.backbone import Backbone
from dinoneck.backbones.known import DINOV3_SMALL, TINY
from dinoneck.backbones.load import load_backbone
from dinoneck.data.labels import DenseLabels
from dinoneck.data.photos import Preprocessing
from dinoneck.data.tables import PhotoTable
from dinoneck.devices import local_device
from dinoneck.errors import ConfigError, StoreError
from dinoneck.grid import GridSize
from dinoneck.store.feature_store import FeatureStore
from dinoneck.store.image_files import check_unchanged
from dinoneck.training.cell_targets import CellTargets
from dinoneck.training.config_file import TrainingConfig
from dinoneck.training.config_tasks import make_tasks, read_table
from dinoneck.training.crossval import CrossValidation
from dinoneck.training.experiment import RunOptions, run_experiment
from dinoneck.training.head_choice import HeadChoice
from dinoneck.training.plan import HeadName, Plan
from dinoneck.training.recipe import Recipe
from dinoneck.training.sources import TokenSource
from dinoneck.training.table_source import TableSource

logger = logging.getLogger(__name__)

QUICK_HIDDEN = 128


@dataclass(frozen=True)
class ConfiguredRun:
    """A config with what it names: the table, the backbone or the store, and how photos are prepared.

    Made by :meth:`of`; :meth:`train` does the work.

    Attributes:
        config: the plain values.
        table: photos, targets, groups.
        backbone: that reads the photos; None = tokens come from a store.
        record: of the backbone that makes or made the tokens.
        preprocess: how photos are or were prepared.
        source: the table's photos in the store; None = they are read.
    """

    config: TrainingConfig
    table: PhotoTable
    backbone: Backbone | None
    record: Mapping[str, Any]
    preprocess: Preprocessing
    source: TokenSource | None

    @classmethod
    def of(
        cls,
        config: TrainingConfig,
        make_table: Callable[[], PhotoTable] | None = None,
        preprocess: Mapping[str, Any] | None = None,
    ) -> ConfiguredRun:
        """Open and check what a config names, before any work.

        Args:
            config: the run.
            make_table: gives the table, in the place of the one that the config names; asked last.
            preprocess: fields of :class:`dinoneck.data.Preprocessing` that hold where the config says nothing.

        Raises:
            ConfigError: if values contradict each other, or the store or backbone.
            DataError: if the table cannot be used, or the store lacks its photos.
            StoreError: if the store cannot be opened.
            BackboneError: if the backbone cannot be loaded.
        """
        _check_recipe(config)
        choice = head_choice(config)
        if config.store is not None:
            return _from_store(config, read_table(config))
        table_of = make_table or partial(_same, read_table(config))
        backbone = _backbone(config, choice)
        own = {**(preprocess or {}), **_inputs(config)}
        if own.get("fit") and own.get("size") is None:
            raise ConfigError(
                f"--fit {own['fit']} says how photos come to a size; give it with --size HEIGHTxWIDTH "
                "(dataset.img_size)"
            )
        prepare = backbone.preprocess.changed(**own)
        found = cls(config, table_of(), backbone, backbone.record(), prepare, None)
        found._check_tokens()
        return found

    @cached_property
    def grid(self) -> GridSize:
        """Rows and cols of the first photo's patches."""
        if self.source is not None:
            return self.source.batch(self.source.ids[:1]).grid
        return self.preprocess.prepare(self.table.photos[0]).grid

    def train(
        self, out: str | os.PathLike[str], *, overwrite: bool = False, resume: bool = True
    ) -> tuple[CrossValidation, TokenSource, dict[str, Any]]:
        """Train, and write the folder; see :func:`dinoneck.training.run_experiment`."""
        config, table = self.config, self.table
        extra: dict[str, Any] = {"config": asdict(config)}
        extra |= {} if config.tta is None else {"tta": config.tta}
        return run_experiment(
            table,
            self.record if self.backbone is None else self.backbone,
            self.preprocess,
            out,
            plan_of(config),
            overwrite=overwrite,
            cells=self._cells(),
            options=RunOptions(
                source=self.source,
                recipe=Recipe(**config.recipe),
                head=head_choice(config),
                make_tasks=partial(_tasks, config),
                weighting=config.weighting,
                device=config.device,
                resume=resume,
                extra=extra,
            ),
        )

    def _cells(self) -> CellTargets | None:
        """The masks' cover fractions per patch, where masks are named."""
        classes = self.config.classes
        if self.table.labels is None or classes is None:
            return None
        return CellTargets.read(self.table, DenseLabels(classes=len(classes)), self.preprocess, classes)

    def _check_tokens(self) -> None:
        """Refuse tokens of another width or number than the config says."""
        config, width = self.config, self.record["embed_dim"]
        if config.embed_dim is not None and config.embed_dim != width:
            raise ConfigError(
                f"backbone.hidden_dim is {config.embed_dim}; {self.record.get('name')} has {width} channels. Correct "
                "it, or leave it out"
            )
        if config.num_patches is not None and config.num_patches != self.grid.count:
            raise ConfigError(
                f"backbone.num_patches is {config.num_patches}; the photos have {self.grid.rows} x {self.grid.cols} = "
                f"{self.grid.count} patches. Correct it or dataset.img_size, or leave it out"
            )


def _check_recipe(config: TrainingConfig) -> None:
    """Refuse a recipe that contradicts itself, or is for a backbone that learns along."""
    recipe = Recipe(**config.recipe)
    for name in ("cutmix_alpha", "backbone_lr"):
        if (value := getattr(recipe, name)) is not None:
            raise ConfigError(
                f"recipe.{name} is {value}; it is for photos that go through the backbone at every step. A run from a "
                "file extracts tokens once: leave it out, or train from Python with dinoneck.training.LiveTokens"
            )


def head_choice(config: TrainingConfig) -> HeadChoice:
    """Return the head of a config.

    Raises:
        ConfigError: if it contradicts itself.
    """
    head = cast("HeadName", config.head)
    choice = HeadChoice(head, config.hidden_dim, config.dropout, config.gate, config.fpn)
    if head != "fpn" and (config.layers or (config.label_column and head != "dense")):
        raise ConfigError(
            f"--layers is for --head fpn, --labels for fpn and dense; {head} reads the last layer, without masks"
        )
    if head != "cls_gating" and (config.dropout is not None or config.gate is not None):
        raise ConfigError(f"dropout and the gate's mode are for head cls_gating; this one is {head}")
    named = choice.layers
    if named is not None and config.layers is not None and named != config.layers:
        raise ConfigError(
            f"model.backbone_layers.indices are {named}, the layers asked for {config.layers}; name them once"
        )
    return choice


def plan_of(config: TrainingConfig) -> Plan:
    """Return the plain values of the cross-validation."""
    return Plan(
        folds=config.folds,
        epochs=config.epochs,
        batch_size=config.batch_size,
        lr=config.lr,
        seed=config.seed,
        hidden_dim=config.hidden_dim or QUICK_HIDDEN,
        standardise=config.activation is None,
        head=cast("HeadName", config.head),
        fold=config.fold,
    )


def _same(table: PhotoTable) -> PhotoTable:
    return table


def _tasks(config: TrainingConfig, table: PhotoTable, rows: Sequence[int] | Any) -> Any:
    return make_tasks(config, table, rows)


def _inputs(config: TrainingConfig) -> dict[str, Any]:
    """What the config says of how photos are prepared."""
    said = {"size": config.image_size, "fit": config.fit, "interpolation": config.interpolation}
    return {**{name: value for name, value in said.items() if value is not None}, "policy": config.policy or "crop"}


def _backbone(config: TrainingConfig, choice: HeadChoice) -> Backbone:
    name = config.backbone or DINOV3_SMALL
    random = not config.pretrained or (name == TINY and config.backbone_file is None)
    if config.backbone_file and not config.pretrained:
        raise ConfigError("--backbone-file and --random-backbone contradict each other; give one of them")
    if config.backbone_seed is not None and not random:
        raise ConfigError("--backbone-seed says which random weights; give it with --random-backbone")
    backbone = load_backbone(
        name,
        source=cast("Any", config.backbone_source or "timm"),
        pretrained=not random,
        checkpoint=config.backbone_file,
        seed=config.backbone_seed,
    )
    layers = choice.layers or config.layers
    backbone = backbone if layers is None else backbone.with_layers(layers)
    return backbone if config.device is None else backbone.to(local_device(config.device))


def _from_store(config: TrainingConfig, table: PhotoTable) -> ConfiguredRun:
    """The run on tokens of a store, which must be what the config says."""
    store = _opened(str(config.store))
    source = TableSource(store, table.ids, config.patterns)
    record, preprocess = store.backbone_record, store.preprocess
    if record.get("layers") is None:
        raise ConfigError(
            f"the store {config.store} was converted from files that name no backbone and no layers: a head trained on "
            "it could not be paired with one. Extract the photos ('dinoneck extract'), or train from Python "
            "(dinoneck.training.cross_validate takes the store)"
        )
    _check_images(config, table, source, store)
    choice = head_choice(config)
    layers = choice.layers or config.layers
    said: dict[str, tuple[Any, Any]] = {
        "backbone": (config.backbone, record.get("name")),
        "image size": (config.image_size, preprocess.size),
        "interpolation": (config.interpolation, preprocess.interpolation),
        "fit": (config.fit, preprocess.fit),
        "policy": (config.policy, preprocess.policy),
        "layers": (layers, tuple(record["layers"])),
    }
    for name, (asked, own) in said.items():
        if asked is not None and asked != own:
            raise ConfigError(
                f"the store {config.store} was made with {name} {own}, and this run asks for {asked}; leave it out, or "
                "extract the photos again into another store"
            )
    found = ConfiguredRun(config, table, None, record, preprocess, source)
    found._check_tokens()
    return found


def _check_images(config: TrainingConfig, table: PhotoTable, source: TableSource, store: FeatureStore) -> None:
    """Refuse a table whose images are other files than those that were extracted under their ids, where they exist."""
    folders = (Path(), Path(str(config.csv)).parent)
    files = [
        (source.own_ids[name], folder / photo)
        for name, photo in zip(table.ids, table.photos, strict=True)
        if isinstance(photo, str | Path)
        for folder in folders
        if (folder / photo).is_file()
    ]
    check_unchanged(dict(files).items(), store.reader.entries)
    roots = {store.reader.entries[own].root for own in source.own_ids.values()} - {""}
    if source.dropped and roots and not files:
        logger.warning(
            "the table's images are looked up in the store %s without their folder %r; the store's were read from %s, "
            "and the table's files are not there to compare",
            config.store,
            source.dropped,
            ", ".join(sorted(roots)),
        )


def _opened(path: str) -> FeatureStore:
    try:
        return FeatureStore.open(path)
    except StoreError as error:
        if next(iter(Path(path).glob("*.npz")), None) is None:
            raise
        raise StoreError(
            f"{path} holds .npz files and is no feature store; FeatureStore.from_npz(folder, path, grid=, patch_size=) "
            "makes one of them"
        ) from error
