"""Whether an exported model predicts what the model predicts, at batches and sizes that it was not traced with."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from dinoneck.errors import CheckpointError, first_line
from dinoneck.export.models import Model
from dinoneck.export.program import Traced, size_text
from dinoneck.grid import GridSize

Run = Callable[[Any], dict[str, Tensor]]
TOLERANCES = {torch.float32: 1e-4, torch.float64: 1e-4, torch.float16: 2e-2, torch.bfloat16: 5e-2}
_SMALLEST_SCALE = 1e-6


@dataclass(frozen=True)
class Parity:
    """How far an exported model is from the eager one, on random inputs.

    Attributes:
        largest: the largest difference over all outputs, relative to the largest magnitude of that output.
        absolute: that difference in original units.
        output: the output that it belongs to.
        tolerance: what ``largest`` may be at most.
        tried: (batch, height, width) in pixels of the images that were tried; of tokens (batch, rows, cols).
    """

    largest: float
    absolute: float
    output: str
    tolerance: float
    tried: tuple[tuple[int, ...], ...]

    def record(self) -> dict[str, Any]:
        """Return it in JSON-able form."""
        return {**asdict(self), "tried": [list(shape) for shape in self.tried]}


def check(model: Model, traced: Traced, run: Run) -> Parity:
    """Run both on the same inputs.

    Args:
        model: the eager model, in eval mode.
        traced: what the exported model takes.
        run: the exported model.

    Raises:
        CheckpointError: if it fails, or differs by more than the tolerance.
    """
    differences: dict[str, float] = {}
    scales: dict[str, float] = {}
    tried = _tried(traced, model.own)
    for batch, grid in tried:
        example, where = model.example(batch, grid), f"batch {batch} of {size_text(model, grid)}"
        with torch.no_grad():
            expected = model(example)
        outputs = _outputs(run, example, where)
        if {name: x.shape for name, x in outputs.items()} != {name: x.shape for name, x in expected.items()}:
            raise CheckpointError(f"the exported model gives other outputs at {where}", step="write")
        for name, x in expected.items():
            differences[name] = max(differences.get(name, 0.0), _largest(outputs[name] - x))
            scales[name] = max(scales.get(name, _SMALLEST_SCALE), _largest(x))
    relative = {name: differences[name] / scales[name] for name in differences}
    worst = max(relative, key=lambda name: relative[name])
    shapes = tuple((batch, *model.size_of(grid)) for batch, grid in tried)
    tolerance = max(TOLERANCES[kind] for kind in model.dtypes)
    parity = Parity(relative[worst], differences[worst], worst, tolerance, shapes)
    if not parity.largest <= tolerance:  # infinity by infinity is NaN
        raise CheckpointError(
            f"the exported model differs from the model by {parity.largest:.2g} of the largest {worst!r} "
            f"({parity.absolute:.2g} in its unit); at most {tolerance:g} is allowed. Nothing was written",
            step="write",
        )
    return parity


def _tried(traced: Traced, own: GridSize | None) -> list[tuple[int, GridSize]]:
    """Batches and grids that were not traced (small, tall, wide, the heads' own), or the fixed grid."""
    if traced.grid is not None:
        return [(1, traced.grid), (3, traced.grid)]
    least = traced.smallest
    sides = [(1, least, least + 3), (3, max(6, least), max(11, least)), (4, max(11, least), max(5, least))]
    return [(batch, GridSize(rows, cols)) for batch, rows, cols in (*sides, *([(1, *own)] if own else []))]


def _outputs(run: Run, example: Any, where: str) -> dict[str, Tensor]:
    try:
        with torch.no_grad():
            return run(example)
    except Exception as error:  # of a runtime: many unrelated types
        reason = first_line(error) or type(error).__name__
        raise CheckpointError(f"the exported model fails at {where}: {reason}", step="write") from error


def _largest(x: Tensor) -> float:
    """The largest absolute value; infinity where one is NaN, which no comparison of numbers finds."""
    return x.double().abs().nan_to_num(nan=math.inf, posinf=math.inf).max().item()
