"""R² per target and the competition's weighted R², in float64, with every misfit refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dinoneck.errors import DataError

Table = Mapping[str, Any] | np.ndarray[Any, Any] | Sequence[Any]
_Floats = np.ndarray[Any, np.dtype[np.float64]]


def r2(predictions: Any, targets: Any) -> float:
    """Return 1 - SS_res / SS_tot of one target; 0 is as good as its mean.

    Raises:
        DataError: for NaN, different lengths, or targets that are all equal.
    """
    return weighted_r2(_column(predictions), _column(targets), [1.0])


def weighted_r2(predictions: Table, targets: Table, weights: Mapping[str, float] | Sequence[float]) -> float:
    """Return the weighted R² of all targets together.

    Every (photo, target) pair is one row with its target's weight; there is one global weighted mean, not one
    per target: 1 - sum w (y - p)² / sum w (y - mean_w)².

    Args:
        predictions: ``{target: n values}``, or an (n, t) array.
        targets: likewise.
        weights: ``{target: weight}``, or t weights.

    Raises:
        DataError: for NaN, lengths or names that do not fit, weights that are negative or all 0, or constant targets.

    Examples:
        >>> targets = {"a": [1, 2], "b": [10, 10]}
        >>> round(weighted_r2({"a": [1, 2], "b": [9, 9]}, targets, {"a": 0.5, "b": 0.5}), 4)
        0.9725
    """
    if isinstance(targets, Mapping):
        names = list(targets)
        for what, given in (("predictions", predictions), ("weights", weights)):
            if not isinstance(given, Mapping) or set(given) != set(names):
                held = sorted(given) if isinstance(given, Mapping) else type(given).__name__
                raise DataError(f"the {what} hold {held}; the targets hold {sorted(names)}")
        pred = _stack([predictions[name] for name in names], "predictions")  # type: ignore[call-overload]
        true = _stack([targets[name] for name in names], "targets")
        shares = np.array([float(weights[name]) for name in names])  # type: ignore[call-overload]
    else:
        if isinstance(predictions, Mapping) or isinstance(weights, Mapping):
            raise DataError("predictions, targets and weights must all be dicts by target name, or none of them")
        pred, true = np.asarray(predictions, np.float64), np.asarray(targets, np.float64)
        shares = np.asarray(weights, np.float64)
    return _score(pred, true, shares)


def _score(pred: _Floats, true: _Floats, shares: _Floats) -> float:
    if pred.shape != true.shape or true.ndim != 2 or shares.shape != true.shape[1:]:
        raise DataError(
            f"predictions {pred.shape}, targets {true.shape} and weights {shares.shape} do not fit; expected (n, t), "
            "(n, t) and (t,)"
        )
    for what, values in (("predictions", pred), ("targets", true), ("weights", shares)):
        if not np.isfinite(values).all():
            raise DataError(f"{int((~np.isfinite(values)).sum())} of the {what} are not finite")
    if not true.size or (shares < 0).any() or not shares.sum():
        raise DataError(f"nothing to score: {true.shape} targets with weights {shares.tolist()}")
    mean = (true * shares).sum() / (len(true) * shares.sum())
    spread = (shares * (true - mean) ** 2).sum()
    if spread <= 0:
        raise DataError("the targets are all equal; R² is not defined")
    return float(1.0 - (shares * (true - pred) ** 2).sum() / spread)


def _stack(columns: Sequence[Any], what: str) -> _Floats:
    arrays = [np.asarray(column, np.float64).reshape(-1) for column in columns]
    if len({len(array) for array in arrays}) > 1:
        raise DataError(f"the {what} differ in length: {[len(array) for array in arrays]}")
    return np.stack(arrays, axis=1)


def _column(values: Any) -> _Floats:
    return np.asarray(values, np.float64).reshape(-1, 1)
