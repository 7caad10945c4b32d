"""SpatialTuningAdapter: sizes, places and values against the plain formulation; the options; what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.kit import WIDTH, randomised
from tests.kit import tokens as tokens_of
from torch import Tensor, nn

from dinoneck import SpatialTuningAdapter, Tokens
from dinoneck.layers.resampling import resampled

GRIDS = [(20, 20), (21, 29), (1, 1), (1, 7), (2, 3)]


def build(seed: int = 0, **options: Any) -> SpatialTuningAdapter:
    torch.manual_seed(seed)
    return randomised(
        SpatialTuningAdapter(**{"embed_dim": WIDTH, "out_channels": 8, "detail_dim": 4, **options})
    ).eval()


def fed(rows: int = 5, cols: int = 7, *, cell: int = 16, seed: int = 1, **how: Any) -> tuple[Tokens, Tensor]:
    torch.manual_seed(seed)
    tokens = tokens_of(2, rows, cols, **{"layers": 3, **how})
    return tokens, torch.randn(2, 3, rows * cell, cols * cell).to(tokens.sequence[0])


def batch_norm(x: Tensor, norm: nn.Module) -> Tensor:
    scale = norm.weight / (norm.running_var + 1e-5).sqrt()  # type: ignore[operator]
    return x * scale[:, None, None] + (norm.bias - norm.running_mean * scale)[:, None, None]  # type: ignore[operator]


def plain_detail(branch: nn.Module, images: Tensor) -> list[Tensor]:
    """The branch with NCHW operations, odd sides filled with zeros."""
    height, width = images.shape[-2:]
    x = F.conv2d(F.pad(images, (0, -width % 4, 0, -height % 4)), branch.stem.conv.weight, stride=4)
    x, levels = batch_norm(x, branch.stem.norm), []
    for step in branch.steps:
        x = F.gelu(x)
        x = F.conv2d(F.pad(x, (0, x.shape[-1] % 2, 0, x.shape[-2] % 2)), step.conv.weight, stride=2)
        x = batch_norm(x + F.conv2d(x, step.around.weight, padding=1, groups=x.shape[1]), step.norm)
        levels.append(x)
    return levels


def plain(neck: SpatialTuningAdapter, tokens: Tokens, images: Tensor) -> list[Tensor]:
    """Resize, concatenate, 1x1, norm: the formulation that nothing is folded or reordered in."""
    maps = [x.contiguous() for x in tokens.maps()]
    if neck.mix is not None:
        maps = [sum(w * x for w, x in zip(row.softmax(0), maps, strict=True)) for row in neck.mix]  # type: ignore[misc]
    fine, same, coarse = maps if len(maps) == 3 else maps * 3
    rows, cols = tokens.grid
    repeated = F.pad(coarse, (0, cols % 2, 0, rows % 2), mode="replicate")
    semantic = [
        F.interpolate(fine, scale_factor=2.0, mode="bilinear", align_corners=False),
        same,
        F.interpolate(repeated, scale_factor=0.5, mode="bilinear", align_corners=False),
    ]
    levels = []
    details = plain_detail(neck.detail, images) if neck.detail is not None else [same[:, :0]] * 3
    for place, (one, other) in enumerate(zip(semantic, details, strict=True)):
        stacked = one if neck.detail is None else torch.cat([one, other], dim=1)
        weight = neck.project[place].weight[..., None, None]
        levels.append(batch_norm(F.conv2d(stacked, weight), neck.norms[place]))
    return levels


@pytest.mark.parametrize("detail", ["aligned", None])
@pytest.mark.parametrize("num_layers", [1, 2, 3, 4])
def test_maps_equal_the_plain_formulation(detail: Any, num_layers: int) -> None:
    neck = build(detail=detail, num_layers=num_layers).double()
    for rows, cols in GRIDS:
        tokens, images = fed(rows, cols, layers=num_layers, dtype=torch.float64)
        found = neck(tokens, images)
        assert [tuple(x.shape[-2:]) for x in found.maps] == [
            (2 * rows, 2 * cols), (rows, cols), ((rows + 1) // 2, (cols + 1) // 2)
        ]  # fmt: skip
        for a, b in zip(found.maps, plain(neck, tokens, images), strict=True):
            assert torch.allclose(a, b, rtol=0, atol=1e-11)
            assert a.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("stride", [8, 16, 32])
@pytest.mark.parametrize("pixels", [640, 330, 333])
def test_resampling_reads_tokens_at_the_cells_centres(stride: int, pixels: int) -> None:
    """Tokens that hold their own place in pixels give cells that hold theirs, also where the stride does not divide."""
    length, cells = 20, -(-pixels // stride)
    places = (torch.arange(length, dtype=torch.float64) + 0.5) * pixels / length
    maps = torch.stack(torch.meshgrid(places, places, indexing="ij"))[None]
    found = resampled(maps, (cells, cells), (pixels, pixels), stride)
    wanted = ((torch.arange(cells, dtype=torch.float64) + 0.5) * stride).clamp(places[0], places[-1])
    assert torch.allclose(found[0, 0, :, 0], wanted, atol=1e-9)
    assert torch.allclose(found[0, 1, 0], wanted, atol=1e-9)
