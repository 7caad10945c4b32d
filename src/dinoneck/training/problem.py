"""Step 4 of a run: what the heads of a config and a table learn."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dinoneck.data.arrays import Array
from dinoneck.data.cells import LABELS, is_missing
from dinoneck.data.preprocessing import Preprocessing
from dinoneck.errors import ConfigError, DataError
from dinoneck.losses.composition import Composition
from dinoneck.tasks import (
    OVERALL_MEAN,
    OVERALL_WEIGHTED,
    TABLE_COLUMNS,
    TargetTransform,
    Task,
    columns_of,
)
from dinoneck.text import some_of
from dinoneck.training.composed_columns import ComposedColumns, read_compositions
from dinoneck.training.config import TaskConfig, TrainConfig
from dinoneck.training.learned_tasks import (
    LearnedTask,
    LearnedTasks,
    build_task,
    column_specs,
    map_spec,
    propose_from_map,
    read_columns,
)
from dinoneck.training.masks import map_task, read_maps
from dinoneck.training.targets import known

HEAD = "head"
LINEAR = "linear"
BOTH = "head + linear"
METHODS = (HEAD, LINEAR, BOTH)
"""What predicts in a run: its head, the linear baseline, and their mean."""


def prediction_column(target: str, method: str) -> str:
    """Return the column of a method's predictions in ``out_of_fold.csv``; the target's has the known values."""
    return f"{target} ({method})"


class Scored(NamedTuple):
    """A target that is scored.

    Attributes:
        kind: ``value``, ``class``, ``mask`` (classes per pixel) or ``map`` (numbers per patch).
        output: of ``head.predict``.
        places: of the target among the output's columns.
        truth: (n, t) values, (n,) class indices, or (n, 1, rows, cols); what is missing is NaN or
            -1. Of masks zeros (n, K, K), as confusion matrices are.
        labels: class names.
        auxiliary: whether it only helps training: it does not count in the overall score.
    """

    kind: str
    output: str
    places: slice
    truth: Array
    labels: tuple[str, ...] = ()
    auxiliary: bool = False


def _no_pixels(row: int) -> Tensor:
    """The classes (1, 1, 1) of an image without a mask, -1."""
    return torch.full((1, 1, 1), -1)


@dataclass(frozen=True)
class Problem:
    """What the heads of a run learn; rows are those of the table, n images.

    Attributes:
        tasks: of every head; their transforms are fitted on the training rows of each fold, see
            :func:`fitted`.
        targets: task name -> values of all images in original units: numbers (n,) or (n, outputs)
            in float64, class indices (n,) in int64, or maps (n, outputs, rows, cols). NaN or -1 is
            missing.
        weights: dense task -> (n, rows, cols), how much a patch counts.
        compositions: what is computed from tasks.
        scored: target -> where its predictions are, and the truth.
        pixels: returns the classes (1, height, width) of a row's prepared image, see
            :class:`dinoneck.training.masks.Maps`.
    """

    tasks: Sequence[Task]
    targets: Mapping[str, Tensor]
    weights: Mapping[str, Tensor]
    compositions: Sequence[Composition]
    scored: Mapping[str, Scored]
    pixels: Callable[[int], Tensor] = _no_pixels


def read_problem(config: TrainConfig, table: Any, preprocess: Preprocessing) -> Problem:
    """Return what the heads of a config and a table learn.

    Args:
        config: the run.
        table: of :func:`dinoneck.training.table.table_of`.
        preprocess: what prepares the images; masks are read as it prepares theirs.

    Raises:
        ConfigError: if a task or a composition names what is not there, or columns of another kind.
        DataError: if values or masks cannot be used.
    """
    specs = column_specs(config, table)
    map_name, map_kind = map_task(config, table)
    learned = {name: read_columns(name, spec, table) for name, spec in specs.items()}
    maps = None
    if config.data.labels is not None:
        spec = map_spec(config, map_name, map_kind, specs)
        maps = read_maps(config.data, table, preprocess)
        learned[map_name] = LearnedTask(map_name, spec, labels=maps.names, values=maps.values)
    if not learned:
        raise ConfigError(
            "which columns are to be predicted? Name them with data.targets (--targets), or "
            "data.labels"
        )

    tasks = [build_task(config, task, learned, maps) for task in learned.values()]
    targets = {name: task.values for name, task in learned.items()}
    _check_known(tasks, targets, learned, table)
    weights = {}
    if maps is not None and map_kind == "dense":
        weights[map_name] = maps.weight
        propose_from_map(learned, map_name, maps.weight)

    composed = read_compositions(config, learned, table)
    compositions = [columns.composition for columns in composed]
    scored = _choose_scored(tasks, learned, composed)
    _check_columns(tasks, compositions)
    _check_scored(scored)
    return Problem(
        tasks=tasks,
        targets=targets,
        weights=weights,
        compositions=compositions,
        scored=_numbers_first(scored, table),
        pixels=_no_pixels if maps is None else maps.pixels,
    )


# what is scored


def _choose_scored(
    tasks: Sequence[Task], learned: LearnedTasks, composed: Sequence[ComposedColumns]
) -> dict[str, Scored]:
    """Return what is scored: target -> where its predictions are, and the truth.

    A column that several outputs predict is scored once: by the task of the column, else by a
    composition, else by a ratio, which predicts its share only. Of two ratios the first counts, of
    two compositions the last.

    Raises:
        ConfigError: if two tasks have a target of one name.
    """
    by_tasks: dict[str, Scored] = {}
    by_ratios: dict[str, Scored] = {}
    for task in tasks:
        targets = _scored(task, learned[task.name].spec, learned[task.name].values)
        if task.kind == "ratio":
            by_ratios = targets | by_ratios
            continue
        for target in targets:
            if target in by_tasks:
                raise ConfigError(
                    f"tasks {by_tasks[target].output!r} and {task.name!r} both have a target "
                    f"{target!r}; rename one of them, or its class"
                )
        by_tasks |= targets
    by_compositions: dict[str, Scored] = {}
    for columns in composed:
        by_compositions |= _scored_columns(columns)
    # of equal names the last one counts
    return by_ratios | by_compositions | by_tasks


def _scored_columns(columns: ComposedColumns) -> dict[str, Scored]:
    """The columns of a composition that are scored: those that the table has."""
    composition = columns.composition
    targets = {}
    for place, column in enumerate(composition.names):
        if column in columns.truth:
            targets[column] = Scored(
                kind="value",
                output=composition.name,
                places=slice(place, place + 1),
                truth=columns.truth[column],
            )
    return targets


def _numbers_first(scored: Mapping[str, Scored], table: Any) -> dict[str, Scored]:
    """Return the targets in the order of reports: numbers as the table's columns, then the rest."""
    ordered = {}
    for column in table.columns:
        if column in scored and scored[column].kind == "value":
            ordered[column] = scored[column]
    return ordered | dict(scored)


