"""The page on serving shows what was measured: nothing wrong, nothing failed, no memory that grows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from benchmarks.service.tables import OUT, mixed_table, paced_table

PAGE = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "serve.md"


@pytest.fixture(scope="module")
def stored() -> dict[str, Any]:
    return json.loads(OUT.read_text())


def test_the_page_shows_the_stored_tables(stored: dict[str, Any]) -> None:
    page = PAGE.read_text()
    assert mixed_table(stored) in page
    assert paced_table(stored) in page
    for name, version in stored["machine"]["versions"].items():
        assert version in page, name


def test_every_good_request_was_answered_and_every_bad_one_refused(stored: dict[str, Any]) -> None:
    runs = [row["mixed"] for row in stored["rows"] if "mixed" in row]
    assert len(runs) == 2 and min(run["requests"] for run in runs) >= 1000
    for run in runs:
        assert run["wrong"] == [] and run["failures_inside"] == 0 and run["alive"]
        assert run["clients"] >= 8 and run["refused"] == run["requests"] // 10
        assert run["answered"] + run["refused"] == run["requests"]
        assert run["resident_second_half_mb"] < 1.05 * run["resident_first_half_mb"] + 32


def test_every_setting_ended_in_order(stored: dict[str, Any]) -> None:
    assert {(row["model"].split(".")[0], row["batch"]) for row in stored["rows"]} == {
        (model, batch) for model in ("dinoneck_tiny", "vit_small_patch16_dinov3") for batch in (1, 8)
    }
    for row in stored["rows"]:
        assert row["exit_status"] == 0
        assert [run["clients"] for run in row["paced"]] == [1, 8, 16]
        assert all(run["wrong"] == [] for run in row["paced"])
