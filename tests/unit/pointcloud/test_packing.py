"""Verb pack: info files as ESAM writes them gain the paths of their features, in order, and every path is checked."""

from __future__ import annotations

import pickle
import zipfile
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


def test_features_elsewhere_need_absolute_paths(data: Path, tmp_path: Path) -> None:
    infos = write_infos(tmp_path, "sv", {"metainfo": META, "data_list": entries(data, "sv")})
    with pytest.raises(DataError, match="is not below the info file's folder"):
        run_verb(packing, infos, "--features", data / "clip_feat", "--kind", "sv")
    assert run_verb(packing, infos, "--features", data / "clip_feat", "--kind", "sv", "--absolute") == 0
    found = pickle.loads((tmp_path / "sv_clip.pkl").read_bytes())
    assert found["data_list"][0]["clip_feat_path"] == (data / "clip_feat/scene0000_00/color/0.pt").as_posix()


def test_a_file_of_the_new_name_is_replaced_only_by_force(data: Path) -> None:
    content = {"metainfo": META, "data_list": entries(data, "sv")}
    packed(data, "again", content, "sv")
    target = data / "again_clip.pkl"
    first = target.read_bytes()
    target.write_bytes(b"mine")
    with pytest.raises(DataError, match=r"again_clip.pkl is there already; --force replaces it"):
        packed(data, "again", content, "sv")
    assert target.read_bytes() == b"mine"
    packed(data, "again", content, "sv", "--force")
    assert target.read_bytes() == first


def test_all_missing_and_unusable_files_are_told_at_once(tmp_path: Path) -> None:
    folder = tmp_path / "clip_feat/s/color"
    folder.mkdir(parents=True)
    for number in range(4):
        torch.save(torch.zeros(8, 3, 4).half(), folder / f"{number}.pt")
    torch.save(torch.zeros(9, 3, 4).half(), folder / "10.pt")
    torch.save(torch.zeros(8, 12).half(), folder / "11.pt")
    torch.save(torch.zeros(8, 3, 4, dtype=torch.int32), folder / "12.pt")
    torch.save({"feat": torch.zeros(8, 3, 4)}, folder / "13.pt")
    torch.save(torch.zeros(8, 3, 4).half(), folder / "14.pt")
    whole = (folder / "14.pt").read_bytes()
    (folder / "14.pt").write_bytes(whole[: len(whole) - 20])
    (folder / "15.pt").write_bytes(pickle.dumps(print))
    torch.save(torch.zeros(8, 3, 4), folder / "16.pt", _use_new_zipfile_serialization=False)
    with zipfile.ZipFile(folder / "17.pt", "w") as file:
        file.writestr("x", "y")
    numbers = [*range(4), *range(10, 18), *range(100, 108)]
    infos = write_infos(tmp_path, "sv", {"metainfo": META, "data_list": [sv_entry("s", number) for number in numbers]})
    with pytest.raises(DataError) as caught:
        run_verb(packing, infos, "--features", tmp_path / "clip_feat", "--kind", "sv")
    message = str(caught.value)
    assert "8 of 20 feature files are missing" in message
    assert "100.pt" in message and "105.pt" not in message
    assert "7 of 20 feature files cannot be used" in message
    assert "9 channels, most have 8" not in message  # counted, and beyond the first few
    assert "torch.int32 (8, 3, 4); expected a floating tensor (C, rows, cols)" in message
    assert not (tmp_path / "sv_clip.pkl").exists()
    for number in numbers:
        sound = number in (*range(4), 16)
        if not sound:
            (folder / f"{number}.pt").unlink(missing_ok=True)
            torch.save(torch.zeros(8, 4, 4) if number == 100 else torch.zeros(8, 3, 4), folder / f"{number}.pt")
    assert run_verb(packing, infos, "--features", tmp_path / "clip_feat", "--kind", "sv") == 0
    torch.save(torch.zeros(9, 3, 4).half(), folder / "10.pt")
    with pytest.raises(DataError, match=r"1 of 20 feature files cannot be used: .*10.pt \(9 channels, most have 8\)"):
        run_verb(packing, infos, "--features", tmp_path / "clip_feat", "--kind", "sv", "--force")


