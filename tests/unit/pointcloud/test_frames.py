"""Frames are read as they are written, and everything else is refused by name."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from examples.pointcloud.frames import cloud_of, read_frames
from PIL import Image
from tests.conftest import DATA

from dinoneck import DataError
from dinoneck.points import PointProjector

RGBD = DATA / "rgbd_room"
TURN = [0.0, math.sin(0.3), 0.0, math.cos(0.3)]  # 0.6 rad about y


def save_depth(path: Path, millimetres: np.ndarray) -> None:
    Image.fromarray(millimetres.astype(np.uint16)).save(path)


def listed() -> dict[str, Any]:
    frames = [
        {"color": f"c{i}.png", "depth": f"d{i}.png", "translation_m": [i, 0.5, -1.0], "quaternion_xyzw": TURN}
        for i in range(3)
    ]
    intrinsics = {"fx": 50.0, "fy": 51.0, "cx": 31.5, "cy": 23.5}
    return {"intrinsics": intrinsics, "image_size": [48, 64], "depth_unit_m": 0.0005, "frames": frames}


def write_json(folder: Path, changed: Callable[[dict[str, Any]], Any] = lambda table: None) -> Path:
    table = listed()
    for i in range(3):
        image = np.full((48, 64, 3), (i, 100, 200), np.uint8)
        Image.fromarray(image).save(folder / f"c{i}.png")
        save_depth(folder / f"d{i}.png", np.full((48, 64), 2000 + i))
    changed(table)
    (folder / "frames.json").write_text(json.dumps(table))
    return folder


def write_scan(folder: Path, numbers: tuple[int, ...] = (0, 20, 40, 100)) -> Path:
    scene = folder / "scene0000_00"
    for part in ("color", "depth", "pose", "intrinsic"):
        (scene / part).mkdir(parents=True)
    for number in numbers:
        Image.fromarray(np.full((60, 80, 3), number, np.uint8)).save(scene / "color" / f"{number}.jpg")
        save_depth(scene / "depth" / f"{number}.png", np.full((30, 40), 1500))
        pose = np.eye(4)
        pose[0, 3] = number / 100
        np.savetxt(scene / "pose" / f"{number}.txt", pose)
    K = np.array([[70.0, 0, 39.5, 0], [0, 70, 29.5, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    np.savetxt(scene / "intrinsic" / "intrinsic_color.txt", K)
    return scene


def test_a_json_scene_is_read_to_the_number(tmp_path: Path) -> None:
    frames = read_frames(write_json(tmp_path))
    assert frames.names == ("c0", "c1", "c2")
    assert frames.images.dtype == torch.uint8
    assert frames.images[2, :, 5, 5].tolist() == [2, 100, 200]
    assert torch.allclose(frames.depth[:, 0, 0], torch.tensor([1.0, 1.0005, 1.001]))
    assert frames.cameras.size == (48, 64)
    assert frames.cameras.K[0].tolist() == [[50, 0, 31.5], [0, 51, 23.5], [0, 0, 1]]
    cos, sin = math.cos(0.6), math.sin(0.6)
    expected = torch.tensor([[cos, 0, sin, 2], [0, 1, 0, 0.5], [-sin, 0, cos, -1], [0, 0, 0, 1]], dtype=torch.float64)
    assert torch.allclose(frames.cameras.cam_to_world[2], expected)
    assert read_frames(tmp_path, limit=2).names == ("c0", "c1")
    assert read_frames(tmp_path, every=2).names == ("c0", "c2")


def test_a_scan_is_read_by_number_with_smaller_depth(tmp_path: Path) -> None:
    frames = read_frames(write_scan(tmp_path))
    assert frames.names == tuple(f"scene0000_00/color/{n}" for n in (0, 20, 40, 100))
    assert frames.images.shape == (4, 3, 60, 80)
    assert frames.depth.shape == (4, 30, 40)
    assert torch.allclose(frames.depth, torch.tensor(1.5))
    assert frames.cameras.positions[:, 0].tolist() == [0, 0.2, 0.4, 1.0]
    assert read_frames(tmp_path / "scene0000_00", every=40).names == ("scene0000_00/color/0", "scene0000_00/color/40")
    assert read_frames(tmp_path / "scene0000_00", limit=1).names == ("scene0000_00/color/0",)


def test_lost_frames_are_left_out_and_counted(tmp_path: Path) -> None:
    scene = write_scan(tmp_path)
    np.savetxt(scene / "pose" / "20.txt", np.full((4, 4), -np.inf))
    (scene / "depth" / "20.png").unlink()  # nothing of it is read
    frames = read_frames(scene, limit=3)
    assert frames.names == tuple(f"scene0000_00/color/{n}" for n in (0, 40, 100))
    assert frames.skipped == 1
    for number in (0, 40, 100):
        np.savetxt(scene / "pose" / f"{number}.txt", np.full((4, 4), np.nan))
    with pytest.raises(DataError, match="4 frames, none with a finite pose"):
        read_frames(scene)


@pytest.mark.parametrize("invalid", [0.0, math.nan, math.inf, -1.0])
def test_invalid_depth_gives_no_points(tmp_path: Path, invalid: float) -> None:
    frames = read_frames(write_scan(tmp_path, (0,)))
    whole = cloud_of(frames, 0)[0]
    frames.depth[0, 0, :7] = invalid
    points, _, normals = cloud_of(frames, 0)
    assert len(points) == len(whole) - 7 and bool(points.isfinite().all()) and bool(normals.isfinite().all())
    links = PointProjector()(whole, frames.cameras, frames.depth)
    assert len(links) == len(points)  # the pixel's unknown depth shows none of the points behind it


def test_depth_of_another_camera_is_refused(tmp_path: Path) -> None:
    scene = write_scan(tmp_path)
    path = scene / "intrinsic" / "intrinsic_depth.txt"
    np.savetxt(path, [[35.3, 0, 19.5], [0, 35.3, 14.5], [0, 0, 1]])
    read_frames(scene)
    np.savetxt(path, [[70.0, 0, 39.5], [0, 70, 29.5], [0, 0, 1]])  # those of the images' size
    with pytest.raises(DataError, match="same field of view"):
        read_frames(scene)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda t: t["frames"][1].update(quaternion_xyzw=[0, 0, 0, 2]), "quaternion_xyzw has the norm 2"),
        (lambda t: t["frames"][1].update(quaternion_xyzw=[0, 0, 1]), "quaternion_xyzw"),
        (lambda t: t["frames"][0].update(translation_m=[0, 0, "x"]), "translation_m"),
        (lambda t: t["frames"][2].pop("depth"), "depth"),
        (lambda t: t.update(frames=[]), "there are no frames"),
        (lambda t: t.pop("frames"), "frames"),
        (lambda t: t["intrinsics"].pop("cx"), "cx"),
        (lambda t: t.update(image_size=[64]), "image_size"),
        (lambda t: t.update(image_size=[64, 48]), "belong to images of 64x48"),
        (lambda t: t.update(depth_unit_m=0), "depth_unit_m"),
        (lambda t: t.update(pose="world to camera"), "world to camera|pose"),
    ],
)
def test_bad_numbers_are_named(tmp_path: Path, spoil: Callable[[Any], Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_frames(write_json(tmp_path, spoil))


def test_a_cloud_is_what_depth_shows(tmp_path: Path) -> None:
    frames = read_frames(write_scan(tmp_path))
    frames.depth[3, :5] = 0
    points, colours, normals = cloud_of(frames, 3)
    assert len(points) == 25 * 40
    assert torch.allclose(points[:, 2], torch.tensor(1.5, dtype=torch.float64))  # a wall before a camera along z
    uv, _ = frames.cameras[3].resize((30, 40)).project(points[:1])
    assert torch.allclose(uv[0, 0], torch.tensor([0.0, 5.0], dtype=torch.float64))  # its own pixel
    assert bool((colours == 100).all())
    inner = normals.reshape(25, 40, 3)[:-1, :-1]
    assert torch.allclose(inner, torch.tensor([0.0, 0.0, -1.0]).expand_as(inner))  # towards the camera
    assert bool(normals.isfinite().all())
    frames.depth[3] = 0
    assert [len(part) for part in cloud_of(frames, 3)] == [0, 0, 0]
    frames.depth[3] = 1500
    with pytest.raises(DataError, match="looks in millimetres"):
        cloud_of(frames, 3)


def test_the_real_room() -> None:
    if not (RGBD / "frames.json").is_file():
        pytest.skip(f"the RGB-D frames are not in {RGBD}; set DINONECK_DATA to the folder that holds them")
    frames = read_frames(RGBD)
    assert len(frames) == 5
    assert frames.images.shape[1:] == (3, 480, 640)
    known = frames.depth[frames.depth > 0]
    assert 0.6 < len(known) / frames.depth.numel() < 0.8
    assert 0.3 < float(known.min()) < float(known.max()) < 10
