"""Scores are those of scikit-learn, of NumPy, and of the definitions worked by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from dinoneck.metrics import (
    ACCURACY,
    BIAS,
    MACRO_F1,
    MAE,
    MEAN_IOU,
    PIXEL_ACCURACY,
    R2,
    RMSE,
    GroupedTerms,
    KnownRegions,
    Metric,
    RankedObjects,
    as_number,
    average_precision,
    best_f1,
    class_counts,
    class_f1,
    class_iou,
    class_panoptic_quality,
    class_recognition_quality,
    class_segmentation_quality,
    class_terms,
    confusion_matrix,
    draw_groups,
    interval,
    map_confusion,
    mean_defined,
    segment_terms,
    standard_deviation,
    value_terms,
    weighted_r2_metric,
)

sklearn = pytest.importorskip("sklearn.metrics")

Array = np.ndarray[Any, Any]
NAN = math.nan


def numbers(seed: int, *, targets: int = 3) -> tuple[Array, Array]:
    """True values of 40 images and predictions with an error."""
    random = np.random.default_rng(seed)
    truth = random.normal(size=(40, targets)) * [1.0, 50.0, 0.01][:targets] + 7.0
    return truth, truth + random.normal(size=truth.shape)


def of_rows(metric: Metric, truth: Array, predictions: Array) -> float:
    return float(metric.of_sums(value_terms(truth, predictions).sum(axis=0)))


# numbers


@pytest.mark.parametrize(
    ("metric", "peer"),
    [
        (R2, sklearn.r2_score),
        (MAE, sklearn.mean_absolute_error),
        (RMSE, sklearn.root_mean_squared_error),
    ],
    ids=lambda case: getattr(case, "name", ""),
)
@pytest.mark.parametrize("targets", [1, 3])
def test_a_score_of_numbers_is_that_of_scikit_learn(
    metric: Metric, peer: Any, targets: int
) -> None:
    truth, predictions = numbers(seed=targets, targets=targets)
    score = of_rows(metric, truth, predictions)
    assert score == pytest.approx(peer(truth, predictions), rel=1e-12)


def test_a_joint_r2_is_that_of_scikit_learn_with_a_weight_per_value() -> None:
    truth, predictions = numbers(seed=0)
    weights = [0.5, 0.3, 0.2]
    sums = value_terms(truth, predictions, joint=True).sum(axis=0)
    score = weighted_r2_metric(weights).of_sums(sums)
    expected = sklearn.r2_score(
        truth.ravel(), predictions.ravel(), sample_weight=np.tile(weights, len(truth))
    )
    assert score == pytest.approx(expected, rel=1e-12)


def test_bias_is_the_mean_of_predicted_minus_true() -> None:
    truth = np.array([1.0, 2.0, 6.0])
    predictions = np.array([2.0, 2.0, 7.0])
    assert of_rows(BIAS, truth, predictions) == pytest.approx(2 / 3)


def test_the_standard_deviation_is_that_of_numpy() -> None:
    truth, predictions = numbers(seed=4)
    sums = value_terms(truth, predictions).sum(axis=0)
    assert standard_deviation(sums) == pytest.approx(truth.std(axis=0), rel=1e-12)


@pytest.mark.parametrize("missing_in", ["truth", "predictions"])
@pytest.mark.parametrize("metric", [R2, MAE, RMSE, BIAS], ids=lambda metric: metric.name)
def test_a_missing_value_counts_for_nothing(metric: Metric, missing_in: str) -> None:
    truth, predictions = numbers(seed=1, targets=1)
    expected = of_rows(metric, truth[1:], predictions[1:])
    values = truth if missing_in == "truth" else predictions
    values[0] = NAN
    assert of_rows(metric, truth, predictions) == pytest.approx(expected, rel=1e-12)


def test_each_known_cell_of_a_map_is_a_value() -> None:
    random = np.random.default_rng(3)
    truth = random.normal(size=(6, 1, 2, 4))
    truth[random.random(truth.shape) < 0.3] = NAN
    predictions = random.normal(size=truth.shape)
    is_known = ~np.isnan(truth)
    expected = sklearn.r2_score(truth[is_known], predictions[is_known])
    assert of_rows(R2, truth, predictions) == pytest.approx(expected, rel=1e-12)


def test_values_far_from_zero_keep_their_digits() -> None:
    truth, predictions = numbers(seed=2, targets=1)
    expected = of_rows(R2, truth, predictions)
    assert of_rows(R2, truth + 1e7, predictions + 1e7) == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize("value", [0.0, 1.0, 0.1, -1e9 / 3])
@pytest.mark.parametrize("number", [1, 3, 60])
def test_equal_values_have_no_r2_and_do_not_deviate(value: float, number: int) -> None:
    truth = np.full(number, value)
    predictions = np.linspace(0.0, 1.0, number)
    assert math.isnan(of_rows(R2, truth, predictions))
    assert standard_deviation(value_terms(truth, predictions).sum(axis=0)) == [0.0]


def test_a_target_whose_values_are_equal_does_not_count_in_the_mean_r2() -> None:
    truth, predictions = numbers(seed=5)
    expected = sklearn.r2_score(truth[:, 1:], predictions[:, 1:])
    truth[:, 0] = 0.7
    assert of_rows(R2, truth, predictions) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("metric", [R2, MAE, RMSE, BIAS], ids=lambda metric: metric.name)
def test_without_known_values_there_is_no_score(metric: Metric) -> None:
    truth = np.full((4, 2), NAN)
    assert math.isnan(of_rows(metric, truth, np.ones((4, 2))))


def test_terms_of_two_halves_add_up_to_the_score_of_all() -> None:
    truth, predictions = numbers(seed=6, targets=1)
    terms = value_terms(truth, predictions)
    sums = terms[:15].sum(axis=0) + terms[15:].sum(axis=0)
    assert R2.of_sums(sums) == pytest.approx(sklearn.r2_score(truth, predictions), rel=1e-12)


# classes


def classes(seed: int) -> tuple[Array, Array]:
    """True and predicted classes 0 ... 3 of 200 pixels, three quarters of them right."""
    random = np.random.default_rng(seed)
    true = random.integers(0, 4, 200)
    predicted = np.where(random.random(200) < 0.75, true, random.integers(0, 4, 200))
    return true, predicted


def test_a_confusion_matrix_is_that_of_scikit_learn() -> None:
    true, predicted = classes(seed=0)
    matrix = confusion_matrix(torch.tensor(true), predicted.astype(np.uint8), num_classes=4)
    assert matrix.tolist() == sklearn.confusion_matrix(true, predicted).tolist()


def test_a_pixel_without_a_label_is_in_no_confusion_matrix() -> None:
    true, predicted = classes(seed=1)
    expected = sklearn.confusion_matrix(true[50:], predicted[50:])
    true[:50] = -1
    assert confusion_matrix(true, predicted, num_classes=4).tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("metric", "peer", "options"),
    [
        (ACCURACY, sklearn.accuracy_score, {}),
        (PIXEL_ACCURACY, sklearn.accuracy_score, {}),
        (MACRO_F1, sklearn.f1_score, {"average": "macro"}),
        (MEAN_IOU, sklearn.jaccard_score, {"average": "macro"}),
    ],
    ids=["accuracy", "pixel accuracy", "macro F1", "mean IoU"],
)
def test_a_score_of_classes_is_that_of_scikit_learn(
    metric: Metric, peer: Any, options: dict[str, str]
) -> None:
    true, predicted = classes(seed=2)
    score = metric.of_sums(class_counts(confusion_matrix(true, predicted, num_classes=4)))
    assert score == pytest.approx(peer(true, predicted, **options), rel=1e-12)


@pytest.mark.parametrize(
    ("score", "peer"),
    [(class_f1, sklearn.f1_score), (class_iou, sklearn.jaccard_score)],
    ids=["F1", "IoU"],
)
def test_the_score_of_each_class_is_that_of_scikit_learn(score: Any, peer: Any) -> None:
    true, predicted = classes(seed=3)
    true[true == 2] = 3  # class 2 is predicted, and never true
    scores = score(class_counts(confusion_matrix(true, predicted, num_classes=4)))
    assert scores == pytest.approx(peer(true, predicted, average=None, zero_division=0))


@pytest.mark.parametrize("score", [class_f1, class_iou], ids=["F1", "IoU"])
def test_a_class_that_occurs_nowhere_has_no_score(score: Any) -> None:
    true, predicted = classes(seed=4)
    scores = score(class_counts(confusion_matrix(true, predicted, num_classes=5)))
    assert np.isnan(scores).tolist() == [False, False, False, False, True]


@pytest.mark.parametrize("metric", [MACRO_F1, MEAN_IOU], ids=lambda metric: metric.name)
def test_a_class_that_occurs_nowhere_does_not_count_in_the_mean(metric: Metric) -> None:
    true, predicted = classes(seed=4)
    four = metric.of_sums(class_counts(confusion_matrix(true, predicted, num_classes=4)))
    five = metric.of_sums(class_counts(confusion_matrix(true, predicted, num_classes=5)))
    assert five == four


def test_terms_of_images_add_up_to_the_counts_of_their_confusion_matrix() -> None:
    true, predicted = classes(seed=5)
    true[7] = -1
    sums = class_terms(true, predicted, num_classes=4).sum(axis=0)
    matrix = confusion_matrix(true, predicted, num_classes=4)
    assert sums.tolist() == class_counts(matrix).tolist()


def test_logits_are_resized_to_the_pixels_of_the_labels() -> None:
    left_and_right = torch.tensor([[5.0, -5.0], [-5.0, 5.0]])  # (K, cols)
    logits = left_and_right[None, :, None, :].expand(1, 2, 2, 2)
    true = torch.zeros(1, 4, 4, dtype=torch.long)
    true[0, :, 3] = 1
    # the right half, 8 pixels, is predicted as class 1, and 4 of these pixels are
    assert map_confusion(true, logits).tolist() == [[8, 4], [0, 4]]


# intervals over groups


GROUPS = [f"g{row // 4}" for row in range(40)]


def test_draws_take_whole_groups() -> None:
    truth, predictions = numbers(seed=7, targets=1)
    terms = value_terms(truth, predictions)
    by_group = terms.reshape(10, 4, *terms.shape[1:]).sum(axis=1)
    rows = GroupedTerms(terms, GROUPS).drawn_sums
    groups = GroupedTerms(by_group, range(10)).drawn_sums
    assert rows is not None
    assert groups is not None
    assert rows == pytest.approx(groups, rel=1e-12)


def test_an_interval_holds_95_percent_of_the_scores_of_draws() -> None:
    truth, predictions = numbers(seed=8, targets=1)
    draws = draw_groups(40)
    assert draws is not None
    scores = []
    for times in draws:
        rows = np.repeat(np.arange(40), times)
        scores.append(sklearn.r2_score(truth[rows], predictions[rows]))
    terms = value_terms(truth, predictions)
    ends = GroupedTerms(terms, range(40)).interval(R2)
    assert ends == pytest.approx(np.quantile(scores, [0.025, 0.975]), rel=1e-9)


@pytest.mark.parametrize(("groups", "has_interval"), [(4, False), (5, True)])
def test_four_groups_have_no_interval(groups: int, has_interval: bool) -> None:
    truth, predictions = numbers(seed=9, targets=1)
    labels = [row % groups for row in range(40)]
    grouped = GroupedTerms(value_terms(truth, predictions), labels)
    assert (grouped.interval(R2) is not None) == has_interval
    assert (grouped.interval_of_difference(R2, grouped) is not None) == has_interval


def test_a_method_has_no_difference_from_itself() -> None:
    truth, predictions = numbers(seed=10, targets=1)
    grouped = GroupedTerms(value_terms(truth, predictions), GROUPS)
    assert grouped.interval_of_difference(R2, grouped) == [0.0, 0.0]


def test_a_difference_is_that_of_this_method_minus_the_other() -> None:
    truth, predictions = numbers(seed=11, targets=1)
    good = GroupedTerms(value_terms(truth, truth), GROUPS)
    worse = GroupedTerms(value_terms(truth, predictions), GROUPS)
    ends = good.interval_of_difference(R2, worse)
    errors = worse.interval(R2)
    assert errors is not None
    assert ends == pytest.approx([1.0 - errors[1], 1.0 - errors[0]])


def test_draws_without_a_score_are_left_out_of_an_interval() -> None:
    scores = np.array([NAN, 0.0, 1.0, NAN])
    assert interval(scores) == pytest.approx([0.025, 0.975])


def test_scores_that_are_all_undefined_have_no_interval() -> None:
    assert interval(np.full(5, NAN)) is None


def test_no_rows_have_no_score_and_no_interval() -> None:
    nothing = GroupedTerms(np.zeros((0, 6, 1)), [])
    assert nothing.score(MAE) is None
    assert nothing.interval(MAE) is None


def test_an_undefined_score_is_none_in_a_report() -> None:
    assert as_number(np.float64(NAN)) is None
    assert as_number(np.float64(0.25)) == 0.25


def test_a_mean_leaves_out_what_is_not_defined() -> None:
    scores = np.array([[1.0, NAN, 3.0], [NAN, NAN, NAN]])
    means = mean_defined(scores)
    assert means[0] == 2.0
    assert math.isnan(means[1])


# panoptic segments


def test_panoptic_quality_follows_its_definition() -> None:
    """Three classes: two pairs and two segments without a partner; a missed segment; nothing."""
    iou = [0.6 + 0.8, 0.0, 0.0]
    pairs = [2.0, 0.0, 0.0]
    unpaired = [2.0, 1.0, 0.0]
    sums = np.array([iou, pairs, unpaired])
    nothing = pytest.approx(NAN, nan_ok=True)
    assert list(class_segmentation_quality(sums)) == [pytest.approx(0.7), 0.0, nothing]
    assert list(class_recognition_quality(sums)) == [pytest.approx(2 / 3), 0.0, nothing]
    assert list(class_panoptic_quality(sums)) == [pytest.approx(1.4 / 3), 0.0, nothing]


# an image of 40 pixels: a segment of class 0, one of class 1, unknown pixels, a crowd of class 0
KNOWN = KnownRegions(
    areas=np.array([12, 10, 8, 10]),
    labels=np.array([0, 1, -1, 0]),
    is_segment=np.array([True, True, False, False]),
    is_crowd=np.array([False, False, False, True]),
    is_unknown=np.array([False, False, True, False]),
)
MISSED = [[0.0, 0.0], [0.0, 0.0], [1.0, 1.0]]  # both known segments


def sums_of(shared: list[int], label: int) -> list[list[float]]:
    """IoU, pairs and segments without a partner by class, of one predicted segment."""
    terms = segment_terms(np.array([shared]), np.array([label]), KNOWN, num_classes=2)
    sums: list[list[float]] = terms.tolist()
    return sums


def test_unknown_pixels_are_left_out_of_the_iou() -> None:
    # 9 + 1 + 5 pixels; IoU 9 / (12 + 1)
    assert sums_of([9, 1, 5, 0], label=0) == [[9 / 13, 0.0], [1.0, 0.0], [0.0, 1.0]]


def test_an_iou_of_one_half_is_no_pair() -> None:
    # 8 + 4 pixels; IoU 8 / (12 + 4)
    assert sums_of([8, 4, 0, 0], label=0) == [[0.0, 0.0], [0.0, 0.0], [2.0, 1.0]]


def test_segments_of_two_classes_are_no_pair() -> None:
    assert sums_of([12, 0, 0, 0], label=1) == [[0.0, 0.0], [0.0, 0.0], [1.0, 2.0]]


def test_a_segment_in_a_crowd_of_its_class_is_not_wrong() -> None:
    assert sums_of([2, 0, 0, 3], label=0) == MISSED


def test_a_segment_in_a_crowd_of_another_class_is_wrong() -> None:
    assert sums_of([2, 0, 0, 3], label=1) == [[0.0, 0.0], [0.0, 0.0], [1.0, 2.0]]


def test_a_segment_on_unknown_pixels_is_not_wrong() -> None:
    assert sums_of([2, 0, 3, 0], label=1) == MISSED


def test_a_segment_that_is_half_unknown_is_wrong() -> None:
    assert sums_of([2, 0, 2, 0], label=1) == [[0.0, 0.0], [0.0, 0.0], [1.0, 2.0]]


def test_without_predictions_all_known_segments_are_missed() -> None:
    terms = segment_terms(np.zeros((0, 4), int), np.zeros(0, int), KNOWN, num_classes=2)
    assert terms.tolist() == MISSED


# ranked objects


def test_the_best_f1_is_the_largest_of_the_curve_of_scikit_learn() -> None:
    random = np.random.default_rng(12)
    scores = random.integers(0, 12, 80) / 12  # many are equal
    is_right = random.random(80) < scores
    precision, recall, thresholds = sklearn.precision_recall_curve(is_right, scores)
    f1 = 2 * precision * recall / (precision + recall)
    best, threshold = best_f1(scores, is_right, num_known=int(is_right.sum()))
    assert best == pytest.approx(f1.max())
    assert threshold == thresholds[f1.argmax()]


def test_objects_that_nothing_found_lower_the_f1() -> None:
    is_right = np.array([True, False, True])
    best, threshold = best_f1(np.array([0.9, 0.8, 0.7]), is_right, num_known=5)
    assert best == 2 * 2 / (3 + 5)
    assert threshold == 0.7


def test_without_a_right_object_no_score_is_best() -> None:
    assert best_f1(np.array([0.9]), np.array([False]), num_known=3) == (0.0, None)


def ranked(right: list[bool], counts: list[bool], image: list[int]) -> RankedObjects:
    """Objects at one IoU; the first image has two known objects, the second has one."""
    return RankedObjects(
        image=np.array(image),
        right=np.array([right]),
        counts=np.array([counts]),
        known=np.array([2, 1]),
    )


def test_average_precision_reads_the_best_precision_at_101_recalls() -> None:
    objects = ranked([True, False, True], counts=[True, True, True], image=[0, 0, 1])
    # recall 1/3 at a precision of 1, then 2/3 at one of 2/3: 34 recalls up to 0.33, 33 up to 0.66
    expected = (34 * 1 + 33 * 2 / 3) / 101
    assert average_precision(objects, np.array([1, 1])) == pytest.approx([expected])


def test_an_object_in_a_crowd_region_is_neither_right_nor_wrong() -> None:
    objects = ranked([True, False, True], counts=[True, False, True], image=[0, 0, 1])
    assert average_precision(objects, np.array([1, 1])) == pytest.approx([67 / 101])


def test_an_image_that_is_drawn_twice_counts_twice() -> None:
    objects = ranked([True, False, True], counts=[True, True, True], image=[0, 1, 1])

    [first_twice] = average_precision(objects, np.array([2, 0]))
    [second_twice] = average_precision(objects, np.array([1, 2]))

    assert first_twice == pytest.approx(51 / 101)
    # 4 known objects: the second image has one, twice
    # hits 1, 1, 3 of 1, 3, 5: recall 1/4 at 1, then 3/4 at 3/5
    assert second_twice == pytest.approx((26 * 1 + 50 * 3 / 5) / 101)


def test_images_without_a_known_object_have_no_average_precision() -> None:
    objects = ranked([True], counts=[True], image=[0])
    assert math.isnan(average_precision(objects, np.array([0, 0]))[0])
