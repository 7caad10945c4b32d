"""Maps of frames lie where their cameras look, at any patch, from a backbone or from a store."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from examples.pointcloud.features import frame_maps, input_size, store_maps
from examples.pointcloud.frames import Frames
from PIL import Image
from tests.unit.pointcloud.analytic_scene import bare_room

from dinoneck import Backbone, DataError, FeatureStore, GridError
from dinoneck.points import PointProjector, lift


@pytest.fixture(scope="module")
def room() -> Frames:
    return bare_room((48, 64))


@pytest.mark.parametrize(
    ("image", "patch", "expected"),
    [
        ((480, 640), 16, (480, 640)),
        ((480, 640), 14, (504, 672)),
        ((968, 1296), 14, (980, 1316)),
        ((100, 100), 16, (112, 112)),
        ((48, 64), (8, 16), (48, 64)),
        ((5, 90), 16, (16, 288)),
    ],
)
def test_sizes_keep_the_sides_ratio(
    image: tuple[int, int], patch: int | tuple[int, int], expected: tuple[int, int]
) -> None:
    assert input_size(image, patch) == expected


def test_maps_are_the_backbones_own(room: Frames, tiny: Backbone) -> None:
    maps, cameras = frame_maps(tiny, room, batch=3)
    assert cameras.size == (48, 64)
    assert torch.allclose(maps, frame_maps(tiny, room, batch=1)[0], atol=1e-5)
    expected = tiny(tiny.preprocess(room.images[2])).last.maps()[0]
    assert torch.allclose(maps[2:3], expected, atol=1e-5)
    assert not maps.requires_grad
    larger, cameras = frame_maps(tiny, room, size=(96, 160))
    assert larger.shape[-2:] == (6, 10)
    assert cameras.size == (96, 160)
    assert torch.allclose(cameras.K, room.cameras.resize((96, 160)).K)
    with pytest.raises(GridError):
        frame_maps(tiny, room, size=(50, 64))


def test_a_point_finds_its_place_at_any_size(room: Frames) -> None:
    """Maps that hold each cell's own place in the image: lifting gives a point's pixel, whatever the ViT saw."""
    points = room.cameras[:1].unproject(room.depth[:1])[0, 12:36, 16:48].reshape(-1, 3)
    expected, _ = room.cameras[:1].project(points)
    for size in ((48, 64), (112, 112), (96, 160)):
        cameras = room.cameras[:1].resize(size)
        v, u = torch.meshgrid(torch.arange(8).double(), torch.arange(8).double(), indexing="ij")
        place = torch.stack([(u + 0.5) / 8 * 64 - 0.5, (v + 0.5) / 8 * 48 - 0.5])[None]
        feats, valid = lift(place, PointProjector()(points, cameras))
        assert bool(valid.all())
        assert torch.allclose(feats, expected[0], atol=1e-6)


def written(folder: Path, room: Frames) -> Frames:
    names = []
    for view in range(len(room)):
        path = folder / "scene" / "color" / f"{20 * view}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(room.images[view].permute(1, 2, 0).numpy()).save(path)
        names.append(f"scene/color/{20 * view}")
    return replace(room, names=tuple(names))


def test_a_store_gives_the_same_maps(room: Frames, tiny: Backbone, tmp_path: Path) -> None:
    frames = written(tmp_path / "2D", room)
    store = FeatureStore.create(tmp_path / "store", backbone=tiny, image_size=(96, 128), resize="stretch")
    store.extract(tmp_path / "2D")
    names = frames.names[::-1]
    maps, cameras = store_maps(store, names, frames.cameras[[3, 2, 1, 0]])
    expected, known = frame_maps(tiny, frames, size=(96, 128))
    assert torch.allclose(maps, expected.flip(0), atol=2e-2)
    assert torch.equal(cameras.K, known.K)
    assert cameras.size == (96, 128)
    assert torch.equal(cameras.cam_to_world, known.cam_to_world.flip(0))
    with pytest.raises(
        DataError, match=r"1 of 2 frames are not in .*'scene/color/7'; it has 'scene/color/0' and 3 more"
    ):
        store_maps(store, ["scene/color/0", "scene/color/7"], frames.cameras[:2])
