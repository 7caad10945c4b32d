"""Plain tensors as input: what is refused, and that a traced module takes them too."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from dinoneck import (
    CLSGatingHead,
    GridError,
    PatchMeanHead,
    ShapeError,
    SimplePyramid,
    Task,
    Tokens,
    ViTFPN,
)

PATCHES, MAPS, CLS = torch.randn(2, 15, 8), torch.randn(2, 8, 3, 5), torch.randn(2, 8)


@pytest.mark.parametrize(
    ("x", "plain", "error", "message"),
    [
        (PATCHES, {}, ShapeError, r"without their patch grid; pass grid=\(rows, cols\)"),
        (PATCHES, {"grid": (3, 4)}, GridError, "15 patch tokens do not fill a grid of 3 rows x 4 cols"),
        (PATCHES, {"grid": (3, 5), "num_prefix_tokens": 1}, GridError, "a sequence of 15 tokens does not fit"),
        (PATCHES, {"grid": (2, 7), "num_prefix_tokens": 1, "cls_token": CLS}, ShapeError, "pass one of them"),
        (MAPS, {"grid": (5, 3)}, ShapeError, r"maps of 3 rows x 5 cols with grid=\(5, 3\)"),
        ([torch.randn(2, 8, 2, 6), torch.randn(2, 8, 3, 4)], {}, ShapeError, "maps of 2x6, 3x4 cells"),
        (torch.zeros(15, 8), {"grid": (3, 5)}, ShapeError, r"got \[\(15, 8\)\]"),
        (Tokens.from_patches(PATCHES, grid=(3, 5), patch_size=16), {"grid": (3, 5)}, ShapeError, "leave them out"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(x: Any, plain: Any, error: type[Exception], message: str) -> None:
    for module in (SimplePyramid(8, 4), PatchMeanHead(8, [Task("mass")])):
        with pytest.raises(error, match=message):
            module(x, **plain)


def test_a_missing_cls_token_is_named() -> None:
    head = CLSGatingHead(8, [Task("mass")], mode="query")
    with pytest.raises(ShapeError, match="no CLS token; pass cls_token="):
        head(PATCHES, grid=(3, 5))
    assert head(PATCHES, grid=(3, 5), cls_token=CLS)["mass"].shape == (2, 1)


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
