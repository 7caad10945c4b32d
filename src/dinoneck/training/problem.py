"""Step 4 of a run: what the heads of a config and a table learn."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dinoneck.data.cells import LABELS, OWN_COLUMNS, is_missing
from dinoneck.data.preprocessing import Preprocessing
from dinoneck.errors import ConfigError, DataError
from dinoneck.losses.composition import Composition
from dinoneck.tasks import (
    TABLE_COLUMNS,
    TargetTransform,
    Task,
    columns_of,
)
from dinoneck.text import did_you_mean, some_of
from dinoneck.training.config import CompositionConfig, TaskConfig, TrainConfig
from dinoneck.training.masks import Maps, map_task, read_maps
from dinoneck.training.report import check_target_names
from dinoneck.training.scored import ClassTarget, PixelTarget, ScoredTarget, ValueTarget
from dinoneck.training.scores import r2
from dinoneck.training.sums import check_sum, warn_of_sums_of_shares
from dinoneck.training.table import class_names, column_numbers, column_tasks
from dinoneck.training.targets import known

FOLLOWS_R2 = 0.9  # from it on a number is taken for the mean over the map of its name
logger = logging.getLogger(__name__)
Specs = Mapping[str, TaskConfig]  # task name -> how the config describes it
_Array = np.ndarray[Any, Any]


class Problem(NamedTuple):
    """What the heads of a run learn; rows are those of the table.

    Attributes:
        tasks: their transforms are fitted on the training rows of each fold, see :func:`fitted`.
        targets: task name -> values of all images in original units, NaN or -1 = missing.
        weights: dense task -> (n, rows, cols), how much a patch counts.
        compositions: what is computed from tasks.
        scored: target -> where its predictions are, and the truth.
    """

    tasks: Sequence[Task]
    targets: Mapping[str, Tensor]
    weights: Mapping[str, Tensor]
    compositions: Sequence[Composition]
    scored: Mapping[str, ScoredTarget]


def problem_of(config: TrainConfig, table: Any, preprocess: Preprocessing) -> Problem:
    """Return what the heads of a config and a table learn; masks are read as ``preprocess`` prepares their images.

    Raises:
        ConfigError: if a task or a composition names what is not there, or columns of another kind.
        DataError: if values or masks cannot be used.
    """
    specs = _column_specs(config, table)
    map_name, map_kind = map_task(config, table)
    maps = None
    # task -> its labels and values
    learned = {name: _values(name, spec, table) for name, spec in specs.items()}
    if config.data.labels is not None:
        if map_name in specs:
            raise ConfigError(
                f"task {map_name!r} is of the masks, and a column has its name; rename the task"
            )
        specs[map_name] = spec = config.tasks.get(map_name, TaskConfig()).changed(kind=map_kind)
        if spec.columns or spec.auxiliary:
            raise ConfigError(
                f"the targets of task {map_name!r} are masks; leave out columns and auxiliary"
            )
        _check_options(map_name, map_kind, spec)
        maps = read_maps(config.data, table, preprocess)
        learned[map_name] = maps.names, maps.values
    weight = None if maps is None else maps.weight
    if not specs:
        raise ConfigError(
            "which columns are to be predicted? Name them with data.targets (--targets), or "
            "data.labels"
        )
    tasks = [
        _task(config, name, specs, labels, values, weight)
        for name, (labels, values) in learned.items()
    ]
    targets = {name: values for name, (_, values) in learned.items()}
    _check_known(tasks, targets, specs, table)
    weights = {map_name: weight} if weight is not None and map_kind == "dense" else {}
    for name, patches in weights.items():
        _propose_from_map(specs, learned[name][0], targets, name, patches)
    scored = dict[str, ScoredTarget]()
    compositions = list[Composition]()
    for name, made in config.compositions.items():
        _check_composition(name, made, specs)
        if made.ratio in specs:
            parts = specs[made.ratio].columns
        else:
            summed = (part for members in made.sums.values() for part in members)
            parts = tuple(dict.fromkeys(summed))
        composition = Composition(parts, made.sums, name, made.total, made.ratio)
        compositions.append(composition)
        _check_sums(composition, specs, table)
        for i, column in enumerate(composition.names):
            if column in table:
                truth = column_numbers(table, column)[:, None]
                scored[column] = ValueTarget(name, columns=(i,), truth=truth)
    owner: dict[str, str] = {}  # target -> the task that is scored on it
    for task in tasks:
        if maps is not None and task.name == map_name:
            its_targets = _map_targets(task, maps)
        else:
            its_targets = _column_targets(task, specs[task.name], targets[task.name])
        # of a column a ratio predicts the share only: what else predicts it is scored
        if task.kind == "ratio":
            scored = its_targets | scored
            continue
        for target in its_targets:
            if target in owner:
                raise ConfigError(
                    f"tasks {owner[target]!r} and {task.name!r} both have a target {target!r}; "
                    "rename one of them, or its class"
                )
            owner[target] = task.name
        scored |= its_targets
    _check_columns(tasks, compositions)
    check_target_names(scored)
    return Problem(tasks, targets, weights, compositions, _numbers_first(scored, table))


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
    owner: dict[str, str] = {}  # column -> its task
    for column in columns_of(tasks):
        if column.name in owner:
            raise ConfigError(
                f"tasks {owner[column.name]!r} and {column.task.name!r} both have a column "
                f"{column.name!r} in tables of predictions; rename one of them, or its class"
            )
        owner[column.name] = column.task.name


def _check_composition(name: str, made: CompositionConfig, specs: Specs) -> None:
    """Check that a composition has sums, or a total and its ratio that are tasks."""
    if not made.total and not made.ratio and not made.sums:
        raise ConfigError(
            f"composition {name!r} is empty; write sums: {{COLUMN: [TASK, TASK]}} for columns that "
            "add up tasks, or total: TASK and ratio: TASK for the parts of a whole"
        )
    if not made.total and not made.ratio:
        return
    for role, task in (("total", made.total), ("ratio", made.ratio)):
        if not task:
            raise ConfigError(
                f"composition {name!r} has no {role}; write total: TASK and ratio: TASK together"
            )
        if task not in specs:
            raise ConfigError(
                f"composition {name!r} has the {role} {task!r}; expected one of the tasks "
                f"{', '.join(specs)}.{did_you_mean(task, specs)}"
            )


def _check_sums(composition: Composition, specs: Specs, table: Any) -> None:
    """Compare the columns of a composition's total and sums with those of their parts, where all exist."""
    members_of = dict(composition.sums)
    if composition.total:
        members_of[composition.total] = composition.parts
    for whole, members in members_of.items():
        columns = [_column_of(name, specs) for name in (whole, *members)]
        if all(column in table and not class_names(table, column) for column in columns):
            check_sum(composition.name, columns[0], columns[1:], table)


