"""Every module gives the recorded outputs and gradients, in float64, on odd grids."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch.utils import _pytree as pytree

from tests.golden.golden import FILE, RENAMED, build, grids_of, inputs, measure, summary

STORED: dict[str, dict[str, Any]] = json.loads(FILE.read_text())
RTOL, SMALLEST = 1e-10, 1e-3


def present(name: str) -> str:
    parameter = name.removeprefix("gradient of ")
    return f"gradient of {RENAMED[parameter]}" if parameter in RENAMED else name


def compare(measured: dict[str, Any], stored: dict[str, Any]) -> None:
    """Within 1e-10 of a tensor's norm; a tensor that is zero but for rounding counts as a thousandth of the largest."""
    largest = max(values[0] for _, values in stored.values() if values)
    for name, (shape, values) in stored.items():
        found_shape, found = measured[present(name)]
        assert found_shape == shape, name
        assert (found is None) == (values is None), name
        if values is not None:
            bound = RTOL * max(values[0], SMALLEST * largest)
            assert found == pytest.approx(values, rel=0, abs=bound), name


@pytest.mark.parametrize("name", STORED)
def test_outputs_and_gradients_are_those_recorded(name: str) -> None:
    case = STORED[name]
    module = build(case)
    for rows, cols, registers in grids_of(case):
        stored = case["grids"][f"{rows}x{cols}"]
        measured = measure(module, case, rows, cols, registers)
        assert measured.keys() == {present(key) for key in stored}
        compare(measured, stored)
        with torch.inference_mode():
            results = pytree.tree_leaves(module(*inputs(case, rows, cols, registers)[1]))
        compare(
            {f"output {i}": [list(y.shape), summary(y)] for i, y in enumerate(results)},
            {key: value for key, value in stored.items() if key.startswith("output")},
        )
