"""Steps 2 and 5 of a run: the table of its images, their labels per patch, and the folds."""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from msgspec import Meta
from torch import Tensor

from dinoneck.data.cells import FOLD, GROUP, IMAGES, LABELS, OWN_COLUMNS, is_missing, same_labels
from dinoneck.data.decoding import read_image_size
from dinoneck.data.labels import DenseLabels, count_classes
from dinoneck.data.pasture import Pasture
from dinoneck.data.preprocessing import Preprocessing
from dinoneck.errors import ConfigError, DataError, did_you_mean, missing_extra
from dinoneck.training.config import TrainConfig
from dinoneck.training.recipe import Seed, converted

MAPS = ("dense", "segmentation")
_Rows = np.ndarray[Any, np.dtype[np.int64]]
Fold = tuple[_Rows, _Rows]
_BINS = 5  # of a column of numbers that folds are stratified by


def table_of(config: TrainConfig, frame: Any = None) -> Any:
    """Return the table that a config describes.

    Args:
        config: the run.
        frame: a pandas DataFrame in the place of ``data.csv``; one of :func:`dinoneck.data.read_table` as it is, with
            the columns that the config names.

    Raises:
        ConfigError: if the config names no data, or what belongs to another kind of data.
        DataError: if the table or the folders cannot be used.
    """
    data, folds = config.data, config.folds
    if data.boxes is not None:
        raise ConfigError("data.boxes names boxes; detectors are trained with dinoneck.detection.train_detector")
    if frame is not None and data.csv is not None:
        raise ConfigError(f"data.csv is {data.csv!r} and a table is given; leave one of them out")
    if data.csv is None and frame is None:
        return _without_csv(config)
    targets, auxiliary = _named(config)
    if IMAGES in getattr(frame, "columns", ()):
        return _selected(config, frame, targets, auxiliary)
    from dinoneck.data.tables import read_table

    reads = data.store is None or data.labels is not None or data.images is not None
    return read_table(
        data.csv if frame is None else frame,
        (data.images or Path(data.csv or ".").parent) if reads else None,
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


def target_columns(config: TrainConfig, table: Any) -> tuple[list[str], list[str]]:
    """Return the columns of a table that are scored as targets, and those that only help training."""
    helping = _named(config)[1]
    columns = [name for name in table.columns if name not in OWN_COLUMNS]
    return [name for name in columns if name not in helping], [name for name in columns if name in helping]


def class_names(table: Any, column: str) -> tuple[str, ...]:
    """Return the class names of a column; none for numbers."""
    return tuple(table[column].cat.categories) if hasattr(table[column], "cat") else ()


def groups_of(table: Any) -> list[str] | None:
    """Return the group of every image; None = every image is its own."""
    return list(table[GROUP]) if GROUP in table else None


def _named(config: TrainConfig) -> tuple[list[str], list[str]]:
    """The columns that the config names as targets, and as auxiliary ones."""
    own = {name: task for name, task in config.tasks.items() if task.kind not in MAPS}
    columns = [(column, task.auxiliary) for name, task in own.items() for column in task.columns or (name,)]
    helping = dict.fromkeys((*config.data.aux_targets, *(column for column, auxiliary in columns if auxiliary)))
    targets = dict.fromkeys((*config.data.targets, *(column for column, auxiliary in columns if not auxiliary)))
    return [name for name in targets if name not in helping], list(helping)


def _selected(config: TrainConfig, table: Any, targets: list[str], auxiliary: list[str]) -> Any:
    """The columns of a table that was read already that the config names; all where it names no targets."""
    named = [*targets, *auxiliary, *(FOLD for _ in [config.folds.column] if _ is not None)]
    named += [GROUP] if config.folds.group else []
    columns = [*map(str, table.columns)]
    for name in named:
        if name not in table:
            raise ConfigError(
                f"the config names column {name!r}; the table has {', '.join(columns)}.{did_you_mean(name, columns)}"
            )
    if not config.data.targets:
        return table
    dropped = [name for name in table.columns if name not in (*OWN_COLUMNS, *targets, *auxiliary)]
    return table.drop(columns=dropped)


def _without_csv(config: TrainConfig) -> Any:
    """The table of folders, or of drawn images, where no CSV is named."""
    data = config.data
    if data.images is None:
        return Pasture(seed=0).table(range(data.pasture))
    from dinoneck.data.tables import read_folders, read_masks

    return read_folders(data.images) if data.labels is None else read_masks(data.images, data.labels)


def folds_of(config: TrainConfig, table: Any) -> dict[int, Fold]:
    """Return the folds to train by their numbers: ``(train, valid)`` rows of the table.

    Args:
        config: its group ``folds``.
        table: of :func:`table_of`.

    Raises:
        ConfigError: if no fold has the number ``folds.only``, or ``folds.stratify`` is not a target.
        DataError: if there are fewer groups than folds.
    """
    own, count = config.folds, len(table)
    if own.column is not None:
        every = column_folds(table[FOLD])
    elif own.count == 1:
        every = [(np.arange(count), np.arange(0))]
    else:
        stratify = None if own.stratify is None else _strata(table, own.stratify)
        every = group_folds(groups_of(table) or range(count), own.count, config.optim.seed, stratify=stratify)
    if own.only is not None and own.only >= len(every):
        raise ConfigError(f"fold is {own.only} and there are {len(every)} folds; expected 0 ... {len(every) - 1}")
    return {number: fold for number, fold in enumerate(every) if own.only in (None, number)}


def group_folds(
    groups: Sequence[Hashable], n_folds: int, seed: int, *, stratify: Sequence[Hashable] | None = None
) -> list[Fold]:
    """Split rows into folds of about equal size; rows of one group are validated in one fold.

    Random row folds overstate a model when images of one day or field look alike.

    Args:
        groups: one label per row. Where all are numbers, also as text, they are compared as numbers: 1, 1.0 and "01"
            are one group. Texts are compared without spaces around them.
        n_folds: 2 or more.
        seed: which split.
        stratify: one class per row, to give each fold about the same share of every class (scikit-learn's
            ``StratifiedGroupKFold``); None = folds of about equal size only.

    Returns:
        ``(train, valid)`` row indices per fold, ascending; every row is in exactly one ``valid``.

    Raises:
        ConfigError: if ``n_folds`` is below 2.
        DataError: if there are fewer groups than folds, a row has no group or no class, or a fold would be empty.
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
        raise DataError(f"{len(sizes)} groups cannot fill {n_folds} folds; use fewer folds or a finer group column")
    if stratify is not None:
        return _stratified(of_row, _numbered(stratify, "class"), n_folds, seed)
    shuffled = np.random.RandomState(seed).permutation(len(sizes))
    fold_of, filled = np.zeros(len(sizes), dtype=np.int64), np.zeros(n_folds, dtype=np.int64)
    for group in shuffled[np.argsort(-sizes[shuffled], kind="stable")]:  # the largest first, to the emptiest fold
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
        raise DataError(f"all {len(same)} rows are of one fold, {distinct}; expected two different labels or more")
    with suppress(TypeError, ValueError):  # texts stay sorted as texts
        distinct = sorted(distinct, key=float)
    return _held_out(np.array([distinct.index(label) for label in same]), len(distinct))


def _strata(table: Any, column: str) -> list[Any]:
    """One class per row: those of a column, or of numbers the quantile they are in."""
    known = [name for names in target_columns(TrainConfig(), table) for name in names]
    if column not in known:
        raise ConfigError(f"folds.stratify is {column!r}; expected one of the targets {', '.join(known)}")
    if class_names(table, column):
        return list(table[column].cat.codes)
    values = np.asarray(table[column], np.float64)
    return list(np.searchsorted(np.nanquantile(values, np.linspace(0, 1, _BINS + 1)[1:-1]), values))


def _stratified(of_row: _Rows, classes: _Rows, n_folds: int, seed: int) -> list[Fold]:
    try:
        from sklearn.model_selection import StratifiedGroupKFold
    except ImportError as error:
        raise missing_extra("scikit-learn", "train") from error
    if len(classes) != len(of_row):
        raise DataError(f"stratify holds {len(classes)} classes for {len(of_row)} rows; expected one per row")
    splitter = StratifiedGroupKFold(n_folds, shuffle=True, random_state=seed)
    try:
        with warnings.catch_warnings():  # a class with fewer rows than folds: the run warns where that matters
            warnings.filterwarnings("ignore", "The least populated class")
            folds = [*splitter.split(of_row, classes, of_row)]
    except ValueError as error:  # every class has fewer rows than there are folds
        raise DataError(f"the rows cannot be stratified ({error}); use fewer folds, or do not stratify") from error
    if not all(len(valid) for _, valid in folds):
        raise DataError(f"one of {n_folds} folds would be empty; use fewer folds, or do not stratify")
    return folds


def _held_out(row_fold: _Rows, n_folds: int) -> list[Fold]:
    return [(np.flatnonzero(row_fold != fold), np.flatnonzero(row_fold == fold)) for fold in range(n_folds)]


def _numbered(labels: Any, what: str) -> _Rows:
    """The labels as 0, 1, ... in the order in which they occur."""
    same = _same(labels, what)
    number = {label: place for place, label in enumerate(dict.fromkeys(same))}
    return np.array([number[label] for label in same], dtype=np.int64)


def _same(labels: Any, what: str) -> list[Any]:
    every = labels.tolist() if hasattr(labels, "tolist") else list(labels)
    return same_labels(every, [f"row {row}" for row in range(len(every))], what)


@dataclass(frozen=True)
class Maps:
    """The labels of n images on their patch grid.

    Attributes:
        name: of the task.
        kind: of the task.
        values: (n, K, rows, cols) float32 in original units, of classes their shares of the patch; NaN where unknown.
        weight: (n, rows, cols) float32, how many labelled pixels a patch has; 0 = unknown.
        labels: names of the K outputs; empty = numbered.
        files: the label of each image, None where there is none.
        how: how they are read.
        preprocess: how the images are prepared.
    """

    name: str
    kind: Literal["dense", "segmentation"]
    values: Tensor
    weight: Tensor
    labels: tuple[str, ...]
    files: list[Any]
    how: DenseLabels
    preprocess: Preprocessing

    def pixels(self, row: int) -> Tensor:
        """Return the classes (1, height, width) of a prepared image; -1 = none, also without a label (1, 1, 1)."""
        if self.files[row] is None:
            return torch.full((1, 1, 1), -1)
        return self.how.indices([self.files[row]], self.preprocess)

    def indices(self, size: Sequence[int]) -> Tensor:
        """Return the classes of all images on a grid (n, *size), int64; -1 = none."""
        pixels = (self.pixels(row)[None].float() for row in range(len(self.files)))
        return torch.cat([F.interpolate(own, tuple(size), mode="nearest-exact")[0].long() for own in pixels])

    def means(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Return the mean of every output over the image's labelled pixels, (n, K), NaN without a label."""
        weight = self.weight[:, None].double()
        sums = (self.values.nan_to_num().double() * weight).sum(dim=(2, 3))
        found: np.ndarray[Any, np.dtype[np.float64]] = (sums / weight.sum(dim=(2, 3))).numpy()
        return found


def map_task(config: TrainConfig, table: Any) -> tuple[str, str]:
    """Return name and kind of the task of a config's masks; numbers have the name of their column or folder.

    Raises:
        ConfigError: if the config has several such tasks.
    """
    kinds = [(name, task.kind) for name, task in config.tasks.items() if task.kind in MAPS]
    if len(kinds) > 1:
        names = ", ".join(name for name, _ in kinds)
        raise ConfigError(f"tasks {names} are all per patch, and there is one column of masks; keep one")
    if kinds:
        return kinds[0]
    if config.data.label_kind == "numbers":
        labels = str(config.data.labels)
        return (Path(labels).name if Path(labels).is_dir() else labels), "dense"
    return ("cells", "dense") if target_columns(config, table)[0] else ("segmentation", "segmentation")


def read_maps(config: TrainConfig, table: Any, preprocess: Preprocessing) -> Maps | None:
    """Read the masks that a config names and average them over the patches; None where it names none.

    Raises:
        ConfigError: if a task is per patch and no masks are named, or kinds contradict each other.
        DataError: if the table has no labels, or one cannot be used or has another size than its image.
    """
    data = config.data
    if data.labels is None:
        if names := [name for name, task in config.tasks.items() if task.kind in MAPS]:
            raise ConfigError(f"task {', '.join(names)} is per patch; name its masks with data.labels (--labels)")
        return None
    if LABELS not in table:
        raise ConfigError(f"data.labels is {data.labels!r}, and the table has no labels")
    files = [None if is_missing(label) else label for label in table[LABELS]]
    name, kind = map_task(config, table)
    if kind == "segmentation" and data.label_kind == "numbers":
        raise ConfigError(f"task {name!r} is a segmentation, and data.label_kind is 'numbers'; write 'classes'")
    labels, how = data.classes, DenseLabels(nodata=data.nodata)
    if data.label_kind == "classes":
        known = [label for label in files if label is not None]
        labels = labels or tuple(map(str, range(count_classes(known, data.nodata))))
        if len(labels) < 2:
            raise DataError(f"the masks hold the class {labels[0]} alone; expected two classes or more")
        how = DenseLabels(classes=len(labels), nodata=data.nodata)
    pairs = [
        (row, *how.cells(label, preprocess, [read_image_size(image)]))
        for row, (image, label) in enumerate(zip(table[IMAGES], files, strict=True))
        if label is not None
    ]
    shapes = {tuple(values.shape[1:]) for _, values, _ in pairs}
    if len(shapes) != 1:
        raise DataError(f"the labels come to different grids {sorted(shapes)}; give one size to all images (size=)")
    shape = shapes.pop()
    values, weight = torch.full((len(files), *shape), torch.nan), torch.zeros(len(files), *shape[1:])
    for row, own, counts in pairs:
        values[row], weight[row] = own[0].masked_fill(counts == 0, torch.nan), counts[0]
    return Maps(name, kind, values, weight, tuple(labels), files, how, preprocess)  # type: ignore[arg-type]