def _column_of(name: str, specs: Specs) -> str:
    """The column of a task of one column, or of this name."""
    if name in specs and len(specs[name].columns) == 1:
        return specs[name].columns[0]
    return name


def _column_specs(config: TrainConfig, table: Any) -> dict[str, TaskConfig]:
    """The tasks of the table's columns, which must exist and hold values of the task's kind; all kinds are set."""
    tasks = column_tasks(config, table)
    owner: dict[str, str] = {}  # column -> the task that predicts it
    existing = [name for name in table.columns if name not in OWN_COLUMNS]
    for name, spec in tasks.items():
        if missing := [column for column in spec.columns if column not in existing]:
            hint = did_you_mean(missing[0], existing)
            raise ConfigError(
                f"task {name!r} needs column {missing[0]!r}; there are {', '.join(existing)}.{hint}"
            )
        for column in spec.columns:
            if spec.columns.count(column) > 1:
                raise ConfigError(f"task {name!r} has the column {column!r} twice; name it once")
            if spec.kind != "ratio" and column in owner:
                raise ConfigError(
                    f"tasks {owner[column]!r} and {name!r} both predict column {column!r}; leave it "
                    "out of one of them"
                )
        kind = spec.kind or (
            "classification" if class_names(table, spec.columns[0]) else "regression"
        )
        if kind == "ratio" and len(spec.columns) < 2:
            raise ConfigError(
                f"task {name!r} is a ratio of {spec.columns[0]!r} alone; name two columns or more"
            )
        _check_kind(name, kind, spec.columns, table)
        _check_options(name, kind, spec)
        if kind != "ratio":
            owner |= dict.fromkeys(spec.columns, name)
        tasks[name] = spec.changed(kind=kind)
    return tasks


