"""check_cameras: wrong readings of exact poses, and wrong scales, are named."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.unit.points import rooms
from torch import Tensor

from dinoneck import DataError
from dinoneck.points import CameraCheck, Cameras, check_cameras

REMEDIES = {
    "camera_to_world": "the right way",
    "inverse": "Cameras.from_world_to_cam",
    "opengl": "Cameras.from_opengl",
    "transposed": "transposed",
}
READINGS = tuple(REMEDIES)
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
    """Five views of a room and their depth."""
    cameras = rooms.ring(5, SMALL)
    return cameras, rooms.depth(cameras).float()


def cloud_of(cameras: Cameras, depth: Tensor, view: int) -> Tensor:
    world = cameras[view].unproject(depth[view : view + 1]).reshape(-1, 3)
    return world[world.isfinite().all(1)]


@pytest.mark.parametrize("reading", READINGS)
def test_the_reading_is_told_from_a_scan_and_from_the_views_own_depth(
    reading: str, frames: tuple[Cameras, Tensor]
) -> None:
    cameras, depth = frames
    wrong, others = misread(cameras, reading), [0, 1, 2, 4]
    scan = check_cameras(cloud_of(cameras, depth, 3), wrong[others], depth[others], max_points=600)
    own = check_cameras(None, wrong, depth, max_points=600)
    for check in (scan, own):
        assert (check.best, check.clear) == (reading, True)
        assert check.scores[reading] >= 3 * max(check.scores[other] for other in READINGS if other != reading)
    assert REMEDIES[reading] in str(scan)


def test_own_depth_stays_within_its_sample() -> None:
    cameras = rooms.ring(4, SMALL)
    depth, all_of_two = rooms.depth(cameras), 2 * SMALL[0] * SMALL[1]
    two = replace(cameras[[0, 1, 0, 1]], sample=torch.tensor([0, 0, 1, 1]))
    pair = check_cameras(None, cameras[[0, 1]], depth[[0, 1]], max_points=all_of_two)
    both = check_cameras(None, two, depth[[0, 1, 0, 1]], max_points=2 * all_of_two)
    assert both.scores == pair.scores and both.in_bounds == pair.in_bounds
    assert not check_cameras(None, cameras[:1], depth[:1]).clear
    assert not check_cameras(None, cameras, depth * 0).clear


def test_it_says_so_when_nothing_fits_or_nothing_stands_out() -> None:
    cameras, points = rooms.ring(6, SMALL), rooms.surface(5000)
    depth = rooms.depth(cameras)
    lost = check_cameras(points + 50.0, cameras, depth, max_points=500)
    assert not lost.clear and "no reading fits" in str(lost)
    scores = {**dict.fromkeys(READINGS, 0.0), "opengl": 0.5, "inverse": 0.4}
    close = CameraCheck(scores, dict.fromkeys(READINGS, 1.0), best="opengl")
    assert not close.clear and "inverse 0.40, opengl 0.50" in str(close)


def test_a_cloud_and_depth_in_millimetres_are_told_together(
    frames: tuple[Cameras, Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    """Both from the same depth agree with each other, whatever the unit; only the cameras' way tells."""
    cameras, depth = frames
    cameras[:1].unproject(depth[:1])
    assert not caplog.records
    for cloud in (None, cloud_of(cameras, depth * 1000, 0)[::50]):
        with pytest.raises(DataError, match=r"millimetres: depth / 1000"):
            check_cameras(cloud, cameras, depth * 1000)
    assert "unproject(depth / 1000)" in caplog.text


def scaled(cameras: Cameras, depth: Tensor, quantity: str, factor: float) -> tuple[Cameras, Tensor]:
    """Return cameras and depth with one scale wrong."""
    K = cameras.K.clone()
    if quantity == "depth":
        return cameras, depth * factor
    if quantity == "focal length":
        K[:, :2, :2] *= factor
    else:
        height, width = cameras.size
        K = cameras.resize((int(height * factor), int(width * factor))).K
    return replace(cameras, K=K), depth


SCALES = [("depth", 0.25, True), ("focal length", 0.9, True), ("K", 0.5, False)]


@pytest.mark.parametrize(("quantity", "factor", "scan"), SCALES)
def test_a_wrong_scale_does_not_fit_and_is_named(
    quantity: str, factor: float, scan: bool, frames: tuple[Cameras, Tensor]
) -> None:
    cameras, depth = frames
    others = [0, 1, 2, 4] if scan else [0, 1, 2, 3, 4]
    cloud = cloud_of(cameras, depth, 3) if scan else None
    check = check_cameras(cloud, *scaled(cameras[others], depth[others], quantity, factor), max_points=600)
    assert check.best == "camera_to_world"
    assert not check.fits and check.share < 0.93 * check.reached
    assert check.factor == (quantity, pytest.approx(1 / factor, rel=0.06))
    assert f"{quantity} x {check.factor[1]:.3g}" in str(check)


def test_right_scales_fit_and_wrong_positions_do_not(frames: tuple[Cameras, Tensor]) -> None:
    """With and without a scan; positions in millimetres, and depth along the ray."""
    cameras, depth = frames
    others = [0, 1, 2, 4]
    for check in (
        check_cameras(None, cameras, depth, max_points=600),
        check_cameras(cloud_of(cameras, depth, 3), cameras[others], depth[others], max_points=600),
    ):
        assert check.fits and check.factor is None, str(check)
        assert check.share == check.scores["camera_to_world"] > 0.3
    poses = cameras.cam_to_world.clone()
    poses[:, :3, 3] *= 1000
    check = check_cameras(None, replace(cameras, cam_to_world=poses), depth, max_points=600)
    assert not check.fits and check.factor == ("depth", pytest.approx(1000, rel=0.06))
    rays = cameras[0].unproject(torch.ones_like(depth[:1])) - cameras.positions[0]
    assert check_cameras(None, cameras, depth * rays.norm(dim=-1).float(), max_points=600).share < 0.4
