"""Graphs that six sizes take, forward alone and with its backward pass: no remainder of a size ties a graph to it."""

from __future__ import annotations

import pytest
import torch
import torch._dynamo.testing
from tests.contract.cases import CASES, Case
from tests.kit import leaves as outputs

pytestmark = pytest.mark.slow
# no square maps: where rows, cols and channels are one number, the layouts have the same strides, which AOT autograd
# tells apart, so such a size has a graph of its own
SHAPES = [(2, 3, 5), (3, 5, 7), (2, 9, 16), (4, 4, 6), (2, 15, 31), (5, 4, 3)]
HEADS_AND_NECKS = [case for case in CASES if case.takes != "points"]
MOST = 2


@pytest.mark.parametrize("trains", [False, True])
@pytest.mark.parametrize("case", HEADS_AND_NECKS, ids=str)
def test_six_sizes_take_at_most_two_graphs(case: Case, trains: bool) -> None:
    torch.manual_seed(0)
    torch._dynamo.reset()
    module = case.build().train(trains)
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(module, backend=counter, fullgraph=True, dynamic=True)
    for batch, rows, cols in SHAPES:
        inputs = case.inputs(batch=batch, rows=max(rows, case.smallest), cols=max(cols, case.smallest))
        with torch.set_grad_enabled(trains):
            found = outputs(compiled(*case.args(inputs)))
            if trains:
                sum(x.square().sum() for x in found).backward()  # type: ignore[union-attr]
    assert counter.frame_count <= MOST
    torch._dynamo.reset()
