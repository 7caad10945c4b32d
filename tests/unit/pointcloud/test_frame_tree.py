"""Frames of a tree: chosen by number and sorted as numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
from examples.pointcloud.frame_tree import frames_of, scene_names
from tests.unit.pointcloud.frame_samples import write_frames

from dinoneck import DataError


def test_every_takes_numbers_that_it_divides_not_places(tmp_path: Path) -> None:
    write_frames(tmp_path, {"scene0001_00": [0, 20, 60, 80], "scene0000_01": [1000, 200, 0, 20]})
    assert scene_names(tmp_path) == scene_names(tmp_path / "2D") == ["scene0000_01", "scene0001_00"]
    expected = [("scene0000_01", "0"), ("scene0000_01", "200"), ("scene0000_01", "1000")]
    expected += [("scene0001_00", "0"), ("scene0001_00", "80")]
    assert [(path.parts[-3], path.stem) for path in frames_of(tmp_path, 40)] == expected
    (tmp_path / "2D/scene0001_00/color/0.png").unlink()
    with pytest.raises(DataError, match="scene0001_00"):
        frames_of(tmp_path, 1000)


def test_one_number_twice_is_refused(tmp_path: Path) -> None:
    for name in ("20.jpg", "020.png"):
        path = tmp_path / "2D/s/color" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    with pytest.raises(DataError, match="same frame"):
        frames_of(tmp_path)
