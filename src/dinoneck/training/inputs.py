"""Open what a training config names: the table, and the tokens of its images from a backbone or a store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dinoneck.backbones.backbone import Backbone
from dinoneck.backbones.known import DINOV3_SMALL, TINY
from dinoneck.backbones.load import load_backbone
from dinoneck.data.labels import DenseLabels, count_classes
from dinoneck.data.pasture import Pasture
from dinoneck.data.preprocessing import Preprocessing
from dinoneck.devices import local_device
from dinoneck.errors import ConfigError, DataError, StoreError
from dinoneck.registry import import_modules
from dinoneck.store.feature_store import FeatureStore
from dinoneck.tokens import Tokens
from dinoneck.training.cell_targets import CellTargets
from dinoneck.training.config import BackboneConfig, DataConfig, TrainConfig
from dinoneck.training.sources import MemoryTokens, TokenSource
from dinoneck.training.table import Table, is_table, table_of
from dinoneck.training.table_source import TableSource, compare_images
from dinoneck.training.tasks import head_class

_VIEWS = {"flips4": 4, "color20": 20}  # names of lists of views, and how many they are


@dataclass(frozen=True)
class Inputs:
    """What a run trains on.

    Attributes:
        table: images, targets, groups.
        backbone: that makes the tokens; None where they come from a store or the caller.
        record: of the backbone that makes or made the tokens; None = unknown.
        preprocess: how the images are or were prepared; None = unknown.
        source: tokens; None = the backbone has yet to extract them.
    """

    table: Table
    backbone: Backbone | None
    record: Mapping[str, Any] | None
    preprocess: Preprocessing | None
    source: TokenSource | None

    def tokens(self) -> TokenSource:
        """Return the tokens of the table's images, extracted into memory where there are none yet."""
        if self.source is not None:
            return self.source
        if self.backbone is None or self.preprocess is None:
            raise ConfigError("there are no tokens and no backbone to extract them")
        return MemoryTokens.extract(self.backbone, self.table.images, self.table.ids, preprocess=self.preprocess)

    def first(self) -> Tokens:
        """Return the tokens of one image."""
        one = replace(self, table=self.table.take([0])) if self.source is None else self
        source = one.tokens()
        return source.batch(source.ids[:1])

    def cells(self, config: TrainConfig) -> CellTargets | None:
        """Return the masks of the images on their patch grid; None where the config names none."""
        kinds = {name: task.kind for name, task in config.tasks.items() if task.kind in ("dense", "segmentation")}
        if config.data.labels is None:
            if kinds:
                raise ConfigError(f"task {', '.join(kinds)} is per cell; name its masks with data.labels (--labels)")
            return None
        if self.table.labels is None:
            raise ConfigError(f"data.labels is {config.data.labels!r}, and the table has no labels")
        if self.preprocess is None:
            raise ConfigError("masks need to know how the images were prepared; pass tokens of a store or a backbone")
        if len(kinds) > 1:
            raise ConfigError(f"tasks {', '.join(kinds)} are all per cell, and there is one column of masks; keep one")
        name, kind = cell_task(config, self.table)
        if kind == "segmentation" and config.data.label_kind == "numbers":
            raise ConfigError(f"task {name!r} is a segmentation, and data.label_kind is 'numbers'; write 'classes'")
        classes, nodata = config.data.classes, config.data.nodata
        how = DenseLabels(nodata=nodata)
        if config.data.label_kind == "classes":
            known = [label for label in self.table.labels if label is not None]
            classes = classes or tuple(map(str, range(count_classes(known, nodata))))
            if len(classes) < 2:
                raise DataError(f"the masks hold the class {classes[0]} alone; expected two classes or more")
            how = DenseLabels(classes=len(classes), nodata=nodata)
        return CellTargets.read(self.table, how, self.preprocess, classes, name, kind)  # type: ignore[arg-type]


def cell_task(config: TrainConfig, table: Table) -> tuple[str, str]:
    """Return name and kind of the task of a config's masks; numbers have the name of their column or folder."""
    if config.data.label_kind == "numbers":
        labels = str(config.data.labels)
        plain = (Path(labels).name if Path(labels).is_dir() else labels, "dense")
    else:
        plain = ("cells", "dense") if table.targets else ("segmentation", "segmentation")
    return next(((name, x.kind) for name, x in config.tasks.items() if x.kind in ("dense", "segmentation")), plain)


