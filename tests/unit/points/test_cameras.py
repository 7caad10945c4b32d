"""Cameras: geometry against images that were resized, cropped and padded; the check of cameras."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from tests.unit.points import rooms
from torch import Tensor

from dinoneck import DataError
from dinoneck.points import CameraCheck, Cameras, PointProjector, check_cameras

SIZE = (48, 64)
FLIP = torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=torch.float64))


def in_front(cameras: Cameras, points: Tensor, margin: float) -> tuple[Tensor, Tensor]:
    """Return uv (V, N, 2) and which of them lie in the image by a margin of pixels."""
    uv, z = cameras.project(points)
    height, width = cameras.size
    limit = torch.tensor([width - 1 - margin, height - 1 - margin])
    return uv, (z > 0) & (uv > margin).all(-1) & (uv < limit).all(-1)


def bilinear(image: Tensor, uv: Tensor) -> Tensor:
    """Read image (C, H, W) at uv (N, 2), integers being pixel centres."""
    low = uv.floor().long()
    (x, y), (a, b) = low.unbind(-1), (uv - low).unbind(-1)
    top = image[:, y, x] * (1 - a) + image[:, y, x + 1] * a
    bottom = image[:, y + 1, x] * (1 - a) + image[:, y + 1, x + 1] * a
    return (top * (1 - b) + bottom * b).T


def ramp(size: tuple[int, int]) -> Tensor:
    """An image (2, H, W) that holds at every pixel its own place: (u, v)."""
    v, u = torch.meshgrid(
        torch.arange(size[0]).double(), torch.arange(size[1]).double(), indexing="ij"
    )
    return torch.stack([u, v])


def test_crop_and_pad_follow_the_images_too_and_in_a_row() -> None:
    cameras, points = rooms.ring(4, SIZE), rooms.surface(400)
    image = F.pad(ramp(SIZE), (3, 2, 5, 7), value=torch.nan)[:, 4:44, 10:60]
    image = F.interpolate(image[None], (20, 100), mode="bilinear", align_corners=False)[0]
    moved = cameras.pad(left=3, top=5, right=2, bottom=7).crop(4, 10, 40, 50).resize((20, 100))
    old, _ = cameras.project(points)
    new, inside = in_front(moved, points, margin=3)
    read = bilinear(image, new[inside])
    assert inside.sum() > 50
    assert read.isfinite().all(1).sum() > 50
    assert (read - old[inside])[read.isfinite().all(1)].abs().max() < 1e-9


def test_every_form_of_a_pose_gives_the_same_cameras() -> None:
    cameras = rooms.ring(5, SIZE)
    K, pose = cameras.K, cameras.cam_to_world
    for other in (
        Cameras.from_world_to_cam(K, torch.linalg.inv(pose), SIZE),
        Cameras.from_opengl(K, pose @ FLIP, SIZE),
    ):
        assert torch.allclose(other.K, K, atol=1e-9)
        assert torch.allclose(other.cam_to_world, pose, atol=1e-9)
    assert torch.allclose(cameras.world_to_cam @ pose, torch.eye(4).double(), atol=1e-12)


def test_unprojected_pixels_come_back_and_unknown_ones_are_nan() -> None:
    cameras = rooms.ring(2, (24, 32))
    depth = rooms.depth(cameras)
    depth[0, 0, :3] = torch.tensor([0.0, torch.inf, -1.0])
    world = cameras.unproject(depth)
    assert world[0, 0, :3].isnan().all() and world.isnan().sum() == 9
    uv, z = cameras[1:].project(world[1].reshape(-1, 3))
    assert torch.allclose(uv[0], ramp((24, 32)).flatten(1).T, atol=1e-9)
    assert torch.allclose(z[0], depth[1].flatten(), atol=1e-12)
    coarse = cameras.unproject(rooms.depth(cameras, (12, 16)))
    uv, _ = cameras[:1].project(coarse[0].reshape(-1, 3))
    assert torch.allclose(uv[0], 2 * ramp((12, 16)).flatten(1).T + 0.5, atol=1e-9)


def test_views_are_indexed_like_a_batch_and_keep_their_sample() -> None:
    cameras = rooms.ring(5, SIZE)
    cameras = Cameras(cameras.K, cameras.cam_to_world, SIZE, sample=torch.tensor([0, 0, 1, 1, 2]))
    pose = cameras.cam_to_world
    assert torch.equal(cameras[-1].cam_to_world, pose[4:])
    assert torch.equal(cameras[[3, 0]].cam_to_world, pose[[3, 0]])
    assert torch.equal(
        cameras[torch.tensor([True, False, False, True, False])].cam_to_world, pose[[0, 3]]
    )
    assert cameras[2:].resize((10, 10)).crop(0, 0, 5, 5).pad(1, 1, 1, 1).to(
        "cpu"
    ).sample.tolist() == [1, 1, 2]
    assert len(cameras) == 5 and len(cameras[:0]) == 0


# -- sides that are exchanged
# ----------------------------------------------------------------------------------------


def test_a_size_of_width_and_height_is_warned_of() -> None:
    """No error: the images of a crop away from the centre can have such a K."""
    for height, width in ((480, 640), (375, 1242), (1920, 1080), (1024, 1280)):
        K = torch.tensor(
            [[[500.0, 0.0, width / 2 - 5.0], [0.0, 500.0, height / 2 + 7.0], [0.0, 0.0, 1.0]]]
        )
        Cameras(K, torch.eye(4)[None], (height, width))
        with pytest.warns(UserWarning, match=rf"size=\({height}, {width}\)"):
            cameras = Cameras(K, torch.eye(4)[None], (width, height))
        assert torch.equal(cameras.K, K.double())  # and used as it is


def test_depth_of_another_aspect_is_warned_of_and_used() -> None:
    """No error: depth whose axes were scaled by themselves shows all of the image, and links are the same."""
    cameras, points = rooms.ring(2, (48, 64)), rooms.surface(2000)
    with pytest.warns(UserWarning, match="48x48 px .* 48x64 px"):
        stretched = PointProjector()(points, cameras, rooms.depth(cameras, (48, 48)))
    whole = PointProjector()(points, cameras, rooms.depth(cameras))
    assert abs(len(stretched) - len(whole)) < 0.02 * len(whole)
    scannet = rooms.ring(1, (968, 1296))
    # off by 0.4 %
    assert len(PointProjector()(points, scannet, rooms.depth(scannet, (480, 640)))) > 0


REMEDIES = {
    "camera_to_world": "right",
    "inverse": "from_world_to_cam",
    "opengl": "from_opengl",
    "transposed": ".mT",
}
READINGS = tuple(REMEDIES)


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


@pytest.mark.slow
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
        assert check.scores[reading] >= 3 * max(
            check.scores[other] for other in READINGS if other != reading
        )
    assert REMEDIES[reading] in str(scan)


@pytest.mark.parametrize("tolerance", [{"depth_abs": 0.4}, {"depth_rel": 0.4}])
def test_depth_of_a_noisy_sensor_fits_within_its_own_tolerance(
    tolerance: dict[str, float], frames: tuple[Cameras, Tensor]
) -> None:
    """Depth is off by up to 30 cm, six times what is taken for agreement without options."""
    cameras, depth = frames
    noise = (torch.rand(depth.shape, generator=torch.Generator().manual_seed(0)) - 0.5) * 0.6
    others = [0, 1, 2, 4]
    cloud = cloud_of(cameras, depth, 3)
    noisy = (depth + noise)[others]
    narrow = check_cameras(cloud, cameras[others], noisy, max_points=600)
    wide = check_cameras(cloud, cameras[others], noisy, max_points=600, **tolerance)
    exact = check_cameras(cloud, cameras[others], depth[others], max_points=600)
    assert wide.best == "camera_to_world"
    assert narrow.share < 0.5 * exact.share
    assert wide.share > 0.9 * exact.share


@pytest.mark.slow
def test_own_depth_stays_within_its_sample() -> None:
    cameras = rooms.ring(4, SMALL)
    depth, all_of_two = rooms.depth(cameras), 2 * SMALL[0] * SMALL[1]
    two = replace(cameras[[0, 1, 0, 1]], sample=torch.tensor([0, 0, 1, 1]))
    pair = check_cameras(None, cameras[[0, 1]], depth[[0, 1]], max_points=all_of_two)
    both = check_cameras(None, two, depth[[0, 1, 0, 1]], max_points=2 * all_of_two)
    assert both.scores == pair.scores
    assert not check_cameras(None, cameras[:1], depth[:1]).clear
    assert not check_cameras(None, cameras, depth * 0).clear


def test_a_cloud_of_several_samples_is_read_as_each_alone() -> None:
    cameras, points = rooms.ring(4, SMALL), rooms.surface(2000)
    depth = rooms.depth(cameras)
    batched = replace(cameras, sample=torch.tensor([0, 0, 1, 1]))
    clouds = torch.cat([points, points])
    batch = torch.arange(2).repeat_interleave(len(points))

    check = check_cameras(clouds, batched, depth, batch)

    alone = check_cameras(points, cameras, depth)
    assert check.clear
    assert check.best == alone.best == "camera_to_world"
    assert check.share == pytest.approx(alone.share, abs=0.02)


def test_cameras_far_above_what_they_see_are_not_taken_for_millimetres() -> None:
    poses = torch.eye(4).repeat(2, 1, 1)
    poses[1, 0, 3] = 300.0  # a drone at 400 m that flew 300 m
    K = torch.tensor([[800.0, 0.0, 31.5], [0.0, 800.0, 23.5], [0.0, 0.0, 1.0]])
    cameras = Cameras(K.repeat(2, 1, 1), poses, SIZE)

    check = check_cameras(None, cameras, torch.full((2, *SIZE), 400.0))

    assert not check.clear  # the images do not overlap


@pytest.mark.slow
def test_it_says_so_when_nothing_fits_or_nothing_stands_out() -> None:
    cameras, points = rooms.ring(6, SMALL), rooms.surface(5000)
    depth = rooms.depth(cameras)
    lost = check_cameras(points + 50.0, cameras, depth, max_points=500)
    assert not lost.clear and "no reading fits" in str(lost)
    close = CameraCheck(
        {**dict.fromkeys(READINGS, 0.0), "opengl": 0.5, "inverse": 0.4}, best="opengl"
    )
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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("quantity", "factor", "scan"),
    [("depth", 0.25, True), ("focal length", 0.9, True), ("K", 0.5, False)],
)
def test_a_wrong_scale_does_not_fit_and_is_named(
    quantity: str, factor: float, scan: bool, frames: tuple[Cameras, Tensor]
) -> None:
    cameras, depth = frames
    others = [0, 1, 2, 4] if scan else [0, 1, 2, 3, 4]
    cloud = cloud_of(cameras, depth, 3) if scan else None
    check = check_cameras(
        cloud, *scaled(cameras[others], depth[others], quantity, factor), max_points=600
    )
    assert check.best == "camera_to_world"
    assert not check.fits and check.share < 0.93 * check.reached
    assert check.factor == (quantity, pytest.approx(1 / factor, rel=0.06))
    assert f"{quantity} x {check.factor[1]:.3g}" in str(check)


@pytest.mark.slow
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
    assert (
        check_cameras(None, cameras, depth * rays.norm(dim=-1).float(), max_points=600).share < 0.4
    )
