"""The check tells the truth about frames that are right, and finds each thing that is made wrong."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from examples.pointcloud import checking
from examples.pointcloud.features import frame_maps
from examples.pointcloud.frames import Frames, cloud_of
from examples.pointcloud.reprojection import pair_error
from tests.conftest import DATA
from tests.unit.pointcloud.analytic_scene import bare_room
from tests.unit.pointcloud.frame_samples import run_verb

from dinoneck import Backbone, DataError
from dinoneck.points import VoxelGrid
from dinoneck.points.camera_check import read_as
from dinoneck.points.keys import at_stride

SMALL = ("--plan", "small", "--points", 3000, "--voxel", 0.05)


@pytest.fixture
def room() -> Frames:
    return bare_room((48, 64), views=3)


def checked(
    room: Frames, monkeypatch: pytest.MonkeyPatch, folder: Path, *options: object, code: int = 0
) -> dict[str, Any]:
    """Run the verb on a scene; return what it wrote."""
    monkeypatch.setattr(checking, "scenes", lambda options: iter([("scene", room)]))
    found = run_verb(checking, "--frames", len(room), *SMALL, "--json", folder / "report.json", *options)
    report = json.loads((folder / "report.json").read_text())
    assert found == code, report["problems"]
    return dict(report)


def test_a_right_scene_passes_and_its_numbers_are_true(
    room: Frames, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = checked(room, monkeypatch, tmp_path, "--points", 0)
    out = capsys.readouterr().out
    assert "everything as planned" in out
    assert "the poses are read the right way" in out
    assert len(out.splitlines()) < 20 * len(room) + 12
    frame = report["frames"][1]
    own, *others = frame["views"]
    assert [own[key] for key in ("projected", "front", "in_bounds", "known", "agree")] == [1.0] * 5
    for view in others:
        expected = pair_error(room, 1, room.names.index(view["name"]))
        assert view["in_bounds"] == pytest.approx(expected.in_bounds)
        assert view["agree"] == pytest.approx(expected.agree)
        assert view["projected"] == pytest.approx(expected.links / frame["points"])
        assert view["grey_levels"] == pytest.approx(expected.grey_levels, abs=1e-4)
    assert frame["points"] == 48 * 64
    assert frame["fusion_2d"] + frame["fusion_3d"] == pytest.approx(1)
    points = cloud_of(room, 1)[0]
    corner = (points.amin(0) / 0.8).floor() * 0.8
    keys = VoxelGrid.from_points(points, 0.05, origin=corner.tolist()).keys
    for block in frame["blocks"]:
        stride, up, skip, leaves = block["plan"]
        assert block["voxels"] == len(torch.unique_consecutive(at_stride(keys, stride)))
        assert (block["enters"], block["leaves"], block["bad"]) == (up + skip, leaves, 0)
        assert (block["hit_rate"], block["absent"]) == ((1.0, 0.0) if skip else (None, None))
    assert set(frame["bad"]) == {"maps", "lifted", "pyramid", "blocks", "output", "fused"}
    assert {"image", "lift", "pyramid", "network", "fusion", "all"} == set(frame["seconds"])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_bad_value_in_a_map_is_followed(
    room: Frames, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, value: float, capsys: pytest.CaptureFixture[str]
) -> None:
    def spoiled(backbone: Backbone, frames: Frames, size: Any) -> Any:
        maps, cameras = frame_maps(backbone, frames, size)
        maps = maps.clone()
        maps[1, 0, 1, 2] = value
        return maps, cameras

    monkeypatch.setattr(checking, "frame_maps", spoiled)
    report = checked(room, monkeypatch, tmp_path, code=1)
    first, second, third = (frame["bad"] for frame in report["frames"])
    assert not any(first.values())
    assert not any(third.values())
    assert second["maps"] == 1
    assert min(second.values()) > 0  # through every stage to the end
    assert any(problem.startswith("NaN or Inf: 1 values in maps") for problem in report["problems"])
    assert "WRONG NaN or Inf" in capsys.readouterr().out


@pytest.mark.parametrize("reading", ["inverse", "opengl", "transposed"])
def test_wrong_poses_are_found(room: Frames, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, reading: Any) -> None:
    wrong = replace(room, cameras=read_as(room.cameras, reading))
    report = checked(wrong, monkeypatch, tmp_path, code=1)
    [problem] = report["problems"]
    assert problem.startswith("cameras: scene:")
    assert report["cameras"]["scene"]["scores"][reading] > 0.8


def test_a_wrong_scale_of_depth_fails_and_is_named(
    room: Frames, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checked(room, monkeypatch, tmp_path)
    assert "everything as planned" in capsys.readouterr().out
    report = checked(replace(room, depth=room.depth * 5), monkeypatch, tmp_path, code=1)
    [problem] = report["problems"]
    verdict = report["cameras"]["scene"]
    assert not verdict["fits"] and verdict["share"] < 0.5 < verdict["reached"]
    assert verdict["factor"] == ["depth", pytest.approx(0.2, rel=0.06)]
    assert f"depth x {verdict['factor'][1]:.3g} gives {verdict['reached']:.2f}" in problem


def test_depth_in_millimetres_is_refused(room: Frames, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="millimetres"):
        checked(replace(room, depth=room.depth * 1000), monkeypatch, tmp_path)


def test_rooms_need_no_data(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_verb(checking, "--frames", 2, *SMALL) == 0
    out = capsys.readouterr().out
    assert "room 0: room0-view1" in out
    assert "2 frames" in out


def test_the_real_room_is_as_planned(tmp_path: Path) -> None:
    folder = DATA / "rgbd_room"
    if not folder.is_dir():
        pytest.skip(f"the RGB-D frames are not in {folder}; set DINONECK_DATA to the folder that holds rgbd_room")
    report = tmp_path / "report.json"
    assert run_verb(checking, "--data", folder, "--frames", 3, *SMALL, "--json", report) == 0
    frames = json.loads(report.read_text())["frames"]
    agree = {(frame["name"], view["name"]): view["agree"] for frame in frames for view in frame["views"][1:]}
    assert agree["color_1", "color_2"] == pytest.approx(0.40, abs=0.03)
    assert agree["color_2", "color_3"] == pytest.approx(0.65, abs=0.03)
    assert all(0.3 < share < 0.85 for share in agree.values())
