"""The tasks that several models predict, and what a truth needs to score them."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import Self

from dinoneck.task_facts import Column, TaskFacts, columns_of


@dataclass(frozen=True)
class PredictedTasks:
    """What several models predict.

    Attributes:
        tasks: each name once, of the first model that has it.
        columns: of the tables of predictions, each name once, of the first model that has it.
    """

    tasks: list[TaskFacts]
    columns: list[Column[TaskFacts]]

    @classmethod
    def of_models(cls, tasks_of_models: Sequence[Sequence[TaskFacts]]) -> Self:
        """Collect the tasks of each model."""
        tasks: dict[str, TaskFacts] = {}
        columns: dict[str, Column[TaskFacts]] = {}
        for tasks_of_model in tasks_of_models:
            for task in tasks_of_model:
                tasks.setdefault(task.name, task)
            for column in columns_of(tasks_of_model):
                columns.setdefault(column.name, column)
        return cls(tasks=list(tasks.values()), columns=list(columns.values()))

    @property
    def names(self) -> list[str]:
        """The names of the tasks."""
        return [task.name for task in self.tasks]

    @property
    def segmentations(self) -> list[TaskFacts]:
        """The tasks that predict classes of pixels."""
        return [task for task in self.tasks if task.kind == "segmentation"]

    @property
    def share_maps(self) -> list[TaskFacts]:
        """The tasks that predict the shares of classes per patch."""
        return [task for task in self.tasks if is_share_map(task)]

    @property
    def normals(self) -> list[TaskFacts]:
        """The tasks that predict surface normals."""
        return [task for task in self.tasks if task.is_unit]

    @property
    def number_map_names(self) -> list[str]:
        """The names of the tasks that predict numbers per patch, which are no shares and no surface normals."""
        numbers = []
        for task in self.tasks:
            if task.kind == "dense" and not (is_share_map(task) or task.is_unit):
                numbers.append(task.name)
        return numbers

    @property
    def names_of_file_truths(self) -> list[str]:
        """The tasks whose truth is a file of each image: classes of pixels, shares per patch, surface normals."""
        tasks = [*self.segmentations, *self.share_maps, *self.normals]
        return list(dict.fromkeys(task.name for task in tasks))

    @property
    def multilabels(self) -> list[TaskFacts]:
        """The tasks that predict any number of labels of an image."""
        return [task for task in self.tasks if task.is_multilabel]

    @property
    def expected_columns(self) -> list[str]:
        """The columns that a truth is looked for in: those of numbers, and one for the classes or labels of a task."""
        names = []
        for column in self.columns:
            if column.task.is_image_class or column.task.is_multilabel:
                names.append(column.task.name)
            else:
                names.append(column.name)
        return list(dict.fromkeys(names))

    def has_scored_shares(self, task: TaskFacts) -> bool:
        """Return whether a task is a ratio whose parts are scored as shares.

        A part that a model predicts by itself is scored as what it is, not as a share.
        """
        if task.kind != "ratio" or not task.labels:  # without labels the parts have no columns
            return False
        names = {column.name for column in self.columns}
        names |= {column.task.name for column in self.columns}
        return names.isdisjoint(task.labels)

    def can_score_shares(self, task: TaskFacts, truth_columns: Container[str]) -> bool:
        """Return whether a task is a ratio whose parts are scored as shares, and the truth has all of them."""
        return self.has_scored_shares(task) and not missing_parts(task, truth_columns)


def is_share_map(task: TaskFacts) -> bool:
    """Return whether a task predicts the shares of several classes per patch."""
    return task.kind == "dense" and task.shares and task.dim > 1


def missing_parts(ratio: TaskFacts, truth_columns: Container[str]) -> list[str]:
    """Return the parts of a ratio that the columns of a truth lack."""
    return [part for part in ratio.labels if part not in truth_columns]
