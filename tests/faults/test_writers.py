"""Many writers at once: a short campaign finds nothing, and no order of two writers loses or mixes a folder."""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from benchmarks.reliability import writers
from benchmarks.reliability.kill_targets import contents, ensemble
from benchmarks.reliability.writers import PLANS, Plan, measure
from tests.reliability_result import stored

from dinoneck import CheckpointError
from dinoneck.atomic import STALE_AFTER_S, write_folder


def fill(folder: Path, text: str) -> None:
    """Make a folder, or what it holds, two files of one text."""
    folder.mkdir(exist_ok=True)
    for name in ("a", "b"):
        (folder / name).write_text(text)


def told(folder: Path) -> str:
    """The one text of a whole folder that nothing else lies beside."""
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    texts = {path.read_text() for path in folder.iterdir()}
    assert sorted(path.name for path in folder.iterdir()) == ["a", "b"]
    assert len(texts) == 1
    return texts.pop()


def test_the_published_campaign() -> None:
    result = stored("writers")
    for name, plan in PLANS.items():
        row = result[name]
        assert (row["writers"], row["saves"] + row["saves_refused"]) == (plan.writers, plan.writers * plan.saves)
        assert row["reads"] > 0
        assert row["different_heads_read"] > 1
        assert not row["problems"]
    assert result["file"]["saves_refused"] == result["file"]["reads_refused"] == 0
    assert PLANS["file"] == Plan(8, 100)


@pytest.mark.slow
def test_a_short_campaign(tmp_path: Path) -> None:
    result = measure(tmp_path, 0.1)
    assert not result["failed"], result
    assert result["file"]["saves"] == 80
    assert result["folder"]["saves"] + result["folder"]["saves_refused"] == 8
    assert "one rename" in writers.page(result)


def test_the_judge_sees_a_mix(tmp_path: Path) -> None:
    one, other = ensemble(0), ensemble(1)
    known = {writers.name_of(one): 0}
    other.save(tmp_path / "folder")
    (tmp_path / ".folder.old-1.dinoneck-tmp").mkdir()
    seen = {"found": {writers.name_of(one): 2, "a mix": 1}, "errors": {"uncaught KeyError: x": 1, "digest: y": 1}}
    (tmp_path / "reader-0.json").write_text(json.dumps(seen))
    (tmp_path / "writer-0.json").write_text(json.dumps({"found": {writers.name_of(one): 3}, "errors": {}}))
    roles = [("writer", 0), ("reader", 0), ("reader", 1)]
    result = writers._judged("folder", Plan(1, 4), tmp_path, roles, known)
    assert result["problems"] == [
        "reader 1 told nothing",
        "3 saves were done",
        "1 reads gave a head that nobody saved",
        "uncaught, reader: uncaught KeyError: x",
        "what is there in the end is none that was saved",
        "1 temporary files or folders are left",
    ]


@pytest.mark.parametrize("there", [False, True])
def test_the_last_writer_stays(there: bool, tmp_path: Path) -> None:
    if there:
        fill(tmp_path / "e", "old")
    with write_folder(tmp_path / "e") as first:
        fill(first, "first")
        with write_folder(tmp_path / "e") as second:
            fill(second, "second")
    assert told(tmp_path / "e") == "first", "the one that came into its place last"


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
    assert told(target) == "new"


def test_another_writer_moves_the_folder_aside_first(tmp_path: Path) -> None:
    target, elsewhere = tmp_path / "here" / "e", tmp_path / "elsewhere"
    target.parent.mkdir()
    fill(target, "old")
    with write_folder(target, check=lambda there: there.rename(elsewhere) and None) as new:
        fill(new, "new")
    assert told(target) == "new"


def test_writers_without_end_are_told_and_the_others_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "e"
    fill(target, "old")
    renames_then(monkeypatch, target, lambda time: fill(target, f"other {time}"))
    with pytest.raises(OSError, match="other writers have replaced") as caught, write_folder(target) as new:
        fill(new, "new")
    assert caught.value.errno == errno.EBUSY
    assert told(target).startswith("other")


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
    assert told(target) == "old"


def test_folders_moved_aside_are_cleared_later_if_they_are_not_all_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, aside = tmp_path / "e", tmp_path / ".e.old-0-1.dinoneck-tmp"

    def left_after_a_save() -> bool:
        with write_folder(target) as new:
            fill(new, "new")
        return aside.exists()

    fill(aside, "old")
    os.utime(aside, (0, 0))
    later = time.time() + STALE_AFTER_S + 60
    monkeypatch.setattr(time, "time", lambda: later)
    assert left_after_a_save(), "nothing else was there"
    monkeypatch.undo()
    assert left_after_a_save(), "it may have been moved this moment: the system's own time of change is fresh"
    monkeypatch.setattr(time, "time", lambda: later)
    assert not left_after_a_save()
    assert told(target) == "new"


def test_a_file_in_the_place_stays(tmp_path: Path) -> None:
    (tmp_path / "e").write_text("mine")
    with pytest.raises(NotADirectoryError), write_folder(tmp_path / "e") as new:
        fill(new, "new")
    assert [path.name for path in tmp_path.iterdir()] == ["e"]
    assert (tmp_path / "e").read_text() == "mine"


def test_what_came_in_the_meantime_is_not_replaced_unasked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both found the place empty; the second may not replace the first's without ``overwrite=True``."""
    target, one, other = tmp_path / "e", ensemble(0), ensemble(1)
    listing = type(one).listing

    def slow(self: object) -> object:
        if self is one:
            other.save(target)
        return listing(self)  # type: ignore[arg-type]

    monkeypatch.setattr(type(one), "listing", slow)
    with pytest.raises(CheckpointError, match="not empty; pass overwrite=True") as caught:
        one.save(target)
    assert caught.value.step == "write"
    there = contents(target)
    other.save(target, overwrite=True)
    assert there == contents(target)
    assert [path.name for path in tmp_path.iterdir()] == ["e"]


def test_a_folder_that_vanishes_while_it_is_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ensemble(0).save(tmp_path / "e")

    def gone(self: Path, pattern: str) -> object:
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", str(self))

    monkeypatch.setattr(Path, "glob", gone)
    with pytest.raises(CheckpointError, match="cannot be listed"):
        writers._load("folder", tmp_path / "e")
