"""Whole files or none."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from dinoneck.atomic import write_text, write_whole


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
