"""Outputs and gradients that version 0.1 computed, of every module in ``tests/contract/cases.py``.

``python -m tests.golden.golden`` wrote ``golden.json`` with version 0.1. It is never written again: see README.md. The
file keeps, per case, the header of the head file that 0.1 wrote and summaries of float64 outputs and gradients.
Weights, inputs and projections are functions of a name and a shape, so no tensor is stored and no random generator's
order matters. The head file is rebuilt from header and weights and is read like any other, so migrations apply to it.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from dinoneck import HeadCheckpoint, Tokens

FILE = Path(__file__).with_name("golden.json")
GRIDS = {(1, 7): 0, (3, 5): 4, (9, 13): 2}
"""Rows and columns -> number of register tokens."""
WIDTH, POINT_WIDTH, BATCH, PATCH = 24, 8, 2, 16
PROJECTIONS = 3
RENAMED: dict[str, str] = {}
"""Parameter names of 0.1 -> present names, where a migration renames a parameter."""


def uniform(name: str, *shape: int, low: float = -1.0, high: float = 1.0) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Numbers in [low, high) that depend on name and shape alone, the same on every machine."""
    key = int.from_bytes(hashlib.sha256(f"{name} {shape}".encode()).digest()[:16], "little")
    raw = np.random.Philox(key=key).random_raw(math.prod(shape)) >> np.uint64(11)
    return (low + (high - low) * raw.astype(np.float64) * 2.0**-53).reshape(shape)


def weight(name: str, shape: list[int], dtype: str) -> bytes:
    """The little-endian bytes of one tensor of a head file."""
    if dtype == "I64":
        return np.full(shape, 3, np.int64).tobytes()
    last, bound = name.rsplit(".", 1)[-1], 0.5
    if last == "running_var" or (last == "weight" and len(shape) == 1):
        values = uniform(name, *shape, low=0.5, high=1.5)
    else:
        if len(shape) > 1:
            bound = math.sqrt(3.0 / math.prod(shape[1:]))
        values = uniform(name, *shape, low=-bound, high=bound)
    return values.astype({"F32": np.float32, "F64": np.float64}[dtype]).tobytes()


def head_file(header: str) -> bytes:
    """The bytes of the head file that 0.1 wrote: its header and the weights that the header lists."""
    text = header.encode()
    listed = {name: entry for name, entry in json.loads(text).items() if name != "__metadata__"}
    ordered = sorted(listed.items(), key=lambda item: item[1]["data_offsets"])
    tensors = [weight(name, entry["shape"], entry["dtype"]) for name, entry in ordered]
    return len(text).to_bytes(8, "little") + text + b"".join(tensors)


def load(header: str) -> nn.Module:
    """The module in float64, read like a user's head file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "head.safetensors"
        path.write_bytes(head_file(header))
        return HeadCheckpoint.load(path).build(dtype=torch.float64)


def leaf(name: str, *shape: int) -> Tensor:
    return torch.from_numpy(uniform(name, *shape, low=-1.7, high=1.7)).requires_grad_()


def inputs(case: dict[str, Any], rows: int, cols: int, registers: int) -> tuple[list[Tensor], tuple[Any, ...]]:
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
    leaves = [leaf(f"tokens {i}", BATCH, 1 + registers + count, WIDTH) for i in range(case["layers"])]
    tokens = Tokens.from_sequence(leaves, image_size=(rows * PATCH, cols * PATCH), patch_size=PATCH,
                                  num_prefix_tokens=1 + registers, layers=range(len(leaves)), normed=True)  # fmt: skip
    if takes == "tokens":
        return leaves, (tokens,)
    leaves.append(leaf("images", BATCH, 3, rows * case["cell_px"], cols * case["cell_px"]))
    return leaves, (tokens, leaves[-1])


def summary(value: Tensor) -> list[float]:
    """The norm and fixed projections: elements that change or change places change them."""
    flat = value.detach().double().reshape(-1)
    axes = [torch.from_numpy(uniform(f"projection {i}", flat.numel())) for i in range(PROJECTIONS)]
    return [float(flat.norm()), *(float(flat @ axis) for axis in axes)]


def measure(module: nn.Module, case: dict[str, Any], rows: int, cols: int, registers: int) -> dict[str, Any]:
    """Summaries of outputs and of the gradients of their projections, by name."""
    leaves, arguments = inputs(case, rows, cols, registers)
    results = pytree.tree_leaves(module(*arguments))
    target = sum((y * torch.from_numpy(uniform(f"target {i}", *y.shape))).sum() for i, y in enumerate(results))
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
    return ((rows, cols, registers) for (rows, cols), registers in GRIDS.items() if only in (None, [rows, cols]))


def main() -> None:
    """Write the file, once."""
    from tests.contract.cases import CASES

    if FILE.exists():
        sys.exit(f"{FILE.name} was written by version 0.1 and is never written again; see README.md next to it")
    stored = {}
    for case in CASES:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "head.safetensors"
            plain = HeadCheckpoint.from_module(case.build())
            for name, value in list(plain.state_dict.items()):
                kind = {torch.float32: "F32", torch.int64: "I64"}[value.dtype]
                filled = torch.frombuffer(bytearray(weight(name, list(value.shape), kind)), dtype=value.dtype)
                plain.state_dict[name] = filled.reshape(value.shape)
            HeadCheckpoint.from_module(plain.build()).save(path)
            content = path.read_bytes()
        size = int.from_bytes(content[:8], "little")
        facts = {"takes": case.takes, "layers": case.layers, "cell_px": case.cell_px,
                 "grid": None if case.grid is None else list(case.grid)}  # fmt: skip
        header = content[8 : 8 + size].decode()
        if head_file(header) != content:
            sys.exit(f"{case.name}: the head file cannot be rebuilt from its header")
        module = load(header)
        grids = {f"{r}x{c}": measure(module, facts, r, c, registers) for r, c, registers in grids_of(facts)}
        stored[case.name] = {**facts, "header": header, "grids": grids}
    FILE.write_text(json.dumps(stored, separators=(",", ":")).replace('},"', '},\n"') + "\n")


if __name__ == "__main__":
    main()
