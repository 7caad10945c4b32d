"""SimplePyramid, ViTFPN, STAPyramid and the spatial tuning adapter against plain constructions."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
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


def contiguous_maps(tokens: Tokens) -> Tensor:
    """The patches of the last layer as an NCHW map."""
    patches = tokens.patches[-1].transpose(1, 2)
    return patches.reshape(len(tokens), -1, *tokens.grid).contiguous()


def layer_norm(x: Tensor, norm: Any) -> Tensor:
    """A norm over the channels of an NCHW map, with the weights of a layer."""
    mean = x.mean(dim=1, keepdim=True)
    variance = (x - mean).square().mean(dim=1, keepdim=True)
    normed = (x - mean) / (variance + 1e-6).sqrt()
    return normed * norm.weight[:, None, None] + norm.bias[:, None, None]


def published(level: Any, scale: float, maps: Tensor) -> Tensor:
    """One level of the published pyramid from an NCHW map."""
    if scale >= 2:
        maps = F.conv_transpose2d(maps, level.ups[0].weight, level.ups[0].bias, stride=2)
    if scale == 4:
        maps = F.gelu(layer_norm(maps, level.up_norm))
        maps = F.conv_transpose2d(maps, level.ups[1].weight, level.ups[1].bias, stride=2)
    if scale == 0.5:
        maps = F.max_pool2d(maps, 2, 2)
    maps = F.conv2d(maps, level.project.weight[..., None, None])
    maps = layer_norm(maps, level.project_norm)
    maps = F.conv2d(maps, level.smooth.weight, padding=1)
    return layer_norm(maps, level.smooth_norm)


def test_it_is_the_published_pyramid() -> None:
    neck = randomised(SimplePyramid(WIDTH, 40), 0.1).double()
    tokens = tokens_of(2, 6, 10, layers=2, dtype=torch.float64)

    pyramid = neck(tokens)

    maps = contiguous_maps(tokens)
    for level, scale, level_maps in zip(neck.levels, neck.scales, pyramid.maps, strict=True):
        assert torch.allclose(level_maps, published(level, scale, maps), rtol=0, atol=1e-12)


DOUBLE = torch.float64


@torch.no_grad()
def with_weights_of(peer: FeaturePyramidNetwork, channels: list[int], width: int) -> TopDown:
    """The top-down part with the weights of torchvision's."""
    top_down = TopDown(channels, width, dtype=DOUBLE)
    for level in range(len(channels)):
        lateral = peer.inner_blocks[level][0]
        top_down.laterals[level].weight.copy_(lateral.weight[:, :, 0, 0])
        top_down.laterals[level].bias.copy_(lateral.bias)
        top_down.smooth[level].conv.load_state_dict(peer.layer_blocks[level][0].state_dict())
    return top_down


@pytest.mark.parametrize("grid", [(8, 12), (4, 4)])
def test_the_top_down_part_equals_torchvision(grid: tuple[int, int]) -> None:
    channels = [6, 10, 8]
    width = 16
    peer = FeaturePyramidNetwork(channels, width).double()
    top_down = with_weights_of(peer, channels, width)
    maps = []
    for level, level_channels in enumerate(channels):
        rows = grid[0] // 2**level
        cols = grid[1] // 2**level
        maps.append(torch.randn(2, level_channels, rows, cols, dtype=DOUBLE))

    levels = top_down(maps)

    expected = peer({str(i): level for i, level in enumerate(maps)})
    assert same_tensors(levels, list(expected.values()), 1e-12)


@pytest.mark.parametrize(
    ("width", "num_groups"),
    [
        (4, 1),
        (8, 1),
        (16, 2),
        (22, 2),
        (23, 1),
        (36, 4),
        (256, 32),
    ],
)
@pytest.mark.parametrize("neck_type", [ViTFPN, SpatialTuningAdapter])
def test_group_norms_have_the_most_groups_of_at_least_eight_channels(
    neck_type: type[nn.Module], width: int, num_groups: int
) -> None:
    if neck_type is ViTFPN:
        neck: nn.Module = ViTFPN(WIDTH, 3, width, norm="group")
    else:
        neck = SpatialTuningAdapter(WIDTH, width, detail=None, norm="group")

    norms = [module for module in neck.modules() if isinstance(module, nn.GroupNorm)]
    assert norms
    for group_norm in norms:
        assert group_norm.num_groups == num_groups


GRIDS = [(1, 1), (1, 7), (6, 10), (15, 31)]


@dataclass(frozen=True)
class STAOptions:
    """Which parts a pyramid has, and how it doubles and halves the map."""

    pre_norm: bool
    pos_embed: bool
    upsample: Any
    downsample: Any

    def __str__(self) -> str:
        return (
            f"pre_norm={self.pre_norm} pos_embed={self.pos_embed} {self.upsample} {self.downsample}"
        )


ALL_OPTIONS = [
    STAOptions(*values)
    for values in itertools.product(
        (False, True), (False, True), ("nearest", "bilinear"), ("conv", "avgpool")
    )
]


