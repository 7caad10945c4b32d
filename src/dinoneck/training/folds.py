"""Folds: of whole groups, stratified, from a column, or given as rows."""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from dinoneck.data.cells import same_labels
from dinoneck.errors import ConfigError, DataError, missing_extra

_Rows = np.ndarray[Any, np.dtype[np.int64]]
Fold = tuple[_Rows, _Rows]
_SIDES = ("train", "valid")


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


def folds_of(labels: Sequence[Any]) -> list[Fold]:
    """Return the folds of a column: the rows of each distinct label are held out once, in the labels' order.

    Args:
        labels: one per row, compared as those of :func:`group_folds`; where all are numbers, sorted as numbers.

    Returns:
        ``(train, valid)`` rows per label, ascending.

    Raises:
        DataError: for fewer than two labels, or a row without one.

    Examples:
        >>> [valid.tolist() for _, valid in folds_of(["10", "2", "2", "10"])]
        [[1, 2], [0, 3]]
    """
    labels = _same(labels, "fold")
    distinct = sorted(set(labels), key=str)
    if len(distinct) < 2:
        raise DataError(f"all {len(labels)} rows are of one fold, {distinct}; expected two different labels or more")
    with suppress(TypeError, ValueError):  # texts stay sorted as texts
        distinct = sorted(distinct, key=float)
    number = {label: fold for fold, label in enumerate(distinct)}
    return _held_out(np.array([number[label] for label in labels]), len(number))


def check_folds(folds: Sequence[tuple[Any, Any]], n: int) -> list[Fold]:
    """Return folds that were given as ``(train, valid)`` rows, after checking them; their order is kept.

    Rows that no fold holds out are allowed, as in splits by time.

    Args:
        folds: ``(train, valid)`` row numbers.
        n: rows of the table.

    Raises:
        DataError: for no folds, empty sides, numbers that are not rows, rows on both sides of a fold or twice on one,
            and rows that two folds hold out.

    Examples:
        >>> check_folds([([0, 1], [2])], 3)
        [(array([0, 1]), array([2]))]
    """
    if not len(folds):
        raise DataError("there are no folds; expected one (train, valid) pair of row numbers or more")
    held_out = np.full(n, -1)
    checked = []
    for number, sides in enumerate(folds):
        if len(sides) != 2:
            raise DataError(f"fold {number} has {len(sides)} parts; expected two, (train, valid) row numbers")
        train, valid = (
            _rows(rows, f"{side} rows of fold {number}", n) for side, rows in zip(_SIDES, sides, strict=True)
        )
        if len(both := np.intersect1d(train, valid)):
            raise DataError(f"fold {number} trains on row {both[0]} and holds it out; {len(both)} such rows")
        if len(again := valid[held_out[valid] >= 0]):
            raise DataError(
                f"row {again[0]} is held out by folds {held_out[again[0]]} and {number}; each row is predicted once: "
                "leave it in one of them"
            )
        held_out[valid] = number
        checked.append((train, valid))
    return checked


def _stratified(of_row: _Rows, classes: _Rows, n_folds: int, seed: int) -> list[Fold]:
    try:
        from sklearn.model_selection import StratifiedGroupKFold
    except ImportError as error:
        raise missing_extra("scikit-learn", "train") from error
    if len(classes) != len(of_row):
        raise DataError(f"stratify holds {len(classes)} classes for {len(of_row)} rows; expected one per row")
    row_fold = np.full(len(of_row), -1)
    splitter = StratifiedGroupKFold(n_folds, shuffle=True, random_state=seed)
    try:
        with warnings.catch_warnings():  # a class with fewer rows than folds: the run warns where that matters
            warnings.filterwarnings("ignore", "The least populated class")
            for fold, (_, valid) in enumerate(splitter.split(of_row, classes, of_row)):
                row_fold[valid] = fold
    except ValueError as error:  # every class has fewer rows than there are folds
        raise DataError(f"the rows cannot be stratified ({error}); use fewer folds, or do not stratify") from error
    if len(empty := np.setdiff1d(np.arange(n_folds), row_fold)):
        raise DataError(f"fold {empty[0]} of {n_folds} would be empty; use fewer folds, or do not stratify")
    return _held_out(row_fold, n_folds)


def _held_out(row_fold: _Rows, n_folds: int) -> list[Fold]:
    return [(np.flatnonzero(row_fold != fold), np.flatnonzero(row_fold == fold)) for fold in range(n_folds)]


def _numbered(labels: Sequence[Hashable], what: str) -> _Rows:
    """The labels as 0, 1, ... in the order in which they occur."""
    labels = _same(labels, what)
    number = {label: place for place, label in enumerate(dict.fromkeys(labels))}
    return np.array([number[label] for label in labels], dtype=np.int64)


def _same(labels: Any, what: str) -> list[Any]:
    every = labels.tolist() if hasattr(labels, "tolist") else list(labels)
    return same_labels(every, [f"row {row}" for row in range(len(every))], what)


def _rows(rows: Any, what: str, n: int) -> _Rows:
    rows = np.asarray(rows)
    if rows.ndim != 1 or not len(rows) or rows.dtype.kind not in "iu":
        raise DataError(f"the {what} are {rows.dtype} of shape {rows.shape}; expected row numbers, one or more")
    if rows.min() < 0 or rows.max() >= n:
        raise DataError(f"the {what} reach from {rows.min()} to {rows.max()}; expected rows 0 to {n - 1}")
    if len(np.unique(rows)) < len(rows):
        raise DataError(f"the {what} hold a row twice; name each row once")
    found: _Rows = rows.astype(np.int64)
    return found
