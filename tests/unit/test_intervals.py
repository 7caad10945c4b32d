"""Quantiles over groups are those of the mixture, of crepes for single images, and keep their promise."""

from __future__ import annotations

import math
from fractions import Fraction
from statistics import NormalDist

import numpy as np
import pytest

from dinoneck import ConfigError, DataError
from dinoneck.intervals import (
    LEVELS,
    class_residuals,
    count_groups,
    fewest_groups,
    group_quantile,
    prediction_set,
)

NAN = math.nan


def exact_quantile(residuals: list[float], groups: list[int], level: Fraction) -> float:
    """The quantile of the mixture by its definition, in fractions."""
    num_groups = len(set(groups))
    for candidate in sorted(residuals):
        mass = Fraction(0)
        for residual, group in zip(residuals, groups, strict=True):
            if residual <= candidate:
                mass += Fraction(1, (num_groups + 1) * groups.count(group))
        if mass >= level:
            return candidate
    return math.inf


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("seed", range(20))
def test_the_quantile_is_that_of_the_mixture_in_fractions(seed: int, level: float) -> None:
    random = np.random.default_rng(seed)
    groups = random.integers(0, 12, 40).tolist()
    residuals = random.integers(0, 15, 40).astype(float).tolist()  # with ties
    expected = exact_quantile(residuals, groups, Fraction(str(level)))
    assert group_quantile(residuals, groups, level) == expected


def test_every_group_counts_the_same() -> None:
    residuals = [5.0] * 97 + [1.0, 2.0, 3.0]
    groups = ["large"] * 97 + ["a", "b", "c"]
    # the mass below or at 1, 2, 3, 5 is 1/5, 2/5, 3/5, 4/5
    assert group_quantile(residuals, groups, level=0.5) == 3.0
    assert group_quantile(residuals, groups, level=0.8) == 5.0


@pytest.mark.parametrize(
    ("level", "fewest"), [(0.5, 1), (0.8, 4), (0.9, 9), (0.95, 19), (0.7, 3), (0.99, 99)]
)
def test_a_level_needs_so_many_groups(level: float, fewest: int) -> None:
    residuals = np.arange(fewest, dtype=float)
    assert fewest_groups(level) == fewest
    assert group_quantile(residuals, range(fewest), level) == fewest - 1
    assert group_quantile(residuals[1:], range(fewest - 1), level) == math.inf


def test_images_without_truth_and_groups_of_such_images_are_left_out() -> None:
    residuals = [NAN, 1.0, 2.0, 3.0, NAN, NAN]
    groups = ["a", "a", "b", "b", "c", "c"]
    assert count_groups(residuals, groups) == 2
    # the mass at 1, 2, 3 is 1/3, 1/6, 1/6
    assert group_quantile(residuals, groups, level=0.33) == 1.0
    assert group_quantile(residuals, groups, level=0.5) == 2.0
    assert group_quantile(residuals, groups, level=0.6) == 3.0
    assert group_quantile(residuals, groups, level=0.7) == math.inf


def test_without_known_residuals_no_level_is_reached() -> None:
    assert group_quantile([NAN, NAN], ["a", "b"], level=0.5) == math.inf
    assert group_quantile([], [], level=0.5) == math.inf
    assert count_groups([NAN], ["a"]) == 0


@pytest.mark.parametrize("level", [0.0, 1.0, -0.1, 90, NAN])
def test_a_level_lies_between_0_and_1(level: float) -> None:
    message = rf"the level is {level}; expected a number between 0 and 1, such as 0\.9"
    with pytest.raises(ConfigError, match=message):
        group_quantile([1.0], ["a"], level)
    with pytest.raises(ConfigError, match=message):
        fewest_groups(level)


def test_there_is_a_group_per_residual() -> None:
    with pytest.raises(DataError, match=r"residuals have the shape \(2,\) for 3 groups"):
        group_quantile([1.0, 2.0], ["a", "b", "c"], level=0.5)


# the promise


def expected_coverage(num_groups: int, num_images: int, level: float) -> float:
    """Of one more residual out of independent, distinct ones of one distribution, in groups.

    The k-th smallest of n residuals covers k / (n + 1), whatever the distribution.
    """
    num_residuals = num_groups * num_images
    rank = math.ceil(Fraction(str(level)) * (num_groups + 1) * num_images)
    return rank / (num_residuals + 1)


@pytest.mark.parametrize(
    ("num_images", "expected"),
    # 18 of 20 groups; 360 of 381 residuals, which is 0.9 * 20 / 19 but for the last image
    [(1, 18 / 20), (20, 360 / 381)],
    ids=["single images", "groups without an effect"],
)
def test_without_a_group_effect_coverage_is_that_of_order_statistics(
    num_images: int, expected: float
) -> None:
    num_groups = 19
    random = np.random.default_rng(0)
    groups = np.repeat(np.arange(num_groups), num_images).tolist()
    coverages = []
    for _ in range(2000):
        # a residual is uniform: the quantile is the coverage
        residuals = random.uniform(size=len(groups))
        coverages.append(group_quantile(residuals, groups, level=0.9))
    assert expected == expected_coverage(num_groups, num_images, level=0.9)
    # the mean of 2000 draws with a deviation of at most 0.07
    assert np.mean(coverages) == pytest.approx(expected, abs=0.005)


