"""check_cameras: wrong readings of real and of exact poses are named."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from tests.conftest import DATA
from tests.unit.points import rooms
from torch import Tensor

from dinoneck import DataError, ShapeError
from dinoneck.points import CameraCheck, Cameras, check_cameras

READINGS = ("camera_to_world", "inverse", "opengl", "transposed")
FLIP = torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=torch.float64))
SMALL = (60, 80)


def misread(cameras: Cameras, reading: str) -> Cameras:
    """Return the cameras of poses of this kind that are taken for camera-to-world ones."""
    poses = cameras.cam_to_world.clone()
    if reading == "inverse":
        poses = torch.linalg.inv(poses)
    elif reading == "opengl":
        poses = poses @ FLIP
    elif reading == "transposed":
        poses[:, :3, :3] = cameras.cam_to_world[:, :3, :3].mT
    return replace(cameras, cam_to_world=poses)


@pytest.fixture(scope="module")
def frames() -> tuple[Cameras, Tensor]:
    """Five RGB-D frames of a real room."""
    folder = DATA / "rgbd_room"
    if not (folder / "frames.json").is_file():
        pytest.skip(f"the RGB-D frames are not in {folder}; set DINONECK_DATA to the folder that holds rgbd_room")
    record = json.loads((folder / "frames.json").read_text())
    poses, depth = [], []
    for frame in record["frames"]:
        x, y, z, w = frame["quaternion_xyzw"]
        pose = torch.eye(4, dtype=torch.float64)
        cross = torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]], dtype=torch.float64)
        pose[:3, :3] += 2 * w * cross + 2 * cross @ cross
        pose[:3, 3] = torch.tensor(frame["translation_m"])
        poses.append(pose)
        pixels = np.array(Image.open(folder / frame["depth"])).astype(np.float32)
        depth.append(torch.from_numpy(pixels) * record["depth_unit_m"])
    f = record["intrinsics"]
    K = torch.tensor([[f["fx"], 0, f["cx"]], [0, f["fy"], f["cy"]], [0, 0, 1]]).repeat(5, 1, 1)
    return Cameras(K, torch.stack(poses), tuple(record["image_size"])), torch.stack(depth)


def cloud_of(cameras: Cameras, depth: Tensor, view: int) -> Tensor:
    world = cameras[view].unproject(depth[view : view + 1]).reshape(-1, 3)
    return world[world.isfinite().all(1)]


@pytest.mark.parametrize("reading", READINGS)
def test_the_reading_of_a_real_scan_is_told(reading: str, frames: tuple[Cameras, Tensor]) -> None:
    cameras, depth = frames
    others = [0, 1, 2, 4]
    check = check_cameras(cloud_of(cameras, depth, 3), misread(cameras[others], reading), depth[others])
    assert check.best == reading
    assert check.clear
    assert 0.4 < check.scores[reading] < 0.8
    assert all(check.scores[reading] >= 3 * check.scores[other] for other in READINGS if other != reading)
    assert str(check).startswith(
        {
            "camera_to_world": "the poses are read the right way",
            "inverse": "the poses lead from the world to the camera: Cameras.from_world_to_cam",
            "opengl": "the camera axes are x right, y up, z backward: Cameras.from_opengl",
            "transposed": "the rotations are transposed",
        }[reading]
    )


def test_the_constructor_that_is_named_puts_it_right(frames: tuple[Cameras, Tensor]) -> None:
    cameras, depth = frames
    points, pose = cloud_of(cameras, depth, 3), cameras.cam_to_world
    for given in (
        Cameras.from_world_to_cam(cameras.K, torch.linalg.inv(pose), cameras.size),
        Cameras.from_opengl(cameras.K, pose @ FLIP, cameras.size),
    ):
        assert check_cameras(points, given[[2, 4]], depth[[2, 4]], max_points=2000).best == "camera_to_world"


@pytest.mark.parametrize("reading", READINGS)
def test_without_a_scan_the_views_own_depth_tells_the_reading(reading: str, frames: tuple[Cameras, Tensor]) -> None:
    cameras, depth = frames
    check = check_cameras(None, misread(cameras, reading), depth, max_points=4000)
    assert check.best == reading
    assert check.clear
    assert check.scores[reading] >= 3 * max(check.scores[other] for other in READINGS if other != reading)
    room = rooms.ring(6, SMALL)
    assert check_cameras(None, misread(room, reading), rooms.depth(room), max_points=2000).best == reading


def test_own_depth_stays_within_its_sample() -> None:
    cameras = rooms.ring(4, SMALL)
    depth = rooms.depth(cameras)
    two = replace(cameras[[0, 1, 0, 1]], sample=torch.tensor([0, 0, 1, 1]))
    pair = check_cameras(None, cameras[[0, 1]], depth[[0, 1]], max_points=2 * SMALL[0] * SMALL[1])
    both = check_cameras(None, two, depth[[0, 1, 0, 1]], max_points=4 * SMALL[0] * SMALL[1])
    assert both.scores == pair.scores and both.in_bounds == pair.in_bounds
    with pytest.raises(ShapeError, match="batch is given without points"):
        check_cameras(None, two, depth, torch.zeros(4).long())
    with pytest.raises(ShapeError, match=r"expected \(4 views"):
        check_cameras(None, cameras, depth[:3])
    assert not check_cameras(None, cameras[:1], depth[:1]).clear
    assert not check_cameras(None, cameras, depth * 0).clear


def test_it_says_so_when_nothing_fits_or_nothing_stands_out() -> None:
    cameras, points = rooms.ring(6, SMALL), rooms.surface(5000).points
    depth = rooms.depth(cameras)
    lost = check_cameras(points + 50.0, cameras, depth, max_points=500)
    assert not lost.clear
    assert str(lost).startswith("no reading fits: look at the units")
    scores = {**dict.fromkeys(READINGS, 0.0), "opengl": 0.5, "inverse": 0.4}
    close = CameraCheck(scores, dict.fromkeys(READINGS, 1.0), best="opengl")
    assert not close.clear
    assert str(close).startswith("not clear, best: the camera axes are")
    assert "inverse 0.40, opengl 0.50" in str(close)
    for nothing in (check_cameras(points[:0], cameras, depth), check_cameras(points, cameras[:0], depth[:0])):
        assert set(nothing.scores.values()) == {0.0}
        assert not nothing.clear


def test_a_cloud_and_depth_in_millimetres_are_told_together(
    frames: tuple[Cameras, Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    """Both from the same depth agree with each other, whatever the unit; only the cameras' way tells."""
    cameras, depth = frames
    with pytest.raises(DataError, match=r"cameras are at most 2\.\d* m apart; it looks in millimetres: depth / 1000"):
        check_cameras(None, cameras, depth * 1000)
    with pytest.raises(DataError, match="looks in millimetres"):
        check_cameras(cloud_of(cameras, depth * 1000, 0)[::50], cameras, depth * 1000)
    assert "unproject(depth / 1000)" in caplog.text
    caplog.clear()
    cameras[:1].unproject(depth[:1])
    assert not caplog.records


