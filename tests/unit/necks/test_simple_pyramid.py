"""SimplePyramid against the published construction, written out with plain NCHW operations."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from tests.kit import WIDTH, randomised
from tests.kit import tokens as tokens_of
from torch import Tensor

from dinoneck import SimplePyramid


def norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    mean = x.mean(dim=1, keepdim=True)
    variance = (x - mean).square().mean(dim=1, keepdim=True)
    return (x - mean) / (variance + 1e-6).sqrt() * weight[:, None, None] + bias[:, None, None]


def published(level: Any, scale: float, maps: Tensor) -> Tensor:
    """One level of the published pyramid from an NCHW map."""
    if scale >= 2:
        maps = F.conv_transpose2d(maps, level.ups[0].weight, level.ups[0].bias, stride=2)
    if scale == 4:
        maps = F.gelu(norm(maps, level.up_norm.weight, level.up_norm.bias))
        maps = F.conv_transpose2d(maps, level.ups[1].weight, level.ups[1].bias, stride=2)
    if scale == 0.5:
        maps = F.max_pool2d(maps, 2, 2)
    maps = F.conv2d(maps, level.project.weight[..., None, None])
    maps = norm(maps, level.project_norm.weight, level.project_norm.bias)
    maps = F.conv2d(maps, level.smooth.weight, padding=1)
    return norm(maps, level.smooth_norm.weight, level.smooth_norm.bias)


def test_it_is_the_published_pyramid() -> None:
    neck = randomised(SimplePyramid(WIDTH, 40), 0.1).double()
    tokens = tokens_of(2, 6, 10, layers=2, dtype=torch.float64)
    maps = tokens.patches[-1].transpose(1, 2).reshape(len(tokens), -1, *tokens.grid).contiguous()
    for level, scale, found in zip(neck.levels, neck.scales, neck(tokens).maps, strict=True):
        assert torch.allclose(found, published(level, scale, maps), rtol=0, atol=1e-12)
