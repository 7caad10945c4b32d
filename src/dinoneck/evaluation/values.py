"""Scores of numbers, classes and labels of images, and their true values."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dinoneck.data.mask_facts import MaskFacts
from dinoneck.data.summary import DataSummary, summarise_table
from dinoneck.data.table import Classes, LabelSets, Table
from dinoneck.detection.evaluation import HeadModel
from dinoneck.errors import DataError
from dinoneck.evaluation.comparability import check_same_wholes
from dinoneck.evaluation.predicted_tasks import PredictedTasks
from dinoneck.evaluation.report import EvaluatedLabels, predict_and_score
from dinoneck.evaluation.truth_columns import indicator_columns, nothing_to_score
from dinoneck.metrics import Array
from dinoneck.task_facts import Column, TaskFacts, columns_of
from dinoneck.text import some_of
from dinoneck.training.learned_tasks import read_labels
from dinoneck.training.scored import ClassTarget, ScoredTarget, ValueTarget


def evaluate_values(
    predictors: Mapping[str, HeadModel],
    table: Table,
    predicted: PredictedTasks,
    *,
    truth_columns: Sequence[str],
    target_weights: Mapping[str, float],
    calibrate: str | os.PathLike[str] | None,
) -> dict[str, Any]:
    """Score models on the numbers and classes of a table.

    Args:
        predictors: name -> model; the first is compared with the others.
        table: the truth, without masks.
        predicted: what all models predict.
        truth_columns: all columns of the truth, for the error if none of them is predicted.
        target_weights: as of :func:`dinoneck.evaluation.report.predict_and_score`.
        calibrate: as there.

    Raises:
        ConfigError: as there, if a file cannot be calibrated.
        DataError: if the truth has nothing that is predicted, or values that cannot be scored.
    """
    targets_of_models = value_targets(predictors, table, predicted)
    if not any(targets_of_models.values()):
        raise nothing_to_score(predicted.names, truth_columns)
    unscored: dict[str, ScoredTarget] = {}
    if calibrate is not None:
        for name, predictor in predictors.items():
            unscored |= _unscored_shares(predictor.tasks, table, targets_of_models[name])
    report = predict_and_score(
        predictors,
        table,
        targets_of_models,
        target_weights=target_weights,
        calibrate=calibrate,
        unscored=unscored,
    )
    return {"data": summary_of_truth(table, predicted).to_dict(), **report}


def summary_of_truth(
    table: Table, predicted: PredictedTasks, masks: MaskFacts | None = None
) -> DataSummary:
    """Return what was read of the truth.

    Args:
        table: the truth.
        predicted: what all models predict, whose labels are columns of 0 and 1.
        masks: what its masks hold; None without masks of classes.
    """
    label_columns = {}
    for task in predicted.multilabels:
        label_columns[task.name] = indicator_columns(task, table.columns)
    return summarise_table(table, label_columns=label_columns, masks=masks)


def value_targets(
    predictors: Mapping[str, HeadModel], table: Table, predicted: PredictedTasks
) -> dict[str, dict[str, ScoredTarget]]:
    """Return the targets of each model that have numbers or classes in the table.

    Args:
        predictors: name -> model.
        table: the truth.
        predicted: what all models predict.

    Returns:
        Name of the model -> target -> its truth, and where the model predicts it.

    Raises:
        DataError: if the truth has a class that a model does not know, a part of a ratio is
            negative, or two models predict shares of different wholes.
    """
    targets_of_models = {}
    for name, predictor in predictors.items():
        targets = _column_targets(predictor.tasks, table)
        for task in predictor.tasks:
            if predicted.can_score_shares(task, table.columns):
                for part, target in _share_targets(task, table).items():
                    targets.setdefault(part, target)  # of two ratios the first one counts
        targets_of_models[name] = targets
    check_same_wholes(predictors, targets_of_models)
    return targets_of_models


def class_labels(task: TaskFacts) -> tuple[str, ...]:
    """Return the names of the classes of a task; without names they are called ``0``, ``1``, ..."""
    return task.labels or tuple(str(number) for number in range(task.dim))


def _column_targets(tasks: Sequence[TaskFacts], table: Table) -> dict[str, ScoredTarget]:
    """The targets that have a column in the table: numbers, and the classes of a task."""
    targets: dict[str, ScoredTarget] = {}
    for column in columns_of(tasks):
        task = column.task
        if task.is_image_class or task.is_multilabel:
            # it predicts a column per class or label, whose truth is read once
            if column.place == 0:
                targets |= _labelled_targets(task, table)
        elif column.name in table.columns and not table.class_names(column.name):
            targets[column.name] = _number_target(column, table)
    return targets


def _labelled_targets(task: TaskFacts, table: Table) -> dict[str, ScoredTarget]:
    """The target of a task of classes or labels; none if the table has no truth of it."""
    if task.is_image_class:
        if task.name not in table.columns:
            return {}
        return {task.name: _class_target(task, table)}
    truth = label_truth(task, table)
    if truth is None:
        return {}
    target = EvaluatedLabels(
        task.name, truth=truth, labels=task.labels, thresholds=task.label_thresholds
    )
    return {task.name: target}


def _class_target(task: TaskFacts, table: Table) -> ClassTarget:
    """The classes of a task, from a column of classes, or of their numbers."""
    labels = class_labels(task)
    codes: Array
    if isinstance(table.columns[task.name], Classes):
        codes = table.classes(task.name).codes_in(labels, task.name, table.ids)
    else:
        codes = _class_numbers(task, table)
    return ClassTarget(task.name, truth=codes, labels=labels)


def _class_numbers(task: TaskFacts, table: Table) -> Array:
    """The classes (n,) that a column of numbers holds, -1 where a cell is empty.

    Raises:
        DataError: for a number that is no class of the task.
    """
    numbers = table.numbers(task.name)
    numbers = np.where(np.isnan(numbers), -1.0, numbers)
    is_class = np.isin(numbers, np.arange(-1, task.dim))
    if not is_class.all():
        row = int(np.argmin(is_class))
        raise DataError(
            f"{task.name} of {table.ids[row]!r} is {numbers[row]:g}; expected a class, 0 ... "
            f"{task.dim - 1}, or an empty cell"
        )
    return numbers.astype(np.int64)


def label_truth(task: TaskFacts, table: Table) -> Array | None:
    """Return the labels of the images of a table (n, K), 1, 0 or NaN; None if it has none of them.

    They are words in a column of the task's name, or 0 and 1 in a column of each label.

    Raises:
        DataError: for words that are no labels of the task, and for other numbers than 0 and 1.
    """
    words = table.columns.get(task.name)
    if isinstance(words, LabelSets):
        return words.indicators_of(task.labels, task.name, table.ids)
    columns = indicator_columns(task, table.columns)
    if words is not None and task.dim == 1:
        columns = [task.name]  # the 0 and 1 of the only label
    elif words is not None:
        raise DataError(
            f"the column {task.name!r} of the truth is not read as labels; expected words among "
            f"{', '.join(task.labels)} in a CSV, read_table(..., multilabel={{{task.name!r}: ()}}), or a "
            "column of 0 and 1 for each label"
        )
    if not columns:
        return None
    _, numbers = read_labels(task.name, columns, table)
    if task.dim == 1:
        return numbers
    truth = np.full((len(table), task.dim), np.nan)
    for column, values in zip(columns, numbers.T, strict=True):
        truth[:, task.labels.index(column)] = values
    return truth


def _number_target(column: Column[TaskFacts], table: Table) -> ValueTarget:
    """The numbers of a column, (n, 1)."""
    numbers = table.numbers(column.name)[:, None]
    return ValueTarget(column.task.name, columns=(column.place,), truth=numbers)


def _unscored_shares(
    tasks: Sequence[TaskFacts], table: Table, targets: Mapping[str, ScoredTarget]
) -> dict[str, ScoredTarget]:
    """``task:part`` -> the shares of a ratio whose parts are scored as the numbers of another output."""
    shares: dict[str, ScoredTarget] = {}
    for task in tasks:
        if task.kind != "ratio" or not task.labels:
            continue
        if not all(isinstance(targets.get(part), ValueTarget) for part in task.labels):
            continue
        for part, target in _share_targets(task, table).items():
            if targets[part].output != task.name:
                shares[f"{task.name}:{part}"] = target
    return shares


def _share_targets(ratio: TaskFacts, table: Table) -> dict[str, ValueTarget]:
    """The shares of a ratio by the columns of its parts, as training scores them.

    Raises:
        DataError: if a part is negative.
    """
    parts = np.stack([table.numbers(part) for part in ratio.labels], axis=1)
    rows_with_negative = np.flatnonzero((parts < 0).any(axis=1))
    if rows_with_negative.size:
        image_id = table.ids[rows_with_negative[0]]
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
