"""What is predicted and known of an image: numbers, and maps with the scale of their colours."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from dinoneck.errors import DataError
from dinoneck.runtime.intervals import BOUNDS
from dinoneck.task_facts import GATE, Aggregate, TaskFacts, TaskRecord, columns_of
from dinoneck.text import some_of
from dinoneck.viz import style
from dinoneck.viz.checked import Floats, minus, numbers, span

THE_GATE = TaskRecord(
    name="the gate", kind="density", aggregate="mean", minimum=0, unit="times the mean weight"
)
"""The gate of a head as pictures show it, next to the maps of tasks."""
VALUE_DIGITS = 3
"""Significant digits of values in pictures and tables for people; CSV files have more."""
_ALIKE = 50.0  # ranges of numbers without a unit that differ by more have a scale each
_ROUNDING = 1e-4  # a smaller change of a cell is not worth a note


class Output(NamedTuple):
    """One number that a head predicts for an image, and the map that shows where it comes from.

    Attributes:
        key: its column, see :func:`dinoneck.tasks.columns_of`.
        task: the task whose number it is.
        place: which of the task's outputs.
        map: the task whose map shows it; another one where the number is the mean of a map
            (``from_map``).
        channel: which of the map's outputs.
    """

    key: str
    task: TaskFacts
    place: int
    map: TaskFacts
    channel: int

    @property
    def is_sum(self) -> bool:
        """Whether the number is the sum of the map's cells, so that 0 means nothing."""
        return self.map.kind == "density" and self.map.aggregate == "sum"

    @property
    def floor(self) -> float:
        """The smallest possible cell; minus infinity where it is unknown."""
        minimum = -math.inf if self.task.minimum is None else self.task.minimum
        if self.is_sum:  # a minimum of the sum bounds a cell where it is not negative
            return 0.0 if minimum >= 0 else -math.inf
        return minimum

    @property
    def is_number_from_0_to_1(self) -> bool:
        """Whether the number is a share by its bounds: of 0 to 1, without a unit."""
        task = self.task
        is_one_number = task.dim == 1 and not (self.map.is_share or task.is_multilabel)
        has_bounds = task.minimum == 0 and task.maximum == 1
        return is_one_number and has_bounds and not task.unit and not self.is_sum

    @property
    def fades(self) -> bool:
        """Whether a cell of 0 means that there is nothing: of amounts, but not of a depth."""
        return self.map.kind != "dense" and self.floor >= 0

    def value(self, result: Mapping[str, Any]) -> float:
        """Return the number in a Predictor's result for one image.

        Raises:
            ShapeError: if the result has another number of outputs.
            DataError: if it is missing, or not finite.
        """
        if self.task.name not in result:
            raise DataError(
                f"a result has no prediction of {self.task.name!r}; it holds "
                f"{some_of(map(str, result), 5) or 'nothing'}"
            )
        flat = np.reshape(result[self.task.name], -1)
        values = numbers(flat, f"the predictions of {self.task.name!r}", f"{self.task.dim}")
        return float(values[self.place])

    def bounds(self, result: Mapping[str, Any]) -> tuple[float, float] | None:
        """Return the ends of the number's interval in the result for one image; None without one."""
        bounds_of_task = entry_of(result, BOUNDS).get(self.task.name)
        if bounds_of_task is None:
            return None
        low, high = (float(np.reshape(ends, -1)[self.place]) for ends in bounds_of_task)
        if math.isnan(low) or math.isnan(high):
            return None
        return low, high

    def truth(self, known: Mapping[str, Any]) -> float | None:
        """Return the known number of an image; None where it is missing, None or NaN.

        Raises:
            DataError: if it is no number.
        """
        value = known.get(self.key)
        if value is None:
            return None
        try:
            number = float(value)
        except (TypeError, ValueError):
            raise DataError(
                f"the known value of {self.key!r} is {value!r}; expected a number, or None where it is "
                "missing"
            ) from None
        return None if math.isnan(number) else number

    def is_drawn_as_share(self, result: Mapping[str, Any]) -> bool:
        """Return whether the number is one from 0 to 1, and the result has the map that shows it."""
        return self.is_number_from_0_to_1 and self.map.name in entry_of(result, "maps")

    def text(
        self,
        value: float,
        bounds: tuple[float, float] | None = None,
        *,
        as_percent: bool = False,
    ) -> str:
        """Return a number as pictures show it: with its unit, a share or probability as percent.

        With the bounds of its interval it is ``3.2 (2.5 ... 4.1) g``.

        Args:
            value: the number.
            bounds: the ends of its interval.
            as_percent: of a number from 0 to 1 whether it is drawn as a share, see
                :meth:`is_drawn_as_share`.
        """
        unit = self.task.unit
        scale = 1.0
        if self.map.is_share or self.map.is_multilabel or as_percent:
            scale = 100.0
            unit = "%"
        number = _digits(scale * value)
        if bounds is not None:
            low, high = bounds
            number = f"{number} ({_digits(scale * low)} ... {_digits(scale * high)})"
        return f"{number} {unit}".rstrip()