def scaled(cameras: Cameras, depth: Tensor, error: str) -> tuple[Cameras, Tensor]:
    """Return cameras and depth with one scale wrong."""
    quantity, factor = error.split(" x ")
    K = cameras.K.clone()
    if quantity == "depth":
        depth = depth * float(factor)
    elif quantity == "focal length":
        K[:, :2, :2] *= float(factor)
    else:
        height, width = cameras.size
        K = cameras.resize((int(height * float(factor)), int(width * float(factor)))).K
    return replace(cameras, K=K), depth


@pytest.mark.parametrize(
    ("error", "scan"),
    [
        ("depth x 5", False),
        ("depth x 0.25", True),
        ("focal length x 0.9", True),
        ("K x 0.5", False),
        pytest.param("depth x 5", True, marks=pytest.mark.slow),
        pytest.param("depth x 0.2", False, marks=pytest.mark.slow),
        pytest.param("focal length x 0.9", False, marks=pytest.mark.slow),
        pytest.param("K x 2", True, marks=pytest.mark.slow),
    ],
)
def test_a_wrong_scale_of_real_frames_does_not_fit_and_is_named(
    error: str, scan: bool, frames: tuple[Cameras, Tensor]
) -> None:
    cameras, depth = frames
    others = [0, 1, 2, 4] if scan else [0, 1, 2, 3, 4]
    cloud = cloud_of(cameras, depth, 3) if scan else None
    wrong_cameras, wrong_depth = scaled(cameras[others], depth[others], error)
    check = check_cameras(cloud, wrong_cameras, wrong_depth, max_points=5000)
    quantity, factor = error.split(" x ")
    assert check.best == "camera_to_world"
    assert not check.fits and check.share < 0.93 * check.reached
    assert check.factor is not None and check.factor[0] == quantity
    assert check.factor[1] == pytest.approx(1 / float(factor), rel=0.06)
    assert f"{quantity} x {check.factor[1]:.3g} gives {check.reached:.2f}" in str(check)


def test_right_scales_of_real_frames_fit_with_and_without_a_scan(frames: tuple[Cameras, Tensor]) -> None:
    cameras, depth = frames
    checks = [check_cameras(None, cameras, depth, max_points=5000)]
    for view in range(5):
        others = [other for other in range(5) if other != view]
        checks.append(check_cameras(cloud_of(cameras, depth, view), cameras[others], depth[others], max_points=5000))
    for check in checks:
        assert check.fits and check.factor is None, str(check)
        assert check.share == check.scores["camera_to_world"] > 0.3


def test_scales_of_an_exact_room() -> None:
    cameras, points = rooms.ring(6, SMALL), rooms.surface(5000).points
    depth = rooms.depth(cameras)
    for cloud in (None, points):
        assert check_cameras(cloud, cameras, depth, max_points=3000).fits
        check = check_cameras(cloud, misread(cameras, "opengl"), depth / 3, max_points=3000)
        assert check.best == "opengl" and not check.fits
        assert check.factor is not None and check.factor[1] == pytest.approx(3, rel=0.06)


def test_positions_in_millimetres_and_depth_along_the_ray_do_not_pass_as_right(frames: tuple[Cameras, Tensor]) -> None:
    cameras, depth = frames
    poses = cameras.cam_to_world.clone()
    poses[:, :3, 3] *= 1000
    check = check_cameras(None, replace(cameras, cam_to_world=poses), depth, max_points=5000)
    assert not check.fits and check.factor == ("depth", pytest.approx(1000, rel=0.06))
    rays = cameras[0].unproject(torch.ones_like(depth[:1])) - cameras.positions[0]
    along = check_cameras(None, cameras, depth * rays.norm(dim=-1).float(), max_points=5000)
    assert along.share < 0.4
