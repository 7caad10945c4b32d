"""Frames, their maps and scans are read as they are written; everything else is refused by name."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from examples.pointcloud.__main__ import main
from examples.pointcloud.features import frame_maps
from examples.pointcloud.frames import Frames, chosen, image_files, read_frames, scene_folders
from examples.pointcloud.rooms import CLASSES, Room, room
from examples.pointcloud.scans import check_names, read_cloud
from examples.pointcloud.training_plan import Plan, rooms_of
from PIL import Image

from dinoneck import Backbone, DataError, FeatureStore, GridError

TURN = [0.0, math.sin(0.3), 0.0, math.cos(0.3)]  # 0.6 rad about y


def save_depth(path: Path, millimetres: np.ndarray) -> None:
    Image.fromarray(millimetres.astype(np.uint16)).save(path)


def write_json(folder: Path, changed: Callable[[dict[str, Any]], Any] = lambda table: None) -> Path:
    frames: list[dict[str, Any]] = [
        {
            "color": f"c{i}.png",
            "depth": f"d{i}.png",
            "translation_m": [i, 0.5, -1.0],
            "quaternion_xyzw": TURN,
        }
        for i in range(3)
    ]
    intrinsics = {"fx": 50.0, "fy": 51.0, "cx": 31.5, "cy": 23.5}
    table = {
        "intrinsics": intrinsics,
        "image_size": [48, 64],
        "depth_unit_m": 0.0005,
        "frames": frames,
    }
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
        Image.fromarray(np.full((60, 80, 3), number, np.uint8)).save(
            scene / "color" / f"{number}.jpg"
        )
        save_depth(scene / "depth" / f"{number}.png", np.full((30, 40), 1500))
        pose = np.eye(4)
        pose[0, 3] = number / 100
        np.savetxt(scene / "pose" / f"{number}.txt", pose)
    K = np.array([[70.0, 0, 39.5, 0], [0, 70, 29.5, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    np.savetxt(scene / "intrinsic" / "intrinsic_color.txt", K)
    return scene


def test_a_json_scene_is_read_to_the_number(tmp_path: Path) -> None:
    frames = read_frames(write_json(tmp_path))
    assert frames.names == tuple(f"{tmp_path.name}/c{i}" for i in range(3))
    assert frames.images.dtype == torch.uint8
    assert frames.images[2, :, 5, 5].tolist() == [2, 100, 200]
    assert torch.allclose(frames.depth[:, 0, 0], torch.tensor([1.0, 1.0005, 1.001]))
    assert frames.cameras.size == (48, 64)
    assert frames.cameras.K[0].tolist() == [[50, 0, 31.5], [0, 51, 23.5], [0, 0, 1]]
    cos, sin = math.cos(0.6), math.sin(0.6)
    expected = torch.tensor(
        [[cos, 0, sin, 2], [0, 1, 0, 0.5], [-sin, 0, cos, -1], [0, 0, 0, 1]], dtype=torch.float64
    )
    assert torch.allclose(frames.cameras.cam_to_world[2], expected)
    assert [path.stem for path in image_files(tmp_path, every=2)] == ["c0", "c2"]
    assert read_frames(tmp_path, every=2).names == tuple(f"{tmp_path.name}/c{i}" for i in (0, 2))


def test_a_scan_is_read_by_number_with_smaller_depth(tmp_path: Path) -> None:
    scene = write_scan(tmp_path)
    assert (
        scene_folders(tmp_path) == scene_folders(tmp_path / "2D") == scene_folders(scene) == [scene]
    )
    save_depth(scene / "depth" / "0.png", np.array([[0, 65535] * 20] * 30))
    frames = read_frames(scene)
    assert frames.names == tuple(f"scene0000_00/color/{n}" for n in (0, 20, 40, 100))
    assert (frames.images.shape, frames.depth.shape) == ((4, 3, 60, 80), (4, 30, 40))
    # unknown
    assert torch.allclose(frames.depth[1:], torch.tensor(1.5)) and not frames.depth[0].any()
    assert frames.cameras.positions[:, 0].tolist() == [0, 0.2, 0.4, 1.0]
    assert [path.stem for path in chosen((scene / "color").iterdir(), 40)] == ["0", "40"]
    np.savetxt(scene / "pose" / "20.txt", np.full((4, 4), -np.inf))
    (scene / "depth" / "20.png").unlink()  # nothing of a lost frame is read
    assert read_frames(scene, every=20).names == tuple(
        f"scene0000_00/color/{n}" for n in (0, 40, 100)
    )
    for names in (("20.jpg", "020.png"), ("a.jpg",), ("3.jpg",)):
        with pytest.raises(DataError, match=names[0]):
            chosen(map(Path, names), 20)


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (lambda t: t["frames"][1].update(quaternion_xyzw=[0, 0, 2, 2]), "view 1 is not a rotation"),
        (lambda t: t["frames"][2].pop("depth"), "'depth'"),
        (lambda t: t.update(frames=[]), r"frames is \[\]; expected a list of frames"),
        (lambda t: t.update(frames=[1]), "frame 0 is 1; expected an object"),
        (lambda t: t.update(image_size=[64, 48]), "image_size 64x48"),
        (lambda t: t.update(image_size=48), "image_size is 48; expected 2 numbers"),
        (lambda t: t.pop("intrinsics"), "no 'intrinsics'; it has depth_unit_m, frames, image_size"),
        (lambda t: t["intrinsics"].update(fx=None), "fx of intrinsics is None; expected a number"),
        (lambda t: t["frames"][1].update(quaternion_xyzw=[0, 0, 1]), "frame 1: quaternion_xyzw is"),
        (lambda t: t["frames"][1].update(translation_m=[0, 1]), "expected 3 numbers"),
        (lambda t: t["frames"][1].update(color=""), "color is ''; expected the name of a file"),
        (lambda t: t.update(depth_unit_m=0), "depth_unit_m is 0; expected the metres"),
        (lambda t: t.update(depth_unit_m=-0.001), "depth_unit_m is -0.001"),
        (lambda t: t.update(depth_unit_m=float("nan")), "depth_unit_m is nan"),
    ],
)
def test_bad_numbers_are_named(tmp_path: Path, spoil: Callable[[Any], Any], named: str) -> None:
    with pytest.raises(DataError, match=named):
        read_frames(write_json(tmp_path, spoil))


def test_a_frame_list_that_is_cut_short_is_named(tmp_path: Path) -> None:
    path = write_json(tmp_path) / "frames.json"
    path.write_text(path.read_text()[:100])
    with pytest.raises(DataError, match="frames.json cannot be read as JSON: Unterminated string"):
        read_frames(tmp_path)


@pytest.mark.parametrize(
    ("key", "statement", "remedy"),
    [
        ("pose", "world to camera", "write the inverse of each"),
        ("pose", "world_to_cam", "write the inverse of each"),
        ("pose", "w2c", "write the inverse of each"),
        ("axes", "x right, y up, z backward", "turn each pose by 180 degrees about its x axis"),
        ("axes", "OpenGL", "turn each pose by 180 degrees about its x axis"),
    ],
)
def test_stated_conventions_that_are_not_read_are_refused(
    tmp_path: Path, key: str, statement: str, remedy: str
) -> None:
    write_json(tmp_path, lambda table: table.update({key: statement}))
    with pytest.raises(DataError, match=remedy):
        read_frames(tmp_path)


@pytest.mark.parametrize(
    ("key", "statement"),
    [
        ("pose", "camera to world"),
        ("pose", "cam2world"),
        ("axes", "x right, y down, z forward"),
        ("axes", "camera: x right, y down, z forward; world: y up"),
        ("axes", ["x", "y", "z"]),
    ],
)
def test_stated_conventions_that_are_read_change_nothing(
    tmp_path: Path, key: str, statement: object
) -> None:
    plain = read_frames(write_json(tmp_path))
    write_json(tmp_path, lambda table: table.update({key: statement}))
    stated = read_frames(tmp_path)
    assert torch.equal(stated.cameras.cam_to_world, plain.cameras.cam_to_world)


@pytest.mark.parametrize("name", ["../c0.png", "a/../../c0.png", "/c0.png"])
def test_an_image_outside_of_its_scene_is_refused(tmp_path: Path, name: str) -> None:
    write_json(tmp_path, lambda table: table["frames"][0].update(color=name))
    with pytest.raises(DataError, match="frame 0: the image .* lies outside of"):
        image_files(tmp_path)


@pytest.mark.parametrize("name", ["c0.png", "./c0.png", "c0.jpg"])
def test_a_frame_that_is_listed_twice_is_refused(tmp_path: Path, name: str) -> None:
    write_json(tmp_path, lambda table: table["frames"][2].update(color=name))
    with pytest.raises(DataError, match="frames 0 and 2 have the images .* keep one"):
        image_files(tmp_path)


def test_listed_frames_without_a_finite_pose_are_left_out(tmp_path: Path) -> None:
    lost = [float("nan")] * 3
    write_json(tmp_path, lambda table: table["frames"][1].update(translation_m=lost))
    assert read_frames(tmp_path).names == (f"{tmp_path.name}/c0", f"{tmp_path.name}/c2")


def test_a_scene_without_any_finite_pose_is_named(tmp_path: Path) -> None:
    scene = write_scan(tmp_path, numbers=(0,))
    np.savetxt(scene / "pose" / "0.txt", np.full((4, 4), np.inf))
    with pytest.raises(DataError, match="none of 1 frames has a finite pose"):
        read_frames(scene)


def test_a_scene_without_intrinsics_is_named(tmp_path: Path) -> None:
    scene = write_scan(tmp_path)
    (scene / "intrinsic" / "intrinsic_color.txt").unlink()
    with pytest.raises(DataError, match="no intrinsics; expected intrinsic/intrinsic_color.txt"):
        read_frames(scene)


def test_a_picture_of_another_size_is_named_with_both_sizes(tmp_path: Path) -> None:
    write_json(tmp_path)
    Image.fromarray(np.zeros((24, 32, 3), np.uint8)).save(tmp_path / "c1.png")
    with pytest.raises(DataError, match=r"c1\.png is 24x32 px and .*c0\.png is 48x64 px"):
        read_frames(tmp_path)


@pytest.fixture(scope="module")
def frames() -> Frames:
    return room(0, views=4, size=(48, 64), points=100).frames


def test_maps_are_the_backbones_own(frames: Frames, tiny: Backbone) -> None:
    maps, cameras = frame_maps(tiny, frames, batch=3)
    assert cameras.size == (48, 64) and not maps.requires_grad
    expected = tiny(tiny.preprocess(frames.images[2])).last.maps()[0]
    assert torch.allclose(maps[2:3], expected, atol=1e-5)
    larger, cameras = frame_maps(tiny, frames, size=(96, 160))
    assert larger.shape[-2:] == (6, 10)
    assert cameras.size == (96, 160) and torch.allclose(
        cameras.K, frames.cameras.resize((96, 160)).K
    )
    with pytest.raises(GridError):
        frame_maps(tiny, frames, size=(50, 64))


NAMES = [f"{place + 10}={name}" for place, name in enumerate(CLASSES)]


def drawn(seed: int = 0) -> Room:
    return room(seed, views=2, size=(96, 128), points=2000)


def write_ply(
    path: Path, table: np.ndarray, form: str = "binary_little_endian", newline: str = "\n"
) -> None:
    words = {"f4": "float", "f8": "double", "u1": "uchar", "u2": "ushort", "i4": "int"}
    head = ["ply", f"format {form} 1.0", "comment made here", f"element vertex {len(table)}"]
    head += [f"property {words[table.dtype[name].str[1:]]} {name}" for name in table.dtype.names]
    head += ["element face 0", "property list uchar int vertex_indices", "end_header", ""]
    body = (
        table.tobytes()
        if form != "ascii"
        else "\n".join(" ".join(map(repr, row.tolist())) for row in table).encode()
    )
    path.write_bytes(newline.join(head).encode() + body)


def table_of(made: Room, rows: torch.Tensor) -> np.ndarray:
    columns = [
        ("x", "f4"),
        ("y", "f4"),
        ("z", "f4"),
        ("red", "u1"),
        ("label", "<u2"),
        ("instance", "i4"),
    ]
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
        Image.fromarray(frames.images[view].permute(1, 2, 0).numpy()).save(
            scene / "color" / f"{view}.png"
        )
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
    words = [
        "--data",
        tree,
        "--labels",
        str(tmp_path / "labels"),
        "--features",
        store,
        "--classes",
        *NAMES,
    ]
    words += [
        "--held-out",
        "scene2",
        "--voxel",
        "0.25",
        "--network",
        "small",
        "--points",
        "1000",
        "--steps",
        "1",
    ]
    words += [
        "--batch",
        "1",
        "--seeds",
        "0",
        "1",
        "--pretrain-steps",
        "1",
        "--out",
        str(tmp_path / "runs"),
    ]
    assert main(["compare", *words]) == 0
    found = json.loads((tmp_path / "runs" / "point_segmentation.json").read_text())["blocks"][
        "geometry"
    ]
    assert {"AP", "AP50", "AP25"} <= found["summary"]["rows"]["inject"].keys()
    paired = found["summary"]["precision_differences"]["inject - 3D only"]["AP50"]
    assert paired["groups"] == 1 and paired["interval"] is None
    assert found["seeds"]["0"]["inject"]["cost"]["test"]["seconds"] > 0
    assert found["seeds"]["0"]["inject"]["test"]["injection"]["1"]["hit_rate"] > 0.1


def write_json_scene(folder: Path, frames: Frames) -> None:
    """Write frames with a ``frames.json`` in place of ScanNet's folders."""
    from scipy.spatial.transform import Rotation

    folder.mkdir(parents=True)
    entries = []
    for view in range(len(frames)):
        pose = frames.cameras.cam_to_world[view].numpy()
        colour = frames.images[view].permute(1, 2, 0).numpy()
        Image.fromarray(colour).save(folder / f"c{view}.png")
        save_depth(folder / f"d{view}.png", (frames.depth[view] * 1000).round().numpy())
        entries.append(
            {
                "color": f"c{view}.png",
                "depth": f"d{view}.png",
                "translation_m": pose[:3, 3].tolist(),
                "quaternion_xyzw": Rotation.from_matrix(pose[:3, :3]).as_quat().tolist(),
            }
        )
    K = frames.cameras.K[0]
    table = {
        "intrinsics": {"fx": K[0, 0], "fy": K[1, 1], "cx": K[0, 2], "cy": K[1, 2]},
        "image_size": frames.cameras.size,
        "depth_unit_m": 0.001,
        "frames": entries,
    }
    (folder / "frames.json").write_text(json.dumps(table, default=float))


