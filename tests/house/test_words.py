"""The wording of docstrings, messages and pages: words that the field does not use, and those of earlier versions."""

from __future__ import annotations

import re
from collections.abc import Iterator
from fnmatch import fnmatch

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


FORBIDDEN = re.compile(
    r"\b(?:older|earlier version|legacy|migrat\w*|deprecat\w*|photo\w*)\b|\b(?:version|dinoneck|schema) 0\.[12]\b",
    re.IGNORECASE,
)
PLACES = ("src", "docs", "README.md", "examples", "tests")
TEXTS = {".py", ".pyi", ".md", ".j2", ".json", ".jsonl", ".yaml", ".yml", ".txt", ".ipynb", ".html", ".css"}
ALLOWED = ROOT / "tests" / "house" / "allowed_words.txt"  # paths | what may stand there | reason
OWN = ("tests/house/test_words.py", "tests/house/allowed_words.txt")


def lines_of(place: str) -> Iterator[tuple[str, int, str]]:
    """Name of the file, number and text of every line below a place."""
    root = ROOT / place
    for path in [root] if root.is_file() else sorted(root.rglob("*")):
        name = path.relative_to(ROOT).as_posix()
        if path.suffix in TEXTS and name not in OWN:
            yield from ((name, i, line) for i, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1))


@pytest.mark.parametrize(("place", "most"), [("src", 20), ("docs", 40), ("README.md", 0)])
def test_wording(place: str, most: int) -> None:
    """Quotations and ordinary uses ("say 32") are the reason for a number above 0."""
    lines = [line for line in lines_of(place) if line[0].endswith((".py", ".md", ".j2"))]
    found = [f"{name}:{number}: {word}" for name, number, line in lines for word in WORDS.findall(line)]
    assert len(found) <= most, f"use other words, see REPLACEMENTS: {found}"


def test_words_of_what_came_before_stand_in_the_list_of_allowed_ones() -> None:
    """0.3 is the first release."""
    rows = [line.split(" | ") for line in ALLOWED.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    entries = [(paths, re.compile(expression)) for paths, expression, reason in rows if reason]
    used, found = set(), []
    for place in PLACES:
        for name, number, line in lines_of(place):
            if not FORBIDDEN.search(line):
                continue
            for entry in entries:
                if fnmatch(name, entry[0]):
                    line, count = entry[1].subn("", line)
                    used |= {entry} if count else set()
            found += [f"{name}:{number}: {word}" for word in FORBIDDEN.findall(line)]
    assert not found, f"use other words, or add them with a reason to {ALLOWED.name}: {found}"
    assert used == set(entries) and len(entries) == len(rows), f"take out of {ALLOWED.name} what stands nowhere"
