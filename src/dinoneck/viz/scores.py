"""How far predictions are from known values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

_Array = np.ndarray[Any, Any]


class Scores(NamedTuple):
    """How far predictions are from known values.

    Attributes:
        photos: those whose value is known.
        r2: 1 - squared errors / squared deviations of the known values from their mean; NaN if those do not differ.
        mae: mean absolute error.
        rmse: root of the mean squared error.
        bias: mean of predicted minus known.
        sd: standard deviation of the known values, which MAE and RMSE compare with.
    """

    photos: int
    r2: float
    mae: float
    rmse: float
    bias: float
    sd: float


def scores(predicted: Sequence[float] | _Array, known: Sequence[float] | _Array) -> Scores:
    """Compare predictions with known values, at least one of them.

    Examples:
        >>> scores([1.0, 2.0, 4.0], [1.0, 2.0, 3.0]).r2
        0.5
    """
    truth = np.asarray(known, np.float64)
    gap = np.asarray(predicted, np.float64) - truth
    spread = float(((truth - truth.mean()) ** 2).sum())
    squared = float((gap**2).sum())
    return Scores(
        len(truth),
        1.0 - squared / spread if spread > 0 else math.nan,
        float(np.abs(gap).mean()),
        math.sqrt(squared / len(truth)),
        float(gap.mean()),
        float(truth.std()),
    )
