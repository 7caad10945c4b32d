"""Every command of the page of the first hour prints what it says; mistakes are refused before torch is imported."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.first_use.__main__ import PAGE
from tests.first_use.cases import AFTER_TORCH, FINDINGS, MISTAKES, Case
from tests.first_use.run import prepare, run_case


@pytest.mark.parametrize("case", [*FINDINGS, *MISTAKES], ids=lambda case: case.what)
def test_the_page_has_every_command_and_its_output(case: Case) -> None:
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith(f"| {case.what} |")]
    assert len(rows) == 1
    assert case.command in rows[0]
    for text in (case.says, *case.shows):
        assert text.strip() in rows[0]


def test_there_are_as_many_mistakes_as_were_made() -> None:
    """33 of an hour, and those among the findings."""
    assert len(MISTAKES) == 33 + 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("first-use")
    prepare(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("case", [*FINDINGS, *MISTAKES], ids=lambda case: case.what)
def test_a_command_prints_what_it_has_to(case: Case, folder: Path) -> None:
    before = sorted(folder.rglob("*"))
    ran = run_case(case, folder)
    assert ran.code == case.code, ran.lines
    for text in (case.says, *case.shows):
        assert ran.line_with(text), ran.lines
    if case.code != 0:
        assert sorted(folder.rglob("*")) == before, "nothing is written"
    if case in MISTAKES and case.what not in AFTER_TORCH:
        assert not ran.imports_torch
