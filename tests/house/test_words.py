"""The wording of docstrings, messages and pages: words that the field does not use, with what to write."""

import re

import pytest

from tests.house.source import ROOT

REPLACEMENTS = {
    r"told|says?|said": "list, name, state, report, is given",
    r"mend(?:s|ed|ing)?": "fix",
    r"beside": "next to, alongside, compared with",
    r"anew": "again, re-initialise",
    r"likewise": "also",
    r"in earnest": "for real use",
    r"whoever": "users who",
    r"nobody": "no one",
    r"somebody": "someone, a user",
    r"is no [a-z]+": "is not a valid ..., there is no ...",
    r"(?<![\"'`/_-])photos?\b(?![\"'`/_=-])": "image",
}
WORDS = re.compile(rf"\b(?:{'|'.join(REPLACEMENTS)})\b", re.IGNORECASE)


@pytest.mark.parametrize(("place", "most"), [("src", 20), ("docs", 40), ("README.md", 0)])
def test_wording(place: str, most: int) -> None:
    """Quotations and ordinary uses ("say 32") are the reason for a number above 0."""
    root = ROOT / place
    files = [root] if root.is_file() else [file for file in root.rglob("*") if file.suffix in {".py", ".md", ".j2"}]
    found = [
        f"{file.relative_to(ROOT)}:{number}: {word}"
        for file in sorted(files)
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1)
        for word in WORDS.findall(line)
    ]
    assert len(found) <= most, f"use other words, see REPLACEMENTS: {found}"
