"""Scores of a head on the validation samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from dinoneck.errors import ConfigError
from dinoneck.tasks import Task
from dinoneck.training.metrics import accuracy, confusion_matrix, mean_iou, mean_known, r2_terms, unexplained
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
    scores: dict[str, float | None] = {}
    for task in tasks:
        output, label = predictions[task.name], as_array(targets[task.name])
        if task.is_categorical:
            matrix = _confusion(task, output.argmax(dim=1).cpu().numpy(), label)
            if task.is_map:
                scores[f"val_mean_iou/{task.name}"] = mean_iou(matrix)[0] if matrix.any() else None
            else:
                scores[f"val_accuracy/{task.name}"] = accuracy(matrix) if matrix.any() else None
        else:
            scores[f"val_r2/{task.name}"] = _r2(_columns(output), _columns(label))
    found = {name: value for name, value in scores.items() if value is not None}
    if weights:
        pred, true = (np.column_stack([_columns(table[name]) for name in weights]) for table in (predictions, targets))
        overall = _r2(pred, true, np.array(list(weights.values())))
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


def _confusion(task: Task, classes: Any, true: Any) -> Any:
    """The confusion matrix of predicted classes, of masks at the resolution of the outputs."""
    known = (true >= 0) & (true != task.ignore_index)
    if task.is_map:
        if true.ndim == 3:
            count, rows, cols = classes.shape
            cells = true.reshape(count, rows, true.shape[1] // rows, cols, true.shape[2] // cols)
            shares = [(cells == k).mean(axis=(2, 4)) * (k != task.ignore_index) for k in range(task.dim)]
            true = np.stack(shares, axis=1)  # (n, K, rows, cols)
        true = np.where(np.isnan(true).any(axis=1, keepdims=True), 0.0, true)
        known, true = true.sum(axis=1) > 0, true.argmax(axis=1)
    return confusion_matrix(true, classes, num_classes=task.dim, mask=known)


def _r2(pred: _Floats, true: _Floats, weights: _Floats | None = None) -> float | None:
    """The mean R² of the columns (n, t) that vary, or with weights one R² of all values; NaN = missing."""
    known = np.isfinite(true)
    if not known.any():
        return None
    level = mean_known(true.T if weights is None else true.reshape(1, -1))
    true = np.where(known, true, 0.0)
    terms = r2_terms(true - level, (true - pred) ** 2)
    missing = unexplained(np.where(known[:, None], terms, 0.0).sum(axis=0), weights)
    return None if np.isnan(missing) else 1.0 - float(missing)


def _columns(values: Any) -> _Floats:
    """(n, dim) of (n,), (n, dim) or maps (n, dim, rows, cols)."""
    wide = as_array(values).astype(np.float64)
    if wide.ndim == 1:
        return wide[:, None]
    return np.moveaxis(wide, 1, -1).reshape(-1, wide.shape[1])
