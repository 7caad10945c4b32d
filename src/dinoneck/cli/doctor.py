"""``dinoneck doctor``: what works here and what does not, and what to do about it; for a bug report too."""

from __future__ import annotations

import argparse

from dinoneck.cli.answers import add_json, answer
from dinoneck.cli.text import say

HELP = "say what works on this machine, what does not and what mends it; no network"
EXAMPLE = "dinoneck doctor --json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.description = f"{HELP}. Exit 1 if something in the core is broken. Paste what it prints into a bug report."
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Look at everything, and print a line for each thing."""
    from dinoneck.cli.checkup import checkup

    findings = checkup()
    broken = sum(finding.state == "broken" for finding in findings)
    answer(options, findings=[finding._asdict() for finding in findings], broken=broken)
    group = ""
    for finding in findings:
        if finding.group != group:
            group = finding.group
            print(f"{group}:")
        say(f"  {finding.state:<7}  {finding.name}: {finding.told}")
        if finding.remedy:
            say(f"           -> {finding.remedy}")
    if broken:
        print(f"{broken} things that dinoneck needs are broken; the arrows say what mends them")
    else:
        print("the core works")
    return 1 if broken else 0