def project(layer: nn.Module, x: Tensor) -> Tensor:
    return F.conv2d(x, layer.weight[..., None, None], layer.bias)  # type: ignore[index, arg-type]


def halved(maps: Tensor) -> Tensor:
    """Means of 2 x 2 cells; the last row and column count twice where a side is odd."""
    rows, cols = maps.shape[-2:]
    return F.avg_pool2d(F.pad(maps, (0, cols % 2, 0, rows % 2), mode="replicate"), 2)


def plain_pyramid(neck: STAPyramid, tokens: Tokens) -> list[Tensor]:
    """The published construction on an NCHW map: everything at full width, the 1x1 convolutions last."""
    maps = contiguous_maps(tokens)
    if neck.norm is not None:
        maps = layer_norm(maps, neck.norm)
    if neck.places is not None:
        places = F.interpolate(neck.places[None], tokens.grid, mode="bilinear", align_corners=False)
        maps = maps + places
    doubled = F.interpolate(maps, scale_factor=2, mode=neck.upsample)
    fine = project(neck.p8, doubled)
    same = project(neck.p16, maps)
    if neck.downsample == "conv":
        coarse = neck.p32(maps)
    else:
        coarse = project(neck.p32, halved(maps))
    return [fine, same, coarse]


@pytest.mark.parametrize("options", ALL_OPTIONS, ids=str)
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_it_is_the_plain_construction(grid: tuple[int, int], options: STAOptions) -> None:
    neck = STAPyramid(
        WIDTH,
        8,
        pre_norm=options.pre_norm,
        pos_embed=options.pos_embed,
        upsample=options.upsample,
        downsample=options.downsample,
    )
    neck = randomised(neck.double(), 0.3)
    tokens = tokens_of(2, *grid, layers=2, dtype=DOUBLE)

    levels = neck(tokens).maps

    assert same_tensors(levels, plain_pyramid(neck, tokens), 1e-12)


def centres_at_stride(rows: int, cols: int, stride: int) -> Tensor:
    """The centres (rows, cols, 2) of the cells of a stride: x, y in pixels."""
    y, x = torch.meshgrid(torch.arange(rows) + 0.5, torch.arange(cols) + 0.5, indexing="ij")
    return torch.stack((x, y), dim=-1).double() * stride


strides = pytest.mark.parametrize(
    ("patch", "stride"),
    [
        (14, 8),
        (14, 16),
        (16, 8),
        (16, 16),
        (14, 32),
    ],
)


@strides
def test_reading_at_a_stride_is_grid_sample(patch: int, stride: int) -> None:
    maps = torch.randn(2, 3, 9, 14, dtype=torch.float64)

    read = at_stride(maps, patch, stride, "bilinear")

    span = torch.tensor([14, 9], dtype=torch.float64) * patch
    points = centres_at_stride(*read.shape[-2:], stride) / span * 2 - 1
    expected = F.grid_sample(
        maps,
        points[None].expand(2, -1, -1, -1),
        mode="bilinear",
        padding_mode="border",
        align_corners=False,
    )
    assert torch.allclose(read, expected, rtol=0, atol=1e-12)


