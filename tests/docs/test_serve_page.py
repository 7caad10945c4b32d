"""The page on serving shows what was measured: nothing wrong, nothing failed, no memory that grows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from benchmarks.service.tables import OUT, mixed_table, paced_table, slow_sentence

PAGE = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "serve.md"


@pytest.fixture(scope="module")
def stored() -> dict[str, Any]:
    return json.loads(OUT.read_text())


def test_the_page_shows_the_stored_tables(stored: dict[str, Any]) -> None:
    page = PAGE.read_text()
    assert mixed_table(stored) in page
    assert paced_table(stored) in page
    assert slow_sentence(stored) in page.replace("\n", " ")
    for part in stored.values():
        for name, version in part["machine"]["versions"].items():
            assert version in page, name


def test_every_good_request_was_answered_and_every_bad_one_refused(stored: dict[str, Any]) -> None:
    runs = stored["mixed"]["rows"]
    assert [run["model"].split(".")[0] for run in runs] == ["dinoneck_tiny", "vit_small_patch16_dinov3", "fcos"]
    for run in runs:
        assert run["wrong"] == [] and run["failures_inside"] == 0 and run["alive"]
        assert run["requests"] >= 1000 and run["clients"] >= 8 and run["refused"] == run["requests"] // 10
        assert run["answered"] + run["refused"] == run["requests"]
        assert run["resident_second_half_mb"] < 1.05 * run["resident_first_half_mb"] + 32


def test_every_setting_ended_in_order(stored: dict[str, Any]) -> None:
    rows = stored["paced"]["rows"]
    assert len(rows) >= 4 and all(run["wrong"] == [] for row in rows for run in row["paced"])
    assert all(row["exit_status"] == 0 for part in stored.values() for row in part["rows"])


def test_health_was_served_while_slow_clients_held_connections(stored: dict[str, Any]) -> None:
    [slow] = stored["slow"]["rows"]
    assert slow["asked"] >= 100 and slow["failed"] == 0
    assert slow["ready_after_s"] < 2 * slow["body_timeout_s"]
