"""Scans as training data: labels follow coordinates, wrong scales are refused, new layers learn alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from examples.pointcloud.frames import Frames
from examples.pointcloud.rooms import CLASSES, Room, room
from examples.pointcloud.scans import (
    FLOOR,
    GEOMETRY,
    SURFACES,
    UPRIGHT,
    Cloud,
    matched,
    normals_of,
    read_cloud,
    scan,
)
from PIL import Image

from dinoneck import DataError

NAMES = [f"{place + 10}={name}" for place, name in enumerate(CLASSES)]


def drawn(seed: int = 0) -> Room:
    return room(seed, views=2, size=(96, 128), points=2000)


def write_ply(path: Path, made: Room, rows: torch.Tensor, binary: bool = True) -> None:
    columns = [("x", "f4"), ("y", "f4"), ("z", "f4"), ("red", "u1"), ("label", "<u2"), ("instance", "i4")]
    table = np.zeros(len(rows), columns)
    for axis, name in enumerate("xyz"):
        table[name] = made.points[rows, axis]
    table["label"], table["instance"] = made.labels[rows] + 10, made.labels[rows]
    words = {"f4": "float", "u1": "uchar", "<u2": "ushort", "i4": "int"}
    form = "binary_little_endian" if binary else "ascii"
    head = [f"ply\nformat {form} 1.0\ncomment made here\nelement vertex {len(rows)}"]
    head += [f"property {words[kind]} {name}" for name, kind in columns]
    head += ["element face 0", "property list uchar int vertex_indices", "end_header\n"]
    body = table.tobytes() if binary else "\n".join(" ".join(map(repr, row.tolist())) for row in table).encode()
    path.write_bytes("\n".join(head).encode() + body)


def write_scene(tree: Path, name: str, frames: Frames) -> None:
    scene = tree / "2D" / name
    for part in ("color", "depth", "pose"):
        (scene / part).mkdir(parents=True)
    for view in range(len(frames)):
        Image.fromarray(frames.images[view].permute(1, 2, 0).numpy()).save(scene / "color" / f"{view}.png")
        units = (frames.depth[view] * 1000).round().numpy().astype(np.uint16)
        Image.fromarray(units).save(scene / "depth" / f"{view}.png")
        np.savetxt(scene / "pose" / f"{view}.txt", frames.cameras.cam_to_world[view])
    np.savetxt(scene / "intrinsics.txt", frames.cameras.K[0])


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Three rooms as scans, with labels in other orders than the points."""
    (tmp_path / "labels").mkdir()
    for seed in range(3):
        made = drawn(seed)
        write_scene(tmp_path / "tree", f"scene{seed}", made.frames)
        rows = torch.randperm(len(made.points), generator=torch.Generator().manual_seed(seed))
        write_ply(tmp_path / "labels" / f"scene{seed}.ply", made, rows)
    return tmp_path


def words(tree: Path, *more: str) -> list[str]:
    return [
        *("--data", str(tree / "tree"), "--labels", str(tree / "labels"), "--classes", *NAMES, "--held-out", "scene2"),
        *("--voxel", "0.25", "--backbone", "dinoneck_tiny", "--network", "small", "--engine", "torch"),
        *("--points", "1000", "--steps", "1", "--batch", "1", *more),
    ]


def test_files_of_every_form_hold_the_same_cloud(tmp_path: Path) -> None:
    made, rows = drawn(), torch.arange(50)
    write_ply(tmp_path / "binary.ply", made, rows)
    write_ply(tmp_path / "text.ply", made, rows, binary=False)
    np.save(tmp_path / "array.npy", np.c_[made.points[rows].float(), made.labels[rows] + 10, made.labels[rows]])
    clouds = [read_cloud(tmp_path / name) for name in ("binary.ply", "text.ply", "array.npy")]
    for cloud in clouds:
        assert torch.allclose(cloud.points, made.points[rows], atol=1e-6)
        assert cloud.labels is not None and torch.equal(cloud.labels, made.labels[rows] + 10)
        assert cloud.instances is not None and torch.equal(cloud.instances, made.labels[rows])


def test_labels_follow_coordinates_in_any_order() -> None:
    made = drawn()
    rows = torch.randperm(len(made.points), generator=torch.Generator().manual_seed(1))
    labelled = Cloud(made.points[rows], labels=made.labels[rows], instances=rows)
    found = matched(labelled, Cloud(made.points, made.colours), "a")
    assert found.labels is not None and torch.equal(found.labels, made.labels)
    assert found.instances is not None and torch.equal(found.instances, torch.arange(len(rows)))
    assert found.colours is made.colours
    with pytest.raises(DataError, match=r"a: \d+ labels for \d+ points"):
        matched(replace(labelled, points=made.points[rows[1:]]), Cloud(made.points), "a")
    moved = made.points.clone()
    moved[7] += 0.01
    with pytest.raises(DataError, match="1 of .* points are not at the coordinates of a label"):
        matched(labelled, Cloud(moved), "a")


def test_surfaces_of_depth_are_the_rooms_own() -> None:
    """Walls are upright and the floor is the lowest level surface, wherever the world's axes point."""
    made = drawn()
    turn = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(0)).double())[0]
    turn *= torch.linalg.det(turn).sign()
    poses = made.frames.cameras.cam_to_world.clone()
    poses[:, :3] = turn @ poses[:, :3]
    frames = replace(made.frames, cameras=replace(made.frames.cameras, cam_to_world=poses))
    one = scan("a", frames, GEOMETRY, {}, None, 4000, 0)
    assert SURFACES[FLOOR] == "floor"
    back = one.points @ turn
    size = made.interior.size
    wall = ((back[:, :2] < 0.01) | (back[:, :2] > size[:2] - 0.01)).any(1) & (back[:, 2] > 0.3) & (back[:, 2] < 2)
    floor = (back[:, 2] < 0.01) & (back[:, :2] > 0.3).all(1) & (back[:, :2] < size[:2] - 0.3).all(1)
    assert float((one.labels[wall] == UPRIGHT).double().mean()) > 0.9
    assert float((one.labels[floor] == FLOOR).double().mean()) > 0.75  # the others are next to furniture


def test_normals_are_those_of_planes_towards_the_camera() -> None:
    made = room(0, views=3, size=(12, 16), points=100_000)
    cosine = (normals_of(made.points, made.frames.cameras) * made.normals).sum(1)
    assert float((cosine > 0.99).double().mean()) > 0.7  # the others lie at edges
    assert not normals_of(made.points[:2], made.frames.cameras).any()
