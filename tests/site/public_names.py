"""Every public name of the package, and what its docstring promises a reader."""

from __future__ import annotations

import importlib
import inspect
import re
from html import unescape

import dinoneck
from tests.site.built_pages import Page

SECTION = re.compile(r"^(Shape|Raises|Returns|Args|Attributes):\n((?: {4}.*\n|\n)+)", re.MULTILINE)
ROOT_HEADING = re.compile(r"<h2 id=")


def public_names() -> dict[str, tuple[str, ...]]:
    """``package.name`` -> the anchors that may stand for it: its own, the package's, that of its home."""
    names: dict[str, tuple[str, ...]] = {}
    for package in ("dinoneck", *(f"dinoneck.{name}" for name in dinoneck.PACKAGES)):
        module = importlib.import_module(package)
        for name in getattr(module, "__all__", ()):
            home = module.HOMES.get(name, package)
            # an alias stands where the class does
            own = getattr(getattr(module, name), "__name__", name)
            names[f"{package}.{name}"] = (
                f"{package}.{name}",
                f"dinoneck.{name}",
                f"{home}.{name}",
                f"{package}.{own}",
            )
    del names["dinoneck.__version__"]
    return names


def undocumented(pages: dict[str, Page]) -> list[str]:
    """Names without an anchor in the reference, and sections of docstrings that did not arrive there."""
    reference = {url: page for url, page in pages.items() if url.startswith("/reference/")}
    wrong = []
    for name, anchors in public_names().items():
        text = next(
            (
                _region(page, anchor)
                for page in reference.values()
                for anchor in anchors
                if anchor in page.ids
            ),
            "",
        )
        if not text:
            wrong.append(f"{name}: no anchor in the reference")
        wrong += (
            [f"{name}: {section} is not rendered" for section in _lost_sections(name, text)]
            if text
            else []
        )
    return wrong


def _region(page: Page, anchor: str) -> str:
    start = page.text.index(f'id="{anchor}"')
    end = ROOT_HEADING.search(page.text, start + 1)
    return _plain(page.text[start : end.start() if end else None])


def _plain(html: str) -> str:
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", html)).split())


def _lost_sections(name: str, rendered: str) -> list[str]:
    package, _, own = name.rpartition(".")
    thing = getattr(importlib.import_module(package), own)
    if getattr(thing, "__name__", own) != own:  # a second name: the sections are those of the first
        return []
    text = (
        inspect.cleandoc(thing.__doc__ or "") + "\n"
        if inspect.isclass(thing) or inspect.isroutine(thing)
        else ""
    )
    lost = []
    for section, body in SECTION.findall(text):
        words = set(re.findall(r"[A-Za-z_]{5,}", re.sub(r":\w+:`[^`]+`", "", body)))
        if words and sum(word in rendered for word in words) < 0.9 * len(words):
            lost.append(section)
    return lost
