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
    """Return uv (V, N, 2), and which of them (V, N) are in the image and a margin of pixels from its edges."""
    uv, z = cameras.project(points)
    height, width = cameras.size
    limit = torch.tensor([width - 1 - margin, height - 1 - margin])
    return uv, (z > 0) & (uv > margin).all(-1) & (uv < limit).all(-1)


def bilinear(image: Tensor, uv: Tensor) -> Tensor:
    """Read image (C, H, W) at uv (N, 2), integers being pixel centres; return (N, C)."""
    corner = uv.floor().long()
    x, y = corner.unbind(-1)
    share_x, share_y = (uv - corner).unbind(-1)
    top = torch.lerp(image[:, y, x], image[:, y, x + 1], share_x)
    bottom = torch.lerp(image[:, y + 1, x], image[:, y + 1, x + 1], share_x)
    return torch.lerp(top, bottom, share_y).T


def ramp(size: tuple[int, int]) -> Tensor:
    """An image (2, H, W) that holds at every pixel its own place: (u, v)."""
    v, u = torch.meshgrid(
        torch.arange(size[0]).double(), torch.arange(size[1]).double(), indexing="ij"
    )
    return torch.stack([u, v])


def test_pad_crop_and_resize_in_a_row_follow_the_images() -> None:
    cameras = rooms.ring(4, SIZE)
    points = rooms.surface(400)
    image = F.pad(ramp(SIZE), (3, 2, 5, 7), value=torch.nan)  # left, right, top, bottom
    image = image[:, 4:44, 10:60]
    image = F.interpolate(image[None], (20, 100), mode="bilinear", align_corners=False)[0]

    moved = cameras.pad(left=3, top=5, right=2, bottom=7)
    moved = moved.crop(4, 10, 40, 50)
    moved = moved.resize((20, 100))

    uv_before, _ = cameras.project(points)
    uv, inside = in_front(moved, points, margin=3)
    shown_uv = bilinear(image, uv[inside])  # the image holds the places before
    is_image = shown_uv.isfinite().all(1)  # not padding
    assert is_image.sum() > 50
    difference = shown_uv - uv_before[inside]
    assert difference[is_image].abs().max() < 1e-9


def test_every_form_of_a_pose_gives_the_same_cameras() -> None:
    cameras = rooms.ring(5, SIZE)
    K = cameras.K
    pose = cameras.cam_to_world

    inverse = Cameras.from_world_to_cam(K, torch.linalg.inv(pose), SIZE)
    opengl = Cameras.from_opengl(K, pose @ FLIP, SIZE)

    for other in (inverse, opengl):
        assert torch.allclose(other.K, K, atol=1e-9)
        assert torch.allclose(other.cam_to_world, pose, atol=1e-9)
    assert torch.allclose(cameras.world_to_cam @ pose, torch.eye(4).double(), atol=1e-12)


def test_unprojected_pixels_come_back() -> None:
    cameras = rooms.ring(2, (24, 32))
    depth = rooms.depth(cameras)

    world = cameras.unproject(depth)

    uv, z = cameras[1:].project(world[1].reshape(-1, 3))
    assert torch.allclose(uv[0], ramp((24, 32)).flatten(1).T, atol=1e-9)
    assert torch.allclose(z[0], depth[1].flatten(), atol=1e-12)


def test_pixels_of_unknown_depth_are_nan() -> None:
    cameras = rooms.ring(2, (24, 32))
    depth = rooms.depth(cameras)
    depth[0, 0, :3] = torch.tensor([0.0, torch.inf, -1.0])

    world = cameras.unproject(depth)

    assert world[0, 0, :3].isnan().all()
    assert world.isnan().sum() == 9  # three pixels with three coordinates


def test_pixels_of_depth_at_half_the_size_come_back_to_the_centres_of_four() -> None:
    cameras = rooms.ring(2, (24, 32))
    world = cameras.unproject(rooms.depth(cameras, (12, 16)))

    uv, _ = cameras[:1].project(world[0].reshape(-1, 3))

    assert torch.allclose(uv[0], 2 * ramp((12, 16)).flatten(1).T + 0.5, atol=1e-9)


