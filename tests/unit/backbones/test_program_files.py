"""The files of compiled programs: whole or not at all, this user's alone, and at most 2 GB."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tests.kit import full_disk

from dinoneck import load_backbone
from dinoneck.atomic import STALE_AFTER_S
from dinoneck.backbones import openvino, program_files
from dinoneck.backbones.program_files import (
    CacheSize,
    GainRecord,
    ProgramFolder,
    ProgramRecord,
    processor,
    program_folder,
)

NAME = "abc-1.program"
PROGRAM = b"compiled" * 10
RECORD = ProgramRecord(
    compile_seconds=5.0,
    torch_seconds=0.5,
    program_seconds=0.25,
    probe=[0.5, -0.25],
    num_bytes=len(PROGRAM),
    measured_at=1e9,
)
only_posix = pytest.mark.skipif(os.name != "posix", reason="users and permission bits of POSIX")


@pytest.fixture
def folder(tmp_path: Path) -> ProgramFolder:
    return ProgramFolder(tmp_path / "cache" / "programs")


def test_a_file_gives_back_its_record_and_program(folder: ProgramFolder) -> None:
    folder.write(NAME, RECORD, PROGRAM)
    assert folder.record(NAME, ProgramRecord) == RECORD
    assert folder.program(NAME) == PROGRAM
    assert folder.record("other.program", ProgramRecord) is None
    assert folder.program("other.program") is None


def test_figures_are_kept_without_a_program(folder: ProgramFolder) -> None:
    folder.write("gain-1.program", GainRecord(2.5, measured_at=0.0))
    assert folder.record("gain-1.program", GainRecord) == GainRecord(2.5, measured_at=0.0)


@only_posix
def test_nobody_else_may_read_or_write_it(folder: ProgramFolder) -> None:
    folder.write(NAME, RECORD, PROGRAM)
    assert (folder.path / NAME).stat().st_mode & 0o777 == 0o600
    assert folder.path.stat().st_mode & 0o777 == 0o700


def test_every_changed_byte_is_noticed_and_the_file_removed(folder: ProgramFolder) -> None:
    folder.write(NAME, RECORD, PROGRAM)
    path = folder.path / NAME
    content = path.read_bytes()
    for position in range(len(content)):
        damaged = bytearray(content)
        damaged[position] ^= 1
        path.write_bytes(damaged)
        assert folder.program(NAME) is None, position
        assert not path.exists()


@pytest.mark.parametrize("length", [0, 1, 60, 200, -1])
def test_a_file_that_was_cut_off_is_removed(folder: ProgramFolder, length: int) -> None:
    folder.write(NAME, RECORD, PROGRAM)
    path = folder.path / NAME
    path.write_bytes(path.read_bytes()[:length])
    assert folder.program(NAME) is None
    assert not path.exists()


def test_a_record_of_another_kind_is_none(folder: ProgramFolder) -> None:
    folder.write(NAME, GainRecord(2.5, measured_at=0.0))
    assert folder.record(NAME, ProgramRecord) is None


@only_posix
def test_files_of_another_user_are_not_read(
    folder: ProgramFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.write(NAME, RECORD, PROGRAM)
    user = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: user + 1)
    assert folder.program(NAME) is None
    assert folder.record(NAME, ProgramRecord) is None
    folder.write("abc-2.program", RECORD, PROGRAM)
    assert [path.name for path in folder.path.iterdir()] == [NAME]


@only_posix
@pytest.mark.parametrize("which", ["file", "folder"])
def test_what_others_may_write_to_is_not_read(folder: ProgramFolder, which: str) -> None:
    folder.write(NAME, RECORD, PROGRAM)
    path = folder.path / NAME if which == "file" else folder.path
    path.chmod(path.stat().st_mode | 0o020)
    assert folder.program(NAME) is None
    assert (folder.path / NAME).exists()


@only_posix
def test_links_and_pipes_are_not_read(folder: ProgramFolder, tmp_path: Path) -> None:
    folder.write(NAME, RECORD, PROGRAM)
    (folder.path / NAME).rename(tmp_path / "elsewhere")
    (folder.path / NAME).symlink_to(tmp_path / "elsewhere")
    assert folder.program(NAME) is None
    (folder.path / NAME).unlink()
    os.mkfifo(folder.path / NAME)
    assert folder.program(NAME) is None


def test_a_full_disk_leaves_nothing_and_raises_nothing(folder: ProgramFolder) -> None:
    with full_disk():
        folder.write(NAME, RECORD, PROGRAM)
    assert list(folder.path.iterdir()) == []


def test_a_folder_that_cannot_be_made_raises_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    folder = ProgramFolder(tmp_path / "file" / "programs")
    folder.write(NAME, RECORD, PROGRAM)
    assert folder.program(NAME) is None
    assert folder.size() == CacheSize(0, 0)


def test_the_least_recently_used_programs_make_room(
    folder: ProgramFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(4):
        folder.write(f"abc-{number}.program", RECORD, PROGRAM)
        os.utime(folder.path / f"abc-{number}.program", (1000 + number, 1000 + number))
    length = (folder.path / "abc-0.program").stat().st_size
    assert folder.size() == CacheSize(4, 4 * length)
    monkeypatch.setattr(program_files, "LARGEST_CACHE_BYTES", 4 * length)
    folder.program("abc-0.program")  # now the last used one
    folder.write("abc-4.program", RECORD, PROGRAM)
    names = sorted(path.name for path in folder.path.iterdir())
    assert names == [f"abc-{number}.program" for number in (0, 2, 3, 4)]
    monkeypatch.setattr(program_files, "LARGEST_CACHE_BYTES", length - 1)
    folder.write("abc-5.program", RECORD, PROGRAM)  # too large alone: nothing makes room for it
    assert folder.size().num_programs == 4


def test_records_of_weights_are_the_newest_first(folder: ProgramFolder) -> None:
    for number, name in enumerate(("abc-1.program", "xyz-1.program", "abc-2.program")):
        record = ProgramRecord(float(number), 1.0, 1.0, [], num_bytes=0, measured_at=1e9)
        folder.write(name, record)
        os.utime(folder.path / name, (1000 + number, 1000 + number))
    assert [record.compile_seconds for record in folder.records("abc-")] == [2.0, 0.0]


def test_the_folder_is_emptied(folder: ProgramFolder) -> None:
    folder.empty()
    folder.write(NAME, RECORD, PROGRAM)
    folder.empty()
    assert folder.size() == CacheSize(0, 0)


KILLED = """
import os
import signal
import sys
from pathlib import Path
from tests.unit.backbones.test_program_files import NAME, PROGRAM, RECORD
from dinoneck.backbones.program_files import ProgramFolder

