"""Whether an exported program says what the model says, at batches and sizes that it was not traced with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from dinoneck.errors import CheckpointError, first_line
from dinoneck.inference.whole_model import Sides, WholeModel

Run = Callable[[Tensor], dict[str, Tensor]]
TOLERANCES = {torch.float32: 1e-4, torch.float64: 1e-4, torch.float16: 2e-2, torch.bfloat16: 5e-2}
_SMALLEST_SCALE = 1e-6


@dataclass(frozen=True)
class Parity:
    """How far a program is from the eager model.

    Attributes:
        largest: the largest difference over all outputs, relative to the largest magnitude of that output.
        absolute: that difference in natural units.
        output: the output that it belongs to.
        tolerance: what ``largest`` may be at most.
        tried: (batch, height, width) of the images tried, of random pixels.
    """

    largest: float
    absolute: float
    output: str
    tolerance: float
    tried: tuple[tuple[int, int, int], ...]

    def record(self) -> dict[str, Any]:
        """Return it in JSON-able form."""
        return {**asdict(self), "tried": [list(shape) for shape in self.tried]}


def check(model: WholeModel, run: Run, sides: Sides, own: tuple[int, int] | None) -> Parity:
    """Run both on the same pixels.

    Args:
        model: the eager model, in eval mode.
        run: the program.
        sides: of its images.
        own: (height, width) that photos are prepared to, which is tried too.

    Raises:
        CheckpointError: if the program fails, or differs by more than the tolerance.
    """
    differences: dict[str, float] = {}
    scales: dict[str, float] = {}
    tried = _shapes(sides, own)
    generator = torch.Generator().manual_seed(0)
    for shape in tried:
        pixels = torch.rand(shape[0], 3, *shape[1:], generator=generator)
        with torch.no_grad():
            wanted = model(pixels)
        found = _found(run, pixels, shape)
        if list(found) != list(wanted) or any(found[name].shape != wanted[name].shape for name in wanted):
            raise CheckpointError(f"the exported model answers with other outputs at {_told(shape)}", step="write")
        for name, answer in wanted.items():
            differences[name] = max(differences.get(name, 0.0), _most(found[name] - answer))
            scales[name] = max(scales.get(name, _SMALLEST_SCALE), _most(answer))
    relative = {name: differences[name] / scales[name] for name in differences}
    worst = max(relative, key=lambda name: relative[name])
    parity = Parity(relative[worst], differences[worst], worst, max(TOLERANCES[kind] for kind in model.dtypes), tried)
    if not parity.largest <= parity.tolerance:  # NaN fails too
        raise CheckpointError(
            f"the exported model differs from the model by {parity.largest:.2g} of the largest {worst!r} "
            f"({parity.absolute:.2g} in its unit); at most {parity.tolerance:g} is allowed. Nothing was written",
            step="write",
        )
    return parity


def _shapes(sides: Sides, own: tuple[int, int] | None) -> tuple[tuple[int, int, int], ...]:
    """Batches and sizes, none of them the traced ones: small, tall, wide, and the heads' own."""
    if sides.size is not None:
        return (1, *sides.size), (3, *sides.size)
    height, width = sides.patch
    grids: Sequence[tuple[int, int, int]] = (
        (1, sides.smallest, sides.smallest + 3),
        (3, 6, 11),
        (4, 11, 5),
    )
    free = tuple((batch, rows * height, cols * width) for batch, rows, cols in grids)
    return free if own is None else (*free, (1, *own))


def _found(run: Run, pixels: Tensor, shape: Sequence[int]) -> dict[str, Tensor]:
    try:
        with torch.no_grad():
            return run(pixels)
    except Exception as error:  # of a runtime: many unrelated types
        told = first_line(error) or type(error).__name__
        raise CheckpointError(f"the exported model fails at {_told(shape)}: {told}", step="write") from error


def _most(x: Tensor) -> float:
    return x.double().abs().max().item()


def _told(shape: Sequence[int]) -> str:
    return f"a batch of {shape[0]} images of {shape[1]}x{shape[2]} px"
