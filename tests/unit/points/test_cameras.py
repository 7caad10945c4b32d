"""Cameras: geometry against images that really were resized, cropped and padded; what is refused, and why."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tests.unit.points import rooms
from torch import Tensor

from dinoneck import DataError, GridError, ShapeError
from dinoneck.points import Cameras, PointProjector, check_cameras

SIZE = (48, 64)
FLIP = torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=torch.float64))


def cloud(number: int = 200) -> Tensor:
    return rooms.surface(number).points


def one(**changes: object) -> dict[str, object]:
    K = torch.tensor([[[50.0, 0.0, 31.5], [0.0, 52.0, 23.5], [0.0, 0.0, 1.0]]])
    return {"K": K, "cam_to_world": torch.eye(4)[None], "size": SIZE, **changes}


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
    v, u = torch.meshgrid(torch.arange(size[0]).double(), torch.arange(size[1]).double(), indexing="ij")
    return torch.stack([u, v])


def test_a_point_lands_where_the_formula_says() -> None:
    cameras, points = rooms.ring(3, SIZE), cloud()
    uv, z = cameras.project(points)
    for i in range(3):
        for j in range(0, len(points), 17):
            local = torch.linalg.inv(cameras.cam_to_world[i]) @ torch.cat([points[j], torch.ones(1).double()])
            x, y = (cameras.K[i] @ local[:3])[:2] / local[2]
            assert torch.allclose(uv[i, j], torch.stack([x, y]), atol=1e-9)
            assert z[i, j] == pytest.approx(float(local[2]), abs=1e-12)


@pytest.mark.parametrize("factor", [0.5, 0.25, 2.0])
def test_resize_follows_images_that_were_resized(factor: float) -> None:
    cameras, points = rooms.ring(4, SIZE), cloud()
    size = (int(SIZE[0] * factor), int(SIZE[1] * factor))
    resized = F.interpolate(ramp(SIZE)[None], size, mode="bilinear", align_corners=False, antialias=factor < 1)[0]
    old, _ = cameras.project(points)
    new, inside = in_front(cameras.resize(size), points, margin=3 * max(factor, 1))
    assert inside.sum() > 50
    assert (bilinear(resized, new[inside]) - old[inside]).abs().max() < 1e-9


def test_crop_and_pad_follow_the_images_too_and_in_a_row() -> None:
    cameras, points = rooms.ring(4, SIZE), cloud(400)
    image = F.pad(ramp(SIZE), (3, 2, 5, 7), value=torch.nan)[:, 4:44, 10:60]
    image = F.interpolate(image[None], (20, 100), mode="bilinear", align_corners=False)[0]
    moved = cameras.pad(left=3, top=5, right=2, bottom=7).crop(4, 10, 40, 50).resize((20, 100))
    assert moved.size == (20, 100)
    old, _ = cameras.project(points)
    new, inside = in_front(moved, points, margin=3)
    read = bilinear(image, new[inside])
    assert inside.sum() > 50
    assert read.isfinite().all(1).sum() > 50
    assert (read - old[inside])[read.isfinite().all(1)].abs().max() < 1e-9


def test_a_resized_camera_sees_the_depth_of_the_resized_image() -> None:
    cameras = rooms.ring(3, (24, 32))
    assert torch.allclose(rooms.depth(cameras.resize((17, 40))), rooms.depth(cameras, (17, 40)), atol=1e-9)


def test_every_form_of_a_pose_gives_the_same_cameras() -> None:
    cameras = rooms.ring(5, SIZE)
    K, pose, points = cameras.K, cameras.cam_to_world, cloud()
    forms = [
        Cameras.from_world_to_cam(K, torch.linalg.inv(pose), SIZE),
        Cameras.from_opengl(K, pose @ FLIP, SIZE),
    ]
    for other in forms:
        assert torch.allclose(other.K, K, atol=1e-9)
        assert torch.allclose(other.cam_to_world, pose, atol=1e-9)
        assert torch.allclose(other.project(points)[1], cameras.project(points)[1], atol=1e-9)
    assert torch.allclose(cameras.world_to_cam @ pose, torch.eye(4).double(), atol=1e-12)
    assert not torch.allclose(Cameras.from_opengl(K, pose, SIZE).cam_to_world, pose)
    assert not torch.allclose(Cameras.from_world_to_cam(K, pose, SIZE).cam_to_world, pose)


def test_unprojected_pixels_come_back_and_unknown_ones_are_nan() -> None:
    cameras = rooms.ring(2, (24, 32))
    depth = rooms.depth(cameras)
    depth[0, 0, :3] = torch.tensor([0.0, torch.inf, -1.0])
    world = cameras.unproject(depth)
    assert world.shape == (2, 24, 32, 3)
    assert world[0, 0, :3].isnan().all()
    assert world.isnan().sum() == 9
    uv, z = cameras[1:].project(world[1].reshape(-1, 3))
    assert torch.allclose(uv[0], ramp((24, 32)).flatten(1).T, atol=1e-9)
    assert torch.allclose(z[0], depth[1].flatten(), atol=1e-12)
    coarse = cameras.unproject(rooms.depth(cameras, (12, 16)))
    uv, _ = cameras[:1].project(coarse[0].reshape(-1, 3))
    assert torch.allclose(uv[0], 2 * ramp((12, 16)).flatten(1).T + 0.5, atol=1e-9)
    with pytest.raises(ShapeError, match=r"\(1, 24, 32\).*expected \(2, rows, cols\)"):
        cameras.unproject(depth[:1])


def test_views_are_indexed_like_a_batch_and_keep_their_sample() -> None:
    cameras = rooms.ring(5, SIZE)
    cameras = Cameras(cameras.K, cameras.cam_to_world, SIZE, sample=torch.tensor([0, 0, 1, 1, 2]))
    pose = cameras.cam_to_world
    assert len(cameras) == 5
    assert torch.equal(cameras[-1].cam_to_world, pose[4:])
    assert torch.equal(cameras[[3, 0]].cam_to_world, pose[[3, 0]])
    assert torch.equal(cameras[torch.tensor([True, False, False, True, False])].cam_to_world, pose[[0, 3]])
    sample = cameras[2:].resize((10, 10)).crop(0, 0, 5, 5).pad(1, 1, 1, 1).to("cpu").sample
    assert sample is not None
    assert sample.tolist() == [1, 1, 2]
    assert len(cameras[:0]) == 0
    assert torch.equal(cameras.positions, pose[:, :3, 3])
    assert repr(cameras) == "Cameras(5 views of 48x64 px, 3 samples, cpu)"
    assert cameras.K.dtype == torch.float64
    with pytest.raises(IndexError, match="index 5 is out of bounds"):
        cameras[5]


def test_float32_matrices_and_poses_of_three_decimals_are_good_enough() -> None:
    pose = rooms.ring(4, SIZE).cam_to_world
    assert Cameras(**one(K=one()["K"].repeat(4, 1, 1), cam_to_world=pose.float())).K.dtype == torch.float64
    rounded = pose.clone()
    rounded[:, :3, :3] = (pose[:, :3, :3] * 1000).round() / 1000
    Cameras(**one(K=one()["K"].repeat(4, 1, 1), cam_to_world=rounded))


def moved(**entries: float) -> Tensor:
    """The unit pose with entries ``rRC=value``."""
    pose = torch.eye(4)
    for place, value in entries.items():
        pose[int(place[1]), int(place[2])] = value
    return pose[None]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"cam_to_world": moved(r03=1.0, r13=2.0).mT}, DataError, r"it looks transposed: pass cam_to_world\.mT"),
        ({"cam_to_world": moved(r30=0.1, r03=1.0)}, DataError, r"ends in \[0\.1, 0\.0, .*; expected 0, 0, 0, 1"),
        ({"cam_to_world": moved(r00=1e3, r11=1e3, r22=1e3)}, DataError, r"scaled by 1000; it looks in millimetres"),
        ({"cam_to_world": moved(r00=1.1)}, DataError, r"view 0 is not a rotation, off by 0\.21 .*not orthonormal"),
        ({"cam_to_world": moved(r11=-1.0)}, DataError, r"is a mirror \(determinant -1\)"),
        ({"cam_to_world": moved(r03=-torch.inf)}, DataError, r"cam_to_world of view 0 is not finite.*leave them out"),
        ({"K": moved(r00=50.0, r11=50.0, r20=31.5)[:, :3, :3]}, DataError, r"K of view 0 .*transposed: pass K\.mT"),
        ({"K": moved(r00=50.0, r11=50.0, r22=2.0)[:, :3, :3]}, DataError, r"divide by the last entry"),
        ({"K": moved(r00=50.0, r11=-50.0)[:, :3, :3]}, DataError, r"focal lengths \[50\.0, -50\.0\].*from_opengl"),
        ({"K": moved(r00=0.8, r11=1.1, r02=0.5)[:, :3, :3]}, DataError, r"48x64 px; it looks relative to the image"),
        ({"K": moved(r00=torch.nan)[:, :3, :3]}, DataError, r"K of view 0 is not finite"),
        ({"K": torch.eye(3)}, ShapeError, r"K has shape \(3, 3\); expected \(views, 3, 3\)"),
        ({"K": torch.eye(3)[None].long()}, ShapeError, r"K is torch\.int64; expected a floating dtype"),
        ({"K": [[1.0]]}, ShapeError, r"K is a list; expected a tensor"),
        ({"cam_to_world": torch.eye(4)[None, :3]}, ShapeError, r"\(1, 3, 4\); expected \(views, 4, 4\)"),
        ({"cam_to_world": torch.eye(4).repeat(2, 1, 1)}, ShapeError, r"K has 1 views and cam_to_world 2"),
        ({"sample": torch.zeros(2, dtype=torch.int64)}, ShapeError, r"int64 \(2,\); expected torch.int64 \(1,\)"),
        ({"sample": torch.zeros(1)}, ShapeError, r"sample is torch\.float32"),
        ({"sample": 0}, ShapeError, r"sample is a int; expected a tensor"),
        ({"size": (48, 64.0)}, GridError, r"size is \(48, 64\.0\); expected \(height, width\)"),
        ({"size": 48}, GridError, r"size is 48"),
        ({"size": (0, 4)}, GridError, r"at least 1"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(changes: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Cameras(**one(**changes))


def test_a_crop_beyond_the_image_and_transposed_extrinsics_are_named() -> None:
    with pytest.raises(GridError, match=r"20x60 px from row 0, column 10"):
        Cameras(**one()).crop(0, 10, 20, 60)
    with pytest.raises(DataError, match=r"world_to_cam\.mT"):
        Cameras.from_world_to_cam(one()["K"], moved(r03=1.0).mT, SIZE)


# -- sides that are exchanged ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(480, 640), (375, 1242), (1920, 1080), (1024, 1280)])
def test_a_size_of_width_and_height_is_warned_of(size: tuple[int, int]) -> None:
    """No error: the images of a crop away from the centre can have such a K."""
    height, width = size
    K = torch.tensor([[[500.0, 0.0, width / 2 - 5.0], [0.0, 500.0, height / 2 + 7.0], [0.0, 0.0, 1.0]]])
    assert Cameras(K, torch.eye(4)[None], size).size == size
    with pytest.warns(UserWarning, match=rf"size=\({height}, {width}\)"):
        cameras = Cameras(K, torch.eye(4)[None], (width, height))
    assert torch.equal(cameras.K, K.double())  # and used as it is
    with pytest.warns(UserWarning, match=rf"size=\({height}, {width}\)"):
        Cameras.from_world_to_cam(K, torch.eye(4)[None], (width, height))


@pytest.mark.parametrize("scale", [1, 2])
def test_transposed_depth_is_refused(scale: int) -> None:
    cameras, points = rooms.ring(2, (48, 64)), cloud()
    depth = rooms.depth(cameras, (48 // scale, 64 // scale))
    assert len(PointProjector()(points, cameras, depth)) > 0
    sides = rf"{64 // scale}x{48 // scale} px.*48x64 px"
    for refused in (
        lambda: PointProjector()(points, cameras, depth.mT),
        lambda: check_cameras(points, cameras, depth.mT),
        lambda: check_cameras(None, cameras, depth.mT),
        lambda: cameras.unproject(depth.mT),
    ):
        with pytest.raises(ShapeError, match=sides):
            refused()


def test_depth_of_another_aspect_is_warned_of_and_used() -> None:
    """No error: depth whose axes were scaled by themselves shows all of the image, and links are the same."""
    cameras, points = rooms.ring(2, (48, 64)), cloud(2000)
    with pytest.warns(UserWarning, match="48x48 px .* 48x64 px"):
        stretched = PointProjector()(points, cameras, rooms.depth(cameras, (48, 48)))
    whole = PointProjector()(points, cameras, rooms.depth(cameras))
    assert abs(len(stretched) - len(whole)) < 0.02 * len(whole)
    with pytest.warns(UserWarning, match="30x64 px .* 48x64 px"):
        cameras.unproject(rooms.depth(cameras)[:, :30])
    scannet = rooms.ring(1, (968, 1296))
    assert len(PointProjector()(points, scannet, rooms.depth(scannet, (480, 640)))) > 0  # off by 0.4 %
