"""Step 4 of a run: what the heads of a config and a table learn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dinoneck.data.arrays import Array
from dinoneck.data.class_counts import check_class_counts
from dinoneck.data.masks import MaskClasses
from dinoneck.data.table import Table
from dinoneck.errors import ConfigError, DataError
from dinoneck.images.preprocessing import Preprocessing
from dinoneck.kinds import LABEL_KINDS
from dinoneck.losses.composition import Composition
from dinoneck.task_facts import (
    NO_LABELS,
    TaskFacts,
    TaskRecord,
    columns_of_intervals,
    named_as_interval,
)
from dinoneck.tasks import (
    TABLE_COLUMNS,
    TargetTransform,
    Task,
    columns_of,
    has_direction,
    unit_vectors,
)
from dinoneck.text import counted, some_of
from dinoneck.training.composed_columns import ComposedColumns, read_compositions
from dinoneck.training.config import TrainConfig
from dinoneck.training.learned_tasks import (
    LearnedTask,
    LearnedTasks,
    build_task,
    column_specs,
    map_spec,
    read_columns,
)
from dinoneck.training.map_numbers import read_from_map
from dinoneck.training.masks import KeptMaps, Maps, map_task, read_maps
from dinoneck.training.report import check_target_names
from dinoneck.training.scored import (
    ClassTarget,
    LabelsTarget,
    MapTarget,
    PixelTarget,
    ScoredTarget,
    ValueTarget,
    VectorTarget,
    cell_targets,
)
from dinoneck.training.targets import known_mask


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
        shares: ``task:column`` -> the shares of a ratio whose column is scored as the number of
            another output. They have no scores, and intervals as scored targets do.
        maps: of masks: what was read of them, with the rows of the table that was read; None without.
    """

    tasks: Sequence[Task]
    targets: Mapping[str, Tensor]
    weights: Mapping[str, Tensor]
    compositions: Sequence[Composition]
    scored: Mapping[str, ScoredTarget]
    shares: Mapping[str, ValueTarget] = field(default_factory=dict)
    maps: Maps | None = None

    @property
    def mask_classes(self) -> MaskClasses | None:
        """Of masks of classes: which values they are."""
        return None if self.maps is None else self.maps.classes

    @property
    def with_residuals(self) -> dict[str, ScoredTarget]:
        """The targets of which held-out residuals are measured, as far as their kind has intervals."""
        return {**self.scored, **self.shares}


def read_problem(config: TrainConfig, table: Table, preprocess: Preprocessing) -> Problem:
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
    mask_task = map_task(config, table)
    learned = {name: read_columns(name, spec, table) for name, spec in specs.items()}
    maps = None
    if mask_task is not None:
        spec = map_spec(config, mask_task.name, mask_task.kind, specs)
        maps = read_maps(config.data, table, preprocess)
        learned[mask_task.name] = LearnedTask(
            mask_task.name, spec, labels=maps.names, values=maps.values
        )
        if config.data.label_kind != "normals":  # which have no numbers of images
            learned = read_from_map(
                config,
                learned,
                mask_task.name,
                weight=maps.weight,
                preprocess=preprocess,
                ids=table.ids,
            )
    if not learned:
        raise ConfigError(
            "which columns are to be predicted? Name them with data.targets (--targets), or "
            "data.labels"
        )

    tasks = [build_task(config, task, learned, maps) for task in learned.values()]
    targets = {name: task.values for name, task in learned.items()}
    _check_known(tasks, targets, learned, table)
    _check_counts(tasks, targets, learned)
    weights = {}
    if mask_task is not None and maps is not None and mask_task.kind == "dense":
        weights[mask_task.name] = maps.weight

    composed = read_compositions(config, learned, table)
    compositions = [columns.composition for columns in composed]
    scored = _choose_scored(tasks, learned, composed, maps)
    _check_column_names(tasks, compositions)
    check_target_names(scored)
    return Problem(
        tasks=tasks,
        targets=targets,
        weights=weights,
        compositions=compositions,
        scored=_numbers_first(scored, table),
        shares=_unscored_shares(tasks, learned, scored),
        maps=maps,
    )


