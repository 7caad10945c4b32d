"""Scores of several labels per image: against scikit-learn and by hand."""

from __future__ import annotations

import numpy as np
import pytest

from dinoneck.metrics import (
    GroupedLabels,
    class_f1,
    label_precision,
    label_terms,
    macro_f1,
    mean_average_precision,
)
from dinoneck.training.scores import Split, choose_thresholds, score_labels

LABELS = ("a", "b", "c")


def drawn(rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Labels (rows, 3), of which some are unknown, and probabilities with ties."""
    random = np.random.default_rng(seed)
    truth = (random.random((rows, 3)) < [0.5, 0.2, 0.7]).astype(float)
    scores = np.round(0.4 * truth + 0.6 * random.random((rows, 3)), 1)
    truth[random.random((rows, 3)) < 0.1] = np.nan
    return truth, scores


def test_average_precision_is_that_of_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    truth, scores = drawn(200)
    times = np.random.default_rng(1).integers(0, 4, (5, 200))
    for k in range(3):
        known = ~np.isnan(truth[:, k])
        of_label = label_precision(truth[:, k], scores[:, k], times)
        for draw, value in zip(times, of_label, strict=True):
            expected = metrics.average_precision_score(
                truth[known, k], scores[known, k], sample_weight=draw[known]
            )
            assert value == pytest.approx(expected, abs=1e-9)


def test_f1_is_that_of_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    truth, scores = drawn(100)
    truth = np.nan_to_num(truth)
    is_predicted = scores >= 0.5
    sums = label_terms(truth, is_predicted).sum(axis=0)
    expected = metrics.f1_score(truth, is_predicted, average=None)
    assert class_f1(sums) == pytest.approx(expected, abs=1e-9)
    assert macro_f1(sums) == pytest.approx(expected.mean(), abs=1e-9)


def test_average_precision_by_hand() -> None:
    truth = np.array([1.0, 0.0, 1.0, np.nan, 0.0])
    scores = np.array([0.9, 0.8, 0.7, 0.95, 0.1])
    # after the first row precision 1 at recall 1/2, after the third 2/3 at recall 1
    [value] = label_precision(truth, scores, np.ones((1, 5)))
    assert value == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)


def test_the_mean_leaves_out_labels_that_no_row_has() -> None:
    truth = np.array([[1.0, 0.0], [0.0, 0.0]])
    scores = np.array([[0.9, 0.9], [0.1, 0.1]])
    assert mean_average_precision(truth, scores, np.ones((1, 2))) == pytest.approx([1.0])
    assert np.isnan(label_precision(np.array([]), np.array([]), np.ones((1, 0))))


def test_a_draw_counts_a_group_as_often_as_it_was_drawn() -> None:
    truth, scores = drawn(60)
    groups = [row // 6 for row in range(60)]
    grouped = GroupedLabels(truth, scores, groups)
    assert grouped.drawn_scores is not None
    low, high = grouped.interval() or [0, 0]
    score = grouped.score() or 0.0
    assert low < score < high
    repeated = np.repeat(np.arange(60), 2)
    twice = mean_average_precision(truth[repeated], scores[repeated], np.ones((1, 120)))
    assert mean_average_precision(truth, scores, np.full((1, 60), 2)) == pytest.approx(twice)


def test_a_threshold_lies_between_the_lowest_that_counts_and_the_next_lower() -> None:
    truth = np.array([[1.0], [1], [1], [1], [1], [0], [0]])
    scores = np.array([[0.9], [0.8], [0.7], [0.6], [0.5], [0.3], [0.2]])
    assert choose_thresholds(truth, scores) == [pytest.approx(0.4)]


def test_a_label_on_few_images_keeps_one_half() -> None:
    truth = np.zeros((20, 1))
    truth[:4] = 1
    assert choose_thresholds(truth, np.linspace(0.4, 0.1, 20)[:, None]) == [0.5]


def test_no_image_has_a_part_in_the_threshold_that_it_is_scored_with() -> None:
    # in each fold another threshold separates: the one of the other fold fails
    truth = np.array([[1.0], [1], [1], [1], [1], [0], [0], [0]] * 2)
    first = [0.9, 0.9, 0.9, 0.9, 0.9, 0.7, 0.7, 0.7]
    second = [0.4, 0.4, 0.4, 0.4, 0.4, 0.1, 0.1, 0.1]
    scores = np.array([first + second]).T
    split = Split([range(8), range(8, 16)], groups=list(range(16)))
    result = score_labels(truth, scores, split, ["a"])
    # fold 1 by 0.25: all 8 count; fold 2 by 0.8: none; 5 right of 8 predicted and 10 true
    assert result["F1"]["pooled"] == pytest.approx(2 * 5 / (8 + 10))
    assert result["F1"]["folds"] == [pytest.approx(2 * 5 / 13), 0.0]
    assert result["by_label"]["a"]["positives"] == 10
    assert result["few_positives"] == []


def test_scores_of_stated_labels_and_a_reference() -> None:
    truth, scores = drawn(80)
    other = np.random.default_rng(3).random((80, 3))
    split = Split([range(40), range(40, 80)], groups=[row // 4 for row in range(80)])
    result = score_labels(
        truth,
        other,
        split,
        LABELS,
        is_predicted=other >= 0.5,
        reference=scores,
        reference_predicted=scores >= 0.5,
    )
    assert result["images"] == 80
    low, high = result["head_minus"]["mAP"]
    assert 0 < low < high
    assert {*result["by_label"]} == {*LABELS}
    assert "few_positives" not in result
    assert result["mAP"]["interval"][0] < result["mAP"]["pooled"] < result["mAP"]["interval"][1]


def test_images_without_a_prediction_do_not_count() -> None:
    truth, scores = drawn(20)
    scores[10:] = np.nan
    result = score_labels(truth, scores, Split([range(20)], groups=list(range(20))), LABELS)
    assert result["images"] == 10
