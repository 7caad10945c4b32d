"""``python -m tests.first_use``: write docs/first-use.md, the findings and mistakes with commands, output and time."""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.first_use.cases import FINDINGS, MISTAKES, Case
from tests.first_use.run import Ran, prepare, run_case

PAGE = Path(__file__).resolve().parents[2] / "docs" / "first-use.md"
HEADER = """# The first hour

What people tried first, what they found, and mistakes that they made, as commands of today, or a line of Python where
no command shows it. The data are 48 drawn images with masks and a table, 12 new ones, class folders, and cells with
boxes; the runs, the predictions and the report that commands read are made from them before. This page is written by
`python -m tests.first_use`, which runs every command in a process of its own; the slow tests run them too. Seconds are
processor time on one core. An error is printed with exit code 1, wrong usage of an option with 2, and nothing is
written. `examples/first_hour` is a script of a first hour from an empty environment.

"""
WIDEST = 240  # characters of a line of output


def row(case: Case, ran: Ran) -> str:
    """A line of a table: what, command, output, exit code, seconds."""
    outputs = []
    for text in (case.says, *case.shows):
        outputs.append(f"`{_shorten(ran.line_with(text), text).replace('`', '')}`")
    cells = [case.what, f"`{case.command}`", "<br>".join(outputs)]
    shown = [cell.replace("|", "\\|") for cell in cells]
    return f"| {' | '.join(shown)} | {ran.code} | {ran.seconds:.1f} |"


def _shorten(line: str, text: str) -> str:
    """The part of a long line that holds a text; several blanks become two."""
    line = re.sub(" {3,}", "  ", line.strip())
    if len(line) <= WIDEST:
        return line
    if text.strip() in line[:WIDEST]:
        return f"{line[:WIDEST]} ..."
    return f"... {line[-WIDEST:]}"


def table(title: str, cases: Sequence[Case], results: Sequence[Ran]) -> list[str]:
    """The lines of a table; ``title`` is the heading of its first column."""
    lines = [f"| {title} | command | prints now | exit code | s |", "|---|---|---|--:|--:|"]
    lines += [row(case, ran) for case, ran in zip(cases, results, strict=True)]
    return lines


def problems(cases: Sequence[Case], results: Sequence[Ran]) -> list[str]:
    """A line for each case that prints something else than it has to."""
    lines = []
    for case, ran in zip(cases, results, strict=True):
        missing = [text for text in (case.says, *case.shows) if not ran.line_with(text)]
        if ran.code != case.code or missing:
            lines.append(f"{case.command}: exit code {ran.code}, lacks {missing}, {ran.lines[-1:]}")
    return lines


def write_page(findings: Sequence[Ran], mistakes: Sequence[Ran]) -> list[str]:
    """Write the page from what the cases printed; return what is wrong."""
    found = table("what was found", FINDINGS, findings)
    wrong = table("what is wrong", MISTAKES, mistakes)
    lines = ["## What people found", "", *found, "", "## Mistakes", "", *wrong, ""]
    PAGE.write_text(HEADER + "\n".join(lines))
    return problems(FINDINGS, findings) + problems(MISTAKES, mistakes)


def main() -> int:
    """Write the page; return 1 if a command prints something else than it has to."""
    with tempfile.TemporaryDirectory(prefix="dinoneck-first-use-") as name:
        folder = Path(name)
        prepare(folder)
        findings = [run_case(case, folder) for case in FINDINGS]
        mistakes = [run_case(case, folder) for case in MISTAKES]
    wrong = write_page(findings, mistakes)
    for text in wrong:
        print(text, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
