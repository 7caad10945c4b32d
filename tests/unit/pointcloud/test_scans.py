"""Scans as training data: files of every form, a tree from images to instance AP, normals."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from examples.pointcloud.__main__ import main
from examples.pointcloud.frames import Frames
from examples.pointcloud.rooms import CLASSES, Room, room
from examples.pointcloud.scans import check_names, read_cloud
from PIL import Image

from dinoneck import DataError, FeatureStore

NAMES = [f"{place + 10}={name}" for place, name in enumerate(CLASSES)]


def drawn(seed: int = 0) -> Room:
    return room(seed, views=2, size=(96, 128), points=2000)


def write_ply(path: Path, table: np.ndarray, form: str = "binary_little_endian", newline: str = "\n") -> None:
    words = {"f4": "float", "f8": "double", "u1": "uchar", "u2": "ushort", "i4": "int"}
    head = ["ply", f"format {form} 1.0", "comment made here", f"element vertex {len(table)}"]
    head += [f"property {words[table.dtype[name].str[1:]]} {name}" for name in table.dtype.names]
    head += ["element face 0", "property list uchar int vertex_indices", "end_header", ""]
    body = (
        table.tobytes() if form != "ascii" else "\n".join(" ".join(map(repr, row.tolist())) for row in table).encode()
    )
    path.write_bytes(newline.join(head).encode() + body)


def table_of(made: Room, rows: torch.Tensor) -> np.ndarray:
    columns = [("x", "f4"), ("y", "f4"), ("z", "f4"), ("red", "u1"), ("label", "<u2"), ("instance", "i4")]
    table = np.zeros(len(rows), columns)
    for axis, name in enumerate("xyz"):
        table[name] = made.points[rows, axis].numpy()
    labels = made.labels[rows].numpy()
    table["label"], table["instance"] = labels + 10, labels
    return table


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


@pytest.mark.slow
def test_a_tree_is_extracted_trained_on_and_scored_by_instances(tmp_path: Path) -> None:
    """Three rooms as scans, with labels in other orders than the points."""
    (tmp_path / "labels").mkdir()
    for seed in range(3):
        made = drawn(seed)
        write_scene(tmp_path / "tree", f"scene{seed}", made.frames)
        rows = torch.randperm(len(made.points), generator=torch.Generator().manual_seed(seed))
        write_ply(tmp_path / "labels" / f"scene{seed}.ply", table_of(made, rows))
    tree, store = str(tmp_path / "tree"), str(tmp_path / "store")
    assert main(["extract", tree, "--out", store, "--backbone", "dinoneck_tiny"]) == 0
    assert len(FeatureStore.open(store)) == 6
    words = ["--data", tree, "--labels", str(tmp_path / "labels"), "--features", store, "--classes", *NAMES]
    words += ["--held-out", "scene2", "--voxel", "0.25", "--network", "small", "--points", "1000", "--steps", "1"]
    words += ["--batch", "1", "--seeds", "0", "1", "--pretrain-steps", "1", "--out", str(tmp_path / "runs")]
    assert main(["compare", *words]) == 0
    found = json.loads((tmp_path / "runs" / "point_segmentation.json").read_text())["blocks"]["geometry"]
    assert {"AP", "AP50", "AP25"} <= found["summary"]["rows"]["inject"].keys()
    assert found["seeds"]["0"]["inject"]["test"]["injection"]["1"]["hit_rate"] > 0.1


def test_files_of_every_form_hold_the_same_cloud(tmp_path: Path) -> None:
    made, rows = drawn(), torch.arange(50)
    table = table_of(made, rows)
    kinds = [(name, table.dtype[name].newbyteorder(">")) for name in reversed(table.dtype.names)]
    big = np.array([row[::-1] for row in table.tolist()], kinds)
    write_ply(tmp_path / "binary.ply", table)
    write_ply(tmp_path / "big.ply", big, "binary_big_endian", "\r\n")  # no file has to begin with x
    write_ply(tmp_path / "text.ply", table, "ascii")
    np.save(tmp_path / "array.npy", np.c_[made.points[rows].float(), made.labels[rows] + 10, made.labels[rows]])
    for path in tmp_path.iterdir():
        cloud = read_cloud(path)
        assert torch.allclose(cloud.points, made.points[rows], atol=1e-6), path
        assert torch.equal(cloud.labels, made.labels[rows] + 10) and torch.equal(cloud.instances, made.labels[rows])
    with pytest.raises(DataError, match="scene0000_00"):
        check_names(["scene0000_01"], ["scene0000_00", "scene0000_01", "office"])
