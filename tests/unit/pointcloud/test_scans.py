"""Scans as training data: files of every form, a tree from images to instance AP, normals."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from examples.pointcloud import comparison, extraction
from examples.pointcloud.frames import Frames
from examples.pointcloud.rooms import CLASSES, Room, room
from examples.pointcloud.scans import normals_of, read_cloud
from PIL import Image
from tests.unit.pointcloud.frame_samples import run_verb

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


def test_a_tree_is_extracted_trained_on_and_scored_by_instances(tree: Path) -> None:
    assert run_verb(extraction, tree / "tree", "--out", tree / "store", "--backbone", "dinoneck_tiny") == 0
    words = [
        *("--data", tree / "tree", "--labels", tree / "labels", "--features", tree / "store", "--classes", *NAMES),
        *("--held-out", "scene2", "--voxel", "0.25", "--network", "small", "--points", "1000", "--steps", "1"),
        *("--pretrain-steps", "1", "--batch", "1", "--seeds", "0", "1", "--out", tree / "runs"),
    ]
    assert run_verb(comparison, *words) == 0
    found = json.loads((tree / "runs" / "point_segmentation.json").read_text())["blocks"]["geometry"]
    assert {"AP", "AP50", "AP25"} <= found["summary"]["rows"]["inject"].keys()
    assert found["seeds"]["0"]["inject"]["test"]["injection"]["1"]["hit_rate"] > 0.1


def test_files_of_every_form_hold_the_same_cloud(tmp_path: Path) -> None:
    made, rows = drawn(), torch.arange(50)
    write_ply(tmp_path / "binary.ply", made, rows)
    write_ply(tmp_path / "text.ply", made, rows, binary=False)
    np.save(tmp_path / "array.npy", np.c_[made.points[rows].float(), made.labels[rows] + 10, made.labels[rows]])
    clouds = [read_cloud(tmp_path / name) for name in ("binary.ply", "text.ply", "array.npy")]
    for cloud in clouds:
        assert torch.allclose(cloud.points, made.points[rows], atol=1e-6)
        assert torch.equal(cloud.labels, made.labels[rows] + 10)
        assert cloud.instances is not None and torch.equal(cloud.instances, made.labels[rows])


def test_normals_are_those_of_planes_towards_the_camera() -> None:
    made = room(0, views=3, size=(12, 16), points=100_000)
    cosine = (normals_of(made.points, made.frames.cameras) * made.normals).sum(1)
    assert float((cosine > 0.99).double().mean()) > 0.7  # the others lie at edges
    assert not normals_of(made.points[:2], made.frames.cameras).any()
