"""What a head predicts for a batch of tokens, and the outputs that follow from other outputs.

Inside ``forward``, in normalised units: :func:`outputs_from_cells` gives the outputs of a task with
a map, then :func:`from_map_outputs` those of tasks with ``from_map``.

In original units, two kinds of values follow from others: those of tasks with ``from_map``, and
composed outputs. They are recomputed whenever those others were averaged, at two stages:
:func:`recompute_dependent_values` for the outputs of a head or an ensemble, whose maps have no
values yet, and :func:`recompute_averaged_values` after views and tiles, when they have.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dinoneck.losses.composition import Composed
from dinoneck.losses.masked import exact
from dinoneck.tasks import MAP, Task, cell_output

DENSITY_CELLS = 1024.0  # cells of a 32 x 32 grid: their sum starts in the order of 1


@dataclass(frozen=True)
class HeadOutputs:
    """The predictions of a head for a batch, by task name and in original units.

    A task that is a map has its map in ``maps``. It gets a value when views or tiles are averaged,
    the mean over the cells that show the image; a head gives none. Surface normals have no value.
    Tasks of objects have neither, see ``predict_instances`` and ``predict_panoptic`` of the heads.

    Attributes:
        values: (B, dim); of compositions too.
        maps: (B, dim, rows, cols), of tasks that are maps; if maps are asked for, of every task
            that has one.
        shown_maps: (B, dim, rows, cols), the maps that are shown in place of ``maps``, of a head
            that replaces ``natural`` or ``predict_maps``: values come from the maps of ``natural``,
            and those of ``predict_maps`` are shown. None: ``maps`` are shown.
        gate: (B, rows, cols), the weights of the patches, which sum to one; None if the head has
            no gate, or maps are not asked for.
        raw_outputs: what each head of an ensemble returns when it is called, in normalised units,
            for heads that resample other outputs than their maps, see
            :meth:`dinoneck.HeadEnsemble.member_outputs`.
    """

    values: dict[str, Tensor] = field(default_factory=dict)
    maps: dict[str, Tensor] = field(default_factory=dict)
    shown_maps: dict[str, Tensor] | None = None
    gate: Tensor | None = None
    raw_outputs: list[dict[str, Tensor]] = field(default_factory=list)

    @classmethod
    def of_predictions(
        cls, tasks: Sequence[Task], predictions: Mapping[str, Tensor]
    ) -> HeadOutputs:
        """Separate predictions in original units into values and maps, in the order of the tasks.

        Args:
            tasks: those predicted, compositions among them.
            predictions: task name -> (B, dim), or (B, dim, rows, cols) of tasks that are maps.
        """
        outputs = cls()
        for task in tasks:
            if task.is_map:
                outputs.maps[task.name] = predictions[task.name]
            elif not task.is_masks:
                outputs.values[task.name] = predictions[task.name]
        return outputs

    @property
    def maps_to_show(self) -> dict[str, Tensor]:
        """The maps that the user gets: :attr:`shown_maps`, or :attr:`maps` without them."""
        return self.maps if self.shown_maps is None else self.shown_maps

    def map_tensors(self, function: Callable[[Tensor], Tensor]) -> HeadOutputs:
        """Return the outputs with a function applied to every tensor, always in the same order."""
        shown_maps = None
        if self.shown_maps is not None:
            shown_maps = _map_entries(self.shown_maps, function)
        return HeadOutputs(
            values=_map_entries(self.values, function),
            maps=_map_entries(self.maps, function),
            shown_maps=shown_maps,
            gate=None if self.gate is None else function(self.gate),
            raw_outputs=[_map_entries(outputs, function) for outputs in self.raw_outputs],
        )


def _map_entries(
    tensors: Mapping[str, Tensor], function: Callable[[Tensor], Tensor]
) -> dict[str, Tensor]:
    return {name: function(tensor) for name, tensor in tensors.items()}


def outputs_from_cells(task: Task, cells: Tensor) -> dict[str, Tensor]:
    """Return a task's outputs from its cells (B, dim, rows, cols), as :func:`scale_cells` gives them.

    ``dense`` and ``segmentation`` return the map itself, ``instances`` the map as ``"name.map"``;
    ``density`` the map's sum (or mean) as its value and the map as ``"name.map"``; ``ratio``, the
    only other kind with cells, the logarithm of the cells' mean shares as its value (the softmax of
    it gives these shares) and the map.
    """
    if task.is_map:
        return {task.name: cells}
    if task.kind == "instances":
        return {f"{task.name}{MAP}": cells}
    if task.kind == "density":
        value = cells.mean(dim=(2, 3)) if task.aggregate == "mean" else cells.sum(dim=(2, 3))
    else:  # ratio
        shares = exact(cells).softmax(dim=1).mean(dim=(2, 3))
        value = shares.clamp_min(torch.finfo(shares.dtype).tiny).log().to(cells.dtype)
    return {task.name: value, f"{task.name}{MAP}": cells}


def from_map_outputs(tasks: Sequence[Task], outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the outputs (B, 1) in normalised units of the tasks with ``from_map``, means over a map's cells.

    Args:
        tasks: of a head.
        outputs: at least those of its maps, (B, dim, rows, cols) in normalised units.
    """
    derived = {}
    for task in tasks:
        if task.from_map is None:
            continue
        map_task, channel = cell_output(task, tasks)
        cells = map_task.predict_map(outputs[map_task.name])
        value = cells[:, channel : channel + 1].mean(dim=(2, 3))
        if task.transform is not None:
            value = task.transform.forward(value)
        derived[task.name] = value
    return derived


