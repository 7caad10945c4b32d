"""SimplePyramid, ViTFPN, STAPyramid and the spatial tuning adapter against plain constructions."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.kit import WIDTH, randomised
from tests.kit import same as same_tensors
from tests.kit import tokens as tokens_of
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork

from dinoneck import SimplePyramid, SpatialTuningAdapter, STAPyramid, Tokens, ViTFPN
from dinoneck.layers.resampling import at_stride, resample_at_stride
from dinoneck.necks import TopDown


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


DOUBLE = torch.float64


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
    maps = [
        torch.randn(2, c, grid[0] // 2**i, grid[1] // 2**i, dtype=DOUBLE)
        for i, c in enumerate(channels)
    ]
    wanted = peer({str(i): level for i, level in enumerate(maps)})
    assert same_tensors(own(maps), list(wanted.values()), 1e-12)


@pytest.mark.parametrize(
    ("width", "count"), [(4, 1), (8, 1), (16, 2), (22, 2), (23, 1), (36, 4), (256, 32)]
)
def test_group_norms_have_the_most_groups_of_at_least_eight_channels(
    width: int, count: int
) -> None:
    for neck in (
        ViTFPN(WIDTH, 3, width, norm="group"),
        SpatialTuningAdapter(WIDTH, width, detail=None, norm="group"),
    ):
        assert {part.num_groups for part in neck.modules() if isinstance(part, nn.GroupNorm)} == {
            count
        }


GRIDS = [(1, 1), (1, 7), (6, 10), (15, 31)]


OPTIONS = list(
    itertools.product((False, True), (False, True), ("nearest", "bilinear"), ("conv", "avgpool"))
)


def project(layer: nn.Module, x: Tensor) -> Tensor:
    return F.conv2d(x, layer.weight[..., None, None], layer.bias)  # type: ignore[index, arg-type]


def halved(maps: Tensor) -> Tensor:
    """Means of 2 x 2 cells; the last row and column count twice where a side is odd."""
    rows, cols = maps.shape[-2:]
    return F.avg_pool2d(F.pad(maps, (0, cols % 2, 0, rows % 2), mode="replicate"), 2)


def plain(neck: STAPyramid, tokens: Tokens) -> list[Tensor]:
    """The published construction on an NCHW map: everything at full width, the 1x1 convolutions last."""
    maps = tokens.patches[-1].transpose(1, 2).reshape(len(tokens), -1, *tokens.grid).contiguous()
    if neck.norm is not None:
        mean, variance = maps.mean(dim=1, keepdim=True), maps.var(dim=1, keepdim=True, correction=0)
        maps = (maps - mean) / (variance + 1e-6).sqrt()
        maps = maps * neck.norm.weight[:, None, None] + neck.norm.bias[:, None, None]
    if neck.places is not None:
        maps = maps + F.interpolate(
            neck.places[None], tokens.grid, mode="bilinear", align_corners=False
        )

    doubled = F.interpolate(maps, scale_factor=2, mode=neck.upsample)
    coarse = neck.p32(maps) if neck.downsample == "conv" else project(neck.p32, halved(maps))
    return [project(neck.p8, doubled), project(neck.p16, maps), coarse]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_it_is_the_plain_construction(grid: tuple[int, int], options: tuple[Any, ...]) -> None:
    neck = randomised(STAPyramid(WIDTH, 8, *options).double(), 0.3)
    tokens = tokens_of(2, *grid, layers=2, dtype=torch.float64)
    assert same_tensors(neck(tokens).maps, plain(neck, tokens), 1e-12)


@pytest.mark.parametrize(("patch", "stride"), [(14, 8), (14, 16), (16, 8), (16, 16), (14, 32)])
def test_reading_at_a_stride_is_grid_sample(patch: int, stride: int) -> None:
    maps = torch.randn(2, 3, 9, 14, dtype=torch.float64)
    for mode in ("nearest", "bilinear"):
        found = at_stride(maps, patch, stride, mode)  # type: ignore[arg-type]
        y, x = torch.meshgrid(
            *(torch.arange(side) + 0.5 for side in found.shape[-2:]), indexing="ij"
        )
        xy = torch.stack((x, y), dim=-1).double() * stride
        span = torch.tensor([14, 9], dtype=torch.float64) * patch
        places = (xy / span * 2 - 1)[None].expand(2, -1, -1, -1)
        expected = F.grid_sample(
            maps, places, mode="bilinear", padding_mode="border", align_corners=False
        )
        if mode == "nearest":
            column, row = (xy // patch).long().movedim(-1, 0)
            expected = maps[:, :, row.clamp(max=8), column.clamp(max=13)]
        assert torch.allclose(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("grid", "patch"), [((1, 7), 20), ((23, 15), 14)])
def test_asked_strides_read_the_maps_at_the_centres_of_their_cells(
    grid: tuple[int, int], patch: int
) -> None:
    options = {
        "upsample": "bilinear",
        "downsample": "avgpool",
        "strides": (8, 16, 32),
        "patch_size": patch,
    }
    neck = STAPyramid(WIDTH, 8, **options).double()  # type: ignore[arg-type]
    tokens = tokens_of(2, *grid, patch=patch, dtype=DOUBLE)
    fine, same = (at_stride(tokens.maps()[0], patch, stride, "bilinear") for stride in (8, 16))
    levels = zip((neck.p8, neck.p16, neck.p32), (fine, same, halved(same)), strict=True)
    assert same_tensors(neck(tokens).maps, [project(layer, x) for layer, x in levels], 1e-12)


STA_GRIDS = [(20, 20), (21, 29), (1, 1), (1, 7), (2, 3)]


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


def test_an_adapter_exported_on_plain_maps_of_a_free_batch_serves_one_image() -> None:
    neck = randomised(SpatialTuningAdapter(WIDTH, 8, num_layers=1, detail_dim=4)).eval()
    maps = torch.randn(2, WIDTH, 4, 6)
    images = torch.randn(2, 3, 64, 96)
    batch = torch.export.Dim("batch")
    sizes = ({0: batch}, {0: batch})
    program = torch.export.export(neck, (maps, images), dynamic_shapes=sizes, strict=False)

    levels = program.module()(maps[:1], images[:1])

    assert same_tensors(levels, neck(maps[:1], images[:1]), atol=1e-5)


def plain_maps(neck: SpatialTuningAdapter, tokens: Tokens, images: Tensor) -> list[Tensor]:
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
    neck = (
        randomised(SpatialTuningAdapter(WIDTH, 8, num_layers, detail=detail, detail_dim=4))
        .eval()
        .double()
    )
    for rows, cols in STA_GRIDS:
        tokens = tokens_of(2, rows, cols, layers=num_layers, dtype=DOUBLE)
        images = torch.randn(2, 3, rows * 16, cols * 16, dtype=DOUBLE)
        assert same_tensors(neck(tokens, images).maps, plain_maps(neck, tokens, images), 1e-11)


@pytest.mark.parametrize("stride", [8, 16, 32])
@pytest.mark.parametrize("pixels", [640, 330, 333])
def test_resampling_reads_tokens_at_the_cells_centres(stride: int, pixels: int) -> None:
    """Tokens that hold their own place in pixels give cells that hold theirs, also where the stride does not divide."""
    length, cells = 20, -(-pixels // stride)
    places = (torch.arange(length, dtype=torch.float64) + 0.5) * pixels / length
    maps = torch.stack(torch.meshgrid(places, places, indexing="ij"))[None]
    found = resample_at_stride(maps, (cells, cells), (pixels, pixels), stride)
    wanted = ((torch.arange(cells, dtype=torch.float64) + 0.5) * stride).clamp(
        places[0], places[-1]
    )
    assert torch.allclose(found[0, 0, :, 0], wanted, atol=1e-9)
    assert torch.allclose(found[0, 1, 0], wanted, atol=1e-9)
