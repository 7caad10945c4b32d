"""The program that writes frozen files leaves those that are there as they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.frozen.__main__ import PARTS
from tests.frozen.comparison import differences
from tests.frozen.folder import FIXTURES, VersionFolder, frozen_files


def test_nothing_that_some_version_wrote_is_written_again(tmp_path: Path) -> None:
    folder = VersionFolder(tmp_path)
    for part in PARTS:
        part.freeze(folder)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_there_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "heads").mkdir()
    (tmp_path / "heads" / "a").write_text("old")
    with pytest.raises(FileExistsError, match="delete it"):
        VersionFolder(tmp_path).new_path("heads/a")


def test_a_record_is_not_replaced(tmp_path: Path) -> None:
    VersionFolder(tmp_path).record("heads/a", {"kind": "old"}, {})
    with pytest.raises(ValueError, match="records of frozen files stay"):
        VersionFolder(tmp_path).record("heads/a", {"kind": "new"}, {})


def test_every_record_has_its_file_and_every_file_its_record() -> None:
    for part in ("heads", "modules", "detectors", "stores", "configs", "exports"):
        recorded = {file.path for file in frozen_files(part)}
        there = set(FIXTURES.glob(f"*/{part}/*"))
        assert recorded == there


def test_differences_name_what_is_lost_or_changed_and_not_what_is_new() -> None:
    recorded = {"unit": "g", "bounds": [0, 1], "weight": 1.0}
    today = {"bounds": [0, 2], "weight": True, "new": None}
    found = differences(recorded, today)
    assert found == [
        "unit is missing",
        "bounds[1] is 2; recorded was 1",
        "weight is True; recorded was 1.0",
    ]
