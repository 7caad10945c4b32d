"""The page of the command line says what the parser takes."""

from __future__ import annotations

import re

from tests.docs.command_line import MARK, PAGE, page

from dinoneck.cli.completion import SHELLS
from dinoneck.cli.main import BROKEN_PIPE, INTERRUPTED, REFUSED, TERMINATED, VERBS


def test_the_page_is_that_of_the_parser() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run: python -m tests.docs.command_line"


def test_the_page_names_every_verb_code_and_shell() -> None:
    intro, _, verbs = PAGE.read_text(encoding="utf-8").partition(MARK)
    assert re.findall(r"^## dinoneck (\S+)$", verbs, re.MULTILINE) == list(VERBS)
    codes = [int(code) for code in re.findall(r"^\| (\d+) \|", intro, re.MULTILINE)]
    assert codes == [0, REFUSED, 2, INTERRUPTED, BROKEN_PIPE, TERMINATED]
    for shell in SHELLS:
        assert f"--print-completion {shell}" in intro
