"""CITATION.cff names this version and this licence."""

from __future__ import annotations

from pathlib import Path

import yaml

from dinoneck.version import __version__

ROOT = Path(__file__).resolve().parents[2]


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == __version__
    assert citation["license"] == "Apache-2.0"
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= set(citation)
    assert all(reference["url"].startswith("https://arxiv.org/abs/") for reference in citation["references"])
