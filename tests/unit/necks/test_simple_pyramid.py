"""SimplePyramid against the published construction, written out with plain NCHW operations."""

from __future__ import annotations

import math

import pytest
import torch
import torch._dynamo.testing
import torch.nn.functional as F
from tests.contract.cases import WIDTH, tokens_of
from torch import Tensor, nn

from dinoneck import ConfigError, GridError, SimplePyramid, Tokens

ODD_GRIDS = [(1, 1), (1, 7), (15, 31)]
# our names in the order of the published modules of a level
PUBLISHED = {
    4.0: ("ups.0", "up_norm", None, "ups.1", "project", "smooth"),
    2.0: ("ups.0", "project", "smooth"),
    1.0: ("project", "smooth"),
    0.5: (None, "project", "smooth"),
}


def awake(neck: SimplePyramid) -> SimplePyramid:
    """Norms with gains and biases of their own."""
    with torch.no_grad():
        for name, parameter in neck.named_parameters():
            if "norm" in name:
                parameter.copy_(torch.randn_like(parameter) * 0.3 + (1.0 if name.endswith("weight") else 0.0))
    return neck


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
    neck = awake(SimplePyramid(WIDTH, 40)).to(dtype)
    tokens = tokens_of(2, 6, 10, layers=2, dtype=dtype)
    found = neck(tokens)
    weights = published_names(neck)
    for level, stage in zip(found.maps, (2, 3, 4, 5), strict=True):
        assert torch.allclose(level, published(weights, nchw(tokens), stage), rtol=0, atol=atol)


def position_neck(scales: tuple[float, ...]) -> SimplePyramid:
    """Weights that copy: every level holds the (y, x) position of its cells' corners in tokens, plus 50."""
    neck = SimplePyramid(16, 4, scales).double()
    identity = torch.eye(16, dtype=torch.float64)
    with torch.no_grad():
        for level in neck.levels:
            for step, up in enumerate(level.ups):  # type: ignore[arg-type,var-annotated]
                up.bias.zero_()
                up.weight.copy_(identity[: up.in_channels, : up.out_channels, None, None].expand_as(up.weight))
                up.weight[2, 0, 1, :] = 0.5 ** (step + 1)  # channel 2 is 1 everywhere: one subcell further down
                up.weight[2, 1, :, 1] = 0.5 ** (step + 1)  # and to the right
            level.project.weight.copy_(identity[:4, : level.project.in_features])  # type: ignore[operator,union-attr,index,misc]
            level.smooth.weight.zero_()  # type: ignore[operator,union-attr]
            level.smooth.weight[range(4), range(4), 1, 1] = 1.0  # type: ignore[operator,union-attr,index]
            level.up_norm = nn.Identity()
            level.project_norm, level.smooth_norm = nn.Identity(), nn.Identity()
    return neck


@pytest.mark.parametrize("grid", [*ODD_GRIDS, (2, 3)])
def test_every_cell_lies_where_its_tokens_lie(grid: tuple[int, int]) -> None:
    rows, cols = grid
    token = torch.zeros(1, 5 + rows * cols, 16, dtype=torch.float64)
    token[0, :5] = -1e6  # prefix tokens
    y, x = torch.meshgrid(torch.arange(rows).double(), torch.arange(cols).double(), indexing="ij")
    token[0, 5:, 0], token[0, 5:, 1] = y.flatten() + 50, x.flatten() + 50  # GELU is the identity out there
    token[0, 5:, 2] = 1.0
    tokens = Tokens.from_sequence(token, image_size=(rows * 16, cols * 16), patch_size=16, num_prefix_tokens=5)
    levels = position_neck((4.0, 2.0, 1.0, 0.5, 0.25))(tokens).maps
    one = F.gelu(torch.tensor(1.0, dtype=torch.float64))  # what GELU makes of the channel of ones
    for level, scale in zip(levels[:3], (4, 2, 1), strict=True):
        for axis, side in enumerate(grid):
            steps = torch.arange(side * scale)
            expected = torch.div(steps, scale, rounding_mode="floor").double() + 50
            if scale == 4:
                expected = expected + (steps % 4 // 2) * 0.5 + (steps % 2) * 0.25 * one
            elif scale == 2:
                expected = expected + (steps % 2) * 0.5
            assert torch.allclose(level[0, axis].movedim(axis, 0), expected[:, None].expand(-1, level.shape[3 - axis]))
    for level, size in zip(levels[3:], (2, 4), strict=True):
        for axis, side in enumerate(grid):
            count = -(-side // size)
            expected = torch.tensor([min(size * i + size - 1, side - 1) + 50.0 for i in range(count)]).double()
            assert torch.equal(level[0, axis].movedim(axis, 0), expected[:, None].expand(-1, level.shape[3 - axis]))


def test_it_reads_the_last_layer_and_no_prefix_token() -> None:
    neck, tokens = SimplePyramid(WIDTH, 8), tokens_of(2, 3, 5, layers=3)
    expected = neck(tokens).maps
    first = tokens_of(2, 3, 5, layers=2)
    other = Tokens.from_sequence(
        [*first.sequence, tokens.sequence[-1]], image_size=(48, 80), patch_size=16, num_prefix_tokens=5
    )
    bare = Tokens.from_patches(tokens.patches[-1].contiguous(), grid=(3, 5), patch_size=16)
    for level, again, without in zip(expected, neck(other).maps, neck(bare).maps, strict=True):
        assert torch.equal(level, again)
        assert torch.allclose(level, without, atol=1e-5)


@pytest.mark.parametrize("scales", [(), (3.0,), (4.0, 4.0), (1.0, 2.0), (2.0, -1.0)])
def test_other_scales_are_refused(scales: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match="scales is"):
        SimplePyramid(WIDTH, 8, scales)


@pytest.mark.parametrize("wrong", [{"embed_dim": 3}, {"out_channels": 0}, {"patch_size": 0}])
def test_numbers_that_are_too_small_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        SimplePyramid(**{"embed_dim": WIDTH, **wrong})


def test_other_tokens_are_refused() -> None:
    tokens = tokens_of(1, 2, 2)
    for scale in (4.0, 1.0, 0.5):
        with pytest.raises(GridError, match="do not fill"):
            SimplePyramid(WIDTH, 8, (scale,))(Tokens(tokens.sequence, (3, 2), 16, 1, 4))  # type: ignore[arg-type]
