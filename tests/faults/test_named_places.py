"""Places that are no plain files, file systems that fail, refused saves, and another backbone for Predictor."""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tests.faults.test_named_faults import sound, square

from dinoneck import CheckpointError, HeadCheckpoint


def bound(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        os.chdir(path.parent)  # a socket's name is short
        made.bind(path.name)


def linked(path: Path, to: str) -> None:
    path.symlink_to(to)


PLACES: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "nothing": (lambda path: None, "No such file", ""),
    "a folder without a head": (Path.mkdir, "holds no head files", "is a folder"),
    "a pipe": (os.mkfifo, "regular file", "device or pipe"),
    "a socket": (bound, "regular file", "device or pipe"),
    "a link to itself": (partial(linked, to="h"), "cannot be opened", "leads to itself"),
    "a link to nothing in a missing folder": (partial(linked, to="no/h"), "No such file", "does not exist"),
    "a write-protected file": (lambda path: (path.write_bytes(sound()), path.chmod(0o444)), "", "write-protected"),
}


@pytest.mark.parametrize("name", PLACES)
def test_places_that_are_no_files(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make, loading, saving = PLACES[name]
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "h")
    before = {path.name: path.lstat().st_mode for path in tmp_path.iterdir()}
    for action, message, step in ((HeadCheckpoint.load, loading, "file"), (square().save, saving, "write")):
        if message:
            with pytest.raises(CheckpointError, match=message) as caught:
                action(tmp_path / "h")
            assert caught.value.step == step
            assert {path.name: path.lstat().st_mode for path in tmp_path.iterdir()} == before


def test_links_hard_links_and_permission_bits_are_kept(tmp_path: Path) -> None:
    real, link, other = tmp_path / "real", tmp_path / "link", tmp_path / "other"
    real.write_bytes(sound())
    real.chmod(0o640)
    link.symlink_to(real)
    os.link(real, other)
    square().save(link)
    assert link.is_symlink() and stat.S_IMODE(real.stat().st_mode) == 0o640
    assert (
        HeadCheckpoint.load(real).meta["digest"] == HeadCheckpoint.load(link).meta["digest"] == square().meta["digest"]
    )
    assert other.read_bytes() == sound()


def fails(name: str, code: int, on: Callable[[int], bool], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a call of the system fail."""
    real = getattr(os, name)

    def call(first: Any, *rest: Any, **options: Any) -> Any:
        if on(first):
            raise OSError(code, os.strerror(code))
        return real(first, *rest, **options)

    monkeypatch.setattr(os, name, call)


def is_file(descriptor: Any) -> bool:
    return not isinstance(descriptor, int) or not stat.S_ISDIR(os.fstat(descriptor).st_mode)


@pytest.mark.parametrize(
    ("name", "code", "message"),
    [("replace", errno.EXDEV, "cannot be renamed"), ("replace", errno.ENOTSUP, "local disk"),
     ("replace", errno.EBUSY, "cannot be renamed"), ("fsync", errno.EIO, "Input/output"),
     ("fsync", errno.ENOSPC, "space"), ("chmod", errno.EIO, "Input/output")],
)  # fmt: skip
def test_a_file_system_that_fails_keeps_the_old_file(
    name: str, code: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "h").write_bytes(sound())
    fails(name, code, is_file, monkeypatch)
    if name == "replace":
        monkeypatch.setattr(Path, "replace", lambda self, target: os.replace(self, target))  # noqa: PTH105
    elif name == "chmod":
        monkeypatch.setattr(Path, "chmod", lambda self, mode: os.chmod(self, mode))  # noqa: PTH101
    with pytest.raises(CheckpointError, match=message) as caught:
        square().save(tmp_path / "h")
    assert caught.value.step == "write"
    assert [path.name for path in tmp_path.iterdir()] == ["h"]
    assert (tmp_path / "h").read_bytes() == sound()


@pytest.mark.parametrize(("name", "code"), [("chmod", errno.ENOTSUP), ("fsync", errno.EINVAL)])
def test_a_file_system_that_offers_less_takes_the_file(
    name: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "h").write_bytes(sound())
    fails(name, code, (lambda first: not is_file(first)) if name == "fsync" else (lambda first: True), monkeypatch)
    square().save(tmp_path / "h")
    monkeypatch.undo()
    assert HeadCheckpoint.load(tmp_path / "h").meta["digest"] == square().meta["digest"]
