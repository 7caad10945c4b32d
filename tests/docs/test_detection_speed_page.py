"""The page on the necks' speed shows what was measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("transformers")

from benchmarks.detection_necks import RESULTS, markdown

PAGE = Path(__file__).resolve().parents[2] / "docs" / "explanation" / "detection-speed.md"


def test_the_page_shows_the_stored_tables() -> None:
    stored = json.loads((RESULTS / "detection_necks.json").read_text())
    page = PAGE.read_text()
    assert markdown(stored) in page
    for name, version in stored["machine"]["versions"].items():
        assert version in page, name


def test_only_the_step_of_the_aligned_branch_misses_its_goal() -> None:
    """As the page states below the tables."""
    stored = json.loads((RESULTS / "detection_necks.json").read_text())
    missed = {
        (name.split(",")[1], part)
        for rows in stored["necks"].values()
        for name, row in rows.items()
        for part in ("forward", "step")
        if row["goal"] and row[part]["ratio"] < row["goal"]
    }
    assert missed == {(' detail="aligned"', "step")}