def _scored(task: Task, spec: TaskConfig, values: Tensor) -> dict[str, Scored]:
    """The targets of a task that are scored, and where their predictions are."""
    name, truth, whole = task.name, values.numpy(), slice(None)
    if task.kind == "classification":
        key = name if spec.auxiliary else spec.columns[0]
        return {key: Scored("class", name, whole, truth, task.labels, spec.auxiliary)}
    if task.kind == "segmentation":
        return {
            name: Scored(
                "mask",
                name,
                whole,
                np.zeros((len(truth), task.dim, task.dim), np.int64),
                task.labels,
            )
        }
    if task.kind == "dense":
        keys = (
            [name]
            if task.dim == 1
            else [f"{name} {label}" for label in task.labels or range(task.dim)]
        )
        return {
            key: Scored("map", name, slice(i, i + 1), truth[:, i, None])
            for i, key in enumerate(keys)
        }
    truth = truth.reshape(len(truth), -1)
    if spec.auxiliary:
        return {name: Scored("value", name, whole, truth, (), True)}
    return {
        key: Scored("value", name, slice(i, i + 1), truth[:, i : i + 1])
        for i, key in enumerate(spec.columns)
    }


# names


def _check_columns(tasks: Sequence[Task], compositions: Sequence[Composition]) -> None:
    """Reject names of predicted numbers that are columns of tables already."""
    for task in tasks:
        if task.name in TABLE_COLUMNS:
            raise ConfigError(
                f"a target is called {task.name!r}, as another column of tables of predictions; "
                "rename it"
            )
    for composition in compositions:
        for name in composition.names:
            if name in TABLE_COLUMNS:
                raise ConfigError(
                    f"a sum is called {name!r}, as another column of tables of predictions; rename "
                    "it"
                )
    task_of_column: dict[str, str] = {}
    for column in columns_of(tasks):
        if column.name in task_of_column:
            raise ConfigError(
                f"tasks {task_of_column[column.name]!r} and {column.task.name!r} both have a "
                f"column {column.name!r} in tables of predictions; rename one of them, or its class"
            )
        task_of_column[column.name] = column.task.name