def test_images_of_a_group_with_one_residual_are_one_image() -> None:
    random = np.random.default_rng(1)
    groups = np.repeat(np.arange(19), 20).tolist()
    for _ in range(20):
        of_groups = random.uniform(size=19)
        of_images = np.repeat(of_groups, 20)
        expected = group_quantile(of_groups, range(19), level=0.9)
        assert group_quantile(of_images, groups, level=0.9) == expected


@pytest.mark.parametrize("level", [0.8, 0.9])
@pytest.mark.parametrize("spread", [0.3, 0.8], ids=["weak effect", "strong effect"])
def test_an_image_of_a_new_group_is_covered_as_promised(level: float, spread: float) -> None:
    """The deviation of the errors of a group is log-normal, and its images are unequal in number.

    Coverage is between the level and that without a group effect, level * (G + 1) / G.
    """
    num_groups = 40
    random = np.random.default_rng(2)
    # the distribution of a new group by its quantiles: the coverage of a half width has no noise
    ranks = (np.arange(400) + 0.5) / 400
    deviation_of_new = np.exp([NormalDist(0, spread).inv_cdf(rank) for rank in ranks])
    coverages = []
    for _ in range(1000):
        num_images = random.integers(2, 30, num_groups)
        groups = np.repeat(np.arange(num_groups), num_images)
        deviation = np.exp(random.normal(0, spread, num_groups))
        residuals = np.abs(random.normal(0, deviation[groups]))
        half_width = group_quantile(residuals, groups.tolist(), level)
        covered = [math.erf(half_width / sigma / math.sqrt(2)) for sigma in deviation_of_new]
        coverages.append(np.mean(covered))
    coverage = np.mean(coverages)
    assert level - 0.002 <= coverage <= level * (num_groups + 1) / num_groups + 0.002
    assert coverage == pytest.approx(level, abs=0.025)


# classes


def test_the_residual_of_a_class_is_what_its_probability_lacks() -> None:
    probabilities = [[0.25, 0.75], [0.5, 0.5], [1.0, 0.0], [0.0, 1.0]]
    residuals = class_residuals(probabilities, [1, -1, 1, NAN])
    np.testing.assert_array_equal(residuals, [0.25, NAN, 1.0, NAN])


def test_a_set_holds_the_labels_within_the_quantile_and_the_likeliest() -> None:
    probabilities = [0.125, 0.625, 0.25]
    assert prediction_set(probabilities, quantile=0.75) == [1, 2]
    assert prediction_set(probabilities, quantile=0.7) == [1]
    assert prediction_set(probabilities, quantile=0.875) == [1, 2, 0]
    assert prediction_set(probabilities, quantile=0.0) == [1]
    assert prediction_set(probabilities, quantile=math.inf) == [1, 2, 0]


# crepes knows no groups. Where level * (n + 1) is whole, it takes the next larger residual: of half
# widths by rounding, as (1 - 0.9) * 20 is 1.99..., and sets hold labels whose p-value is 1 - level.
# So the numbers of images are others.


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("number", [20, 56, 98])
def test_for_single_images_half_widths_are_those_of_crepes(number: int, level: float) -> None:
    crepes = pytest.importorskip("crepes")
    errors = np.random.default_rng(number).normal(size=number)
    peer = crepes.ConformalRegressor()
    peer.fit(residuals=errors)
    [[_, expected]] = peer.predict_int(y_hat=np.zeros(1), confidence=level)
    assert group_quantile(np.abs(errors), range(number), level) == pytest.approx(
        expected, rel=1e-12
    )


@pytest.mark.parametrize("level", LEVELS)
def test_for_single_images_sets_of_labels_are_those_of_crepes(level: float) -> None:
    crepes = pytest.importorskip("crepes")
    random = np.random.default_rng(3)
    probabilities = random.dirichlet([1.0, 1.0, 1.0], 56)
    classes = random.integers(0, 3, 56)
    new = random.dirichlet([1.0, 1.0, 1.0], 200)
    residuals = class_residuals(probabilities, classes)
    peer = crepes.ConformalClassifier()
    peer.fit(alphas=residuals)
    expected = peer.predict_set(alphas=1 - new, confidence=level, smoothing=False)
    quantile = group_quantile(residuals, range(56), level)
    for row in range(200):
        labels = set(np.flatnonzero(expected[row]).tolist())
        labels.add(int(new[row].argmax()))
        assert set(prediction_set(new[row], quantile)) == labels


def test_groups_of_a_series_are_read_by_their_position() -> None:
    pandas = pytest.importorskip("pandas")
    groups = ["a", "a", "b", "c"]
    residuals = [1.0, 2.0, 3.0, 4.0]
    shuffled = pandas.Series(groups, index=[3, 2, 1, 0])
    assert group_quantile(residuals, shuffled, 0.5) == group_quantile(residuals, groups, 0.5) == 3.0
