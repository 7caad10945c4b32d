"""Scores of out-of-fold predictions: pooled, per fold, per class and with intervals, recomputed row by row."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from dinoneck import DataError
from dinoneck.training import r2, weighted_r2
from dinoneck.training.report import fold_metrics, scores_of, spread_of, verdict
from dinoneck.training.scores import (
    Split,
    class_counts,
    class_f1,
    class_iou,
    class_scores,
    confusion_matrix,
    mask_scores,
    mean_known,
    share_right,
    value_scores,
)
from dinoneck.training.tasks import Scored

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


def accuracy(matrix: Any) -> float:
    return float(share_right(class_counts(matrix)))


def mean_iou(matrix: Any) -> tuple[float, list[float | None]]:
    each = class_iou(class_counts(matrix))
    return float(mean_known(each)), [None if math.isnan(score) else float(score) for score in each]


def f1_scores(matrix: Any) -> list[float | None]:
    return [None if math.isnan(score) else float(score) for score in class_f1(class_counts(matrix))]


def test_scores_of_a_matrix_are_those_of_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    true, pred = RANDOM.integers(0, 4, 50), RANDOM.integers(0, 4, 50)
    true[true == 2] = 3  # class 2 is predicted and never true, class 4 occurs nowhere
    matrix = confusion_matrix(true, pred, num_classes=5)
    assert accuracy(matrix) == pytest.approx(metrics.accuracy_score(true, pred))
    each = f1_scores(matrix)
    assert each[:4] == pytest.approx(metrics.f1_score(true, pred, average=None, zero_division=0))
    assert (each[2], each[4]) == (0.0, None)
    macro, each = mean_iou(matrix)
    assert each[:4] == pytest.approx(metrics.jaccard_score(true, pred, average=None, zero_division=0))
    assert macro == pytest.approx(metrics.jaccard_score(true, pred, average="macro", zero_division=0))


def test_scores_take_the_truth_first_as_scikit_learn_does() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    true = RANDOM.normal(size=(N, 2))
    pred = true + RANDOM.normal(size=(N, 2)) / 2
    expected = metrics.r2_score(true[:, 0], pred[:, 0])
    for form in (np.ravel, np.vstack, torch.tensor, list):
        assert r2(form(true[:, 0]), form(pred[:, 0])) == pytest.approx(expected)
    assert r2(predictions=pred[:, 0], targets=true[:, 0]) == pytest.approx(expected)
    both = metrics.r2_score(true.ravel(), pred.ravel())  # equal weights: all values are one target
    assert weighted_r2(true, pred, [1.0, 1.0]) == pytest.approx(both)
    named = [{"a": each[:, 0], "b": each[:, 1]} for each in (true, pred)]
    assert weighted_r2(*named, weights={"a": 1.0, "b": 1.0}) == pytest.approx(both)
    classes, found = RANDOM.integers(0, 3, N), RANDOM.integers(0, 3, N)
    expected = metrics.confusion_matrix(classes, found, labels=[0, 1, 2])
    assert np.array_equal(confusion_matrix(classes, found, num_classes=3), expected)


@pytest.mark.parametrize("shape", [(6, 2), (1, 6), (6, 2, 1), ()])
def test_r2_refuses_values_that_are_not_of_one_target(shape: tuple[int, ...]) -> None:
    values = np.arange(math.prod(shape), dtype=float).reshape(shape)
    for arguments in ((values, values), (values, values.ravel()), (values.ravel(), values)):
        with pytest.raises(DataError, match=re.escape(str(shape))):
            r2(*arguments)
        with pytest.raises(DataError, match=re.escape(str(shape))):
            weighted_r2(*({"a": each} for each in arguments), weights={"a": 1.0})
    rows = {f"image {i}": row for i, row in enumerate(np.ones((3, 2)))}
    with pytest.raises(DataError, match=r"\(3, 2\)"):
        r2(rows, rows)


def test_values_are_scored_pooled_per_fold_and_with_an_interval() -> None:
    true = RANDOM.normal(size=N) + 100
    pred = true + RANDOM.normal(size=N)
    true[[3, 30]], pred[[4, 59]] = math.nan, math.nan
    found = value_scores(true, pred, SPLIT)
    rows = np.setdiff1d(HELD_OUT, [3, 4, 30])
    assert found["r2"]["pooled"] == pytest.approx(r2(true[rows], pred[rows]))
    assert found["mae"]["pooled"] == pytest.approx(np.abs(pred - true)[rows].mean())
    folds = [np.intersect1d(fold, rows) for fold in SPLIT.folds]
    assert found["r2"]["folds"] == pytest.approx([r2(true[fold], pred[fold]) for fold in folds])
    assert found["mae"]["folds"] == pytest.approx([np.abs(pred - true)[fold].mean() for fold in folds])
    assert found["r2"]["interval"] == pytest.approx(resampled(rows, lambda own: r2(true[own], pred[own])))
    assert found["mae"]["interval"] == pytest.approx(resampled(rows, lambda own: np.abs(pred - true)[own].mean()))
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_classes_are_scored_pooled_per_fold_and_with_an_interval() -> None:
    true, pred, head = (RANDOM.integers(0, 2, N) for _ in range(3))
    head = np.where(RANDOM.random(N) < 0.7, true, head)
    true[7], pred[8] = -1, -1
    found = class_scores(true, pred, LABELS, SPLIT, head=head)
    rows = np.setdiff1d(HELD_OUT, [7, 8])

    def scored(score: Callable[[Any], Any], values: np.ndarray, own: np.ndarray) -> Any:
        return score(confusion_matrix(true[own], values[own], num_classes=3))

    def macro(matrix: Any) -> float:
        return float(np.mean([score for score in f1_scores(matrix) if score is not None]))

    assert found["labels"] == list(LABELS)
    assert found["confusion_matrix"] == scored(np.ndarray.tolist, pred, rows)
    assert list(found["f1"]) == list(LABELS)
    assert list(found["f1"].values()) == scored(f1_scores, pred, rows)
    assert found["f1"]["weed"] is None
    for name, score in (("accuracy", accuracy), ("macro_f1", macro)):
        assert found[name]["pooled"] == pytest.approx(scored(score, pred, rows))
        folds = [scored(score, pred, np.intersect1d(fold, rows)) for fold in SPLIT.folds]
        assert found[name]["folds"] == pytest.approx(folds)
        assert found[name]["interval"] == pytest.approx(resampled(rows, lambda own, f=score: scored(f, pred, own)))
        minus = resampled(rows, lambda own, f=score: scored(f, head, own) - scored(f, pred, own))
        assert found["head_minus"][name] == pytest.approx(minus)
    assert found["head_minus"]["accuracy"][0] > 0, "the head is better"
    assert class_scores(true, head, LABELS, SPLIT, head=head)["head_minus"]["accuracy"] == [0.0, 0.0]
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
    assert same == class_scores(true, pred, LABELS, SPLIT)["accuracy"]
    assert "head_minus" not in mask_scores(one_count, LABELS, SPLIT)


def test_what_cannot_be_scored_is_none() -> None:
    few = Split(SPLIT.folds, [row // 15 for row in range(N)])
    true, pred = np.ones(N), RANDOM.normal(size=N)
    true[25:40] = math.nan
    found = value_scores(true, pred, few)
    assert found["r2"] == {"pooled": None, "interval": None, "folds": [None, None, None]}
    assert found["mae"]["interval"] is None and found["mae"]["folds"][1] is None
    assert value_scores(true, pred, SPLIT)["r2"]["interval"] is None
    nothing = class_scores(np.zeros(N, int), np.full(N, -1), LABELS, SPLIT, head=np.zeros(N, int))
    assert nothing["accuracy"] == nothing["macro_f1"] == {"pooled": None, "interval": None, "folds": [None] * 3}
    assert nothing["head_minus"] == {"accuracy": None, "macro_f1": None}
    assert nothing["confusion_matrix"] == [[0] * 3] * 3 and nothing["f1"]["soil"] is None


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: value_scores(np.ones(N - 1), np.ones(N), SPLIT), "differ in shape"),
        (lambda: value_scores(np.ones(N), np.full(N, np.inf), SPLIT), "infinite"),
        (lambda: class_scores(np.zeros(N, int), np.full(N, 3), LABELS, SPLIT), "predictions hold 3"),
        (lambda: class_scores(np.zeros(N, int), np.zeros(9, int), LABELS, SPLIT), "differ in shape"),
        (lambda: mask_scores(np.zeros((N, 2, 2)), LABELS, SPLIT, head=np.zeros((N, 3, 3))), "differ in shape"),
    ],
)
def test_misfits_are_refused(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        call()


def test_constant_targets_of_one_draw_do_not_hide_another_target() -> None:
    """Targets of very different scale: the small one varies too."""
    y = np.stack([RANDOM.normal(size=20), 1e-8 * RANDOM.normal(size=20)], axis=1)
    low, high = value_scores(y, 0.9 * y, Split([np.arange(20)], range(20)), head=y)["head_minus"]["r2"]
    assert 0 < low < high < 0.1


# -- Confusion matrices and the mean IoU, counted by hand


def test_the_matrix_counts_truth_in_rows_and_predictions_in_columns() -> None:
    true = torch.randint(0, 4, (3, 5, 7))
    pred = torch.randint(0, 4, (3, 5, 7))
    true[0, 0] = 255
    by_hand = [[0] * 4 for _ in range(4)]
    for t, p in zip(true.flatten().tolist(), pred.flatten().tolist(), strict=True):
        if t != 255:
            by_hand[t][p] += 1
    matrix = confusion_matrix(true, pred, num_classes=4, ignore_index=255)
    assert matrix.tolist() == by_hand
    assert matrix.dtype == np.int64
    how = {"num_classes": 4, "ignore_index": 255}
    as_arrays = confusion_matrix(true.numpy(), pred.numpy().astype(np.uint8), **how)
    assert as_arrays.tolist() == by_hand
    halves = sum(confusion_matrix(true[i], pred[i], **how) for i in range(3))
    assert np.array_equal(halves, matrix)
    assert confusion_matrix([0, 1, 1], [0, 0, 1], num_classes=2).tolist() == [[1, 0], [1, 1]]
    assert confusion_matrix([0, -1], [0, 77], num_classes=2, ignore_index=-1).tolist() == [[1, 0], [0, 0]]
    assert confusion_matrix([], [], num_classes=2).tolist() == [[0, 0], [0, 0]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0], [0, 1], 2), r"targets \(1,\) and predictions \(2,\)"),
        (([0, 1], [0, 2], 2), "predictions hold 2; expected 0 to 1"),
        (([0, 255], [0, 1], 2), "targets hold 255.*ignore_index="),
        (([0, 1], [0.0, 1.0], 2), r"predictions are float64.*argmax"),
    ],
)
def test_misfits_of_a_confusion_matrix(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(DataError, match=message):
        confusion_matrix(*arguments[:2], num_classes=arguments[2])


# -- The interval of a difference of R²: it covers 0 where methods are equal, and whole groups are drawn


def difference(y: np.ndarray, a: np.ndarray, b: np.ndarray, groups: Any = None, weights: Any = None) -> list[float]:
    """The 95 % interval of R²(a) - R²(b)."""
    split = Split([np.arange(len(y))], range(len(y)) if groups is None else groups)
    found: list[float] = value_scores(y, b, split, weights=weights, head=a)["head_minus"]["r2"]
    return found


def problem(seed: int, images: int = 60, bias: float = 0.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = rng.normal(size=images)
    return y, y + rng.normal(size=images) * (0.6 + bias), y + rng.normal(size=images) * 0.6


def test_it_is_the_quantiles_of_scores_computed_one_draw_at_a_time() -> None:
    y, a, b = (np.stack([x, 3 * x[::-1]], axis=1) for x in problem(0, 20))
    groups, weights = [f"g{row // 4}" for row in range(20)], [0.2, 0.8]
    draws = np.random.default_rng(0).multinomial(5, np.full(5, 0.2), 1000)
    scores = []
    for draw in draws:
        rows = [
            row for group, count in enumerate(draw) for _ in range(count) for row in range(4 * group, 4 * group + 4)
        ]
        scores.append(weighted_r2(y[rows], a[rows], weights) - weighted_r2(y[rows], b[rows], weights))
    expected = np.quantile(scores, (0.025, 0.975))
    found = difference(y, a, b, groups, weights)
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_a_large_common_level_loses_no_digits() -> None:
    y, a, b = problem(0)
    np.testing.assert_allclose(difference(y + 1e6, a + 1e6, b + 1e6), difference(y, a, b), rtol=1e-6)


def test_a_report_states_errors_spread_and_intervals() -> None:
    y, head, linear = problem(0, 40)
    flat, folds = np.zeros(40), [np.arange(20), np.arange(20, 40)]
    split = Split(folds, [f"g{row // 5}" for row in range(40)])
    scored = {name: Scored("value", name, slice(0, 1), x[:, None]) for name, x in (("y", y), ("flat", flat))}
    scored["help"] = Scored("value", "help", slice(0, 1), y[:, None], auxiliary=True)
    predictions = {
        method: {"y": x[:, None], "flat": flat[:, None], "help": x[:, None]}
        for method, x in (("head", head), ("linear", linear))
    }
    scores = scores_of(scored, predictions, split)
    assert set(scores) == {"y", "flat", "help", "overall"}
    each = [r2(y[rows], head[rows]) for rows in folds]
    for target in ("y", "overall"):  # the R² of the flat target is not known
        assert scores[target]["head"]["r2"]["pooled"] == pytest.approx(r2(y, head))
        assert scores[target]["head"]["r2"]["folds"] == pytest.approx(each)
        expected = difference(y, head, linear, split.groups)
        assert scores[target]["linear"]["head_minus"]["r2"] == pytest.approx(expected)
        assert "head_minus" not in scores[target]["head"]
    assert scores["y"]["head"]["mae"]["pooled"] == pytest.approx(np.abs(head - y).mean())
    assert scores["flat"]["head"]["r2"]["pooled"] is None
    assert scores["flat"]["linear"]["head_minus"]["r2"] is None
    assert spread_of(scored, split)["y"] == {
        "all": pytest.approx(y.std()), "folds": pytest.approx([y[:20].std(), y[20:].std()])
    }  # fmt: skip
    assert set(spread_of(scored, split)) == {"y", "flat"}
    assert fold_metrics(scores)["R2 y"] == pytest.approx(r2(y, head))
    assert json.loads(json.dumps(scores, allow_nan=False)) == scores
    few = scores_of(scored, predictions, Split(folds, [row // 10 for row in range(40)]))
    assert few["y"]["linear"]["head_minus"] == {"r2": None, "mae": None}
    assert "40 images in 4 groups are too few" in verdict(scored, few, 4)


def test_the_overall_score_is_weighted_where_all_targets_have_weights() -> None:
    y, head, other = problem(1, 40)
    scored = {name: Scored("value", name, slice(0, 1), x[:, None]) for name, x in (("a", y), ("b", 5 * other))}
    predictions = {"head": {"a": head[:, None], "b": 5 * head[:, None]}}
    true, pred, split = (
        np.stack([y, 5 * other], axis=1),
        np.stack([head, 5 * head], axis=1),
        Split([range(40)], range(40)),
    )
    for weights, expected in (
        ({"a": 0.2, "b": 0.8}, weighted_r2(true, pred, [0.2, 0.8])),
        ({"a": 0.2}, np.mean([r2(true[:, i], pred[:, i]) for i in range(2)])),
        ({}, np.mean([r2(true[:, i], pred[:, i]) for i in range(2)])),
    ):
        found = scores_of(scored, predictions, split, weights)["overall"]["head"]["r2"]["pooled"]
        assert found == pytest.approx(expected)


def test_the_verdict_names_the_best_method_and_whether_the_difference_is_clear() -> None:
    y, good, bad = problem(0, 60, bias=-0.5)
    split, scored = Split([range(60)], range(60)), {"y": Scored("value", "y", slice(0, 1), y[:, None])}
    for head, linear, best, clear in (
        (good, bad, "best is head", True), (bad, good, "best is linear", True), (bad, y - (bad - y), "best is", False)
    ):  # fmt: skip
        predictions = {"head": {"y": head[:, None]}, "linear": {"y": linear[:, None]}}
        line = verdict(scored, scores_of(scored, predictions, split), 60)
        assert best in line
        assert ("excludes 0" in line) == clear and ("includes 0" in line) != clear


def test_maps_are_scored_over_their_known_patches() -> None:
    true = RANDOM.normal(size=(N, 2, 3)) + 50
    pred = true + RANDOM.normal(size=true.shape)
    gaps = np.where(RANDOM.random(true.shape) < 0.3, np.nan, true)
    gaps[7] = np.nan
    found, rows = value_scores(gaps, pred, SPLIT), np.setdiff1d(HELD_OUT, [7])
    known = np.isfinite(gaps[rows])
    assert found["images"] == len(rows)
    assert found["r2"]["pooled"] == pytest.approx(r2(gaps[rows][known], pred[rows][known]))
    assert found["mae"]["pooled"] == pytest.approx(np.abs(gaps - pred)[rows][known].mean())
    low, high = found["r2"]["interval"]
    assert low < found["r2"]["pooled"] < high
