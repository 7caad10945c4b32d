"""The campaigns at a small share, and that the judge sees a reader with a fault."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.faults import forge, mutate, signed, subjects
from tests.faults.__main__ import KILLS, MUTATIONS, PARTS
from tests.faults.judge import HARMLESS, SILENT, Judge
from tests.faults.page import PAGE, REPORT, written
from tests.process_group import told_by

from dinoneck import CheckpointError, HeadCheckpoint

FACTS = "patch_mean with all records"


def test_sound_files_are_spelled_as_the_description_has_it_and_are_harmless(tmp_path: Path) -> None:
    judge = Judge(tmp_path)
    for name, raw in subjects.files().items():
        content = signed.read(raw)
        assert signed.write(content.meta, content.chunks) == raw, name
        assert judge.forged(raw, name, frozenset()).kind == judge.damaged(raw).kind == HARMLESS, name


def test_forged_headers(tmp_path: Path) -> None:
    report = forge.campaign(tmp_path, 0.004)
    assert report.tried > 200 and not report.bad, report.bad
    assert set(report.steps) >= {"json", "schema", "config", "tensors"} and report.kinds[HARMLESS] > 3


def test_damaged_bytes(tmp_path: Path) -> None:
    reports = mutate.campaign(tmp_path, 900, seed=1)
    for kind, report in reports.items():
        assert not report.bad, report.bad
        assert report.tried > 60, kind
    assert not (bits := mutate.every_bit(tmp_path, 61)).bad, bits.bad


@pytest.mark.parametrize("job", ["save", *(pytest.param(job, marks=pytest.mark.slow) for job in ("extract", "train"))])
def test_kills(job: str) -> None:
    result = json.loads(told_by([sys.executable, "-m", "tests.faults.kill", job, "8"], 110).splitlines()[-1])
    assert result["identical"] == result["runs"] == sum(result["kills"].values()) == 8, result["bad"]


def test_a_full_disk_and_many_writers() -> None:
    result = json.loads(told_by([sys.executable, "-m", "tests.faults.disk", "6", "4"], 110).splitlines()[-1])
    assert not result["full_disk"]["bad"] and not result["writers"]["bad"], result
    assert result["full_disk"]["outcomes"]["write"] > 10


# -- a campaign that cannot fail proves nothing ------------------------------------------------------------------------

Reader = Callable[[Path], HeadCheckpoint]


def without_digest(load: Reader) -> Reader:
    """Loads whatever has another digest than its own."""

    def read(path: Path) -> HeadCheckpoint:
        try:
            return load(path)
        except CheckpointError as error:
            if error.step != "digest":
                raise
            content = signed.read(path.read_bytes())
            path.write_bytes(signed.write(content.meta, content.chunks))
            return load(path)

    return read


def forgetful(load: Reader) -> Reader:
    """Loses a transform."""

    def read(path: Path) -> HeadCheckpoint:
        head = load(path)
        head.meta["config"]["tasks"][0]["transform"] = head.meta["tasks"][0]["transform"] = None
        return head

    return read


def test_the_judge_sees_a_reader_with_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judge = Judge(tmp_path)
    raw = subjects.files()[FACTS]
    assert judge.forged(raw, FACTS, frozenset({"tasks"})).kind == HARMLESS
    monkeypatch.setattr("tests.faults.judge.SECONDS", 0.3)
    monkeypatch.setattr("tests.faults.judge.read_header", lambda path: None)
    monkeypatch.setattr(HeadCheckpoint, "load", forgetful(HeadCheckpoint.load))
    assert judge.forged(raw, FACTS, frozenset({"tasks"})).kind == SILENT


def test_damage_is_seen_where_the_digest_is_not_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.faults.judge.read_header", lambda path: None)
    monkeypatch.setattr(HeadCheckpoint, "load", without_digest(HeadCheckpoint.load))
    reports = mutate.campaign(tmp_path, 200, seed=3)
    assert sum(report.kinds[SILENT] for report in reports.values()) > 3


# -- ``docs/reliability.md`` shows the stored report, which is without a fault


FORGED = 20_000


def test_the_page_is_written_from_the_report() -> None:
    assert PAGE.read_text() == written(json.loads(REPORT.read_text())), "python -m tests.faults --parts"


def test_the_report_is_of_the_share_that_it_states_and_without_a_fault() -> None:
    report = json.loads(REPORT.read_text())
    assert report.keys() == PARTS.keys()
    for name, part in report.items():
        assert not part["result"]["bad"], name
    assert report["forge"]["result"]["tried"] >= report["forge"]["share"] * FORGED
    assert report["mutate"]["result"]["tried"] >= report["mutate"]["share"] * MUTATIONS
    for job in report["kill"]["result"]["jobs"].values():
        assert job["identical"] == job["runs"] == sum(job["kills"].values()) >= report["kill"]["share"] * KILLS
    modes = [mode for name in ("store", "fit", "load_head") for mode in report[name]["result"]["modes"].values()]
    assert all(mode["cases"] == mode["refused"] + mode["noticed"] + mode["harmless"] for mode in modes)
