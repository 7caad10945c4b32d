"""Right data sets drawn from seeds are read as 0.4 read them, but for the differences that are rules."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.net.differential import DIFFERENCES, READINGS, difference
from tests.net.generated import reading_of

BEFORE = json.loads(READINGS.read_text(encoding="utf-8"))


@pytest.mark.parametrize("seed", BEFORE)
def test_sets_are_read_as_by_0_4(seed: str, tmp_path: Path) -> None:
    now = reading_of(tmp_path, int(seed))

    assert (now["kind"], now["feature"]) == (BEFORE[seed]["kind"], BEFORE[seed]["feature"])
    assert difference(BEFORE[seed], now) == ""
    if now["feature"] in DIFFERENCES:
        assert "error" not in now["reading"]
