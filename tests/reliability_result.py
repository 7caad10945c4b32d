"""The stored result of one part of ``benchmarks.reliability``, and that the page shows it."""

from __future__ import annotations

import json
from typing import Any

import pytest


def stored(part: str) -> dict[str, Any]:
    """Return the published result of a part: of the whole campaign, without a failure, and on the page."""
    from benchmarks.reliability.page import PAGE, RESULT, part_of

    entries = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    if part not in entries:
        pytest.skip(f"no result of {part} is published; python -m benchmarks.reliability --parts {part} measures it")
    entry = entries[part]
    assert entry["share"] == 1, f"only a share of {part} is published"
    assert not entry["result"]["failed"], entry["result"]["failed"]
    assert part_of(part).page(entry["result"]).strip() in PAGE.read_text(), "write the page: --parts without a name"
    result: dict[str, Any] = entry["result"]
    return result
