"""Frames of a tree: chosen by number, sorted as numbers, nothing passed over without a word."""

from __future__ import annotations

from pathlib import Path

import pytest
from examples.pointcloud.frame_tree import MV_EVERY, SV_EVERY, Frame, frames_of, images_folder, read_scenes
from tests.unit.pointcloud.frame_samples import write_frames

from dinoneck import DataError

SCENES = {"scene0001_00": range(0, 620, 20), "scene0000_01": [1000, 200, 0, 20]}


def numbers(frames: list[Frame]) -> list[tuple[str, int]]:
    return [(frame.scene, frame.number) for frame in frames]


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_frames(tmp_path_factory.mktemp("tree"), SCENES)


def test_every_takes_numbers_that_it_divides_not_places(tree: Path) -> None:
    assert (SV_EVERY, MV_EVERY) == (200, 40)
    assert numbers(frames_of(tree, SV_EVERY)) == [
        ("scene0000_01", 0), ("scene0000_01", 200), ("scene0000_01", 1000),
        ("scene0001_00", 0), ("scene0001_00", 200), ("scene0001_00", 400), ("scene0001_00", 600)]  # fmt: skip
    second = [frame.number for frame in frames_of(tree, MV_EVERY) if frame.scene == "scene0001_00"]
    assert second == list(range(0, 620, 40))
    assert len(frames_of(tree)) == sum(len(list(scene)) for scene in SCENES.values())


def test_root_may_be_the_folder_of_images_itself(tree: Path) -> None:
    assert images_folder(tree) == images_folder(tree / "2D") == tree / "2D"
    assert frames_of(tree) == frames_of(tree / "2D")
    first = frames_of(tree)[0]
    assert first.id == "scene0000_01/color/0"
    assert first.path == tree / "2D/scene0000_01/color/0.png"


def test_scenes_are_those_of_the_list(tree: Path, tmp_path: Path) -> None:
    names = tmp_path / "val.txt"
    names.write_text("scene0000_01\n\n")
    assert {frame.scene for frame in frames_of(tree, 200, read_scenes(names))} == {"scene0000_01"}
    names.write_text("scene0000_01\nscene0707_00\n")
    with pytest.raises(DataError, match="lacks 1: scene0707_00"):
        frames_of(tree, 200, read_scenes(names))


def test_one_number_twice_is_refused(tmp_path: Path) -> None:
    for name in ("20.jpg", "020.png"):
        touch(tmp_path / "2D/s/color" / name)
    with pytest.raises(DataError, match="are the same frame; keep one"):
        frames_of(tmp_path)
