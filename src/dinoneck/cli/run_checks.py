"""What is wrong with the data of a run, as far as it shows without numpy, pandas and torch, whose import takes seconds.

What passes is read again by the training, which also logs what a user should know of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dinoneck.data.cells import same_labels, strip_cells
from dinoneck.data.coco_text import parse
from dinoneck.data.csv_files import CsvFile, check_has_rows, check_header, read_csv_file
from dinoneck.data.json_parts import part_of_json
from dinoneck.data.names import is_absolute
from dinoneck.data.sources import check_files
from dinoneck.training.config import FoldsConfig, TrainConfig
from dinoneck.training.fold_checks import (
    check_enough_groups,
    check_fold_number,
    check_stratify,
)


def check_table(run: TrainConfig) -> None:
    """Refuse a table that cannot be read, columns and images that it lacks, and too few groups for the folds.

    Of a COCO file of labels only the file and its images are looked at.

    Raises:
        DataError: naming the column, the images or the number of groups.
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
    names = strip_cells(table.column(image_column))
    if data.store is None and all(names):
        folder = data.images or Path(data.csv).parent
        check_files(names, folder, f"images named in {data.csv}", outside=True)
    _check_folds(run.folds, table, names)
    if not run.tasks and run.folds.count != 1:  # tasks may have other columns
        check_stratify(run.folds.stratify, [*data.targets, *data.aux_targets, *data.multilabel])


def _check_folds(folds: FoldsConfig, table: CsvFile, names: Sequence[str]) -> None:
    """Refuse fewer groups than folds, and the number of a fold that is not there."""
    if folds.column is not None or folds.count == 1:
        return
    columns = []
    for column in folds.group:
        columns.append(same_labels(table.column(column), names, f"group in column {column!r}"))
    num_groups = len(set(zip(*columns, strict=True))) if columns else len(names)
    check_enough_groups(num_groups, folds.count)
    check_fold_number(folds.only, folds.count)


def check_coco_images(file: str, images: str | None) -> None:
    """Refuse a COCO file that is none, and images that it names and that are not in their folder.

    Args:
        file: the JSON; one whose entries are of other types is refused by the training.
        images: the folder; None: the training finds it.

    Raises:
        DataError: naming the file, or the images.
    """
    content = parse(Path(file))
    if images is None or not isinstance(content, dict):
        return
    entries = content.get("images")
    if not isinstance(entries, list):
        return
    names = []
    for entry in entries:
        name = entry.get("file_name") if isinstance(entry, dict) else None
        if not isinstance(name, str):
            return
        names.append(name)
    check_files(
        names,
        images,
        f"images of {file}",
        outside=not any(map(is_absolute, names)),
        part=part_of_json(Path(file)),
    )
