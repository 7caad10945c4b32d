"""The verb ``compare``: options that it cannot follow, and scans that teach nothing, are named before it runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from examples.pointcloud.__main__ import main
from examples.pointcloud.feature_files import write_map
from examples.pointcloud.rooms import CLASSES, room
from examples.pointcloud.training_plan import Plan, rooms_of
from tests.unit.pointcloud.test_frames import write_scene

from dinoneck import DataError

CLASS_NAMES = tuple(f"{place}={name}" for place, name in enumerate(CLASSES))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--steps", "-1"], "--steps is -1; expected 0 or more"),
        (["--batch", "0"], "--batch is 0; expected 1 or more"),
        (["--every", "0"], "--every is 0; expected 1 or more"),
        (["--rooms", "0"], "--rooms is 0; expected 1 or more"),
        (["--test-rooms", "0"], "--test-rooms is 0; expected 1 or more"),
        (["--views", "0"], "--views is 0; expected 1 or more"),
        (["--points", "0"], "--points is 0; expected 1 or more"),
        (["--image-size", "0", "64"], "--image-size is 0; expected 1 or more"),
        (["--lr", "nan"], "--lr is nan; expected a finite number above 0"),
        (["--voxel", "0"], "--voxel is 0.0; expected a finite number above 0"),
        (["--features", "maps"], "--features belongs to scans and --data is not given"),
        (["--held-out", "a"], "--held-out belongs to scans and --data is not given"),
    ],
)
def test_an_option_that_cannot_be_followed_is_named_and_nothing_is_written(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", "--out", str(tmp_path / "runs"), *words]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    """Of two scans of drawn rooms, with features in ``.pt`` files."""
    (tmp_path / "labels").mkdir()
    for seed, name in enumerate(("kitchen", "office")):
        made = room(seed, views=2, size=(96, 128), points=2000)
        write_scene(tmp_path / "tree", name, made.frames)
        np.save(tmp_path / "labels" / f"{name}.npy", np.c_[made.points, made.labels])
        for view in range(2):
            write_map(tmp_path / "maps", f"{name}/color/{view}", torch.rand(5, 6, 8))
    return Plan(
        data=str(tmp_path / "tree"),
        labels=str(tmp_path / "labels"),
        classes=CLASS_NAMES,
        held_out=("office",),
        features=str(tmp_path / "maps"),
        points=1000,
    )


def test_features_of_a_scan_that_are_not_finite_are_named(plan: Plan, tmp_path: Path) -> None:
    broken = torch.full((5, 6, 8), torch.inf).half()
    torch.save(broken, tmp_path / "maps" / "kitchen" / "color" / "1.pt")
    with pytest.raises(DataError, match="the features of 1 of 2 frames .*kitchen/color/1"):
        rooms_of(plan, images=True)


def test_features_of_two_widths_are_named(plan: Plan, tmp_path: Path) -> None:
    for view in range(2):
        write_map(tmp_path / "maps", f"office/color/{view}", torch.rand(7, 6, 8))
    with pytest.raises(DataError, match="of office have 7 channels and those of kitchen 5"):
        rooms_of(plan, images=True)


def test_a_scene_that_is_held_out_twice_is_named(plan: Plan) -> None:
    twice = replace(plan, held_out=("office", "office"))
    with pytest.raises(DataError, match="--held-out is office office; expected each scene once"):
        rooms_of(twice, images=False)


def test_a_class_that_no_scene_teaches_is_counted_in_a_warning(plan: Plan) -> None:
    mistaken = replace(plan, classes=(*plan.classes, "77=piano"))
    with pytest.warns(UserWarning, match=r"classes have no point in the 1 scenes.*piano"):
        rooms_of(mistaken, images=False)