def _check_scored(scored: Mapping[str, Scored]) -> None:
    """Reject targets that are called like another one's column of ``out_of_fold.csv``, or the mean of scores."""
    for name in scored:
        for method in METHODS:
            column = prediction_column(name, method)
            if column in scored:
                raise ConfigError(
                    f"a target is called {column!r}, as the column of {name!r} in "
                    "out_of_fold.csv; rename it"
                )
        if name in (OVERALL_MEAN, OVERALL_WEIGHTED):
            raise ConfigError(
                f"a target is called {name!r}, as the mean over the targets; rename it"
            )


# images of which nothing is known


def _check_known(
    tasks: Sequence[Task], targets: Mapping[str, Tensor], learned: LearnedTasks, table: Any
) -> None:
    """Reject images of which nothing is known, and classes that no head can learn.

    If other images have labels, those whose label files have none are left to :func:`unlabelled_rows`.
    """
    unknown = _rows_of_nothing(tasks, targets)
    if len(unknown) < len(table):
        has_label_file = _has_label_file(tasks, table)
        unknown = unknown[~has_label_file[unknown]]
    if len(unknown):
        raise DataError(_message_of_nothing(unknown, learned, table))
    for task in tasks:
        if task.kind == "classification":
            _check_class_counts(task, targets[task.name].numpy())


def _rows_of_nothing(tasks: Sequence[Task], targets: Mapping[str, Tensor]) -> Array:
    """The rows of which nothing is known."""
    is_known = []
    for task in tasks:
        values = known(task, targets[task.name])
        is_known.append(values.reshape(len(values), -1).any(dim=1).numpy())
    return np.flatnonzero(~np.any(is_known, axis=0))


def _has_label_file(tasks: Sequence[Task], table: Any) -> Array:
    """Which rows of a table have a label file that a task learns, (n,) bool."""
    if not any(task.is_map for task in tasks):
        return np.zeros(len(table), bool)
    return np.array([not is_missing(file) for file in table[LABELS]], bool)


def _message_of_nothing(rows: Array, learned: LearnedTasks, table: Any) -> str:
    """The message for rows of which nothing is known; of shares it names the columns that are all 0."""
    names = some_of([repr(table.index[row]) for row in rows], 3)
    for task in learned.values():
        columns = list(task.spec.columns)
        if task.spec.kind == "ratio" and (table[columns].iloc[rows] == 0).all(axis=None):
            return (
                f"nothing is known of the images {names}: the columns {', '.join(columns)} of "
                f"the ratio {task.name!r} are all 0 there, so that their shares are unknown; remove "
                "the rows, or add a task of the total"
            )
    return f"nothing is known of the images {names}; fill in a value, or remove them"


