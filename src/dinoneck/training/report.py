"""Steps 8 and 9 of a run: held-out predictions, and their scores as plain values, target -> method -> score."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from dinoneck.errors import DataError
from dinoneck.heads.head import Head
from dinoneck.metrics import map_confusion
from dinoneck.tasks import MEAN_KEY, OVERALL, OVERALL_MEAN
from dinoneck.training.folds import Fold
from dinoneck.training.scores import Split, score_classes, score_pixels, score_values
from dinoneck.training.table import groups_of
from dinoneck.training.tasks import HEAD, Problem, Scored, prediction_column
from dinoneck.training.token_sources import TokenSource, in_batches

ENOUGH_IMAGES, ENOUGH_GROUPS = 50, 10  # to compare methods
_MAIN = ("r2", "accuracy", "mean_iou")
_IN_FILE = {"r2": "R2", "accuracy": "accuracy", "macro_f1": "macro_f1", "mean_iou": "mean_iou"}
_UNKNOWN = {"value": np.nan, "map": np.nan, "class": -1, "mask": 0}
Methods = dict[str, dict[str, Any]]
"""Method -> target -> predictions of all rows: NaN, -1 or a matrix of zeros where a row is not predicted."""
_BATCH = 16


@torch.no_grad()
def write_predictions(
    problem: Problem,
    tokens: TokenSource,
    head: Head,
    valid: Sequence[int],
    predictions: dict[str, Any],
) -> None:
    """Write what a head predicts for the held-out rows into the predictions, target -> values of all rows.

    Raises:
        DataError: if a prediction is not finite.
    """
    device = next(head.parameters()).device
    for rows in in_batches(valid, _BATCH):
        batch = tokens.batch([tokens.ids[row] for row in rows]).to(device)
        outputs = {name: x.float().cpu() for name, x in head.eval().predict(batch).items()}
        for name, target in problem.scored.items():
            x: Any = outputs[target.output][:, target.places]
            if not bool(x.isfinite().all()):
                raise DataError(
                    f"the predictions of {name} are not finite: training diverged; lower lr (--lr)"
                )
            if target.kind == "mask":
                x = [
                    map_confusion(problem.pixels(row), each[None])
                    for row, each in zip(rows, x, strict=True)
                ]
            elif target.kind == "class":
                x = x.argmax(dim=1)
            predictions[name][rows] = x


def no_predictions(scored: Mapping[str, Scored]) -> dict[str, Any]:
    """Return target -> the predictions of all rows by a method, of which none is known yet."""
    return {
        name: np.full_like(target.truth, _UNKNOWN[target.kind]) for name, target in scored.items()
    }


def summary(
    table: Any,
    scored: Mapping[str, Scored],
    predictions: Methods,
    folds: Sequence[Any],
    units: Mapping[str, str] = {},
) -> dict[str, Any]:
    """Return what a report holds of the scores of methods: counts, scores, target weights and the verdict.

    Args:
        table: the images.
        scored: the targets.
        predictions: of the methods; the first is compared with the others.
        folds: the rows that each fold held out; where there are none, there are no scores.
        units: target -> its unit, empty where it is not stated.
    """
    groups, folds = groups_of(table), [valid for valid in folds if len(valid)]
    weights = {
        name: weight for name, weight in table.attrs.get("weights", {}).items() if name in scored
    }
    scores: dict[str, Any] = {}
    line = "one head on all images; none is held out"
    if folds:
        split = Split(folds, groups)
        scores = scores_of(scored, predictions, split, weights)
        num_groups = len({groups[row] for fold in folds for row in fold})
        line = verdict(scores, num_groups, next(iter(predictions)), mean=mean_name(scored))
    named: dict[str, Any] = {}
    if OVERALL in scored:
        named[MEAN_KEY] = mean_name(scored)
    stated = {name: unit for name, unit in units.items() if unit}
    if stated:
        named["units"] = stated
    return {
        "images": len(table),
        "predicted": sum(map(len, folds)),
        "groups": len({*groups}),
        "scores": scores,
        "auxiliary": [name for name, target in scored.items() if target.auxiliary],
        "target_weights": weights,
        "verdict": line,
        **named,
    }


def mean_name(targets: Container[str]) -> str:
    """Return what scores call the mean over the targets, which is another name beside a target ``overall``."""
    return OVERALL_MEAN if OVERALL in targets else OVERALL


def scores_of(
    scored: Mapping[str, Scored],
    predictions: Methods,
    split: Split,
    weights: Mapping[str, float] = {},
) -> dict[str, dict[str, dict[str, Any]]]:
    """Return target -> method -> the scores of :mod:`dinoneck.training.scores`.

    ``overall`` is the R² of all targets that are values, not auxiliary and predicted by every
    method: the weighted R² where all have weights, else the mean over targets. Beside a target of
    that name it is called ``overall (mean)``.

    Args:
        scored: the targets.
        predictions: of the methods; the first is compared with the others.
        split: the folds and groups of the rows.
        weights: target -> its weight in the weighted R².
    """
    first, every = next(iter(predictions)), {**scored}
    mean = mean_name(scored)
    values = []
    for name, target in scored.items():
        is_shared = all(name in arrays for arrays in predictions.values())
        if target.kind == "value" and not target.auxiliary and is_shared:
            values.append(name)
    methods = {method: {**arrays} for method, arrays in predictions.items()}
    if values:
        truth = np.concatenate([scored[name].truth for name in values], axis=1)
        every[mean] = Scored("value", mean, slice(None), truth)
        for arrays in methods.values():
            arrays[mean] = np.concatenate([arrays[name] for name in values], axis=1)
    shares = [weights[name] for name in values] if weights.keys() >= {*values} else None
    scores: dict[str, dict[str, dict[str, Any]]] = {name: {} for name in every}
    for name, target in every.items():
        for method in (method for method, arrays in methods.items() if name in arrays):
            scores[name][method] = _score(
                target,
                methods[method][name],
                split,
                weights=shares if name == mean else None,
                reference=None if method == first else methods[first].get(name),
            )
    return scores


def _score(
    target: Scored,
    predictions: Any,
    split: Split,
    *,
    weights: Sequence[float] | None,
    reference: Any,
) -> dict[str, Any]:
    """The scores of one method on a target of any kind."""
    if target.kind == "class":
        return score_classes(target.truth, predictions, split, target.labels, reference=reference)
    if target.kind == "mask":  # the matrices hold the truth
        return score_pixels(predictions, split, target.labels, reference=reference)
    return score_values(target.truth, predictions, split, weights=weights, reference=reference)


def fold_metrics(scores: Mapping[str, Mapping[str, Any]], method: str = HEAD) -> dict[str, float]:
    """Return the scores of a method by the names that head files keep."""
    return {
        f"{name} {target}": methods[method][metric]["pooled"]
        for target, methods in scores.items()
        for metric, name in _IN_FILE.items()
        if methods.get(method, {}).get(metric, {}).get("pooled") is not None
    }


def verdict(
    scores: Mapping[str, Mapping[str, Any]],
    groups: int,
    first: str = HEAD,
    *,
    mean: str = OVERALL,
) -> str:
    """Return which of several methods scores best, and whether its difference from the first one is clear.

    Args:
        scores: of :func:`scores_of`.
        groups: how many groups were predicted; below 10, or below 50 images, there are too few to
            tell.
        first: the method that was compared with the others.
        mean: what the scores call the mean over the targets; without it the first target counts
            that the first method and another one predict.
    """
    target = mean if mean in scores else _first_shared(scores, first)
    methods = scores[target]
    metric = next(name for name in _MAIN for held in methods.values() if name in held)
    pooled = {
        name: held[metric]["pooled"]
        for name, held in methods.items()
        if held[metric]["pooled"] is not None
    }
    if first not in pooled or len(pooled) < 2:
        return f"{target}: there is nothing to compare {first!r} with"
    best, second, *_ = sorted(pooled, key=pooled.__getitem__, reverse=True)
    rest = ", ".join(f"{name} {value:.3f}" for name, value in pooled.items() if name != best)
    line = f"{target}: best is {best} with {metric} {pooled[best]:.3f} ({rest})"
    other = second if best == first else best
    images, ends = methods[other]["images"], methods[other]["head_minus"][metric]
    if ends is None or images < ENOUGH_IMAGES or groups < ENOUGH_GROUPS:
        return (
            f"{line}; {images} images in {groups} groups are too few to tell whether the "
            "difference is clear"
        )
    clear = (
        "clear: the interval excludes 0"
        if ends[0] > 0 or ends[1] < 0
        else "not clear: the interval includes 0"
    )
    return f"{line}; {first} minus {other} is {ends[0]:+.3f} ... {ends[1]:+.3f}, {clear}"


def _first_shared(scores: Mapping[str, Mapping[str, Any]], first: str) -> str:
    """The first target that the first method and another one predict; if there is none, the first target."""
    for target, methods in scores.items():
        if first in methods and len(methods) > 1:
            return target
    return next(iter(scores))


def prediction_rows(
    table: Any, scored: Mapping[str, Scored], predictions: Methods, folds: Sequence[Fold]
) -> dict[str, list[Any]]:
    """Return the held-out images as columns: id, fold, and the true and predicted values and classes.

    What is not known is None. Auxiliary targets and maps have no columns.
    """
    fold_of: dict[int, int | None] = {}
    for fold in folds:
        fold_of.update(dict.fromkeys(fold.valid.tolist(), fold.number))
    rows = sorted(fold_of)
    columns = {"image": [table.index[row] for row in rows], "fold": [fold_of[row] for row in rows]}
    for name, target in scored.items():
        if target.kind in ("value", "class") and not target.auxiliary:
            by_method = {
                prediction_column(name, method): x[name]
                for method, x in predictions.items()
                if name in x
            }
            for key, values in {name: target.truth, **by_method}.items():
                columns[key] = [_cell(target, value) for value in values[rows]]
    return columns


def _cell(target: Scored, value: Any) -> Any:
    if target.kind == "class":
        return None if value < 0 else target.labels[value]
    return None if np.isnan(value) else float(f"{value[0]:.6g}")
