"""A folder of built pages, read with the standard library: what they load, and what they show.

``mkdocs build --strict`` refuses links, anchors and images that lead nowhere, and pages that are
not in the nav.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

VOID = ("script", "img", "iframe", "source", "video", "audio")
CSS_URL = re.compile(r"url\(\s*['\"]?([^'\")]+)")


class Page(HTMLParser):
    """One page: its title, headings, anchors, and what a browser would load along with it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text, self.ids, self.loads = text, set[str](), list[str]()
        self.images_without_words: list[str] = []
        self.title, self.headings = "", 0
        self._in_title = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.ids |= {given["id"]} if "id" in given else set()
        if tag == "link" and given.get("rel") in (
            "stylesheet",
            "icon",
            "preload",
            "preconnect",
            "shortcut icon",
        ):
            self.loads.append(given["href"])
        elif tag in VOID and "src" in given:
            self.loads.append(given["src"])
        if tag == "img" and not given.get("alt", "").strip():
            self.images_without_words.append(given.get("src", ""))
        self.headings += tag == "h1"
        self._in_title = tag == "title"

    def handle_data(self, data: str) -> None:
        if self._in_title:
            self.title += data

    def handle_endtag(self, tag: str) -> None:
        self._in_title = False


def read_pages(site: Path) -> dict[str, Page]:
    """Every page by its address on the site, ``/how-to/predict/``."""
    return {
        "/" + path.relative_to(site).as_posix().removesuffix("index.html"): Page(
            path.read_text(encoding="utf-8")
        )
        for path in sorted(site.rglob("*.html"))
    }


def faults(site: Path) -> Iterator[str]:
    """What is loaded from elsewhere, pages without a title and one heading, and images without a text."""
    for url, page in read_pages(site).items():
        if not page.title.strip() or (page.headings != 1 and url != "/404.html"):
            yield f"no title, or not one h1: {url}"
        yield from (
            f"image without a text: {url}: {source}" for source in page.images_without_words
        )
        yield from (
            f"loaded from elsewhere: {url}: {target}" for target in page.loads if is_remote(target)
        )
    for style in sorted(site.rglob("*.css")):
        targets = CSS_URL.findall(style.read_text(encoding="utf-8"))
        yield from (
            f"loaded from elsewhere: {style.name}: {target}"
            for target in targets
            if is_remote(target)
        )


def is_remote(target: str) -> bool:
    """Whether an address leads to another host."""
    return re.match(r"(?!data:)[a-z+.-]+:|//", target) is not None
