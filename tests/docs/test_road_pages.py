"""Files, functions and classes that the pages of the roads name are in the package."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import NamedTuple

import pytest
from tests.house.source import ROOT

pytestmark = pytest.mark.slow

PAGES = sorted((ROOT / "docs" / "project").glob("*.md"))
SOURCE = ROOT / "src" / "dinoneck"
FILE = re.compile(r"`([\w/.]+\.py)`")
# a file, and the names in it: `inference/views.py`: `ViewAverage`, `swaps_sides`
NAMES = re.compile(r"`([\w/]+\.py)`: ((?:`[\w.]+`(?:, )?)+)")


class Named(NamedTuple):
    """A name that a page says a file defines."""

    page: Path
    file: str
    name: str


def named_on_pages() -> list[Named]:
    """Return every name that a page says a file defines."""
    named = []
    for page in PAGES:
        for file, names in NAMES.findall(page.read_text()):
            for name in re.findall(r"`([\w.]+)`", names):
                named.append(Named(page, file, name))
    return named


def defined_in(path: Path) -> set[str]:
    """Return the functions and classes of a file, and the methods as ``Class.method``."""
    names = set()
    for node in ast.parse(path.read_text()).body:
        if not isinstance(node, ast.FunctionDef | ast.ClassDef):
            continue
        names.add(node.name)
        if isinstance(node, ast.ClassDef):
            for member in node.body:
                if isinstance(member, ast.FunctionDef):
                    names.add(f"{node.name}.{member.name}")
    return names


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_files_that_a_page_names_exist(page: Path) -> None:
    missing = []
    for file in FILE.findall(page.read_text()):
        places = (SOURCE / file, ROOT / file, SOURCE / "checkpoint" / file)
        if not any(place.is_file() for place in places):
            missing.append(file)
    assert missing == []


def test_names_that_a_page_gives_are_defined_in_their_file() -> None:
    named = named_on_pages()
    assert len(named) > 40, "the pattern finds the names of the tables"
    missing = [row for row in named if row.name not in defined_in(SOURCE / row.file)]
    assert missing == []
