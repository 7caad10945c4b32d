"""Frozen files of released versions stay byte for byte."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.frozen.__main__ import VERSION, released_folders
from tests.frozen.checksums import CHECKSUMS, broken_seals, seal
from tests.frozen.folder import FIXTURES


def write_version(folder: Path) -> None:
    """Write two files and their list."""
    (folder / "heads").mkdir()
    (folder / "heads" / "a").write_bytes(b"old")
    (folder / "expected.json").write_bytes(b"{}\n")
    seal(folder)


@pytest.mark.parametrize("folder", released_folders(), ids=lambda folder: folder.name)
def test_the_files_of_a_released_version_stay_byte_for_byte(folder: Path) -> None:
    assert broken_seals(folder) == []


def test_every_version_but_that_in_development_is_released() -> None:
    folders = {folder.name for folder in FIXTURES.iterdir()}
    assert {folder.name for folder in released_folders()} == folders - {VERSION}
    assert "0.3.0" in folders


def test_files_that_stay_break_no_seal(tmp_path: Path) -> None:
    write_version(tmp_path)
    assert broken_seals(tmp_path) == []


def test_a_changed_byte_breaks_the_seal(tmp_path: Path) -> None:
    write_version(tmp_path)
    (tmp_path / "expected.json").write_bytes(b"{}\r\n")
    assert broken_seals(tmp_path) == ["expected.json is changed"]


def test_a_lost_file_and_a_new_one_break_the_seal(tmp_path: Path) -> None:
    write_version(tmp_path)
    (tmp_path / "heads" / "a").rename(tmp_path / "heads" / "b")
    assert broken_seals(tmp_path) == ["heads/a is lost", "heads/b is new"]


def test_a_seal_is_not_replaced(tmp_path: Path) -> None:
    write_version(tmp_path)
    sealed = (tmp_path / CHECKSUMS).read_bytes()
    (tmp_path / "heads" / "a").write_bytes(b"new")
    seal(tmp_path)
    assert (tmp_path / CHECKSUMS).read_bytes() == sealed
