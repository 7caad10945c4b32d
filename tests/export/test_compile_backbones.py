"""Backbones under torch.compile and torch.export, from both libraries."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch._dynamo.testing
from tests.unit.backbones.test_libraries import tiny_dinov3
from timm.models.vision_transformer import VisionTransformer

from dinoneck import Backbone, Tokens, load_backbone, wrap_backbone

pytestmark = pytest.mark.slow
SIZES = [(32, 48), (48, 32), (64, 64), (48, 80), (32, 96)]


MAKERS = [lambda: load_backbone("dinoneck_tiny", layers=[4, 1]), lambda: wrap_backbone(tiny_dinov3(), layers=[2, 0])]


@pytest.mark.parametrize("make", MAKERS, ids=["timm", "transformers"])
def test_backbones_compile_once_for_all_sizes_and_give_the_same_tokens(make: Callable[[], Backbone]) -> None:
    torch._dynamo.reset()
    counter, backbone = torch._dynamo.testing.CompileCounterWithBackend("aot_eager"), make()
    compiled = torch.compile(backbone, backend=counter, fullgraph=True, dynamic=True)
    batches = [torch.randn(2, 3, *size) for size in SIZES]
    outputs = [compiled(images) for images in batches]
    assert counter.frame_count <= 2
    for images, one in zip(batches, outputs, strict=True):
        other = backbone(images)
        assert isinstance(one, Tokens)
        assert (one.grid, one.layers) == (other.grid, other.layers)
        for a, b in zip(one.sequence, other.sequence, strict=True):
            assert torch.allclose(a, b, atol=1e-5)


def test_a_dinov2_of_timm_is_one_graph_for_all_sizes() -> None:
    """Compiled and exported: its positions are resampled inside the graph."""
    torch._dynamo.reset()
    settings = {"embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 0, "reg_tokens": 2, "init_values": 0.1}
    backbone = wrap_backbone(
        VisionTransformer(img_size=56, patch_size=14, dynamic_img_size=True, no_embed_class=True, **settings)  # type: ignore[arg-type]
    )
    counter = torch._dynamo.testing.CompileCounterWithBackend("eager")
    compiled = torch.compile(backbone, backend=counter, fullgraph=True, dynamic=True)
    rows, cols = torch.export.Dim("rows", min=3, max=99), torch.export.Dim("cols", min=3, max=99)
    sides = {0: torch.export.Dim("batch"), 2: 14 * rows, 3: 14 * cols}
    exported = torch.export.export(backbone, (torch.randn(2, 3, 70, 98),), dynamic_shapes=(sides,)).module()
    for size in ((70, 98), (56, 56), (154, 84)):
        images = torch.randn(3, 3, *size)
        wanted = backbone(images).sequence[0]
        assert torch.allclose(compiled(images).sequence[0], wanted, atol=1e-5)
        assert torch.allclose(exported(images).sequence[0], wanted, atol=1e-5)
    assert counter.frame_count <= 2
