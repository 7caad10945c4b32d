"""Whole files or none."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dinoneck.atomic import STALE_AFTER_S, write_text, write_whole


def test_writes_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "a b ü.txt"
    write_text(path, "eins")
    write_whole(path, [b"zw", memoryview(b"ei")])
    assert path.read_text() == "zwei"
    assert os.listdir(tmp_path) == [path.name]


def test_a_failure_keeps_the_old_file_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_text(path, "old")

    def broken() -> Iterator[bytes]:
        yield b"new"
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        write_whole(path, broken())
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_mode_and_links_survive(tmp_path: Path) -> None:
    real = tmp_path / "real"
    real.write_text("x")
    real.chmod(0o640)
    link = tmp_path / "link"
    link.symlink_to(real)
    write_text(link, "y")
    assert link.is_symlink()
    assert real.read_text() == "y"
    assert real.stat().st_mode & 0o777 == 0o640


def test_impossible_targets(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError, match="is a folder"):
        write_text(tmp_path, "x")
    with pytest.raises(FileNotFoundError, match="create it first"):
        write_text(tmp_path / "no" / "file", "x")


def test_long_names(tmp_path: Path) -> None:
    path = tmp_path / ("ü" * 127)  # 254 bytes
    write_text(path, "x")
    assert path.read_text() == "x"


def test_stale_leftovers_of_the_same_file_are_cleared(tmp_path: Path) -> None:
    old, young, other = (tmp_path / name for name in (".f.00.dinoneck-tmp", ".f.11.dinoneck-tmp", ".g.00.dinoneck-tmp"))
    for path in (old, young, other):
        path.write_text("half")
    past = time.time() - STALE_AFTER_S - 10
    os.utime(old, (past, past))
    os.utime(other, (past, past))
    write_text(tmp_path / "f", "x")
    assert sorted(os.listdir(tmp_path)) == [".f.11.dinoneck-tmp", ".g.00.dinoneck-tmp", "f"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes with names")
def test_pipes_and_devices_are_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(OSError, match="device or pipe"):
        write_text(pipe, "x")
    assert not pipe.is_file()


def test_a_check_that_fails_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_text(path, "old")

    def refuse(written: Path) -> None:
        assert written.read_text() == "new"
        raise ValueError("unsound")

    with pytest.raises(ValueError, match="unsound"):
        write_whole(path, b"new", check=refuse)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_protected_files_and_links_to_themselves_are_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_text(path, "old")
    path.chmod(0o444)
    with pytest.raises(PermissionError, match="write-protected"):
        write_text(path, "new")
    assert path.read_text() == "old"
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OSError, match="leads to itself"):
        write_text(tmp_path / "loop", "new")
    assert sorted(os.listdir(tmp_path)) == ["file", "loop"]


def test_names_that_are_no_utf8(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"gr\xfcn")
    write_text(path, "x")
    assert path.read_text() == "x"
    assert len(os.listdir(tmp_path)) == 1


@pytest.mark.parametrize("code", [errno.EPERM, errno.ENOTSUP])
def test_permission_bits_that_are_not_offered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    path = tmp_path / "file"
    write_text(path, "old")

    def refuse(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, "chmod", refuse)
        write_text(path, "new")
    assert path.read_text() == "new"
    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="cannot be renamed to .*Save to a folder on a local disk"):
        write_text(path, "newer")
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["file"]
