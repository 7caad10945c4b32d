"""Step 5 of a run: folds of whole groups, stratified, from a column, or given as rows."""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from dinoneck.data.cells import FOLD, same_labels
from dinoneck.errors import ConfigError, DataError, missing_extra
from dinoneck.training.config import TrainConfig
from dinoneck.training.table import class_names, groups_of, target_columns

_Rows = np.ndarray[Any, np.dtype[np.int64]]
Fold = tuple[_Rows, _Rows]
_BINS = 5  # of a column of numbers that folds are stratified by


def folds_of(config: TrainConfig, table: Any, folds: Sequence[tuple[Any, Any]] | None = None) -> dict[int, Fold]:
    """Return the folds to train by their numbers: ``(train, valid)`` rows of the table.

    Args:
        config: its group ``folds``.
        table: of :func:`dinoneck.training.table.table_of`.
        folds: rows in the place of those that the config describes.

    Raises:
        ConfigError: if no fold has the number ``folds.only``, or ``folds.stratify`` is not a target.
        DataError: if there are fewer groups than folds, or given rows do not fit.
    """
    own, count = config.folds, len(table)
    if folds is not None:
        every = check_folds(folds, count)
    elif own.column is not None:
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
    for what, value, least in (("n_folds", n_folds, 2), ("seed", seed, 0)):
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or not least <= value < 1 << 32:
            raise ConfigError(f"{what} is {value!r}; expected {least} or more, a whole number")
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


def check_folds(folds: Sequence[tuple[Any, Any]], n: int) -> list[Fold]:
    """Return folds that were given as ``(train, valid)`` rows, after checking them; their order is kept.

    Rows that no fold holds out are allowed, as in splits by time.

    Raises:
        DataError: for no folds, numbers that are not rows, and rows that are held out twice or trained on as well.

    Examples:
        >>> check_folds([([0, 1], [2])], 3)
        [(array([0, 1]), array([2]))]
    """
    checked, held_out = [], np.zeros(n, dtype=np.int64)
    for number, sides in enumerate(folds):
        train, valid = (np.asarray(rows) for rows in sides)
        both = np.concatenate([train, valid])
        whole = min(len(train), len(valid)) > 0 and both.dtype.kind in "iu" and both.min() >= 0 and both.max() < n
        if not whole or len(np.unique(both)) < len(both):
            raise DataError(f"fold {number} has the rows {train} and {valid}; expected different ones of 0 ... {n - 1}")
        held_out[valid] += 1
        checked.append((train.astype(np.int64), valid.astype(np.int64)))
    if held_out.max(initial=0) != 1:
        raise DataError(f"{len(checked)} folds hold out row {held_out.argmax()} {held_out.max()} times; expected once")
    return checked


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
    row_fold = np.zeros(len(of_row), np.int64)
    splitter = StratifiedGroupKFold(n_folds, shuffle=True, random_state=seed)
    try:
        with warnings.catch_warnings():  # a class with fewer rows than folds: the run warns where that matters
            warnings.filterwarnings("ignore", "The least populated class")
            for fold, (_, valid) in enumerate(splitter.split(of_row, classes, of_row)):
                row_fold[valid] = fold
    except ValueError as error:  # every class has fewer rows than there are folds
        raise DataError(f"the rows cannot be stratified ({error}); use fewer folds, or do not stratify") from error
    if len(np.unique(row_fold)) < n_folds:
        raise DataError(f"one of {n_folds} folds would be empty; use fewer folds, or do not stratify")
    return _held_out(row_fold, n_folds)


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
