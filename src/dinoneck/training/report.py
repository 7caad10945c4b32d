"""The scores of a cross-validation as plain values: what ``report.json`` holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from dinoneck.training.crossval import HEAD, CrossValidation
from dinoneck.training.metrics import bootstrap_difference, r2, weighted_r2
from dinoneck.training.scores import FEWEST_GROUPS, Split, class_scores, mask_scores, value_scores

_Floats = np.ndarray[Any, np.dtype[np.float64]]
Row = dict[str, float | None]


def scores_of(result: CrossValidation) -> dict[str, Any]:
    """Return all scores of a cross-validation.

    Keys for targets of numbers, where there are any:

    * ``scores``: method -> R² per target over all predicted images, ``overall`` (the weighted R² where the table has
      weights, else the mean over targets) and that of the ``worst fold``; None where a target does not vary;
    * ``mae``: method -> mean absolute error per target; ``target_sd``: target -> standard deviation over ``all``
      images and in the ``folds``;
    * ``head_minus``: baseline -> 95 % interval of the head's R² minus the baseline's;
    * ``values``: target -> R² of the head, pooled with its 95 % interval, and per fold.

    ``classes`` (target -> method -> scores), ``masks`` (task -> method -> scores), ``cell_scores`` (R² per output of a
    dense task) and ``auxiliary_scores`` follow where the run has them.
    """
    table, rows = result.table, result.rows
    split = Split([valid for _, valid in result.folds], result.groups)
    report: dict[str, Any] = {
        "photos": len(table),
        "predicted": len(rows),
        "groups": len(set(result.groups)),
        "groups_predicted": groups_predicted(result),
        "target_weights": dict(_weights(result)),
        **(_value_report(result, split) if result.values else {}),
    }
    if result.classes:
        report["classes"] = {
            name: {
                method: class_scores(
                    predicted,
                    table.targets[name],
                    table.classes[name],
                    split,
                    head=None if method == HEAD else methods[HEAD],
                )
                for method, predicted in methods.items()
            }
            for name, methods in result.classes.items()
        }
    cells = result.cell_targets
    if cells is not None and result.masks:
        labels = cells.labels or tuple(map(str, range(cells.values.shape[1])))
        report["masks"] = {
            cells.name: {
                method: mask_scores(counts, labels, split, head=None if method == HEAD else result.masks[HEAD])
                for method, counts in result.masks.items()
            }
        }
    if cells is not None and result.cells is not None:
        report["cell_scores"] = cells.scores(result.cells, rows)
    if result.auxiliary:
        report["auxiliary_scores"] = _auxiliary(result)
    return report


def fold_scores(result: CrossValidation, report: Mapping[str, Any]) -> list[dict[str, float]]:
    """Return the metrics of each fold's own head on the images of the fold, by the names that head files keep.

    Args:
        result: the cross-validation.
        report: its :func:`scores_of`.
    """
    found: list[dict[str, float]] = [{} for _ in result.folds]
    true = np.stack(list(result.values.values()), axis=1) if result.values else np.zeros((len(result.table), 0))
    for i, (_, valid) in enumerate(result.folds):
        if result.values:
            row = _row(result, result.predictions[HEAD][valid], true[valid])
            found[i] |= {f"R2 {name}": value for name, value in row.items() if value is not None}
        for name, methods in {**report.get("classes", {}), **report.get("masks", {})}.items():
            scores = methods[HEAD]
            for metric in ("accuracy", "macro_f1", "mean_iou", "pixel_accuracy"):
                if metric in scores and (value := scores[metric]["folds"][i]) is not None:
                    found[i][f"{metric} {name}"] = value
    return found


def _value_report(result: CrossValidation, split: Split) -> dict[str, Any]:
    true = np.stack(list(result.values.values()), axis=1)
    own = {name: result.predictions[HEAD][:, i] for i, name in enumerate(result.values)}
    return {
        "scores": _pooled(result, true),
        "mae": _errors(result, true),
        "target_sd": _spread(result, true),
        "head_minus": _differences(result, true),
        "values": {name: value_scores(own[name], values, split) for name, values in result.values.items()},
    }


def groups_predicted(result: CrossValidation) -> int:
    """Return how many groups (without groups: images) were predicted."""
    return len({result.groups[row] for row in result.rows})


def _weights(result: CrossValidation) -> Mapping[str, float]:
    return {name: weight for name, weight in result.table.weights.items() if name in result.values}


def _pooled(result: CrossValidation, true: _Floats) -> dict[str, Row]:
    found = {}
    for method, pred in result.predictions.items():
        row = _row(result, pred[result.rows], true[result.rows])
        in_folds = [_overall(result, pred[valid], true[valid]) for _, valid in result.folds]
        found[method] = row | {"worst fold": min((x for x in in_folds if x is not None), default=None)}
    return found


def _row(result: CrossValidation, pred: _Floats, true: _Floats) -> Row:
    """R² per target, and of all of them together."""
    row = {name: _r2(pred[:, i], true[:, i]) for i, name in enumerate(result.values)}
    return row | {"overall": _overall(result, pred, true)}


def _overall(result: CrossValidation, pred: _Floats, true: _Floats) -> float | None:
    weights = _weights(result)
    if len(weights) == len(result.values) and np.ptp(true):
        return weighted_r2(pred, true, [weights[name] for name in result.values])
    varying = [i for i in range(true.shape[1]) if np.ptp(true[:, i]) > 0]
    return float(np.mean([r2(pred[:, i], true[:, i]) for i in varying])) if varying else None


def _errors(result: CrossValidation, true: _Floats) -> dict[str, dict[str, float]]:
    rows = result.rows
    means = {method: np.abs(pred[rows] - true[rows]).mean(axis=0) for method, pred in result.predictions.items()}
    return {method: dict(zip(result.values, values.tolist(), strict=True)) for method, values in means.items()}


def _spread(result: CrossValidation, true: _Floats) -> dict[str, dict[str, Any]]:
    every = true[result.rows].std(axis=0).tolist()
    folds = np.array([true[valid].std(axis=0) for _, valid in result.folds]).T.tolist()
    return {name: {"all": every[i], "folds": folds[i]} for i, name in enumerate(result.values)}


def _differences(result: CrossValidation, true: _Floats) -> dict[str, dict[str, list[float] | None]]:
    rows, names = result.rows, list(result.values)
    groups = [result.groups[row] for row in rows]
    true, head = true[rows], result.predictions[HEAD][rows]
    varying = [i for i in range(true.shape[1]) if np.ptp(true[:, i])]
    own = _weights(result)
    weights = [own[name] for name in names] if len(own) == len(names) else None
    columns = {name: [i] if i in varying else [] for i, name in enumerate(names)}
    columns["overall"] = list(range(true.shape[1])) if weights else varying

    def interval(pred: _Floats, name: str) -> list[float] | None:
        chosen = columns[name]
        if groups_predicted(result) < FEWEST_GROUPS or not chosen:
            return None
        shares = weights if name == "overall" else None
        return list(bootstrap_difference(true[:, chosen], head[:, chosen], pred[:, chosen], groups, shares))

    baselines = {method: pred[rows] for method, pred in result.predictions.items() if method != HEAD}
    return {method: {name: interval(pred, name) for name in columns} for method, pred in baselines.items()}


def _auxiliary(result: CrossValidation) -> Row:
    """R² of values and accuracy of classes over the rows where they are known."""
    found: Row = {}
    for name, pred in result.auxiliary.items():
        values, rows = result.auxiliary_values[name], result.rows
        if values.dtype.kind == "i":
            known = rows[values[rows] >= 0]
            right = pred[known].argmax(axis=1) == values[known]
            found[name] = float(right.mean()) if len(known) else None
        else:
            known = rows[np.isfinite(values[rows]).reshape(len(rows), -1).all(axis=1)]
            columns = zip(pred[known].T, values[known].reshape(len(known), -1).T, strict=True)
            scores = [score for p, t in columns if (score := _r2(p, t)) is not None]
            found[name] = float(np.mean(scores)) if scores else None
    return found


def _r2(pred: _Floats, true: _Floats) -> float | None:
    return r2(pred, true) if len(true) and np.ptp(true) else None
