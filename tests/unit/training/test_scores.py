"""Scores of out-of-fold predictions, recomputed row by row and draw by draw, with the scores of scikit-learn."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn import metrics

from dinoneck import metrics as own_metrics
from dinoneck.kinds import METHOD_NAMES
from dinoneck.metrics import confusion_matrix
from dinoneck.training import r2, weighted_r2
from dinoneck.training.report import fold_metrics, scores_of
from dinoneck.training.scored import ScoredTarget, ValueTarget
from dinoneck.training.scores import Split, score_classes, score_pixels, score_values
from dinoneck.training.verdict import verdict

RESAMPLES = 100
N, LABELS = 60, ("soil", "Weiß-Klee (Trifolium)", "weed")
RANDOM = np.random.default_rng(0)
GROUPS = [f"g{row // 5}" for row in range(N)]
# rows 55 ... are never held out
SPLIT = Split([np.arange(0, 25), np.arange(25, 40), np.arange(40, 55)], GROUPS)
HELD_OUT = np.arange(55)
Score = Callable[[Any, Any], float]


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_metrics, "RESAMPLES", RESAMPLES)


def interval(rows: np.ndarray, score: Callable[[np.ndarray], float]) -> list[float]:
    """The interval of a score that is computed on the rows of one draw at a time."""
    names = list(dict.fromkeys(GROUPS[row] for row in rows))
    draws = np.random.default_rng(0).multinomial(
        len(names), np.full(len(names), 1 / len(names)), RESAMPLES
    )
    by_group = [[row for row in rows if GROUPS[row] == name] for name in names]
    chosen = [
        np.concatenate([by_group[i] * n for i, n in enumerate(draw) if n]).astype(int)
        for draw in draws
    ]
    return np.quantile([score(each) for each in chosen], (0.025, 0.975)).tolist()


def check(
    found: dict[str, Any],
    scores: dict[str, Score],
    true: Any,
    pred: Any,
    head: Any,
    rows: np.ndarray,
) -> None:
    """Every score, pooled, per fold and with both intervals, is that of scikit-learn on these rows."""
    assert found["images"] == len(rows)
    for name, score in scores.items():
        own = found[name]
        assert own["pooled"] == pytest.approx(score(true[rows], pred[rows]), abs=1e-9)
        folds = [np.intersect1d(fold, rows) for fold in SPLIT.folds]
        assert own["folds"] == pytest.approx(
            [score(true[fold], pred[fold]) for fold in folds], abs=1e-9
        )
        assert own["interval"] == pytest.approx(
            interval(rows, lambda some, f=score: f(true[some], pred[some]))
        )
        minus = interval(
            rows, lambda some, f=score: f(true[some], head[some]) - f(true[some], pred[some])
        )
        assert found["head_minus"][name] == pytest.approx(minus)
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_values_are_those_of_scikit_learn() -> None:
    true = RANDOM.normal(size=N) + 100
    pred, head = true + RANDOM.normal(size=N), true + RANDOM.normal(size=N)
    true[[3, 30]], pred[[4, 59]] = math.nan, math.nan
    scores = {"r2": metrics.r2_score, "mae": metrics.mean_absolute_error}
    found = score_values(true, pred, SPLIT, reference=head)
    check(found, scores, true, pred, head, np.setdiff1d(HELD_OUT, [3, 4, 30]))
    moved = score_values(true + 1e6, pred + 1e6, SPLIT)
    assert moved["r2"]["pooled"] == pytest.approx(found["r2"]["pooled"], rel=1e-6), (
        "a large level loses no digits"
    )


def macro_f1(true: Any, pred: Any) -> float:
    return float(metrics.f1_score(true, pred, average="macro", zero_division=0))


def test_classes_are_those_of_scikit_learn() -> None:
    true = RANDOM.integers(0, 2, N)
    pred = RANDOM.integers(0, 2, N)
    guesses = RANDOM.integers(0, 2, N)
    is_right = RANDOM.random(N) < 0.7
    head = np.where(is_right, true, guesses)
    true[7] = -1
    pred[8] = -1
    found = score_classes(true, pred, SPLIT, LABELS, reference=head)
    rows = np.setdiff1d(HELD_OUT, [7, 8])
    check(found, {"accuracy": metrics.accuracy_score, "macro_f1": macro_f1}, true, pred, head, rows)
    assert found["labels"] == list(LABELS) == list(found["f1"]) and found["f1"]["weed"] is None
    matrix = metrics.confusion_matrix(true[rows], pred[rows], labels=[0, 1, 2])
    assert found["confusion_matrix"] == matrix.tolist()
    assert found["head_minus"]["accuracy"][0] > 0, "the head is better"


def test_masks_are_scored_by_the_counts_of_all_pixels() -> None:
    """Images of 16 pixels: the scores are those of all their pixels together."""
    true, pred, head = (RANDOM.integers(0, 3, (N, 16)) for _ in range(3))
    true[:, 0] = -1
    matrices, others = (
        np.stack([confusion_matrix(*pair, 3) for pair in zip(true, x, strict=True)])
        for x in (pred, head)
    )
    matrices[10] = 0
    found = score_pixels(matrices, SPLIT, LABELS, reference=others)
    scores: dict[str, Score] = {
        "mean_iou": lambda a, b: metrics.jaccard_score(
            a[:, 1:].ravel(), b[:, 1:].ravel(), average="macro"
        ),
        "pixel_accuracy": lambda a, b: metrics.accuracy_score(a[:, 1:].ravel(), b[:, 1:].ravel()),
    }
    rows = np.setdiff1d(HELD_OUT, [10])
    check(found, scores, true, pred, head, rows)
    each = metrics.jaccard_score(true[rows, 1:].ravel(), pred[rows, 1:].ravel(), average=None)
    assert [*found["iou"].values()] == pytest.approx(each.tolist())
    assert found["confusion_matrix"] == matrices[rows].sum(axis=0).tolist()


def test_scores_take_the_truth_first_and_match_ids() -> None:
    true = RANDOM.normal(size=(N, 2))
    pred = true + RANDOM.normal(size=(N, 2)) / 2
    expected = metrics.r2_score(true[:, 0], pred[:, 0])
    ids = [f"i{row}" for row in range(N)]
    forms: list[Callable[[Any], Any]] = [np.ravel, np.vstack, torch.tensor, list, pd.Series]
    forms += [lambda x: dict(zip(ids, x, strict=True)), lambda x: pd.Series(x, ids)]
    for form in forms:
        assert r2(form(true[:, 0]), form(pred[:, 0])) == pytest.approx(expected)
    assert r2(
        dict(zip(ids, true[:, 0], strict=True)), pd.Series(pred[::-1, 0], ids[::-1])
    ) == pytest.approx(expected)
    assert r2(predictions=pred[:, 0], targets=true[:, 0]) == pytest.approx(expected)
    both = metrics.r2_score(true.ravel(), pred.ravel())  # equal weights: all values are one target
    assert weighted_r2(true, pred, [1.0, 1.0]) == pytest.approx(both)
    frames = [pd.DataFrame(dict(zip("ab", x.T, strict=True)), ids) for x in (true, pred)]
    assert weighted_r2(frames[0], frames[1][::-1], weights={"b": 1.0, "a": 1.0}) == pytest.approx(
        both
    )


def test_what_cannot_be_scored_is_none() -> None:
    few = Split(SPLIT.folds, [row // 15 for row in range(N)])
    true, pred = np.ones(N), RANDOM.normal(size=N)
    true[25:40] = math.nan
    found = score_values(true, pred, few)
    assert found["r2"] == {"pooled": None, "interval": None, "folds": [None, None, None]}
    assert found["mae"]["interval"] is None and found["mae"]["folds"][1] is None
    assert score_values(true, pred, SPLIT)["r2"]["interval"] is None
    nothing = score_classes(0 * HELD_OUT, 0 * HELD_OUT - 1, SPLIT, LABELS, reference=0 * HELD_OUT)
    assert (
        nothing["accuracy"]
        == nothing["macro_f1"]
        == {"pooled": None, "interval": None, "folds": [None] * 3}
    )
    assert nothing["head_minus"] == {"accuracy": None, "macro_f1": None}
    assert nothing["confusion_matrix"] == [[0] * 3] * 3 and nothing["f1"]["soil"] is None


def test_several_targets_with_gaps_and_maps() -> None:
    random = np.random.default_rng(3)  # of which no image is without a known cell
    true = random.normal(size=(N, 2, 3))
    pred = random.normal(size=(N, 2, 3))
    gaps = np.where(random.random(true.shape) < 0.3, np.nan, true)
    gaps[7] = np.nan
    rows = np.setdiff1d(HELD_OUT, [7])

    # cells of a map: every known cell is a value
    of_maps = score_values(gaps[:, None], pred[:, None], SPLIT)
    is_known = np.isfinite(gaps[rows])
    expected = r2(gaps[rows][is_known], pred[rows][is_known])
    assert of_maps["images"] == len(rows)
    assert of_maps["r2"]["pooled"] == pytest.approx(expected)

    # four targets: the mean of their R²
    gaps = np.concatenate([gaps[:, :, 0], 1e-8 * gaps[:, :, 1]], axis=1)
    pred = pred.reshape(N, -1)[:, :4]
    scores_of_targets = []
    for i in range(4):
        of_target = score_values(gaps[:, i], pred[:, i], SPLIT)
        scores_of_targets.append(of_target["r2"]["pooled"])
    of_all = score_values(gaps, pred, SPLIT)
    assert of_all["r2"]["pooled"] == pytest.approx(np.mean(scores_of_targets))

    # with weights: one quotient and one weighted mean
    weights = np.where(np.isfinite(gaps), [0.1, 0.2, 0.3, 0.4], 0.0)[rows]
    values = np.nan_to_num(gaps[rows])
    errors = np.nan_to_num((gaps - pred)[rows] ** 2)
    mean = (weights * values).sum() / weights.sum()
    deviations = (values - mean) ** 2
    expected = 1 - (weights * errors).sum() / (weights * deviations).sum()
    weighted = score_values(gaps, pred, SPLIT, weights=[0.1, 0.2, 0.3, 0.4])
    assert weighted["r2"]["pooled"] == pytest.approx(expected)


def methods(**each: Any) -> dict[str, Any]:
    return {
        name: {"a": x[:, None], "b": 5 * x[:, None], "help": x[:, None]} for name, x in each.items()
    }


def test_a_report_has_an_overall_score() -> None:
    y, good = RANDOM.normal(size=N), RANDOM.normal(size=N) / 9
    scored: dict[str, ScoredTarget] = {
        "a": ValueTarget("a", columns=(0,), truth=y[:, None]),
        "b": ValueTarget("b", columns=(0,), truth=5 * y[::-1, None]),
        "help": ValueTarget("help", columns=(0,), truth=y[:, None], auxiliary=True),
    }
    predictions = methods(head=y + good, linear=y + 9 * good)
    true, pred = (
        np.stack([y, 5 * y[::-1]], axis=1)[HELD_OUT],
        np.stack([y + good, 5 * (y + good)], axis=1)[HELD_OUT],
    )
    mean = np.mean([r2(true[:, i], pred[:, i]) for i in range(2)])
    for weights, expected in (
        ({"a": 0.2, "b": 0.8}, weighted_r2(true, pred, [0.2, 0.8])),
        ({"a": 0.2}, mean),
        ({}, mean),
    ):
        scores = scores_of(scored, predictions, SPLIT, weights)
        assert scores["overall"]["head"]["r2"]["pooled"] == pytest.approx(expected)
    assert set(scores) == {"a", "b", "help", "overall"}
    assert fold_metrics(scores)["R2 a"] == pytest.approx(r2(y[HELD_OUT], (y + good)[HELD_OUT]))
    assert "head_minus" not in scores["a"]["head"]


@pytest.mark.parametrize(
    ("head", "linear", "groups", "sentence"),
    [
        (
            1,
            9,
            12,
            r"The head is better than the linear baseline: R² 0\.\d\d against −?\d\.\d\d \(",
        ),
        (
            9,
            1,
            12,
            r"The linear baseline is better than the head: R² 0\.\d\d against −?\d\.\d\d \(",
        ),
        (9, 9, 12, r"It is not clear whether the head is better than the linear baseline: R² "),
        (
            9,
            1,
            4,
            "55 images in 4 groups are too few to tell whether the linear baseline is better ",
        ),
    ],
    ids=["head", "linear", "equal", "few groups"],
)
def test_a_verdict_says_in_words_which_method_is_better(
    head: float, linear: float, groups: int, sentence: str
) -> None:
    y = RANDOM.normal(size=N)
    error = RANDOM.normal(size=N) / 9
    targets: dict[str, ScoredTarget] = {"a": ValueTarget("a", columns=(0,), truth=y[:, None])}
    predictions = {
        "head": {"a": (y + head * error)[:, None]},
        "linear": {"a": (y + linear * error)[:, None]},
    }
    split = Split(SPLIT.folds, [row % groups for row in range(N)])
    scores = scores_of(targets, predictions, split)

    line = verdict(scores, "head", target="overall", names=METHOD_NAMES)

    assert re.match(sentence, line)
    assert ("95 %" in line) == (groups == 12)


def test_groups_without_a_known_value_do_not_count_in_a_verdict() -> None:
    """Of 12 groups, which are enough, eight have a known value."""
    groups = [row % 12 for row in range(90)]
    y = RANDOM.normal(size=90)
    y[[group >= 8 for group in groups]] = np.nan
    targets: dict[str, ScoredTarget] = {"a": ValueTarget("a", columns=(0,), truth=y[:, None])}
    predictions = {"head": {"a": y[:, None]}, "linear": {"a": 2 * y[:, None]}}

    scores = scores_of(targets, predictions, Split([range(90)], groups))
    line = verdict(scores, "head", target="overall", names=METHOD_NAMES)

    assert scores["a"]["head"]["images"] == 62
    assert scores["a"]["head"]["groups"] == 8
    assert line.startswith("62 images in 8 groups are too few to tell whether the head is better")


def test_the_interval_in_a_verdict_is_of_the_better_minus_the_other_one() -> None:
    method_scores = {
        "head": {"images": 60, "groups": 16, "r2": {"pooled": -0.0219}},
        "linear": {
            "images": 60,
            "groups": 16,
            "r2": {"pooled": 0.2763},
            "head_minus": {"r2": [-0.5, -0.166]},
        },
    }
    line = verdict({"crop": method_scores}, "head", target="crop", names=METHOD_NAMES)
    assert line == (
        "The linear baseline is better than the head: R² 0.28 against −0.02 (difference 0.17 to "
        "0.50, 95 %)."
    )


def test_a_verdict_on_models_calls_them_by_their_names() -> None:
    """A model may have the name of a method."""
    method_scores = {
        "linear": {"images": 60, "groups": 16, "r2": {"pooled": 0.633}},
        "fpn": {
            "images": 60,
            "groups": 16,
            "r2": {"pooled": 0.6312},
            "head_minus": {"r2": [0.0004, 0.0012]},
        },
    }
    line = verdict({"crop": method_scores, "weed": {}}, "linear", target="crop")
    assert line == (
        "linear is better than fpn: R² of crop 0.6330 against 0.6312 (difference 0.0004 to 0.0012, "
        "95 %)."
    )
