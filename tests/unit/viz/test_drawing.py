"""The numbers beside a chart of predicted over known values."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dinoneck.viz.drawing import scores

sklearn = pytest.importorskip("sklearn.metrics")


def test_the_numbers_are_those_of_scikit_learn_and_numpy() -> None:
    random = np.random.default_rng(0)
    known = 5 * random.normal(size=30) + 100
    predicted = known + random.normal(size=30)
    compared = scores(predicted, known)
    assert compared == {
        "images": 30,
        "r2": pytest.approx(sklearn.r2_score(known, predicted), rel=1e-12),
        "mae": pytest.approx(sklearn.mean_absolute_error(known, predicted), rel=1e-12),
        "rmse": pytest.approx(sklearn.root_mean_squared_error(known, predicted), rel=1e-12),
        "bias": pytest.approx(np.mean(predicted - known), rel=1e-12),
        "sd": pytest.approx(np.std(known), rel=1e-12),
    }


def test_equal_known_values_have_no_r2() -> None:
    # the mean of three float64 of 0.1 is another number: their deviations are rounding
    compared = scores([0.2, 0.1, 0.3], [0.1, 0.1, 0.1])
    assert math.isnan(compared["r2"])
    assert compared["sd"] == 0.0
