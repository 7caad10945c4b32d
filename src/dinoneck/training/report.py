"""The scores of a cross-validation as plain values: what ``report.json`` holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dinoneck.training.crossval import HEAD, CrossValidation
from dinoneck.training.scores import Split, class_scores, mask_scores, value_scores


def scores_of(result: CrossValidation) -> dict[str, Any]:
    """Return all scores of a cross-validation.

    ``images`` and ``groups`` count all images of the table, ``predicted`` and ``groups_predicted`` those that a fold
    held out. ``scored_images``: for each target, task and ``overall``, how many of these have a known value; the scores
    rest on them alone. Keys for targets of numbers, where there are any:

    * ``scores``: method -> R² per target over all predicted images, ``overall`` (the weighted R² where the table has
      weights, else the mean over targets) and that of the ``worst fold``; None where a target does not vary;
    * ``mae``: method -> mean absolute error per target; ``target_sd``: target -> standard deviation over ``all``
      known values and in the ``folds``, None where a fold has none;
    * ``head_minus``: baseline -> 95 % interval of the head's R² minus the baseline's;
    * ``values``: target -> method -> R² and mean absolute error as by
      :func:`dinoneck.training.scores.value_scores`: pooled, with a 95 % interval, and per fold;
    * ``overall``: method -> R² of all targets, in the same form.

    ``classes`` (target -> method -> scores), ``masks`` (task -> method -> scores), ``cell_scores`` (R² per output of a
    dense task) of ``cell_images`` and ``auxiliary_scores`` follow where the run has them.
    """
    table, rows = result.table, result.rows
    split = Split([valid for _, valid in result.folds], result.groups)
    report: dict[str, Any] = {
        "images": len(table),
        "predicted": len(rows),
        "groups": len(set(result.groups)),
        "groups_predicted": len({result.groups[row] for row in rows}),
        "target_weights": {name: weight for name, weight in table.weights.items() if name in result.values},
    }
    if result.values:
        report |= _value_report(result, split, report["target_weights"])
    if result.classes:
        report["classes"] = {name: _class_report(result, name, split) for name in result.classes}
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
        report |= {"cell_scores": cells.scores(result.cells, rows), "cell_images": int(cells.known[rows].sum())}
    if result.auxiliary:
        report["auxiliary_scores"] = {
            name: _auxiliary_score(predicted, result.auxiliary_values[name], split)
            for name, predicted in result.auxiliary.items()
        }
    report["scored_images"] = _scored_images(result, rows)
    return report


def fold_scores(report: Mapping[str, Any], count: int) -> list[dict[str, float]]:
    """Return the metrics of each fold's own head on the images of the fold, by the names that head files keep.

    Args:
        report: of :func:`scores_of`.
        count: of folds.
    """
    rows = {f"R2 {name}": methods[HEAD]["r2"] for name, methods in report.get("values", {}).items()}
    if "overall" in report:
        rows["R2 overall"] = report["overall"][HEAD]
    for name, methods in {**report.get("classes", {}), **report.get("masks", {})}.items():
        kinds = ("accuracy", "macro_f1", "mean_iou", "pixel_accuracy")
        rows |= {f"{kind} {name}": methods[HEAD][kind] for kind in kinds if kind in methods[HEAD]}
    return [
        {name: row["folds"][fold] for name, row in rows.items() if row["folds"][fold] is not None}
        for fold in range(count)
    ]


def _class_report(result: CrossValidation, name: str, split: Split) -> dict[str, Any]:
    """The scores of a target of classes by method."""
    true, labels, methods = result.table.targets[name], result.table.classes[name], result.classes[name]
    return {
        method: class_scores(predicted, true, labels, split, head=None if method == HEAD else methods[HEAD])
        for method, predicted in methods.items()
    }


def _value_report(result: CrossValidation, split: Split, weights: Mapping[str, float]) -> dict[str, Any]:
    """The scores of targets of numbers, one by one and together, and the tables of them by method."""
    true, methods = np.stack(list(result.values.values()), axis=1), result.predictions  # (n, t)
    shares = [weights[name] for name in result.values] if len(weights) == len(result.values) else None

    def scored(columns: Sequence[int], shares: Sequence[float] | None = None) -> dict[str, Any]:
        head = methods[HEAD][:, columns]
        return {
            method: value_scores(
                predicted[:, columns],
                true[:, columns],
                split,
                weights=shares,
                head=None if method == HEAD else head,
            )
            for method, predicted in methods.items()
        }

    values = {name: scored([i]) for i, name in enumerate(result.values)}
    overall = scored(range(len(values)), shares)
    every = {**values, "overall": overall}
    scores: dict[str, Any] = {
        method: {name: every[name][method]["r2"]["pooled"] for name in every} for method in methods
    }
    for method, row in scores.items():
        folds = overall[method]["r2"]["folds"]
        row["worst fold"] = min((score for score in folds if score is not None), default=None)
    return {
        "scores": scores,
        "mae": {method: {name: values[name][method]["mae"]["pooled"] for name in values} for method in methods},
        "target_sd": {
            name: {"all": _spread(values[split.rows]), "folds": [_spread(values[rows]) for rows in split.folds]}
            for name, values in result.values.items()
        },
        "head_minus": {
            method: {name: every[name][method]["head_minus"]["r2"] for name in every}
            for method in methods
            if method != HEAD
        },
        "values": values,
        "overall": {method: own["r2"] for method, own in overall.items()},
    }


def _auxiliary_score(predicted: Any, true: Any, split: Split) -> float | None:
    """R² of values, accuracy of classes, over the rows where they are known."""
    found: float | None
    if true.dtype.kind == "i":
        classes = np.where(np.isnan(predicted[:, 0]), -1, predicted.argmax(axis=1))
        found = class_scores(classes, true, [*map(str, range(predicted.shape[1]))], split)["accuracy"]["pooled"]
    else:
        found = value_scores(predicted, true.reshape(predicted.shape), split)["r2"]["pooled"]
    return found


def _scored_images(result: CrossValidation, rows: Any) -> dict[str, int]:
    """How many predicted images have a known value, by what is scored."""
    known = {name: np.isfinite(values) for name, values in result.values.items()}
    known |= {"overall": np.any(list(known.values()), axis=0)} if known else {}
    known |= {name: result.table.targets[name] >= 0 for name in result.classes}
    known |= {cells.name: cells.known for cells in [result.cell_targets] if cells is not None and result.masks}
    for name, values in result.auxiliary_values.items():
        every = values.reshape(len(values), -1)
        known[name] = (every >= 0 if every.dtype.kind == "i" else np.isfinite(every)).any(axis=1)
    return {name: int(counts[rows].sum()) for name, counts in known.items()}


def _spread(values: Any) -> float | None:
    """The standard deviation of the values that are known; None where none is."""
    known = values[np.isfinite(values)]
    return float(known.std()) if len(known) else None
