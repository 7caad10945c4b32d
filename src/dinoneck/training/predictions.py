"""Step 8 of a run: out-of-fold predictions of the heads and of the baselines that are not heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dinoneck.errors import DataError
from dinoneck.heads.head import Head
from dinoneck.training.folds import Fold
from dinoneck.training.metrics import confusion_matrix
from dinoneck.training.probes import knn_path, out_of_fold, pooled_tokens, ridge_path
from dinoneck.training.report import BOTH, COLOUR, HEAD, KNN, LINEAR
from dinoneck.training.sources import MemoryTokens, TokenSource, in_batches
from dinoneck.training.tasks import Problem, Scored

_BATCH = 16
Methods = dict[str, dict[str, Any]]
"""Method -> target -> predictions of all rows."""


@torch.no_grad()
def write_predictions(
    problem: Problem, tokens: TokenSource, heads: Mapping[str, Head], valid: Sequence[int], predictions: Methods
) -> None:
    """Write what the heads of a fold predict for its held-out rows into the predictions.

    Raises:
        DataError: if a prediction is not finite.
    """
    device = next(next(iter(heads.values())).parameters()).device
    for rows in in_batches(valid, _BATCH):
        batch = tokens.batch([tokens.ids[row] for row in rows]).to(device)
        for method, head in heads.items():
            outputs = {name: x.float().cpu() for name, x in head.eval().predict(batch).items()}
            for name, target in problem.scored.items():
                x = outputs[target.output][:, target.places]
                if not bool(x.isfinite().all()):
                    raise DataError(
                        f"the predictions of {name} are not finite: training diverged; lower the learning rate (lr=, "
                        "--lr)"
                    )
                if target.kind == "mask":
                    for row, own in zip(rows, x, strict=True):
                        predictions[method][name][row] = _confusion(problem, row, own)
                else:
                    values = x.argmax(dim=1) if target.kind == "class" else x[:, 0] if target.kind == "map" else x
                    predictions[method][name][rows] = values.numpy()


def _confusion(problem: Problem, row: int, predicted: Tensor) -> Any:
    """The confusion matrix (K, K) of an image's pixels; predictions (K, rows, cols) are resized to them."""
    pixels = problem.maps.pixels(row)  # type: ignore[union-attr]
    classes = F.interpolate(predicted[None], pixels.shape[1:], mode="bilinear").argmax(dim=1)
    return confusion_matrix(pixels, classes, num_classes=len(predicted), ignore_index=-1)


def predictions_of_baselines(
    problem: Problem,
    tokens: TokenSource,
    folds: Sequence[Fold],
    groups: Sequence[str] | None,
    methods: Sequence[str] = (HEAD, LINEAR, BOTH),
) -> Methods:
    """Return the out-of-fold predictions of the baselines that are not heads, and room for those of the heads."""
    count = len(tokens.ids)
    found: Methods = {
        method: {name: _unknown(target, count) for name, target in problem.scored.items()} for method in methods
    }
    own = {name: target for name, target in problem.scored.items() if not target.auxiliary}
    values = [name for name, target in own.items() if target.kind == "value"]
    classes = [name for name, target in own.items() if target.kind == "class"]
    held_out = any(len(valid) for _, valid in folds)
    if held_out and (values or classes):
        features = pooled_tokens(tokens, tokens.ids)
        probes: dict[str, tuple[Any, Any]] = {KNN: (knn_path, features)}
        if isinstance(tokens, MemoryTokens) and tokens.colours is not None:
            probes[COLOUR] = (ridge_path, tokens.colours.double().numpy())
        lowest = [next((t.minimum for t in problem.tasks if t.name == own[name].output), None) for name in values]
        floor = np.array([-np.inf if low is None else low for low in lowest])
        for method, (path, x) in probes.items():
            found[method] = {}
            if values:
                true = np.concatenate([own[name].truth for name in values], axis=1)
                predicted = np.maximum(out_of_fold(x, true, folds, groups, path), floor)
                found[method] = {name: predicted[:, [i]] for i, name in enumerate(values)}
            for name in classes:
                found[method][name] = out_of_fold(x, own[name].truth, folds, groups, path, len(own[name].labels))
    return found


def _unknown(target: Scored, count: int) -> Any:
    """Predictions of all rows of a target, none of them known."""
    if target.kind == "class":
        return np.full(count, -1)
    if target.kind == "mask":
        return np.zeros((count, len(target.labels), len(target.labels)), np.int64)
    return np.full(target.truth.shape, np.nan)