def open_inputs(config: TrainConfig, table: Any = None, backbone: Backbone | None = None) -> Inputs:
    """Read the table and open the store or the backbone of a config.

    Args:
        config: the run.
        table: a pandas DataFrame that takes the place of ``data.csv``.
        backbone: in the place of the one that the config names.

    Raises:
        ConfigError: if values contradict each other, or the store or backbone.
        DataError: if the table cannot be used, or the store lacks its images.
        StoreError: if the store cannot be opened.
        BackboneError: if the backbone cannot be loaded.
    """
    import_modules(config.imports)
    _check_unused(config)
    head_class(config)  # a name that is not registered is refused before anything is read
    if config.data.csv is config.data.images is config.data.store is table is backbone is None:
        backbone = open_backbone(config.backbone, config.device)  # an unknown name is refused before images are drawn
    found = _checked(config, table_of(table, config)) if is_table(table) else read_data(config, table)
    if config.data.store is not None:
        return _from_store(config, found)
    backbone = open_backbone(config.backbone, config.device) if backbone is None else backbone
    own = config.data
    preprocess = backbone.preprocess.changed(
        size=own.size,
        resize=own.resize or ("crop" if own.size is None else None),
        pad_to=own.pad_to,
        interpolation=own.interpolation,
        blur=own.blur,
    )
    return Inputs(found, backbone, backbone.record(), preprocess, None)


def _checked(config: TrainConfig, table: Table) -> Table:
    """The table that a caller read, unless the config describes another one."""
    data, folds = config.data, config.folds
    asked: dict[str, tuple[Any, Any]] = {
        "data.csv": (data.csv, None),
        "data.targets": (data.targets, tuple(table.targets)),
        "data.aux_targets": (data.aux_targets, tuple(table.auxiliary)),
        "folds.group": (folds.group, table.groups and folds.group),
        "folds.column": (folds.column, table.folds and folds.column),
    }
    for name, (value, own) in asked.items():
        if value not in (None, ()) and value != own:
            raise ConfigError(
                f"{name} is {value!r} and the given table has {own!r}; leave it out, or read the table so"
            )
    return table


def read_data(config: TrainConfig, frame: Any = None) -> Table:
    """Return the table that a config describes; ``frame`` takes the place of ``data.csv``.

    Raises:
        ConfigError: if it names no data, or what belongs to another kind of data.
        DataError: if the table or the folders cannot be used.
    """
    data, folds = config.data, config.folds
    if data.boxes is not None:
        raise ConfigError("data.boxes names boxes; detectors are trained with dinoneck.detection.train_detector")
    if data.csv is None and frame is None:
        return _without_table(data, {"group": folds.group, "fold_column": folds.column})
    columns = [column for task in config.tasks.values() if not task.auxiliary for column in task.columns]
    columns += [name for name, task in config.tasks.items() if not task.auxiliary and not task.columns]
    per_cell = [name for name, task in config.tasks.items() if task.kind in ("dense", "segmentation")]
    helping = [c for name, task in config.tasks.items() if task.auxiliary for c in task.columns or (name,)]
    reads = data.store is None or data.labels is not None or data.images is not None
    from dinoneck.data.tables import read_table

    folder = Path(data.csv or ".").parent
    targets = tuple(dict.fromkeys(name for name in (*data.targets, *columns) if name not in per_cell))
    auxiliary = tuple(dict.fromkeys((*data.aux_targets, *helping)))
    found = read_table(
        data.csv if frame is None else frame,
        (data.images or folder) if reads else None,
        targets,
        auxiliary=auxiliary,
        group=folds.group,
        fold_column=folds.column,
        image_column=data.image_column or "image",
        labels=data.labels,
        classes={
            c: () for k, task in config.tasks.items() if task.kind == "classification" for c in task.columns or (k,)
        },
    )
    return table_of(found, config)


def _without_table(data: DataConfig, columns: Mapping[str, Any]) -> Table:
    """The table of folders, or of drawn images, where no CSV is named."""
    named = {"targets": data.targets, "aux_targets": data.aux_targets, **columns, "minimum": data.minimum}
    if data.images is None:
        named |= {"labels": data.labels, "store": data.store, "classes": data.classes}
    if given := [name for name, value in named.items() if value not in (None, ())]:
        raise ConfigError(f"{', '.join(given)}: these describe a table; name it with data.csv (--csv)")
    if data.images is None:
        return table_of(Pasture(seed=0).table(range(data.pasture)))
    from dinoneck.data.tables import read_folders, read_masks

    return table_of(read_folders(data.images) if data.labels is None else read_masks(data.images, data.labels))


def _check_unused(config: TrainConfig) -> None:
    """Refuse what is for boxes, masks, a store or a backbone that is trained along, where unused."""
    data, default = config.data, TrainConfig()
    of_boxes = {
        "data.val_boxes": data.val_boxes,
        "data.val_images": data.val_images,
        "detector": config.detector != default.detector,
    }
    if data.boxes is None and (given := [name for name, value in of_boxes.items() if value]):
        raise ConfigError(f"{given[0]} is for detectors; name boxes with data.boxes (--boxes), or leave it out")
    of_masks = {"classes": data.classes, "nodata": data.nodata, "label_kind": data.label_kind != "classes"}
    if data.labels is None and (given := [name for name, value in of_masks.items() if value]):
        raise ConfigError(f"data.{given[0]} describes masks; name them with data.labels (--labels), or leave it out")
    if data.views is not None and data.store is None:
        raise ConfigError(
            f"data.views is {data.views} without a store, which holds the augmented views. Extract them: "
            f"{_extract_command(config)}. Then add --store STORE, or leave views out (--views none)"
        )
    for name in ("cutmix_alpha", "backbone_lr"):
        if (value := getattr(config.optim, name)) is not None:
            raise ConfigError(
                f"optim.{name} is {value}; it is for images that go through the backbone at every step. This run "
                "extracts tokens once: leave it out, or call fit with dinoneck.training.LiveTokens"
            )


