"""Pages with measurements show what is stored, all of it, and no row that misses its goal goes without a reason."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from benchmarks import matrix

pytest.importorskip("transformers")

from benchmarks import (
    arrangement,
    blood_cells,
    crop_cover,
    dense_cover,
    detection_necks,
    gram_anchor,
)
from benchmarks.speed import page
from benchmarks.speed.results import RESULTS, stored
from benchmarks.speed.summary import document, missed
from benchmarks.speed.table_rows import ROWS, goals_of

ROOT = Path(__file__).resolve().parents[2]
PAGES = ROOT / "docs" / "explanation"
SPEED = [stem for stem in ("speed", "speed_cuda") if (RESULTS / f"{stem}.json").exists()]


def read(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text())


def assert_shown(text: str, found: dict[str, Any], table: str) -> None:
    """The page has the table and every version of the machine that measured it."""
    assert table in text
    for name, version in found["machine"]["versions"].items():
        assert version in text, name


SHOWN = [  # page, results, table
    ("results", "crop_cover", lambda found: crop_cover.markdown(found["runs"])),
    ("results", "dense_cover", lambda found: dense_cover.markdown(found["runs"])),
    ("linear-collapse", "arrangement", lambda found: arrangement.markdown(found["rows"])),
    ("gram-anchoring", "gram_anchor", gram_anchor.markdown),
    ("detection", "detection_necks", detection_necks.short),
    ("detection", "blood_cells", lambda found: blood_cells.markdown(found["rows"])),
]


@pytest.mark.parametrize(("name", "results", "table"), SHOWN, ids=[results for _, results, _ in SHOWN])
def test_pages_show_the_stored_tables(name: str, results: str, table: Callable[[Any], str]) -> None:
    found = read(results)
    assert_shown((PAGES / f"{name}.md").read_text(), found, table(found))


def test_the_page_on_speed_is_written_from_the_stored_results() -> None:
    assert page.PAGE.read_text() == page.text()


def test_stored_tables_are_those_of_the_stored_numbers() -> None:
    for stem in SPEED:
        assert (RESULTS / f"{stem}.md").read_text() == document(stored(RESULTS, stem))


def test_every_row_of_speed_has_its_goals_and_states_why_it_misses_one() -> None:
    rows, shown = {row.name: row for row in ROWS}, page.PAGE.read_text()
    for stem in SPEED:
        for name, found in read(stem)["rows"].items():
            assert not missed(found) or found["why"], name
            assert name in shown or name in page.PARTS or stem != "speed", name
            if name in rows:  # terratorch's row is there where terratorch is
                assert found["goals"] == goals_of(rows[name], stem == "speed_cuda"), name
                assert found["why"] == rows[name].why, name


def test_only_the_step_of_the_aligned_branch_misses_its_goal() -> None:
    """The stored table shows it in bold."""
    missing = {
        (name.split(",")[1], part)
        for rows in read("detection_necks")["necks"].values()
        for name, row in rows.items()
        for part in ("forward", "step")
        if row["goal"] and row[part]["ratio"] < row["goal"]
    }
    assert missing == {(' detail="aligned"', "step")}


def test_the_page_on_peers_shows_every_row_and_the_lines_of_its_code() -> None:
    pytest.importorskip("segmentation_models_pytorch")
    from benchmarks.peers.__main__ import markdown
    from benchmarks.peers.rows import PEERS

    found = read("peers")
    assert_shown((PAGES / "peers.md").read_text(), found, markdown(found["tables"]))
    lines = {name: row["lines"] for rows in found["tables"].values() for name, row in rows.items()}
    assert lines == {name: peer.lines for rows in PEERS.values() for name, peer in rows.items()}


def test_the_matrix_is_of_the_supported_pythons_and_without_a_failure() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert [line.split()[-1] for line in project["classifiers"] if "Python :: 3." in line] == list(matrix.PYTHONS)
    cells = read("matrix")["cells"]
    assert matrix.markdown(cells) in matrix.PAGE.read_text()
    assert {(cell["python"], cell["dependencies"]) for cell in cells} == {
        (python, end) for python in matrix.PYTHONS for end in matrix.ENDS
    }
    for cell in cells:
        assert cell["passed"] > 5000 and cell["failed"] == 0
        assert all(name in cell["versions"] for name in matrix.SHOWN)


def test_the_quick_start_has_the_stored_times() -> None:
    found, text = read("first_prediction"), (ROOT / "docs" / "quick-start.md").read_text()
    assert f"{found['after_install_s']:.0f} s after the install" in text
    assert f"took {found['seconds']['install']:.0f} s" in text
    assert found["after_install_s"] <= 300
