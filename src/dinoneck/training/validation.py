"""How well a head does on samples that it does not learn from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dinoneck.errors import ConfigError
from dinoneck.tasks import Task
from dinoneck.training.metrics import r2, weighted_r2
from dinoneck.training.targets import as_array

_Floats = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class Scores:
    """The metrics of predictions in natural units.

    Attributes:
        tasks: of the head.
        targets: task -> natural values of all samples, NaN (classes: -1) = missing.
        weights: task -> weight in the overall R²; None = the plain mean of the tasks' R².
    """

    tasks: Sequence[Task]
    targets: Mapping[str, Any]
    weights: Mapping[str, float] | None = None

    def of(self, predictions: Mapping[str, Tensor], rows: Sequence[int]) -> dict[str, float]:
        """Return ``val_r2/TASK`` of values, ``val_accuracy/TASK`` of classes, and ``val_r2`` over all values.

        The R² of a task with several outputs is their mean; missing values, and outputs that do not vary, are left
        out.

        Args:
            predictions: task -> (m, ...) in natural units.
            rows: (m,), the samples they are of.
        """
        true = {task.name: as_array(self.targets[task.name])[list(rows)] for task in self.tasks}
        found: dict[str, float] = {}
        for task in self.tasks:
            if task.kind == "classification":
                accuracy = _accuracy(task, predictions[task.name], true[task.name])
                found |= {} if accuracy is None else {f"val_accuracy/{task.name}": accuracy}
            elif task.kind != "segmentation":
                score = _r2(predictions[task.name], true[task.name])
                found |= {} if score is None else {f"val_r2/{task.name}": score}
        each = [value for name, value in found.items() if name.startswith("val_r2/")]
        overall = self._weighted(predictions, true) if self.weights else float(np.mean(each)) if each else None
        return found if overall is None else {**found, "val_r2": overall}

    def _weighted(self, predictions: Mapping[str, Tensor], targets: Mapping[str, Any]) -> float | None:
        weights = self.weights or {}
        pred = np.column_stack([_columns(predictions[name]) for name in weights])
        true = np.column_stack([_columns(targets[name]) for name in weights])
        known = np.isfinite(true).all(axis=1)
        if not known.any() or not np.ptp(true[known]):
            return None
        return weighted_r2(pred[known], true[known], list(weights.values()))


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


def _accuracy(task: Task, predicted: Tensor, true: Any) -> float | None:
    known = true >= 0 if task.ignore_index is None else (true >= 0) & (true != task.ignore_index)
    if not known.any():
        return None
    return float((predicted.argmax(dim=1).cpu().numpy() == true)[known].mean())


def _r2(predicted: Tensor, true: Any) -> float | None:
    """The mean R² of the outputs that vary; maps count cell by cell."""
    scores = []
    for pred, own in zip(_columns(predicted).T, _columns(true).T, strict=True):
        known = np.isfinite(own)
        if known.any() and np.ptp(own[known]):
            scores.append(r2(pred[known], own[known]))
    return float(np.mean(scores)) if scores else None


def _columns(values: Any) -> _Floats:
    """(n, dim) of (n,), (n, dim) or maps (n, dim, rows, cols)."""
    wide = as_array(values).astype(np.float64)
    if wide.ndim == 1:
        return wide[:, None]
    return np.moveaxis(wide, 1, -1).reshape(-1, wide.shape[1])


def joined_predictions(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return the predictions of all batches, in order."""
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]} if parts else {}