def _check_kind(name: str, kind: str, columns: Sequence[str], table: Any) -> None:
    """Check that columns hold what a task of this kind learns: classes of one column, or numbers."""
    for column in columns:
        words = class_names(table, column)
        if kind == "classification" and not words:
            raise ConfigError(
                f"task {name!r} is of kind 'classification', and its column {column!r} holds "
                "numbers; leave the kind out, or write classes as words"
            )
        if kind != "classification" and words:
            raise ConfigError(
                f"task {name!r} is of kind {kind!r}, for numbers, and its column {column!r} holds "
                f"the classes {', '.join(words[:5])}; leave the kind out, or write kind: "
                "classification"
            )
    if kind == "classification" and len(columns) > 1:
        raise ConfigError(
            f"task {name!r} has the columns {', '.join(columns)}; classes are one column: make a "
            "task of each"
        )


def _check_options(name: str, kind: str, spec: TaskConfig) -> None:
    """Check that a task of classes or shares has no option of numbers."""
    if kind not in ("classification", "segmentation", "ratio"):
        return
    for option in ("area", "log1p", "activation", "minimum"):
        if getattr(spec, option) not in (None, False):
            raise ConfigError(
                f"task {name!r} is of kind {kind!r}, whose outputs are probabilities, and has no "
                f"{option!r}; leave it out"
            )


def _values(name: str, spec: TaskConfig, table: Any) -> tuple[tuple[str, ...], Tensor]:
    """The labels of a task, and its values of all images: (n,) or (n, outputs), or class indices (n,)."""
    if spec.kind == "classification":
        indices = np.asarray(table[spec.columns[0]].cat.codes, np.int64)
        return class_names(table, spec.columns[0]), torch.tensor(indices)
    values = np.stack([column_numbers(table, column) for column in spec.columns], axis=1)
    if spec.kind == "ratio":
        columns = ", ".join(spec.columns)
        if (values < 0).any():  # the shares of two negative values would be positive
            row = table.index[(values < 0).any(axis=1)][0]
            raise DataError(
                f"task {name!r} is a ratio of {columns}, and a value of {row!r} is negative; correct "
                "it"
            )
        warn_of_sums_of_shares(name, spec.columns, values)
        # of nothing the shares are unknown, 0 / 0
        with np.errstate(divide="ignore", invalid="ignore"):
            values = values / values.sum(axis=1, keepdims=True)
    return (
        (spec.columns, torch.from_numpy(values))
        if len(spec.columns) > 1
        else ((), torch.from_numpy(values[:, 0]))
    )


def _task(
    config: TrainConfig, name: str, specs: Specs, labels: Any, values: Tensor, weight: Any
) -> Task:
    """A task as it is described, with defaults for what is not; its transform is not fitted yet.

    ``weight`` states how much the patches of all images count, None without masks.
    """
    spec, data = specs[name], config.data
    if spec.beta is not None and spec.loss != "smooth_l1":
        raise ConfigError(
            f"task {name!r} has beta {spec.beta:g}, which belongs to loss: smooth_l1; write both"
        )
    defaults: dict[str, Any] = {"dim": values.shape[1] if values.ndim > 1 else max(len(labels), 1)}
    if weight is not None and spec.from_map is not None:
        alone = values.reshape(len(values), -1)[:, 0].isfinite() & ~weight.flatten(1).any(dim=1)
        # the map's own loss trains it; a loss of the mean too made the numbers of crop images worse
        defaults["weight"] = (float(alone.any()),)
    elif spec.auxiliary and config.losses.weighting == "fixed":
        defaults["weight"] = config.losses.aux_weight / sum(
            task.auxiliary for task in specs.values()
        )
    if spec.kind in ("regression", "density") and not spec.auxiliary:
        defaults |= {"unit": data.unit, "minimum": data.minimum}
    elif spec.kind == "dense":
        # a mean of clipped patches is too high
        is_averaged = name in [each.from_map for each in specs.values()]
        defaults |= {"shares": len(labels) > 0, "minimum": None if is_averaged else data.minimum}
    fields = ("kind", "loss", "beta", "weight", "activation", "unit", "minimum", "from_map")
    options = {field: getattr(spec, field) for field in fields if getattr(spec, field) is not None}
    if (spec.area, spec.log1p) != (None, False):
        options["transform"] = TargetTransform(area=spec.area, log1p=spec.log1p)
    return Task(name, labels=labels, **{**defaults, **options})


