"""The columns that a run computes from its tasks, so that predictions add up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dinoneck.data.arrays import Array
from dinoneck.data.table import Table
from dinoneck.errors import ConfigError
from dinoneck.losses.composition import Composition
from dinoneck.text import did_you_mean
from dinoneck.training.config import CompositionConfig, TrainConfig
from dinoneck.training.learned_tasks import LearnedTasks
from dinoneck.training.sums import check_sum


@dataclass(frozen=True)
class ComposedColumns:
    """A composition, and what the table holds of the columns that it computes; n images.

    Attributes:
        composition: computes the columns from tasks.
        truth: column of the table -> its numbers, (n, 1) float64; NaN is missing. A composition may
            compute columns that the table has not.
    """

    composition: Composition
    truth: Mapping[str, Array]


def read_compositions(
    config: TrainConfig, learned: LearnedTasks, table: Table
) -> list[ComposedColumns]:
    """Return the compositions of a config with the known numbers of their columns.

    Raises:
        ConfigError: if a composition is empty, or names what is no task.
        DataError: if the columns of the parts do not add up to those of their sums.
    """
    composed = []
    for name, spec in config.compositions.items():
        _check_composition(name, spec, learned)
        composition = Composition(
            parts=_parts(spec, learned),
            sums=spec.sums,
            name=name,
            total=spec.total,
            ratio=spec.ratio,
        )
        _check_sums(composition, learned, table)
        truth = {}
        for column in composition.names:
            if column in table.columns:
                truth[column] = table.numbers(column)[:, None]
        composed.append(ComposedColumns(composition, truth))
    return composed


def _parts(spec: CompositionConfig, learned: LearnedTasks) -> tuple[str, ...]:
    """The parts of a composition: the columns of its ratio, or all tasks that it adds up."""
    if spec.ratio in learned:
        return learned[spec.ratio].spec.columns
    parts: list[str] = []
    for members in spec.sums.values():
        parts += members
    return tuple(dict.fromkeys(parts))


def _check_composition(name: str, spec: CompositionConfig, learned: LearnedTasks) -> None:
    """Check that a composition has sums, or a total and its ratio that are tasks."""
    if not spec.total and not spec.ratio and not spec.sums:
        raise ConfigError(
            f"composition {name!r} is empty; write sums: {{COLUMN: [TASK, TASK]}} for columns that "
            "add up tasks, or total: TASK and ratio: TASK for the parts of a whole"
        )
    if not spec.total and not spec.ratio:
        return
    for role, task in (("total", spec.total), ("ratio", spec.ratio)):
        if not task:
            raise ConfigError(
                f"composition {name!r} has no {role}; write total: TASK and ratio: TASK together"
            )
        if task not in learned:
            raise ConfigError(
                f"composition {name!r} has the {role} {task!r}; expected one of the tasks "
                f"{', '.join(learned)}.{did_you_mean(task, learned)}"
            )


def _check_sums(composition: Composition, learned: LearnedTasks, table: Table) -> None:
    """Compare the columns of a composition's total and sums with those of their parts, where all exist."""
    members_of = dict(composition.sums)
    if composition.total:
        members_of[composition.total] = composition.parts
    for whole, members in members_of.items():
        whole_column = _column_of(whole, learned)
        part_columns = [_column_of(member, learned) for member in members]
        if all(_is_of_numbers(column, table) for column in (whole_column, *part_columns)):
            check_sum(composition.name, whole_column, part_columns, table)


def _column_of(name: str, learned: LearnedTasks) -> str:
    """The column of a task of one column, or of this name."""
    if name in learned and len(learned[name].spec.columns) == 1:
        return learned[name].spec.columns[0]
    return name


def _is_of_numbers(column: str, table: Table) -> bool:
    return column in table.columns and not table.class_names(column)
