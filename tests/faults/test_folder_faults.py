"""Folders that are written whole: killed at any time, there is a whole one, old or new."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dinoneck.atomic import STALE_AFTER_S, write_folder

WRITER = """
import itertools, sys
from pathlib import Path
from dinoneck.atomic import write_folder
print("ready", flush=True)
for version in itertools.count():
    with write_folder(sys.argv[1]) as new:
        for name in range(20):
            (new / str(name)).write_text(str(version))
"""


def whole(folder: Path) -> bool:
    """Twenty files of one version."""
    contents = [path.read_text() for path in folder.iterdir()] if folder.is_dir() else []
    return len(contents) == 20 and len(set(contents)) == 1 and contents[0].isdigit()


@pytest.mark.slow
def test_kills_leave_a_whole_folder(tmp_path: Path) -> None:
    chance, target = random.Random(0), tmp_path / "e"
    for _ in range(40):
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(target)], stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.02 + chance.random() * 0.03)
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=30)
        process.stdout.close()
        aside = [path for path in tmp_path.iterdir() if ".old-" in path.name]
        assert whole(target) or (not target.exists() and any(whole(path) for path in aside))


def test_a_failure_leaves_the_old_folder_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "e"
    with write_folder(target) as new:
        (new / "a").write_text("1")
    with pytest.raises(ValueError, match="half way"), write_folder(target) as new:
        (new / "b").write_text("2")
        raise ValueError("half way")
    assert [path.name for path in tmp_path.rglob("*")] == ["e", "a"]
    with write_folder(target) as new:
        (new / "b").write_text("2")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["b", "e"]
    with pytest.raises(FileNotFoundError), write_folder(tmp_path / "no" / "where"):
        pass


def test_unfinished_folders_are_cleared_once_they_are_old(tmp_path: Path) -> None:
    names = (".e.new-1.dinoneck-tmp", ".e.new-2.dinoneck-tmp", ".e.old-1.dinoneck-tmp", ".f.new-1.dinoneck-tmp")
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").write_text("x")
        if "new-2" not in name:
            os.utime(tmp_path / name, (0, time.time() - STALE_AFTER_S - 60))
    with write_folder(tmp_path / "e") as new:
        (new / "a").write_text("1")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*names[1:], "e"])
