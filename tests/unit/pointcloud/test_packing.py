"""The layout of ``.pt`` files, the frames that are sampled, and info files that name the features."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from examples.pointcloud.__main__ import main
from examples.pointcloud.extraction import step_of
from examples.pointcloud.feature_files import check_aspect, read_map, read_maps, write_map
from examples.pointcloud.features import input_size, maps_of
from examples.pointcloud.frames import read_frames
from PIL import Image
from tests.unit.pointcloud.test_frames import write_json, write_scan

from dinoneck import ConfigError, DataError, FeatureStore, load_backbone

TINY = ["--backbone", "dinoneck_tiny"]


def run(*words: object) -> int:
    return main([str(word) for word in words])


def single_view(frames: list[str]) -> dict[str, Any]:
    """An info file as ESAM writes it, an entry per frame."""
    entries = []
    for frame in frames:
        scene, number = frame.split("/")
        entries.append(
            {
                "lidar_points": {"num_pts_feats": 6, "lidar_path": f"{scene}_{number}.bin"},
                "img_path": f"2D/{scene}/color/{number}.jpg",
                "pose": np.eye(4) * int(number),
            }
        )
    return {"metainfo": {"categories": {"chair": 0}}, "data_list": entries}


def several_views(scene: str, numbers: list[int]) -> dict[str, Any]:
    """An info file as ESAM writes it, an entry per scene."""
    entry = {
        "img_paths": [f"2D/{scene}/color/{number}.jpg" for number in numbers],
        "poses": [np.eye(4) for _ in numbers],
    }
    return {"metainfo": {}, "data_list": [entry]}


def write_features(folder: Path, frames: list[str], channels: int = 3) -> None:
    for place, frame in enumerate(frames):
        write_map(folder, frame, torch.full((channels, 2, 4), float(place)))


def test_a_map_is_one_float16_tensor_and_comes_back_to_the_bit(tmp_path: Path) -> None:
    features = torch.rand(5, 3, 4)
    write_map(tmp_path, "scene0/color/200", features)
    path = tmp_path / "scene0" / "color" / "200.pt"
    loaded = torch.load(path, weights_only=True)
    assert loaded.dtype == torch.float16
    assert torch.equal(loaded, features.half())
    assert torch.equal(read_map(path), features.half())


def test_maps_of_another_shape_or_of_no_frame_are_refused(tmp_path: Path) -> None:
    write_map(tmp_path, "s/color/0", torch.zeros(5, 3, 4))
    write_map(tmp_path, "s/color/1", torch.zeros(5, 3, 5))
    with pytest.raises(DataError, match=r"\(5, 3, 5\)"):
        read_maps(tmp_path, ["s/color/0", "s/color/1"])
    with pytest.raises(DataError, match="2.pt"):
        read_maps(tmp_path, ["s/color/2"])
    with pytest.raises(DataError, match="float16 ends at 65504"):
        write_map(tmp_path, "s/color/3", torch.full((1, 1, 1), 1e6))


def test_single_frames_are_every_200th_and_several_every_40th() -> None:
    assert step_of(None, "single-view") == 200
    assert step_of(None, "multi-view") == 40
    assert step_of(None, None) == 1
    assert step_of(7, None) == 7
    with pytest.raises(ConfigError, match="--every is 7"):
        step_of(7, "multi-view")
    with pytest.raises(ConfigError, match="--every is 0"):
        step_of(0, None)


def test_extract_writes_the_sampled_frames_as_pt_files_with_the_maps_of_the_backbone(
    tmp_path: Path,
) -> None:
    scene = write_scan(tmp_path, numbers=(0, 20, 40, 80, 200))
    out = tmp_path / "clip_feat"
    assert (
        run("extract", tmp_path, "--out", out, "--layout", "pt", *TINY, "--sampling", "multi-view")
        == 0
    )
    assert sorted(path.stem for path in out.rglob("*.pt")) == ["0", "200", "40", "80"]
    backbone = load_backbone("dinoneck_tiny")
    image = backbone.preprocess([scene / "color" / "40.jpg"], size=(64, 80), resize="stretch")
    with torch.no_grad():
        expected = backbone(image).last.maps()[0][0]
    found = read_map(out / "scene0000_00" / "color" / "40.pt")
    assert found.shape == (64, 4, 5)
    torch.testing.assert_close(found, expected.half())


def test_pt_files_and_a_store_hold_the_same_maps(tmp_path: Path) -> None:
    write_scan(tmp_path / "data", numbers=(0, 40))
    run("extract", tmp_path / "data", "--out", tmp_path / "pt", "--layout", "pt", *TINY)
    run("extract", tmp_path / "data", "--out", tmp_path / "store", *TINY)
    names = ["scene0000_00/color/0", "scene0000_00/color/40"]
    cameras = read_frames(tmp_path / "data" / "2D" / "scene0000_00").cameras
    assert len(FeatureStore.open(tmp_path / "store")) == 2
    torch.testing.assert_close(
        maps_of(tmp_path / "pt", names, cameras),
        maps_of(tmp_path / "store", names, cameras),
        rtol=0,
        atol=2e-3,
    )


@pytest.mark.parametrize("cells", [(4, 5), (3, 4), (30, 39), (60, 80)])
def test_a_map_whose_sides_were_rounded_to_whole_patches_is_read(
    cells: tuple[int, int], tmp_path: Path
) -> None:
    scene = write_scan(tmp_path, numbers=(0,))
    cameras = read_frames(scene).cameras
    features = torch.rand(3, *cells)
    write_map(tmp_path / "pt", "scene0000_00/color/0", features)

    maps = maps_of(tmp_path / "pt", ["scene0000_00/color/0"], cameras)

    assert cameras.size == (60, 80)
    assert torch.equal(maps[0], features.half())


@pytest.mark.parametrize("cells", [(5, 4), (16, 16), (80, 64)])
def test_a_map_of_another_ratio_than_its_frame_is_named_with_both_sizes(
    cells: tuple[int, int], tmp_path: Path
) -> None:
    scene = write_scan(tmp_path, numbers=(0,))
    cameras = read_frames(scene).cameras
    write_map(tmp_path / "pt", "scene0000_00/color/0", torch.rand(3, *cells))
    message = rf"color.0\.pt has {cells[0]}x{cells[1]} cells, and its frame is 60x80 px"
    with pytest.raises(DataError, match=message):
        maps_of(tmp_path / "pt", ["scene0000_00/color/0"], cameras)


@pytest.mark.parametrize("patch", [8, 14, 16])
@pytest.mark.parametrize("image", [(480, 640), (968, 1296), (37, 211), (640, 480)])
def test_the_size_that_extract_takes_has_the_ratio_of_the_image(
    image: tuple[int, int], patch: int
) -> None:
    height, width = input_size(image, patch)
    check_aspect(Path("a.pt"), (height // patch, width // patch), image)


def test_extract_reads_scenes_of_a_frames_json(tmp_path: Path) -> None:
    for name in ("kitchen", "office"):
        (tmp_path / name).mkdir()
        write_json(tmp_path / name)
    assert run("extract", tmp_path, "--out", tmp_path / "store", *TINY, "--every", 2) == 0
    ids = list(FeatureStore.open(tmp_path / "store").ids)
    assert ids == ["kitchen/c0", "kitchen/c2", "office/c0", "office/c2"]


def test_a_refused_extract_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scene = write_scan(tmp_path, numbers=(0, 20))
    Image.new("RGB", (40, 30)).save(scene / "color" / "20.jpg")
    for layout in ("store", "pt"):
        out = tmp_path / f"out-{layout}"
        assert run("extract", tmp_path, "--out", out, "--layout", layout, *TINY) == 1
        assert "20.jpg is 30x40 px" in capsys.readouterr().err
        assert not out.exists()


def test_features_are_not_written_over_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_scan(tmp_path, numbers=(0,))
    words = ["extract", tmp_path, "--out", tmp_path / "pt", "--layout", "pt", *TINY]
    assert run(*words) == 0
    assert run(*words) == 1
    assert "does not tell its backbone" in capsys.readouterr().err


def test_single_views_get_one_path_each(tmp_path: Path) -> None:
    frames = ["scene0000_00/0", "scene0001_00/200"]
    content = single_view(frames)
    infos = tmp_path / "scannet_oneformer3d_infos_train.pkl"
    infos.write_bytes(pickle.dumps(content, protocol=2))
    write_features(tmp_path / "clip_feat", ["scene0000_00/color/0", "scene0001_00/color/200"])
    assert run("pack", infos, "--features", tmp_path / "clip_feat") == 0
    raw = (tmp_path / "scannet_oneformer3d_infos_train_clip.pkl").read_bytes()
    packed = pickle.loads(raw)
    paths = [entry.pop("clip_feat_path") for entry in packed["data_list"]]
    assert paths == ["clip_feat/scene0000_00/color/0.pt", "clip_feat/scene0001_00/color/200.pt"]
    assert torch.equal(read_map(tmp_path / paths[1]), torch.ones(3, 2, 4).half())
    for entry, before in zip(packed["data_list"], content["data_list"], strict=True):
        np.testing.assert_array_equal(entry.pop("pose"), before.pop("pose"))
        assert entry == before
    assert packed["metainfo"] == content["metainfo"]
    assert infos.read_bytes() != raw


def test_a_scene_of_several_views_gets_a_list_in_its_order(tmp_path: Path) -> None:
    infos = tmp_path / "infos_val.pkl"
    infos.write_bytes(pickle.dumps(several_views("scene0000_00", [80, 0, 40])))
    write_features(tmp_path / "f", [f"scene0000_00/color/{number}" for number in (0, 40, 80)])
    assert run("pack", infos, "--features", tmp_path / "f", "--absolute") == 0
    [entry] = pickle.loads((tmp_path / "infos_val_clip.pkl").read_bytes())["data_list"]
    folder = tmp_path / "f" / "scene0000_00" / "color"
    assert entry["clip_feat_paths"] == [str(folder / f"{number}.pt") for number in (80, 0, 40)]


SPOILED = {
    "a missing file": (
        lambda t: t["data_list"][0].update(img_path="2D/s/color/9.jpg"),
        "1 of 2 feature",
    ),
    "no image": (lambda t: t["data_list"][0].pop("img_path"), "neither img_path nor img_paths"),
    "both kinds": (lambda t: t["data_list"][0].update(img_paths=[]), "img_path and img_paths"),
    "another path": (
        lambda t: t["data_list"][1].update(img_path="a.jpg"),
        "<scene>/color/<number>",
    ),
    "features there": (lambda t: t["data_list"][0].update(clip_feat_path="a"), "already"),
    "no entries": (lambda t: t.update(data_list=[]), "data_list"),
    "a text entry": (lambda t: t.update(data_list=["a"]), "entry 0 is str"),
}


@pytest.mark.parametrize("name", SPOILED)
def test_entries_that_do_not_fit_are_named_and_nothing_is_written(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = single_view(["s/0", "s/1"])
    spoil, message = SPOILED[name]
    spoil(content)
    infos = tmp_path / "infos.pkl"
    infos.write_bytes(pickle.dumps(content))
    write_features(tmp_path / "f", ["s/color/0", "s/color/1"])
    assert run("pack", infos, "--features", tmp_path / "f") == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "infos_clip.pkl").exists()


def test_features_of_two_widths_or_outside_the_folder_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data").mkdir()
    infos = tmp_path / "data" / "infos.pkl"
    infos.write_bytes(pickle.dumps(single_view(["s/0", "s/1"])))
    write_features(tmp_path / "f", ["s/color/0", "s/color/1"])
    assert run("pack", infos, "--features", tmp_path / "f") == 1
    assert "not below the info file's folder" in capsys.readouterr().err
    write_map(tmp_path / "f", "s/color/1", torch.zeros(7, 2, 4))
    assert run("pack", infos, "--features", tmp_path / "f", "--absolute") == 1
    assert "several widths" in capsys.readouterr().err


def test_features_of_another_ratio_than_the_image_next_to_the_info_file_are_not_packed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    infos = tmp_path / "infos.pkl"
    infos.write_bytes(pickle.dumps(single_view(["s/0", "s/1"])))
    write_features(tmp_path / "f", ["s/color/0", "s/color/1"])  # 2x4 cells
    color = tmp_path / "2D" / "s" / "color"
    color.mkdir(parents=True)
    Image.new("RGB", (64, 32)).save(color / "0.jpg")
    Image.new("RGB", (32, 64)).save(color / "1.jpg")

    code = run("pack", infos, "--features", tmp_path / "f")

    assert code == 1
    assert "1.pt has 2x4 cells, and its frame is 64x32 px" in capsys.readouterr().err
    assert not (tmp_path / "infos_clip.pkl").exists()


def test_a_packed_file_is_replaced_only_when_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    infos = tmp_path / "infos.pkl"
    infos.write_bytes(pickle.dumps(single_view(["s/0"])))
    write_features(tmp_path / "f", ["s/color/0"])
    words = ["pack", infos, "--features", tmp_path / "f"]
    assert run(*words) == 0
    assert run(*words) == 1
    assert "--replace" in capsys.readouterr().err
    assert run(*words, "--replace") == 0


def packed_with(tmp_path: Path, change: Any) -> int:
    """Pack one entry of two frames after a change to it."""
    content = several_views("s", [0, 40])
    write_features(tmp_path / "clip_feat", ["s/color/0", "s/color/40"])
    change(content["data_list"][0])
    (tmp_path / "infos.pkl").write_bytes(pickle.dumps(content))
    return run("pack", tmp_path / "infos.pkl", "--features", tmp_path / "clip_feat")


def test_poses_that_are_no_list_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert packed_with(tmp_path, lambda entry: entry.update(poses=3)) == 1
    assert "entry 0: poses is 3; expected one per image" in capsys.readouterr().err


def test_poses_in_one_array_are_kept(tmp_path: Path) -> None:
    poses = np.arange(32.0).reshape(2, 4, 4)
    assert packed_with(tmp_path, lambda entry: entry.update(poses=poses)) == 0
    packed = pickle.loads((tmp_path / "infos_clip.pkl").read_bytes())
    assert np.array_equal(packed["data_list"][0]["poses"], poses)


def test_an_empty_list_of_entries_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "infos.pkl").write_bytes(pickle.dumps({"metainfo": {}, "data_list": []}))
    assert run("pack", tmp_path / "infos.pkl", "--features", tmp_path) == 1
    assert "has an empty data_list; there is nothing to pack" in capsys.readouterr().err


def test_features_that_are_not_finite_are_not_packed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def spoil(entry: dict[str, Any]) -> None:
        broken = torch.full((3, 2, 4), torch.nan).half()
        torch.save(broken, tmp_path / "clip_feat" / "s" / "color" / "40.pt")

    assert packed_with(tmp_path, spoil) == 1
    assert "1 of 2 feature files hold NaN or infinite values" in capsys.readouterr().err
    assert not (tmp_path / "infos_clip.pkl").exists()


def test_features_beyond_float16_are_refused_and_do_not_become_infinite(tmp_path: Path) -> None:
    features = torch.zeros(3, 2, 4)
    features[1, 1, 2] = -70000.0
    torch.save(features, tmp_path / "0.pt")
    with pytest.raises(DataError, match=r"0\.pt reaches 70000 in 1 values.*ends at 65504"):
        read_map(tmp_path / "0.pt")


def test_a_refused_image_outside_of_its_scene_writes_no_file_outside_of_the_features(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scene = tmp_path / "2D" / "kitchen"
    scene.mkdir(parents=True)
    write_json(scene, lambda table: table["frames"][0].update(color="../../c0.png"))
    (scene / "c0.png").rename(tmp_path / "c0.png")
    out = tmp_path / "features"
    assert run("extract", tmp_path, "--out", out, "--layout", "pt", *TINY) == 1
    assert "lies outside of" in capsys.readouterr().err
    assert list(tmp_path.rglob("*.pt")) == []
