"""The description of a training run: one dataclass is the YAML file, the command line's flags and the Python call.

No torch is imported here, so that a wrong option is refused at once.
"""

from __future__ import annotations

import dataclasses
import math
import os
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, get_args, get_origin

import msgspec
from tyro.conf import Suppress, arg

from dinoneck.errors import ConfigError, did_you_mean
from dinoneck.training.config_flags import HEAD, SIZE
from dinoneck.training.detector_config import DetectorConfig
from dinoneck.training.recipe import Recipe, check_number, check_whole
from dinoneck.yaml_file import read_yaml

Kind = Literal["regression", "ratio", "classification", "dense", "density", "segmentation"]


@dataclass(frozen=True)
class DataConfig:
    """Images, what is known of them, and how they are prepared.

    Attributes:
        csv: table with one row per image; None = folders of images (per class, or with masks), else generated images.
        images: folder of the table's files (None = the table's folder), with a store to compare them with those
            extracted; without a table, of the images.
        image_column: column of the file names; None = image.
        targets: columns to predict: numbers (regression) or words (classification); empty cells are unknown.
        aux_targets: columns that only help training.
        labels: column of masks (PNG, TIFF; empty = unknown), or without a table their folder: a segmentation, or with
            targets class shares per patch.
        label_kind: mask values: class indices, or numbers per pixel, a dense task with the name of labels.
        classes: names of the classes 0, 1, ... in the masks.
        nodata: mask values without a label, such as 255.
        unit: unit of the targets.
        minimum: smallest prediction, such as 0.
        store: feature store to train on, in place of images.
        views: number of the store's augmentations to use; None = all.
        size: image size in pixels, HEIGHTxWIDTH or one number; None = their own.
        resize: how images come to the size in whole patches: stretched, kept in proportion, cropped or padded; None =
            stretch with a size, crop without.
        pad_to: where resize pad puts the image; None = corner.
        interpolation: of the resize; None = the backbone's.
        blur: odd kernel size of a Gaussian blur after the resize; None = off.
        tta: views that predictions average, recorded in the head files; the run's scores do not use them.
        pasture: number of generated images if no data is named.
        boxes: COCO file of boxes, for detectors.
        val_boxes: COCO file of held-out images; None = one image in folds.count of boxes.
        val_images: folder of the held-out images; None = as images.
    """

    csv: str | None = None
    images: str | None = None
    image_column: str | None = None
    targets: tuple[str, ...] = ()
    aux_targets: tuple[str, ...] = ()
    labels: str | None = None
    label_kind: Literal["classes", "numbers"] = "classes"
    classes: tuple[str, ...] = ()
    nodata: tuple[float, ...] = ()
    unit: str = ""
    minimum: float | None = None
    store: str | None = None
    views: int | None = None
    size: Annotated[int | tuple[int, int] | None, SIZE] = None
    resize: Literal["stretch", "keep", "crop", "pad"] | None = None
    pad_to: Literal["corner", "center"] | None = None
    interpolation: Literal["bilinear", "bicubic", "area"] | None = None
    blur: int | None = None
    tta: Literal["none", "flip4", "d6"] | None = None
    pasture: int = 120
    boxes: str | None = None
    val_boxes: str | None = None
    val_images: str | None = None

    def __post_init__(self) -> None:
        size = (self.size, self.size) if isinstance(self.size, int) else self.size
        object.__setattr__(self, "size", size)
        if size is not None and not all(1 <= side <= 100_000 for side in size):
            raise ConfigError(f"size is {size}; expected 1 ... 100000 pixels a side")
        for name in ("views", "pasture", "blur"):
            if (number := getattr(self, name)) is not None:
                check_whole(name, number, 1)
        if self.minimum is not None:
            check_number("minimum", self.minimum, -math.inf)
        for name in ("csv", "images", "labels", "store", "boxes", "val_boxes", "val_images"):
            if (path := getattr(self, name)) is not None and not path.strip():
                raise ConfigError(f"{name} is empty; name a file or a folder ('.' for the current one)")
        for name in ("classes", "targets", "aux_targets"):
            if len(set(names := getattr(self, name))) < len(names):
                raise ConfigError(f"{name} are {', '.join(names)}; name each once")
        if self.pasture != DataConfig.pasture and (named := self.csv or self.images or self.store or self.boxes):
            raise ConfigError(f"pasture is {self.pasture}, the number of generated images, but {named} is the data")
        if self.pad_to is not None and self.resize != "pad" and self.store is None:
            raise ConfigError(f"pad_to is {self.pad_to!r}, and without resize pad nothing is padded; write both")