def _digits(value: float) -> str:
    """A number as pictures write it."""
    return minus(f"{value:.{VALUE_DIGITS}g}")


class Scale(NamedTuple):
    """How a map is drawn: one scale for all of its outputs and all images.

    Attributes:
        low: the value of the darkest colour.
        high: the value of the brightest colour.
        note: what was changed for the picture, for the colour bar; empty where cells are as
            predicted.
    """

    low: float
    high: float
    note: str


class IntervalAxis(NamedTuple):
    """Where the bars of intervals begin and end.

    Attributes:
        low: the number at the left end.
        high: the number at the right end, above ``low``.
    """

    low: float
    high: float

    def position(self, value: float) -> float:
        """Return where a number is: 0 at the left end, 1 at the right one; others are moved to the nearer end."""
        position = (value - self.low) / (self.high - self.low)
        return min(max(position, 0.0), 1.0)


class PlacedInterval(NamedTuple):
    """The interval of a number on its axis; positions are 0 ... 1.

    Attributes:
        low: the position of the lower bound.
        high: that of the upper bound.
        point: that of the predicted number.
        truth: that of the known number; None where it is not known.
        is_inside: whether the interval holds the known number; None where it is not known.
    """

    low: float
    high: float
    point: float
    truth: float | None
    is_inside: bool | None


def place_interval(
    output: Output, result: Mapping[str, Any], known: Mapping[str, Any], axis: IntervalAxis
) -> PlacedInterval | None:
    """Return the interval of a number in the result for one image on its axis; None without one."""
    bounds = output.bounds(result)
    if bounds is None:
        return None
    low, high = bounds
    truth = output.truth(known)
    return PlacedInterval(
        low=axis.position(low),
        high=axis.position(high),
        point=axis.position(output.value(result)),
        truth=None if truth is None else axis.position(truth),
        is_inside=None if truth is None else low <= truth <= high,
    )


class _AxisGroup(NamedTuple):
    """What numbers of one axis have in common: their unit, or without one their task.

    Attributes:
        unit: empty for numbers without one.
        task_name: empty for numbers with a unit.
    """

    unit: str
    task_name: str

    @classmethod
    def of(cls, output: Output) -> _AxisGroup:
        """The group of a number."""
        if output.task.unit:
            return cls(unit=output.task.unit, task_name="")
        return cls(unit="", task_name=output.task.name)


def interval_axes(
    listed: Sequence[Output],
    results: Sequence[Mapping[str, Any]],
    known: Sequence[Mapping[str, Any]],
) -> dict[str, IntervalAxis]:
    """Return column -> the axis of its intervals, for the numbers that have any.

    An axis spans the intervals of all results and the known numbers, and 0 where numbers cannot be
    negative. It begins at 0 where no number is below. Numbers of one unit have one axis; those
    without a unit have that of their task.

    Args:
        listed: numbers of a head.
        results: of a Predictor, one per image.
        known: column -> known value, of each image.
    """
    group_by_column: dict[str, _AxisGroup] = {}
    values_by_group: dict[_AxisGroup, list[float]] = {}
    for output in listed:
        values = _values_on_axis(output, results, known)
        if values:
            group = _AxisGroup.of(output)
            group_by_column[output.key] = group
            values_by_group.setdefault(group, []).extend(values)
    axis_by_group = {}
    for group, values in values_by_group.items():
        axis_by_group[group] = _axis_of(np.array(values))
    return {column: axis_by_group[group] for column, group in group_by_column.items()}


def _values_on_axis(
    output: Output,
    results: Sequence[Mapping[str, Any]],
    known: Sequence[Mapping[str, Any]],
) -> list[float]:
    """What the axis of a number spans: its values, bounds and known values in images where it has an interval."""
    values = []
    for result, known_of_image in zip(results, known, strict=True):
        bounds = output.bounds(result)
        if bounds is None:
            continue
        values.append(output.value(result))
        values += [bound for bound in bounds if math.isfinite(bound)]
        truth = output.truth(known_of_image)
        if truth is not None and math.isfinite(truth):
            values.append(truth)
        if output.task.is_share or output.floor >= 0:
            values.append(0.0)
    return values


