"""PyramidEncoder: what backbone and neck give by hand, sizes included."""

from __future__ import annotations

from math import ceil

import pytest
import torch
import torch.nn.functional as F
from tests.kit import same
from torch import nn

from dinoneck import Backbone, ConfigError, SimplePyramid, SpatialTuningAdapter, load_backbone
from dinoneck.interop import PyramidEncoder, find_encoder


def pyramid(**changed: object) -> SimplePyramid:
    return SimplePyramid(64, 32, **{"scales": (2.0, 1.0, 0.5), **changed})  # type: ignore[arg-type]


def test_the_backbone_may_see_smaller_images() -> None:
    """The neck gets the whole images, levels follow them, and strides count their pixels."""
    backbone, images = load_backbone("dinoneck_tiny", layers=3), torch.randn(1, 3, 128, 192)
    neck = SpatialTuningAdapter(64, 16, grid_from="image").eval()
    small = F.interpolate(images, (64, 96), mode="bilinear", antialias=True)
    found, wanted = PyramidEncoder(backbone, neck, features_at=0.5)(images), neck(backbone(small), images)
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
    with pytest.raises(ConfigError, match="Linear holds no PyramidEncoder"):
        find_encoder(nn.Linear(1, 1))
    with pytest.raises(ConfigError, match="2 encoders; pass one of 0, 1"):
        find_encoder(nn.Sequential(encoder, PyramidEncoder(tiny, pyramid())))
