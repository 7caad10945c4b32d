"""Maps of frames lie where their cameras look, at any patch, from a backbone or from a store."""

from __future__ import annotations

import pytest
import torch
from examples.pointcloud.features import frame_maps
from examples.pointcloud.frames import Frames
from examples.pointcloud.rooms import room

from dinoneck import Backbone, GridError


@pytest.fixture(scope="module")
def frames() -> Frames:
    return room(0, views=4, size=(48, 64), points=100).frames


def test_maps_are_the_backbones_own(frames: Frames, tiny: Backbone) -> None:
    maps, cameras = frame_maps(tiny, frames, batch=3)
    assert cameras.size == (48, 64) and not maps.requires_grad
    expected = tiny(tiny.preprocess(frames.images[2])).last.maps()[0]
    assert torch.allclose(maps[2:3], expected, atol=1e-5)
    larger, cameras = frame_maps(tiny, frames, size=(96, 160))
    assert larger.shape[-2:] == (6, 10)
    assert cameras.size == (96, 160) and torch.allclose(cameras.K, frames.cameras.resize((96, 160)).K)
    with pytest.raises(GridError):
        frame_maps(tiny, frames, size=(50, 64))
