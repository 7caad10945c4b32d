"""The prediction intervals of a run: from the residuals of its held-out images, for its report and its head file.

A residual is that of the one head that held the image out, by each method. The file of a run
averages the heads of all folds, which is at least as close to the truth as one of them on average:
its intervals are wider than needed.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import msgspec
import numpy as np

from dinoneck.checkpoint.head_checkpoint import HeadCheckpoint
from dinoneck.kinds import Method
from dinoneck.metrics import Array
from dinoneck.task_facts import TaskFacts
from dinoneck.task_intervals import INTERVAL_KINDS, NO_INTERVAL, Interval
from dinoneck.training.scored import ClassTarget, ScoredTarget, ValueTarget

Residuals = dict[str, Array]
"""Target -> the residuals (n,) of all rows, NaN = not held out, or not known."""
Intervals = Mapping[str, Sequence[Interval]]
"""Task or composition -> the intervals of its outputs."""


@dataclass(frozen=True)
class TargetInterval:
    """The interval of a target by one method, an entry of ``prediction_intervals`` of a report.

    Attributes:
        output: the task or composition that predicts the target.
        column: which of its outputs does; of classes 0.
        is_class: whether half widths are those of 1 - the probability of the true class.
        levels: as of :class:`dinoneck.tasks.Interval`.
        half_widths: as there.
        groups: as there.
    """

    output: str
    column: int
    is_class: bool
    levels: tuple[float, ...]
    half_widths: tuple[float, ...]
    groups: int

    @classmethod
    def of(cls, target: ValueTarget | ClassTarget, interval: Interval) -> TargetInterval:
        """Return the interval of a target; that of a number has one column of its output."""
        if isinstance(target, ClassTarget):
            column = 0
        else:
            [column] = target.columns
        return cls(
            output=target.output,
            column=column,
            is_class=isinstance(target, ClassTarget),
            levels=interval.levels,
            half_widths=interval.half_widths,
            groups=interval.groups,
        )

    def interval(self) -> Interval:
        """Return what a task holds of it."""
        return Interval(levels=self.levels, half_widths=self.half_widths, groups=self.groups)


def targets_with_residuals(
    targets: Mapping[str, ScoredTarget],
) -> dict[str, ValueTarget | ClassTarget]:
    """Return the targets that have intervals, or prediction sets: one number of an image, and its class."""
    chosen: dict[str, ValueTarget | ClassTarget] = {}
    for name, target in targets.items():
        if isinstance(target, ClassTarget):
            chosen[name] = target
        elif isinstance(target, ValueTarget) and not target.is_per_patch:
            if len(target.columns) == 1:
                chosen[name] = target
    return chosen


def no_residuals(targets: Mapping[str, ScoredTarget]) -> Residuals:
    """Return the residuals of a method that has predicted no row yet."""
    residuals = {}
    for name, target in targets_with_residuals(targets).items():
        residuals[name] = np.full(len(target.truth), np.nan)
    return residuals


def target_intervals(
    targets: Mapping[str, ScoredTarget],
    residuals: Mapping[Method, Residuals],
    groups: Sequence[Hashable],
) -> dict[str, dict[Method, TargetInterval]]:
    """Return target -> method -> its interval; without those of which no image was held out.

    Args:
        targets: what is scored.
        residuals: method -> those of the held-out rows.
        groups: one label per row.
    """
    intervals: dict[str, dict[Method, TargetInterval]] = {}
    for name, target in targets_with_residuals(targets).items():
        for method, residuals_of_method in residuals.items():
            interval = Interval.of_residuals(residuals_of_method[name], groups)
            if interval.groups:
                target_interval = TargetInterval.of(target, interval)
                intervals.setdefault(name, {})[method] = target_interval
    return intervals


def record_of_intervals(intervals: Mapping[str, Mapping[Method, TargetInterval]]) -> dict[str, Any]:
    """Return the entry ``prediction_intervals`` of a report."""
    record: dict[str, Any] = {}
    for target, by_method in intervals.items():
        record[target] = {method: asdict(interval) for method, interval in by_method.items()}
    return record


def intervals_from_record(record: Mapping[str, Any]) -> dict[str, dict[Method, TargetInterval]]:
    """Return what the entry ``prediction_intervals`` of a report holds."""
    return msgspec.convert(dict(record), dict[str, dict[Method, TargetInterval]])


def intervals_of_tasks(
    intervals: Mapping[str, Mapping[Method, TargetInterval]],
    method: Method,
    tasks: Sequence[TaskFacts],
) -> dict[str, tuple[Interval, ...]]:
    """Return the intervals of the tasks and compositions of a head; empty where a method has none.

    Args:
        intervals: of the targets of a run.
        method: the one that predicts.
        tasks: what the head predicts, compositions among them.
    """
    columns_of_output: dict[str, dict[int, Interval]] = {}
    for interval_of_method in intervals.values():
        if method in interval_of_method:
            target = interval_of_method[method]
            columns_of_output.setdefault(target.output, {})[target.column] = target.interval()
    intervals_of_task = {}
    for task in tasks:
        interval_of_column = columns_of_output.get(task.name)
        if interval_of_column is None or task.kind not in INTERVAL_KINDS:
            continue
        num_columns = 1 if task.is_image_class else task.dim
        intervals_of_task[task.name] = tuple(
            interval_of_column.get(column, NO_INTERVAL) for column in range(num_columns)
        )
    return intervals_of_task


def with_configured_intervals(checkpoint: HeadCheckpoint, intervals: Intervals) -> HeadCheckpoint:
    """Return the checkpoint of a head with intervals of the tasks that its configuration holds.

    A head of the user's own may state its tasks itself: its file has no intervals of them.
    """
    configured = {}
    for name, intervals_of_task in intervals.items():
        if name in checkpoint.configured_tasks:
            configured[name] = intervals_of_task
    return checkpoint.with_intervals(configured) if configured else checkpoint