def test_views_are_indexed_like_a_batch() -> None:
    cameras = rooms.ring(5, SIZE)
    poses = cameras.cam_to_world
    mask = torch.tensor([True, False, False, True, False])

    assert torch.equal(cameras[-1].cam_to_world, poses[4:])
    assert torch.equal(cameras[[3, 0]].cam_to_world, poses[[3, 0]])
    assert torch.equal(cameras[mask].cam_to_world, poses[[0, 3]])
    assert len(cameras) == 5
    assert len(cameras[:0]) == 0


def test_views_keep_their_sample() -> None:
    cameras = replace(rooms.ring(5, SIZE), sample=torch.tensor([0, 0, 1, 1, 2]))

    changed = cameras[2:].resize((10, 10)).crop(0, 0, 5, 5).pad(1, 1, 1, 1).to("cpu")

    assert changed.sample is not None
    assert changed.sample.tolist() == [1, 1, 2]


def test_a_size_of_width_and_height_is_warned_of() -> None:
    """No error: the images of a crop away from the centre can have such a K."""
    pose = torch.eye(4)[None]
    for height, width in ((480, 640), (375, 1242), (1920, 1080), (1024, 1280)):
        u = width / 2 - 5.0
        v = height / 2 + 7.0
        K = torch.tensor([[[500.0, 0.0, u], [0.0, 500.0, v], [0.0, 0.0, 1.0]]])
        Cameras(K, pose, (height, width))  # a warning would fail the test

        with pytest.warns(UserWarning, match=rf"size=\({height}, {width}\)"):
            cameras = Cameras(K, pose, (width, height))

        assert torch.equal(cameras.K, K.double())  # and used as it is


def test_depth_of_another_aspect_is_warned_of_and_used() -> None:
    """No error: depth whose axes were scaled by themselves shows all of the image; there are about as many links."""
    cameras = rooms.ring(2, (48, 64))
    points = rooms.surface(2000)
    project = PointProjector()

    with pytest.warns(UserWarning, match="48x48 px .* 48x64 px"):
        stretched = project(points, cameras, rooms.depth(cameras, (48, 48)))

    whole = project(points, cameras, rooms.depth(cameras))
    assert abs(len(stretched) - len(whole)) < 0.02 * len(whole)


def test_an_aspect_that_is_off_by_0_4_percent_is_taken() -> None:
    """ScanNet's images and depth; a warning would fail the test."""
    cameras = rooms.ring(1, (968, 1296))
    depth = rooms.depth(cameras, (480, 640))

    links = PointProjector()(rooms.surface(2000), cameras, depth)

    assert len(links) > 0


# how poses were meant -> what the check advises
REMEDIES = {
    "camera_to_world": "read the right way",
    "inverse": "from_world_to_cam",
    "opengl": "from_opengl",
    "transposed": ".mT",
}
READINGS = tuple(REMEDIES)
SMALL = (60, 80)
ALL_BUT_3 = [0, 1, 2, 4]  # of five views: view 3 is the scan


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
def test_the_check_names_the_reading_from_a_scan_and_from_depth_alone(
    reading: str, frames: tuple[Cameras, Tensor]
) -> None:
    cameras, depth = frames
    wrong = misread(cameras, reading)
    scan = cloud_of(cameras, depth, view=3)

    of_scan = check_cameras(scan, wrong[ALL_BUT_3], depth[ALL_BUT_3], max_points=600)
    of_depth = check_cameras(None, wrong, depth, max_points=600)

    for check in (of_scan, of_depth):
        assert check.best == reading
        assert check.clear
        others = [score for name, score in check.scores.items() if name != reading]
        assert check.scores[reading] >= 3 * max(others)
    assert REMEDIES[reading] in str(of_scan)


