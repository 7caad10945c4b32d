"""Scores of a head on the validation samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from dinoneck.tasks import Task
from dinoneck.training.metrics import class_counts, confusion_matrix, mean_iou, r2, share_right


def validation_scores(
    tasks: Sequence[Task], predictions: Mapping[str, Tensor], targets: Mapping[str, Tensor]
) -> dict[str, float]:
    """Return ``val_r2/TASK``, ``val_accuracy/TASK`` (classes), ``val_mean_iou/TASK`` (masks), and ``val_r2``.

    The R² of a task with several outputs is the mean over those that vary, ``val_r2`` the mean over tasks. Masks are
    compared at the resolution of the labels. What is missing counts for nothing; a task without values has no score.

    Args:
        tasks: of the head.
        predictions: task -> (m, ...) in original units.
        targets: task -> the true values of the same samples, NaN (classes: -1) = missing.
    """
    scores: dict[str, float] = {}
    for task in tasks:
        output, truth = predictions[task.name].float(), targets[task.name]
        if task.is_categorical:
            if truth.is_floating_point():  # shares (m, K, rows, cols) of classes
                truth = truth.argmax(dim=1).masked_fill(truth.isnan().any(dim=1), -1)
            if task.is_map:
                output = F.interpolate(output, truth.shape[1:], mode="bilinear")
            counted = (truth >= 0) & (truth != (-1 if task.ignore_index is None else task.ignore_index))
            matrix = confusion_matrix(truth, output.argmax(dim=1), num_classes=task.dim, mask=counted)
            if matrix.any():
                name = f"val_mean_iou/{task.name}" if task.is_map else f"val_accuracy/{task.name}"
                scores[name] = mean_iou(matrix)[0] if task.is_map else float(share_right(class_counts(matrix)))
            continue
        columns = zip(truth.reshape(output.shape).unbind(1), output.double().unbind(1), strict=True)
        pairs = [(true[known].numpy(), pred[known].numpy()) for true, pred in columns for known in [true.isfinite()]]
        varying = [r2(true, pred) for true, pred in pairs if len(true) and np.ptp(true)]
        if varying:
            scores[f"val_r2/{task.name}"] = float(np.mean(varying))
    each = [score for name, score in scores.items() if name.startswith("val_r2/")]
    return {**scores, "val_r2": float(np.mean(each))} if each else scores
