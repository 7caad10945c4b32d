"""What is wrong with the data of a run, as far as it shows without numpy, pandas and torch, whose import takes seconds.

What passes is read again by the training, which also logs what a user should know of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from dinoneck.backbones.block_indices import resolve_layers
from dinoneck.backbones.known import DINOV3_SMALL, dimensions_of, patch_of
from dinoneck.data.cells import is_number, same_labels
from dinoneck.data.class_counts import check_class_counts
from dinoneck.data.csv_files import CsvFile, check_has_rows, check_header, read_csv_file
from dinoneck.data.names import check_files
from dinoneck.detection.sizes import DEFAULT_SIZE, check_size
from dinoneck.errors import DataError
from dinoneck.necks.strides import stated_strides
from dinoneck.training.config import AnyConfig, FoldsConfig, TrainConfig, TrainDetectorConfig
from dinoneck.training.fold_checks import (
    check_enough_groups,
    check_enough_images,
    check_fold_number,
    check_stratify,
)

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
    """Refuse a table that cannot be read, what it lacks, too few groups for the folds, and columns of names.

    Of a COCO file of labels only the file and its images are looked at.

    Raises:
        DataError: naming the column, the images, the number of groups or that of the classes.
        ConfigError: if no fold has the number that is to be trained alone.
    """
    data = run.data
    if data.label_file is not None:
        check_coco_images(str(data.label_file), data.images)
    if data.csv is None:
        return
    image_column = data.image_column or "image"
    columns = [image_column, *data.targets, *data.aux_targets, *data.multilabel, *run.folds.group]
    columns += [name for name in (data.labels, run.folds.column) if name is not None]
    table = read_csv_file(data.csv, columns)
    check_header(str(data.csv), table.header, columns, image_column)
    check_has_rows(str(data.csv), len(table.rows))
    names = table.column(image_column)
    if data.store is None and all(names):
        folder = data.images or Path(data.csv).parent
        check_files(names, folder, f"images named in {data.csv}")
    _check_folds(run.folds, table, names)
    if not run.tasks and run.folds.count != 1:  # tasks may have other columns
        check_stratify(run.folds.stratify, [*data.targets, *data.aux_targets, *data.multilabel])
    if not run.tasks and run.folds.column is None:  # which may leave out rows
        for column in (*data.targets, *data.aux_targets):
            _check_classes(column, table)


def _check_classes(column: str, table: CsvFile) -> None:
    """Refuse a column of words that has one class, or nearly as many as images; other columns pass."""
    filled = [text for text in table.column(column) if text]
    if filled and not any(map(is_number, filled)):
        check_class_counts(column, Counter(filled))


def _check_folds(folds: FoldsConfig, table: CsvFile, names: Sequence[str]) -> None:
    """Refuse fewer groups or images than folds, and the number of a fold that is not there."""
    if folds.column is not None or folds.count == 1:
        return
    columns = []
    for column in folds.group:
        columns.append(same_labels(table.column(column), names, f"group in column {column!r}"))
    if columns:
        groups = set(zip(*columns, strict=True))
        check_enough_groups(len(groups), folds.count)
    else:
        check_enough_images(len(names), folds.count)
    check_fold_number(folds.only, folds.count)


def check_coco_images(file: str, images: str | None) -> None:
    """Refuse a file or folder of objects that does not exist; its entries are checked by the training."""
    if not Path(file).exists():
        raise DataError(f"{file} does not exist; check the path")
