"""Folds that never tear a group apart."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from dinoneck.errors import ConfigError, DataError

Fold = tuple[np.ndarray[Any, np.dtype[np.int64]], np.ndarray[Any, np.dtype[np.int64]]]


def group_folds(groups: Sequence[Hashable], n_folds: int, seed: int) -> list[Fold]:
    """Split rows into folds of about equal size; rows of one group are validated in one fold.

    Random row folds overstate a model when photos of one day or field look alike.

    Args:
        groups: one label per row.
        n_folds: 2 or more.
        seed: which split.

    Returns:
        ``(train, valid)`` row indices per fold, ascending; every row is in exactly one ``valid``.

    Raises:
        ConfigError: if ``n_folds`` is below 2.
        DataError: if there are fewer groups than folds.

    Examples:
        >>> [valid.tolist() for _, valid in group_folds(["a", "a", "b", "c"], 2, seed=0)]
        [[0, 1], [2, 3]]
    """
    for what, value, least in (("n_folds", n_folds, 2), ("seed", seed, 0)):
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or not least <= value < 1 << 32:
            raise ConfigError(f"{what} is {value!r}; expected {least} or more, a whole number")
    groups = groups.tolist() if hasattr(groups, "tolist") else list(groups)
    if nameless := [row for row, label in enumerate(groups) if label != label]:
        raise DataError(f"row {nameless[0]} has no group (NaN); {len(nameless)} such rows. Name their groups")
    labels = list(dict.fromkeys(groups))
    if len(labels) < n_folds:
        raise DataError(f"{len(labels)} groups cannot fill {n_folds} folds; use fewer folds or a finer group column")
    number = {label: place for place, label in enumerate(labels)}
    of_row = np.array([number[label] for label in groups])
    sizes = np.bincount(of_row)
    shuffled = np.random.RandomState(seed).permutation(len(labels))
    fold_of, filled = np.zeros(len(labels), dtype=np.int64), np.zeros(n_folds, dtype=np.int64)
    for group in shuffled[np.argsort(-sizes[shuffled], kind="stable")]:  # the largest first, to the emptiest fold
        fold_of[group] = filled.argmin()
        filled[fold_of[group]] += sizes[group]
    row_fold = fold_of[of_row]
    return [(np.flatnonzero(row_fold != fold), np.flatnonzero(row_fold == fold)) for fold in range(n_folds)]
