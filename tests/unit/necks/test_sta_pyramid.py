"""STAPyramid against the plain construction (upsample, then 1x1), and where every cell of every level lies."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.kit import WIDTH, randomised
from tests.kit import tokens as tokens_of
from torch import Tensor, nn

from dinoneck import STAPyramid, Tokens
from dinoneck.layers.resampling import at_stride

GRIDS = [(1, 1), (1, 7), (6, 10), (15, 31)]
OPTIONS = list(itertools.product((False, True), (False, True), ("nearest", "bilinear"), ("conv", "avgpool")))


def plain(neck: STAPyramid, tokens: Tokens) -> list[Tensor]:
    """The published construction on an NCHW map: everything at full width, the 1x1 convolutions last."""
    maps = tokens.patches[-1].transpose(1, 2).reshape(len(tokens), -1, *tokens.grid).contiguous()
    if neck.norm is not None:
        mean, variance = maps.mean(dim=1, keepdim=True), maps.var(dim=1, keepdim=True, correction=0)
        maps = (maps - mean) / (variance + 1e-6).sqrt()
        maps = maps * neck.norm.weight[:, None, None] + neck.norm.bias[:, None, None]
    if neck.places is not None:
        maps = maps + F.interpolate(neck.places[None], tokens.grid, mode="bilinear", align_corners=False)

    def one(layer: nn.Linear, x: Tensor) -> Tensor:
        return F.conv2d(x, layer.weight[..., None, None], layer.bias)

    doubled = F.interpolate(maps, scale_factor=2, mode=neck.upsample)
    if neck.downsample == "conv":
        coarse = neck.p32(maps)
    else:
        rows, cols = tokens.grid
        even = F.pad(maps, (0, cols % 2, 0, rows % 2), mode="replicate")
        coarse = one(neck.p32, F.avg_pool2d(even, 2))  # type: ignore[arg-type]
    return [one(neck.p8, doubled), one(neck.p16, maps), coarse]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_it_is_the_plain_construction(grid: tuple[int, int], options: tuple[Any, ...]) -> None:
    neck = randomised(STAPyramid(WIDTH, 8, *options).double(), 0.3)
    tokens = tokens_of(2, *grid, layers=2, dtype=torch.float64)
    pyramid = neck(tokens)
    rows, cols = grid
    sizes = [(2 * rows, 2 * cols), grid, (-(-rows // 2), -(-cols // 2))]
    assert [tuple(level.shape) for level in pyramid.maps] == [(2, 8, *size) for size in sizes]
    for ours, theirs in zip(pyramid.maps, plain(neck, tokens), strict=True):
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-12)
        assert ours.stride(1) == 1


def centres(level: Tensor, stride: float) -> Tensor:
    """What the two channels of a level should be: (x, y) of its cells' centres in pixels."""
    rows, cols = level.shape[-2:]
    ys, xs = torch.meshgrid(torch.arange(rows) + 0.5, torch.arange(cols) + 0.5, indexing="ij")
    return torch.stack((xs, ys)).double()[None] * stride


@pytest.mark.parametrize(("patch", "stride"), [(14, 8), (14, 16), (16, 8), (16, 16), (14, 32)])
def test_reading_at_a_stride_is_grid_sample(patch: int, stride: int) -> None:
    maps = torch.randn(2, 3, 9, 14, dtype=torch.float64)
    for mode in ("nearest", "bilinear"):
        found = at_stride(maps, patch, stride, mode)  # type: ignore[arg-type]
        xy = centres(found, stride)[0].permute(1, 2, 0)
        span = torch.tensor([14, 9], dtype=torch.float64) * patch
        places = (xy / span * 2 - 1)[None].expand(2, -1, -1, -1)
        expected = F.grid_sample(maps, places, mode="bilinear", padding_mode="border", align_corners=False)
        if mode == "nearest":
            column, row = (xy // patch).long().movedim(-1, 0)
            expected = maps[:, :, row.clamp(max=8), column.clamp(max=13)]
        assert torch.allclose(found, expected, rtol=0, atol=1e-12)


def places(grid: tuple[int, int], patch: int) -> Tokens:
    """Tokens whose first two channels are the x and y of the patch centre in pixels; prefix tokens far off."""
    rows, cols = grid
    x = torch.full((1, 5 + rows * cols, 2), -1e6, dtype=torch.float64)
    ys, xs = torch.meshgrid(torch.arange(rows) + 0.5, torch.arange(cols) + 0.5, indexing="ij")
    x[0, 5:] = torch.stack((xs, ys), dim=-1).flatten(0, 1) * patch
    return Tokens.from_sequence(x, image_size=(rows * patch, cols * patch), patch_size=patch, num_prefix_tokens=5)


def copying(**options: Any) -> STAPyramid:
    """Weights that hand the two channels on; the 3x3 kernel is a mean."""
    neck = STAPyramid(2, 2, **options).double()
    with torch.no_grad():
        for layer in (neck.p8, neck.p16, neck.p32):
            layer.bias.zero_()  # type: ignore[union-attr,operator]
            eye = torch.eye(2, dtype=torch.float64)
            layer.weight.copy_(eye if layer.weight.ndim == 2 else (eye / 9)[..., None, None].expand(2, 2, 3, 3))  # type: ignore[union-attr,operator,arg-type]
    return neck


@pytest.mark.parametrize(("grid", "patch"), [((1, 1), 14), ((1, 7), 20), ((23, 23), 14), ((46, 31), 16)])
def test_asked_strides_are_exact_at_any_patch(grid: tuple[int, int], patch: int) -> None:
    neck = copying(upsample="bilinear", downsample="avgpool", strides=(8, 16, 32), patch_size=patch)
    pyramid = neck(places(grid, patch))
    assert pyramid.strides == neck.strides == (8.0, 16.0, 32.0)
    height, width = (side * patch for side in grid)
    for level, stride in zip(pyramid.maps, (8, 16, 32), strict=True):
        assert tuple(level.shape[-2:]) == (-(-height // stride), -(-width // stride))
        last = [[width - patch / 2], [height - patch / 2]]  # the last token's centre: nothing lies beyond
        bounds = [torch.tensor(v, dtype=torch.float64)[None, ..., None] for v in ([[patch / 2]] * 2, last)]
        inside = centres(level, stride)
        sure = (inside - stride / 2 >= bounds[0]) & (inside + stride / 2 <= bounds[1])  # every read is inside
        assert torch.allclose(level[sure], inside[sure], rtol=0, atol=1e-9)
    for level, stride in zip(pyramid.maps[:2], (8, 16), strict=True):  # and the border clamps
        expected = torch.maximum(torch.minimum(centres(level, stride), bounds[1]), bounds[0])
        assert torch.allclose(level, expected, rtol=0, atol=1e-9)
