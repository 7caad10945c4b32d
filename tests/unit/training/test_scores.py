"""Scores of out-of-fold predictions: pooled, per fold, per class and with intervals, recomputed row by row."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from dinoneck import DataError
from dinoneck.training import accuracy, confusion_matrix, f1_scores, mean_iou, r2
from dinoneck.training.metrics import group_draws
from dinoneck.training.scores import Split, class_scores, mask_scores, value_scores

N, LABELS = 60, ("soil", "Weiß-Klee (Trifolium)", "weed")
RANDOM = np.random.default_rng(0)
GROUPS = [f"g{row // 5}" for row in range(N)]
SPLIT = Split([np.arange(0, 25), np.arange(25, 40), np.arange(40, 55)], GROUPS)  # rows 55 ... are never held out
HELD_OUT = np.arange(55)


def resampled(rows: np.ndarray, score: Callable[[np.ndarray], float]) -> list[float]:
    """The interval of a score that is computed on the rows of one draw at a time."""
    names = list(dict.fromkeys(GROUPS[row] for row in rows))
    draws = np.random.default_rng(0).multinomial(len(names), np.full(len(names), 1 / len(names)), 1000)
    by_group = [[row for row in rows if GROUPS[row] == name] for name in names]
    chosen = [np.concatenate([by_group[i] * n for i, n in enumerate(draw) if n]).astype(int) for draw in draws]
    return np.quantile([score(each) for each in chosen], (0.025, 0.975)).tolist()


def test_scores_of_a_matrix_are_those_of_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    true, pred = RANDOM.integers(0, 4, 50), RANDOM.integers(0, 4, 50)
    true[true == 2] = 3  # class 2 is predicted and never true, class 4 occurs nowhere
    matrix = confusion_matrix(pred, true, 5)
    assert accuracy(matrix) == pytest.approx(metrics.accuracy_score(true, pred))
    macro, each = f1_scores(matrix)
    assert macro == pytest.approx(metrics.f1_score(true, pred, average="macro", zero_division=0))
    assert each[:4] == pytest.approx(metrics.f1_score(true, pred, average=None, zero_division=0))
    assert (each[2], each[4]) == (0.0, None)
    assert mean_iou(matrix)[1][:4] == pytest.approx(metrics.jaccard_score(true, pred, average=None, zero_division=0))
    for score in (accuracy, f1_scores):
        with pytest.raises(DataError, match="confusion matrix"):
            score(np.zeros((2, 2)))


def test_values_are_scored_pooled_per_fold_and_with_an_interval() -> None:
    true = RANDOM.normal(size=N) + 100
    pred = true + RANDOM.normal(size=N)
    true[[3, 30]], pred[[4, 59]] = math.nan, math.nan
    found = value_scores(pred, true, SPLIT)
    rows = np.setdiff1d(HELD_OUT, [3, 4, 30])
    assert found["r2"]["pooled"] == pytest.approx(r2(pred[rows], true[rows]))
    assert found["mae"]["pooled"] == pytest.approx(np.abs(pred - true)[rows].mean())
    folds = [np.intersect1d(fold, rows) for fold in SPLIT.folds]
    assert found["r2"]["folds"] == pytest.approx([r2(pred[fold], true[fold]) for fold in folds])
    assert found["mae"]["folds"] == pytest.approx([np.abs(pred - true)[fold].mean() for fold in folds])
    assert found["r2"]["interval"] == pytest.approx(resampled(rows, lambda own: r2(pred[own], true[own])))
    assert found["mae"]["interval"] == pytest.approx(resampled(rows, lambda own: np.abs(pred - true)[own].mean()))
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_classes_are_scored_pooled_per_fold_and_with_an_interval() -> None:
    true, pred, head = (RANDOM.integers(0, 2, N) for _ in range(3))
    head = np.where(RANDOM.random(N) < 0.7, true, head)
    true[7], pred[8] = -1, -1
    found = class_scores(pred, true, LABELS, SPLIT, head=head)
    rows = np.setdiff1d(HELD_OUT, [7, 8])

    def scored(score: Callable[[Any], Any], values: np.ndarray, own: np.ndarray) -> Any:
        return score(confusion_matrix(values[own], true[own], 3))

    def macro(matrix: Any) -> float:
        return f1_scores(matrix)[0]

    assert found["labels"] == list(LABELS)
    assert found["confusion_matrix"] == scored(np.ndarray.tolist, pred, rows)
    assert list(found["f1"]) == list(LABELS)
    assert list(found["f1"].values()) == scored(f1_scores, pred, rows)[1]
    assert found["f1"]["weed"] is None
    for name, score in (("accuracy", accuracy), ("macro_f1", macro)):
        assert found[name]["pooled"] == pytest.approx(scored(score, pred, rows))
        folds = [scored(score, pred, np.intersect1d(fold, rows)) for fold in SPLIT.folds]
        assert found[name]["folds"] == pytest.approx(folds)
        assert found[name]["interval"] == pytest.approx(resampled(rows, lambda own, f=score: scored(f, pred, own)))
        minus = resampled(rows, lambda own, f=score: scored(f, head, own) - scored(f, pred, own))
        assert found["head_minus"][name] == pytest.approx(minus)
    assert found["head_minus"]["accuracy"][0] > 0, "the head is better"
    assert class_scores(head, true, LABELS, SPLIT, head=head)["head_minus"]["accuracy"] == [0.0, 0.0]
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_masks_are_scored_by_the_counts_of_all_pixels() -> None:
    matrices = RANDOM.integers(0, 50, (N, 3, 3))
    matrices[10] = 0
    head = matrices + 40 * np.eye(3, dtype=int) * matrices.any(axis=(1, 2), keepdims=True)
    found = mask_scores(matrices, LABELS, SPLIT, head=head)
    rows = np.setdiff1d(HELD_OUT, [10])
    whole = matrices[rows].sum(axis=0)
    assert found["confusion_matrix"] == whole.tolist()
    assert found["iou"] == dict(zip(LABELS, mean_iou(whole)[1], strict=True))
    for name, score in (("mean_iou", lambda matrix: mean_iou(matrix)[0]), ("pixel_accuracy", accuracy)):
        assert found[name]["pooled"] == pytest.approx(score(whole))
        assert found[name]["folds"] == pytest.approx([score(matrices[fold].sum(axis=0)) for fold in SPLIT.folds])
        expected = resampled(rows, lambda own, f=score: f(matrices[own].sum(axis=0)))
        assert found[name]["interval"] == pytest.approx(expected)
        assert found["head_minus"][name][0] > 0
    one_count = np.zeros((N, 3, 3), int)
    true, pred = RANDOM.integers(0, 3, N), RANDOM.integers(0, 3, N)
    one_count[np.arange(N), true, pred] = 1
    same = mask_scores(one_count, LABELS, SPLIT)["pixel_accuracy"]
    assert same == class_scores(pred, true, LABELS, SPLIT)["accuracy"]
    assert "head_minus" not in mask_scores(one_count, LABELS, SPLIT)


def test_what_cannot_be_scored_is_none() -> None:
    few = Split(SPLIT.folds, [row // 15 for row in range(N)])
    true, pred = np.ones(N), RANDOM.normal(size=N)
    true[25:40] = math.nan
    found = value_scores(pred, true, few)
    assert found["r2"] == {"pooled": None, "interval": None, "folds": [None, None, None]}
    assert found["mae"]["interval"] is None and found["mae"]["folds"][1] is None
    assert value_scores(pred, true, SPLIT)["r2"]["interval"] is None
    nothing = class_scores(np.full(N, -1), np.zeros(N, int), LABELS, SPLIT, head=np.zeros(N, int))
    assert nothing["accuracy"] == nothing["macro_f1"] == {"pooled": None, "interval": None, "folds": [None] * 3}
    assert nothing["head_minus"] == {"accuracy": None, "macro_f1": None}
    assert nothing["confusion_matrix"] == [[0] * 3] * 3 and nothing["f1"]["soil"] is None


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: value_scores(np.ones(N), np.ones(N - 1), SPLIT), "differ in shape"),
        (lambda: value_scores(np.full(N, np.inf), np.ones(N), SPLIT), "infinite"),
        (lambda: value_scores(np.ones(9), np.ones(9), SPLIT), r"expected \(60,\), one per row"),
        (lambda: class_scores(np.full(N, 3), np.zeros(N, int), LABELS, SPLIT), "predictions reach from 3 to 3"),
        (lambda: class_scores(np.zeros(N), np.zeros(N, int), LABELS, SPLIT), "predictions are float64"),
        (lambda: class_scores(np.zeros(9, int), np.zeros(N, int), LABELS, SPLIT), "differ in shape"),
        (lambda: mask_scores(np.zeros((N, 2, 2)), LABELS, SPLIT), r"expected \(60, 3, 3\)"),
    ],
)
def test_misfits_are_refused(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        call()


def test_constant_targets_of_one_draw_do_not_hide_another_target() -> None:
    """Targets of very different scale: the small one varies too."""
    y = np.stack([RANDOM.normal(size=20), 1e-8 * RANDOM.normal(size=20)], axis=1)
    low, high = value_scores(0.9 * y, y, Split([np.arange(20)], range(20)), head=y)["head_minus"]["r2"]
    assert 0 < low < high < 0.1
    with pytest.raises(DataError, match="1 group"):
        group_draws(np.ones((3, 1)), ["a"] * 3)
