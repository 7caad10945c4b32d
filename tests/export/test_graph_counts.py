"""Graphs that six sizes take: sizes marked as free, or found to be free, forward alone and with its backward pass."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch._dynamo.testing
from tests.contract.cases import CASES, Case, outputs
from torch import Tensor

pytestmark = pytest.mark.slow
SHAPES = [(2, 3, 5), (3, 5, 7), (2, 9, 16), (4, 2, 2), (2, 15, 31), (5, 4, 3)]
HEADS_AND_NECKS = [case for case in CASES if case.takes != "points"]
MOST = 2


def marked(inputs: Any, case: Case) -> Any:
    """The inputs, batch and tokens of every tensor told to be free."""
    for leaf in torch.utils._pytree.tree_leaves(inputs):
        if isinstance(leaf, Tensor):
            torch._dynamo.mark_dynamic(leaf, 0)
            if case.grid is None and leaf.ndim == 3:
                torch._dynamo.mark_dynamic(leaf, 1)
    return inputs


@pytest.mark.parametrize("trains", [False, True])
@pytest.mark.parametrize("case", HEADS_AND_NECKS, ids=str)
def test_sizes_marked_as_free_take_few_graphs(case: Case, trains: bool) -> None:
    torch.manual_seed(0)
    torch._dynamo.reset()
    module = case.build().train(trains)
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(module, backend=counter, fullgraph=True)
    for batch, rows, cols in SHAPES:
        inputs = marked(case.inputs(batch=batch, rows=max(rows, case.smallest), cols=max(cols, case.smallest)), case)
        with torch.set_grad_enabled(trains):
            found = outputs(compiled(*case.args(inputs)))
            if trains:
                sum(x.square().sum() for x in found).backward()  # type: ignore[union-attr]
    assert counter.frame_count <= MOST
    torch._dynamo.reset()
