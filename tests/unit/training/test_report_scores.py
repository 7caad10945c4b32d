"""The interval of a difference of R²: it covers 0 where methods are equal, and whole groups are drawn."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from dinoneck.data import PhotoTable
from dinoneck.training import CrossValidation, r2, weighted_r2
from dinoneck.training.report import fold_scores, scores_of
from dinoneck.training.scores import Split, value_scores


def difference(y: np.ndarray, a: np.ndarray, b: np.ndarray, groups: Any = None, weights: Any = None) -> list[float]:
    """The 95 % interval of R²(a) - R²(b)."""
    split = Split([np.arange(len(y))], range(len(y)) if groups is None else groups)
    found: list[float] = value_scores(b, y, split, weights=weights, head=a)["head_minus"]["r2"]
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
        scores.append(weighted_r2(a[rows], y[rows], weights) - weighted_r2(b[rows], y[rows], weights))
    expected = np.quantile(scores, (0.025, 0.975))
    found = difference(y, a, b, groups, weights)
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_groups_that_agree_within_widen_the_interval() -> None:
    """A method that is better in three groups and worse in three shows nothing, however many images there are."""
    y = np.tile(np.linspace(-1, 1, 50), 6)
    better = np.repeat([1.0, 1.0, 1.0, -1.0, -1.0, -1.0], 50)
    a, b = y + np.where(better > 0, 0.1, 0.5), y + np.where(better > 0, 0.5, 0.1)
    low, high = difference(y, a, b, np.repeat(list("abcdef"), 50).tolist())
    assert low < -0.3 and high > 0.3


def test_a_large_common_level_loses_no_digits() -> None:
    y, a, b = problem(0)
    np.testing.assert_allclose(difference(y + 1e6, a + 1e6, b + 1e6), difference(y, a, b), rtol=1e-6)


def test_a_cross_validation_states_errors_spread_and_intervals() -> None:
    y, head, ridge = problem(0, 40)
    flat = np.zeros(40)
    groups = tuple(f"g{row // 5}" for row in range(40))
    table = PhotoTable(tuple(map(str, range(40))), (np.zeros((2, 2, 3)),) * 40, {"y": y, "flat": flat}, groups)
    folds = [(np.arange(20, 40), np.arange(20)), (np.arange(20), np.arange(20, 40))]
    predictions = {"head": np.stack([head, flat], axis=1), "token ridge": np.stack([ridge, flat], axis=1)}
    result = CrossValidation([], folds, (0, 1), table, {"y": y, "flat": flat}, predictions)
    report = scores_of(result)
    assert report["mae"]["head"]["y"] == pytest.approx(np.abs(head - y).mean())
    spread = {"all": pytest.approx(y.std()), "folds": pytest.approx([y[:20].std(), y[20:].std()])}
    assert report["target_sd"]["y"] == spread
    scores = [r2(head, y), *(r2(head[rows], y[rows]) for _, rows in folds)]
    assert report["scores"]["head"] == {
        "y": pytest.approx(scores[0]), "flat": None, "overall": pytest.approx(scores[0]),
        "worst fold": pytest.approx(min(scores[1:])),
    }  # fmt: skip
    assert report["values"]["y"]["head"]["r2"]["folds"] == pytest.approx(scores[1:])
    assert fold_scores(report, 2)[1] == {"R2 y": pytest.approx(scores[2]), "R2 overall": pytest.approx(scores[2])}
    interval = pytest.approx(list(difference(y, head, ridge, groups)))
    assert report["head_minus"] == {"token ridge": {"y": interval, "flat": None, "overall": interval}}
    assert report["groups_predicted"] == 8
    report = scores_of(replace(result, table=replace(table, groups=tuple(f"g{row // 10}" for row in range(40)))))
    assert report["groups_predicted"] == 4
    assert report["head_minus"] == {"token ridge": {"y": None, "flat": None, "overall": None}}
