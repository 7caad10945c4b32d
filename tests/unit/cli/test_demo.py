"""``dinoneck demo``, as a visitor runs it: its head is needed, and its page says so."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from tests.kit import cli


@pytest.mark.slow
def test_the_demo_shows_a_head_that_wins_against_the_linear_baseline(tmp_path: Path) -> None:
    out = tmp_path / "demo"

    ran = cli("demo", "--out", out)

    assert ran.code == 0, ran.err
    scores = json.loads((out / "run" / "report.json").read_text())["scores"]["trees"]
    head = scores["head"]["r2"]["pooled"]
    linear = scores["linear"]["r2"]["pooled"]
    assert head > 0.7
    assert linear < 0.4
    page = (out / "report.html").read_text()
    for shown in (ran.out, re.sub(r"<[^>]*>", " ", page)):
        assert re.search(rf"head\s+{head:.3f} ", shown)
        assert re.search(rf"linear\s+{linear:.3f} ", shown)
        assert "The head is better than" in shown
    assert page.count('class="picture truth"') == 6, "the mask of each new image"
    assert "trees" in (out / "predictions.csv").read_text()