# what is scored


def _choose_scored(
    tasks: Sequence[Task],
    learned: LearnedTasks,
    composed: Sequence[ComposedColumns],
    maps: Maps | None,
) -> dict[str, ScoredTarget]:
    """Return what is scored: target -> where its predictions are, and the truth.

    A column that several outputs predict is scored once: by the task of the column, else by a
    composition, else by a ratio, which predicts its share only. Of two ratios the first counts, of
    two compositions the last.

    Raises:
        ConfigError: if two tasks have a target of one name.
    """
    by_tasks: dict[str, ScoredTarget] = {}
    by_ratios: dict[str, ScoredTarget] = {}
    for task in tasks:
        targets = _targets_of(task, learned[task.name], maps)
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
    by_compositions: dict[str, ScoredTarget] = {}
    for columns in composed:
        by_compositions |= _composed_targets(columns)
    # of equal names the right one counts
    return by_ratios | by_compositions | by_tasks


def _unscored_shares(
    tasks: Sequence[Task], learned: LearnedTasks, scored: Mapping[str, ScoredTarget]
) -> dict[str, ValueTarget]:
    """The shares of ratios whose columns another output is scored for, called as the columns of predictions."""
    shares: dict[str, ValueTarget] = {}
    for task in tasks:
        if task.kind != "ratio":
            continue
        for column, target in _column_targets(task, learned[task.name]).items():
            is_scored = scored[column].output == task.name
            if isinstance(target, ValueTarget) and not is_scored:
                shares[f"{task.name}:{column}"] = target
    return shares


def _composed_targets(columns: ComposedColumns) -> dict[str, ScoredTarget]:
    """The targets of a composition that are scored: its columns that the table has."""
    composition = columns.composition
    targets: dict[str, ScoredTarget] = {}
    for i, column in enumerate(composition.names):
        if column in columns.truth:
            targets[column] = ValueTarget(
                composition.name, columns=(i,), truth=columns.truth[column]
            )
    return targets


def _targets_of(task: Task, learned: LearnedTask, maps: Maps | None) -> dict[str, ScoredTarget]:
    """The targets of a task that are scored."""
    if maps is not None and task.is_map:
        return _map_targets(task, maps)
    return _column_targets(task, learned)


def _column_targets(task: Task, learned: LearnedTask) -> dict[str, ScoredTarget]:
    """The targets of a task of columns that are scored, with their true values."""
    spec = learned.spec
    values = learned.values
    if task.is_image_class:
        name = task.name if spec.auxiliary else spec.columns[0]
        target = ClassTarget(
            task.name, truth=values.numpy(), labels=task.labels, auxiliary=spec.auxiliary
        )
        return {name: target}
    if task.is_multilabel:
        labels = LabelsTarget(
            task.name, truth=values.numpy(), labels=task.labels, auxiliary=spec.auxiliary
        )
        return {task.name: labels}
    truth = values.numpy().reshape(len(values), -1)
    if spec.auxiliary:
        columns = tuple(range(truth.shape[1]))
        return {task.name: ValueTarget(task.name, columns=columns, truth=truth, auxiliary=True)}
    targets: dict[str, ScoredTarget] = {}
    for i, column in enumerate(spec.columns):
        targets[column] = ValueTarget(task.name, columns=(i,), truth=truth[:, i : i + 1])
    return targets


def _map_targets(task: Task, maps: Maps) -> dict[str, ScoredTarget]:
    """The targets of the task of masks that are scored: its classes or normals by pixel, or each map by patch."""
    if task.kind == "segmentation":
        target = PixelTarget(
            task.name,
            num_rows=len(maps.values),
            num_classes=task.dim,
            labels=task.labels,
            read_pixels=maps.read_pixels,
        )
        return {task.name: target}
    if task.is_unit:
        normals = VectorTarget(task.name, num_rows=len(maps.values), read_pixels=maps.read_pixels)
        return {task.name: normals}
    return {**cell_targets(task, maps.values.numpy())}


