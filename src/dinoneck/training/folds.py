"""Step 5 of a run: the folds, drawn at random so that groups stay whole, or those of a column."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Sequence
from contextlib import suppress
from typing import Annotated, Any

import numpy as np
from msgspec import Meta

from dinoneck.data.cells import FOLD, GROUP, OWN_COLUMNS, same_labels
from dinoneck.data.layout import HELD_OUT
from dinoneck.errors import ConfigError, DataError
from dinoneck.extras import missing_extra
from dinoneck.text import counted, some_of
from dinoneck.training.config import FoldsConfig, HeadConfig
from dinoneck.training.recipe import Seed, converted
from dinoneck.training.table import class_names, column_numbers, groups_of, target_columns

logger = logging.getLogger(__name__)
_Rows = np.ndarray[Any, np.dtype[np.int64]]
Fold = tuple[_Rows, _Rows]
_BINS = 5  # of a column of numbers that folds are stratified by


def folds_of(config: HeadConfig, table: Any) -> dict[int | None, Fold]:
    """Return the folds to train by their numbers: ``(train, valid)`` rows of the table; None = all images.

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
    groups = groups_of(table)
    chosen = config.folds
    if not isinstance(chosen, FoldsConfig):  # of objects, whose images have no groups
        chosen = FoldsConfig(count=chosen.count, only=chosen.only)
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


def _warn_of_unseen_classes(config: HeadConfig, table: Any, name: int | None, fold: Fold) -> None:
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