@dataclass(frozen=True)
class BackboneConfig:
    """The frozen backbone.

    Attributes:
        name: see 'dinoneck list backbones'; None = DINOv3 ViT-S/16, or the store's.
        source: library that provides the model; None = timm.
        file: weights on disk, or a transformers folder.
        random: seeded random weights without download, equal on every machine.
        seed: which random weights; None = 0.
        layers: block indices to read, such as 2 5 8 11; None = the last.
    """

    name: Annotated[str | None, arg(name="backbone")] = None
    source: Annotated[Literal["timm", "transformers"] | None, arg(name="backbone-source")] = None
    file: Annotated[str | None, arg(name="backbone-file")] = None
    random: Annotated[bool, arg(name="random-backbone")] = False
    seed: Annotated[int | None, arg(name="backbone-seed")] = None
    layers: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.file is not None and self.random:
            raise ConfigError("--backbone-file and --random-backbone exclude each other; give one of them")
        if self.layers == ():
            raise ConfigError("layers is empty; name block indices, or leave it out for the last block")
        if self.seed is not None:
            check_whole("backbone seed", self.seed, high=2**32 - 1)


@dataclass(frozen=True)
class TaskConfig:
    """One output of the head.

    Attributes:
        kind: None = by the column: regression for numbers, classification for words.
        columns: of the table, in the order of the outputs; empty = the column of the task's name.
        unit: None = ``data.unit``.
        weight: of its loss, one number or one per output; None = 1, and for auxiliary tasks ``losses.aux_weight``.
        loss: None = the kind's own.
        beta: of the smooth L1 loss.
        activation: of the outputs, in original units.
        minimum: no prediction is below it; None = ``data.minimum``.
        area: values are divided by it before training, such as an area in square metres.
        log1p: train on log(1 + value).
        standardize: train on z-scores of the training images; None = unless there is an activation.
        auxiliary: it only helps training and is not scored as a target.
    """

    kind: Kind | None = None
    columns: tuple[str, ...] = ()
    unit: str | None = None
    weight: float | tuple[float, ...] | None = None
    loss: str | None = None
    beta: float | None = None
    activation: str | None = None
    minimum: float | None = None
    area: float | None = None
    log1p: bool = False
    standardize: bool | None = None
    auxiliary: bool = False


@dataclass(frozen=True)
class CompositionConfig:
    """Columns that are computed from tasks, so that predictions add up.

    Attributes:
        total: task of the whole, which the shares of ``ratio`` divide into parts; empty = the parts are tasks.
        ratio: task of the parts' shares.
        sums: column -> the parts that it adds up.
    """

    total: str = ""
    ratio: str = ""
    sums: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class LossConfig:
    """How the losses of several tasks are weighed.

    Attributes:
        weighting: fixed weights, or by uncertainty (Kendall et al. 2018).
        aux_weight: weight of all auxiliary tasks together.
    """

    weighting: Annotated[Literal["fixed", "uncertainty"], arg(name="loss-weighting")] = "fixed"
    aux_weight: float = 0.1

    def __post_init__(self) -> None:
        check_number("aux_weight", self.aux_weight)


@dataclass(frozen=True)
class FoldsConfig:
    """The folds of the cross-validation.

    Attributes:
        count: number of folds.
        group: columns; rows of one group stay in one fold.
        column: column that names each image's fold.
        stratify: target or auxiliary column to spread evenly over the folds; needs scikit-learn.
        only: train this fold alone, counted from 0; None = all.
    """

    count: Annotated[int, arg(name="folds")] = 5
    group: tuple[str, ...] = ()
    column: Annotated[str | None, arg(name="fold-column")] = None
    stratify: str | None = None
    only: Annotated[int | None, arg(name="fold")] = None

    def __post_init__(self) -> None:
        check_whole("folds", self.count, 2)
        if self.only is not None:
            check_whole("fold", self.only)
        if self.column is not None and self.stratify is not None:
            raise ConfigError("--fold-column and --stratify both make folds; give one of them")


@dataclass(frozen=True)
class LoggingConfig:
    """Where losses and scores of every epoch go, next to ``logs/fold-K.jsonl``.

    Attributes:
        tensorboard: write events to OUT/tensorboard; needs the package tensorboard.
        wandb: Weights & Biases project; needs the package wandb.
    """

    tensorboard: bool = False
    wandb: str | None = None