def _numbers_first(scored: dict[str, ScoredTarget], table: Table) -> dict[str, ScoredTarget]:
    """The targets in their order in reports: numbers of images as their columns in the table, then the others."""
    numbers: dict[str, ScoredTarget] = {}
    for name in table.columns:
        target = scored.get(name)
        if isinstance(target, ValueTarget) and not target.is_per_patch:
            numbers[name] = target
    return numbers | scored


# names


def _check_column_names(tasks: Sequence[Task], compositions: Sequence[Composition]) -> None:
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
    _check_names_of_intervals(tasks, compositions)


def _check_names_of_intervals(tasks: Sequence[Task], compositions: Sequence[Composition]) -> None:
    """Reject names of predicted columns that are those of the interval of another one."""
    outputs: list[TaskFacts] = [*tasks]
    for composition in compositions:
        outputs.append(
            TaskRecord(
                name=composition.name,
                dim=len(composition.names),
                labels=composition.names,
                composed_of=composition.inputs,
            )
        )
    name = named_as_interval(outputs)
    if name is not None:
        raise ConfigError(
            f"a target is called {name!r}, as a column of the interval of "
            f"{columns_of_intervals(outputs)[name]!r} in tables of predictions; rename it"
        )


# images of which nothing is known


def _check_known(
    tasks: Sequence[Task], targets: Mapping[str, Tensor], learned: LearnedTasks, table: Table
) -> None:
    """Reject images of which nothing is known.

    If other images have labels, those whose label files have none are left to :func:`unlabelled_rows`.
    """
    unknown = _rows_of_nothing(tasks, targets)
    if len(unknown) < len(table):
        has_label_file = _has_label_file(tasks, table)
        unknown = unknown[~has_label_file[unknown]]
    if len(unknown):
        raise DataError(_message_of_nothing(unknown, learned, table))


def _check_counts(
    tasks: Sequence[Task], targets: Mapping[str, Tensor], learned: LearnedTasks
) -> None:
    """Reject classes and labels that no head can learn, as too few images have them, or all."""
    for task in tasks:
        if task.is_image_class:
            check_class_counts(task.name, _class_counts(task, targets[task.name].numpy()))
        if task.is_multilabel:
            _check_label_counts(task, targets[task.name].numpy(), learned[task.name].spec.columns)


def _rows_of_nothing(tasks: Sequence[Task], targets: Mapping[str, Tensor]) -> Array:
    """The rows of which nothing is known."""
    is_known = []
    for task in tasks:
        values = known_mask(task, targets[task.name])
        is_known.append(values.reshape(len(values), -1).any(dim=1).numpy())
    return np.flatnonzero(~np.any(is_known, axis=0))


def _has_label_file(tasks: Sequence[Task], table: Table) -> Array:
    """Which rows of a table have a label file that a task learns, (n,) bool."""
    if not any(task.is_map for task in tasks):
        return np.zeros(len(table), bool)
    return np.array([table.has_mask(row) for row in range(len(table))], bool)


def _message_of_nothing(rows: Array, learned: LearnedTasks, table: Table) -> str:
    """The message for rows of which nothing is known; of shares it names the columns that are all 0."""
    names = some_of([repr(table.ids[row]) for row in rows], 3)
    for task in learned.values():
        if task.spec.kind != "ratio":
            continue
        columns = task.spec.columns
        if all((table.numbers(column)[rows] == 0).all() for column in columns):
            return (
                f"nothing is known of the images {names}: the columns {', '.join(columns)} of "
                f"the ratio {task.name!r} are all 0 there, so that their shares are unknown; remove "
                "the rows, or add a task of the total"
            )
    for task in learned.values():
        if task.spec.kind in LABEL_KINDS and len(task.spec.columns) == 1:
            return (
                f"nothing is known of the images {names}: their cells of {task.name!r} are empty; "
                f"write {NO_LABELS} where an image has no label, or remove the rows"
            )
    return f"nothing is known of the images {names}; fill in a value, or remove them"


