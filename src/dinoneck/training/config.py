"""The descriptions of training runs: one struct is the YAML file, the command line's flags and the Python call.

There is one class per training, named as its function: :class:`TrainConfig`,
:class:`TrainInstancesConfig` and :class:`TrainDetectorConfig`. They share their groups. An option is
a field; it is a flag too unless it is marked ``Fixed, Suppress``: then it stands in training files
alone.

No torch is imported here, so that a wrong option is refused at once.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Annotated, Any, Literal, Self, cast

import yaml
from msgspec import Meta, field
from msgspec.structs import force_setattr
from tyro.conf import Fixed, Suppress, arg
from tyro.constructors import PrimitiveConstructorSpec

from dinoneck.checkpoint.schema import License
from dinoneck.checks import LARGEST_FLOAT, LARGEST_SIDE
from dinoneck.data.cells import composed
from dinoneck.data.class_colors import (
    color_text,
    is_color_table,
    parse_colors,
    read_color_table,
)
from dinoneck.data.names import is_json_file
from dinoneck.errors import ConfigError, DinoneckError
from dinoneck.kinds import Method, Precision, Runtime, TrainedKind
from dinoneck.published.detectors import DETECTORS
from dinoneck.training.recipe import (
    PATH_PATTERN,
    Config,
    Count,
    DetectorRecipe,
    NotNegative,
    Positive,
    Recipe,
    Scale,
    Seed,
    without_unset,
)
from dinoneck.training.target_weights import read_target_weights, read_words
from dinoneck.training.trainings import Training, Trainings, with_present_keys
from dinoneck.yaml_file import read_plain, read_yaml

Crowd = Literal["ignore", "objects"]
Path = Annotated[str, Meta(pattern=PATH_PATTERN)]
# options that came after 0.3: a record holds them only where they are set, so that it equals those
# of 0.3 and a run that 0.3 began continues
_LATER_OPTIONS_OF_DATA = (
    "bits",
    "class_colors",
    "class_values",
    "crowd",
    "mask_suffix",
    "multilabel",
    "numbers_from_maps",
    "offset",
    "overlap",
    "scale",
    "skip_unpaired",
    "subfolders",
    "target_weights",
    "tile",
)
_LATER_OPTIONS_OF_BACKBONE = ("license", "runtime", "precision")
_LATER_OPTIONS_OF_RUN = ("license", "record_images", "weights", "predict_with")
# what trains a backbone along, in messages
_LIVE = "backbone.lora or backbone.unfreeze_last or optim.freeze"


def _size(words: list[str]) -> tuple[int, int]:
    sides = words[0].lower().split("x")
    if len(sides) > 2 or not all(side.isascii() and side.isdecimal() for side in sides):
        raise ValueError(
            f"{words[0]!r} is not a size; expected HEIGHTxWIDTH such as 480x960, or one number"
        )
    return int(sides[0]), int(sides[-1])


def _tile(words: list[str]) -> tuple[int, int] | Literal["auto"] | None:
    """The tiles of a word, see :data:`dinoneck.kinds.TileSize`."""
    word = words[0].lower()
    if word == "none":
        return None
    if word == "auto":
        return "auto"
    try:
        return _size(words)
    except ValueError:
        raise ValueError(
            f"{words[0]!r} is no size of tiles; expected HEIGHTxWIDTH such as 480x960, one number, "
            "none or auto"
        ) from None


def _words_of_tile(tile: tuple[int, int] | str | None) -> str:
    if tile is None:
        return "none"
    return tile if isinstance(tile, str) else "x".join(map(str, tile))


def head_description(head: str | Mapping[str, Any]) -> dict[str, Any]:
    """Return a head as ``{"type": NAME, ...}``; a text is its registered name."""
    return {"type": head} if isinstance(head, str) else dict(head)


def _head(words: list[str]) -> dict[str, Any]:
    with suppress(yaml.YAMLError, RecursionError, ValueError):
        value = read_plain(words[0])
        if isinstance(value, str | dict):
            return head_description(value)
    raise ValueError(
        f"{words[0]!r} is not a head; expected a registered name, or '{{type: NAME, ...}}'"
    )


def _target_weights(words: list[str]) -> dict[str, float]:
    try:
        return read_words(words)
    except DinoneckError as error:
        raise ValueError(str(error)) from None


def _in_one_word(
    metavar: str, read: Callable[[list[str]], Any], write: Callable[[Any], str]
) -> Any:
    """How a field that is not a plain number or word is one word of the command line."""
    return PrimitiveConstructorSpec[Any](
        nargs=1,
        metavar=metavar,
        instance_from_str=read,
        is_instance=lambda value: True,
        str_from_instance=lambda value: [write(value)],
    )


SIZE = _in_one_word(
    "HEIGHTxWIDTH", _size, lambda size: "none" if size is None else "x".join(map(str, size))
)
TILE = _in_one_word("HEIGHTxWIDTH|none", _tile, _words_of_tile)
TARGET_WEIGHTS = PrimitiveConstructorSpec[Any](
    nargs="*",
    metavar="TARGET=WEIGHT ...|CSV",
    instance_from_str=_target_weights,
    is_instance=lambda value: True,
    str_from_instance=lambda weights: [f"{name}={weight:g}" for name, weight in weights.items()],
)
HEAD = _in_one_word(
    "NAME", _head, lambda head: yaml.safe_dump(head, default_flow_style=True).strip()
)


class ImagesConfig(Config, frozen=True, kw_only=True):
    """The images of any training.

    Attributes:
        images: folder of the images; None = that of the file that names them.
        size: image size in pixels, HEIGHTxWIDTH or one number; None = their own, of detectors
            640x640, or that of the RF-DETR that init names.
        classes: names of the classes to learn, of the COCO file's; empty = all.
        bits: how many bits images of 16 bits use, such as 12, recorded in the head files; 16 reads
            them as they are; None = images that use a part of the range are refused.
    """

    images: Path | None = None
    size: Annotated[int | tuple[int, int] | None, SIZE] = None
    classes: tuple[str, ...] = ()
    bits: Annotated[int, Meta(ge=8, le=16)] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        size = (self.size, self.size) if isinstance(self.size, int) else self.size
        force_setattr(self, "size", size)
        if size is not None and not 1 <= min(size) <= max(size) <= LARGEST_SIDE:
            raise ConfigError(f"size is {size}; expected 1 ... {LARGEST_SIDE} pixels a side")
        _check_each_once("classes", self.classes)


class PreparationConfig(ImagesConfig, frozen=True, kw_only=True):
    """The images of heads, and how they are prepared.

    Attributes:
        resize: how images come to the size in whole patches: stretched, kept in proportion, cropped
            or padded; None = stretch with a size, crop without.
        pad_to: where resize pad puts the image; None = corner.
        interpolation: of the resize; None = the backbone's.
        blur: odd kernel size of a Gaussian blur after the resize; None = off.
    """

    resize: Literal["stretch", "keep", "crop", "pad"] | None = None
    pad_to: Annotated[Literal["corner", "center"] | None, Fixed, Suppress] = None
    interpolation: Annotated[Literal["bilinear", "bicubic", "area"] | None, Fixed, Suppress] = None
    blur: Annotated[Count | None, Fixed, Suppress] = None


class DataConfig(PreparationConfig, frozen=True, kw_only=True):
    """Images, what is known of them, and how they are prepared.

    Attributes:
        csv: table with one row per image: CSV, Parquet or XLSX; None = folders of images (per class,
            or with masks), else generated images.
        decimal: the decimal mark of the numbers in the table; None = a point, or in a file separated
            by ; the one that all its numbers have.
        images: folder of the table's files (None = the table's folder), with a store to compare
            them with those extracted; without a table, of the images.
        subfolders: without a table: the folders in images are classes, folds (each is held out in
            turn) or parts (train, val, test); None = by their names.
        mask_suffix: what the names of masks have more than those of their images, such as _labelIds,
            where a folder holds several files for each image.
        skip_unpaired: leave out images without a mask, and masks without an image; off: they are
            refused.
        image_column: column of the file names; None = image.
        targets: columns to predict: numbers (regression) or words (classification); empty cells are
            unknown.
        aux_targets: columns that only help training.
        multilabel: columns of labels, for images with any number of labels: either one column of
            words, separated by ; or |, where the word none is an image without labels; or a column
            of 0 and 1, or true and false, for each label; empty cells are unknown. Without a table:
            the folders in images whose names are labels (an image with several labels is linked or
            copied into each); or a COCO file (.json) whose annotations name the labels of images,
            and the categories to learn (without names all).
        labels: column of masks (PNG, TIFF; empty = unknown), or without a table their folder: a
            segmentation, or with targets class shares per patch.
        label_kind: mask values: class indices, or numbers per pixel, a dense task with the name of
            labels; or normals, files of surface normals in three bands.
        classes: names of the classes 0, 1, ... in the masks; or a CSV file with the columns name, r,
            g, b: their names and colours.
        class_values: the value of each class in the masks, such as 1 2 3; without them 0, 1, ...,
            and of two classes 0 and 255 where the masks hold these alone.
        class_colors: the colour of each class in masks of colours, in the order of the classes, as
            R,G,B such as 0,128,0 255,0,0.
        nodata: mask values without a label, such as 255; with class_colors grey levels. NaN never
            has one and is left out here. In masks of 8 bits 255 is unlabelled anyway, unless it is
            one of two classes (0 and 255) or named as a class.
        scale: with label_kind numbers: what the masks' numbers are multiplied by, such as 0.0001.
        offset: added to them after the scale.
        numbers_from_maps: with labels: a target that has the name of a class and is its share in
            the masks is read from the map; off: the head predicts it by itself.
        unit: unit of the targets.
        minimum: smallest prediction, such as 0.
        maximum: largest prediction, such as 1 of shares.
        target_weights: weights of the targets in the overall score, one R² over all of them:
            TARGET=WEIGHT pairs, or a CSV with the columns target and weight; without them it is the
            mean of their R².
        store: feature store to train on, in place of images.
        views: number of the store's views to use; None = all.
        size: image size in pixels, HEIGHTxWIDTH or one number; None = their own.
        tta: views that predictions average, recorded in the head files; the run's scores do not use
            them.
        pasture: number of generated images if no data is named.
    """

    csv: Path | None = None
    decimal: Literal[".", ","] | None = None
    subfolders: Literal["classes", "folds", "parts"] | None = None
    mask_suffix: str | None = None
    skip_unpaired: bool = False
    image_column: str | None = None
    targets: tuple[str, ...] = ()
    aux_targets: tuple[str, ...] = ()
    multilabel: tuple[str, ...] = ()
    labels: Path | None = None
    label_kind: Literal["classes", "numbers", "normals"] = "classes"
    class_values: tuple[int, ...] = ()
    class_colors: tuple[str, ...] = ()
    nodata: tuple[float, ...] = ()
    scale: float = 1.0
    offset: float = 0.0
    numbers_from_maps: bool = True
    unit: str = ""
    minimum: float | None = None
    maximum: float | None = None
    target_weights: Annotated[dict[str, float] | str, TARGET_WEIGHTS] = field(default_factory=dict)
    store: Path | None = None
    views: Count | None = None
    tta: Literal["none", "flip4", "d6"] | None = None
    pasture: Count = 120

    def __post_init__(self) -> None:
        super().__post_init__()
        # records are JSON, which has no infinity; NaN has no label anyway
        numbers = [value for value in self.nodata if not math.isnan(value)]
        limited = [max(-LARGEST_FLOAT, min(LARGEST_FLOAT, value)) for value in numbers]
        force_setattr(self, "nodata", tuple(limited))
        if is_color_table(self.classes):
            self._read_color_table(self.classes[0])
        self._check_class_colors()
        if self.class_values and self.label_kind == "numbers":
            raise ConfigError(
                f"class_values are {', '.join(map(str, self.class_values))}, and label_kind is "
                "'numbers'; leave one of them out"
            )
        if self.scale == 0:
            raise ConfigError(f"scale is {self.scale:g}; expected a number other than 0")
        if self.label_kind == "classes" and (self.scale, self.offset) != (1.0, 0.0):
            raise ConfigError(
                f"scale is {self.scale:g} and offset {self.offset:g}, and label_kind is 'classes', "
                "whose indices are read as they are stored; set label_kind to numbers (--label-kind "
                "numbers), or leave them out"
            )
        if self.label_kind == "normals":
            self._check_no_mask_options()
        if self.class_values and self.classes and len(self.class_values) != len(self.classes):
            raise ConfigError(
                f"there are {len(self.classes)} classes and {len(self.class_values)} class_values; "
                "expected one value for each class"
            )
        _check_each_once("targets", self.targets)
        _check_each_once("aux_targets", self.aux_targets)
        _check_each_once("multilabel", self.multilabel)
        for column in self.multilabel:
            if column in (*self.targets, *self.aux_targets):
                raise ConfigError(
                    f"multilabel names {column!r}, as targets or aux_targets do; leave it out of one "
                    "of them"
                )
        force_setattr(self, "target_weights", read_target_weights(self.target_weights))

    def _read_color_table(self, path: str) -> None:
        """Take names and colours of classes from a table."""
        if self.class_colors:
            raise ConfigError(
                f"class_colors is {self.class_colors!r}, and classes is the table {path}, which has "
                "the colours; leave one of them out"
            )
        colours = read_color_table(path)
        force_setattr(self, "classes", tuple(colours))
        force_setattr(self, "class_colors", tuple(map(color_text, colours.values())))

    def _check_class_colors(self) -> None:
        """Raise ConfigError for colours of classes that are none, or contradict other options."""
        if not self.class_colors:
            return
        colours = parse_colors(self.class_colors)
        if self.label_kind != "classes":
            raise ConfigError(
                f"class_colors is {self.class_colors!r}, and label_kind is {self.label_kind!r}; leave "
                "one of them out"
            )
        if self.class_values:
            raise ConfigError(
                f"class_values is {self.class_values!r} and class_colors {self.class_colors!r}; masks "
                "have classes by values or by colours: leave one of them out"
            )
        if self.classes and len(self.classes) != len(colours):
            raise ConfigError(
                f"there are {len(self.classes)} classes and {len(colours)} class_colors; expected one "
                "colour for each class"
            )
        for level in self.nodata:
            if (level, level, level) in colours:
                raise ConfigError(
                    f"nodata names the grey level {level:g}, and class_colors the same colour; name it "
                    "in one of them"
                )

    @property
    def label_file(self) -> Path | None:
        """The COCO file of labels that ``multilabel`` names, its first word; None for columns and folders."""
        if self.multilabel and is_json_file(self.multilabel[0]):
            return Path(self.multilabel[0])
        return None

    @property
    def label_names(self) -> tuple[str, ...]:
        """The columns, folders or categories that ``multilabel`` names; of a COCO file alone none."""
        return self.multilabel if self.label_file is None else self.multilabel[1:]

    def _check_no_mask_options(self) -> None:
        """Raise ConfigError for an option of masks of classes or numbers that surface normals have not."""
        defaults = {"classes": (), "class_values": (), "nodata": (), "scale": 1.0, "offset": 0.0}
        for option, default in defaults.items():
            value = getattr(self, option)
            if value != default:
                raise ConfigError(
                    f"{option} is {value!r}, and label_kind is 'normals', whose unknown pixels are NaN "
                    "or zero vectors; leave it out"
                )


class InstancesDataConfig(PreparationConfig, frozen=True, kw_only=True):
    """Images with objects or segments, and how they are prepared; one of the two files is named.

    Attributes:
        instances: COCO file of objects with masks, or data.yaml of YOLO with polygons, for heads
            that predict each object.
        panoptic: folder of PNG files and COCO file of panoptic segments, for heads that predict
            them.
        size: image size in pixels, HEIGHTxWIDTH or one number; None = their own.
        crowd: ignore: objects of COCO files with iscrowd=1 are regions that are ignored; objects:
            they count as objects, as in exports that mark every mask.
        tile: cut images into tiles of HEIGHTxWIDTH pixels, or one number; each tile is resized to
            size, without size to that of the tile, or of the detector that init names; None = off.
        overlap: smallest number of pixels that neighbouring tiles share; None = a fifth of the
            tile, or the longest box up to half a tile.
    """

    instances: Path | None = None
    panoptic: tuple[Path, Path] | None = None
    crowd: Crowd = "ignore"
    tile: Annotated[int | tuple[int, int] | None, SIZE] = None
    overlap: Annotated[int, Meta(ge=0)] | None = None

    @property
    def objects(self) -> str | tuple[str, str]:
        """What names the objects or segments."""
        return self.instances or self.panoptic or ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.instances is None and self.panoptic is None:
            raise ConfigError(
                "instances is missing, and so is panoptic; expected the COCO file of objects with "
                "masks, or of panoptic segments (--instances or --panoptic)"
            )
        if self.instances is not None and self.panoptic is not None:
            raise ConfigError(
                f"panoptic is {self.panoptic!r}, and has no effect with data.instances; leave it out"
            )
        force_setattr(self, "tile", _checked_tile(self.tile, self.overlap))


class BoxesDataConfig(ImagesConfig, frozen=True, kw_only=True):
    """Images with boxes.

    Attributes:
        boxes: COCO file of boxes, data.yaml of YOLO or folder Annotations of VOC, for detectors.
        val_boxes: the same of held-out images; None = the part val of boxes, or one image in
            folds.count.
        val_images: folder of the held-out images; None = as images.
        size: size in pixels to which images are stretched, HEIGHTxWIDTH or one number; without
            one it is 640x640, or that of the RF-DETR that init names.
        crowd: ignore: objects of COCO files with iscrowd=1 are regions that are ignored; objects:
            they count as objects, as in exports that mark every mask.
        tile: cut images into tiles of HEIGHTxWIDTH pixels, or one number; each tile is resized to
            size; None = off.
        overlap: smallest number of pixels that neighbouring tiles share; None = a fifth of the
            tile, or the longest box up to half a tile.
    """

    boxes: Path
    val_boxes: Path | None = None
    val_images: Path | None = None
    crowd: Crowd = "ignore"
    tile: Annotated[int | tuple[int, int] | None, SIZE] = None
    overlap: Annotated[int, Meta(ge=0)] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        force_setattr(self, "tile", _checked_tile(self.tile, self.overlap))


def _checked_tile(
    tile: int | tuple[int, int] | None, overlap: int | None
) -> tuple[int, int] | None:
    """Return (height, width) of a tile; None = images are not cut.

    Raises:
        ConfigError: if a side is out of range, or the overlap has no tile or is as large as one.
    """
    if tile is None:
        if overlap is not None:
            raise ConfigError(
                f"overlap is {overlap}, and needs tile, the size of a tile (--tile); or leave it out"
            )
        return None
    height, width = (tile, tile) if isinstance(tile, int) else tile
    if not 1 <= min(height, width) <= max(height, width) <= LARGEST_SIDE:
        raise ConfigError(f"tile is {(height, width)}; expected 1 ... {LARGEST_SIDE} pixels a side")
    if overlap is not None and overlap >= min(height, width):
        raise ConfigError(
            f"overlap is {overlap}, and the tile {(height, width)} px; expected less than its shorter "
            "side"
        )
    return height, width


def _check_each_once(name: str, values: tuple[str, ...]) -> None:
    """Raise ConfigError for a name that is repeated, also in two Unicode forms."""
    if len(set(values)) < len(values):
        raise ConfigError(f"{name} are {', '.join(values)}; name each once")
    first_of: dict[str, str] = {}
    for value in values:
        first = first_of.setdefault(composed(value), value)
        if first != value:
            raise ConfigError(
                f"{name} hold {value} in two Unicode forms (NFC, NFD), {first!a} and "
                f"{value!a}; name each once"
            )


class FrozenBackbone(Config, frozen=True, kw_only=True):
    """A backbone that is not trained.

    Attributes:
        name: see 'dinoneck list backbones'; None = DINOv3 ViT-S/16, or the store's.
        source: library that provides the model; None = timm.
        file: weights on disk, or a transformers folder.
        random: seeded random weights without download, equal on every machine.
        seed: which random weights; None = 0.
        layers: block indices to read, such as 2 5 8 11; None = the last.
        license: licence of the weights, recorded in the files if it is not known, such as that of
            your own weights.
        runtime: what computes the tokens of frozen weights: torch; openvino (extra [fast], on a
            CPU); or auto, the faster of both; None = torch, in commands DINONECK_RUNTIME, else auto.
        precision: dtype of the weights and tokens; bfloat16 is faster on CPUs that have it, and its
            tokens differ by about 1 percent.
    """

    name: Annotated[str | None, arg(name="backbone")] = None
    source: Annotated[Literal["timm", "transformers"] | None, arg(name="backbone-source")] = None
    file: Annotated[str | None, arg(name="backbone-file")] = None
    random: Annotated[bool, arg(name="random-backbone")] = False
    seed: Annotated[Seed | None, arg(name="backbone-seed")] = None
    layers: tuple[int, ...] | None = None
    license: Annotated[License | None, arg(name="backbone-license")] = None
    runtime: Runtime | None = None
    precision: Precision = "float32"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.file is not None and self.random:
            raise ConfigError(
                "file and random exclude each other (--backbone-file, --random-backbone); give one "
                "of them"
            )


class BackboneConfig(FrozenBackbone, frozen=True, kw_only=True):
    """The backbone of heads, or of a detector.

    Attributes:
        lora: rank of LoRA weights that every fold, or a detector, trains along with its head, at
            optim.backbone_lr; None = none.
        unfreeze_last: number of last blocks that every fold, or a detector, trains along with its
            head; None = none, of a detector those of optim.freeze.
    """

    lora: Count | None = None
    unfreeze_last: Count | None = None


class TaskConfig(Config, frozen=True, kw_only=True):
    """One output of the head.

    Attributes:
        kind: None = by the column: regression for numbers, classification for words; multilabel: any
            number of labels of an image, of one column of words or of a column of 0 and 1 for each.
        columns: of the table, in the order of the outputs; empty = the column of the task's name.
        unit: None = ``data.unit``.
        weight: of its loss, one number or one per output; None = 1, and for auxiliary tasks
            ``losses.aux_weight``.
        loss: None = the kind's own.
        beta: of the smooth L1 loss.
        activation: of the outputs, in original units.
        minimum: no prediction is below it; None = ``data.minimum``.
        maximum: no prediction is above it; None = ``data.maximum``.
        area: values are divided by it before training, such as an area in square metres.
        log1p: train on log(1 + value). Without an activation, training is on z-scores of the
            training images.
        auxiliary: it only helps training; it has a score of its own and none in the overall one.
        from_map: the dense or segmentation task whose mean over the map is the image's number: the
            output that has this task's name.
    """

    kind: TrainedKind | None = None
    columns: tuple[str, ...] = ()
    unit: str | None = None
    weight: float | tuple[float, ...] | None = None
    loss: str | None = None
    beta: Positive | None = None
    activation: str | None = None
    minimum: float | None = None
    maximum: float | None = None
    area: Positive | None = None
    log1p: bool = False
    auxiliary: bool = False
    from_map: str | None = None


class CompositionConfig(Config, frozen=True, kw_only=True):
    """Columns that are computed from tasks, so that predictions add up.

    Attributes:
        total: task of the whole, which the shares of ``ratio`` divide into parts; empty = the parts
            are tasks.
        ratio: task of the parts' shares.
        sums: column -> the parts that it adds up.
        weights: of a total and its ratio: column -> its weight in their joint loss, of each part
            and sum; empty = equal ones.
    """

    total: str = ""
    ratio: str = ""
    sums: dict[str, tuple[str, ...]] = field(default_factory=dict)
    weights: dict[str, NotNegative] = field(default_factory=dict)


class LossConfig(Config, frozen=True, kw_only=True):
    """How the losses of several tasks are weighed.

    Attributes:
        weighting: fixed weights, or by uncertainty (Kendall et al. 2018).
        aux_weight: weight of all auxiliary tasks together.
    """

    weighting: Annotated[Literal["fixed", "uncertainty"], arg(name="loss-weighting")] = "fixed"
    aux_weight: Annotated[NotNegative, Fixed, Suppress] = 0.1


class HeldOutConfig(Config, frozen=True, kw_only=True):
    """The held-out images of a detector.

    Attributes:
        count: without data.val_boxes one image in this many is held out.
    """

    count: Annotated[Count, arg(name="folds")] = 5


class PlainFoldsConfig(HeldOutConfig, frozen=True, kw_only=True):
    """The folds of the cross-validation of images without groups.

    Attributes:
        count: number of folds; 1 = one head on all images, without held-out scores.
        only: train this fold alone, counted from 0; None = all.
    """

    only: Annotated[Annotated[int, Meta(ge=0)] | None, arg(name="fold")] = None


class FoldsConfig(PlainFoldsConfig, frozen=True, kw_only=True):
    """The folds of the cross-validation.

    Attributes:
        count: number of folds; 1 = one head on all images, without held-out scores.
        group: columns; rows of one group stay in one fold.
        column: column that names each image's fold.
        stratify: target or auxiliary column to spread evenly over the folds.
        only: train this fold alone, counted from 0; None = all.
    """

    group: tuple[str, ...] = ()
    column: Annotated[str | None, arg(name="fold-column")] = None
    stratify: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.column is not None and self.stratify is not None:
            raise ConfigError(
                "column and stratify both make folds (--fold-column, --stratify); give one of them"
            )


class DetectorConfig(Config, frozen=True, kw_only=True):
    """A detector, for boxes.

    Attributes:
        name: of torchvision (fcos, retinanet, fasterrcnn) or transformers.
        variant: size of D-FINE: stock is D-FINE-L, 25m has 25 million parameters with a ViT-S.
        features_at: scale of the images for the ViT, such as 0.5; a neck with a detail branch sees
            them at full size.
        queries: number of queries of D-FINE and RT-DETRv2; None = the variant's.
        encoder_layers: number of layers of their hybrid encoder; None = the variant's.
        augment: horizontal: mirror half of the images and vary colours; both: also upside down.
        checkpointing: recompute backbone blocks in the backward pass to save memory.
        eval_every: epochs between evaluations.
        workers: processes that read images.
    """

    name: Annotated[
        Literal["fcos", "retinanet", "fasterrcnn", "dfine", "rtdetrv2"], arg(name="detector")
    ] = "fcos"
    variant: Literal["stock", "25m", "tiny"] = "25m"
    features_at: Annotated[Scale, Fixed, Suppress] = 1.0
    queries: Count | None = None
    encoder_layers: Count | None = None
    augment: Literal["horizontal", "both", "none"] = "horizontal"
    checkpointing: bool = False
    eval_every: Count = 1
    workers: Annotated[int, Meta(ge=0)] = 0


class RunConfig(Config, frozen=True, kw_only=True):
    """What every training has.

    Attributes:
        data: images, and what is known of them.
        head: a registered head or neck, or {type: NAME, ...} with constructor arguments.
        init: head or detector file to start from: its tensors of equal name and shape are taken,
            and what was trained of its ViT: tuned blocks if this run trains the ViT, LoRA weights
            if it has some of this rank. Of boxes and objects also a published detector, such as
            rf_detr_small, which is fine-tuned.
        license: licence of the head or the detector, such as MIT, recorded in its files;
            backbone.license is that of the backbone's weights.
        record_images: keep a short hash of every training image in the files of heads and
            detectors, by which evaluate and reports recognise it.
        imports: modules or Python files to import first, to register heads.
        device: such as cpu or cuda:1; None = a GPU if there is one, else the CPU.
    """

    data: ImagesConfig
    head: Annotated[dict[str, Any], HEAD] = field(default_factory=dict)
    init: Path | None = None
    license: License | None = None
    record_images: Annotated[bool, Fixed, Suppress] = True
    imports: Annotated[tuple[str, ...], arg(name="import")] = ()
    device: str | None = None

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Self:
        r"""Read a training file: YAML with the groups of this class.

        :func:`dinoneck.training.read_config` reads the file of any training.

        Raises:
            ConfigError: if the file cannot be read or describes another training, a key is unknown
                or stands twice, or a value is wrong.

        Examples:
            >>> import pathlib, tempfile
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     path = pathlib.Path(folder, "run.yaml")
            ...     _ = path.write_text("head: {type: fpn, fpn_dim: 64}\noptim: {epochs: 20, lr: 1e-4}\n")
            ...     config = TrainConfig.read(path)
            >>> config.head["fpn_dim"], config.optim.lr
            (64, 0.0001)
        """
        return cls.from_dict(read_yaml(path), str(path))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str = "the config") -> Self:
        """Return the config of nested plain values, such as those of :meth:`to_dict`; None = the defaults.

        Keys of other trainings may be there with their defaults, as reports of version 0.3 hold them.

        Raises:
            ConfigError: naming ``where`` and the key, or the class and the function of the training
                that the values describe.
        """
        if isinstance(values, Mapping):
            values = with_present_keys(values, where)
            TRAININGS.check_values(values, cls, where)
            values = TRAININGS.without_void_keys(values)
        return super().from_dict(values, where)

    def to_dict(self) -> dict[str, Any]:
        """Return nested plain values: what a report keeps and :meth:`from_dict` reads."""
        plain = without_unset(super().to_dict(), self, _LATER_OPTIONS_OF_RUN)
        plain["data"] = without_unset(plain["data"], self.data, _LATER_OPTIONS_OF_DATA)
        for name in self.__struct_fields__:
            group = getattr(self, name)
            if isinstance(group, DetectorRecipe):
                plain[name] = group.to_dict()
            elif isinstance(group, FrozenBackbone):
                plain[name] = without_unset(plain[name], group, _LATER_OPTIONS_OF_BACKBONE)
        return plain


class HeadRunConfig(RunConfig, frozen=True, kw_only=True):
    """What the trainings of heads share, those of images and those of objects.

    Attributes:
        data: images, and what is known of them.
        backbone: the model that makes the tokens.
        optim: how the head is trained.
        folds: folds of the cross-validation.
    """

    data: PreparationConfig
    backbone: BackboneConfig = BackboneConfig()
    optim: Recipe = Recipe()
    folds: PlainFoldsConfig = PlainFoldsConfig()

    @property
    def is_live(self) -> bool:
        """Whether every fold trains a backbone along with its head."""
        return bool(self.backbone.lora or self.backbone.unfreeze_last or self.optim.freeze)

    @property
    def trains_on_all(self) -> bool:
        """Whether one head is trained on all images after the folds, as the heads of the folds make no ensemble."""
        return self.is_live

    def check_used(self) -> None:
        """Reject options of a trained backbone where none is trained, and a precision where one is.

        Raises:
            ConfigError: naming the value, and what it needs.
        """
        if not self.is_live:
            self._check_frozen()
        elif self.backbone.precision != "float32":
            raise ConfigError(
                f"backbone.precision is {self.backbone.precision!r}, and has no effect with "
                f"{_LIVE}: a backbone is trained in float32; leave it out (--precision)"
            )

    def _check_frozen(self) -> None:
        """Raise ConfigError for options of a trained backbone."""
        optim = self.optim
        remedy = f"and needs {_LIVE} (--lora or --unfreeze-last or --freeze); or leave it out"
        if optim.cutmix_alpha is not None:
            raise ConfigError(f"optim.cutmix_alpha is {optim.cutmix_alpha}, {remedy}")
        if optim.backbone_lr is not None:
            raise ConfigError(f"optim.backbone_lr is {optim.backbone_lr}, {remedy}")
        if optim.layer_decay is not None:
            raise ConfigError(f"optim.layer_decay is {optim.layer_decay}, {remedy}")


class TrainConfig(HeadRunConfig, frozen=True, kw_only=True):
    """A training of heads on images: of numbers, classes and maps, see :func:`dinoneck.train`.

    Attributes:
        data: images and targets.
        backbone: the model that makes the tokens.
        head: a registered head or neck, or {type: NAME, ...} with constructor arguments; without a
            type patch_mean, for masks of classes fpn, for masks of numbers dense.
        tasks: task name -> how it is trained; target columns without an entry get the defaults.
        compositions: name -> columns computed from tasks.
        losses: weights of the tasks' losses.
        optim: how the head is trained.
        folds: folds of the cross-validation.
        predict_with: what predicts: the head, its linear baseline or the average of both; None = the
            head if it is named, else the best of the three on held-out images.

    Raises:
        ConfigError: if a value is unknown, of another type or out of range.

    Examples:
        >>> config = TrainConfig(data=DataConfig(csv="cover.csv", targets=("crop",)), head={"type": "fpn"})
        >>> config.optim.epochs, config.folds.count
        (40, 5)
    """

    data: DataConfig = DataConfig()
    tasks: Annotated[dict[str, TaskConfig], Fixed, Suppress] = field(default_factory=dict)
    compositions: Annotated[dict[str, CompositionConfig], Fixed, Suppress] = field(
        default_factory=dict
    )
    losses: LossConfig = LossConfig()
    folds: FoldsConfig = FoldsConfig()
    predict_with: Method | None = None

    @property
    def names_head(self) -> bool:
        """Whether it names a head, by its type."""
        return bool(self.head.get("type"))

    def with_average(self) -> Self:
        """Return the config that predicts with the average of head and linear baseline, as ``with_linear`` asks.

        Raises:
            ConfigError: if the config names another method.
        """
        if self.predict_with not in (None, "average"):
            raise ConfigError(
                f"--with-linear is --predict-with average, and predict_with is "
                f"{self.predict_with!r}; give one of them"
            )
        return self.changed(predict_with="average")

    def check_used(self, *, with_table: bool = False) -> None:
        """Reject values that a run would leave unused.

        Args:
            with_table: a table is given in the place of ``data.csv``.

        Raises:
            ConfigError: naming the value, and what it needs or what excludes it.
        """
        data = self.data
        if self.init in DETECTORS:
            raise ConfigError(
                f"init is {self.init!r}, a published detector, and needs data.boxes or "
                "data.instances (--boxes or --instances); or leave it out"
            )
        if data.csv is not None and data.subfolders is not None:
            raise ConfigError(
                f"data.subfolders is {data.subfolders!r}, and has no effect with data.csv; leave it "
                "out"
            )
        if data.csv is not None or with_table:
            self._check_no_pairing(
                "and has no effect with a table, which names the masks; leave it out"
            )
        if self.is_live and data.store is not None:
            raise ConfigError(
                f"data.store is {data.store!r}, and has no effect with {self._live_option}; leave "
                "it out"
            )
        if self.is_live and self.predict_with not in (None, "head"):
            raise ConfigError(
                f"predict_with is {self.predict_with!r}, and has no effect with "
                f"{self._live_option}, as the linear baseline reads the frozen backbone; leave it "
                "out"
            )
        super().check_used()
        if data.labels is None:
            self._check_without_labels()
        if data.store is not None:
            self._check_with_store()
        if data.store is None and data.views is not None:
            raise ConfigError(
                f"data.views is {data.views}, and needs data.store (--store); or leave it out"
            )
        if data.label_file is not None and (data.csv is not None or with_table):
            raise ConfigError(
                f"data.multilabel names the COCO file {str(data.label_file)!r}, and there is a table; "
                "leave one of them out"
            )
        if data.csv is None and data.decimal is not None:
            raise ConfigError(
                f"data.decimal is {data.decimal!r}, and needs data.csv (--csv); or leave it out"
            )
        if data.csv is None and not with_table:
            self.check_without_table()
        if data.images is None and data.subfolders is not None:
            raise ConfigError(
                f"data.subfolders is {data.subfolders!r}, and needs data.images (--images); or "
                "leave it out"
            )

    def _check_with_store(self) -> None:
        """Raise ConfigError for options of how tokens are computed: a store holds them already."""
        backbone = self.backbone
        remedy = "and has no effect with data.store, whose tokens are computed; leave it out"
        if backbone.runtime is not None:
            raise ConfigError(f"backbone.runtime is {backbone.runtime!r}, {remedy} (--runtime)")
        if backbone.precision != "float32":
            raise ConfigError(
                f"backbone.precision is {backbone.precision!r}, {remedy} (--precision)"
            )

    @property
    def _live_option(self) -> str:
        """The first option that trains a backbone along, as messages name it."""
        if self.backbone.lora:
            return "backbone.lora"
        if self.backbone.unfreeze_last:
            return "backbone.unfreeze_last"
        return "optim.freeze"

    def _check_without_labels(self) -> None:
        """Raise ConfigError for options of masks; ``data.classes`` is one of objects and boxes too."""
        data = self.data
        if data.classes:
            raise ConfigError(
                f"data.classes is {data.classes!r}, and needs data.labels or data.instances or "
                "data.panoptic or data.boxes (--labels or --instances or --panoptic or --boxes); or "
                "leave it out"
            )
        remedy = "and needs data.labels (--labels); or leave it out"
        if data.nodata:
            raise ConfigError(f"data.nodata is {data.nodata!r}, {remedy}")
        if data.label_kind != "classes":
            raise ConfigError(f"data.label_kind is {data.label_kind!r}, {remedy}")
        if data.class_values:
            raise ConfigError(f"data.class_values is {data.class_values!r}, {remedy}")
        if data.class_colors:
            raise ConfigError(f"data.class_colors is {data.class_colors!r}, {remedy}")
        if not data.numbers_from_maps:
            raise ConfigError(f"data.numbers_from_maps is {data.numbers_from_maps!r}, {remedy}")
        self._check_no_pairing(remedy)

    def _check_no_pairing(self, remedy: str) -> None:
        """Raise ConfigError for options of how images and masks of two folders are paired."""
        if self.data.mask_suffix is not None:
            raise ConfigError(f"data.mask_suffix is {self.data.mask_suffix!r}, {remedy}")
        if self.data.skip_unpaired:
            raise ConfigError(f"data.skip_unpaired is {self.data.skip_unpaired!r}, {remedy}")

    def check_without_table(self) -> None:
        """Raise ConfigError for options of tables, for a run that has none."""
        data = self.data
        remedy = "and needs data.csv (--csv); or leave it out"
        if data.targets:
            raise ConfigError(f"data.targets is {data.targets!r}, {remedy}")
        if data.aux_targets:
            raise ConfigError(f"data.aux_targets is {data.aux_targets!r}, {remedy}")
        if data.multilabel and data.images is None:
            raise ConfigError(
                f"data.multilabel is {data.multilabel!r}, and needs data.csv (--csv), or the folder of "
                "the images, data.images (--images); or leave it out"
            )
        for option, value in (("labels", data.labels), ("subfolders", data.subfolders)):
            if data.multilabel and value is not None:
                raise ConfigError(
                    f"data.{option} is {str(value)!r}, and data.multilabel is {data.multilabel!r}, "
                    "labels of images without a table; leave one of them out, or name a table (--csv)"
                )
        if data.minimum is not None:
            raise ConfigError(f"data.minimum is {data.minimum!r}, {remedy}")
        if data.maximum is not None:
            raise ConfigError(f"data.maximum is {data.maximum!r}, {remedy}")
        if data.store is not None:
            raise ConfigError(f"data.store is {data.store!r}, {remedy}")
        if self.folds.group:
            raise ConfigError(f"folds.group is {self.folds.group!r}, {remedy}")
        if self.folds.column is not None:
            raise ConfigError(f"folds.column is {self.folds.column!r}, {remedy}")
        if data.labels is not None and data.images is None:
            raise ConfigError(
                f"data.labels is {data.labels!r}, and needs data.csv or data.images (--csv or "
                "--images); or leave it out"
            )


class TrainInstancesConfig(HeadRunConfig, frozen=True, kw_only=True):
    """A training of heads that predict every object, see :func:`dinoneck.detection.train_instances`.

    Attributes:
        data: images and objects, or panoptic segments.
        backbone: the model that makes the tokens.
        head: a registered head or neck, or {type: NAME, ...} with constructor arguments; without a
            type a pyramid head on dpt_neck, for panoptic segments mask.
        optim: how the head is trained.
        folds: folds of the cross-validation.
        weights: local copy of the published detector that init names: its .safetensors file, or the
            folder with config.json as the Hub has it; None = it is downloaded.

    Raises:
        ConfigError: if a value is unknown, of another type or out of range.

    Examples:
        >>> config = TrainInstancesConfig(data=InstancesDataConfig(instances="objects.json"))
        >>> config.folds.count
        5
    """

    data: InstancesDataConfig
    weights: Path | None = None

    @property
    def default_head(self) -> str:
        """The type of its head where the config names none."""
        return "dpt_neck" if self.data.panoptic is None else "mask"

    @property
    def trains_on_all(self) -> bool:
        """Whether one head is trained on all images after the folds: always, as objects have no mean."""
        return True


class TrainDetectorConfig(RunConfig, frozen=True, kw_only=True):
    """A training of a detector, see :func:`dinoneck.detection.train_detector`.

    Attributes:
        data: images and boxes.
        backbone: the model that makes the tokens.
        head: the detector's neck, {type: NAME, ...} with constructor arguments; without a type
            spatial_tuning_adapter.
        detector: the detector on the neck.
        optim: how it is trained.
        folds: how many images are held out.
        weights: local copy of the published detector that init names: its .safetensors file, or the
            folder with config.json as the Hub has it; None = it is downloaded.

    Raises:
        ConfigError: if a value is unknown, of another type or out of range.

    Examples:
        >>> config = TrainDetectorConfig(data=BoxesDataConfig(boxes="boxes.json"))
        >>> config.detector.name
        'fcos'
    """

    data: BoxesDataConfig
    backbone: BackboneConfig = BackboneConfig()
    detector: DetectorConfig = DetectorConfig()
    optim: DetectorRecipe = DetectorRecipe()
    folds: HeldOutConfig = HeldOutConfig()
    weights: Path | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.backbone.unfreeze_last and self.optim.freeze:
            raise ConfigError(
                f"backbone.unfreeze_last is {self.backbone.unfreeze_last}, and optim.freeze is "
                f"{', '.join(self.optim.freeze)}; both say which blocks are trained, so leave one of "
                "them out (--unfreeze-last, --freeze)"
            )
        remedy = "and a detector is trained in torch and float32; leave it out"
        if self.backbone.runtime == "openvino":
            raise ConfigError(f"backbone.runtime is 'openvino', {remedy} (--runtime)")
        if self.backbone.precision != "float32":
            raise ConfigError(
                f"backbone.precision is {self.backbone.precision!r}, {remedy} (--precision)"
            )

    @property
    def default_head(self) -> str:
        """The type of its neck where the config names none."""
        return "spatial_tuning_adapter"

    @property
    def is_live(self) -> bool:
        """Whether the backbone is trained along with the detector: without ``optim.freeze`` too, by its plan."""
        return True

    @property
    def plan(self) -> dict[int, str]:
        """What is frozen of the backbone, epoch -> stage; empty if neither option names it."""
        if self.backbone.unfreeze_last is not None:
            return {0: f"last:{self.backbone.unfreeze_last}"}
        return self.optim.plan


HeadConfig = TrainConfig | TrainInstancesConfig
AnyConfig = TrainConfig | TrainInstancesConfig | TrainDetectorConfig
TRAININGS = Trainings(
    default=Training(
        TrainConfig, function="dinoneck.training.train", learns="numbers, classes or masks"
    ),
    others=(
        Training(
            TrainDetectorConfig,
            function="dinoneck.detection.train_detector",
            learns="boxes",
            data_keys=("boxes",),
            missing="data.boxes is missing; expected the COCO file of the training images (--boxes)",
            data_reader="dinoneck.detection.training.read_data",
        ),
        Training(
            TrainInstancesConfig,
            function="dinoneck.detection.train_instances",
            learns="objects",
            data_keys=("instances", "panoptic"),
            missing="data.instances is missing, and so is data.panoptic; expected the COCO file of "
            "objects with masks, or of panoptic segments (--instances or --panoptic)",
            data_reader="dinoneck.detection.objects.read_data",
        ),
    ),
)


def read_config(path: str | os.PathLike[str]) -> AnyConfig:
    r"""Read a training file; the data that it names decides which training it describes.

    ``data.boxes`` describes a :class:`TrainDetectorConfig`, ``data.instances`` or ``data.panoptic`` a
    :class:`TrainInstancesConfig`, and other data a :class:`TrainConfig`.

    Raises:
        ConfigError: if the file cannot be read, a key is unknown, occurs twice or has no effect on
            that training, or a value is wrong.

    Examples:
        >>> import pathlib, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "run.yaml")
        ...     _ = path.write_text("data: {boxes: boxes.json}\noptim: {epochs: 20, lr: 1e-4}\n")
        ...     config = read_config(path)
        >>> type(config).__name__, config.optim.lr
        ('TrainDetectorConfig', 0.0001)
    """
    return config_of(read_yaml(path), str(path))


def config_of(values: Mapping[str, Any], where: str) -> AnyConfig:
    """Return the config of the training that nested plain values describe.

    Raises:
        ConfigError: naming ``where``, what the values are, and the key.
    """
    config = TRAININGS.of_values(values).config.from_dict(values, where)
    return cast("AnyConfig", config)


def merged_values(values: Mapping[str, Any], others: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested plain values, in which others replace those of the same name, in a group key by key."""
    merged = dict(values)
    for name, content in others.items():
        group = values.get(name)
        is_group = any(training.names_in(name) for training in TRAININGS.all)
        if is_group and isinstance(group, Mapping):
            merged[name] = {**group, **content}
        else:
            merged[name] = content
    return merged


def stated_options(values: Mapping[str, Any]) -> list[str]:
    """Return the names of the values of ``optim`` that nested plain values hold."""
    optim = values.get("optim")
    return list(optim) if isinstance(optim, Mapping) else []
