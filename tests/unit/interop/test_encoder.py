"""PyramidEncoder and the parts for torchvision: sizes, strides and anchors."""

from __future__ import annotations

from math import ceil

import pytest
import torch
import torch.nn.functional as F
from tests.kit import same
from torch import nn
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator

from dinoneck import Backbone, ConfigError, SimplePyramid, SpatialTuningAdapter, load_backbone
from dinoneck.interop import PyramidEncoder, TorchvisionBackbone, find_encoder


def pyramid() -> SimplePyramid:
    return SimplePyramid(64, 32, scales=(2.0, 1.0, 0.5))


def test_the_backbone_may_see_smaller_images() -> None:
    """The neck gets the whole images, levels follow them, and strides count their pixels."""
    backbone, images = load_backbone("dinoneck_tiny", layers=3), torch.randn(1, 3, 128, 192)
    neck = SpatialTuningAdapter(64, 16, grid_from="image").eval()
    small = F.interpolate(images, (64, 96), mode="bilinear", antialias=True)
    found, wanted = (
        PyramidEncoder(backbone, neck, features_at=0.5)(images),
        neck(backbone(small), images),
    )
    assert found.strides == (8.0, 16.0, 32.0)
    for level, other, stride in zip(found.maps, wanted.maps, found.strides, strict=True):
        assert torch.equal(level, other)
        assert level.shape[-2:] == (128 / stride, 192 / stride)


@pytest.mark.parametrize("features_at", [1.0, 0.75, 2 / 3, 0.5])
def test_strides_are_pixels_of_the_whole_images(tiny: Backbone, features_at: float) -> None:
    encoder = PyramidEncoder(tiny, pyramid(), features_at)
    images = torch.randn(1, 3, 192, 384)
    found = encoder(images)
    assert found.strides == encoder.strides
    assert features_at < 1 or same(found.maps, encoder.neck(tiny(images)).maps)
    for level, stride in zip(found.maps, found.strides, strict=True):
        assert tuple(level.shape[-2:]) == (ceil(192 / stride - 1e-6), ceil(384 / stride - 1e-6))


def test_the_encoder_is_found_inside_a_detector(tiny: Backbone) -> None:
    encoder = PyramidEncoder(tiny, pyramid())
    assert find_encoder(nn.Sequential(nn.Sequential(encoder))) is encoder
    assert find_encoder(encoder) is encoder
    with pytest.raises(ConfigError, match="Linear holds 0 encoders"):
        find_encoder(nn.Linear(1, 1))
    with pytest.raises(ConfigError, match="2 encoders: 0, 1"):
        find_encoder(nn.Sequential(encoder, PyramidEncoder(tiny, pyramid())))


SIDES = (16, 32, 64, 128, 256)


def anchors(
    backbone: TorchvisionBackbone, ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
) -> AnchorGenerator:
    count = len(backbone.strides)
    return AnchorGenerator(tuple((side,) for side in SIDES[:count]), (ratios,) * count)


def test_images_arrive_as_the_backbone_wants_them(tiny: Backbone) -> None:
    """Through the detector's own transform: normalised by the backbone's numbers, padded to whole cells."""
    body, prepare = TorchvisionBackbone(tiny, pyramid()), tiny.preprocess
    own = {
        "image_mean": prepare.mean,
        "image_std": prepare.std,
        "size_divisible": body.size_divisible,
    }
    size = {"min_size": 96, "max_size": 160}
    detector, seen = RetinaNet(body, 3, anchor_generator=anchors(body), **size, **own).eval(), []  # type: ignore[arg-type]
    detector.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))  # type: ignore[union-attr]
    image = torch.rand(3, 96, 128)
    with torch.no_grad():
        detector([image])
    torch.testing.assert_close(seen[0][..., :96, :128], prepare(image[None]), atol=1e-5, rtol=1e-5)
    assert seen[0].shape[-1] % 32 == seen[0].shape[-2] % 32 == 0


@pytest.mark.slow
@pytest.mark.parametrize("patch", [14, 16])
@pytest.mark.parametrize("extra_levels", [0, 2])
def test_anchors_keep_step_with_the_cells(patch: int, extra_levels: int) -> None:
    """At any image padded to size_divisible torchvision's strides are ours, at every level."""
    name = "dinoneck_tiny" if patch == 16 else "vit_small_patch14_dinov2"
    backbone = load_backbone(name, layers=[0], pretrained=False)
    neck = SimplePyramid(backbone.embed_dim, 8, scales=(2.0, 1.0, 0.5), patch_size=patch)
    built = TorchvisionBackbone(backbone, neck, extra_levels)
    assert built.size_divisible == (2 * patch if not extra_levels else 8 * patch)
    padded = torch.zeros(1, 3, built.size_divisible, 3 * built.size_divisible)
    maps = list(built(padded).values())
    generator = anchors(built, ratios=(1.0,))
    images = type("Images", (), {"tensors": padded, "image_sizes": [tuple(padded.shape[-2:])]})()
    found = generator(images, maps)[0].reshape(-1, 2, 2).mean(1)  # centres (x, y)
    start = 0
    for level, stride in zip(maps, built.strides, strict=True):
        rows, cols = level.shape[-2:]
        y, x = torch.meshgrid(
            torch.arange(rows) * stride, torch.arange(cols) * stride, indexing="ij"
        )
        torch.testing.assert_close(
            found[start : start + rows * cols], torch.stack((x, y), -1).reshape(-1, 2)
        )
        start += rows * cols
