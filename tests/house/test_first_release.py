"""0.3 is the first release: no sentence of what came before it is left."""

from __future__ import annotations

import re
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

from tests.house.source import ROOT

# -- words ------------------------------------------------------------------------------------------------

FORBIDDEN = re.compile(
    r"\b(?:older|earlier version|legacy|migrat\w*|deprecat\w*|photo\w*)\b|\b(?:version|dinoneck|schema) 0\.[12]\b",
    re.IGNORECASE,
)
PLACES = ("src", "docs", "README.md", "examples", "tests")
TEXTS = {".py", ".pyi", ".md", ".j2", ".json", ".jsonl", ".yaml", ".yml", ".txt", ".ipynb", ".html", ".css"}
ALLOWED = Path(__file__).with_name("allowed_words.txt")


def allowed() -> list[tuple[str, re.Pattern[str]]]:
    """Pattern of paths, and what may stand there."""
    lines = [line for line in ALLOWED.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    entries = [line.split(" | ") for line in lines]
    assert all(len(entry) == 3 and entry[2] for entry in entries), "an entry is: paths | expression | reason"
    return [(paths, re.compile(expression)) for paths, expression, _ in entries]


def lines_of(place: str) -> Iterator[tuple[str, int, str]]:
    """Name of the file, number and text of every line below a place."""
    root = ROOT / place
    for path in [root] if root.is_file() else sorted(root.rglob("*")):
        if path.suffix in TEXTS and path not in (ALLOWED, Path(__file__).resolve()):
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
                yield path.relative_to(ROOT).as_posix(), number, line


def test_words_of_what_came_before_stand_in_the_list_of_allowed_ones() -> None:
    entries, used, found = allowed(), set(), []
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
    assert used == set(entries), f"take out of {ALLOWED.name} what stands nowhere"
