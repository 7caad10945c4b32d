"""The verb ``compare``: options that it cannot follow, and scans that teach nothing, are named before it runs."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from examples.pointcloud.__main__ import main
from examples.pointcloud.comparison import ROWS, Runner
from examples.pointcloud.data_digest import data_digest
from examples.pointcloud.feature_files import write_map
from examples.pointcloud.rooms import CLASSES, room
from examples.pointcloud.training_plan import Plan, rooms_of
from tests.conftest import ROOT
from tests.unit.pointcloud.test_frames import write_scene

from dinoneck import ConfigError, DataError

CLASS_NAMES = tuple(f"{place}={name}" for place, name in enumerate(CLASSES))


QUICK = [
    *("--network", "small", "--backbone", "dinoneck_tiny", "--random-backbone", "--rooms", "1"),
    *("--test-rooms", "1", "--views", "2", "--image-size", "48", "64", "--points", "300"),
    *("--voxel", "0.25", "--steps", "1", "--pretrain-steps", "1", "--seeds", "0", "1"),
]


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
        (["--data", "scans"], "--data needs --labels and --classes"),
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
    with pytest.warns(
        UserWarning, match=r"classes have no point in 1 scene to learn from: .*piano"
    ):
        rooms_of(mistaken, images=False)


def words_of(plan: Plan) -> list[str]:
    """The command line of a small comparison of two seeds."""
    words = ["--data", plan.data, "--labels", plan.labels, "--features", plan.features]
    words += ["--held-out", *plan.held_out, "--classes", *plan.classes]
    return [*words, "--network", "small", "--points", "300", "--voxel", "0.25", "--steps", "1"]


def digest_of(plan: Plan) -> str:
    return data_digest(Path(plan.data), Path(plan.labels), Path(plan.features), plan.every)


def test_the_digest_of_data_is_that_of_a_copy_and_changes_with_what_is_read(
    plan: Plan, tmp_path: Path
) -> None:
    first = digest_of(plan)
    shutil.copytree(tmp_path / "tree", tmp_path / "copy")
    assert digest_of(replace(plan, data=str(tmp_path / "copy"))) == first
    digests = {first}
    pose = tmp_path / "tree" / "2D" / "office" / "pose" / "1.txt"
    np.savetxt(pose, np.loadtxt(pose) + 0.5)
    digests.add(digest_of(plan))
    labels = np.load(tmp_path / "labels" / "office.npy")
    labels[0, 3] += 1
    np.save(tmp_path / "labels" / "office.npy", labels)
    digests.add(digest_of(plan))
    write_map(tmp_path / "maps", "office/color/1", torch.rand(5, 12, 16))
    digests.add(digest_of(plan))
    assert len(digests) == 4


@pytest.mark.slow
def test_finished_runs_on_labels_that_were_changed_are_not_read(
    plan: Plan, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["compare", *words_of(plan), "--seeds", "0", "1", "--pretrain-steps", "0"]
    words += ["--out", str(tmp_path / "runs")]
    assert main(words) == 0
    labels = np.load(tmp_path / "labels" / "office.npy")
    labels[:, 3] = labels[::-1, 3]
    np.save(tmp_path / "labels" / "office.npy", labels)
    assert main(words) == 1
    assert "holds a run with other data_digest" in capsys.readouterr().err


KILLED_COMPARE = """
import sys
from pathlib import Path
from examples.pointcloud.__main__ import main
from tests.faults.kill import killed_before

killed_before(Path(sys.argv[1]), int(sys.argv[2]))
main(sys.argv[3:])
"""
# before which disk call below --out each process is killed. A run writes weights, matches and its
# result; each takes a call to create a temporary file, one to flush it, and one to rename it
DISK_CALLS = (3, 6, 10, 14)


def scores_of(folder: Path) -> Any:
    """All results of a comparison but for seconds and memory."""
    table = json.loads((folder / "point_segmentation.json").read_text())
    for block in table["blocks"].values():
        for row in block["summary"]["rows"].values():
            del row["seconds"], row["peak_memory_mb"]
        for rows in block["seeds"].values():
            for result in rows.values():
                del result["cost"]
    return table


@pytest.mark.slow
def test_a_comparison_that_was_killed_and_run_again_is_that_of_one_run(
    plan: Plan, tmp_path: Path
) -> None:
    for name in ("kitchen", "office"):
        path = tmp_path / "labels" / f"{name}.npy"
        table = np.load(path)
        np.save(path, np.c_[table, table[:, 3]])  # an object of each class
    words = ["compare", *words_of(plan), "--seeds", "0", "1", "--pretrain-steps", "1"]
    assert main([*words, "--out", str(tmp_path / "whole")]) == 0
    expected = scores_of(tmp_path / "whole")
    assert "precision_differences" in expected["blocks"]["geometry"]["summary"]
    runs = tmp_path / "killed"
    again = [*words, "--out", str(runs)]
    python_path = os.pathsep.join((str(ROOT / "src"), str(ROOT)))
    unfinished = set()
    for call in DISK_CALLS:
        child = subprocess.run(
            [sys.executable, "-c", KILLED_COMPARE, str(runs), str(call), *again],
            env={**os.environ, "PYTHONPATH": python_path},
            check=False,
        )
        assert child.returncode == -signal.SIGKILL
        for weights in runs.rglob("weights.safetensors"):
            if not weights.with_name("result.json").exists():
                unfinished.add(str(weights.relative_to(runs)))
    assert unfinished  # a run whose weights are there and whose result is not

    assert main(again) == 0

    assert scores_of(runs) == expected


def test_a_damaged_result_is_named_with_the_folder_to_remove(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "geometry" / "seed0" / "pretrained"
    folder.mkdir(parents=True)
    (folder / "result.json").write_text('{"plan"')
    assert main(["compare", "--out", str(tmp_path), *QUICK]) == 1
    message = capsys.readouterr().err
    assert f"{folder / 'result.json'} cannot be read: Expecting" in message
    assert f"remove the folder {folder}, and this run is made again" in message


def test_runs_with_instances_whose_matches_are_missing_are_named(tmp_path: Path) -> None:
    runner = Runner(tmp_path, pretrain_steps=0, device="cpu")
    runs = {"0": {row: {"test": {"instances": {}}} for row in ROWS}}
    with pytest.raises(ConfigError, match=r"3d-only.instances.json cannot be read: No such file"):
        runner.matches("geometry", runs)


def test_runs_without_instances_have_no_matches(tmp_path: Path) -> None:
    runner = Runner(tmp_path, pretrain_steps=0, device="cpu")
    runs = {"0": {row: {"test": {"miou": 0.5}} for row in ROWS}}
    assert runner.matches("geometry", runs) == {}
