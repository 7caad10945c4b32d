"""Writes the verbs of docs/reference/command-line.md from their help: ``python -m tests.docs.command_line``.

The page keeps what stands above its mark; below it come the options of several verbs, then a
section per verb.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from unittest import mock

from dinoneck.cli.main import VERBS, load, main

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "command-line.md"
MARK = "<!-- from here on written by: python -m tests.docs.command_line -->\n"
SHARED = "## Options of several verbs"
OPTION = re.compile(r"^  -.*\n(?: {6,}.*\n)*", re.MULTILINE)  # an option and the lines of its help
EMPTY_GROUP = re.compile(r"^\S.*:\n\n*(?=\S|\Z)", re.MULTILINE)  # a heading without options
SEVERAL = 3
WIDTH, COLUMN = 96, 24


def help_of(*words: str) -> str:
    """What ``dinoneck WORDS --help`` prints, 96 columns wide."""
    out = io.StringIO()
    columns = mock.patch.dict(os.environ, {"COLUMNS": str(WIDTH)})
    with columns, contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        main([*words, "--help"])
    return out.getvalue().strip()


def names() -> Iterator[tuple[str, ...]]:
    """Every verb, and below it its sub-verbs; the trainings with the flag that chooses each."""
    for verb in VERBS:
        found = load(verb)
        yield (verb,)
        if verb == "train":
            yield (verb, "--instances=objects.json")
            yield (verb, "--boxes=boxes.json")
        if isinstance(found, Mapping):
            yield from ((verb, sub) for sub in found)


def options(text: str) -> dict[str, str]:
    """Every option of a help text: its words -> its lines."""
    return {" ".join(lines.split()): lines for lines in OPTION.findall(text + "\n")}


def shared(texts: Mapping[tuple[str, ...], str]) -> list[str]:
    """The options that several verbs have with the same help, ``--help`` first; not those that are required."""
    counts = Counter(option for text in texts.values() for option in options(text))
    return [
        option
        for option, count in counts.items()
        if count >= SEVERAL and "(required)" not in option
    ]


def section(words: tuple[str, ...], text: str, common: list[str]) -> str:
    """A verb's heading and help; options of several verbs by name only, and no list of sub-verbs."""
    text = text.partition("\nsubcommands:")[0] + "\n"
    found = options(text)
    for option in common:
        text = text.replace(found.get(option, "\0"), "")
    text = EMPTY_GROUP.sub("", text).rstrip()
    also = " ".join(
        option.split()[0].rstrip(",")
        for option in common
        if option in found and not option.startswith("-h")
    )
    text += (
        "\n\n" + textwrap.fill(f"and, as above: {also}", WIDTH, break_on_hyphens=False)
        if also
        else ""
    )
    return f"{'#' * (1 + len(words))} dinoneck {' '.join(words)}\n\n```text\n{text}\n```\n"


def wrapped(lines: str) -> str:
    """An option with its help in one column for all."""
    flag, help_text = re.split(r"\s{2,}", lines.strip(), maxsplit=1)
    indent = " " * COLUMN
    text = textwrap.fill(
        " ".join(help_text.split()), WIDTH, initial_indent=indent, subsequent_indent=indent
    )
    return (
        f"  {flag}\n{text}" if len(flag) > COLUMN - 4 else f"  {flag}".ljust(COLUMN) + text.lstrip()
    )


def page() -> str:
    """The whole page as it should be."""
    texts = {words: help_of(*words) for words in names()}
    common = shared(texts)
    lines = {option: lines for text in texts.values() for option, lines in options(text).items()}
    block = "\n".join(wrapped(lines[option]) for option in common)
    sections = [
        f"{SHARED}\n\n```text\n{block}\n```\n",
        *(section(*item, common) for item in texts.items()),
    ]
    return PAGE.read_text(encoding="utf-8").split(MARK)[0] + MARK + "\n" + "\n".join(sections)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
