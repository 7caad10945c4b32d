"""Step 5 of a run: the folds, drawn at random so that groups stay whole, or those of a column."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from msgspec import Meta

from dinoneck.data.cells import same_labels
from dinoneck.data.table import LabelSets, Table
from dinoneck.errors import ConfigError, DataError
from dinoneck.extras import missing_extra
from dinoneck.text import counted, some_of
from dinoneck.training.config import TrainConfig, TrainInstancesConfig
from dinoneck.training.fold_checks import (
    check_enough_groups,
    check_enough_images,
    check_fold_number,
    check_stratify,
)
from dinoneck.training.recipe import Seed, converted
from dinoneck.training.table import target_columns

logger = logging.getLogger(__name__)
Rows = np.ndarray[Any, np.dtype[np.int64]]
FoldRows = tuple[Rows, Rows]
"""``(train, valid)`` rows of a table."""
_BINS = 5  # of a column of numbers that folds are stratified by


@dataclass(frozen=True, eq=False)
class Fold:
    """Rows of a table to train on, and those that are held out.

    Attributes:
        number: of the fold; None = the fold of all images, which holds out none and is trained
            after the others, see :attr:`TrainConfig.trains_on_all`.
        train: rows to train on, ascending.
        valid: rows that are held out, ascending.
    """

    number: int | None
    train: Rows
    valid: Rows

    @classmethod
    def of_all_images(cls, num_images: int) -> Fold:
        """Return the fold that trains on all images."""
        train, valid = _all_images(num_images)
        return cls(number=None, train=train, valid=valid)

    @property
    def is_of_all_images(self) -> bool:
        """Whether it is the fold of all images."""
        return self.number is None

    @property
    def name(self) -> str:
        """Its name in files and tables."""
        return "all" if self.number is None else str(self.number)

    @property
    def title(self) -> str:
        """Its name in messages of a run, ``fold 0`` or ``the head of all images``."""
        if self.is_of_all_images:
            return "the head of all images"
        return f"fold {self.name}"

    def seed(self, base: int) -> int:
        """Return the seed of its head and of its training, of a run with the seed ``base``."""
        return base + (self.number or 0)


def folds_of(config: TrainConfig, table: Table) -> list[Fold]:
    """Return the folds to train, in the order in which they are trained.

    Warnings name groups that folds of a column share, and classes of which a fold holds out images
    and trains on none.

    Args:
        config: its group ``folds``.
        table: of :func:`dinoneck.training.table.table_of`.

    Raises:
        ConfigError: if no fold has the number ``folds.only``, or ``folds.stratify`` is not a
            target.
        DataError: if there are fewer groups than folds.
    """
    folds = _chosen(_every_fold(config, table), config.folds.only)
    for fold in folds:
        _warn_of_unseen_classes(config, table, fold)
    if config.trains_on_all and len(folds) > 1:
        folds.append(Fold.of_all_images(len(table)))
    return folds


def plain_folds(config: TrainInstancesConfig, num_images: int) -> list[Fold]:
    """Return the folds to train of images without groups, and last the fold of all images.

    Raises:
        ConfigError: if no fold has the number ``folds.only``.
        DataError: if there are fewer images than folds.
    """
    if config.folds.count == 1:
        return _chosen([_all_images(num_images)], config.folds.only)
    every_fold = group_folds(range(num_images), config.folds.count, config.optim.seed)
    folds = _chosen(every_fold, config.folds.only)
    if len(folds) > 1:
        folds.append(Fold.of_all_images(num_images))
    return folds


def _chosen(every_fold: Sequence[FoldRows], only: int | None) -> list[Fold]:
    """The folds with their numbers; with ``only`` the fold of this number alone."""
    check_fold_number(only, len(every_fold))
    folds = []
    for number, (train, valid) in enumerate(every_fold):
        if only in (None, number):
            folds.append(Fold(number, train, valid))
    return folds


def _all_images(num_images: int) -> FoldRows:
    """The rows of a fold that trains on all images and holds out none."""
    return np.arange(num_images), np.arange(0)


def _every_fold(config: TrainConfig, table: Table) -> list[FoldRows]:
    """The rows of all folds that a config describes."""
    settings = config.folds
    if settings.column is None and table.has_parts and settings.count != 1:
        return _folds_of_column(table)
    if settings.column is not None:
        folds = _folds_of_column(table)
        _warn_of_split_groups(settings.column, table.groups, folds)
        return folds
    if settings.count == 1:
        return [_all_images(len(table))]
    if table.has_groups:
        _warn_of_single_groups(table.groups)
    else:
        check_enough_images(len(table), settings.count)
    stratify = None if settings.stratify is None else _strata(table, settings.stratify)
    return group_folds(table.groups, settings.count, config.optim.seed, stratify=stratify)


def _warn_of_single_groups(groups: Sequence[Hashable]) -> None:
    """Log that groups keep nothing together, as each image has its own."""
    if len(set(groups)) == len(groups):
        logger.warning(
            "each of the %d images has a group of its own, such as %r, so that folds are drawn as "
            "without groups. Name the column of what images share, such as place or day",
            len(groups),
            str(groups[0]),
        )


def _warn_of_split_groups(
    column: str, groups: Sequence[Hashable], folds: Sequence[FoldRows]
) -> None:
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


def _warn_of_unseen_classes(config: TrainConfig, table: Table, fold: Fold) -> None:
    """Log the classes of which a fold holds out images and trains on none."""
    targets, auxiliary = target_columns(config, table.columns)
    for column in (*targets, *auxiliary):
        if column not in table.columns or not table.class_names(column):
            continue
        classes = table.classes(column)
        codes = classes.codes  # -1 = missing
        unseen_codes = np.setdiff1d(codes[fold.valid], codes[fold.train])
        unseen = [str(classes.names[code]) for code in unseen_codes if code >= 0]
        if unseen:
            logger.warning(
                "fold %s holds out images of the %s %s and trains on none: they cannot be predicted "
                "right. Use other folds (--stratify %s), or remove what is too rare",
                fold.name,
                column,
                some_of(unseen, 5),
                column,
            )


def _folds_of_column(table: Table) -> list[FoldRows]:
    """The folds of the table's column: one that holds a part out, or one for each label."""
    if table.folds is None:
        raise DataError(
            "the table says that its folds are parts of a data set, and has no column of folds; "
            "keep the column, or clear table.attrs"
        )
    if table.held_out is None:
        return column_folds(table.folds)
    is_held_out = np.array([fold == table.held_out for fold in table.folds])
    return [(np.flatnonzero(~is_held_out), np.flatnonzero(is_held_out))]


