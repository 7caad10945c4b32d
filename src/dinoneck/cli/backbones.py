"""``dinoneck backbones``: the published models that are known, with what matters when one is chosen."""

from __future__ import annotations

import argparse

from dinoneck.backbones.known import KNOWN
from dinoneck.cli import text

HELP = "list the published backbones: names, patch, width, depth, registers, licence"
EXAMPLE = "dinoneck backbones dinov3"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("part", nargs="?", default="", help="show only names that contain this")


def run(options: argparse.Namespace) -> int:
    """Print the table."""
    rows = [
        [
            f"{model.name}.{tag}",
            str(model.patch),
            str(model.width),
            str(model.depth),
            str(model.registers),
            model.license(tag),
            hub or "-",
        ]
        for model in KNOWN
        for tag, hub in model.hubs.items()
        if options.part in f"{model.name}.{tag} {hub}"
    ]
    if not rows:
        print(f"no known backbone has {options.part!r} in its name")
        return 1
    print(text.table(["name", "patch", "width", "depth", "registers", "licence", "transformers"], rows))
    return 0
