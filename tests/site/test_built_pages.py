"""The checks of a built site find what they look for: assets, headings and texts of images."""

from __future__ import annotations

from pathlib import Path

from tests.site.built_pages import faults


def test_the_check_finds_what_it_looks_for(tmp_path: Path) -> None:
    (tmp_path / "two").mkdir()
    (tmp_path / "x.css").write_text("a {background: url(https://fonts.example/a.png)} b {background: url(here.png)}")
    head = '<title>t</title><link rel="stylesheet" href="x.css"><script src="https://cdn.example/x.js"></script>'
    (tmp_path / "index.html").write_text(head + '<h1 id="a">t</h1><img src="no.png"><img src="data:x" alt="x">')
    (tmp_path / "two" / "index.html").write_text("<title></title><h1>two</h1><h1>more</h1>")
    assert sorted(faults(tmp_path)) == [
        "image without a text: /: no.png",
        "loaded from elsewhere: /: https://cdn.example/x.js",
        "loaded from elsewhere: x.css: https://fonts.example/a.png",
        "no title, or not one h1: /two/",
    ]
