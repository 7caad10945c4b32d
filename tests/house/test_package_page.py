"""What a package index shows: README.md with absolute links that lead to files of this repository."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
import yaml

from dinoneck.version import __version__
from tests.wheel import package_page, targets

ROOT = Path(__file__).resolve().parents[2]
HOME = "https://github.com/dinoneck/dinoneck"
BLOB = f"{HOME}/blob/v{__version__}/"
RAW = f"https://raw.githubusercontent.com/dinoneck/dinoneck/v{__version__}/"


def test_every_link_of_the_package_page_is_absolute_and_leads_to_a_file() -> None:
    page = package_page((ROOT / "README.md").read_text(), __version__)
    assert targets(page)
    assert not [target for target in targets(page) if not target.startswith(("https://", "http://", "mailto:"))]
    here = [target.removeprefix(BLOB).removeprefix(RAW) for target in targets(page) if target.startswith((BLOB, RAW))]
    assert not [path for path in here if not (ROOT / path.split("#")[0]).exists()]


@pytest.mark.parametrize(
    ("written", "built"),
    [
        ("[a](docs/x.md#y)", f"[a]({BLOB}docs/x.md#y)"),
        ("[a](#install)", f"[a]({BLOB}README.md#install)"),
        ("![a](docs/images/x.png)", f"![a]({RAW}docs/images/x.png)"),
        ("[![a](docs/x.png)](docs/x.md)", f"[![a]({RAW}docs/x.png)]({BLOB}docs/x.md)"),
        ('<img src="docs/x.png">', f'<img src="{RAW}docs/x.png">'),
        ("heads[0](tokens)", "heads[0](tokens)"),
    ],
)
def test_relative_targets_become_absolute_and_code_stays(written: str, built: str) -> None:
    assert package_page(written, __version__) == built


def test_all_files_name_the_same_addresses() -> None:
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    site = (ROOT / "mkdocs.yml").read_text()
    assert urls["Homepage"] == urls["Repository"] == citation["repository-code"] == HOME
    assert urls["Documentation"] == citation["url"]
    assert f"repo_url: {HOME}\n" in site and f"site_url: {urls['Documentation']}/" in site
    for page in ("SECURITY.md", ".github/ISSUE_TEMPLATE/config.yml"):
        assert f"{HOME}/security/advisories/new" in (ROOT / page).read_text()


# -- CITATION.cff names this version and this licence


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == __version__
    assert citation["license"] == "Apache-2.0"
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= set(citation)
    assert all(reference["url"].startswith("https://arxiv.org/abs/") for reference in citation["references"])
