"""What is wrong with a run, as far as it shows without torch, whose import takes seconds."""

from __future__ import annotations

from pathlib import Path

from dinoneck.backbones.block_indices import resolve_layers
from dinoneck.backbones.known import DINOV3_SMALL, dimensions_of, patch_of
from dinoneck.data.class_counts import check_class_counts
from dinoneck.data.table import Classes
from dinoneck.detection.sizes import DEFAULT_SIZE, check_size
from dinoneck.errors import DataError
from dinoneck.necks.strides import stated_strides
from dinoneck.training.config import AnyConfig, TrainConfig, TrainDetectorConfig
from dinoneck.training.fold_checks import (
    check_enough_groups,
    check_enough_images,
    check_fold_number,
    check_stratify,
)
from dinoneck.training.table import table_of

_USUAL_PATCH = 16  # px, of backbones whose name does not tell it; no value of a neck depends on it


def check_layers(run: AnyConfig) -> None:
    """Refuse blocks that the backbone of a run does not have, where its name tells how many there are.

    Raises:
        BackboneError: naming the blocks, and those that there are.
    """
    backbone = run.backbone
    if backbone.layers is None or backbone.name is None:
        return
    dimensions = dimensions_of(backbone.name)
    if dimensions is not None:
        _, depth = dimensions
        resolve_layers(backbone.layers, depth)


def check_neck(run: AnyConfig) -> None:
    """Refuse scales, strides and a number of layers that the neck of a run does not take.

    Raises:
        ConfigError: naming what it takes.
    """
    _neck_strides(run, patch_of(run.backbone.name or DINOV3_SMALL) or _USUAL_PATCH)


def _neck_strides(run: AnyConfig, patch_size: int) -> tuple[float, ...] | None:
    """The strides of the neck of a run; None where they do not show."""
    if isinstance(run, TrainConfig):
        neck = run.head.get("type")  # a head without a type has no neck of these
    else:
        neck = run.head.get("type", run.default_head)
    if not isinstance(neck, str):
        return None
    arguments = dict(run.head)
    if run.backbone.layers is not None:
        arguments.setdefault("num_layers", len(run.backbone.layers))
    return stated_strides(neck, arguments, patch_size)


def check_detector_size(run: TrainDetectorConfig) -> None:
    """Refuse a size that the neck of a detector does not take, where its name and the backbone's tell it.

    Raises:
        ConfigError: naming the next size that fits.
    """
    if run.init is not None:  # which may have another neck
        return
    patch = patch_of(run.backbone.name or DINOV3_SMALL)
    if patch is None or run.detector.features_at != 1.0:
        return
    strides = _neck_strides(run, patch)
    if strides is None:
        return
    size = run.data.size or DEFAULT_SIZE
    if isinstance(size, int):
        size = (size, size)
    check_size(size, (patch, patch), features_at=1.0, strides=strides)


def check_table(run: TrainConfig) -> None:
    """Refuse a table that cannot be read, too few groups for the folds, and columns of names.

    The training reads the table again, in the same way. Of a COCO file of labels only its existence
    is checked.

    Raises:
        DataError: as :func:`dinoneck.data.read_table`; also naming the number of groups or that of
            the classes.
        ConfigError: if no fold has the number that is to be trained alone.
    """
    data = run.data
    if data.label_file is not None:
        check_coco_images(str(data.label_file), data.images)
    if data.csv is None:
        return
    table = table_of(run)
    if run.folds.column is None and run.folds.count != 1:
        if table.has_groups:
            check_enough_groups(len(set(table.groups)), run.folds.count)
        else:
            check_enough_images(len(table), run.folds.count)
        check_fold_number(run.folds.only, run.folds.count)
    if run.tasks:  # which may have other columns
        return
    if run.folds.count != 1:
        check_stratify(run.folds.stratify, [*data.targets, *data.aux_targets, *data.multilabel])
    for column in (*data.targets, *data.aux_targets):
        values = table.columns[column]
        if isinstance(values, Classes):
            check_class_counts(column, values.counts())


def check_coco_images(file: str, images: str | None) -> None:
    """Refuse a file or folder of objects that does not exist; its entries are checked by the training."""
    if not Path(file).exists():
        raise DataError(f"{file} does not exist; check the path")