def _extract_command(config: TrainConfig) -> str:
    """The command that makes the store for a config's views."""
    data, own = config.data, config.backbone
    views = next((name for name, count in _VIEWS.items() if count >= (data.views or 1)), "NAME")
    size = "HEIGHTxWIDTH" if data.size is None else "x".join(map(str, data.size))  # type: ignore[arg-type]
    flags = {
        "--size": size,
        "--views": views,
        "--backbone": own.name or DINOV3_SMALL,
        "--backbone-source": own.source,
        "--backbone-file": own.file,
        "--backbone-seed": own.seed,
        "--layers": None if own.layers is None else " ".join(map(str, own.layers)),
        "--resize": data.resize,
        "--pad-to": data.pad_to,
        "--interpolation": data.interpolation,
    }
    words = [f"{flag} {value}" for flag, value in flags.items() if value is not None]
    words += ["--random-backbone"] if own.random else []
    return f"dinoneck extract {data.images or 'IMAGES'} --out STORE {' '.join(words)}"


def open_backbone(own: BackboneConfig, device: str | None = None, *, norm: bool = True) -> Backbone:
    """Load the backbone that a config describes.

    Args:
        own: its description.
        device: such as cuda:1; None = a GPU if there is one, else the CPU.
        norm: whether the final norm is applied to the tokens.

    Raises:
        ConfigError: if the description contradicts itself, or the device cannot be used.
        BackboneError: if the weights cannot be loaded.
    """
    name = own.name or DINOV3_SMALL
    random = own.random or (name == TINY and own.file is None)
    if own.seed is not None and not random:
        raise ConfigError("--backbone-seed chooses random weights; give it with --random-backbone")
    place = local_device(device)
    backbone = load_backbone(
        name,
        source=own.source or "timm",
        pretrained=not random,
        checkpoint=own.file,
        seed=own.seed,
        layers=own.layers,
        norm=norm,
    )
    return backbone.to(place)


def _from_store(config: TrainConfig, table: Table) -> Inputs:
    """The tokens of a store, which must be what the config asks for."""
    data, own = config.data, config.backbone
    try:
        store = FeatureStore.open(str(data.store))
    except StoreError as error:
        if next(iter(Path(str(data.store)).glob("*.npz")), None) is None:
            raise
        raise StoreError(
            f"{data.store} holds .npz files and is not a feature store; FeatureStore.from_npz(folder, path, grid=, "
            "patch_size=) converts them"
        ) from error
    source = TableSource(store, table.ids, data.views)
    store.check_grids(list(source.own_ids.values())[:1], data.views or len(store.views))
    record, preprocess = store.backbone_record, store.preprocess
    if record.get("layers") is None:
        raise ConfigError(
            f"the store {data.store} was converted from files that name no backbone and no layers: a head trained on "
            "it could not be paired with one. Extract the images ('dinoneck extract'), or train from Python "
            "(dinoneck.training.cross_validate takes the store)"
        )
    compare_images(store, source.own_ids.values(), _image_files(config, table, source))
    asked: dict[str, tuple[Any, Any]] = {
        "backbone": (own.name, record.get("name")),
        "image size": (data.size, preprocess.size),
        "interpolation": (data.interpolation, preprocess.interpolation),
        "blur": (data.blur, preprocess.blur),
        "resize": (data.resize, preprocess.resize),
        "pad_to": (data.pad_to, preprocess.pad_to),
        "layers": (own.layers, tuple(record["layers"])),
    }
    for name, (value, stored) in asked.items():
        if value is not None and value != stored:
            raise ConfigError(
                f"the store {data.store} was made with {name} {stored}, and this run asks for {value}; leave it out, "
                "or extract the images again into another store"
            )
    return Inputs(table, None, record, preprocess, source)


def _image_files(config: TrainConfig, table: Table, source: TableSource) -> dict[str, Path]:
    """The files of the table's images by the store's ids: below ``data.images``, or where the table's names lead."""
    folders = (Path(),) if config.data.images else (Path(), Path(config.data.csv or ".").parent)
    found = {}
    for name, image in zip(table.ids, table.images, strict=True):
        if isinstance(image, str | Path):
            files = [folder / image for folder in folders]
            found[source.own_ids[name]] = next((file for file in files if file.is_file()), files[0])
    return found
