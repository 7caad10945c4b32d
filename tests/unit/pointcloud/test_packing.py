"""Verb pack: info files as ESAM writes them gain the paths of their features, in order, and every path is checked."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from examples.pointcloud import extraction, layout, packing
from examples.pointcloud.frame_tree import MV_EVERY, SV_EVERY, frames_of
from tests.unit.pointcloud.frame_samples import run_verb, write_frames

from dinoneck import DataError

META = {"categories": {"wall": 0}, "dataset": "scannet200_sv", "info_version": "1.1"}
NUMBERS = {"scene0000_00": range(0, 440, 40), "scene0001_01": [0, 40, 200]}


def sv_entry(scene: str, number: int) -> dict[str, Any]:
    name = f"{scene}_{number}.bin"
    return {
        "lidar_points": {"num_pts_feats": 6, "lidar_path": name},
        "instances": [],
        "pts_semantic_mask_path": name,
        "super_pts_path": name,
        "img_path": f"2D/{scene}/color/{number}.png",
        "pose": np.eye(4) * number,
        "axis_align_matrix": np.eye(4).tolist(),
    }


def mv_entry(scene: str, numbers: list[int]) -> dict[str, Any]:
    return {
        "point_cloud": {"num_features": 6, "lidar_idx": scene},
        "pts_paths": [f"points/{scene}/{number}.bin" for number in numbers],
        "img_paths": [f"2D/{scene}/color/{number}.png" for number in numbers],
        "poses": [np.eye(4) * number for number in numbers],
        "axis_align_matrix": np.eye(4).tolist(),
    }


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set with a ``clip_feat`` folder of every 40th frame, made by the verbs before."""
    root = write_frames(tmp_path_factory.mktemp("data"), NUMBERS)
    store = root.parent / "store"
    assert run_verb(extraction, root, "--out", store, "--every", MV_EVERY, "--backbone", "dinoneck_tiny") == 0
    assert run_verb(layout, "--to", store, root / "clip_feat") == 0
    return root


def entries(data: Path, kind: str) -> list[dict[str, Any]]:
    frames = frames_of(data, SV_EVERY if kind == "sv" else MV_EVERY)
    if kind == "sv":
        return [sv_entry(frame.scene, frame.number) for frame in frames]
    scenes = dict.fromkeys(frame.scene for frame in frames)
    return [mv_entry(scene, [frame.number for frame in frames if frame.scene == scene]) for scene in scenes]


def write_infos(data: Path, name: str, content: object, protocol: int = 2) -> Path:
    path = data / f"{name}.pkl"
    path.write_bytes(pickle.dumps(content, protocol))
    return path


def packed(data: Path, name: str, content: object, kind: str, *more: object) -> dict[str, Any]:
    infos = write_infos(data, name, content)
    assert run_verb(packing, infos, "--features", data / "clip_feat", "--kind", kind, *more) == 0
    loaded = pickle.loads((data / f"{name}_clip.pkl").read_bytes())
    assert isinstance(loaded, dict)
    return loaded


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_sv_entries_name_the_file_of_their_frame(data: Path, protocol: int, capsys: pytest.CaptureFixture[str]) -> None:
    own = entries(data, "sv")
    infos = write_infos(data, f"sv{protocol}", {"metainfo": META, "data_list": own}, protocol)
    before = infos.read_bytes()
    capsys.readouterr()
    assert run_verb(packing, infos, "--features", data / "clip_feat", "--kind", "sv") == 0
    target = data / f"sv{protocol}_clip.pkl"
    line = f"5 entries with 5 feature files (64x3x4) written to {target}"
    assert line in capsys.readouterr().out
    found = pickle.loads(target.read_bytes())
    assert infos.read_bytes() == before
    assert found["metainfo"] == META
    assert [entry.pop("clip_feat_path") for entry in found["data_list"]] == [
        "clip_feat/scene0000_00/color/0.pt", "clip_feat/scene0000_00/color/200.pt",
        "clip_feat/scene0000_00/color/400.pt", "clip_feat/scene0001_01/color/0.pt",
        "clip_feat/scene0001_01/color/200.pt"]  # fmt: skip
    for new, old in zip(found["data_list"], own, strict=True):
        assert np.array_equal(new.pop("pose"), old["pose"])
        assert new == {key: value for key, value in old.items() if key != "pose"}
    assert torch.load(data / "clip_feat/scene0000_00/color/200.pt", weights_only=True).shape == (64, 3, 4)


def test_mv_entries_name_files_in_the_order_of_their_images(data: Path) -> None:
    own = [mv_entry("scene0000_00", [400, 0, 80]), mv_entry("scene0001_01", [40])]
    found = packed(data, "mv", {"metainfo": META, "data_list": own}, "mv")
    assert [entry["clip_feat_paths"] for entry in found["data_list"]] == [
        [f"clip_feat/scene0000_00/color/{number}.pt" for number in (400, 0, 80)],
        ["clip_feat/scene0001_01/color/40.pt"],
    ]
    assert "clip_feat_path" not in found["data_list"][0]
    whole = packed(data, "mv-all", {"metainfo": META, "data_list": entries(data, "mv")}, "mv")
    assert [len(entry["clip_feat_paths"]) for entry in whole["data_list"]] == [11, 3]


def test_a_hostile_file_is_named_and_nothing_runs(tmp_path: Path) -> None:
    (tmp_path / "x.pkl").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(DataError, match=r"x.pkl is refused at byte 0: it names 'os.system'"):
        run_verb(packing, tmp_path / "x.pkl", "--features", tmp_path / "clip_feat", "--kind", "sv")
