"""The targets that are scored: what the truth knows of what a model predicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dinoneck.data.arrays import class_codes
from dinoneck.data.cells import OWN_COLUMNS
from dinoneck.errors import DataError
from dinoneck.evaluation.predicted import Predicted, missing_parts
from dinoneck.inference.predictor import Predictor
from dinoneck.tasks import Task, columns_of
from dinoneck.text import some_of
from dinoneck.training.scored import ClassTarget, ScoredTarget, ValueTarget
from dinoneck.training.table import class_names, column_numbers


def value_targets(
    predictors: Mapping[str, Predictor], table: Any, predicted: Predicted
) -> dict[str, dict[str, ScoredTarget]]:
    """Return the targets of each model that have numbers or classes in the table.

    Args:
        predictors: name -> model.
        table: the truth.
        predicted: what all models predict.

    Returns:
        Name of the model -> target -> its truth, and where the model predicts it.

    Raises:
        DataError: if the truth has a class that a model does not know, or a part of a ratio is
            negative.
    """
    targets_of_models = {}
    for name, predictor in predictors.items():
        targets = _column_targets(predictor.tasks, table)
        for task in predictor.tasks:
            if predicted.has_scored_shares(task) and not missing_parts(task, table.columns):
                for part, target in _share_targets(task, table).items():
                    targets.setdefault(part, target)  # of two ratios the first one counts
        targets_of_models[name] = targets
    return targets_of_models


def class_labels(task: Task) -> tuple[str, ...]:
    """Return the names of the classes of a task; without names they are called ``0``, ``1``, ..."""
    return task.labels or tuple(str(number) for number in range(task.dim))


def _column_targets(tasks: Sequence[Task], table: Any) -> dict[str, ScoredTarget]:
    """The targets that have a column of their own in the table: numbers, and the classes of a task."""
    targets: dict[str, ScoredTarget] = {}
    for column, task, place in columns_of(tasks):
        # the groups of the table are not the truth of a class "group"
        if column in OWN_COLUMNS or task.name in OWN_COLUMNS:
            continue
        if task.kind == "classification":
            # a column per class, and one truth for all of them
            if place == 0 and task.name in table:
                labels = class_labels(task)
                codes = np.asarray(class_codes(table[task.name], task.name, labels))
                targets[task.name] = ClassTarget(task.name, truth=codes, labels=labels)
        elif column in table and not class_names(table, column):
            numbers = column_numbers(table, column)[:, None]
            targets[column] = ValueTarget(task.name, columns=(place,), truth=numbers)
    return targets


def _share_targets(ratio: Task, table: Any) -> dict[str, ValueTarget]:
    """The shares of a ratio by the columns of its parts, as training scores them.

    Raises:
        DataError: if a part is negative.
    """
    parts = np.stack([column_numbers(table, part) for part in ratio.labels], axis=1)
    is_negative = (parts < 0).any(axis=1)
    if is_negative.any():
        image_id = table.index[is_negative][0]
        raise DataError(
            f"the parts {some_of(ratio.labels, 5)} of {ratio.name} have a negative value of "
            f"{image_id!r}, which has no share; correct it"
        )
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = parts / parts.sum(axis=1, keepdims=True)  # of nothing the shares are unknown
    targets = {}
    for i, part in enumerate(ratio.labels):
        targets[part] = ValueTarget(ratio.name, columns=(i,), truth=shares[:, i : i + 1])
    return targets
