"""A stored result is out of date as soon as a source file that it measured differs."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks import sources


def test_every_result_names_sources_that_exist() -> None:
    assert all(len(sources.source_hash(name)) == 64 for name in sources.SOURCES)


def test_a_result_is_stale_without_the_hash_of_the_present_sources(tmp_path: Path) -> None:
    sources.store(tmp_path / "points.json", {"rows": 1})
    assert sources.stale(tmp_path) == []
    for kept in ({"sources": "0" * 64}, {}):
        (tmp_path / "points.json").write_text(json.dumps(kept))
        assert sources.stale(tmp_path) == ["points"]