def _axis_of(values: Floats) -> IntervalAxis:
    """The axis of these values, which begins at 0 where none is below."""
    low, high = span([values])
    if values.min() == 0:
        low = 0.0
    return IntervalAxis(low, high)


def outputs(tasks: Sequence[TaskFacts]) -> list[Output]:
    """Return the outputs of tasks, in their order and each number once."""
    by_name: dict[str | None, TaskFacts] = {task.name: task for task in tasks}
    listed = []
    for key, task, place in columns_of(tasks):
        map_task = by_name.get(task.from_map, task)
        channel = place
        if map_task is not task and map_task.dim > 1:
            channel = map_task.labels.index(task.name)
        listed.append(Output(key=key, task=task, place=place, map=map_task, channel=channel))
    return listed


def outputs_by_task(listed: Iterable[Output]) -> list[list[Output]]:
    """Return the outputs of each task."""
    by_task: dict[str, list[Output]] = {}
    for output in listed:
        by_task.setdefault(output.task.name, []).append(output)
    return list(by_task.values())


def outputs_by_map(listed: Iterable[Output]) -> list[list[Output]]:
    """Return the outputs of each map."""
    by_map: dict[str, list[Output]] = {}
    for output in listed:
        by_map.setdefault(output.map.name, []).append(output)
    return list(by_map.values())


def map_colours(task: TaskFacts) -> list[style.RGB | None]:
    """Return the colour of each output of a map of shares; None for a first one that is the ground."""
    return style.class_colours(task.labels or [task.name] * task.dim)