def _propose_from_map(
    specs: Specs, labels: Sequence[str], targets: Any, map_name: str, weight: Tensor
) -> None:
    """State which numbers are the mean over the map of their name, and are not described so."""
    sums = (targets[map_name].nan_to_num().double() * weight[:, None]).sum(dim=(2, 3))  # (n, K)
    means = sums / weight.sum(dim=(1, 2))[:, None]
    # maps of numbers may have no labels
    for name, mean in zip(labels, means.numpy().T, strict=False):
        if name not in specs or specs[name].from_map is not None or targets[name].ndim > 1:
            continue
        true = targets[name].numpy()
        rows = np.isfinite(true) & np.isfinite(mean)
        if len({*true[rows]}) > 1 and r2(true[rows], mean[rows]) >= FOLLOWS_R2:
            logger.warning(
                "the target %r follows the mean over its map %r; predict it by from_map",
                name,
                map_name,
            )


def _column_targets(task: Task, spec: TaskConfig, values: Tensor) -> dict[str, ScoredTarget]:
    """The targets of a task of columns that are scored, with their true values."""
    if task.kind == "classification":
        name = task.name if spec.auxiliary else spec.columns[0]
        target = ClassTarget(
            task.name, truth=values.numpy(), labels=task.labels, auxiliary=spec.auxiliary
        )
        return {name: target}
    truth = values.numpy().reshape(len(values), -1)
    if spec.auxiliary:
        columns = tuple(range(truth.shape[1]))
        return {task.name: ValueTarget(task.name, columns=columns, truth=truth, auxiliary=True)}
    targets: dict[str, ScoredTarget] = {}
    for i, column in enumerate(spec.columns):
        targets[column] = ValueTarget(task.name, columns=(i,), truth=truth[:, i : i + 1])
    return targets


def _map_targets(task: Task, maps: Maps) -> dict[str, ScoredTarget]:
    """The targets of the task of masks that are scored: its classes by pixel, or each map by patch."""
    if task.kind == "segmentation":
        target = PixelTarget(
            task.name,
            num_rows=len(maps.values),
            num_classes=task.dim,
            labels=task.labels,
            pixels=maps.pixels,
        )
        return {task.name: target}
    truth = maps.values.numpy()
    if task.dim == 1:
        return {task.name: ValueTarget(task.name, columns=(0,), truth=truth)}
    targets: dict[str, ScoredTarget] = {}
    for i, label in enumerate(task.labels or range(task.dim)):
        name = f"{task.name} {label}"
        targets[name] = ValueTarget(task.name, columns=(i,), truth=truth[:, i : i + 1])
    return targets


def _numbers_first(scored: dict[str, ScoredTarget], table: Any) -> dict[str, ScoredTarget]:
    """The targets in their order in reports: numbers of images as their columns in the table, then the others."""
    numbers: dict[str, ScoredTarget] = {}
    for name in table.columns:
        target = scored.get(name)
        if isinstance(target, ValueTarget) and not target.is_per_patch:
            numbers[name] = target
    return numbers | scored


