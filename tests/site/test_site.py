"""The documentation builds strictly and offline; nothing in it is broken, remote, untitled or out of reach."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.site.built_pages import Page, faults, read_pages
from tests.site.public_names import public_names, undocumented

ROOT = Path(__file__).resolve().parents[2]
NEEDED = ("mkdocs", "material", "mkdocstrings")
MISSING = [name for name in NEEDED if importlib.util.find_spec(name) is None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        bool(MISSING), reason=f"{', '.join(MISSING)} not installed: pip install 'dinoneck[docs]'"
    ),
]

OFFLINE = """
import socket, sys
def refuse(self, address, *rest):
    raise RuntimeError(f"the build tried to reach {address}")
socket.socket.connect = refuse
from mkdocs.__main__ import cli
cli(["build", "--strict", "--site-dir", sys.argv[1]])
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built with every way out of the machine closed."""
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-c", OFFLINE, str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[str, Page]:
    return read_pages(site)


def test_no_page_loads_from_elsewhere_or_lacks_a_title_or_a_text(site: Path) -> None:
    assert len(read_pages(site)) > 50
    assert not list(faults(site))


def test_every_source_page_became_a_page(pages: dict[str, Page]) -> None:
    for source in (ROOT / "docs").rglob("*.md"):
        url = "/" + source.relative_to(ROOT / "docs").with_suffix("").as_posix().removesuffix(
            "index"
        )
        assert url.rstrip("/") + "/" in pages, source


def test_every_public_name_is_rendered_with_its_shapes_and_errors(pages: dict[str, Page]) -> None:
    assert len(public_names()) > 150
    assert not undocumented(pages)


def test_no_page_shows_its_source(pages: dict[str, Page]) -> None:
    code = re.compile(r"<(pre|code|script|style)\b.*?</\1>", re.DOTALL)
    wrong = re.compile(
        r":(?:class|func|meth|mod|attr|data|exc):|^(?:<p>)?\|[ -].*|<autoref|\]\(|\{: |^(?:<p>)?:::|^\* \w|\*\*\w",
        re.MULTILINE,
    )
    escaped = {url for url, page in pages.items() if re.search(r"<code>[^<]*\\\|", page.text)}
    assert not escaped, "write &#124; inside <code> for a bar in a table"
    shown = {url: wrong.search(code.sub("", page.text)) for url, page in pages.items()}
    assert not {url: found.group() for url, found in shown.items() if found}


NODE = shutil.which("node")
# a question as it is typed; the result to click on; the link to follow there
PATHS = [
    ("depth of my photo", "how-to/published-heads/#depth-of-a-photo", None),
    (
        "depth of my photo",
        "faq/#how-do-i-get-the-depth-of-my-photo",
        "../how-to/published-heads/#depth-of-a-photo",
    ),
    (
        "train on a folder with masks",
        "faq/#how-do-i-train-on-a-folder-with-masks",
        "../how-to/image-folders/",
    ),
    ("train on a folder with masks", "how-to/image-folders/", None),
    ("folder of images and masks", "how-to/image-folders/", None),
    ("depth map from an image", "how-to/published-heads/#depth-of-a-photo", None),
    ("sell a model", "how-to/ship/", None),
    ("which neck", "choose/", None),
    ("images of different sizes", "how-to/image-sizes/", None),
    ("labels in a spreadsheet", "how-to/tables/", None),
    ("missing values", "how-to/tables/#missing-values", None),
    ("16 bit images", "how-to/own-images/#bit-depth-bands-and-damaged-files", None),
    ("how sure is it", "explanation/how-sure-is-it/", None),
    ("train my own head", "how-to/own-head/", None),
    ("ship a head commercially", "how-to/ship/", None),
    (
        "ship a head commercially",
        "faq/#how-do-i-ship-or-sell-a-head-commercially",
        "../how-to/ship/",
    ),
    ("prediction interval", "explanation/how-sure-is-it/#prediction-intervals-in-use", None),
    ("which file for which device", "how-to/which-file/", None),
    ("run on a phone", "how-to/which-file/#run-on-a-phone", None),
    ("resume training", "how-to/long-runs/", None),
    ("continue an interrupted run", "how-to/long-runs/", None),
    ("paint labels", "how-to/paint-labels/", None),
    ("PatchMeanHead", "reference/heads/#dinoneck.PatchMeanHead", None),
]


@pytest.fixture(scope="module")
def results(site: Path) -> dict[str, list[str]]:
    """The addresses that the site's own search gives for each question, the best first."""
    if NODE is None:
        pytest.skip("node is not installed")
    script = Path(__file__).with_name("ask_search.js")
    questions = sorted({question for question, _, _ in PATHS})
    answer = subprocess.run(
        [NODE, str(script), str(site), *questions], capture_output=True, text=True, check=True
    )
    found: dict[str, list[str]] = json.loads(answer.stdout)
    return found


@pytest.mark.parametrize(("question", "result", "link"), PATHS)
def test_a_question_is_answered_in_two_clicks(
    results: dict[str, list[str]],
    pages: dict[str, Page],
    question: str,
    result: str,
    link: str | None,
) -> None:
    assert result in results[question][:3]
    if link is not None:
        page = pages["/" + result.partition("#")[0]]
        assert f'href="{link}"' in page.text
