"""The parity page shows what was measured, and nothing that was measured is above its bound."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from benchmarks.parity import CASES, PARTS, RESULTS, markdown, slips_markdown

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "parity.md"


@pytest.fixture(scope="module")
def stored() -> dict[str, Any]:
    return json.loads((RESULTS / "parity.json").read_text())


def test_the_page_shows_the_stored_tables(stored: dict[str, Any]) -> None:
    page = PAGE.read_text()
    assert markdown(stored) in page
    assert slips_markdown(stored) in page
    for name, version in stored["machine"]["versions"].items():
        assert version in page, name


def test_no_row_is_above_its_bound(stored: dict[str, Any]) -> None:
    for row in stored["rows"]:
        if row["bound"] is not None:
            found = [row[part] for part in PARTS if row[part] is not None]
            assert row["holds"] is True and len(found) >= 2, row
            assert all(value <= row["bound"] for value in found), row


def test_every_model_size_and_pair_is_there_with_todays_bound(stored: dict[str, Any]) -> None:
    rows = {(row["model"], tuple(row["size"]), row["pair"], row["pos_embed"]): row["bound"] for row in stored["rows"]}
    wanted = {}
    for case in CASES:
        for size in case.sizes:
            for recipe in case.recipes(size):
                for pair in ("timm - transformers", "official - timm", "official - transformers"):
                    name = case.shown(pair)
                    wanted[name, size, pair, recipe] = case.bound(size, recipe)
    assert rows == wanted


def test_rows_expected_to_differ_do(stored: dict[str, Any]) -> None:
    free = [row for row in stored["rows"] if row["bound"] is None]
    assert free and all(row["pos_embed"] == "native" and "reg4" not in row["model"] for row in free)
    assert all(row["patches"] > 1e-2 for row in free)


def test_a_slip_is_far_above_every_bound(stored: dict[str, Any]) -> None:
    for row in stored["slips"]:
        assert row["hidden_states[i + 1]"] <= 1e-5, row
        assert min(row[key] for key in ("hidden_states[i]", "norm", "registers") if row[key] is not None) > 0.1, row
