"""Folders that are written whole: a failure leaves the old one, and what was never finished is cleared later."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
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


def fill(folder: Path, text: str) -> None:
    """Make a folder, or what it holds, two files of one text."""
    folder.mkdir(exist_ok=True)
    for name in ("a", "b"):
        (folder / name).write_text(text)


def text_of(folder: Path) -> str:
    """The one text of a whole folder, next to which nothing else is."""
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    texts = {path.read_text() for path in folder.iterdir()}
    assert sorted(path.name for path in folder.iterdir()) == ["a", "b"]
    assert len(texts) == 1
    return texts.pop()


@pytest.mark.parametrize("there", [False, True])
def test_the_last_writer_stays(there: bool, tmp_path: Path) -> None:
    if there:
        fill(tmp_path / "e", "old")
    with write_folder(tmp_path / "e") as first:
        fill(first, "first")
        with write_folder(tmp_path / "e") as second:
            fill(second, "second")
    assert text_of(tmp_path / "e") == "first", "the one that came into its place last"


def renames_then(monkeypatch: pytest.MonkeyPatch, target: Path, act: Callable[[int], None]) -> list[int]:
    """Act as another writer does, just before a folder is renamed to ``target``; return how often."""
    rename, times = os.rename, [0]

    def with_another(one: str, two: str) -> None:
        if Path(two) == target:
            times[0] += 1
            act(times[0])
        rename(one, two)

    monkeypatch.setattr(os, "rename", with_another)
    return times


def test_another_writer_between_the_two_renames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "e"
    fill(target, "old")
    times = renames_then(monkeypatch, target, lambda time: fill(target, "other") if time == 1 else None)
    with write_folder(target) as new:
        fill(new, "new")
    assert times == [2]
    assert text_of(target) == "new"


def test_a_failure_between_the_two_renames_puts_the_old_one_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "e"
    fill(target, "old")

    def fail(time: int) -> None:
        if time == 1:
            raise OSError(errno.EIO, "Input/output error")

    renames_then(monkeypatch, target, fail)
    with pytest.raises(OSError, match="Input/output"), write_folder(target) as new:
        fill(new, "new")
    assert text_of(target) == "old"


def test_a_file_in_the_place_stays(tmp_path: Path) -> None:
    (tmp_path / "e").write_text("mine")
    with pytest.raises(NotADirectoryError), write_folder(tmp_path / "e") as new:
        fill(new, "new")
    assert [path.name for path in tmp_path.iterdir()] == ["e"]
    assert (tmp_path / "e").read_text() == "mine"