@pytest.mark.parametrize("tolerance", [{"depth_abs": 0.4}, {"depth_rel": 0.4}])
def test_depth_of_a_noisy_sensor_fits_within_its_own_tolerance(
    tolerance: dict[str, float], frames: tuple[Cameras, Tensor]
) -> None:
    """Depth is off by up to 30 cm; without options, 5 cm or 2 % are taken for agreement."""
    cameras, depth = frames
    generator = torch.Generator().manual_seed(0)
    noise = 0.6 * (torch.rand(depth.shape, generator=generator) - 0.5)
    scan = cloud_of(cameras, depth, view=3)
    views = cameras[ALL_BUT_3]
    true_depth = depth[ALL_BUT_3]
    noisy_depth = (depth + noise)[ALL_BUT_3]

    narrow = check_cameras(scan, views, noisy_depth, max_points=600)
    wide = check_cameras(scan, views, noisy_depth, max_points=600, **tolerance)
    exact = check_cameras(scan, views, true_depth, max_points=600)

    assert wide.best == "camera_to_world"
    assert narrow.share < 0.5 * exact.share
    assert wide.share > 0.9 * exact.share


@pytest.mark.slow
def test_depth_is_compared_within_its_sample() -> None:
    """The same pair of views twice, as two samples, fits as well as once."""
    cameras = rooms.ring(4, SMALL)
    depth = rooms.depth(cameras)
    pair = [0, 1]
    pair_twice = [0, 1, 0, 1]
    batched = replace(cameras[pair_twice], sample=torch.tensor([0, 0, 1, 1]))
    pixels = 2 * SMALL[0] * SMALL[1]

    once = check_cameras(None, cameras[pair], depth[pair], max_points=pixels)
    twice = check_cameras(None, batched, depth[pair_twice], max_points=2 * pixels)

    assert twice.scores == once.scores


@pytest.mark.slow
def test_one_view_or_no_depth_tells_nothing() -> None:
    cameras = rooms.ring(4, SMALL)
    depth = rooms.depth(cameras)

    one_view = check_cameras(None, cameras[:1], depth[:1])
    no_depth = check_cameras(None, cameras, depth * 0)

    assert not one_view.clear
    assert not no_depth.clear


def test_two_samples_fit_as_well_as_all_their_views_of_one_scene() -> None:
    cameras = rooms.ring(4, SMALL)
    points = rooms.surface(2000)
    depth = rooms.depth(cameras)
    batched = replace(cameras, sample=torch.tensor([0, 0, 1, 1]))
    clouds = torch.cat([points, points])
    batch = torch.arange(2).repeat_interleave(len(points))

    check = check_cameras(clouds, batched, depth, batch=batch)

    one_scene = check_cameras(points, cameras, depth)
    assert check.clear
    assert check.best == one_scene.best == "camera_to_world"
    assert check.share == pytest.approx(one_scene.share, abs=0.02)


def test_cameras_far_above_what_they_see_are_not_taken_for_millimetres() -> None:
    poses = torch.eye(4).repeat(2, 1, 1)
    poses[1, 0, 3] = 300.0  # a drone at 400 m that flew 300 m
    K = torch.tensor([[800.0, 0.0, 31.5], [0.0, 800.0, 23.5], [0.0, 0.0, 1.0]])
    cameras = Cameras(K.repeat(2, 1, 1), poses, SIZE)

    check = check_cameras(None, cameras, torch.full((2, *SIZE), 400.0))

    assert not check.clear  # the images do not overlap


@pytest.mark.slow
def test_it_says_so_when_nothing_fits() -> None:
    cameras = rooms.ring(6, SMALL)
    far_away = rooms.surface(5000) + 50.0

    check = check_cameras(far_away, cameras, rooms.depth(cameras), max_points=500)

    assert not check.clear
    assert "no reading fits" in str(check)


def test_it_says_so_when_nothing_stands_out() -> None:
    scores = {"camera_to_world": 0.0, "inverse": 0.4, "opengl": 0.5, "transposed": 0.0}

    check = CameraCheck(scores, best="opengl")

    assert not check.clear
    assert "inverse 0.40, opengl 0.50" in str(check)


