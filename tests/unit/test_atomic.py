"""What a save keeps of the file that it replaces, what it clears, and on which file systems it works."""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dinoneck.atomic import STALE_AFTER_S, write_text


def permission_bits(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def write_leftover(path: Path, age_s: float) -> None:
    """Write the temporary file of a save that was killed some time ago."""
    path.write_text("half")
    changed = time.time() - age_s
    os.utime(path, (changed, changed))


def failing(code: int) -> Callable[..., None]:
    """A system call that the file system does not offer."""

    def call(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    return call


@pytest.mark.parametrize("bits", [0o600, 0o640, 0o666], ids=oct)
def test_a_replaced_file_keeps_its_permission_bits(bits: int, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    path.chmod(bits)

    write_text(path, "new")

    assert path.read_text() == "new"
    assert permission_bits(path) == bits


def test_a_symbolic_link_stays_a_link_and_its_file_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    real = tmp_path / "folder" / "real"
    real.write_text("old")
    link = tmp_path / "link"
    link.symlink_to(real)

    write_text(link, "new")

    assert link.is_symlink()
    assert real.read_text() == "new"


def test_another_name_of_a_file_keeps_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    (tmp_path / "other").hardlink_to(path)

    write_text(path, "new")

    assert (tmp_path / "other").read_text() == "old"


@pytest.mark.parametrize("name", ["x" * 255, "ü" * 127], ids=["255 letters", "254 bytes of UTF-8"])
def test_the_longest_names_can_be_saved(name: str, tmp_path: Path) -> None:
    path = tmp_path / name

    write_text(path, "x")

    assert path.read_text() == "x"


@pytest.mark.skipif(os.name != "posix", reason="other systems have names in Unicode only")
def test_names_that_are_not_utf8_can_be_saved(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"gr\xfcn")

    write_text(path, "x")

    assert path.read_text() == "x"
    assert os.listdir(tmp_path) == [path.name]


def test_leftovers_of_killed_saves_go_after_an_hour(tmp_path: Path) -> None:
    leftover = tmp_path / ".file.00.dinoneck-tmp"
    write_leftover(leftover, STALE_AFTER_S + 10)

    write_text(tmp_path / "file", "x")

    assert os.listdir(tmp_path) == ["file"]


def test_the_temporary_file_of_a_writer_at_work_stays(tmp_path: Path) -> None:
    at_work = tmp_path / ".file.00.dinoneck-tmp"
    write_leftover(at_work, STALE_AFTER_S - 60)

    write_text(tmp_path / "file", "x")

    assert at_work.read_text() == "half"


def test_leftovers_of_other_files_stay(tmp_path: Path) -> None:
    other = tmp_path / ".other.00.dinoneck-tmp"
    write_leftover(other, STALE_AFTER_S + 10)

    write_text(tmp_path / "file", "x")

    assert other.exists()


@pytest.mark.skipif(os.name != "posix", reason="other systems cannot open a folder for flushing")
@pytest.mark.parametrize(
    "code", [errno.EINVAL, errno.ENOTSUP, errno.EACCES], ids=errno.errorcode.get
)
def test_file_systems_that_cannot_flush_folders_take_saves(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flush = os.fsync

    def flush_files_only(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(code, os.strerror(code))
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", flush_files_only)

    write_text(tmp_path / "file", "x")

    assert (tmp_path / "file").read_text() == "x"


@pytest.mark.parametrize("code", [errno.EPERM, errno.ENOTSUP], ids=errno.errorcode.get)
def test_file_systems_without_permission_bits_take_saves(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    monkeypatch.setattr(os, "chmod", failing(code))

    write_text(path, "new")

    assert path.read_text() == "new"


def test_a_folder_that_cannot_rename_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    monkeypatch.setattr(os, "replace", failing(errno.EPERM))

    with pytest.raises(OSError, match=os.strerror(errno.EPERM)):
        write_text(path, "new")

    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EFBIG], ids=errno.errorcode.get)
def test_the_error_of_a_full_disk_or_a_limit_names_the_file(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    monkeypatch.setattr(os, "fsync", failing(code))

    with pytest.raises(OSError, match=os.strerror(code)) as caught:
        write_text(path, "new")

    assert (caught.value.errno, caught.value.filename) == (code, str(path))
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes with names")
def test_a_pipe_is_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)

    with pytest.raises(OSError, match="it is a pipe; only regular files are written"):
        write_text(pipe, "x")

    assert pipe.is_fifo()


def test_a_write_protected_file_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    path.chmod(0o444)

    with pytest.raises(PermissionError, match="write-protected"):
        write_text(path, "new")

    assert path.read_text() == "old"
