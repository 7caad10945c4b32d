"""The verb ``check``: real and drawn rooms pass it, and every mistake in their files is found and named."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from examples.pointcloud.__main__ import main
from examples.pointcloud.check_report import level_lines, picture
from examples.pointcloud.feature_files import write_map
from examples.pointcloud.frames import Frames, read_frames
from examples.pointcloud.level_check import STRIDES, check_network
from examples.pointcloud.res16unet import Res16UNet
from examples.pointcloud.room_batches import Scene, Voxels, batch_of
from examples.pointcloud.rooms import Room, room
from examples.pointcloud.segmentation import NETWORKS, Segmenter, build
from PIL import Image
from tests.conftest import DATA
from tests.unit.pointcloud.test_frames import write_scene
from tests.unit.pointcloud.test_minkowski_weights import random_state

from dinoneck.points import Cameras, DecoderInjection, PointProjector, SparsePyramid

QUICK = [
    "--backbone",
    "dinoneck_tiny",
    "--random-backbone",
    "--network",
    "small",
    "--device",
    "cpu",
]
COARSE = [*QUICK, "--voxel", "0.1", "--points", "3000"]
SIZE = (96, 128)


def run(data: Path, out: Path, *words: str) -> tuple[int, dict[str, Any]]:
    code = main(["check", str(data), "--out", str(out), *COARSE, *words])
    [scene] = json.loads((out / "check.json").read_text())
    return code, scene


def real_room() -> Path:
    if not (DATA / "rgbd_room").is_dir():
        pytest.skip("the RGB-D room of the shared data is not there")
    return DATA / "rgbd_room"


@pytest.fixture(scope="module")
def made() -> Room:
    return room(seed=3, views=6, size=SIZE, points=8000)


@pytest.fixture
def tree(made: Room, tmp_path: Path) -> Path:
    write_scene(tmp_path / "tree", "kitchen", made.frames)
    (tmp_path / "clouds").mkdir()
    table = np.c_[made.points.numpy(), made.labels.numpy()]
    np.save(tmp_path / "clouds" / "kitchen.npy", table)
    return tmp_path / "tree"


@pytest.mark.slow
def test_the_real_room_passes_with_right_numbers(tmp_path: Path) -> None:
    code, scene = run(real_room(), tmp_path)
    assert code == 0
    assert scene["problems"] == []
    assert scene["cameras"]["right"] and scene["cameras"]["best"] == "camera_to_world"
    assert [frame["frame"] for frame in scene["frames"]] == [
        f"rgbd_room/color_{number}" for number in range(1, 6)
    ]
    for frame in scene["frames"]:
        assert frame["valid_projection"] == 1.0
        assert frame["fusion_2d"] + frame["fusion_3d"] == pytest.approx(1.0)
        assert 0.5 < frame["known_depth"] < 0.9
        assert frame["not_finite"] == {"maps": 0, "lifted features": 0}
        assert frame["cost"]["seconds"] > 0 and frame["cost"]["peak_memory_mb"] > 50
        own, *others = frame["views"]
        assert own["agree"] == own["in_bounds"] == 1.0
        assert all(0.2 < view["agree"] < 0.9 for view in others)
        assert [level["stride"] for level in frame["levels"]] == [16, 8, 4, 2, 1]
        assert all(level["same_cells"] for level in frame["levels"])
    pictures = sorted((tmp_path / "pictures").iterdir())
    assert [path.name for path in pictures] == [f"rgbd_room_color_{n}.png" for n in range(1, 6)]
    with Image.open(pictures[0]) as image:
        assert image.size == (640, 480)


@pytest.mark.slow  # those of a drawn room are among MISTAKES
def test_inverse_poses_of_the_real_room_are_named(tmp_path: Path) -> None:
    scene = tmp_path / "tree" / "2D" / "kitchen"
    frames = read_frames(real_room())
    write_scene(tmp_path / "tree", "kitchen", frames)
    for view in range(len(frames)):
        np.savetxt(scene / "pose" / f"{view}.txt", frames.cameras.world_to_cam[view])

    code, report = run(tmp_path / "tree", tmp_path / "out")

    assert code == 1
    assert "from_world_to_cam" in report["problems"][0]
    assert not report["cameras"]["right"]


@pytest.mark.slow
@pytest.mark.parametrize("with_clouds", [False, True])
def test_a_drawn_room_passes(tree: Path, tmp_path: Path, with_clouds: bool) -> None:
    words = ["--clouds", str(tmp_path / "clouds")] if with_clouds else []
    code, scene = run(tree, tmp_path / "out", *words)
    assert (code, scene["problems"]) == (0, [])
    assert len(scene["frames"]) == 6


@pytest.mark.slow
def test_without_data_rooms_are_drawn(tmp_path: Path) -> None:
    code = main(["check", "--out", str(tmp_path), *COARSE, "--frames", "2"])
    [scene] = json.loads((tmp_path / "check.json").read_text())
    assert code == 0
    assert scene["scene"] == "room 0" and len(scene["frames"]) == 2
    # a room's scan has points behind the camera and behind furniture
    assert 0.1 < scene["frames"][0]["valid_projection"] < 0.9


def change_matrix(path: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    np.savetxt(path, change(np.loadtxt(path)))


def turned(pose: np.ndarray) -> np.ndarray:
    """A camera that looks to its right instead of ahead."""
    turn = np.eye(4)
    turn[:3, :3] = [[0, 0, 1], [0, 1, 0], [-1, 0, 0]]
    return pose @ turn


def all_inverse(scene: Path) -> None:
    for path in (scene / "pose").iterdir():
        change_matrix(path, np.linalg.inv)


def all_opengl(scene: Path) -> None:
    for path in (scene / "pose").iterdir():
        change_matrix(path, lambda pose: pose @ np.diag([1.0, -1, -1, 1]))


def one_turned(scene: Path) -> None:
    change_matrix(scene / "pose" / "2.txt", turned)


def one_moved(scene: Path) -> None:
    def away(pose: np.ndarray) -> np.ndarray:
        pose[:3, 3] += [30, 0, 0]
        return pose

    change_matrix(scene / "pose" / "4.txt", away)


def one_shifted(scene: Path) -> None:
    def shifted(pose: np.ndarray) -> np.ndarray:
        pose[:3, 3] += [0.8, 0.4, 0]
        return pose

    change_matrix(scene / "pose" / "2.txt", shifted)


def long_focal(scene: Path) -> None:
    change_matrix(scene / "intrinsics.txt", lambda K: K * [[1.3, 1, 1], [1, 1.3, 1], [1, 1, 1]])


def of_larger_images(scene: Path) -> None:
    change_matrix(scene / "intrinsics.txt", lambda K: np.diag([2.0, 2, 1]) @ K)


def exchanged_principal_point(scene: Path) -> None:
    def exchange(K: np.ndarray) -> np.ndarray:
        K[[0, 1], 2] = K[[1, 0], 2]
        return K

    change_matrix(scene / "intrinsics.txt", exchange)


def transposed_depth(scene: Path) -> None:
    for path in (scene / "depth").iterdir():
        Image.fromarray(np.asarray(Image.open(path)).T.copy()).save(path)


def no_depth_file(scene: Path) -> None:
    (scene / "depth" / "3.png").unlink()


def empty_depth(scene: Path) -> None:
    Image.fromarray(np.zeros(SIZE, np.uint16)).save(scene / "depth" / "3.png")


def depth_in_decimetres(scene: Path) -> None:
    for path in (scene / "depth").iterdir():
        Image.fromarray(np.asarray(Image.open(path)) // 2).save(path)


MISTAKES: dict[str, tuple[Callable[[Path], None], str]] = {
    "poses the other way": (all_inverse, "from_world_to_cam"),
    "poses with OpenGL's axes": (all_opengl, "from_opengl"),
    "one pose turned": (one_turned, "kitchen/color/2: "),
    "one pose far away": (one_moved, "kitchen/color/4: "),
    "one pose shifted by 0.9 m": (one_shifted, "kitchen/color/2: "),
    "another focal length": (long_focal, "focal length x 0.7"),
    "K of larger images": (of_larger_images, "K x 0.5"),
    "exchanged sides of depth": (transposed_depth, "it is transposed"),
    "a missing depth file": (no_depth_file, "3.png"),
    "a depth file without depth": (empty_depth, "kitchen/color/3: no pixel has known depth"),
    "another unit of depth": (depth_in_decimetres, "depth x "),
}


@pytest.mark.slow
@pytest.mark.parametrize("with_clouds", [False, True])
@pytest.mark.parametrize("mistake", MISTAKES)
def test_every_mistake_is_found_and_named(
    mistake: str, with_clouds: bool, tree: Path, tmp_path: Path
) -> None:
    spoil, message = MISTAKES[mistake]
    spoil(tree / "2D" / "kitchen")
    words = ["--clouds", str(tmp_path / "clouds")] if with_clouds else []
    code, scene = run(tree, tmp_path / "out", *words)
    assert code == 1
    assert any(message in problem for problem in scene["problems"]), scene["problems"]


def test_only_the_frame_with_the_wrong_pose_is_named(tree: Path, tmp_path: Path) -> None:
    one_turned(tree / "2D" / "kitchen")
    _, scene = run(tree, tmp_path / "out", "--clouds", str(tmp_path / "clouds"))
    named = {problem.partition(":")[0] for problem in scene["problems"]}
    assert named == {"kitchen/color/2"}


@pytest.mark.slow
def test_features_that_are_not_finite_are_counted(tree: Path, tmp_path: Path) -> None:
    for view in range(6):
        write_map(tmp_path / "features", f"kitchen/color/{view}", torch.rand(5, 6, 8))
    path = tmp_path / "features" / "kitchen" / "color" / "1.pt"
    broken = torch.load(path, weights_only=True)
    broken[2, 3, 4] = torch.nan
    torch.save(broken, path)
    code, scene = run(tree, tmp_path / "out", "--features", str(tmp_path / "features"))
    assert code == 1
    assert "kitchen/color/1: 1 values of maps are NaN or infinite" in scene["problems"]
    assert scene["frames"][0]["levels"][0]["feature_channels"] == 5


def test_features_of_a_frame_that_are_missing_are_named(tree: Path, tmp_path: Path) -> None:
    write_map(tmp_path / "features", "kitchen/color/0", torch.rand(5, 6, 8))
    code, scene = run(tree, tmp_path / "out", "--features", str(tmp_path / "features"))
    assert code == 1
    assert "kitchen/color/1.pt" in scene["problems"][0]


def test_a_single_frame_says_that_its_pose_was_not_checked(
    tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, scene = run(tree, tmp_path / "out", "--every", "100")
    assert (code, scene["cameras"]) == (0, None)
    assert "not checked: no frame shows what another one shows" in capsys.readouterr().out


def test_frames_that_cannot_be_read_leave_their_cameras_unchecked(
    tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    no_depth_file(tree / "2D" / "kitchen")
    run(tree, tmp_path / "out")
    output = capsys.readouterr().out
    assert "not checked: its frames could not be read" in output
    assert "1 problem:" in output


@pytest.mark.slow
def test_exchanged_sides_are_said_once(tree: Path, tmp_path: Path) -> None:
    exchanged_principal_point(tree / "2D" / "kitchen")

    code, scene = run(tree, tmp_path / "out")

    assert code == 1
    [problem] = [problem for problem in scene["problems"] if "pass size=" in problem]
    assert "pass size=(128, 96)" in problem


@pytest.mark.slow
@pytest.mark.parametrize("with_clouds", [False, True])
def test_exchanged_sides_are_named_with_and_without_clouds(
    with_clouds: bool, tree: Path, tmp_path: Path
) -> None:
    exchanged_principal_point(tree / "2D" / "kitchen")
    words = ["--clouds", str(tmp_path / "clouds")] if with_clouds else []

    code, scene = run(tree, tmp_path / "out", *words)

    assert code == 1
    assert any("pass size=(128, 96)" in problem for problem in scene["problems"])


@pytest.mark.slow
@pytest.mark.parametrize(
    "shift",
    [
        pytest.param((0.5, 0, 0), id="to the right"),
        pytest.param((0, 0, 1.0), id="ahead"),
    ],
)
def test_a_shifted_pose_of_the_real_room_is_named_and_no_other(
    shift: tuple[float, ...], tmp_path: Path
) -> None:
    write_scene(tmp_path / "tree", "kitchen", read_frames(real_room()))

    def shifted(pose: np.ndarray) -> np.ndarray:
        pose[:3, 3] += shift
        return pose

    change_matrix(tmp_path / "tree" / "2D" / "kitchen" / "pose" / "2.txt", shifted)

    code, scene = run(tmp_path / "tree", tmp_path / "out")

    assert code == 1
    [problem] = scene["problems"]
    assert problem.startswith("kitchen/color/2: its depth agrees with ")


# -- levels


def drawn_scene(made: Room) -> Scene:
    maps = torch.rand(6, 5, 6, 8)
    links = PointProjector()(made.points, made.frames.cameras, made.frames.depth)
    return Scene(made.points, made.normals, made.colours, made.labels, maps, links)


def small_model() -> Segmenter:
    torch.manual_seed(0)
    return build("both", network="small", in_channels=4, classes=3, c_dino=5).eval()


def test_levels_agree_in_cells_and_channels(made: Room) -> None:
    batch = batch_of([drawn_scene(made)], Voxels(0.1, strides=STRIDES))
    report = check_network(small_model(), batch, batch.pyramid)
    assert report.problems() == []
    found = {level.stride: level for level in report.levels}
    for stride in STRIDES:
        cells = len((batch.grid.coords // stride).unique(dim=0))
        assert found[stride].pyramid_cells == found[stride].network_cells == cells
        assert found[stride].feature_channels == 5
    channels = {stride: level.branch_channels for stride, level in found.items()}
    assert channels == {16: None, 8: 64, 4: 48, 2: 32, 1: 32}
    assert {s: level.projected_channels for s, level in found.items()} == channels
    assert found[1].hit_rate == pytest.approx(found[1].seen)
    assert "64, branch 64" in "\n".join(level_lines(report.levels))


def test_a_pyramid_of_other_voxels_is_named(made: Room) -> None:
    scene = drawn_scene(made)
    batch = batch_of([scene], Voxels(0.1, strides=STRIDES))
    other = batch_of([replace(scene, points=scene.points + 0.05)], Voxels(0.1, strides=STRIDES))
    report = check_network(small_model(), batch, other.pyramid)
    assert not report.levels[-1].same_cells
    assert any("stride 1: block8" in problem for problem in report.problems())


def test_a_projection_of_other_channels_than_the_branch_is_named(made: Room) -> None:
    batch = batch_of([drawn_scene(made)], Voxels(0.1, strides=STRIDES))
    model = Segmenter(Res16UNet(4, **NETWORKS["small"]), 3, None, None).eval()
    model.injection = DecoderInjection(5, {8: 64, 4: 40, 2: 32, 1: 32})
    model.injection.attach(model.unet, {8: "block5", 4: "block6", 2: "block7", 1: "block8"})
    report = check_network(model, batch, batch.pyramid)
    [problem] = report.problems()
    assert "stride 4: the projection has 40 channels and the branch before block6 has 48" in problem


def test_a_pyramid_without_a_level_is_a_problem_and_no_crash(made: Room) -> None:
    batch = batch_of([drawn_scene(made)], Voxels(0.1, strides=STRIDES))
    model = small_model()
    swapped = dict(batch.pyramid)
    swapped[8] = SparsePyramid((16,))(batch.pyramid[1])[16]
    report = check_network(model, batch, swapped)
    assert report.scores is None
    assert "entry 8 holds features of stride 16" in report.problems()[0]


# -- pictures


def test_a_picture_paints_points_where_they_are_and_wrong_ones_red() -> None:
    K = torch.tensor([[[50.0, 0, 31.5], [0, 50, 23.5], [0, 0, 1]]])
    cameras = Cameras(K.double(), torch.eye(4).double()[None], (48, 64))
    frames = Frames(
        ("a",),
        torch.full((1, 3, 48, 64), 90, dtype=torch.uint8),
        torch.full((1, 48, 64), 2.0),
        cameras,
    )
    at_depth = cameras.unproject(torch.full((1, 48, 64), 2.0))[0]
    before = cameras.unproject(torch.full((1, 48, 64), 1.0))[0]
    points = torch.stack((at_depth[10, 20], before[30, 40], torch.tensor([0, 0, -1.0])))
    image = np.asarray(picture(frames, 0, points))
    assert image[10, 20].tolist() == [255, 230, 60]
    assert image[30, 40].tolist() == [255, 40, 40]
    assert image[5, 5].tolist() == [90, 90, 90]
    assert (image != 90).any(-1).sum() == 18  # two dots of 3 x 3 pixels


@pytest.mark.parametrize("channels", [3, 4])
def test_weights_of_minkowski_engine_are_checked_with_the_inputs_they_take(
    channels: int, tmp_path: Path
) -> None:
    state = {name: value.float() for name, value in random_state(in_channels=channels).items()}
    torch.save(state, tmp_path / "mask3d.pth")
    words = ["--frames", "1", "--init", str(tmp_path / "mask3d.pth")]
    code = main(["check", "--out", str(tmp_path), *COARSE, *words])
    [scene] = json.loads((tmp_path / "check.json").read_text())
    assert (code, scene["problems"]) == (0, [])
    assert all(level["same_cells"] for level in scene["frames"][0]["levels"])


def test_weights_of_no_such_network_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"a": torch.zeros(2)}, tmp_path / "other.pth")
    words = ["--init", str(tmp_path / "other.pth")]
    assert main(["check", "--out", str(tmp_path / "out"), *COARSE, *words]) == 1
    assert "other.pth holds no Res16UNet" in capsys.readouterr().err


def test_a_file_of_several_networks_starts_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kernel = torch.zeros(125, 3, 8)
    names = ("student.conv0p1s1.kernel", "teacher.conv0p1s1.kernel")
    torch.save(dict.fromkeys(names, kernel), tmp_path / "two.pth")
    words = ["check", "--out", str(tmp_path / "out"), *COARSE, "--init", str(tmp_path / "two.pth")]

    code = main(words)

    assert code == 1
    assert "holds 2 networks" in capsys.readouterr().err
