"""What the point-cloud example refuses: lists of frames, plans, features, info files and weights."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from examples.pointcloud.comparison import check_options
from examples.pointcloud.extraction import check_free, step_of
from examples.pointcloud.feature_files import check_aspect, read_map, read_maps, write_map
from examples.pointcloud.frames import Frames, read_frames, scene_folders
from examples.pointcloud.minkowski_weights import file_channels
from examples.pointcloud.packing import add_features, check_files
from examples.pointcloud.plain_pickle import load_plain
from examples.pointcloud.scans import check_names
from examples.pointcloud.training_plan import Plan, check_plan

from dinoneck import CheckpointError, ConfigError, DataError
from tests.refusals import Row
from tests.unit.pointcloud.test_frames import write_json


def frames_after(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], Frames]:
    """Reads a scene whose ``frames.json`` was changed."""
    return lambda folder: read_frames(write_json(folder, change))


def entry_with(**fields: Any) -> Callable[[Path], Any]:
    """Packs an info file of one entry."""

    def pack(folder: Path) -> Any:
        return add_features({"data_list": [fields]}, folder, folder / "a.pkl")

    return pack


def saved(content: Any, read: Callable[[Path], Any]) -> Callable[[Path], Any]:
    """Reads what ``torch.save`` wrote."""

    def call(folder: Path) -> Any:
        torch.save(content, folder / "a.pt")
        return read(folder / "a.pt")

    return call


def pickled(content: Any) -> Callable[[Path], Any]:
    def call(folder: Path) -> Any:
        (folder / "a.pkl").write_bytes(pickle.dumps(content))
        return load_plain(folder / "a.pkl")

    return call


def maps_of_two_shapes(folder: Path) -> None:
    write_map(folder, "s/color/0", torch.zeros(2, 3, 3))
    write_map(folder, "s/color/1", torch.zeros(2, 3, 4))
    read_maps(folder, ["s/color/0", "s/color/1"])


def widths_of_two_backbones(folder: Path) -> None:
    write_map(folder, "s/color/0", torch.zeros(2, 3, 3))
    write_map(folder, "s/color/1", torch.zeros(5, 3, 3))
    names = ("s/color/0", "s/color/1")
    check_files({folder / f"{name}.pt": folder / f"{name}.jpg" for name in names})


def features_that_are_there(folder: Path) -> None:
    write_map(folder, "s/color/0", torch.zeros(2, 3, 3))
    check_free([folder / "s" / "color" / "0.jpg"], folder, folder)


def planned(**options: Any) -> Callable[[], None]:
    return lambda: check_plan(Plan(**options))


ROWS: list[Row] = [
    # frames.json
    (frames_after(lambda t: t.update(frames=[])), DataError, ("frames is []", "a list")),
    (frames_after(lambda t: t["frames"][1].pop("depth")), DataError, ("frame 1", "'depth'")),
    (frames_after(lambda t: t.update(image_size=48)), DataError, "image_size is 48"),
    (frames_after(lambda t: t["intrinsics"].update(fx="a")), DataError, ("fx", "'a'")),
    (frames_after(lambda t: t.update(depth_unit_m=0)), DataError, "depth_unit_m is 0"),
    (frames_after(lambda t: t.update(pose="world to camera")), DataError, "inverse of each"),
    (frames_after(lambda t: t.update(axes="OpenGL")), DataError, "180 degrees about its x axis"),
    (frames_after(lambda t: t["frames"][0].update(color="../a.png")), DataError, "../a.png"),
    (frames_after(lambda t: t["frames"][0].update(color="c1.png")), DataError, "frames 0 and 1"),
    (frames_after(lambda t: t.update(image_size=[64, 48])), DataError, ("48x64", "64x48")),
    # trees of scenes
    (scene_folders, DataError, "holds no scenes"),
    (lambda: check_names(["a"], ["b", "c"]), DataError, ("--held-out names a", "b, c")),
    (lambda: check_names(["a", "a"], ["a", "b"]), DataError, "a a"),
    (lambda: check_names(["a"], ["a"]), DataError, "1 of 1 scene;"),
    # sampling and plans
    (lambda: step_of(2, "single-view"), ConfigError, ("200th", "--every is 2")),
    (lambda: step_of(0, None), ConfigError, "--every is 0"),
    (planned(steps=-1), ConfigError, "--steps is -1"),
    (planned(batch=0), ConfigError, "--batch is 0"),
    (planned(lr=0.0), ConfigError, "--lr is 0.0"),
    (planned(features="maps"), ConfigError, "--features belongs to scans"),
    (planned(data="scans"), ConfigError, "--data needs --labels and --classes"),
    (lambda: Plan(classes=("1=wall", "door")).ids_and_names, ConfigError, ("'door'", "1=wall")),
    (
        lambda: Plan(classes=("1=wall", "1=door")).ids_and_names,
        ConfigError,
        ("names 1 twice", "'wall'", "'door'"),
    ),
    (lambda: check_options(Plan(), [0], []), ConfigError, ("names 1;", "2 to 10")),
    (lambda: check_options(Plan(), [0, 1, 0], []), ConfigError, "names 0 more than once"),
    # features
    (saved({"a": 1.0}, read_map), DataError, ("dict", "(C, rows, cols)")),
    (saved(torch.full((1, 1, 1), 7e4), read_map), DataError, ("70000", "65504")),
    (maps_of_two_shapes, DataError, ("(2, 3, 3)", "(2, 3, 4)")),
    (widths_of_two_backbones, DataError, ("has 2", "has 5", "one backbone")),
    (
        lambda: check_aspect(Path("a.pt"), (37, 37), (480, 640)),
        DataError,
        ("a.pt has 37x37 cells", "480x640 px"),
    ),
    (features_that_are_there, DataError, ("0.pt", "another --out")),
    # info files
    (pickled({1, 2}), DataError, ("EMPTY_SET", "nothing of this file was run")),
    (pickled(Path("a")), DataError, "pathlib"),
    (entry_with(a=1), DataError, ("entry 0", "img_path")),
    (entry_with(img_path="a.jpg"), DataError, "'a.jpg'"),
    (entry_with(img_paths=["s/color/0.jpg"], poses=3), DataError, "poses is 3"),
    (entry_with(img_paths=["s/color/0.jpg"], poses=[]), DataError, "1 image and 0 poses"),
    # weights
    (saved({"a": torch.zeros(1)}, file_channels), ConfigError, "holds no Res16UNet"),
    (
        saved({"conv0p1s1.kernel": torch.zeros(125, 4)}, file_channels),
        ConfigError,
        ("(125, 4)", "3 axes"),
    ),
    (
        saved(
            dict.fromkeys(("a.conv0p1s1.kernel", "b.conv0p1s1.kernel"), torch.zeros(1)),
            file_channels,
        ),
        CheckpointError,
        "holds 2 networks",
    ),
]
