"""Pages of the site that promise to be complete or true: the nav, section pages, drawings, the newcomer's questions."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest
import yaml
from benchmarks.results import filled

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
SOURCE = ROOT / "src" / "dinoneck"
ROOMS = sorted(path.parent.name for path in SOURCE.glob("*/__init__.py"))
SECTIONS = ("integrations", "explanation", "reference")  # those with a page of their own


def in_nav(entry: object) -> list[str]:
    if isinstance(entry, str):
        return [entry]
    return [page for part in (entry.values() if isinstance(entry, dict) else entry) for page in in_nav(part)]  # type: ignore[attr-defined]


def test_every_page_is_in_the_nav_once() -> None:
    pages = in_nav(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    assert len(pages) == len(set(pages))
    assert set(pages) == {page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md")}


@pytest.mark.parametrize("section", SECTIONS)
def test_section_pages_name_every_page_of_their_section(section: str) -> None:
    text = (DOCS / section / "index.md").read_text()
    missing = [page.name for page in (DOCS / section).glob("*.md") if f"({page.name})" not in text]
    assert missing == ["index.md"], f"{section}/index.md does not name them"


def test_the_drawing_has_every_room_and_so_has_the_list_of_imports() -> None:
    drawing = (DOCS / "images" / "data_flow.svg").read_text()
    _, layers = (DOCS / "explanation" / "data-flow.md").read_text().split("## Import layers")
    assert not [room for room in ROOMS if not re.search(rf"\b{room}\b", layers)]
    assert set(re.findall(r">(\w+)/</text>", drawing)) == set(ROOMS)


def answers() -> list[tuple[str, str, str]]:
    rows = re.findall(r"^\| \d+ \| .+? \| `(\w+)/` \| (.+?) \|$", (DOCS / "explanation/data-flow.md").read_text(), re.M)
    return [
        (room, file, named) for room, cell in rows for file, named in re.findall(r"`(\w+\.py)`(?:: `(\w+)`)?", cell)
    ]


@pytest.mark.parametrize(("room", "file", "named"), answers())
def test_a_newcomer_finds_it_there_and_nowhere_else(room: str, file: str, named: str) -> None:
    assert (SOURCE / room / file).is_file()
    if named:
        homes = [path.relative_to(SOURCE).as_posix() for path in SOURCE.rglob("*.py") if named in defined(path)]
        assert homes == [f"{room}/{file}"]
    else:
        assert [path.parent.name for path in SOURCE.rglob(file)] == [room]


@cache
def defined(path: Path) -> set[str]:
    """Classes and functions that stand at the top of a file."""
    return {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.ClassDef | ast.FunctionDef)}


def test_choices_rest_on_numbers_of_the_pages_they_link() -> None:
    text = (DOCS / "choose.md").read_text()
    claims = [part for part in re.split(r"\n(?=\|)|\n\n", text) if re.search(r"\b0\.\d", part)]
    assert len(claims) > 12
    for claim in claims:
        shown = "".join(filled((DOCS / page).read_text()) for page in re.findall(r"\]\(([\w/-]+\.md)", claim))
        for number in re.findall(r"(?<![\w.])0\.\d+", claim):
            assert number in shown, f"{number} is on none of the pages that this links: {claim}"
