"""The checks of a built site find what they look for: links, assets and headings."""

from __future__ import annotations

from pathlib import Path

from tests.site.built_pages import check


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
