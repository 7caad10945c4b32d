"""Writes the verbs of docs/reference/command-line.md from their help: ``python -m tests.docs.command_line``.

The page keeps what stands above its mark; below it comes a section per verb and sub-verb.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from unittest import mock

from dinoneck.cli.main import VERBS, load, main

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "command-line.md"
MARK = "<!-- from here on written by: python -m tests.docs.command_line -->\n"


def help_of(*words: str) -> str:
    """What ``dinoneck WORDS --help`` prints, 100 columns wide."""
    out = io.StringIO()
    with mock.patch.dict(os.environ, {"COLUMNS": "100"}), contextlib.redirect_stdout(out):
        with contextlib.suppress(SystemExit):
            main([*words, "--help"])
    return out.getvalue().partition("\nevery verb:")[0].strip()


def names() -> Iterator[tuple[str, ...]]:
    """Every verb, and below it its sub-verbs."""
    for verb in VERBS:
        found = load(verb)
        yield (verb,)
        if isinstance(found, Mapping):
            yield from ((verb, sub) for sub in found)


def page() -> str:
    """The whole page as it should be."""
    sections = [
        f"{'#' * (1 + len(words))} dinoneck {' '.join(words)}\n\n```text\n{help_of(*words)}\n```\n" for words in names()
    ]
    return PAGE.read_text(encoding="utf-8").split(MARK)[0] + MARK + "\n" + "\n".join(sections)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
