"""``dinoneck viz``: pictures of what a backbone sees and a head says; a report to open in a browser."""

from __future__ import annotations

import argparse
from typing import Any

from dinoneck.cli import viz_figures, viz_report

HELP = "draw what a backbone sees and a head says; write a report to open in a browser"
EXAMPLE = "dinoneck viz report head.safetensors photos/ --out report.html"

_ACTIONS: dict[str, Any] = {
    "report": viz_report,
    "tokens": viz_figures.Tokens,
    "gate": viz_figures.Gate,
    "residuals": viz_figures.Residuals,
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what there is to draw, and the arguments of each."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="WHAT")
    for name, action in _ACTIONS.items():
        sub = actions.add_parser(
            name,
            help=action.HELP,
            description=action.HELP,
            epilog=f"example: {action.EXAMPLE}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        action.add_arguments(sub)


def run(options: argparse.Namespace) -> int:
    """Draw it."""
    return int(_ACTIONS[options.action].run(options))