def _check_known(
    tasks: Sequence[Task], targets: Mapping[str, Tensor], specs: Specs, table: Any
) -> None:
    """Refuse images of which nothing is known, and classes that no head can learn.

    If other images have labels, those whose label files have none are left to :func:`unlabelled_rows`.
    """
    nothing = _rows_of_nothing(tasks, targets)
    if len(nothing) < len(table):
        nothing = nothing[~_has_label_file(tasks, table)[nothing]]
    if len(nothing):
        names = some_of([repr(table.index[row]) for row in nothing], 3)
        for name, spec in specs.items():
            columns = list(spec.columns)
            if spec.kind == "ratio" and (table[columns].iloc[nothing] == 0).all(axis=None):
                raise DataError(
                    f"nothing is known of the images {names}: the columns {', '.join(columns)} of "
                    f"the ratio {name!r} are all 0 there, so that their shares are unknown; remove "
                    "the rows, or add a task of the total"
                )
        raise DataError(f"nothing is known of the images {names}; fill in a value, or remove them")
    for task in (task for task in tasks if task.kind == "classification"):
        classes = targets[task.name].numpy()
        counts = np.unique(classes[classes >= 0], return_counts=True)[1]
        if len(counts) < 2:
            held = task.labels[int(classes[classes >= 0][0])] if len(counts) else "none"
            raise DataError(
                f"target {task.name!r} has one class alone, {held!r}, in {counts.sum()} images; "
                "expected two classes or more"
            )
        if counts.sum() < 2 * len(counts):
            raise DataError(
                f"target {task.name!r} has {len(counts)} classes in {counts.sum()} images, "
                f"{(counts == 1).sum()} of them in one image alone; expected 2 images a class on "
                "average. Leave out the column if it holds names or notes, and kind: classification "
                "if it holds numbers"
            )


def _rows_of_nothing(tasks: Sequence[Task], targets: Mapping[str, Tensor]) -> _Array:
    """The rows of which nothing is known."""
    is_present = []
    for task in tasks:
        values = known(task, targets[task.name])
        is_present.append(values.reshape(len(values), -1).any(dim=1).numpy())
    return np.flatnonzero(~np.any(is_present, axis=0))


def _has_label_file(tasks: Sequence[Task], table: Any) -> _Array:
    """Which rows of a table have a label file that a task learns, (n,) bool."""
    if not any(task.is_map for task in tasks):
        return np.zeros(len(table), bool)
    return np.array([not is_missing(file) for file in table[LABELS]], bool)


def unlabelled_rows(problem: Problem, table: Any) -> _Array:
    """Return the rows whose label files have no labelled pixel, and of which nothing else is known."""
    nothing = _rows_of_nothing(problem.tasks, problem.targets)
    return np.asarray(nothing[_has_label_file(problem.tasks, table)[nothing]])


def take_rows(problem: Problem, rows: _Array) -> Problem:
    """Return a problem of these rows alone."""
    return problem._replace(
        targets={name: values[rows] for name, values in problem.targets.items()},
        weights={name: weight[rows] for name, weight in problem.weights.items()},
        scored={name: target.take(rows) for name, target in problem.scored.items()},
    )


def fitted(problem: Problem, rows: _Array) -> list[Task]:
    """Return the tasks; numbers without an activation are trained on z-scores of these rows.

    Raises:
        DataError: naming the task, as :meth:`dinoneck.TargetTransform.fit` does.
    """
    tasks = []
    for task in problem.tasks:
        if task.kind in ("regression", "density", "dense") and task.activation is None:
            values = problem.targets[task.name][torch.as_tensor(rows)]
            if task.is_map:
                values = values.movedim(1, -1).flatten(0, 2)  # one row per patch
            try:
                task = replace(task, transform=(task.transform or TargetTransform()).fit(values))
            except DataError as error:
                raise DataError(f"task {task.name!r}: {error}") from None
        tasks.append(task)
    return tasks


def with_fine_maps(problem: Problem, outputs: Mapping[str, Tensor]) -> Problem:
    """Return the problem with labels as fine as the head's map, where that is finer than the patches.

    Raises:
        ConfigError: if the head's map has another size than the labels of a dense task.
    """
    targets = {**problem.targets}
    for task in problem.tasks:
        if not task.is_map:
            continue
        size = outputs[task.name].shape[-2:]
        if size == targets[task.name].shape[-2:]:
            continue
        target = problem.scored.get(task.name)
        if not isinstance(target, PixelTarget):
            raise ConfigError(
                f"the head's map of {task.name!r} is {tuple(size)}, and the labels are per patch; "
                "take dense"
            )
        classes = []
        for row in range(target.num_rows):
            pixels = target.pixels(row)[None].float()
            classes.append(F.interpolate(pixels, size, mode="nearest-exact")[0].long())
        targets[task.name] = torch.cat(classes)
    return problem._replace(targets=targets)
