"""How well a head does on samples that it does not learn from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from dinoneck.errors import ConfigError
from dinoneck.tasks import Task
from dinoneck.training.metrics import confusion_matrix, mean_iou, r2, weighted_r2
from dinoneck.training.targets import as_array

_Floats = np.ndarray[Any, np.dtype[np.float64]]


def validation_scores(
    tasks: Sequence[Task],
    predictions: Mapping[str, Tensor],
    targets: Mapping[str, Any],
    weights: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """Return ``val_r2/TASK``, ``val_accuracy/TASK`` (classes), ``val_mean_iou/TASK`` (masks), and ``val_r2``.

    The R² of a task with several outputs is their mean; missing values, and outputs that do not vary, are left out.
    The mean intersection over union is at the resolution of the outputs: of finer labels a cell has the most frequent.

    Args:
        tasks: of the head.
        predictions: task -> (m, ...) in original units.
        targets: task -> the true values of the same samples, NaN (classes: -1) = missing.
        weights: task -> weight in the overall R²; None = the plain mean of the tasks' R².
    """
    scored = {"classification": ("val_accuracy", _accuracy), "segmentation": ("val_mean_iou", _mean_iou)}
    found: dict[str, float] = {}
    for task in tasks:
        metric, score = scored.get(task.kind, ("val_r2", _r2))
        value = score(task, predictions[task.name], as_array(targets[task.name]))
        found |= {} if value is None else {f"{metric}/{task.name}": value}
    if weights:
        overall = _weighted(predictions, targets, weights)
    else:
        each = [value for name, value in found.items() if name.startswith("val_r2/")]
        overall = float(np.mean(each)) if each else None
    return found if overall is None else {**found, "val_r2": overall}


def check_weights(tasks: Sequence[Task], weights: Mapping[str, float] | None) -> None:
    """Refuse weights of anything but tasks with one value.

    Raises:
        ConfigError: naming it.
    """
    single = [task.name for task in tasks if task.dim == 1 and task.kind in ("regression", "density")]
    for name, weight in (weights or {}).items():
        if name not in single or not 0 <= weight < float("inf"):
            raise ConfigError(f"target_weights has {name!r}: {weight}; expected 0 or more for some of {single}")
    if weights is not None and not sum(weights.values()):
        raise ConfigError("target_weights are all 0; there is nothing to score")


def _weighted(
    predictions: Mapping[str, Tensor], targets: Mapping[str, Any], weights: Mapping[str, float]
) -> float | None:
    pred, true = (np.column_stack([_columns(table[name]) for name in weights]) for table in (predictions, targets))
    known = np.isfinite(true).all(axis=1)
    if not known.any() or not np.ptp(true[known]):
        return None
    return weighted_r2(pred[known], true[known], list(weights.values()))


def _accuracy(task: Task, predicted: Tensor, true: Any) -> float | None:
    known = true >= 0 if task.ignore_index is None else (true >= 0) & (true != task.ignore_index)
    if not known.any():
        return None
    return float((predicted.argmax(dim=1).cpu().numpy() == true)[known].mean())


def _mean_iou(task: Task, predicted: Tensor, true: Any) -> float | None:
    classes = predicted.argmax(dim=1).cpu().numpy()
    if true.ndim == 3:
        count, rows, cols = classes.shape
        blocks = true.reshape(count, rows, true.shape[1] // rows, cols, true.shape[2] // cols)
        shares = np.stack([(blocks == k).mean(axis=(2, 4)) * (k != task.ignore_index) for k in range(task.dim)], axis=1)
    else:
        shares = np.where(np.isnan(true).any(axis=1, keepdims=True), 0.0, true)
    known = shares.sum(axis=1) > 0
    if not known.any():
        return None
    return mean_iou(confusion_matrix(classes, shares.argmax(axis=1), task.dim, mask=known))[0]


def _r2(task: Task, predicted: Tensor, true: Any) -> float | None:
    """The mean R² of the outputs that vary; maps count cell by cell."""
    scores = []
    for pred, column in zip(_columns(predicted).T, _columns(true).T, strict=True):
        known = np.isfinite(column)
        if known.any() and np.ptp(column[known]):
            scores.append(r2(pred[known], column[known]))
    return float(np.mean(scores)) if scores else None


def _columns(values: Any) -> _Floats:
    """(n, dim) of (n,), (n, dim) or maps (n, dim, rows, cols)."""
    wide = as_array(values).astype(np.float64)
    if wide.ndim == 1:
        return wide[:, None]
    return np.moveaxis(wide, 1, -1).reshape(-1, wide.shape[1])
