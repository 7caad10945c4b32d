"""Whole files or none."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dinoneck.atomic import write_text, write_whole


def test_writes_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "a b ü.txt"
    write_text(path, "eins")
    write_whole(path, [b"zw", memoryview(b"ei")])
    assert path.read_text() == "zwei"
    assert os.listdir(tmp_path) == [path.name]


def broken() -> Iterator[bytes]:
    yield b"new"
    raise ValueError("unsound")


def refuse(written: Path) -> None:
    assert written.read_text() == "new"
    raise ValueError("unsound")


@pytest.mark.parametrize("options", [{"chunks": broken()}, {"chunks": b"new", "check": refuse}])
def test_a_failure_keeps_the_old_file_and_leaves_nothing(options: Any, tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_text(path, "old")
    with pytest.raises(ValueError, match="unsound"):
        write_whole(path, **options)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]
