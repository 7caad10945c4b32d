"""From a pyramid to a task: light heads on the pooled vector, convolution towers on the finest map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dinoneck.layers.blocks import ActivationName, ConvBlock, MapLinear, NormName, reset
from dinoneck.losses.composition import Composed
from dinoneck.losses.masked import exact
from dinoneck.tasks import MAP, Activation, Task, activate, cell_output

DENSITY_CELLS = 1024.0


class Light(nn.Module):
    """Linear, or Linear -> GELU -> Linear, then the task's activation: (B, in_dim) -> (B, dim)."""

    def __init__(self, in_dim: int, task: Task, hidden_dim: int | None = None, **factory: Any) -> None:
        super().__init__()
        self.activation = task.activation
        self.hidden = None if hidden_dim is None else nn.Linear(in_dim, hidden_dim, **factory)
        self.out = nn.Linear(hidden_dim or in_dim, task.dim, **factory)
        _start(self.out, self.activation)

    def reset_parameters(self) -> None:
        """Re-initialise the weights."""
        if self.hidden is not None:
            self.hidden.reset_parameters()
        self.out.reset_parameters()
        _start(self.out, self.activation)

    def forward(self, pooled: Tensor) -> Tensor:
        """Return predictions in normalised units."""
        hidden = pooled if self.hidden is None else nn.functional.gelu(self.hidden(pooled))
        return activate(self.out(hidden), self.activation)


class Tower(nn.Module):
    """``depth`` times 3x3 -> norm -> activation, then a linear layer and the task's activation, on maps.

    Shape:
        (B, channels, rows, cols) -> (B, dim, rows, cols).
    """

    def __init__(
        self,
        channels: int,
        task: Task,
        depth: int = 2,
        norm: NormName | None = "layer",
        activation: ActivationName | None = "gelu",
        **factory: Any,
    ) -> None:
        super().__init__()
        self.activation = task.activation
        self.blocks = nn.ModuleList(ConvBlock(channels, channels, 1, norm, activation, **factory) for _ in range(depth))
        self.out = MapLinear(channels, task.dim, **factory)
        _start(self.out, self.activation)

    def reset_parameters(self) -> None:
        """Re-initialise the weights."""
        for block in self.blocks:
            reset(block)
        self.out.reset_parameters()
        _start(self.out, self.activation)

    def forward(self, maps: Tensor) -> Tensor:
        """Return the prediction of every cell in normalised units."""
        for block in self.blocks:
            maps = block(maps)
        return activate(self.out(maps), self.activation)


def read_map(task: Task, cells: Tensor) -> dict[str, Tensor]:
    """Return a task's outputs from its cells (B, dim, rows, cols), as :func:`task_map` gives them.

    ``dense`` and ``segmentation`` return the map itself; ``density`` the map's sum (or mean) as its value
    and the map as ``"name.map"``; a ``ratio`` with the logarithm of its cells' mean shares, whose softmax they are.
    """
    if task.is_map:
        return {task.name: cells}
    if task.kind == "density":
        value = cells.mean(dim=(2, 3)) if task.aggregate == "mean" else cells.sum(dim=(2, 3))
    else:
        shares = exact(cells).softmax(dim=1).mean(dim=(2, 3))
        value = shares.clamp_min(torch.finfo(shares.dtype).tiny).log().to(cells.dtype)
    return {task.name: value, f"{task.name}{MAP}": cells}


def from_cells(tasks: Sequence[Task], outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the outputs (B, 1) in normalised units of the tasks whose value is the mean over a map's cells.

    Args:
        tasks: of a head.
        outputs: at least those of its maps, (B, dim, rows, cols) in normalised units.
    """
    found = {}
    for task in tasks:
        if task.from_cells is not None:
            cells, channel = cell_output(task, tasks)
            value = cells.predict_map(outputs[cells.name])[:, channel : channel + 1].mean(dim=(2, 3))
            found[task.name] = value if task.transform is None else task.transform.forward(value)
    return found


def recompute_derived(tasks: Sequence[Task], values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Recompute `from_cells` values and composed parts from averaged predictions.

    A task with ``from_cells`` is the mean over the cells of the averaged map; composed parts add up to the averaged
    total, or are sums of the averaged parts.

    Args:
        tasks: those predicted, :class:`dinoneck.losses.Composed` among them.
        values: in original units, (B, dim); of maps (B, dim, rows, cols), or (B, dim) means over their cells.
    """
    found = dict(values)
    for task in tasks:
        if task.from_cells is not None:
            cells, channel = cell_output(task, tasks)
            value = found[cells.name][:, channel : channel + 1]
            value = value.mean(dim=(2, 3)) if value.ndim == 4 else value
            found[task.name] = value if task.minimum is None else value.clamp_min(task.minimum)
    for task in tasks:
        if isinstance(task, Composed) and task.parts_of is not None:
            own = task.parts_of
            found[own.name] = own.of(found) if own.adds_tasks else own.rescaled_to(found[own.name], found[own.total])
    return found


def task_map(task: Task, cells: Tensor) -> Tensor:
    """Return a tower's cells as the task's map; where they add up, some hundred cells start in the order of one."""
    return cells / DENSITY_CELLS if task.kind == "density" and task.aggregate == "sum" else cells


def _start(layer: nn.Linear, activation: Activation | None) -> None:
    """Start a ReLU at 1 on average, so that it is not dead for every sample."""
    if activation == "relu":
        with torch.no_grad():
            layer.bias.fill_(1.0)