@dataclass(frozen=True)
class TrainConfig:
    """One training run.

    Attributes:
        data: images and targets.
        backbone: the model that makes the tokens.
        head: a registered head or neck, or {type: NAME, ...} with constructor arguments; without a type patch_mean, for
            masks dense.
        tasks: task name -> how it is trained; target columns without an entry get the defaults.
        compositions: name -> columns computed from tasks.
        losses: weights of the tasks' losses.
        optim: how the head is trained.
        folds: folds of the cross-validation.
        detector: the detector that data.boxes trains; its neck is ``head``.
        logging: logs of losses and scores, next to those in the folder.
        imports: modules or Python files to import first, to register heads.
        device: such as cpu or cuda:1; None = a GPU if there is one, else the CPU.

    Raises:
        ConfigError: if a value is unknown, of another type or out of range.

    Examples:
        >>> config = TrainConfig(data=DataConfig(csv="cover.csv", targets=("crop",)), head={"type": "fpn"})
        >>> config.optim.epochs, config.folds.count
        (40, 5)
    """

    data: DataConfig = DataConfig()
    backbone: BackboneConfig = BackboneConfig()
    head: Annotated[Mapping[str, Any], HEAD] = field(default_factory=dict)
    tasks: Suppress[Mapping[str, TaskConfig]] = field(default_factory=dict)
    compositions: Suppress[Mapping[str, CompositionConfig]] = field(default_factory=dict)
    losses: LossConfig = LossConfig()
    optim: Recipe = field(default_factory=Recipe)
    folds: FoldsConfig = FoldsConfig()
    detector: DetectorConfig = field(default_factory=DetectorConfig)
    logging: LoggingConfig = LoggingConfig()
    imports: Annotated[tuple[str, ...], arg(name="import")] = ()
    device: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.head, Mapping) or not isinstance(self.head.get("type", ""), str):
            raise ConfigError(f"head is {self.head!r}; expected {{type: NAME, ...}}, such as {{type: patch_mean}}")

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> TrainConfig:
        r"""Read a training file: YAML with the groups of this class.

        Raises:
            ConfigError: if the file cannot be read, a key is unknown or stands twice, or a value is wrong.

        Examples:
            >>> from pathlib import Path
            >>> import tempfile
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     path = Path(folder, "run.yaml")
            ...     _ = path.write_text("head: {type: fpn, fpn_dim: 64}\noptim: {epochs: 20, lr: 1e-4}\n")
            ...     config = TrainConfig.read(path)
            >>> config.head["fpn_dim"], config.optim.lr
            (64, 0.0001)
        """
        return cls.from_dict(read_yaml(path), str(path))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str = "the config") -> TrainConfig:
        """Return the config of nested plain values, such as those of :meth:`to_dict`.

        Raises:
            ConfigError: naming ``where`` and the key.
        """
        for problem in _problems(cls, values, ""):
            raise ConfigError(f"{where}: {problem}")
        try:
            return msgspec.convert(_without_none(values), cls)
        except msgspec.ValidationError as error:
            raise ConfigError(f"{where}: {str(error).replace('`$.', '`')}") from error

    def to_dict(self) -> dict[str, Any]:
        """Return nested plain values: what a report keeps and :meth:`from_dict` reads."""
        plain: dict[str, Any] = msgspec.to_builtins(dataclasses.asdict(self))
        return plain


def _problems(cls: Any, values: Any, prefix: str) -> Iterator[str]:
    """What is wrong with the keys of a group and the groups below it, and with words that are not a choice."""
    if not isinstance(values, Mapping):
        return
    hints = cls if isinstance(cls, Mapping) else typing.get_type_hints(cls)
    for key, value in values.items():
        name = f"{prefix}{key}"
        if key not in hints:
            known = ", ".join(hints)
            yield f"unknown key {name!r}.{did_you_mean(key, hints)} Known: {known}"
            continue
        parts = (hints[key], *get_args(hints[key]))
        choices = [word for part in parts if get_origin(part) is Literal for word in get_args(part)]
        if choices and isinstance(value, str) and value not in choices:
            hint = did_you_mean(value, choices)
            yield f"{name} is {value!r}; expected one of {', '.join(choices)}.{hint}"
        group, is_table = _group_of(hints[key])
        if (group is not None or key == "head") and not isinstance(value, Mapping | None):
            example = "{type: patch_mean}" if key == "head" else "{KEY: VALUE}"
            yield f"{name} is {value!r}; expected keys with values, such as {name}: {example}"
        elif isinstance(value, str) and any(get_origin(part) is tuple for part in parts) and key != "weight":
            example = f"[{value.lower().replace('x', ', ')}]" if key == "size" else f"[{value}]"
            yield f"{name} is {value!r}; expected a list, such as {name}: {example}"
        if group is not None and is_table and isinstance(value, Mapping):
            for entry, own in value.items():
                if not isinstance(entry, str):
                    yield f"{name} has the key {entry!r}; expected a name: write it in quotes if it is one"
                yield from _problems({entry: group}, {entry: own}, f"{name}.")
        elif group is not None:
            yield from _problems(group, value, f"{name}.")


def _group_of(hint: Any) -> tuple[Any, bool]:
    """The dataclass of a field, and whether the field holds several by name."""
    if dataclasses.is_dataclass(hint):
        return hint, False
    last = get_args(hint)[-1] if get_args(hint) and not isinstance(hint, types.UnionType) else None
    return (last, True) if dataclasses.is_dataclass(last) else (None, False)


def _without_none(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values without sections that are left empty (YAML reads them as null); an empty task has the defaults."""
    named = {key: values[key] for key in ("tasks", "compositions") if isinstance(values.get(key), Mapping)}
    filled = {key: {name: own or {} for name, own in value.items()} for key, value in named.items()}
    return {key: value for key, value in {**values, **filled}.items() if value is not None}
