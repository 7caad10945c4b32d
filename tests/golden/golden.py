"""Recorded outputs and gradients of every module in ``tests/contract/cases.py``, in float64.

``python -m tests.golden.golden CASE ...`` records the named cases and leaves the others as they
are: see README.md. ``golden.json`` keeps, per case, the configuration, name, dtype and shape of
every tensor, and summaries of outputs and gradients. Weights, inputs and projections are functions
of a name and a shape, so no tensor is stored and the order of random draws does not matter.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from dinoneck import Tokens, registry

FILE = Path(__file__).with_name("golden.json")
GRIDS = {(1, 7): 0, (3, 5): 4, (9, 13): 2}
"""Rows and columns -> number of register tokens."""
WIDTH, POINT_WIDTH, BATCH, PATCH = 24, 8, 2, 16
PROJECTIONS = 3
RENAMED: dict[str, str] = {}
"""Recorded names of tensors -> present names, where a tensor was renamed."""


def uniform(
    name: str, *shape: int, low: float = -1.0, high: float = 1.0
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Numbers in [low, high) that depend on name and shape alone, the same on every machine."""
    key = int.from_bytes(hashlib.sha256(f"{name} {shape}".encode()).digest()[:16], "little")
    raw = np.random.Philox(key=key).random_raw(math.prod(shape)) >> np.uint64(11)
    return (low + (high - low) * raw.astype(np.float64) * 2.0**-53).reshape(shape)


def weight(name: str, shape: list[int], dtype: str) -> Tensor:
    """The value of one tensor, of float32 precision."""
    if dtype == "I64":
        return torch.full(shape, 3)
    last, bound = name.rsplit(".", 1)[-1], 0.5
    if last == "running_var" or (last == "weight" and len(shape) == 1):
        values = uniform(name, *shape, low=0.5, high=1.5)
    else:
        if len(shape) > 1:
            bound = math.sqrt(3.0 / math.prod(shape[1:]))
        values = uniform(name, *shape, low=-bound, high=bound)
    return torch.from_numpy(values.astype(np.float32))


def build(case: dict[str, Any]) -> nn.Module:
    """The module of a recorded case in float64 and eval mode, with its weights."""
    part = case["module"]
    module: nn.Module = registry.resolve(part["type"]).from_config(part["config"])  # type: ignore[attr-defined]
    state = {
        RENAMED.get(name, name): weight(name, shape, dtype)
        for name, (dtype, shape) in case["tensors"].items()
    }
    scale = {
        name: x
        for name, x in module.state_dict().items()
        if name.rpartition(".")[0].endswith("scale")
    }
    module.load_state_dict({**state, **scale})  # tokens pass a head's scale unchanged
    return module.double().eval()


def leaf(name: str, *shape: int) -> Tensor:
    return torch.from_numpy(uniform(name, *shape, low=-1.7, high=1.7)).requires_grad_()


def inputs(
    case: dict[str, Any], rows: int, cols: int, registers: int
) -> tuple[list[Tensor], tuple[Any, ...]]:
    """The tensors that gradients are taken of, and what the module is called with."""
    takes, count = case["takes"], rows * cols
    if takes in ("patches", "layers", "pair", "points"):
        leaves = [leaf(f"patches {i}", BATCH, count, WIDTH) for i in range(case["layers"])]
        if takes == "layers":
            return leaves, (leaves,)
        if takes == "pair":
            leaves = [leaf("class token", BATCH, WIDTH), *leaves]
        if takes == "points":
            leaves = [leaf("points", BATCH, count, POINT_WIDTH), *leaves]
            return leaves, (*leaves, torch.arange(count).expand(BATCH, -1) % 3 != 1)
        return leaves, tuple(leaves)
    leaves = [
        leaf(f"tokens {i}", BATCH, 1 + registers + count, WIDTH) for i in range(case["layers"])
    ]
    tokens = Tokens.from_sequence(
        leaves,
        image_size=(rows * PATCH, cols * PATCH),
        patch_size=PATCH,
        num_prefix_tokens=1 + registers,
        layers=range(len(leaves)),
        normed=True,
    )
    if takes == "tokens":
        return leaves, (tokens,)
    leaves.append(leaf("images", BATCH, 3, rows * case["cell_px"], cols * case["cell_px"]))
    return leaves, (tokens, leaves[-1])


def summary(value: Tensor) -> list[float]:
    """The norm and fixed projections: elements that change or change places change them."""
    flat = value.detach().double().reshape(-1)
    axes = [torch.from_numpy(uniform(f"projection {i}", flat.numel())) for i in range(PROJECTIONS)]
    return [float(flat.norm()), *(float(flat @ axis) for axis in axes)]


def measure(
    module: nn.Module, case: dict[str, Any], rows: int, cols: int, registers: int
) -> dict[str, Any]:
    """Summaries of outputs and of the gradients of their projections, by name."""
    leaves, arguments = inputs(case, rows, cols, registers)
    results = pytree.tree_leaves(module(*arguments))
    target = sum(
        (y * torch.from_numpy(uniform(f"target {i}", *y.shape))).sum()
        for i, y in enumerate(results)
    )
    named = [(f"gradient of input {i}", value) for i, value in enumerate(leaves)]
    named += [(f"gradient of {name}", value) for name, value in module.named_parameters()]
    gradients = torch.autograd.grad(target, [value for _, value in named], allow_unused=True)  # type: ignore[arg-type]
    measured = {f"output {i}": [list(y.shape), summary(y)] for i, y in enumerate(results)}
    for (name, value), gradient in zip(named, gradients, strict=True):
        measured[name] = [list(value.shape), None if gradient is None else summary(gradient)]
    return measured


def grids_of(case: dict[str, Any]) -> Iterator[tuple[int, int, int]]:
    """The odd grids, or the one that the module takes."""
    only = case["grid"]
    return (
        (rows, cols, registers)
        for (rows, cols), registers in GRIDS.items()
        if only in (None, [rows, cols])
    )


def record(case: Any) -> dict[str, Any]:
    """What the file keeps of a case of ``tests/contract/cases.py``."""
    module: Any = case.build()
    recorded: dict[str, Any] = {
        "takes": case.takes,
        "layers": case.layers,
        "cell_px": case.cell_px,
        "grid": None if case.grid is None else list(case.grid),
        "module": {"type": registry.name_of(type(module)), "config": module.config},
        "tensors": {
            name: ["F32" if value.is_floating_point() else "I64", list(value.shape)]
            for name, value in sorted(module.state_dict().items())
        },
    }
    module = build(recorded)
    grids = {
        f"{r}x{c}": measure(module, recorded, r, c, registers)
        for r, c, registers in grids_of(recorded)
    }
    return {**recorded, "grids": grids}


def main(names: list[str]) -> None:
    """Record the named cases; the others stay as they are."""
    from tests.contract.cases import CASES

    cases = {case.name: case for case in CASES}
    if not names or (unknown := sorted(set(names) - cases.keys())):
        sys.exit(
            f"name the cases to record{f'; there is no {unknown[0]!r}' if names else ''}: "
            f"{', '.join(cases)}"
        )
    stored = json.loads(FILE.read_text()) | {name: record(cases[name]) for name in names}
    lines = [
        f"{json.dumps(name)}:{json.dumps(case, separators=(',', ':'))}"
        for name, case in stored.items()
    ]
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
