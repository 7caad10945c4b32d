"""The page of the command line holds the help of every verb."""

from __future__ import annotations

import re

from tests.docs.command_line import MARK, PAGE, help_of, names, page

from dinoneck.cli.main import BROKEN_PIPE, INTERRUPTED, REFUSED, TERMINATED


def words(text: str) -> list[str]:
    """The words, which do not depend on how they are wrapped."""
    return text.split()


def test_the_page_is_that_of_the_help() -> None:
    assert words(PAGE.read_text(encoding="utf-8")) == words(page()), "run: python -m tests.docs.command_line"


def test_every_help_has_an_example_and_explains_every_argument() -> None:
    for verb in names():
        text = help_of(*verb)
        assert verb in (("list",), ("viz",)) or f"Example: dinoneck {' '.join(verb)}" in text, verb
        lines = text.splitlines()
        for line, after in zip(lines, [*lines[1:], ""], strict=True):
            if line.startswith("  -"):
                assert re.search(r"\S {2,}\S", line.strip()) or after.startswith(" " * 6), (verb, line)


def test_the_page_names_every_code() -> None:
    intro = PAGE.read_text(encoding="utf-8").partition(MARK)[0]
    codes = [int(code) for code in re.findall(r"^\| (\d+) \|", intro, re.MULTILINE)]
    assert codes == [0, REFUSED, 2, INTERRUPTED, BROKEN_PIPE, TERMINATED]
