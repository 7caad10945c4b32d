"""A full disk: a short campaign finds nothing, and it sees a save that loses the old file."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from benchmarks.reliability import full_disk
from benchmarks.reliability.full_disk import Trial, limits, measure
from tests.reliability_result import stored

from dinoneck import CheckpointError, HeadCheckpoint


def test_the_published_campaign() -> None:
    result = stored("full_disk")
    assert result["limited"]["limits"] >= 200 + result["limited"]["edges"] - 20
    assert result["limited"]["edges"] >= 15
    assert result["limited"]["outcomes"].keys() == {"saved", "write, EFBIG"}
    assert result["full"]["possible"] in (True, False)
    if result["full"]["possible"]:
        assert result["full"]["outcomes"]["write, ENOSPC"] >= 50


@pytest.mark.slow
def test_a_short_campaign(tmp_path: Path) -> None:
    result = measure(tmp_path, 0.05)
    assert not result["failed"], result
    assert result["limited"]["outcomes"]["write, EFBIG"] > 15
    assert not result["full"]["possible"] or result["full"]["outcomes"]["write, ENOSPC"] > 2
    assert "EFBIG" in full_disk.page(result)


def test_limits_lie_around_every_tensor_and_over_the_whole_file(tmp_path: Path) -> None:
    trial = Trial(tmp_path)
    size, header = len(trial.whole), 8 + int.from_bytes(trial.whole[:8], "little")
    found = limits(trial, 200)
    assert {0, 1, 7, 8, 9, header - 1, header, header + 1, size - 1, size, size + 1} <= set(found)
    assert len(found) >= 200
    assert max(b - a for a, b in pairwise(found)) <= -(-size // 199)


def test_the_campaign_sees_a_save_that_loses_something(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trial = Trial(tmp_path)
    assert trial.outcome(lambda: None) == "saved"

    def torn(head: HeadCheckpoint, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    def littering(head: HeadCheckpoint, path: Path) -> None:
        (path.parent / ".x.dinoneck-tmp").touch()
        raise CheckpointError("no room", step="write") from OSError(28, "No space left on device")

    monkeypatch.setattr(HeadCheckpoint, "save", torn)
    assert trial.outcome(lambda: None) == "uncaught OSError; another file than it ought to be"
    trial.path.write_bytes(trial.old)
    monkeypatch.setattr(HeadCheckpoint, "save", littering)
    assert trial.outcome(lambda: None) == "write, ENOSPC; a temporary file is left"
    monkeypatch.setattr(HeadCheckpoint, "save", lambda head, path: None)
    assert trial.outcome(lambda: None) == "saved; another file than it ought to be"
