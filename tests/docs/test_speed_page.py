"""The page on speed is what the stored results give."""

from __future__ import annotations

import pytest

pytest.importorskip("transformers")

from benchmarks.speed import page
from benchmarks.speed.results import RESULTS, stored
from benchmarks.speed.summary import missed
from benchmarks.speed.table import document
from benchmarks.speed.table_rows import ROWS, goals_of

NAMES = [stem for stem in ("speed", "speed_2_threads", "speed_cuda") if (RESULTS / f"{stem}.json").exists()]


def test_the_page_is_the_template_filled_with_the_stored_tables() -> None:
    assert page.PAGE.read_text() == page.text()


@pytest.mark.parametrize("stem", NAMES)
def test_the_stored_tables_are_those_of_the_stored_numbers(stem: str) -> None:
    found = stored(RESULTS, stem)
    assert found is not None
    assert (RESULTS / f"{stem}.md").read_text() == document(found)


def test_every_row_that_misses_a_goal_states_why() -> None:
    shown = page.PAGE.read_text()
    for stem in NAMES:
        for name, found in (stored(RESULTS, stem) or {"rows": {}})["rows"].items():
            assert not missed(found) or found["why"], name
            assert name in shown or stem != "speed", name


def test_stored_goals_are_those_of_the_rows() -> None:
    wanted = {row.name: row for row in ROWS}
    for stem in NAMES:
        for name, found in (stored(RESULTS, stem) or {"rows": {}})["rows"].items():
            if name in wanted:  # terratorch's row is there where terratorch is
                row = wanted[name]
                assert found["goals"] == goals_of(row, stem == "speed_cuda"), name
                assert found["why"] == row.why, name
