"""Backbones under torch.compile and torch.export, from both libraries."""

from __future__ import annotations

import pytest
import torch
import torch._dynamo.testing
from tests.unit.backbones.test_libraries import tiny_dinov3

from dinoneck import Backbone, Tokens, load_backbone, wrap_backbone

pytestmark = pytest.mark.slow
SIZES = [(32, 48), (48, 32), (64, 64), (48, 80), (32, 96)]


def make(source: str) -> Backbone:
    return (
        load_backbone("dinoneck_tiny", layers=[4, 1])
        if source == "timm"
        else wrap_backbone(tiny_dinov3(), layers=[2, 0])
    )


@pytest.mark.parametrize("source", ["timm", "transformers"])
def test_compiled_backbones_give_the_same_tokens(source: str) -> None:
    torch._dynamo.reset()
    backbone = make(source)
    compiled = torch.compile(backbone, backend="aot_eager", fullgraph=True)
    for size in SIZES[:3]:
        images = torch.randn(2, 3, *size)
        one, other = compiled(images), backbone(images)
        assert isinstance(one, Tokens)
        assert (one.grid, one.layers) == (other.grid, other.layers)
        for a, b in zip(one.sequence, other.sequence, strict=True):
            assert torch.allclose(a, b, atol=1e-5)


def test_transformers_backbones_compile_once_for_all_sizes() -> None:
    """timm specialises its rotary embedding on the size (one graph per size); transformers does not."""
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(make("transformers"), backend=counter, fullgraph=True, dynamic=True)
    for size in SIZES:
        compiled(torch.randn(2, 3, *size))
    assert counter.frame_count <= 2


@pytest.mark.parametrize("source", ["timm", "transformers"])
def test_exported_backbones_give_the_same_tokens(source: str) -> None:
    backbone, images = make(source), torch.randn(2, 3, 32, 48)
    exported = torch.export.export(backbone, (images,)).module()(images)
    for a, b in zip(exported.sequence, backbone(images).sequence, strict=True):
        assert torch.allclose(a, b, atol=1e-5)