def test_scenes_of_a_frames_json_are_compared_with_maps_of_a_store(tmp_path: Path) -> None:
    (tmp_path / "labels").mkdir()
    for seed, name in enumerate(("kitchen", "office")):
        made = drawn(seed)
        write_json_scene(tmp_path / "tree" / name, made.frames)
        table = np.c_[made.points, made.labels + 10]
        np.save(tmp_path / "labels" / f"{name}.npy", table)
    tree, store = str(tmp_path / "tree"), str(tmp_path / "store")
    assert main(["extract", tree, "--out", store, "--backbone", "dinoneck_tiny"]) == 0
    plan = Plan(
        data=tree,
        labels=str(tmp_path / "labels"),
        classes=tuple(NAMES),
        held_out=("office",),
        features=store,
        points=1000,
    )
    rooms = rooms_of(plan, images=True)
    assert (len(rooms.train), len(rooms.test), rooms.channels) == (1, 1, 64)
    assert 0.2 < rooms.test[0].links.coverage < 1
    expected = FeatureStore.open(store)["office/c1"].maps()[0][0].half()
    assert torch.equal(rooms.test[0].maps[1], expected)


def test_files_of_every_form_hold_the_same_cloud(tmp_path: Path) -> None:
    made, rows = drawn(), torch.arange(50)
    table = table_of(made, rows)
    kinds = [(name, table.dtype[name].newbyteorder(">")) for name in reversed(table.dtype.names)]
    big = np.array([row[::-1] for row in table.tolist()], kinds)
    write_ply(tmp_path / "binary.ply", table)
    write_ply(tmp_path / "big.ply", big, "binary_big_endian", "\r\n")  # no file has to begin with x
    write_ply(tmp_path / "text.ply", table, "ascii")
    np.save(
        tmp_path / "array.npy",
        np.c_[made.points[rows].float(), made.labels[rows] + 10, made.labels[rows]],
    )
    for path in tmp_path.iterdir():
        cloud = read_cloud(path)
        assert torch.allclose(cloud.points, made.points[rows], atol=1e-6), path
        assert torch.equal(cloud.labels, made.labels[rows] + 10) and torch.equal(
            cloud.instances, made.labels[rows]
        )
    with pytest.raises(DataError, match="scene0000_00"):
        check_names(["scene0000_01"], ["scene0000_00", "scene0000_01", "office"])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([[0, 0, 0, 1], [0, math.nan, 0, 1]], "1 of 2 points have NaN or infinite coordinates"),
        (np.zeros((0, 4)), "holds no points"),
        ([[0, 0, 0, 1.5]], "labels are not whole numbers"),
        ([[0, 0, 0]], r"expected \(N, 4 or 5\)"),
    ],
)
def test_a_cloud_that_cannot_be_used_is_named_with_its_cause(
    rows: Any, message: str, tmp_path: Path
) -> None:
    np.save(tmp_path / "kitchen.npy", np.array(rows, float))
    with pytest.raises(DataError, match=message):
        read_cloud(tmp_path / "kitchen.npy")


