"""``dinoneck backbones``: the published models that are known, with what matters when one is chosen."""

from __future__ import annotations

import argparse

from dinoneck.backbones.known import KNOWN
from dinoneck.cli import text
from dinoneck.cli.answers import add_json, answer

HELP = "list the published backbones: names, patch, width, depth, registers, licence"
EXAMPLE = "dinoneck backbones dinov3"


_COLUMNS = ("name", "patch", "width", "depth", "registers", "licence", "transformers", "torch_hub")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.description = (
        f"{HELP}. --backbone takes every name: timm's (also as timm/NAME or hf-hub:timm/NAME), the one of transformers "
        "and the one of torch.hub. The weights are timm's, which need no account; with --backbone-source transformers "
        "they are those of facebook/NAME, which for DINOv3 are gated."
    )
    parser.add_argument("part", nargs="?", default="", help="show only names that contain this")
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Print the table."""
    rows = []
    for model in KNOWN:
        for tag, hub in model.hubs.items():
            official = model.official if tag == next(iter(model.hubs)) else None
            names = [f"{model.name}.{tag}", hub, official]
            if any(options.part in name for name in names if name):
                numbers = (model.patch, model.width, model.depth, model.registers)
                rows.append((names[0], *numbers, model.license(tag), hub, official))
    answer(options, backbones=[dict(zip(_COLUMNS, row, strict=True)) for row in rows])
    if not rows:
        print(f"no known backbone has {options.part!r} in its name")
        return 1
    print(
        text.table(
            _COLUMNS,
            [["-" if cell is None else str(cell) for cell in row] for row in rows],
        )
    )
    return 0
