"""Every code block of README and docs runs; every link leads somewhere; every docstring example holds."""

from __future__ import annotations

import doctest
import importlib
import json
import pkgutil
import re
from pathlib import Path

import pytest

import dinoneck

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md")),
         *sorted((ROOT / "examples").rglob("*.md")), *sorted((ROOT / "benchmarks").rglob("*.md"))]  # fmt: skip
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(([^)#]+?)(?:#[^)]*)?\)")


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", [page for page in PAGES if BLOCK.search(page.read_text())], ids=named)
def test_code_blocks_run_in_order(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    space: dict[str, object] = {"__name__": "__main__"}
    for number, block in enumerate(BLOCK.findall(page.read_text())):
        exec(compile(block, f"{named(page)}, block {number + 1}", "exec"), space)
    assert "dinoneck" in page.read_text()


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(page.read_text()):
        if not target.startswith(("http://", "https://", "mailto:")):
            assert (page.parent / target).exists(), f"{named(page)} links to {target}"


@pytest.mark.parametrize(
    "name", [m.name for m in pkgutil.walk_packages(dinoneck.__path__, "dinoneck.") if "__main__" not in m.name]
)
def test_docstring_examples(name: str) -> None:
    failed, _ = doctest.testmod(importlib.import_module(name))
    assert failed == 0


def test_the_readme_shows_ten_lines_and_the_two_commands() -> None:
    text = (ROOT / "README.md").read_text()
    first = BLOCK.search(text)
    assert first is not None
    assert len([line for line in first.group(1).splitlines() if line.strip()]) <= 12
    assert "make demo" in text
    assert "make test" in text
    assert len((ROOT / "CONTRIBUTING.md").read_text().splitlines()) <= 60


def test_every_public_name_is_in_the_reference() -> None:
    pages = "\n".join(page.read_text() for page in (ROOT / "docs" / "reference").glob("*.md"))
    for name in dinoneck._HOMES:
        assert f"::: dinoneck.{name}\n" in pages, name
    for room in ("training", "losses", "data", "inference", "interop", "points", "viz"):
        for name in importlib.import_module(f"dinoneck.{room}")._HOMES:
            assert f".{name}\n" in pages or name == "VIEWS", name


def test_pages_show_what_the_benchmarks_stored() -> None:
    from benchmarks.crop_cover import RESULTS, markdown

    stored = json.loads((RESULTS / "crop_cover.json").read_text())
    page = (ROOT / "docs" / "explanation" / "crop-cover.md").read_text()
    assert markdown(stored["runs"]) in page
    for name, version in stored["machine"]["versions"].items():
        assert version in page, name


def test_the_page_on_gram_anchoring_shows_what_was_stored() -> None:
    from benchmarks.gram_anchor import RESULTS, markdown

    stored = json.loads((RESULTS / "gram_anchor.json").read_text())
    page = (ROOT / "docs" / "explanation" / "gram-anchoring.md").read_text()
    assert markdown(stored) in page
    for name, version in stored["machine"]["versions"].items():
        assert version in page, name


def test_the_page_on_cells_shows_what_was_stored() -> None:
    from benchmarks.neck_alignment import RESULTS, markdown

    stored = json.loads((RESULTS / "neck_alignment.json").read_text())
    page = (ROOT / "docs" / "explanation" / "detection-geometry.md").read_text()
    assert markdown(stored) in page
    for name, version in stored["machine"]["versions"].items():
        assert version in page, name
    assert all(abs(value) <= 0.08 for paths in stored["offsets"].values() for value in paths["aligned"])


def test_no_page_is_unfinished() -> None:
    for page in PAGES:
        assert not re.search(r"^(TABLE|MACHINE)$|\b(TODO|TBD|FIXME)\b", page.read_text(), re.MULTILINE), page
