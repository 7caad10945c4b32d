"""SimplePyramid against the published construction, written out with plain NCHW operations."""

from __future__ import annotations

import math

import pytest
import torch
import torch._dynamo.testing
import torch.nn.functional as F
from tests.kit import WIDTH, randomised
from tests.kit import tokens as tokens_of
from torch import Tensor

from dinoneck import SimplePyramid, Tokens

# our names in the order of the published modules of a level
PUBLISHED = {
    4.0: ("ups.0", "up_norm", None, "ups.1", "project", "smooth"),
    2.0: ("ups.0", "project", "smooth"),
    1.0: ("project", "smooth"),
    0.5: (None, "project", "smooth"),
}


def published_names(neck: SimplePyramid) -> dict[str, Tensor]:
    """The neck's weights under the names and in the shapes of detectron2's SimpleFeaturePyramid."""
    state, found = dict(neck.named_parameters()), {}
    for place, scale in enumerate(neck.scales):
        stage = round(math.log2(neck.patch_size / scale))
        for number, name in enumerate(PUBLISHED[scale]):
            for kind in ("weight", "bias"):
                ours = state.get(f"levels.{place}.{name}.{kind}")
                if ours is not None:
                    found[f"simfp_{stage}.{number}.{kind}"] = ours[..., None, None] if name == "project" else ours
                after = state.get(f"levels.{place}.{name}_norm.{kind}")
                if after is not None:
                    found[f"simfp_{stage}.{number}.norm.{kind}"] = after
    assert len(found) == len(state)
    return found


def norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    mean = x.mean(dim=1, keepdim=True)
    variance = (x - mean).square().mean(dim=1, keepdim=True)
    return (x - mean) / (variance + 1e-6).sqrt() * weight[:, None, None] + bias[:, None, None]


def published(weights: dict[str, Tensor], maps: Tensor, stage: int) -> Tensor:
    """One level of the published pyramid from an NCHW map at patch 16."""

    def get(name: str) -> Tensor:
        return weights[f"simfp_{stage}.{name}"]

    first = {2: 4, 3: 1, 4: 0, 5: 1}[stage]
    if stage == 2:
        maps = F.conv_transpose2d(maps, get("0.weight"), get("0.bias"), stride=2)
        maps = F.gelu(norm(maps, get("1.weight"), get("1.bias")))
        maps = F.conv_transpose2d(maps, get("3.weight"), get("3.bias"), stride=2)
    elif stage == 3:
        maps = F.conv_transpose2d(maps, get("0.weight"), get("0.bias"), stride=2)
    elif stage == 5:
        maps = F.max_pool2d(maps, 2, 2)
    maps = F.conv2d(maps, get(f"{first}.weight"))
    maps = norm(maps, get(f"{first}.norm.weight"), get(f"{first}.norm.bias"))
    maps = F.conv2d(maps, get(f"{first + 1}.weight"), padding=1)
    return norm(maps, get(f"{first + 1}.norm.weight"), get(f"{first + 1}.norm.bias"))


def nchw(tokens: Tokens) -> Tensor:
    return tokens.patches[-1].transpose(1, 2).reshape(len(tokens), -1, *tokens.grid).contiguous()


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_it_is_the_published_pyramid(dtype: torch.dtype, atol: float) -> None:
    neck = randomised(SimplePyramid(WIDTH, 40), 0.1).to(dtype)
    tokens = tokens_of(2, 6, 10, layers=2, dtype=dtype)
    found = neck(tokens)
    weights = published_names(neck)
    for level, stage in zip(found.maps, (2, 3, 4, 5), strict=True):
        assert torch.allclose(level, published(weights, nchw(tokens), stage), rtol=0, atol=atol)
