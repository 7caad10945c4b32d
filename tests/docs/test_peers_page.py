"""The page on peers shows what was measured, with the user code that was measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("segmentation_models_pytorch")
pytest.importorskip("transformers")

from benchmarks.peers.__main__ import RESULTS, markdown
from benchmarks.peers.rows import PEERS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "explanation" / "peers.md"
STORED = json.loads(RESULTS.read_text())


def test_the_page_shows_the_stored_tables() -> None:
    page = PAGE.read_text()
    assert markdown(STORED["tables"]) in page
    for name, version in STORED["machine"]["versions"].items():
        assert version in page, name


def test_every_row_is_stored_and_counts_the_lines_of_its_code() -> None:
    stored = {name: row for rows in STORED["tables"].values() for name, row in rows.items()}
    peers = {name: peer for rows in PEERS.values() for name, peer in rows.items()}
    assert stored.keys() == peers.keys()
    assert {name: row["lines"] for name, row in stored.items()} == {name: peer.lines for name, peer in peers.items()}


