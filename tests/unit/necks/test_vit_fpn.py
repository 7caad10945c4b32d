"""ViTFPN: sizes, places, options, the linear collapse, the exact shortcut, torchvision's pyramid."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.kit import WIDTH
from tests.kit import tokens as tokens_of
from torch import nn
from torchvision.ops import FeaturePyramidNetwork

from dinoneck import SpatialTuningAdapter, ViTFPN
from dinoneck.layers import ConvBlock
from dinoneck.necks import TopDown

DOUBLE = torch.float64


def neck_of(layers: int = 3, seed: int = 0, **options: Any) -> ViTFPN:
    """A float64 neck whose zero-initialised weights are awake."""
    torch.manual_seed(seed)
    neck = ViTFPN(**{"embed_dim": WIDTH, "num_layers": layers, "fpn_dim": 16, **options}).double().eval()
    with torch.no_grad():
        for name, parameter in neck.named_parameters():
            if "gains" in name or "fusion_weights" in name:
                parameter.copy_(torch.randn_like(parameter))
    return neck


@pytest.mark.parametrize("grid", [(8, 12), (4, 4)])
def test_the_top_down_part_equals_torchvision(grid: tuple[int, int]) -> None:
    channels, width = [6, 10, 8], 16
    peer = FeaturePyramidNetwork(channels, width).double()
    own = TopDown(channels, width, dtype=DOUBLE)
    with torch.no_grad():
        for place in range(3):
            own.laterals[place].weight.copy_(peer.inner_blocks[place][0].weight[:, :, 0, 0])
            own.laterals[place].bias.copy_(peer.inner_blocks[place][0].bias)
            own.smooth[place].conv.load_state_dict(peer.layer_blocks[place][0].state_dict())
    maps = [torch.randn(2, c, grid[0] // 2**i, grid[1] // 2**i, dtype=DOUBLE) for i, c in enumerate(channels)]
    wanted = peer({str(i): level for i, level in enumerate(maps)})
    for a, b in zip(own(maps), wanted.values(), strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("grid", [(1, 5), (2, 2), (15, 31)])
@pytest.mark.parametrize("downsample", ["conv", "pool", "interpolate"])
@pytest.mark.parametrize("extras", [{}, {"residual_init": "zero", "use_coords": True, "use_cls_context": True}])
def test_the_shortcut_gives_the_pooled_vector_without_the_smoothing(
    grid: tuple[int, int], downsample: Any, extras: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = tokens_of(2, *grid, layers=4, dtype=DOUBLE)
    neck = neck_of(4, downsample=downsample, norm=None, activation=None, **extras)
    wanted = torch.cat([level.mean(dim=(2, 3)) for level in neck(tokens).maps], dim=1)
    called: list[nn.Module] = []
    own = ConvBlock.forward
    monkeypatch.setattr(ConvBlock, "forward", lambda self, maps: (called.append(self), own(self, maps))[1])
    assert torch.allclose(neck.pooled(tokens), wanted, rtol=0, atol=1e-13)
    assert not set(called) & set(neck.top_down.smooth)


@pytest.mark.parametrize(("width", "count"), [(4, 1), (8, 1), (16, 2), (22, 2), (23, 1), (36, 4), (256, 32)])
def test_group_norms_have_the_most_groups_of_at_least_eight_channels(width: int, count: int) -> None:
    for neck in (ViTFPN(WIDTH, 3, width, norm="group"), SpatialTuningAdapter(WIDTH, width, detail=None, norm="group")):
        assert {part.num_groups for part in neck.modules() if isinstance(part, nn.GroupNorm)} == {count}