def test_depth_in_millimetres_is_refused_with_a_cloud_of_it_and_without(
    frames: tuple[Cameras, Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    """A cloud of the same depth agrees with it in any unit; the distance between the cameras shows the error."""
    cameras, depth = frames
    millimetres = depth * 1000
    cameras[:1].unproject(depth[:1])
    assert not caplog.records  # in metres

    cloud = cloud_of(cameras, millimetres, view=0)[::50]

    assert "unproject(depth / 1000)" in caplog.text
    for points in (None, cloud):
        with pytest.raises(DataError, match=r"millimetres: depth / 1000"):
            check_cameras(points, cameras, millimetres)


def scaled(cameras: Cameras, depth: Tensor, quantity: str, factor: float) -> tuple[Cameras, Tensor]:
    """Return cameras and depth with one scale wrong: depth, focal length or K."""
    if quantity == "depth":
        return cameras, depth * factor
    if quantity == "focal length":
        K = cameras.K.clone()
        K[:, :2, :2] *= factor
        return replace(cameras, K=K), depth
    height, width = cameras.size
    resized = cameras.resize((int(height * factor), int(width * factor)))
    return replace(cameras, K=resized.K), depth


@pytest.mark.slow
@pytest.mark.parametrize(
    ("quantity", "factor", "has_scan"),
    [("depth", 0.25, True), ("focal length", 0.9, True), ("K", 0.5, False)],
)
def test_a_wrong_scale_does_not_fit_and_is_named(
    quantity: str, factor: float, has_scan: bool, frames: tuple[Cameras, Tensor]
) -> None:
    cameras, depth = frames
    scan = None
    if has_scan:
        scan = cloud_of(cameras, depth, view=3)
        cameras = cameras[ALL_BUT_3]
        depth = depth[ALL_BUT_3]
    cameras, depth = scaled(cameras, depth, quantity, factor)

    check = check_cameras(scan, cameras, depth, max_points=600)

    assert check.best == "camera_to_world"
    assert not check.fits
    assert check.share < 0.93 * check.reached
    assert check.factor == (quantity, pytest.approx(1 / factor, rel=0.06))
    assert f"{quantity} x {check.factor[1]:.3g}" in str(check)


@pytest.mark.slow
def test_right_scales_fit(frames: tuple[Cameras, Tensor]) -> None:
    cameras, depth = frames
    scan = cloud_of(cameras, depth, view=3)

    of_depth = check_cameras(None, cameras, depth, max_points=600)
    of_scan = check_cameras(scan, cameras[ALL_BUT_3], depth[ALL_BUT_3], max_points=600)

    for check in (of_depth, of_scan):
        assert check.fits, str(check)
        assert check.factor is None
        assert check.share == check.scores["camera_to_world"] > 0.3


@pytest.mark.slow
def test_positions_in_millimetres_do_not_fit(frames: tuple[Cameras, Tensor]) -> None:
    cameras, depth = frames
    poses = cameras.cam_to_world.clone()
    poses[:, :3, 3] *= 1000

    check = check_cameras(None, replace(cameras, cam_to_world=poses), depth, max_points=600)

    assert not check.fits
    assert check.factor == ("depth", pytest.approx(1000, rel=0.06))


@pytest.mark.slow
def test_depth_along_the_ray_agrees_in_fewer_pixels(frames: tuple[Cameras, Tensor]) -> None:
    cameras, depth = frames
    at_one_metre = cameras[0].unproject(torch.ones_like(depth[:1]))
    ray_length = (at_one_metre - cameras.positions[0]).norm(dim=-1).float()

    along_z = check_cameras(None, cameras, depth, max_points=600)
    along_ray = check_cameras(None, cameras, depth * ray_length, max_points=600)

    assert along_ray.share < 0.4
    assert along_ray.share < 0.7 * along_z.share
