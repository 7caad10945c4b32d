"""The wording of docstrings, messages and pages: words that the field does not use."""

from __future__ import annotations

import re

import pytest

from tests.house.source import ROOT

OTHERS = r"told|says?|said|mend(?:s|ed|ing)?|beside|anew|likewise|in earnest|whoever|nobody|somebody|is no [a-z]+"
PHOTO = r"(?<![\"'`/_-])photos?\b(?![\"'`/_=-])"
WORDS = re.compile(rf"\b(?:{OTHERS}|{PHOTO})\b", re.IGNORECASE)


@pytest.mark.parametrize(("place", "most"), [("src", 20), ("docs", 40), ("README.md", 0)])
def test_wording(place: str, most: int) -> None:
    """Quotations and ordinary uses ("say 32") are the reason for a number above 0."""
    root = ROOT / place
    paths = [root] if root.is_file() else [path for path in root.rglob("*") if path.suffix in (".py", ".md", ".j2")]
    found = [f"{path}: {word}" for path in paths for word in WORDS.findall(path.read_text("utf-8"))]
    assert len(found) <= most, f"use the terms of the field: {found}"