def _check_class_counts(task: Task, indices: Array) -> None:
    """Check that a task has two classes or more, and two images a class on average."""
    classes, counts = np.unique(indices[indices >= 0], return_counts=True)
    num_images = counts.sum()
    if len(classes) < 2:
        only_class = task.labels[classes[0]] if len(classes) else "none"
        raise DataError(
            f"target {task.name!r} has one class alone, {only_class!r}, in {num_images} images; "
            "expected two classes or more"
        )
    if num_images < 2 * len(classes):
        raise DataError(
            f"target {task.name!r} has {len(classes)} classes in {num_images} images, "
            f"{(counts == 1).sum()} of them in one image alone; expected 2 images a class on "
            "average. Leave out the column if it holds names or notes, and kind: classification "
            "if it holds numbers"
        )


def unlabelled_rows(problem: Problem, table: Any) -> Array:
    """Return the rows whose label files have no labelled pixel, and of which nothing else is known."""
    unknown = _rows_of_nothing(problem.tasks, problem.targets)
    has_label_file = _has_label_file(problem.tasks, table)
    rows: Array = unknown[has_label_file[unknown]]
    return rows


# what depends on rows, or on a head


def take_rows(problem: Problem, rows: Array) -> Problem:
    """Return a problem of these rows alone."""
    targets = {name: values[rows] for name, values in problem.targets.items()}
    weights = {name: weight[rows] for name, weight in problem.weights.items()}
    scored = {}
    for name, target in problem.scored.items():
        scored[name] = target._replace(truth=target.truth[rows])

    def pixels(row: int) -> Tensor:
        return problem.pixels(int(rows[row]))

    return replace(problem, targets=targets, weights=weights, scored=scored, pixels=pixels)


def fitted(problem: Problem, rows: Array) -> list[Task]:
    """Return the tasks; numbers without an activation are trained on z-scores of these rows.

    Raises:
        DataError: naming the task, as :meth:`dinoneck.TargetTransform.fit` does.
    """
    tasks = []
    for task in problem.tasks:
        if _has_z_scores(task):
            values = problem.targets[task.name][torch.as_tensor(rows)]
            if task.is_map:
                values = values.movedim(1, -1).flatten(0, 2)  # one row per patch
            transform = task.transform or TargetTransform()
            try:
                task = replace(task, transform=transform.fit(values))
            except DataError as error:
                raise DataError(f"task {task.name!r}: {error}") from None
        tasks.append(task)
    return tasks


def _has_z_scores(task: Task) -> bool:
    """Whether a task is trained on z-scores; an activation holds for original units."""
    return task.kind in ("regression", "density", "dense") and task.activation is None


def with_fine_maps(problem: Problem, outputs: Mapping[str, Tensor]) -> Problem:
    """Return the problem with labels as fine as the head's map, where that is finer than the patches.

    Args:
        problem: with labels per patch.
        outputs: what a head predicts for an image: of map tasks (1, outputs, rows, cols).

    Raises:
        ConfigError: if the head's map has another size than the labels of a dense task.
    """
    targets = dict(problem.targets)
    for task in problem.tasks:
        if not task.is_map:
            continue
        size = outputs[task.name].shape[-2:]
        if size == targets[task.name].shape[-2:]:
            continue
        if task.name in problem.weights:
            raise ConfigError(
                f"the head's map of {task.name!r} is {tuple(size)}, and the labels are per patch; "
                "take dense"
            )
        targets[task.name] = _classes_at_size(problem, size)
    return replace(problem, targets=targets)


def _classes_at_size(problem: Problem, size: Sequence[int]) -> Tensor:
    """The classes of all images as maps (n, rows, cols) of a size, from their pixels."""
    num_images = len(next(iter(problem.targets.values())))
    maps = []
    for row in range(num_images):
        pixels = problem.pixels(row)[None].float()
        maps.append(F.interpolate(pixels, size, mode="nearest-exact")[0].long())
    return torch.cat(maps)