def entry_of(result: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Return an entry of a result that holds something of each task; empty where there is none.

    A task may have the name of such an entry, whose number is then no entry.
    """
    entry = result.get(name)
    return entry if isinstance(entry, Mapping) else {}


def with_gate(result: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return a result with its gate, if it has one, as the map of :data:`THE_GATE`: weights relative to their mean.

    Args:
        result: of a Predictor.
        name: of the image, for messages.

    Raises:
        DataError: if the gate is not finite.
        ShapeError: if it is not (rows, cols).
    """
    shown = dict(result)
    shown["maps"] = dict(result.get("maps") or {})
    gate = result.get(GATE)
    if gate is not None:
        weights = numbers(gate, f"the gate of {name}", "rows, cols")
        shown[THE_GATE.name] = 1.0
        shown["maps"][THE_GATE.name] = weights[None] / weights.mean()
    return shown


def scales(listed: Sequence[Output], results: Sequence[Mapping[str, Any]]) -> dict[str, Scale]:
    """Return name of a map -> how it is drawn.

    Shares span 0 to 1; their cells are clipped to it, and those of several outputs divided by their
    sum. Other cells are clipped at the floor, and amounts start at 0. Numbers of one unit have one
    scale; those without a unit have one if their ranges are alike. Maps of zeros take the scale of
    the others, and numbers from 0 to 1, which are drawn as shares, do not count. The results
    themselves stay as they are.

    Raises:
        ShapeError: if maps are not (outputs, rows, cols).
        DataError: if they are not finite.
    """
    # each map by itself; of one with numbers from 0 to 1, which are drawn as shares, the others
    members_by_map: dict[str, list[Output]] = {}
    scale_by_map: dict[str, Scale] = {}
    for outputs_of_map in outputs_by_map(listed):
        drawn_as_heat = [output for output in outputs_of_map if not output.is_number_from_0_to_1]
        members = drawn_as_heat or outputs_of_map
        name = members[0].map.name
        members_by_map[name] = members
        scale_by_map[name] = _scale(members, results)

    # maps of one kind together
    names_by_group: dict[_ScaleGroup, list[str]] = {}
    for name, members in members_by_map.items():
        if _may_share_scale(members[0]):
            group = _ScaleGroup.of(members, scale_by_map[name])
            names_by_group.setdefault(group, []).append(name)
    for group, names in names_by_group.items():
        scales_of_group = [scale_by_map[name] for name in names]
        if group.unit or _are_alike(scales_of_group):
            scale_by_map |= dict.fromkeys(names, _shared_scale(scales_of_group))

    # maps of zeros that no other map gave a scale
    for name, members in members_by_map.items():
        if _is_of_zeros(scale_by_map[name]):
            scale_by_map[name] = _scale_of_zeros(members, scale_by_map[name].note)
    return scale_by_map


class _ScaleGroup(NamedTuple):
    """What maps have in common that may have one scale.

    Attributes:
        kind: of their tasks.
        unit: of their tasks; maps without one share a scale if their ranges are alike.
        aggregate: of their tasks.
        begins_at_0: whether their scales begin at 0.
    """

    kind: str
    unit: str
    aggregate: Aggregate
    begins_at_0: bool

    @classmethod
    def of(cls, members: Sequence[Output], scale: Scale) -> _ScaleGroup:
        """The group of a map with these outputs, whose own scale this is."""
        task = members[0].map
        begins_at_0 = scale.low == 0.0 and (_has_amounts(members) or not _is_of_zeros(scale))
        return cls(task.kind, task.unit, task.aggregate, begins_at_0)


def _may_share_scale(output: Output) -> bool:
    """Whether the scale of an output's map may be that of others: not of shares, probabilities and vectors."""
    task = output.map
    has_own_scale = task.is_share or task.is_multilabel or task.is_unit
    return not (has_own_scale or output.is_number_from_0_to_1)


def _is_of_zeros(scale: Scale) -> bool:
    """Whether all cells of a map are 0, so that its range says nothing of other maps."""
    return scale.low == scale.high == 0.0


def _scale_of_zeros(members: Sequence[Output], note: str) -> Scale:
    """The scale of a map of zeros that shares none: 0 to 1 of amounts, else a range around 0."""
    if _has_amounts(members):
        return Scale(0.0, 1.0, note)
    low, high = span([np.zeros(1)])
    return Scale(low, high, note)


def _has_amounts(members: Sequence[Output]) -> bool:
    """Whether the colours of a map begin at 0."""
    return any(output.is_sum or output.floor >= 0 for output in members)


def _are_alike(members: Sequence[Scale]) -> bool:
    """Whether one scale shows all of these maps: of amounts, if none is so small that it would be dark."""
    highest = [scale.high - scale.low for scale in members if not _is_of_zeros(scale)]
    if not highest:
        return True
    return max(highest) <= _ALIKE * min(highest)


def _shared_scale(members: Sequence[Scale]) -> Scale:
    """The scale that spans those of several maps."""
    notes = [scale.note for scale in members if scale.note]
    return Scale(
        low=min(scale.low for scale in members),
        high=max(scale.high for scale in members),
        note=notes[0] if notes else "",
    )


def _scale(members: Sequence[Output], results: Sequence[Mapping[str, Any]]) -> Scale:
    """The scale of these outputs of one map; 0 to 0 if all their cells are 0."""
    task = members[0].map
    channels = sorted({output.channel for output in members})
    drawn = []
    is_changed = False
    for result in results:
        maps = result.get("maps") or {}
        if task.name not in maps:
            continue
        predicted = numbers(
            maps[task.name], f"the maps of {task.name!r}", f"{task.dim}, rows, cols"
        )
        cells = shown_cells(members, predicted)[channels]
        drawn.append(cells)
        if np.abs(predicted[channels] - cells).max() > _ROUNDING:
            is_changed = True
    if task.is_share:
        return Scale(0.0, 1.0, note=" (clipped, normalised)" if is_changed else "")
    if task.is_multilabel:
        return Scale(0.0, 1.0, note="")
    if _has_amounts(members) or not any(cells.any() for cells in drawn):
        low, high = _range_with_zero(drawn)
    else:
        low, high = span(drawn)
    return Scale(low, high, note=" (clipped)" if is_changed else "")


def _range_with_zero(drawn: Sequence[Floats]) -> tuple[float, float]:
    """The range of cells and 0."""
    low = min([0.0, *(float(cells.min()) for cells in drawn)])
    high = max([0.0, *(float(cells.max()) for cells in drawn)])
    return low, high


def shown_cells(members: Sequence[Output], maps: Floats) -> Floats:
    """Return maps (outputs, rows, cols) as pictures show them: shares of one whole, amounts above their floor."""
    if members[0].map.is_share:
        shares: Floats = np.clip(maps, 0.0, 1.0)
        if len(maps) == 1:
            return shares
        whole = shares.sum(axis=0)
        return shares / np.where(whole > 0, whole, 1.0)
    floors = np.full((len(maps), 1, 1), -math.inf)
    for output in members:
        floors[output.channel] = output.floor
    cells: Floats = np.maximum(maps, floors)
    return cells
