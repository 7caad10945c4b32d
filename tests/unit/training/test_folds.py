"""Folds by class, and from a column."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from dinoneck.training import group_folds
from dinoneck.training.table import Fold, column_folds

N = 120
GROUPS = [f"g{row // 3}" for row in range(N)]
CLASSES = ["rare" if row // 3 % 10 == 0 else "common" for row in range(N)]


def held_out(folds: Sequence[Fold]) -> list[list[int]]:
    return [valid.tolist() for _, valid in folds]


def test_stratified_folds_share_every_class_and_keep_groups_whole() -> None:
    pytest.importorskip("sklearn")
    for seed in range(5):
        folds = group_folds(GROUPS, 4, seed, stratify=CLASSES)
        assert sorted(row for rows in held_out(folds) for row in rows) == list(range(N))
        for train, valid in folds:
            assert not {GROUPS[row] for row in train} & {GROUPS[row] for row in valid}
            assert sum(CLASSES[row] == "rare" for row in valid) == 3, "one of four rare groups"
        assert held_out(folds) == held_out(group_folds(GROUPS, 4, seed, stratify=CLASSES))
        renamed = [2 if label == "rare" else 9 for label in CLASSES]
        assert held_out(folds) == held_out(group_folds(GROUPS, 4, seed, stratify=renamed))
    plain = [
        sum(CLASSES[row] == "rare" for row in rows) for s in range(5) for rows in held_out(group_folds(GROUPS, 4, s))
    ]
    assert set(plain) != {3}


def test_stratified_folds_name_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.model_selection", None)
    with pytest.raises(ImportError, match=r"scikit-learn is not installed.*pip install 'dinoneck\[train\]'"):
        group_folds(GROUPS, 4, 0, stratify=CLASSES)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["10", "9", "10", "9.5"], [[1], [3], [0, 2]]),
        ([3, 1, 1], [[1, 2], [0]]),
        (np.array([1.0, 0.0, 1.0]), [[1], [0, 2]]),
        (["b", "a", "10"], [[2], [1], [0]]),
    ],
)
def test_a_column_gives_a_fold_per_label_in_order(labels: Any, expected: list[list[int]]) -> None:
    folds = column_folds(labels)
    assert held_out(folds) == expected
    assert all(sorted([*train, *valid]) == list(range(len(labels))) for train, valid in folds)
