"""The campaigns at a small share, and that the judges notice readers with a fault."""

from __future__ import annotations

import dataclasses
import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from tests import kit
from tests.faults import changes, known_open, mutate, pairing, signed, store
from tests.faults.judge import HARMLESS, REFUSED, Judge, files
from tests.faults.pairs import evaluations, extractions, heads, predictions
from tests.faults.pairs.options import raise_refusal, verdict
from tests.faults.report import PAGE, PARTS, REPORT, page
from tests.process_group import printed_by

from dinoneck import CheckpointError, DinoneckError, HeadCheckpoint
from dinoneck.data import Preprocessing


@pytest.mark.campaign
@pytest.mark.parametrize("part", PARTS)
def test_no_case_is_silently_wrong(part: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.faults", "--parts", part, "--share", "0.002"]
    printed_by([*command, "--out", str(tmp_path / "report.json")], 280)
    report = json.loads((tmp_path / "report.json").read_text())[part]
    assert all(counts["cases"] > 0 for counts in report["modes"].values())
    assert known_open.unknown(report["faults"]) == []


@pytest.mark.slow
def test_sound_files_are_spelled_as_the_description_has_it_and_are_harmless(tmp_path: Path) -> None:
    judge = Judge(tmp_path)
    for name, raw in files().items():
        assert signed.write(*signed.read(raw)) == raw, name
        assert judge.verdict(raw, name) == judge.verdict(raw) == HARMLESS, name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("part", "mode"), [(mutate, mutate.OTHER_FORMAT), (pairing, pairing.OTHER_TOKENS)]
)
def test_foreign_files_and_tokens_are_refused(part: Any, mode: str, tmp_path: Path) -> None:
    assert REFUSED in set(part.outcomes(mode, 1.0, tmp_path)) <= {REFUSED, HARMLESS}


load = HeadCheckpoint.load


def forgetful(path: Path, **options: str) -> HeadCheckpoint:
    """A reader that loses a transform."""
    head = load(path, **options)
    head.meta["config"]["tasks"][0]["transform"] = head.meta["tasks"][0]["transform"] = None
    return head


def without_digest(path: Path, **options: str) -> HeadCheckpoint:
    """A reader that loads whatever has another digest than its own."""
    try:
        return load(path, **options)
    except CheckpointError as error:
        if error.step != "digest":
            raise
        path.write_bytes(signed.write(*signed.read(path.read_bytes())))
        return load(path, **options)


def test_the_judge_sees_a_reader_with_a_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.faults.judge.read_header", lambda path: None)
    monkeypatch.setattr(HeadCheckpoint, "load", forgetful)
    assert "metadata" in Judge(tmp_path).verdict(files()["all records"], "all records")
    monkeypatch.setattr(HeadCheckpoint, "load", without_digest)
    found = list(mutate.outcomes("smallest", 0.002, tmp_path))
    assert sum("loads with other bytes" in verdict for verdict in found) > 3


def test_the_judge_sees_tokens_of_another_image(tmp_path: Path) -> None:
    world = store.World(tmp_path, 0.0)
    world.extract(world.root, world.other_images)
    assert " " in world.outcome()


def test_the_page_shows_the_stored_report_which_has_no_unknown_fault() -> None:
    report = json.loads(REPORT.read_text())
    assert PAGE.read_text() == page(report), "python -m tests.faults --parts"
    assert report.keys() == set(PARTS)
    for part, found in report.items():
        modes = importlib.import_module(f"tests.faults.{part}").MODES
        assert list(found["modes"]) == list(modes), part
        assert known_open.unknown(found["faults"]) == [], part
    lines = [line for found in report.values() for line in found["faults"]]
    for case in known_open.OPEN_CASES:
        assert known_open.count(case, lines) > 0, f"repaired, so no open case: {case.sentence}"


@pytest.mark.slow
@pytest.mark.parametrize("family", [heads, extractions, predictions, evaluations])
def test_a_case_without_options_is_equal_and_not_refused(family: Any, tmp_path: Path) -> None:
    neutral = {option.name: option.neutral for option in family.OPTIONS}
    found = set(family.outcomes([neutral], tmp_path))
    assert HARMLESS in found <= {HARMLESS, REFUSED}


def without_normalisation(self: Any, images: Any) -> Any:
    """Prepared images that are not normalised."""
    return dataclasses.replace(finished(self, images), images=finished(self, images).images * 0.9)


finished = Preprocessing.finished


def test_the_judge_of_pairs_sees_a_head_that_reads_other_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    neutral = {option.name: option.neutral for option in heads.OPTIONS}
    saved = heads.save(neutral, tmp_path / "head.safetensors")
    monkeypatch.setattr(Preprocessing, "finished", without_normalisation)
    found = verdict("case", lambda: heads.check(saved, heads.by_its_own_backbone))
    assert "mass differs by" in found


@pytest.mark.slow
def test_the_judge_of_changes_sees_a_predictor_that_compares_no_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mode = "the backbone of a Predictor, after it is made"
    assert set(changes.outcomes(mode, 0.1, tmp_path)) == {REFUSED}
    monkeypatch.setattr("dinoneck.backbones.weight_hashes.Watch.is_same", lambda *_: True)
    monkeypatch.setattr("dinoneck.checkpoint.compare.check_records", lambda *_, **__: None)
    found = list(changes.outcomes(mode, 0.1, tmp_path))
    assert any("results differs by" in outcome for outcome in found)


def test_an_open_case_is_known_by_the_beginning_of_its_line_alone() -> None:
    mode = "the backbone of a Predictor, after it is made"
    assert known_open.unknown([f"{mode}: a write to .data: results differs"]) == []
    others = [f"{mode}: another one: differs", "train: seed=7: differs"]
    assert known_open.unknown(others) == others


def test_a_refusal_of_a_command_is_raised_as_an_error_of_dinoneck() -> None:
    ran = kit.Ran(code=1, out="", err="reading\nerror: --size is 3\n")

    with pytest.raises(DinoneckError, match="--size is 3"):
        raise_refusal(ran)


FRAMED = """
╭─ Value error ─────────────╮
│ run.folds: give one of    │
│ --fold-column, --stratify │
╰───────────────────────────╯
"""
WITH_DASHES = """
 Value error
 ---------------------------
  run.folds: give one of
  --fold-column, --stratify
"""


@pytest.mark.parametrize("box", [FRAMED, WITH_DASHES], ids=["framed", "with dashes"])
def test_wrong_usage_of_a_command_is_raised_with_the_words_of_its_box(box: str) -> None:
    ran = kit.Ran(code=2, out="", err=box)

    with pytest.raises(DinoneckError) as refused:
        raise_refusal(ran)

    assert str(refused.value) == "run.folds: give one of --fold-column, --stratify"


def test_an_exit_code_of_wrong_usage_without_an_error_is_no_refusal() -> None:
    ran = kit.Ran(code=2, out="", err="usage: dinoneck train\n")

    with pytest.raises(AssertionError, match="exit code 2 without an error"):
        raise_refusal(ran)


@pytest.mark.parametrize(
    "printed", ["error: unexpected KeyError: 'x' (--verbose shows where)\n", ""]
)
def test_a_crash_of_a_command_is_no_refusal(printed: str) -> None:
    ran = kit.Ran(code=1, out="", err=printed)

    with pytest.raises(AssertionError):
        raise_refusal(ran)