def group_folds(
    groups: Sequence[Hashable],
    n_folds: int,
    seed: int,
    *,
    stratify: Sequence[Hashable] | None = None,
) -> list[FoldRows]:
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
    group_of_row = _numbered(groups, "group")
    group_sizes = np.bincount(group_of_row)
    check_enough_groups(len(group_sizes), n_folds)
    if stratify is not None:
        return _stratified(group_of_row, _numbered(stratify, "class"), n_folds, seed)
    # the largest group first, to the emptiest fold; equal ones in random order
    shuffled = np.random.RandomState(seed).permutation(len(group_sizes))
    largest_first = shuffled[np.argsort(-group_sizes[shuffled], kind="stable")]
    fold_of_group = np.zeros(len(group_sizes), dtype=np.int64)
    fold_sizes = np.zeros(n_folds, dtype=np.int64)
    for group in largest_first:
        emptiest = fold_sizes.argmin()
        fold_of_group[group] = emptiest
        fold_sizes[emptiest] += group_sizes[group]
    return _held_out(fold_of_group[group_of_row], n_folds)


def column_folds(labels: Any) -> list[FoldRows]:
    """Return the folds of a column: the rows of each distinct label are held out once, in the labels' order.

    Numbers are sorted as numbers.

    Raises:
        DataError: for fewer than two labels, or a row without one.

    Examples:
        >>> [valid.tolist() for _, valid in column_folds(["10", "2", "2", "10"])]
        [[1, 2], [0, 3]]
    """
    row_labels = _comparable(labels, "fold")
    distinct = sorted(set(row_labels), key=str)
    if len(distinct) < 2:
        raise DataError(
            f"all {len(row_labels)} rows are of one fold, {distinct}; expected two different labels "
            "or more"
        )
    with suppress(TypeError, ValueError):  # texts stay sorted as texts
        distinct = sorted(distinct, key=float)
    fold_of_row = np.array([distinct.index(label) for label in row_labels])
    return _held_out(fold_of_row, len(distinct))


def _strata(table: Table, column: str) -> list[int]:
    """One class per row: those of a column, or of numbers the quantile they are in."""
    check_stratify(column, list(table.columns))
    if table.class_names(column):
        codes: list[int] = table.classes(column).codes.tolist()
        return codes
    if isinstance(table.columns[column], LabelSets):
        raise ConfigError(
            f"folds.stratify is {column!r}, which holds several labels an image; name a column of "
            "numbers or of classes"
        )
    values = table.numbers(column)
    inner_edges = np.linspace(0, 1, _BINS + 1)[1:-1]
    strata = np.searchsorted(np.nanquantile(values, inner_edges), values)
    if len({*strata.tolist()}) == 1:  # nearly all rows have the same number
        strata = np.searchsorted(np.unique(values), values)
    return list(strata)


def _stratified(group_of_row: Rows, classes: Rows, n_folds: int, seed: int) -> list[FoldRows]:
    if len(classes) != len(group_of_row):
        raise DataError(
            f"stratify holds {counted(len(classes), 'class label')} for "
            f"{counted(len(group_of_row), 'row')}; expected one for each"
        )
    try:
        from sklearn.model_selection import StratifiedGroupKFold
    except ImportError as error:
        raise missing_extra("scikit-learn", "train") from error
    splitter = StratifiedGroupKFold(n_folds, shuffle=True, random_state=seed)
    try:
        folds = list(splitter.split(group_of_row, classes, group_of_row))
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


def _held_out(fold_of_row: Rows, n_folds: int) -> list[FoldRows]:
    folds = []
    for number in range(n_folds):
        train = np.flatnonzero(fold_of_row != number)
        valid = np.flatnonzero(fold_of_row == number)
        folds.append((train, valid))
    return folds


def _numbered(labels: Any, what: str) -> Rows:
    """The labels as 0, 1, ... in the order in which they occur."""
    row_labels = _comparable(labels, what)
    number_of = {label: number for number, label in enumerate(dict.fromkeys(row_labels))}
    return np.array([number_of[label] for label in row_labels], dtype=np.int64)


def _comparable(labels: Any, what: str) -> list[Any]:
    """Labels of which those that mean the same are equal."""
    values = labels.tolist() if hasattr(labels, "tolist") else list(labels)
    return same_labels(values, [f"row {row}" for row in range(len(values))], what)
