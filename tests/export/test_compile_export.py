"""compile, export and ONNX: one graph for all grids, and the same numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch._dynamo.testing
from tests.contract.cases import CASES, Case
from tests.kit import leaves as outputs
from torch import nn

pytestmark = pytest.mark.slow
SHAPES = [(2, 3, 5), (3, 5, 7), (2, 9, 16), (4, 2, 2), (2, 15, 31), (5, 4, 3)]
# generating code takes long: the first case of a class, and those of options that have code of their own
OPTIONS = {"", "everything", "maps", "pixel", "query", "resized", "token"}
SKIPPED = {"mask"}  # minutes
COMPILED = [case for case in CASES if case.name.partition("-")[2] in OPTIONS and case.name not in SKIPPED]
each = pytest.mark.parametrize("case", CASES, ids=str)


def shapes(case: Case) -> list[tuple[int, int, int]]:
    """Six (batch, rows, cols) that the case is tried at."""
    return [(batch, max(rows, case.smallest), max(cols, case.smallest)) for batch, rows, cols in SHAPES]


def traced(case: Case) -> Any:
    """The inputs a case is exported with."""
    return case.inputs(batch=3, rows=max(4, case.smallest), cols=max(5, case.smallest + 1))


def built(case: Case) -> nn.Module:
    torch.manual_seed(0)
    return case.build().eval()


def assert_same(one: Any, other: Any, atol: float) -> None:
    for a, b in zip(outputs(one), outputs(other), strict=True):
        assert torch.allclose(torch.as_tensor(a), b, atol=atol)


@pytest.mark.parametrize("case", COMPILED, ids=str)
def test_inductor_forward_and_backward(case: Case) -> None:
    module, inputs = built(case), case.inputs()
    # fixed sizes: after another test's sizes in this process they would be symbols, for whose backward torch 2.15's
    # inductor raises InductorError ("expected [s49] to have been codegen-ed")
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True, dynamic=False)
    assert_same(compiled(*case.args(inputs)), module(*case.args(inputs)), 1e-5)
    sum(tensor.square().sum() for tensor in outputs(compiled(*case.args(inputs)))).backward()  # type: ignore[union-attr]
    found = [parameter.grad.clone() for parameter in module.parameters()]  # type: ignore[union-attr]
    module.zero_grad()
    sum(tensor.square().sum() for tensor in outputs(module(*case.args(inputs)))).backward()  # type: ignore[union-attr]
    # a bias before a norm has a gradient that cancels to nearly nothing: what is left of it is rounding of large terms
    scale = max(float(parameter.grad.abs().max()) for parameter in module.parameters())  # type: ignore[union-attr]
    for a, parameter in zip(found, module.parameters(), strict=True):
        assert torch.allclose(a, parameter.grad, rtol=1e-3, atol=2e-6 * scale)  # type: ignore[arg-type]


def dynamic(case: Case, inputs: Any) -> Any:
    """The free sizes of every argument: the batch, and the grid unless the module takes only one."""
    free = torch.export.Dim.DYNAMIC
    one = {0: free} if case.grid else {0: free, 1: free}
    if case.takes == "tokens":
        return ([*[one] * case.layers, None, None] if case.grid else inputs.dynamic_spec(),)
    if case.takes == "tokens+images":
        return (inputs[0].dynamic_spec(), {0: free, 2: free, 3: free})
    each_argument = {
        "patches": (one,),
        "layers": ([one] * case.layers,),
        "pair": ({0: free}, one),
        "points": (one,) * 3,
    }
    return each_argument[case.takes]


@each
def test_programs_and_onnx_give_the_same_at_unseen_sizes(case: Case, tmp_path: Path) -> None:
    """The program, a copy from disk and ONNX Runtime."""
    onnxruntime = pytest.importorskip("onnxruntime")
    module, inputs = built(case), traced(case)
    program = torch.export.export(module, case.args(inputs), dynamic_shapes=dynamic(case, inputs))
    torch.export.save(program, tmp_path / "m.pt2")
    programs = program.module(), torch.export.load(tmp_path / "m.pt2").module()
    torch.onnx.export(program, f=tmp_path / "m.onnx", dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    for batch, rows, cols in shapes(case):
        other = case.inputs(batch=batch, rows=rows, cols=cols)
        expected = module(*case.args(other))
        leaves = [np.asarray(leaf) for leaf in torch.utils._pytree.tree_leaves(other)]
        named = dict(zip(program.graph_signature.user_inputs, leaves, strict=True))
        feeds = {entry.name: named[entry.name] for entry in session.get_inputs()}
        for found in (*(exported(*case.args(other)) for exported in programs), session.run(None, feeds)):
            assert_same(found, expected, 1e-5)
