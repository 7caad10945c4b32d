"""Which columns of a truth are scored. Neither pandas nor torch is imported."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Self

from dinoneck.errors import DataError
from dinoneck.evaluation.predicted_tasks import PredictedTasks, missing_parts
from dinoneck.task_facts import TaskFacts
from dinoneck.text import did_you_mean, some_of


@dataclass(frozen=True)
class TruthColumns:
    """The columns of a table that are scored.

    Attributes:
        existing: all columns of the table.
        expected: the columns that a truth is looked for in.
        classes: those that are read as classes -> the labels of their task.
        labels: those of several words in a cell -> the labels of their task.
        numbers: those of numbers.
        indicators: those of 0 and 1 of a label.
        maps: where all tasks are scored against a file of each image, their names.
    """

    existing: Sequence[str]
    expected: Sequence[str]
    classes: dict[str, tuple[str, ...]]
    labels: dict[str, tuple[str, ...]]
    numbers: list[str]
    indicators: list[str]
    maps: list[str]

    @classmethod
    def among(cls, columns: Sequence[str], predicted: PredictedTasks) -> Self:
        """Return those of a table.

        Args:
            columns: of the table.
            predicted: what the models predict.
        """
        maps = predicted.names_of_file_truths
        all_names = {task.name for task in predicted.tasks}
        if set(maps) != all_names:
            maps = []
        return cls(
            existing=columns,
            expected=predicted.expected_columns,
            classes=_class_columns(predicted, columns),
            labels=_label_columns(predicted, columns),
            numbers=_number_columns(predicted, columns),
            indicators=_all_indicator_columns(predicted, columns),
            maps=maps,
        )

    @property
    def all(self) -> list[str]:
        """The names of the columns that are scored."""
        names = [*self.classes, *self.labels, *self.numbers, *self.indicators]
        return list(dict.fromkeys(names))

    def check_any(self) -> None:
        """Raise a DataError if no column is scored, with those that there are."""
        if self.all:
            return
        if self.maps:
            raise DataError(
                f"the heads predict maps, {some_of(self.maps, 5)}, which are scored against a file of "
                f"each image, and labels is None; the truth has the columns "
                f"{some_of(self.existing, 5)}: name that of the files (labels=, --labels)"
            )
        raise nothing_to_score(self.expected, self.existing)


def nothing_to_score(names: Sequence[str], columns: Sequence[str]) -> DataError:
    """Return the error for a truth that has none of what is predicted.

    Args:
        names: what is predicted.
        columns: of the truth.
    """
    message = (
        f"the truth has none of what is predicted, {some_of(names, 5)}; it has the columns "
        f"{some_of(columns, 5)}"
    )
    for name in names:
        hint = did_you_mean(name, columns)
        if hint:
            message += f".{hint}"
            break
    return DataError(message)


def _label_columns(
    predicted: PredictedTasks, columns: Collection[str]
) -> dict[str, tuple[str, ...]]:
    """The columns of a truth that hold several words in a cell -> the labels of their task."""
    labels = {}
    for task in predicted.multilabels:
        if task.name in columns:
            labels[task.name] = task.labels
    return labels


def indicator_columns(task: TaskFacts, columns: Collection[str]) -> list[str]:
    """Return the labels of a task that have a column of 0 and 1 in a truth, where none has its words."""
    if task.name in columns:
        return []
    return [label for label in task.labels if label in columns]


def _all_indicator_columns(predicted: PredictedTasks, columns: Collection[str]) -> list[str]:
    """The columns of :func:`indicator_columns` of all tasks, each once."""
    indicators: list[str] = []
    for task in predicted.multilabels:
        indicators += indicator_columns(task, columns)
    return list(dict.fromkeys(indicators))


def _class_columns(
    predicted: PredictedTasks, columns: Collection[str]
) -> dict[str, tuple[str, ...]]:
    """The columns of a truth that are read as classes -> the labels of their task."""
    classes = {}
    for task in predicted.tasks:
        if task.is_image_class and task.name in columns:
            classes[task.name] = task.labels
    return classes


def _number_columns(predicted: PredictedTasks, columns: Collection[str]) -> list[str]:
    """The columns of a truth that are numbers: those that are predicted, and the parts of ratios that are complete."""
    classes = _class_columns(predicted, columns)
    names = []
    for column in predicted.columns:
        if column.task.name not in classes and not column.task.is_multilabel:
            names.append(column.name)
    for task in predicted.tasks:  # shares are computed from the numbers of all parts
        if task.kind == "ratio" and not missing_parts(task, columns):
            names += [part for part in task.labels if part not in classes]
    return [name for name in dict.fromkeys(names) if name in columns]