def _class_counts(task: Task, indices: Array) -> dict[str, int]:
    """Class -> how many images have it, of the classes that some have."""
    classes, counts = np.unique(indices[indices >= 0], return_counts=True)
    count_of_class = {}
    for k, count in zip(classes.tolist(), counts.tolist(), strict=True):
        count_of_class[task.labels[k]] = count
    return count_of_class


def _check_label_counts(task: Task, truth: Array, columns: Sequence[str]) -> None:
    """Check that every label is on some images, and not on all of which it is known."""
    for k, label in enumerate(task.labels):
        known = truth[~np.isnan(truth[:, k]), k]
        remedy = f"leave {label!r} out"
        if len(columns) == 1:
            remedy = f"remove the word {label!r} from the column {columns[0]!r}"
        if not (known == 1).any():
            raise DataError(
                f"the label {label!r} of target {task.name!r} is on none of "
                f"{counted(len(known), 'image')}; expected some with it: {remedy}, or add images "
                "that have it"
            )
        if (known == 1).all():
            raise DataError(
                f"the label {label!r} of target {task.name!r} is on all of "
                f"{counted(len(known), 'image')}; expected some without it: {remedy}, or add images "
                "that lack it"
            )


def unlabelled_rows(problem: Problem, table: Table) -> Array:
    """Return the rows whose label files have no labelled pixel, and of which nothing else is known."""
    unknown = _rows_of_nothing(problem.tasks, problem.targets)
    has_label_file = _has_label_file(problem.tasks, table)
    rows: Array = unknown[has_label_file[unknown]]
    return rows


# what depends on rows, or on a head


def take_rows(problem: Problem, rows: Array) -> Problem:
    """Return a problem of these rows alone."""
    return replace(
        problem,
        targets={name: values[rows] for name, values in problem.targets.items()},
        weights={name: weight[rows] for name, weight in problem.weights.items()},
        scored={name: target.take(rows) for name, target in problem.scored.items()},
        shares={name: target.take(rows) for name, target in problem.shares.items()},
    )


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
    weights = dict(problem.weights)
    scored = dict(problem.scored)
    for task in problem.tasks:
        if not task.is_map:
            continue
        size = outputs[task.name].shape[-2:]
        if size == targets[task.name].shape[-2:]:
            continue
        target = problem.scored.get(task.name)
        if isinstance(target, MapTarget):
            # read here, and again where it is scored
            target = replace(target, read_pixels=KeptMaps(target.read_pixels))
            scored[task.name] = target
        if isinstance(target, VectorTarget):
            targets[task.name], weights[task.name] = _normals_at_size(target, size)
            continue
        if not isinstance(target, PixelTarget):
            raise ConfigError(
                f"the head's map of {task.name!r} is {tuple(size)}, and the labels are per patch; "
                "take dense"
            )
        targets[task.name] = _classes_at_size(target, size)
    return replace(problem, targets=targets, weights=weights, scored=scored)


def _normals_at_size(target: VectorTarget, size: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The mean normals (n, 3, rows, cols) of the cells of all images, NaN = unknown, and the shares of known pixels."""
    cells = (size[0], size[1])
    maps = []
    weights = []
    for row in range(target.num_rows):
        pixels = target.read_pixels(row)
        is_known = ~pixels[:1].isnan()
        means = unit_vectors(F.adaptive_avg_pool2d(pixels.nan_to_num(), cells))
        maps.append(means.where(has_direction(means), torch.nan))
        weights.append(F.adaptive_avg_pool2d(is_known.float(), cells)[0])
    return torch.stack(maps), torch.stack(weights)


def _classes_at_size(target: PixelTarget, size: Sequence[int]) -> Tensor:
    """The classes of all images as maps (n, rows, cols) of a size, from their pixels."""
    maps = []
    for row in range(target.num_rows):
        pixels = target.read_pixels(row)[None].float()
        maps.append(F.interpolate(pixels, size, mode="nearest-exact")[0].long())
    return torch.cat(maps)