os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)
ProgramFolder(Path(sys.argv[1])).write(NAME, RECORD, PROGRAM)
"""


@pytest.mark.slow
@only_posix
def test_a_killed_writer_leaves_no_program_and_what_it_left_is_cleared(
    folder: ProgramFolder,
) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(folder.path)], check=False)
    assert done.returncode == -signal.SIGKILL
    [left] = folder.path.iterdir()
    assert folder.program(NAME) is None
    assert folder.size().num_programs == 0
    long_ago = time.time() - STALE_AFTER_S - 1
    os.utime(left, (long_ago, long_ago))
    folder.write("abc-2.program", RECORD, PROGRAM)  # of another name than the killed one's
    assert [path.name for path in folder.path.iterdir()] == ["abc-2.program"]


def write_often(path: Path, letter: bytes) -> None:
    folder = ProgramFolder(path)
    for _ in range(100):
        folder.write(NAME, RECORD, letter * 100_000)


@pytest.mark.slow
def test_two_processes_that_write_one_program_never_tear_it(folder: ProgramFolder) -> None:
    folder.write(NAME, RECORD, b"a" * 100_000)
    context = multiprocessing.get_context("spawn")
    writers = [
        context.Process(target=write_often, args=(folder.path, letter)) for letter in (b"b", b"c")
    ]
    for writer in writers:
        writer.start()
    seen = set()
    while any(writer.is_alive() for writer in writers):
        program = folder.program(NAME)
        assert program is not None
        assert len(set(program)) == 1
        seen.add(program[:1])
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert len(seen) > 1
    assert len(list(folder.path.iterdir())) == 1


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"DINONECK_CACHE": "/a", "XDG_CACHE_HOME": "/b", "HOME": "/c"}, "/a/programs"),
        ({"XDG_CACHE_HOME": "/b", "HOME": "/c"}, "/b/dinoneck/programs"),
        ({"HOME": "/c"}, "/c/.cache/dinoneck/programs"),
    ],
    ids=["DINONECK_CACHE", "XDG_CACHE_HOME", "HOME"],
)
@only_posix
def test_the_cache_folder_follows_the_environment(
    environment: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("DINONECK_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    folder = program_folder()
    assert folder is not None
    assert str(folder.path) == expected


def test_the_processor_is_named() -> None:
    assert processor()["machine"]


@pytest.mark.slow
@pytest.mark.skipif(not openvino.is_installed(), reason="the extra [fast] is not installed")
def test_a_program_from_a_file_gives_the_same_tokens_to_the_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DINONECK_CACHE", str(tmp_path))
    images = torch.randn(3, 3, 32, 48).clamp(-3, 3)
    compiled = load_backbone("dinoneck_tiny", layers=[2, 5], runtime="openvino")(images)
    [path] = (tmp_path / "programs").iterdir()

    def fail(*args: object, **options: object) -> None:
        raise AssertionError("compiled again")

    with monkeypatch.context() as patch:
        patch.setattr(openvino, "compile_program", fail)
        loaded = load_backbone("dinoneck_tiny", layers=[2, 5], runtime="openvino")(images)
    for actual, expected in zip(loaded.sequence, compiled.sequence, strict=True):
        assert torch.equal(actual, expected)
    content = path.read_bytes()
    path.write_bytes(content[:-1])  # damaged: it is made again
    load_backbone("dinoneck_tiny", layers=[2, 5], runtime="openvino")(images)
    assert path.stat().st_size >= len(content) - 200


@pytest.mark.slow
@pytest.mark.skipif(not openvino.is_installed(), reason="the extra [fast] is not installed")
def test_a_program_that_openvino_cannot_read_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DINONECK_CACHE", str(tmp_path))
    images = torch.randn(1, 3, 16, 16).clamp(-3, 3)
    load_backbone("dinoneck_tiny", layers=[0], runtime="openvino")(images)
    folder = ProgramFolder(tmp_path / "programs")
    [path] = folder.path.iterdir()
    record = folder.record(path.name, ProgramRecord)
    assert record is not None
    folder.write(path.name, record, b"of another version")
    load_backbone("dinoneck_tiny", layers=[0], runtime="openvino")(images)
    assert len(folder.program(path.name) or b"") == record.num_bytes