WITHOUT = {key: value for key, value in sv_entry("s", 0).items() if key != "img_path"}
MV = mv_entry("s", [0, 40])


@pytest.mark.parametrize(
    ("kind", "entry", "message"),
    [
        ("sv", WITHOUT, r"entry 1 names no frame: 'img_path' is None; it has lidar_points"),
        ("sv", MV, r"entry 1 names no frame: .* It has 'img_paths': is --kind mv meant\?"),
        ("mv", sv_entry("s", 0), r"It has 'img_path': is --kind sv meant\?"),
        ("mv", {**MV, "img_paths": []}, r"entry 1 names no frame: 'img_paths' is \[\]"),
        ("sv", 7, "entry 1 is int; expected a dict"),
        ("sv", {**sv_entry("s", 0), "img_path": "2D/s/color/first.jpg"}, r"image '2D/s/color/first.jpg'; expected"),
        ("sv", {**sv_entry("s", 0), "img_path": "2D/s/depth/0.png"}, "expected .../<scene>/color/<number>.jpg"),
        ("sv", {**sv_entry("s", 0), "img_path": "../color/0.png"}, "expected .../<scene>/color"),
        ("sv", {**sv_entry("s", 0), "img_path": ["2D/s/color/0.png"]}, "expected .../<scene>/color"),
        ("sv", {**sv_entry("s", 0), "img_path": "2D/s/color/40.png"}, r"image of s/color/40 with the points of s_0"),
        ("sv", {**sv_entry("s", 0), "img_path": "2D/t/color/0.png"}, r"image of t/color/0 with the points of s_0"),
        ("sv", {**sv_entry("s", 0), "clip_feat_path": "x"}, r"names features already \(clip_feat_path\)"),
        ("mv", {**MV, "pts_paths": MV["pts_paths"][::-1]}, "image of s/color/0 with the points of points/s/40"),
        ("mv", {**MV, "pts_paths": MV["pts_paths"][:1]}, "has 2 images and 1 point files"),
        ("mv", {**MV, "pts_paths": [3, 4]}, "names the points"),
        ("mv", {**MV, "poses": MV["poses"][:1]}, "has 2 images and poses that are not as many"),
    ],
)
def test_entries_that_do_not_name_their_frames(tmp_path: Path, kind: str, entry: Any, message: str) -> None:
    good = sv_entry("s", 0) if kind == "sv" else mv_entry("s", [0])
    infos = write_infos(tmp_path, "x", {"metainfo": META, "data_list": [good, entry]})
    with pytest.raises(DataError, match=message):
        run_verb(packing, infos, "--features", tmp_path / "clip_feat", "--kind", kind)
    assert [path.name for path in tmp_path.iterdir()] == ["x.pkl"]


@pytest.mark.parametrize(
    ("content", "message"),
    [([sv_entry("s", 0)], "holds list; expected {'metainfo'"), ({"infos": []}, r"a dict with \['infos'\]"),
     ({"metainfo": META, "data_list": []}, "expected {'metainfo'"), ({"data_list": 3}, "expected {'metainfo'")],
)  # fmt: skip
def test_files_of_another_form(tmp_path: Path, content: object, message: str) -> None:
    infos = write_infos(tmp_path, "x", content)
    with pytest.raises(DataError, match=message):
        run_verb(packing, infos, "--features", tmp_path / "clip_feat", "--kind", "sv")


def test_a_hostile_file_is_named_and_nothing_runs(tmp_path: Path) -> None:
    (tmp_path / "x.pkl").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(DataError, match=r"x.pkl is refused at byte 0: it names 'os.system'"):
        run_verb(packing, tmp_path / "x.pkl", "--features", tmp_path / "clip_feat", "--kind", "sv")