def test_a_ply_without_labels_names_what_it_has(tmp_path: Path) -> None:
    table = np.zeros(3, [("x", "f4"), ("y", "f4"), ("z", "f4"), ("red", "u1")])
    write_ply(tmp_path / "kitchen.ply", table)
    with pytest.raises(DataError, match="kitchen.ply has red, x, y, z; expected x, y, z and label"):
        read_cloud(tmp_path / "kitchen.ply")


PLY_HEAD = ["ply", "format ascii 1.0", "element vertex 1", "property float x", "end_header", "0"]
BROKEN_PLYS = {
    "another first line": ([0, "plz"], "first line is not 'ply'"),
    "no end": ([4, "end"], "no line end_header"),
    "no format": ([1, "comment"], "its format is ''; expected ascii, binary_little_endian"),
    "an unknown format": ([1, "format binary 1.0"], "its format is 'binary'"),
    "faces first": ([2, "element face 1"], "first element is vertex"),
    "more points than there are": ([2, "element vertex 3"], "announces 3 points and holds 1"),
    "an unknown type": ([3, "property half x"], "property x has the type 'half'"),
    "a list of each point": (
        [3, "property list uchar int x"],
        "property x of the points is a list",
    ),
}


@pytest.mark.parametrize("name", BROKEN_PLYS)
def test_a_ply_that_cannot_be_read_is_named_with_its_cause(name: str, tmp_path: Path) -> None:
    (place, line), message = BROKEN_PLYS[name]
    lines = list(PLY_HEAD)
    lines[place] = line
    (tmp_path / "a.ply").write_text("\n".join(lines))
    with pytest.raises(DataError, match=f"a.ply cannot be read as a cloud: .*{message}"):
        read_cloud(tmp_path / "a.ply")