@strides
def test_reading_the_nearest_at_a_stride_is_the_patch_of_the_centre(
    patch: int, stride: int
) -> None:
    maps = torch.randn(2, 3, 9, 14, dtype=torch.float64)

    read = at_stride(maps, patch, stride, "nearest")

    centres = centres_at_stride(*read.shape[-2:], stride)
    col, row = (centres // patch).long().movedim(-1, 0)
    assert torch.equal(read, maps[:, :, row.clamp(max=8), col.clamp(max=13)])


@pytest.mark.parametrize(("grid", "patch"), [((1, 7), 20), ((23, 15), 14)])
def test_asked_strides_read_the_maps_at_the_centres_of_their_cells(
    grid: tuple[int, int], patch: int
) -> None:
    neck = STAPyramid(
        WIDTH,
        8,
        upsample="bilinear",
        downsample="avgpool",
        strides=(8, 16, 32),
        patch_size=patch,
    ).double()
    tokens = tokens_of(2, *grid, patch=patch, dtype=DOUBLE)

    levels = neck(tokens).maps

    maps_at_8 = at_stride(tokens.maps()[0], patch, 8, "bilinear")
    maps_at_16 = at_stride(tokens.maps()[0], patch, 16, "bilinear")
    expected = [
        project(neck.p8, maps_at_8),
        project(neck.p16, maps_at_16),
        project(neck.p32, halved(maps_at_16)),
    ]
    assert same_tensors(levels, expected, 1e-12)


STA_GRIDS = [(20, 20), (21, 29), (1, 1), (1, 7), (2, 3)]


def batch_norm(x: Tensor, norm: Any) -> Tensor:
    scale = norm.weight / (norm.running_var + 1e-5).sqrt()
    shift = norm.bias - norm.running_mean * scale
    return x * scale[:, None, None] + shift[:, None, None]


def filled_to_multiple(x: Tensor, side: int) -> Tensor:
    """A map whose sides are multiples of a number, with zeros at the right and at the bottom."""
    rows, cols = x.shape[-2:]
    return F.pad(x, (0, -cols % side, 0, -rows % side))


def plain_detail(branch: Any, images: Tensor) -> list[Tensor]:
    """The branch with NCHW operations, odd sides filled with zeros."""
    x = F.conv2d(filled_to_multiple(images, 4), branch.stem.conv.weight, stride=4)
    x = batch_norm(x, branch.stem.norm)
    levels = []
    for step in branch.steps:
        x = F.gelu(x)
        x = F.conv2d(filled_to_multiple(x, 2), step.conv.weight, stride=2)
        around = F.conv2d(x, step.around.weight, padding=1, groups=x.shape[1])
        x = batch_norm(x + around, step.norm)
        levels.append(x)
    return levels


@pytest.mark.slow
def test_an_adapter_exported_on_plain_maps_of_a_free_batch_serves_one_image() -> None:
    neck = randomised(SpatialTuningAdapter(WIDTH, 8, num_layers=1, detail_dim=4)).eval()
    maps = torch.randn(2, WIDTH, 4, 6)
    images = torch.randn(2, 3, 64, 96)
    batch = torch.export.Dim("batch")
    sizes = ({0: batch}, {0: batch})
    program = torch.export.export(neck, (maps, images), dynamic_shapes=sizes, strict=False)

    levels = program.module()(maps[:1], images[:1])

    assert same_tensors(levels, neck(maps[:1], images[:1]), atol=1e-5)


def layers_of_levels(neck: SpatialTuningAdapter, tokens: Tokens) -> list[Tensor]:
    """The maps that the fine, the same and the coarse level read."""
    maps = [layer_maps.contiguous() for layer_maps in tokens.maps()]
    if neck.mix is not None:
        mixed = []
        for logits in neck.mix:
            weights = logits.softmax(0)
            mixed.append(torch.einsum("l,lbchw->bchw", weights, torch.stack(maps)))
        return mixed
    return maps if len(maps) == 3 else maps * 3


def plain_maps(neck: SpatialTuningAdapter, tokens: Tokens, images: Tensor) -> list[Tensor]:
    """Resize, concatenate, 1x1, norm: the formulation that nothing is folded or reordered in."""
    fine, same, coarse = layers_of_levels(neck, tokens)
    rows, cols = tokens.grid
    repeated = F.pad(coarse, (0, cols % 2, 0, rows % 2), mode="replicate")
    semantic = [
        F.interpolate(fine, scale_factor=2.0, mode="bilinear", align_corners=False),
        same,
        F.interpolate(repeated, scale_factor=0.5, mode="bilinear", align_corners=False),
    ]
    if neck.detail is not None:
        details = plain_detail(neck.detail, images)
        semantic = [torch.cat(pair, dim=1) for pair in zip(semantic, details, strict=True)]
    levels = []
    for stacked, layer, norm in zip(semantic, neck.project, neck.norms, strict=True):
        levels.append(batch_norm(project(layer, stacked), norm))
    return levels


@pytest.mark.parametrize("detail", ["aligned", None])
@pytest.mark.parametrize("num_layers", [1, 2, 3, 4])
@pytest.mark.parametrize("grid", STA_GRIDS, ids=str)
def test_maps_equal_the_plain_formulation(
    detail: Any, num_layers: int, grid: tuple[int, int]
) -> None:
    neck = SpatialTuningAdapter(WIDTH, 8, num_layers, detail=detail, detail_dim=4)
    neck = randomised(neck).eval().double()
    rows, cols = grid
    tokens = tokens_of(2, rows, cols, layers=num_layers, dtype=DOUBLE)
    images = torch.randn(2, 3, rows * 16, cols * 16, dtype=DOUBLE)

    levels = neck(tokens, images).maps

    assert same_tensors(levels, plain_maps(neck, tokens, images), 1e-11)


@pytest.mark.parametrize("stride", [8, 16, 32])
@pytest.mark.parametrize("pixels", [640, 330, 333])
def test_resampling_reads_tokens_at_the_cells_centres(stride: int, pixels: int) -> None:
    """Tokens that hold their own place in pixels give cells that hold theirs, also where the stride does not divide."""
    num_tokens = 20
    num_cells = -(-pixels // stride)
    places = (torch.arange(num_tokens, dtype=torch.float64) + 0.5) * pixels / num_tokens
    maps = torch.stack(torch.meshgrid(places, places, indexing="ij"))[None]

    resampled = resample_at_stride(maps, (num_cells, num_cells), (pixels, pixels), stride)

    centres = (torch.arange(num_cells, dtype=torch.float64) + 0.5) * stride
    expected = centres.clamp(places[0], places[-1])
    assert torch.allclose(resampled[0, 0, :, 0], expected, atol=1e-9)
    assert torch.allclose(resampled[0, 1, 0], expected, atol=1e-9)
