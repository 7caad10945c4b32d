"""Maps of frames lie where their cameras look, at any patch, from a backbone or from a store."""

from __future__ import annotations

import pytest
import torch
from examples.pointcloud.features import frame_maps
from examples.pointcloud.frames import Frames
from examples.pointcloud.rooms import room

from dinoneck import Backbone, GridError
from dinoneck.points import PointProjector, lift


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


def test_a_point_finds_its_place_at_any_size(frames: Frames) -> None:
    """Maps that hold each cell's own place in the image: lifting gives a point's pixel, whatever the ViT saw."""
    points = frames.cameras[:1].unproject(frames.depth[:1])[0, 12:36, 16:48].reshape(-1, 3)
    expected, _ = frames.cameras[:1].project(points)
    v, u = torch.meshgrid(torch.arange(8).double(), torch.arange(8).double(), indexing="ij")
    place = torch.stack([(u + 0.5) / 8 * 64 - 0.5, (v + 0.5) / 8 * 48 - 0.5])[None]
    for size in ((48, 64), (112, 112), (96, 160)):
        feats, valid = lift(place, PointProjector()(points, frames.cameras[:1].resize(size)))
        assert bool(valid.all())
        assert torch.allclose(feats, expected[0], atol=1e-6)
