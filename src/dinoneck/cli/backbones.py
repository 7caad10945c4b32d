"""``dinoneck backbones``: the published models that are known, with what matters when one is chosen."""

from __future__ import annotations

import argparse

from dinoneck.backbones.known import KNOWN
from dinoneck.cli import text
from dinoneck.cli.answers import add_json, answer

HELP = "list the published backbones: names, patch, width, depth, registers, licence"
EXAMPLE = "dinoneck backbones dinov3"


_COLUMNS = ("name", "patch", "width", "depth", "registers", "licence", "transformers")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("part", nargs="?", default="", help="show only names that contain this")
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Print the table."""
    rows = [
        (f"{model.name}.{tag}", model.patch, model.width, model.depth, model.registers, model.license(tag), hub)
        for model in KNOWN
        for tag, hub in model.hubs.items()
        if options.part in f"{model.name}.{tag} {hub}"
    ]
    answer(options, backbones=[dict(zip(_COLUMNS, row, strict=True)) for row in rows])
    if not rows:
        print(f"no known backbone has {options.part!r} in its name")
        return 1
    print(
        text.table(
            _COLUMNS,
            [[str(cell or "-") if place == 6 else str(cell) for place, cell in enumerate(row)] for row in rows],
        )
    )
    return 0
