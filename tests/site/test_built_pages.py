"""The checks of a built site find what they look for: links, assets and headings; overflow, small print, errors."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.site.browser import Chromium, is_there
from tests.site.built_pages import check
from tests.site.screenshots import WIDTHS, look_at


def test_the_check_finds_what_it_looks_for(tmp_path: Path) -> None:
    (tmp_path / "two").mkdir()
    (tmp_path / "x.css").write_text("a {background: url(https://fonts.example/a.png)} b {background: url(gone.png)}")
    head = '<title>t</title><link rel="stylesheet" href="x.css"><script src="https://cdn.example/x.js"></script>'
    body = (
        '<h1 id="a">t</h1><a href="two/#b">x</a><a href="gone/">x</a><a href="http://no host/">x</a><img src="no.png">'
    )
    (tmp_path / "index.html").write_text(head + body)
    (tmp_path / "two" / "index.html").write_text("<title></title><h1>two</h1><h1>more</h1>")
    (tmp_path / "lonely.html").write_text("<title>t</title><h1>t</h1>")
    wrong = check(tmp_path)
    assert sorted(line.split(": ")[1] for line in wrong.broken) == [
        "gone.png",
        "gone/",
        "no.png",
        "two/#b (no such anchor)",
    ]
    assert [line.split(": ", 1)[1] for line in wrong.remote] == [
        "https://cdn.example/x.js",
        "https://fonts.example/a.png",
    ]
    assert wrong.malformed == ["/: http://no host/"]
    assert wrong.untitled == ["/two/ (2 h1)"]
    assert wrong.unreachable == ["/lonely.html"]
    assert wrong.wordless_images == ["/: no.png"]
    assert len(wrong.faults()) == 10


@pytest.mark.slow
@pytest.mark.skipif(not is_there(), reason="set DINONECK_CHROMIUM to a Chromium or Chrome to look at the pages")
def test_the_browser_sees_what_does_not_fit(tmp_path: Path) -> None:
    boxed = '<div style="overflow-x: auto; width: 300px"><pre style="width: 2000px; font-size: 14px">wide</pre></div>'
    (tmp_path / "good.html").write_text(f'<title>t</title><body style="font-size: 14px"><p>fits</p>{boxed}')
    (tmp_path / "bad.html").write_text(
        '<title>t</title><p style="font-size: 9px">small</p><div style="width: 2000px; font-size: 14px">wide</div>'
        '<img src="gone.png"><script>console.error("told"); nothing.at.all</script>'
    )
    with Chromium() as browser:
        seen = look_at(browser, tmp_path, ["/good.html", "/bad.html"], tmp_path / "out")
    assert len(list((tmp_path / "out").glob("*.png"))) == 2 * len(WIDTHS)
    for look in seen:
        told = " ".join(look.faults())
        if look.url == "/good.html":
            assert not [line for line in look.faults() if "favicon" not in line and "404" not in line]
        else:
            assert look.overflow_px > 0
            assert look.smallest_font_px == 9
            for wanted in ("scrolls sideways", "beyond the edge", "font of 9", "image: ", "told", "404"):
                assert wanted in told, wanted
