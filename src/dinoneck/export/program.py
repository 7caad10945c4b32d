"""A ``torch.export`` program with a free batch and, where the model allows, a free grid; compared with the model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dinoneck.errors import CheckpointError, DinoneckError
from dinoneck.export.models import ImagesModel, Model
from dinoneck.grid import GridSize
from dinoneck.heads.ensemble import scores_places
from dinoneck.runtime.description import Content
from dinoneck.tasks import Task
from dinoneck.text import first_line

# three different sizes, none of them 1, which torch.export would fix
TRACED_BATCH = 2
TRACED_GRID = GridSize(10, 13)


class TracedOutput(NamedTuple):
    """An output of a program, see :class:`dinoneck.export.models.Output`.

    Attributes:
        content: what it is.
        task: whose output it is; None for a gate.
        shape: without the batch, at the traced grid.
    """

    content: Content
    task: Task | None
    shape: tuple[int, ...]


class Traced(NamedTuple):
    """A program and what it takes and gives.

    Attributes:
        program: the program.
        outputs: by name, in order.
        grid: the only grid of patches that it takes; None = any.
        smallest: the least number of patches a side, where the grid is free.
        reason: why the grid is fixed although none was asked for, else None.
    """

    program: torch.export.ExportedProgram
    outputs: dict[str, TracedOutput]
    grid: GridSize | None
    smallest: int = 1
    reason: str | None = None


def trace(model: Model, asked: GridSize | None) -> Traced:
    """Export with a free batch, and a free grid where the model allows, else the grid of its images.

    Args:
        model: in eval mode.
        asked: the only grid of patches to take; None = any where possible.

    Raises:
        CheckpointError: if it cannot be exported, or does not take this grid.
    """
    fixed_grid = None
    reason = None
    if model.only_grid is not None:
        fixed_grid = model.only_grid
        reason = "the backbone takes images of this size only"
    elif scores_places(model.heads):
        fixed_grid = model.prepared_grid
        reason = "a gate of mode 'mlp' scores the places of one grid"
        if asked is None and fixed_grid is None:
            raise CheckpointError(
                f"{reason}, and its file does not state which: give {model.remedy}", step="config"
            )
    grid = asked or fixed_grid
    if grid is not None:
        model.loaded_head.check_grid(grid, is_turned=False)
        if model.only_grid is not None and model.only_grid != grid:
            raise CheckpointError(
                f"size is {size_text(model, grid)}; the backbone takes images of "
                f"{size_text(model, model.only_grid)} only",
                step="config",
            )
    if isinstance(model, ImagesModel):
        with torch.no_grad(), _as_export_errors():
            model.check_shows_its_maps(model.example(1, grid or TRACED_GRID))
    if grid is not None:
        return _exported(model, grid)._replace(reason=None if asked else reason)

    for smallest in model.smallest_sides:
        try:
            traced = _exported(model, None, smallest)
        except CheckpointError as error:
            reason = reason or str(error)  # the first one
            continue
        if _is_free(traced, model):
            return traced
        reason = (
            "its code takes the sides of the image to plain numbers, which ties the program "
            "to one size"
        )
        break
    if model.prepared_grid is None:
        raise CheckpointError(
            f"this model cannot take any size ({reason}): give {model.remedy}", step="config"
        )
    return _exported(model, model.prepared_grid)._replace(reason=reason)


def size_text(model: Model, grid: GridSize) -> str:
    """Return a grid as messages name it: ``64x96 px``, ``4x6 patches``."""
    return f"{'x'.join(map(str, model.size_of(grid)))} {model.unit}"


def _exported(model: Model, grid: GridSize | None, smallest: int | None = None) -> Traced:
    example: Any = model.example(TRACED_BATCH, grid or TRACED_GRID)
    with torch.no_grad(), _as_export_errors():
        outputs = {}
        for output in model.outputs(example):
            shape = tuple(output.tensor.shape[1:])
            outputs[output.name] = TracedOutput(output.content, output.task, shape)
        dynamic = (model.dynamic_shapes(example, smallest),)
        program = torch.export.export(model, (example,), dynamic_shapes=dynamic, strict=False)
    program._example_inputs = None  # a file would hold them as a pickle
    _drop_stack_traces(program)
    bounds = [values.lower for side, values in program.range_constraints.items() if side.is_symbol]
    return Traced(program, outputs, grid, smallest=int(max(bounds, default=1)))


@contextmanager
def _as_export_errors() -> Iterator[None]:
    """Raise a CheckpointError for the many unrelated types of errors of heads and the exporter."""
    try:
        yield
    except DinoneckError:
        raise
    except Exception as error:
        raise CheckpointError(
            f"this model cannot be exported: {first_line(error)}", step="config"
        ) from error


def _drop_stack_traces(program: torch.export.ExportedProgram) -> None:
    """Drop what holds paths with user names, and most of the bytes of a small model."""
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                node.meta.pop("stack_trace", None)


def _is_free(traced: Traced, model: Model) -> bool:
    """Whether a program takes another grid; if sides were converted to plain numbers, a guard rejects it."""
    example: Any = model.example(1, GridSize(traced.smallest, traced.smallest + 1))
    try:
        with torch.no_grad():
            traced.program.module()(example)
    except (AssertionError, RuntimeError):
        return False
    return True


Run = Callable[[Any], dict[str, Tensor]]
# largest difference allowed, relative to the largest magnitude of an output
TOLERANCES = {torch.float32: 1e-4, torch.float64: 1e-4, torch.float16: 2e-2, torch.bfloat16: 5e-2}
_SMALLEST_SCALE = 1e-6  # magnitudes below it are no scale to compare with


class Parity(NamedTuple):
    """How far an exported model is from the eager one, on random inputs.

    Attributes:
        largest: the largest difference over all outputs, relative to the largest magnitude of that
            output.
        absolute: that difference in original units.
        output: the output that it belongs to.
        tolerance: what ``largest`` may be at most.
        tried: (batch, height, width) in pixels of the images that were tried; of tokens
            (batch, rows, cols).
    """

    largest: float
    absolute: float
    output: str
    tolerance: float
    tried: list[list[int]]


def check_parity(model: Model, traced: Traced, run: Run, half: bool = False) -> Parity:
    """Run both on the same inputs.

    Args:
        model: the eager model, in eval mode.
        traced: what the exported model takes.
        run: the exported model.
        half: whether its products are computed in float16.

    Raises:
        CheckpointError: if it fails, or differs by more than the tolerance.
    """
    differences: dict[str, float] = {}  # output -> its largest difference over all inputs
    magnitudes: dict[str, float] = {}  # output -> its largest magnitude over all inputs
    tried = _tried(traced, model.prepared_grid)
    for batch, grid in tried:
        example = model.example(batch, grid)
        where = f"batch {batch} of {size_text(model, grid)}"
        with torch.no_grad():
            expected = model(example)
            try:
                outputs = run(example)
            except Exception as error:  # of a runtime: many unrelated types
                raise CheckpointError(
                    f"the export fails at {where}: {first_line(error)}", step="write"
                ) from error
        if outputs.keys() != expected.keys():
            raise CheckpointError(
                f"the exported model gives the outputs {', '.join(outputs) or 'none'} at {where}; "
                f"expected {', '.join(expected)}",
                step="write",
            )
        for name, x in expected.items():
            if outputs[name].shape != x.shape:
                raise CheckpointError(
                    f"the exported model gives {name!r} of shape {tuple(outputs[name].shape)} at "
                    f"{where}; expected {tuple(x.shape)}",
                    step="write",
                )
            difference = _largest(outputs[name] - x)
            magnitude = _largest(x)
            differences[name] = max(difference, differences.get(name, 0.0))
            magnitudes[name] = max(magnitude, magnitudes.get(name, 0.0))
    dtypes = set(model.dtypes)
    if half:
        dtypes.add(torch.float16)
    tolerance = max(TOLERANCES[dtype] for dtype in dtypes)
    shapes = [[batch, *model.size_of(grid)] for batch, grid in tried]
    parities = []
    for name, difference in differences.items():
        magnitude = magnitudes[name]
        relative = math.inf
        if math.isfinite(magnitude):
            relative = difference / max(magnitude, _SMALLEST_SCALE)
        parities.append(
            Parity(
                largest=relative,
                absolute=difference,
                output=name,
                tolerance=tolerance,
                tried=shapes,
            )
        )
    parity = max(parities, key=lambda parity: (parity.largest, parity.absolute, parity.output))
    if not parity.largest <= tolerance:
        raise CheckpointError(
            f"the exported model differs by {parity.largest:.2g} of the largest {parity.output!r}, "
            f"more than {tolerance:g}; nothing was written",
            step="write",
        )
    return parity


def _tried(traced: Traced, prepared_grid: GridSize | None) -> list[tuple[int, GridSize]]:
    """Batches and grids that were not traced (small, wide, tall, that of the images), or the fixed grid."""
    if traced.grid is not None:
        return [(1, traced.grid), (3, traced.grid)]
    least = traced.smallest
    tried = [
        (1, GridSize(least, least + 3)),
        (3, GridSize(max(6, least), max(11, least))),  # wide
        (4, GridSize(max(11, least), max(5, least))),  # tall
    ]
    if prepared_grid is not None:
        tried.append((1, prepared_grid))
    return tried


def _largest(x: Tensor) -> float:
    """Return the largest absolute value, or infinity if any value is NaN."""
    return x.double().abs().nan_to_num(nan=math.inf, posinf=math.inf).max().item()
