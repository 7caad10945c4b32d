"""What mkdocs does on the way: stored results become tables, roles in docstrings links; no page loads from elsewhere."""

import importlib
import re
import sys
from pathlib import Path

from mkdocs.structure.pages import Page

import dinoneck

sys.path.insert(
    0, str(Path(__file__).parents[1])
)  # a clone's benchmarks, which are not installed

from benchmarks.results import filled

# a question in words would else find methods such as Task.of_unit_length, by its "of"
REFERENCE_BOOST = 0.1
ROLE = re.compile(r":(?:class|func|meth|mod|attr|data|exc):<code>~?([^<]+)</code>")
IN_PACKAGES = {
    name: f"dinoneck.{package}.{name}"
    for package in dinoneck.PACKAGES
    for name in getattr(importlib.import_module(f"dinoneck.{package}"), "__all__", ())
}
PUBLIC = {**IN_PACKAGES, **{name: f"dinoneck.{name}" for name in dinoneck.__all__}}


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Put the tables of benchmarks/results in the place of their marks; let the search find guides before names."""
    if page.file.src_uri.startswith("reference/"):
        page.meta["search"] = {"boost": REFERENCE_BOOST}
    return filled(markdown)


def on_page_content(html: str, **_: object) -> str:
    """Turn every role into a link to its name in the reference; into plain code where no public name is meant."""
    return ROLE.sub(_linked, html)


def on_post_page(output: str, **_: object) -> str:
    """Keep the link to the repository plain: the theme's script would load its number of stars from GitHub."""
    return output.replace(' data-md-component="source"', "")


def _linked(role: re.Match[str]) -> str:
    name = role.group(1)
    code = f"<code>{name.removeprefix('dinoneck.')}</code>"
    first, _, rest = name.partition(".")
    identifier = (
        name
        if first == "dinoneck"
        else PUBLIC.get(first, "") + (f".{rest}" if rest else "")
    )
    if not identifier.startswith("dinoneck."):
        return code
    return f'<autoref identifier="{identifier}" optional>{code}</autoref>'