def recompute_dependent_values(tasks: Sequence[Task], outputs: HeadOutputs) -> dict[str, Tensor]:
    """Return the values of a head's or an ensemble's outputs, with those recomputed that follow from others.

    A task with ``from_map`` is the mean over all cells of the map. Composed parts add up to the
    total, or are sums of the parts.

    Args:
        tasks: those predicted, :class:`dinoneck.losses.Composed` among them.
        outputs: before views or tiles are averaged.

    Returns:
        (B, dim) in original units, in the order of the values; none of tasks that are maps.
    """
    updated = dict(outputs.values)
    for task in tasks:
        if task.from_map is not None:
            map_task, channel = cell_output(task, tasks)
            cells = outputs.maps[map_task.name][:, channel : channel + 1]
            updated[task.name] = task.clamp(cells.mean(dim=(2, 3)))
    return _recompute_compositions(tasks, updated)


def recompute_averaged_values(
    tasks: Sequence[Task], values: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return values averaged over views and tiles, with those recomputed that follow from others.

    As :func:`recompute_dependent_values`; the mean over a map is among the values, taken over the
    cells that show the image.

    Args:
        tasks: those predicted, :class:`dinoneck.losses.Composed` among them.
        values: (B, dim) in original units; of a map the mean over the cells that show the image.

    Returns:
        The values in their order, with those recomputed.
    """
    updated = dict(values)
    for task in tasks:
        if task.from_map is not None:
            map_task, channel = cell_output(task, tasks)
            updated[task.name] = task.clamp(values[map_task.name][:, channel : channel + 1])
    return _recompute_compositions(tasks, updated)


def _recompute_compositions(tasks: Sequence[Task], values: dict[str, Tensor]) -> dict[str, Tensor]:
    """The values, with composed outputs computed from them."""
    updated = dict(values)
    for task in tasks:
        composition = task.parts_of if isinstance(task, Composed) else None
        if composition is None:
            continue
        if composition.adds_tasks:
            updated[composition.name] = composition.of(updated)
        else:
            composed = updated[composition.name]
            total = updated[composition.total]
            updated[composition.name] = composition.rescaled_to(composed, total)
    return updated


def scale_cells(task: Task, cells: Tensor) -> Tensor:
    """Return a tower's cells as the task's map; cells that are summed are divided by :data:`DENSITY_CELLS`."""
    if task.kind == "density" and task.aggregate == "sum":
        return cells / DENSITY_CELLS
    return cells
