"""A folder of built pages, read with the standard library: what they link to, what they load, what they show."""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

HOST = "http://site.invalid"
VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "wbr"}
CSS_URL = re.compile(r"url\(\s*['\"]?([^'\")]+)")


class Page(HTMLParser):
    """One page: its title, headings, anchors, links, and what a browser would load along with it."""

    def __init__(self, url: str, text: str) -> None:
        super().__init__()
        self.url, self.text = url, text
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.images_without_words: list[str] = []
        self.title, self.headings = "", 0
        self._in_title = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if "id" in given:
            self.ids.add(given["id"])
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        elif tag == "link" and given.get("rel") in ("stylesheet", "icon", "preload", "preconnect", "shortcut icon"):
            self.loads.append(given["href"])
        elif tag in ("script", "img", "iframe", "source", "video", "audio") and "src" in given:
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


@dataclass
class Findings:
    """What is wrong with a site, and what it names beyond itself."""

    pages: int = 0
    internal_links: int = 0
    broken: list[str] = field(default_factory=list)
    remote: list[str] = field(default_factory=list)
    malformed: list[str] = field(default_factory=list)
    untitled: list[str] = field(default_factory=list)
    wordless_images: list[str] = field(default_factory=list)
    unreachable: list[str] = field(default_factory=list)
    external: set[str] = field(default_factory=set)

    def faults(self) -> list[str]:
        """Everything that must not be."""
        return [
            *(f"broken: {line}" for line in self.broken),
            *(f"loaded from elsewhere: {line}" for line in self.remote),
            *(f"malformed: {line}" for line in self.malformed),
            *(f"no title, or not one h1: {line}" for line in self.untitled),
            *(f"image without a text: {line}" for line in self.wordless_images),
            *(f"no page leads to: {line}" for line in self.unreachable),
        ]


def read_pages(site: Path) -> dict[str, Page]:
    """Every page by its address on the site, ``/how-to/predict/``."""
    pages = {}
    for path in sorted(site.rglob("*.html")):
        url = "/" + path.relative_to(site).as_posix().removesuffix("index.html")
        pages[url] = Page(url, path.read_text(encoding="utf-8"))
    return pages


def check(site: Path) -> Findings:
    """Look at every link, anchor, image, script and style of the built folder."""
    pages, found = read_pages(site), Findings()
    found.pages = len(pages)
    leads_to: dict[str, set[str]] = {url: set() for url in pages}
    for url, page in pages.items():
        if not page.title.strip() or (page.headings != 1 and url != "/404.html"):
            found.untitled.append(f"{url} ({page.headings} h1)")
        found.wordless_images += [f"{url}: {source}" for source in page.images_without_words]
        for target in page.loads:
            _check_load(site, url, target, found)
        for target in page.links:
            _check_link(site, pages, url, target, found, leads_to[url])
    for style in sorted(site.rglob("*.css")):
        own = "/" + style.relative_to(site).as_posix()
        for target in CSS_URL.findall(style.read_text(encoding="utf-8")):
            if not target.startswith("data:"):
                _check_load(site, own, target, found)
    found.unreachable = sorted(set(pages) - _reachable(leads_to) - {"/404.html"})
    return found


def _check_load(site: Path, url: str, target: str, found: Findings) -> None:
    if target.startswith("data:"):
        return
    split = urlsplit(urljoin(HOST + url, target))
    if f"{split.scheme}://{split.netloc}" != HOST:
        found.remote.append(f"{url}: {target}")
    elif not (site / unquote(split.path).lstrip("/")).is_file():
        found.broken.append(f"{url}: {target}")


def _check_link(site: Path, pages: dict[str, Page], url: str, target: str, found: Findings, leads_to: set[str]) -> None:
    if target.startswith(("mailto:", "javascript:")):
        return
    split = urlsplit(urljoin(HOST + url, target))
    if f"{split.scheme}://{split.netloc}" != HOST:
        found.external.add(target)
        if split.scheme not in ("http", "https") or "." not in split.netloc or re.search(r"[\s<>\"]", target):
            found.malformed.append(f"{url}: {target}")
        return
    found.internal_links += 1
    path = unquote(split.path)
    if path in pages:
        leads_to.add(path)
        if split.fragment and unquote(split.fragment) not in pages[path].ids:
            found.broken.append(f"{url}: {target} (no such anchor)")
    elif not (site / path.lstrip("/")).is_file():
        found.broken.append(f"{url}: {target}")


def _reachable(leads_to: dict[str, set[str]]) -> set[str]:
    seen, todo = {"/"}, deque(["/"])
    while todo:
        for url in leads_to.get(todo.popleft(), set()) - seen:
            seen.add(url)
            todo.append(url)
    return seen
