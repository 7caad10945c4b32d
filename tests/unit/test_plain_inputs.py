"""Plain tensors as input of traced modules."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dinoneck import ViTFPN


@pytest.mark.slow
def test_compiled_and_exported_necks_take_plain_tensors() -> None:
    neck = ViTFPN(8, 2, 4).eval()
    layers = [torch.randn(2, 6 * 10, 8) for _ in range(2)]

    def finest(x: list[Tensor]) -> Tensor:
        return neck(x, grid=(6, 10))[0]

    expected = finest(layers)
    compiled = torch.compile(finest, fullgraph=True, backend="eager")
    assert torch.allclose(compiled(layers), expected, atol=1e-6)
    program = torch.export.export(neck, (layers,), {"grid": (6, 10)})
    assert torch.allclose(program.module()(layers, grid=(6, 10)).maps[0], expected, atol=1e-6)
