"""Folders that are written whole: a failure leaves the old one, and what was never finished is cleared later."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from dinoneck.atomic import STALE_AFTER_S, write_folder


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
