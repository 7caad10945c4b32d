"""The campaign of kills during a save: a short one finds nothing, and it sees a writer that tears files."""

from __future__ import annotations

import os
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from benchmarks.kill_campaign import Moment
from benchmarks.reliability import kills
from benchmarks.reliability.kill_targets import FileTarget, FolderTarget, cleaned
from benchmarks.reliability.kills import KILLS, Saves, measure
from benchmarks.reliability.processes import CONTEXT
from tests.reliability_result import stored

DISK = {"create file", "write", "fsync", "read back and check", "chmod", "rename", "flush folder"}


class InPlace(FileTarget):
    """What a careless writer does."""

    def save(self, which: int) -> None:
        if len(self.contents) < 2:
            super().save(which)
            return
        content = self.contents[which]
        with self.path.open("wb", buffering=0) as file:
            file.write(content[: len(content) // 2])
            time.sleep(0.05)
            file.write(content[len(content) // 2 :])


def careless(work: Path) -> list[str]:
    """What is found after kills of the careless writer; in a process that may fork."""
    (work / "file").mkdir()
    saves = Saves(InPlace(work / "file", width=64), work)
    return [saves.killed(1, Moment(share=0.5))["state"]]


def test_the_published_campaign() -> None:
    result = stored("kills")
    for name, count in KILLS.items():
        row = result[name]
        assert row["kills"] == row["old"] + row["new"] >= count
        assert row["torn"] == 0
        assert row["moments"]["by the clock"] >= 0.4 * count
        assert sum(phase["kills"] for phase in row["phases"].values()) == row["kills"]
    assert result["file"]["bytes"] > 8 << 20
    assert result["file"]["phases"].keys() >= DISK
    assert result["folder"]["phases"].keys() >= {"move old folder aside", "move new folder in", "remove old folder"}


@pytest.mark.slow
def test_a_short_campaign(tmp_path: Path) -> None:
    result = measure(tmp_path, 0.03)
    assert not result["failed"], result
    for row in (result["file"], result["folder"]):
        assert row["kills"] == row["old"] + row["new"] >= 8
        assert row["clean_up"]["left"] == row["clean_up"]["kept_while_fresh"] > 0
    assert result["file"]["phases"].keys() >= DISK - {"rename"}
    assert "torn" in kills.page(result)


@pytest.mark.slow
def test_the_campaign_sees_a_torn_file(tmp_path: Path) -> None:
    with ProcessPoolExecutor(1, CONTEXT) as pool:
        assert pool.submit(careless, tmp_path).result() == ["torn"]


def test_targets_tell_old_new_torn_and_moved_aside(tmp_path: Path) -> None:
    for name in ("file", "folder"):
        (tmp_path / name).mkdir()
    file: Any = FileTarget(tmp_path / "file", width=16)
    folder: Any = FolderTarget(tmp_path / "folder")
    for target in (file, folder):
        assert target.found() == (0, False)
        target.save(1)
        assert target.found() == (1, False)
        assert target.strays() == []
    file.path.write_bytes(file.contents[0][:-1] + b"x")
    assert file.found() == (-1, False)
    folder.path.rename(folder.root / ".ensemble.old-1.dinoneck-tmp")
    assert folder.found() == (1, True)
    assert folder.found() == (1, False), "it was moved back"
    one, other = (folder.contents[which]["heads/total-fold0.safetensors"] for which in (0, 1))
    assert one != other
    (folder.path / "heads" / "total-fold0.safetensors").write_bytes(one)
    assert folder.found() == (-1, False), "a mix of both"


def test_leftovers_are_cleared_after_an_hour(tmp_path: Path) -> None:
    target = FileTarget(tmp_path, width=16)
    stray = tmp_path / ".head.safetensors.0123.dinoneck-tmp"
    stray.write_bytes(b"x")
    other = tmp_path / ".other.safetensors.0123.dinoneck-tmp"
    other.write_bytes(b"x")
    os.utime(other, (0, 0))
    assert cleaned(target, [stray]) == {"left": 1, "kept_while_fresh": 1, "kept_after_an_hour": 0}
    assert other.exists(), "another file's is left alone"
