"""The check tells the truth about frames that are right, and finds each thing that is made wrong."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from examples.pointcloud import checking, frame_check
from examples.pointcloud.features import frame_maps
from examples.pointcloud.frame_check import Chain, check_frame
from examples.pointcloud.frames import Frames, cloud_of
from examples.pointcloud.network_check import Network, network_of, plan_of
from examples.pointcloud.reprojection import pair_error
from examples.pointcloud.res16unet import Res16UNet
from examples.pointcloud.segmentation import NETWORKS, build, save_weights
from PIL import Image
from tests.conftest import DATA
from tests.unit.pointcloud.analytic_scene import bare_room
from tests.unit.pointcloud.frame_samples import run_verb

from dinoneck import Backbone, CheckpointError, ConfigError, DataError, FeatureStore
from dinoneck.points import PointProjector, SparsePyramid, VoxelGrid
from dinoneck.points.camera_check import read_as
from dinoneck.points.keys import at_stride

SMALL = ("--plan", "small", "--points", 3000, "--voxel", 0.05)
SMALL_PLAN = plan_of(NETWORKS["small"]["planes"], NETWORKS["small"]["init_dim"])


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


def test_neighbours_alone_leave_voxels_without_features(
    room: Frames, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    report = checked(room, monkeypatch, tmp_path, "--views", 1, "--without-own", "--points", 0)
    for view, frame in enumerate(report["frames"]):
        others = [(1, 0, 1)[view]]
        assert frame["features_from"] == [room.names[other] for other in others]
        points = cloud_of(room, view)[0]
        links = PointProjector()(points, room.cameras[others], room.depth[others])
        assert frame["coverage"] == pytest.approx(links.coverage)
        assert 0.3 < links.coverage < 1
        grid = VoxelGrid.from_points(points, 0.05, origin=((points.amin(0) / 0.8).floor() * 0.8).tolist())
        seen = torch.zeros(len(grid), dtype=torch.bool).index_fill_(0, grid.inverse[links.n_views > 0], True)
        for block in frame["blocks"]:
            if block["plan"][2]:
                cells, row = torch.unique(at_stride(grid.keys, block["plan"][0]), return_inverse=True)
                hit = torch.zeros(len(cells), dtype=torch.bool).index_fill_(0, row[seen], True)
                assert block["hit_rate"] == pytest.approx(float(hit.float().mean()))
    with pytest.raises(ConfigError, match="asks for 3 other frames; 3 of scene were read"):
        checked(room, monkeypatch, tmp_path, "--views", 4)


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


def test_a_bad_weight_is_found_in_the_blocks(room: Frames, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model = build("3d", network="small", in_channels=4, classes=5, c_dino=64)
    with torch.no_grad():
        model.unet.get_submodule("block6.0.norm").weight[0] = torch.nan  # type: ignore[index, operator]
    save_weights(model, tmp_path / "weights.safetensors")
    report = checked(room, monkeypatch, tmp_path, "--network", tmp_path / "weights.safetensors", code=1)
    for frame in report["frames"]:
        assert frame["bad"]["maps"] == frame["bad"]["lifted"] == frame["bad"]["pyramid"] == 0
        bad = {block["name"]: block["bad"] for block in frame["blocks"]}
        assert bad["block5"] == 0 < bad["block6"]
        last = frame["blocks"][-1]
        assert last["bad"] == last["voxels"] * (32 + 32)  # the upsampled half of what it gets, and all that it gives


def saved(path: Path, **widths: Any) -> Path:
    net = Res16UNet(3, **{**NETWORKS["small"], **widths})
    torch.save({f"unet.{key}": value for key, value in net.state_dict().items()}, path)
    return path


@pytest.mark.parametrize(
    ("planes", "expected"),
    [
        # fewer channels than are injected: the injection itself refuses
        ((16, 32, 48, 64, 16, 48, 32, 32), "block5 (stride 8) receives 64, planned 64 + 48"),
        # up and skip changed places: what the block receives is as wide as planned
        ((16, 32, 64, 64, 48, 48, 32, 32), "block3 (stride 8) gives 64, planned 48"),
        # the last block
        ((16, 32, 48, 64, 64, 48, 32, 24), "block8 (stride 1) gives 24, planned 32"),
    ],
)
def test_a_network_of_other_widths_is_found(
    room: Frames, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, planes: tuple[int, ...], expected: str
) -> None:
    weights = saved(tmp_path / "other.pth", planes=planes)
    report = checked(room, monkeypatch, tmp_path, "--network", weights, code=1)
    assert f"channels: {expected}" in report["problems"]
    assert not any(sum(frame["bad"].values()) for frame in report["frames"])


def test_a_stride_left_out_is_found(room: Frames, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(frame_check, "STRIDES", (1, 2, 4, 16))
    report = checked(room, monkeypatch, tmp_path, code=1)
    assert "stride: the pyramid has no level 8, planned for block5; it has 1, 2, 4, 16" in report["problems"]
    assert report["frames"][0]["blocks"][4]["enters"] == 112  # the rest is measured all the same


def chain_of(pyramid: SparsePyramid, plan: Any = SMALL_PLAN) -> Chain:
    torch.manual_seed(0)
    network = Network.build(plan, Res16UNet(3, **NETWORKS["small"]), 64)
    return Chain(network, 0.05, torch.device("cpu"), pyramid)


def report_of(chain: Chain, room: Frames, tiny: Backbone) -> Any:
    maps, cameras = frame_maps(tiny, room)
    return check_frame(chain, "scene", room, maps, cameras, 0, [1], [0], points=0)


def test_a_block_at_another_stride_is_found(room: Frames, tiny: Backbone) -> None:
    plan = SMALL_PLAN | {"block4": SMALL_PLAN["block4"]._replace(stride=32)}
    [problem] = report_of(chain_of(SparsePyramid((1, 2, 4, 8, 16)), plan), room, tiny).problems
    assert problem.startswith("stride: block4 works on")
    assert "as many as at stride 16; planned: the" in problem
    missing = SMALL_PLAN | {"block9": SMALL_PLAN["block4"]}
    report = report_of(chain_of(SparsePyramid((1, 2, 4, 8, 16)), missing), room, tiny).problems
    assert report == ["Res16UNet has no block9, planned at stride 16"]


def test_frames_without_depth_are_expected(
    room: Frames, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    room.depth[1] = 0
    report = checked(room, monkeypatch, tmp_path)
    out = capsys.readouterr().out
    assert "no pixel has known depth" in out
    assert "3 frames, 1 without depth" in out
    assert [frame["points"] for frame in report["frames"]] == [3000, 0, 3000]
    assert report["frames"][0]["views"][1]["known"] == 0
    room.depth[:] = 0
    report = checked(room, monkeypatch, tmp_path, code=1)
    assert report["problems"] == ["no frame has a pixel of known depth: nothing was checked"]


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


def test_poses_that_fit_in_no_reading_are_a_problem(
    room: Frames, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    poses = room.cameras.cam_to_world.clone()
    poses[:, :3, 3] += torch.rand(len(poses), 3, generator=torch.Generator().manual_seed(0)).double() * 8
    lost = replace(room, cameras=replace(room.cameras, cam_to_world=poses))
    [problem] = checked(lost, monkeypatch, tmp_path, code=1)["problems"]
    assert "no reading fits" in problem


@pytest.mark.parametrize("target", ["up", "skip"])
def test_a_trained_model_is_checked_with_its_own_parts(target: Any, tmp_path: Path) -> None:
    model = build("both", network="small", in_channels=7, classes=5, c_dino=64, target=target)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    state = model.weights()
    net = network_of(state, "torch")
    network = Network.build(SMALL_PLAN, net, 64, state)
    assert network.injection.target == target
    assert torch.equal(network.fusion.project.weight, state["fusion.project.weight"])
    assert torch.equal(network.injection.state_dict()["levels.4.proj.weight"], state["injection.levels.4.proj.weight"])
    assert net.planes == NETWORKS["small"]["planes"]
    assert (net.in_channels, net.init_dim) == (7, 16)
    with pytest.raises(CheckpointError, match=r"of features with 32 channels: another --plan or --backbone"):
        Network.build(SMALL_PLAN, net, 32, state)
    with pytest.raises(CheckpointError, match="no Res16UNet's"):
        network_of({"weight": torch.zeros(3)}, "torch")


def test_rooms_need_no_data(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_verb(checking, "--frames", 2, *SMALL) == 0
    out = capsys.readouterr().out
    assert "room 0: room0-view1" in out
    assert "2 frames" in out


def test_features_may_come_from_a_store(
    room: Frames, tiny: Backbone, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "2D" / "scene" / "color"
    folder.mkdir(parents=True)
    for view, image in enumerate(room.images):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{view}.png")
    store = FeatureStore.create(tmp_path / "store", backbone=tiny, image_size=(48, 64), resize="stretch")
    store.extract(tmp_path / "2D")
    named = replace(room, names=("scene/color/0", "scene/color/1", "scene/color/2"))
    stored = checked(named, monkeypatch, tmp_path, "--features", tmp_path / "store")
    live = checked(named, monkeypatch, tmp_path)
    for one, other in zip(stored["frames"], live["frames"], strict=True):
        assert one["blocks"] == other["blocks"]
        assert one["fusion_2d"] == pytest.approx(other["fusion_2d"], abs=1e-3)


def test_spconv_meets_the_same_plan(room: Frames, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("spconv", reason="spconv is not installed")
    plain = checked(room, monkeypatch, tmp_path)
    compiled = checked(room, monkeypatch, tmp_path, "--engine", "spconv")
    for one, other in zip(plain["frames"], compiled["frames"], strict=True):
        assert one["blocks"] == other["blocks"]
        assert one["fusion_2d"] == pytest.approx(other["fusion_2d"], abs=1e-5)


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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--device", "tpu9x"), "expected cpu, cuda"),
        (("--data", "a", "b", "--frames", 1), "--frames is 1 for 2 folders"),
        (("--features", "store", "--random-backbone"), "leave --backbone"),
    ],
)
def test_options_that_do_not_go_together(options: tuple[object, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run_verb(checking, *SMALL, *options)
