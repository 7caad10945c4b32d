"""The intervals and prediction sets of an image, as entries of rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dinoneck.errors import ConfigError
from dinoneck.intervals import LEVELS, fewest_groups
from dinoneck.task_facts import TaskFacts
from dinoneck.task_intervals import DEFAULT_LEVEL, INTERVAL_KINDS
from dinoneck.text import counted

BOUNDS = "interval"
"""The entry of a row with the bounds of numbers: task -> (low, high)."""
PREDICTION_SETS = "set"
"""The entry of a row with prediction sets of classes: task -> its likeliest labels."""


def stored_levels(tasks: Sequence[TaskFacts]) -> list[float]:
    """Return the levels at which a task has intervals, or prediction sets; ascending."""
    levels: set[float] = set()
    for task in tasks:
        levels.update(task.interval_levels)
    return sorted(levels)


def default_level(tasks: Sequence[TaskFacts]) -> float | None:
    """Return the level of tables: 0.9 where it is stored, else the highest; None where none is stored."""
    levels = stored_levels(tasks)
    if not levels or task_named_as_entry(tasks) is not None:
        return None
    return DEFAULT_LEVEL if DEFAULT_LEVEL in levels else levels[-1]


def check_level(tasks: Sequence[TaskFacts], level: float, name: str) -> None:
    """Check that tasks have intervals of a level, and that rows can hold them.

    Args:
        tasks: what is predicted.
        level: that is asked for.
        name: of the heads, for messages.

    Raises:
        ConfigError: naming the levels that there are, or how to get them; or what is predicted, of
            which there are none.
    """
    if not 0 < level < 1:
        raise ConfigError(f"interval is {level}; expected a number between 0 and 1, such as 0.9")
    named = task_named_as_entry(tasks)
    if named is not None:
        raise ConfigError(
            f"interval is {level:g}, and a task is called {named!r}, as the entry of rows with the "
            "intervals; leave interval out, or rename the task"
        )
    levels = stored_levels(tasks)
    if level in levels:
        return
    if not any(task.kind in INTERVAL_KINDS for task in tasks):
        kinds = ", ".join(sorted({task.kind for task in tasks}))
        raise ConfigError(
            f"interval is {level:g}, and {name} predicts {kinds}; intervals are of numbers and "
            "classes of an image: leave interval out (--interval)"
        )
    groups = fewest_groups(level)
    if not levels:
        raise ConfigError(
            f"interval is {level:g}, and {name} holds no intervals: train with held-out images of "
            f"{counted(groups, 'group')} or more, or add them to the file with 'dinoneck evaluate "
            "... --calibrate OUT.safetensors'"
        )
    message = f"interval is {level:g}; {name} holds {', '.join(f'{x:g}' for x in levels)}"
    if level in LEVELS:
        message += f", as {level:g} needs held-out images of {groups} groups or more"
    raise ConfigError(f"{message}; {describe_groups(tasks)}")


def describe_groups(tasks: Sequence[TaskFacts], level: float | None = None) -> str:
    """Return of how many groups the intervals of tasks are: ``from 12 groups``.

    Args:
        tasks: of heads.
        level: of the intervals that count, which one holds at least; None = any.
    """
    counts: set[int] = set()
    for task in tasks:
        for interval in task.interval:
            if interval.levels and level in (None, *interval.levels):
                counts.add(interval.groups)
    if len(counts) == 1:
        return f"from {counted(counts.pop(), 'group')}"
    return f"from {min(counts)} to {max(counts)} groups"


def interval_entries(
    tasks: Sequence[TaskFacts], values: Mapping[str, Any], level: float
) -> dict[str, dict[str, Any]]:
    """Return the entries of a row: ``"interval"`` of numbers and ``"set"`` of classes, if there are any.

    Args:
        tasks: what is predicted.
        values: task name -> a number, or (dim,) numbers, in original units.
        level: of :func:`stored_levels`.

    Returns:
        ``{"interval": {task: (low, high)}, "set": {task: labels}}``; the bounds of a task of several
        outputs are arrays (dim,), NaN for outputs without an interval.
    """
    bounds: dict[str, Any] = {}
    prediction_sets: dict[str, Any] = {}
    for task in tasks:
        if level not in task.interval_levels:
            continue
        if task.is_image_class:
            prediction_sets[task.name] = task.prediction_set(values[task.name], level)
            continue
        low, high = task.bounds(values[task.name], level)
        if task.dim == 1:
            bounds[task.name] = (low.item(), high.item())
        else:
            bounds[task.name] = (low, high)
    entries = {}
    if bounds:
        entries[BOUNDS] = bounds
    if prediction_sets:
        entries[PREDICTION_SETS] = prediction_sets
    return entries


def task_named_as_entry(tasks: Sequence[TaskFacts]) -> str | None:
    """Return a task that is called as an entry of rows with intervals, which then have none; None if none is."""
    return next((task.name for task in tasks if task.name in (BOUNDS, PREDICTION_SETS)), None)
