"""``python -m tests.first_use``: write docs/first-use.md, the findings and mistakes with commands, output and time."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tests.first_use.cases import FINDINGS, MISTAKES, Case
from tests.first_use.run import Ran, prepare, run_case

PAGE = Path(__file__).resolve().parents[2] / "docs" / "first-use.md"
HEADER = """# The first hour

What people tried first, what they found, and mistakes that they made, as commands of today. The data are 48 drawn
images with masks and a table, 12 new ones, class folders, and cells with boxes. This page is written by
`python -m tests.first_use`, which runs every command in a process of its own; the slow tests run them too. Seconds are
processor time on one core. An error is printed with exit code 1, wrong usage of an option with 2, and nothing is
written. `examples/first_hour` is a script of a first hour from an empty environment.

"""
WIDEST = 240  # characters of a line of output


def row(case: Case, ran: Ran) -> str:
    """A line of a table: what, command, output, seconds."""
    line = ran.line_with(case.says)
    if len(line) > WIDEST and case.says in line[:WIDEST]:
        line = f"{line[:WIDEST]} ..."
    elif len(line) > WIDEST:
        line = f"... {line[-WIDEST:]}"
    cells = [case.what, f"`dinoneck {case.words}`", f"`{line.replace('`', '')}`"]
    shown = [cell.replace("|", "\\\\|") for cell in cells]
    return f"| {' | '.join(shown)} | {ran.code} | {ran.seconds:.1f} |"


def table(cases: tuple[Case, ...], folder: Path) -> tuple[list[str], list[str]]:
    """The lines of a table, and the cases that print something else."""
    lines = ["| what | command | output | exit code | s |", "|---|---|---|--:|--:|"]
    wrong = []
    for case in cases:
        ran = run_case(case, folder)
        lines.append(row(case, ran))
        if ran.code != case.code or not ran.line_with(case.says):
            wrong.append(f"dinoneck {case.words}: exit code {ran.code}, {ran.lines[-1:]}")
    return lines, wrong


def main() -> int:
    """Write the page; return 1 if a command prints something else than it has to."""
    with tempfile.TemporaryDirectory(prefix="dinoneck-first-use-") as name:
        folder = Path(name)
        prepare(folder)
        findings, wrong_findings = table(FINDINGS, folder)
        mistakes, wrong_mistakes = table(MISTAKES, folder)
    lines = ["## What people found", "", *findings, "", "## Mistakes", "", *mistakes, ""]
    PAGE.write_text(HEADER + "\n".join(lines))
    for text in (*wrong_findings, *wrong_mistakes):
        print(text, file=sys.stderr)
    return 1 if wrong_findings or wrong_mistakes else 0


if __name__ == "__main__":
    sys.exit(main())
