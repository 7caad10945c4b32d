"""Steps 2 and 5 of a run: the table of its images, their labels per patch, and the folds."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from msgspec import Meta
from torch import Tensor

from dinoneck.data.cells import FOLD, GROUP, IMAGES, LABELS, OWN_COLUMNS, is_missing, same_labels
from dinoneck.data.class_counts import warn_of_empty_classes
from dinoneck.data.class_lists import warn_of_class_lists
from dinoneck.data.copies import (
    find_copies,
    warn_of_changed_copies,
    warn_of_copies,
    warn_of_equal_masks,
)
from dinoneck.data.decoding import read_size_and_orientation, read_stated_orientation
from dinoneck.data.folder_words import part_names_among, part_of
from dinoneck.data.ground import warn_of_other_places, warn_of_overlaps
from dinoneck.data.label_sets import (
    MaskClasses,
    MaskSurvey,
    check_not_in_alpha,
    mask_classes,
    some_of_numbers,
    survey_masks,
)
from dinoneck.data.labels import DenseLabels
from dinoneck.data.layout import (
    HELD_OUT,
    DataFolder,
    read_data_folder,
    read_images_and_masks,
)
from dinoneck.data.orientation import hidden_turns, size_hides_turn, turned_otherwise
from dinoneck.data.pasture import SUMS, Pasture
from dinoneck.data.preprocessing import Preprocessing
from dinoneck.errors import ConfigError, DataError
from dinoneck.extras import missing_extra
from dinoneck.tasks import TABLE_COLUMNS
from dinoneck.text import counted, some_of
from dinoneck.training.config import CompositionConfig, DataConfig, TaskConfig, TrainConfig
from dinoneck.training.recipe import Seed, converted

logger = logging.getLogger(__name__)
MAPS = ("dense", "segmentation")
# kinds of tasks whose columns hold classes, and numbers
_OF_CLASSES = ("classification",)
_OF_NUMBERS = ("regression", "ratio", "density")
# kinds of NumPy's dtypes of which float64 would be made without a word: times and complex numbers
_NO_NUMBERS = ("m", "M", "c")
_Rows = np.ndarray[Any, np.dtype[np.int64]]
_Floats = np.ndarray[Any, np.dtype[np.float64]]
Fold = tuple[_Rows, _Rows]
_SHOWN = 5  # names in a message
_BINS = 5  # of a column of numbers that folds are stratified by


def table_of(config: TrainConfig, frame: Any = None, folder: DataFolder | None = None) -> Any:
    """Return the table that a config describes.

    Args:
        config: the run.
        frame: a pandas DataFrame in the place of ``data.csv``; one of
            :func:`dinoneck.data.read_table` as it is, with the columns that the config names.
        folder: what ``data.images`` holds, if it has been read; None = it is read here.

    Raises:
        ConfigError: if a table and ``data.csv`` are given, or a table lacks what the config names.
        DataError: if the table or the folders cannot be used.
    """
    data, folds = config.data, config.folds
    if frame is not None and data.csv is not None:
        raise ConfigError(f"data.csv is {data.csv!r} and a table is given; leave one of them out")
    if IMAGES in getattr(frame, "columns", ()):
        for role, named in {FOLD: folds.column, GROUP: folds.group, LABELS: data.labels}.items():
            if named and role not in frame:
                raise ConfigError(f"the config names {named!r}; the table has no column {role!r}")
        targets, auxiliary = target_columns(config, frame)
        _warn_of_copies(frame, [name for name in (*targets, *auxiliary) if name in frame])
        if data.objects is None:  # the changed copies of objects are counted with theirs
            _warn_of_changed_copies(frame)
        return frame if folds.column is None else _without_test_part(frame, folds.column)
    if data.csv is None and frame is None:
        if data.images is None:
            return Pasture(seed=0).table(range(data.pasture))
        return _table_of_folders(config, folder)
    from dinoneck.data.tables import read_table

    targets, auxiliary = target_columns(config)
    looks = data.store is None or data.labels is not None or data.images is not None
    table = read_table(
        data.csv if frame is None else frame,
        (data.images or Path(data.csv or ".").parent) if looks else None,
        targets,
        auxiliary=auxiliary,
        group=folds.group,
        fold_column=folds.column,
        image_column=data.image_column or "image",
        labels=data.labels,
        classes=dict.fromkeys(_columns_of_kinds(config, _OF_CLASSES), ()),
        numbers=_columns_of_kinds(config, _OF_NUMBERS),
    )
    _warn_of_copies(table, [*targets, *auxiliary])
    _warn_of_changed_copies(table)
    return table if folds.column is None else _without_test_part(table, folds.column)


def _columns_of_kinds(config: TrainConfig, kinds: Sequence[str]) -> list[str]:
    """The columns of which a config says that they are of one of these kinds."""
    columns: list[str] = []
    for task in column_tasks(config).values():
        if task.kind in kinds:
            columns += task.columns
    return columns


def _warn_of_copies(table: Any, targets: Sequence[str]) -> None:
    """Name pictures that are in two rows, with two values or in two folds."""
    with_files = _rows_with_files(table)
    files = list(with_files[IMAGES])
    folds = dict(zip(files, with_files[FOLD], strict=True)) if FOLD in table else {}
    groups = dict(zip(files, with_files[GROUP], strict=True)) if GROUP in table else {}
    values = {}
    for name in targets:
        filled = with_files[with_files[name].notna()]
        values[name] = dict(zip(filled[IMAGES], filled[name], strict=True))
    warn_of_copies(find_copies(files), folds, values, groups)


def _warn_of_changed_copies(table: Any) -> None:
    """Count the files that are called like changed copies of another one, of another fold or group."""
    with_files = _rows_with_files(table)
    files = list(with_files[IMAGES])
    kept_in = {}
    for column in (FOLD, GROUP):
        if column in table:
            kept_in = dict(zip(files, with_files[column], strict=True))
            break
    warn_of_changed_copies(files, kept_in)
    warn_of_overlaps(files, kept_in)


def _rows_with_files(table: Any) -> Any:
    """Return the rows of a table whose images are files."""
    return table[[isinstance(file, Path) for file in table[IMAGES]]]


def _without_test_part(table: Any, column: str) -> Any:
    """Return a table whose folds are parts such as train and val: without test, and with val held out.

    Tables whose folds have numbers or names of their own are returned as they are.

    Args:
        table: with a column ``fold``.
        column: what the user calls this column.

    Raises:
        DataError: if there are parts, and not both train and val, or other folds beside them.
    """
    names = [str(name).strip() for name in table[FOLD]]
    part_names = part_names_among(set(names))
    if not part_names:
        return table
    parts = [part_of(name) for name in names]
    counts = Counter(parts)
    if None in counts:
        own_names = set(names).difference(part_names)
        beside = f", and also {some_of(map(repr, own_names), _SHOWN)}" if own_names else ""
        raise DataError(
            f"the fold column {column!r} names parts of a data set, "
            f"{some_of(map(repr, part_names), _SHOWN)}{beside}; expected the words train, val and "
            "perhaps test alone: train on train, score on val, and leave test for evaluate. Call "
            "folds that are held out in turn otherwise, such as 0 and 1"
        )
    if not {"train", "val"} <= counts.keys():
        raise DataError(
            f"the fold column {column!r} has the parts {', '.join(sorted(map(str, counts)))}; "
            "expected train and val, and perhaps test: train on train, and score on val. Call the "
            "rows to score on val, or name folds that are held out in turn otherwise, such as 0 "
            "and 1"
        )
    is_read = np.array([part != "test" for part in parts])
    kept = table[is_read].copy()
    kept[FOLD] = [part for part in parts if part != "test"]
    kept.attrs[HELD_OUT] = "val"
    left_out = ""
    if counts["test"]:
        left_out = f"; test ({counted(counts['test'], 'image')}) is left out, for evaluate"
    logger.warning(
        "the fold column %r names parts: train (%s) is trained on, val (%s) is held out%s",
        column,
        counted(counts["train"], "image"),
        counted(counts["val"], "image"),
        left_out,
    )
    return kept


def _table_of_folders(config: TrainConfig, content: DataFolder | None) -> Any:
    """The table of class folders, of folders of images and masks, or of parts with these.

    ``content`` is what the folders hold; None = they are read here.
    """
    from dinoneck.data.folders import describe, read_masks, table_of_folder

    data = config.data
    if data.labels is not None and data.labels != data.images:
        if content is None:
            content = read_images_and_masks(str(data.images), data.labels, data.subfolders)
        if not content.parts:
            table = read_masks(str(data.images), data.labels)
            warn_of_overlaps(table[IMAGES])
            return table
    elif content is None:
        content = read_data_folder(str(data.images), data.subfolders)
    table = table_of_folder(content)
    if not content.parts:
        warn_of_overlaps(table[IMAGES])
    elif config.folds.count == 1:
        line = "%s: %s are trained on, and none is held out, as --folds is 1"
        logger.warning(line, content.root, " and ".join(content.parts))
    else:
        logger.warning("%s", describe(content, table))
    return table


def of_pasture(config: TrainConfig) -> TrainConfig:
    """Return the config of generated images where it names no data: masses in grams, of which two are sums."""
    if config.data.csv is not None or config.data.images is not None:
        return config
    sums = {name: CompositionConfig(sums={name: parts}) for name, parts in SUMS.items()}
    return config.changed(
        data=config.data.changed(unit="g", minimum=0.0), compositions=sums | config.compositions
    )


def column_tasks(config: TrainConfig, table: Any = None) -> dict[str, TaskConfig]:
    """Return the tasks that learn columns: those of the config, and a default for every other target.

    Raises:
        ConfigError: if a task has the name of a target and predicts other columns.
    """
    of_columns = {name: task for name, task in config.tasks.items() if task.kind not in MAPS}
    tasks = {
        name: task.changed(columns=task.columns or (name,)) for name, task in of_columns.items()
    }
    covered = {column for task in tasks.values() for column in task.columns}
    covered |= {column for made in config.compositions.values() for column in made.sums}
    auxiliary = config.data.aux_targets
    for column in (*_targets(config, table), *auxiliary):
        if column in of_columns and column not in covered:
            raise ConfigError(
                f"task {column!r} predicts other columns than the target {column!r}; rename one "
                "of them"
            )
        if column not in covered:
            tasks[column] = TaskConfig(columns=(column,), auxiliary=column in auxiliary)
    return tasks


def target_columns(config: TrainConfig, table: Any = None) -> tuple[list[str], list[str]]:
    """Return the columns that are scored as targets, and those that only help training; without a table the named."""
    helps = {
        column: task.auxiliary
        for task in column_tasks(config, table).values()
        for column in task.columns
    }
    every = dict.fromkeys((*_targets(config, table), *helps))
    return [name for name in every if not helps.get(name)], [
        name for name in every if helps.get(name)
    ]


def _targets(config: TrainConfig, table: Any) -> Sequence[str]:
    every = () if table is None else table.columns
    return config.data.targets or [
        name for name in every if name not in (*OWN_COLUMNS, *config.data.aux_targets)
    ]


def class_names(table: Any, column: str) -> tuple[str, ...]:
    """Return the class names of a column; none for numbers."""
    return tuple(table[column].cat.categories) if hasattr(table[column], "cat") else ()


def column_numbers(table: Any, column: str) -> _Floats:
    """Return the numbers of a column in float64, NaN = missing.

    Raises:
        DataError: for a column of dates, times, complex numbers, or what else is no number.
    """
    values = table[column]
    if values.dtype.kind in _NO_NUMBERS:
        raise DataError(
            f"the column {column!r} of the table is {values.dtype}; expected numbers: convert it, "
            "of dates such as to days since the first one"
        )
    try:
        return np.asarray(values, np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"the column {column!r} of the table is no column of numbers: {error}; make the table "
            "with read_table()"
        ) from error


def groups_of(table: Any) -> list[Hashable]:
    """Return the group of every image; without groups every image has its own, the number of its row."""
    return list(table[GROUP]) if GROUP in table else [*range(len(table))]


def folds_of(config: TrainConfig, table: Any) -> dict[int | None, Fold]:
    """Return the folds to train by their numbers: ``(train, valid)`` rows of the table; None = all images.

    Warnings name groups that folds of a column share, and classes of which a fold holds out images
    and trains on none.

    Args:
        config: its group ``folds``.
        table: of :func:`table_of`.

    Raises:
        ConfigError: if no fold has the number ``folds.only``, or ``folds.stratify`` is not a
            target.
        DataError: if there are fewer groups than folds.
    """
    chosen, groups = config.folds, groups_of(table)
    all_images: Fold = np.arange(len(table)), np.arange(0)
    if chosen.column is None and HELD_OUT in table.attrs and chosen.count != 1:
        every_fold = _part_folds(table)
    elif chosen.column is not None:
        every_fold = _part_folds(table) if HELD_OUT in table.attrs else column_folds(table[FOLD])
        _warn_of_split_groups(chosen.column, groups, every_fold)
    elif chosen.count == 1:
        every_fold = [all_images]
    else:
        if GROUP in table:
            _warn_of_single_groups(groups)
        stratify = None if chosen.stratify is None else _strata(table, chosen.stratify)
        every_fold = group_folds(groups, chosen.count, config.optim.seed, stratify=stratify)
    if chosen.only is not None and chosen.only >= (count := len(every_fold)):
        raise ConfigError(
            f"fold is {chosen.only} and there are {count} folds; expected 0 ... {count - 1}"
        )
    folds: dict[int | None, Fold] = {
        i: fold for i, fold in enumerate(every_fold) if chosen.only in (None, i)
    }
    for name, fold in folds.items():
        _warn_of_unseen_classes(config, table, name, fold)
    return folds | {None: all_images} if config.trains_on_all and len(folds) > 1 else folds


def _warn_of_single_groups(groups: Sequence[Hashable]) -> None:
    """Log that groups keep nothing together, as each image has its own."""
    if len(set(groups)) == len(groups):
        logger.warning(
            "each of the %d images has a group of its own, such as %r, so that folds are drawn as "
            "without groups. Name the column of what images share, such as place or day",
            len(groups),
            str(groups[0]),
        )


def _warn_of_split_groups(column: str, groups: Sequence[Hashable], folds: Sequence[Fold]) -> None:
    """Log the groups that have images in several folds of a column."""
    labels = np.array(groups)
    split: set[str] = set()
    for train, valid in folds:
        split.update(map(str, np.intersect1d(labels[train], labels[valid])))
    if split:
        logger.warning(
            "%s with images in several folds of the column %r: %s; scores may look better than they "
            "are for new groups",
            counted(len(split), "group"),
            column,
            some_of(map(repr, split), 3),
        )


def _warn_of_unseen_classes(config: TrainConfig, table: Any, name: int | None, fold: Fold) -> None:
    """Log the classes of which a fold holds out images and trains on none."""
    train, valid = fold
    targets, auxiliary = target_columns(config, table)
    for column in (*targets, *auxiliary):
        names = class_names(table, column) if column in table else ()
        if not names:
            continue
        codes = np.asarray(table[column].cat.codes)  # -1 = missing
        unseen = [names[code] for code in np.setdiff1d(codes[valid], codes[train]) if code >= 0]
        if unseen:
            logger.warning(
                "fold %s holds out images of the %s %s and trains on none: they cannot be predicted "
                "right. Use other folds (--stratify %s), or remove what is too rare",
                name,
                column,
                some_of(unseen, 5),
                column,
            )


def _part_folds(table: Any) -> list[Fold]:
    """The folds that parts make: one that holds a part out, or one for each part."""
    held_out = table.attrs[HELD_OUT]
    if held_out is None:
        return column_folds(table[FOLD])
    is_held_out = np.asarray(table[FOLD] == held_out)
    return [(np.flatnonzero(~is_held_out), np.flatnonzero(is_held_out))]


def group_folds(
    groups: Sequence[Hashable],
    n_folds: int,
    seed: int,
    *,
    stratify: Sequence[Hashable] | None = None,
) -> list[Fold]:
    """Split rows into folds of about equal size; rows of one group are validated in one fold.

    Random row folds overstate a model when images of one day or field look alike.

    Args:
        groups: one label per row. Where all are numbers, also as text, they are compared as
            numbers: 1, 1.0 and "01" are one group. Texts are compared without spaces around them.
        n_folds: 2 or more.
        seed: which split.
        stratify: one class per row, to give each fold about the same share of every class
            (scikit-learn's ``StratifiedGroupKFold``); None = folds of about equal size only.

    Returns:
        ``(train, valid)`` row indices per fold, ascending; every row is in exactly one ``valid``.

    Raises:
        ConfigError: if ``n_folds`` is below 2.
        DataError: if there are fewer groups than folds, a row has no group or no class, or a fold
            would be empty.
        ImportError: for ``stratify`` without scikit-learn, which the extra ``train`` brings.

    Examples:
        >>> [valid.tolist() for _, valid in group_folds(["a", "a", "b", "c"], 2, seed=0)]
        [[0, 1], [2, 3]]
    """
    converted("n_folds", n_folds, Annotated[int, Meta(ge=2)])
    converted("seed", seed, Seed)
    of_row = _numbered(groups, "group")
    sizes = np.bincount(of_row)
    if len(sizes) < n_folds:
        raise DataError(
            f"{len(sizes)} groups cannot fill {n_folds} folds; use fewer folds or a finer group "
            "column"
        )
    if stratify is not None:
        return _stratified(of_row, _numbered(stratify, "class"), n_folds, seed)
    shuffled = np.random.RandomState(seed).permutation(len(sizes))
    fold_of, filled = np.zeros(len(sizes), dtype=np.int64), np.zeros(n_folds, dtype=np.int64)
    # the largest first, to the emptiest fold
    for group in shuffled[np.argsort(-sizes[shuffled], kind="stable")]:
        fold_of[group] = filled.argmin()
        filled[fold_of[group]] += sizes[group]
    return _held_out(fold_of[of_row], n_folds)


def column_folds(labels: Any) -> list[Fold]:
    """Return the folds of a column: the rows of each distinct label are held out once, in the labels' order.

    Numbers are sorted as numbers.

    Raises:
        DataError: for fewer than two labels, or a row without one.

    Examples:
        >>> [valid.tolist() for _, valid in column_folds(["10", "2", "2", "10"])]
        [[1, 2], [0, 3]]
    """
    same = _same(labels, "fold")
    distinct = sorted(set(same), key=str)
    if len(distinct) < 2:
        raise DataError(
            f"all {len(same)} rows are of one fold, {distinct}; expected two different labels or "
            "more"
        )
    with suppress(TypeError, ValueError):  # texts stay sorted as texts
        distinct = sorted(distinct, key=float)
    return _held_out(np.array([distinct.index(label) for label in same]), len(distinct))


def _strata(table: Any, column: str) -> list[Any]:
    """One class per row: those of a column, or of numbers the quantile they are in."""
    if column in OWN_COLUMNS or column not in table:
        known = ", ".join(name for name in table.columns if name not in OWN_COLUMNS)
        raise ConfigError(f"folds.stratify is {column!r}; expected one of the targets {known}")
    if class_names(table, column):
        return list(table[column].cat.codes)
    values = column_numbers(table, column)
    return list(np.searchsorted(np.nanquantile(values, np.linspace(0, 1, _BINS + 1)[1:-1]), values))


def _stratified(of_row: _Rows, classes: _Rows, n_folds: int, seed: int) -> list[Fold]:
    if len(classes) != len(of_row):
        raise DataError(
            f"stratify holds {counted(len(classes), 'class label')} for "
            f"{counted(len(of_row), 'row')}; expected one for each"
        )
    try:
        from sklearn.model_selection import StratifiedGroupKFold
    except ImportError as error:
        raise missing_extra("scikit-learn", "train") from error
    try:
        folds = [
            *StratifiedGroupKFold(n_folds, shuffle=True, random_state=seed).split(
                of_row, classes, of_row
            )
        ]
    except ValueError as error:  # too few rows of every class
        raise DataError(
            f"the rows cannot be stratified: {error} Use fewer folds, or do not stratify"
        ) from error
    for number, (_, valid) in enumerate(folds):
        if not len(valid):
            raise DataError(
                f"fold {number} of {n_folds} would be empty; use fewer folds, or do not stratify"
            )
    return folds


def _held_out(row_fold: _Rows, n_folds: int) -> list[Fold]:
    return [
        (np.flatnonzero(row_fold != fold), np.flatnonzero(row_fold == fold))
        for fold in range(n_folds)
    ]


def _numbered(labels: Any, what: str) -> _Rows:
    """The labels as 0, 1, ... in the order in which they occur."""
    same = _same(labels, what)
    number = {label: place for place, label in enumerate(dict.fromkeys(same))}
    return np.array([number[label] for label in same], dtype=np.int64)


def _same(labels: Any, what: str) -> list[Any]:
    every = labels.tolist() if hasattr(labels, "tolist") else list(labels)
    return same_labels(every, [f"row {row}" for row in range(len(every))], what)


def map_task(config: TrainConfig, table: Any) -> tuple[str, str]:
    """Return name and kind of the task of a config's masks; numbers have the name of their column or folder.

    Raises:
        ConfigError: if the config has several such tasks, a segmentation of numbers, or no masks.
    """
    labels, of_numbers = config.data.labels, config.data.label_kind == "numbers"
    kinds = [(name, str(task.kind)) for name, task in config.tasks.items() if task.kind in MAPS]
    names = ", ".join(name for name, _ in kinds)
    if len(kinds) > 1:
        raise ConfigError(
            f"tasks {names} are all per patch, and there is one column of masks; keep one of them"
        )
    if kinds and labels is None:
        raise ConfigError(
            f"task {names} is per patch, and no masks are named; name them with data.labels "
            "(--labels)"
        )
    if of_numbers and "segmentation" in dict(kinds).values():
        raise ConfigError(
            f"task {names} is a segmentation, and data.label_kind is 'numbers'; write 'classes'"
        )
    if kinds:
        return kinds[0]
    if of_numbers:
        name = str(labels)
        folder = Path(name)
        if folder.is_dir():
            name = folder.name
        return _free_name(name, config, table), "dense"
    if target_columns(config, table)[0]:
        return _free_name("cells", config, table), "dense"
    return _free_name("segmentation", config, table), "segmentation"


def _free_name(name: str, config: TrainConfig, table: Any) -> str:
    """A name for the task of masks; ``name map`` where a column's task or a table's column is called so."""
    taken = {*column_tasks(config, table), *TABLE_COLUMNS}
    while name in taken:
        name += " map"
    return name


@dataclass(frozen=True)
class TableMasks:
    """The masks of a table, of the images that have one.

    Attributes:
        rows: the row of each mask.
        files: each mask, a file or an array.
        image_sizes: (height, width) of the image of each mask.
    """

    rows: list[int]
    files: list[Any]
    image_sizes: list[tuple[int, int]]


def masks_of(table: Any) -> TableMasks:
    """Return the masks of a table that has a column of them.

    Images that are turned by their EXIF tag are named in a warning where the size of a mask does not
    tell whether it is turned, and so are masks that their own tag turns otherwise, or that lie
    elsewhere on the ground than their images.

    Raises:
        DataError: if an image with a mask cannot be read.
    """
    masks = TableMasks(rows=[], files=[], image_sizes=[])
    images = []
    turned = []
    turned_otherwise_masks = []
    for row, (image, file) in enumerate(zip(table[IMAGES], table[LABELS], strict=True)):
        if is_missing(file):
            continue
        size, orientation = read_size_and_orientation(image)
        masks.rows.append(row)
        masks.files.append(file)
        masks.image_sizes.append(size)
        images.append(image)
        own_orientation = read_stated_orientation(file)
        if own_orientation not in (1, orientation) and size_hides_turn(size, own_orientation):
            turned_otherwise_masks.append(file)
        elif own_orientation != orientation and size_hides_turn(size, orientation):
            turned.append(image)
    if turned:
        logger.warning("%s", hidden_turns(turned, "masks"))
    if turned_otherwise_masks:
        logger.warning("%s", turned_otherwise(turned_otherwise_masks))
    warn_of_other_places(images, masks.files, masks.image_sizes, "mask")
    return masks


def reader_of_classes(classes: MaskClasses, nodata: Sequence[float]) -> DenseLabels:
    """Return what reads masks as these classes.

    Args:
        classes: those of the masks.
        nodata: values in masks without a label.
    """
    return DenseLabels(classes=len(classes.names), nodata=nodata, class_values=classes.stored)


@dataclass(frozen=True)
class Maps:
    """The masks of a table, averaged over the patches of their images; n images, K classes or 1.

    Attributes:
        names: of the classes; none for numbers.
        values: (n, K, rows, cols) float32 in original units, of classes their shares of the patch;
            NaN where unknown.
        weight: (n, rows, cols) float32, how many labelled pixels a patch has.
        pixels: returns the classes (1, height, width) of a row's prepared image, -1 = none; without
            a mask (1, 1, 1).
    """

    names: tuple[str, ...]
    values: Tensor
    weight: Tensor
    pixels: Callable[[int], Tensor]


def read_maps(data: DataConfig, table: Any, preprocess: Preprocessing) -> Maps:
    """Read the masks of a table and average them over the patches.

    Args:
        data: how the masks are read.
        table: of :func:`table_of`.
        preprocess: what prepares the images.

    Raises:
        DataError: if a mask cannot be used, has another size than its image, or comes to another
            grid than others; if the masks show fewer than two classes, or it is open what their
            values mean.
    """
    masks = masks_of(table)
    names = data.classes
    if data.label_kind == "numbers":
        reader = DenseLabels(scale=data.scale, offset=data.offset, nodata=data.nodata)
    else:
        survey = survey_masks(masks.files, data.nodata, masks.image_sizes)
        classes = mask_classes(survey, data.classes, data.class_values)
        _check_shown(classes, survey)
        warn_of_class_lists(masks.files, classes.names, classes.stored)
        _warn_of_equal_masks(table, masks, survey)
        names = classes.names
        reader = reader_of_classes(classes, data.nodata)
    mean, counts = reader.cells(masks.files, preprocess, masks.image_sizes)
    values = torch.full((len(table), *mean.shape[1:]), torch.nan)
    values[masks.rows] = mean.masked_fill(counts[:, None] == 0, torch.nan)
    weight = torch.zeros((len(table), *counts.shape[1:]))
    weight[masks.rows] = counts
    file_of_row = dict(zip(masks.rows, masks.files, strict=True))

    def pixels(row: int) -> Tensor:
        if row not in file_of_row:
            return torch.full((1, 1, 1), -1)
        return reader.indices([file_of_row[row]], preprocess)

    return Maps(names, values, weight, pixels)


def _warn_of_equal_masks(table: Any, masks: TableMasks, survey: MaskSurvey) -> None:
    """Count the masks of several classes that are that of another image once more."""
    images = list(table[IMAGES])
    image_of = {}
    for row, file, surveyed in zip(masks.rows, masks.files, survey.files, strict=True):
        if len(surveyed.pixels) > 1 and isinstance(file, str | Path):
            image_of[Path(file)] = images[row]
    warn_of_equal_masks(image_of)


def _check_shown(classes: MaskClasses, survey: MaskSurvey) -> None:
    """Check that masks show two classes or more, and warn of those that they do not show."""
    shown = [name for name, pixels in classes.pixels.items() if pixels]
    if len(shown) < 2:
        check_not_in_alpha(survey)
        raise DataError(
            f"the masks hold the class {shown[0]!r} alone; expected two classes or more"
            f"{survey.marked_words()}"
        )
    warn_of_empty_classes(
        classes.pixels,
        "pixel",
        "the masks",
        remedy=f"They hold {some_of_numbers(survey.pixels)}; leave a class out that is not in "
        "them, or name the values of the classes (--class-values)",
    )
