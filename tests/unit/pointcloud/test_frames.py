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
from examples.pointcloud.frames import chosen, read_frames, scene_names
from PIL import Image

from dinoneck import DataError

TURN = [0.0, math.sin(0.3), 0.0, math.cos(0.3)]  # 0.6 rad about y


def save_depth(path: Path, millimetres: np.ndarray) -> None:
    Image.fromarray(millimetres.astype(np.uint16)).save(path)


def write_json(folder: Path, changed: Callable[[dict[str, Any]], Any] = lambda table: None) -> Path:
    frames: list[dict[str, Any]] = [
        {"color": f"c{i}.png", "depth": f"d{i}.png", "translation_m": [i, 0.5, -1.0], "quaternion_xyzw": TURN}
        for i in range(3)
    ]
    intrinsics = {"fx": 50.0, "fy": 51.0, "cx": 31.5, "cy": 23.5}
    table = {"intrinsics": intrinsics, "image_size": [48, 64], "depth_unit_m": 0.0005, "frames": frames}
    for i in range(3):
        Image.fromarray(np.full((48, 64, 3), (i, 100, 200), np.uint8)).save(folder / f"c{i}.png")
        save_depth(folder / f"d{i}.png", np.full((48, 64), 2000 + i))
    changed(table)
    (folder / "frames.json").write_text(json.dumps(table))
    return folder


def write_scan(folder: Path, numbers: tuple[int, ...] = (0, 20, 40, 100)) -> Path:
    scene = folder / "2D" / "scene0000_00"
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
    assert read_frames(tmp_path, every=2).names == ("c0", "c2")


def test_a_scan_is_read_by_number_with_smaller_depth(tmp_path: Path) -> None:
    scene = write_scan(tmp_path)
    assert scene_names(tmp_path) == scene_names(tmp_path / "2D") == ["scene0000_00"]
    save_depth(scene / "depth" / "0.png", np.array([[0, 65535] * 20] * 30))
    frames = read_frames(scene)
    assert frames.names == tuple(f"scene0000_00/color/{n}" for n in (0, 20, 40, 100))
    assert (frames.images.shape, frames.depth.shape) == ((4, 3, 60, 80), (4, 30, 40))
    assert torch.allclose(frames.depth[1:], torch.tensor(1.5)) and not frames.depth[0].any()  # unknown
    assert frames.cameras.positions[:, 0].tolist() == [0, 0.2, 0.4, 1.0]
    assert [path.stem for path in chosen((scene / "color").iterdir(), 40)] == ["0", "40"]
    np.savetxt(scene / "pose" / "20.txt", np.full((4, 4), -np.inf))
    (scene / "depth" / "20.png").unlink()  # nothing of a lost frame is read
    assert read_frames(scene, every=20).names == tuple(f"scene0000_00/color/{n}" for n in (0, 40, 100))
    for names in (("20.jpg", "020.png"), ("a.jpg",), ("3.jpg",)):
        with pytest.raises(DataError, match=names[0]):
            chosen(map(Path, names), 20)


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (lambda t: t["frames"][1].update(quaternion_xyzw=[0, 0, 2, 2]), "view 1 is not a rotation"),
        (lambda t: t["frames"][2].pop("depth"), "'depth'"),
        (lambda t: t.update(frames=[]), "frames.json"),
        (lambda t: t.update(image_size=[64, 48]), r"\(64, 48\)"),
    ],
)
def test_bad_numbers_are_named(tmp_path: Path, spoil: Callable[[Any], Any], named: str) -> None:
    with pytest.raises(DataError, match=named):
        read_frames(write_json(tmp_path, spoil))
