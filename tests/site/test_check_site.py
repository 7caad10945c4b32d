"""The check of the built site finds its faults; links and buttons stand out in both colour schemes."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "docs" / "check_site.py"
SPEC = importlib.util.spec_from_file_location("check_site", SCRIPT)
assert SPEC is not None and SPEC.loader is not None
check_site = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(check_site)
PAGE = """<!doctype html><html><head><style>
body {margin: 0; background: #fff; color: #000} code {display: block; overflow: auto; width: 300px} %s
body[data-md-color-scheme="slate"] {background: #111; color: #eee} [data-md-color-scheme="slate"] p a {color: %s}
</style></head><body><article class="md-typeset"><p><a href="/">a link</a></p>
<div class="highlight"><pre><code>%s</code></pre></div></article></body></html>"""


@pytest.mark.slow
@pytest.mark.skipif(check_site.CHROMIUM is None, reason="chromium is not installed")
def test_it_finds_weak_colours_cut_code_and_wide_pages(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, page in {
        "good": PAGE % ("a {color: #00f}", "#9cf", "short"),
        "bad": PAGE % ("a {color: #ddd} p {width: 900px}", "#222", "long " * 30),
    }.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "index.html").write_text(page)
    assert check_site.main(tmp_path) == 1
    lines = capsys.readouterr().out.splitlines()
    assert not [line for line in lines if line.startswith("/good")]
    kinds = {
        (line.partition(")")[0].partition("(")[2], line.partition(": ")[2][:12]) for line in lines
    }
    for scheme in ("default", "slate"):
        assert {
            (f"1280 px, {scheme}", "contrast 1.3" if scheme == "default" else "contrast 1.1")
        } <= kinds
        assert (f"1280 px, {scheme}", "code is cut ") in kinds
        assert (f"390 px, {scheme}", "wider than t") in kinds
    assert not list(tmp_path.glob("*.html")), "the harness is removed"


STYLE = Path(__file__).resolve().parents[2] / "docs" / "stylesheets" / "extra.css"


ENOUGH = 4.5


def rules() -> dict[str, dict[str, str]]:
    """Selector -> its declarations; a later rule adds to an earlier one."""
    found: dict[str, dict[str, str]] = {}
    for selectors, body in re.findall(
        r"([^{}]+)\{([^{}]*)\}", re.sub(r"(?s)/\*.*?\*/|\"", "", STYLE.read_text())
    ):
        for selector in selectors.split(","):
            found.setdefault(selector.strip(), {}).update(re.findall(r"([\w-]+):\s*([^;]+);", body))
    return found


def contrast(one: str, other: str) -> float:
    """The contrast of WCAG 2 between two colours, ``#rrggbb``."""
    lights = []
    for colour in (one, other):
        channels = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        red, green, blue = (
            c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels
        )
        lights.append(0.2126 * red + 0.7152 * green + 0.0722 * blue)
    return (max(lights) + 0.05) / (min(lights) + 0.05)


def test_links_and_buttons_stand_out_in_both_schemes() -> None:
    own, light, dark = rules(), "[data-md-color-scheme=default]", "[data-md-color-scheme=slate]"
    button = own[f"{dark} .md-button"]  # in the dark scheme it takes the colour of links
    assert button["--md-primary-fg-color"] == "var(--md-typeset-a-color)"
    link = own[dark]["--md-typeset-a-color"]
    for text, ground in (
        (own[light]["--md-typeset-a-color"], "#ffffff"),
        (own[":root"]["--md-primary-bg-color"], own[":root"]["--md-primary-fg-color"]),
        (link, button["--md-primary-bg-color"]),
        (own[dark]["--md-accent-fg-color"], button["--md-accent-bg-color"]),
    ):
        assert contrast(text, ground) >= ENOUGH, (text, ground)
