"""``dinoneck card``: the page of a head file, from its header alone, without torch."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from dinoneck.atomic import write_text
from dinoneck.checkpoint.card import model_card
from dinoneck.cli.answers import add_json, answer
from dinoneck.cli.outputs import check_output

if TYPE_CHECKING:
    from dinoneck.checkpoint.head_checkpoint import HeadCheckpoint

HELP = "write the README.md that describes a head file"
EXAMPLE = "dinoneck card head.safetensors --out README.md"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("file", type=Path, help="a head file, or the folder of an ensemble of 0.1")
    parser.add_argument("--repo", metavar="USER/NAME", help="the Hub repository that the page is for")
    parser.add_argument("--out", type=Path, help="write it here; else it is printed")
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Print or write the page."""
    if options.out is not None:
        check_output(options.out, [options.file])
    page = model_card(_loaded(options.file) if options.file.is_dir() else options.file, options.repo)
    answer(options, page=page, written=options.out)
    if options.out is None:
        print(page, end="")
    else:
        write_text(options.out, page)
        print(f"wrote {options.out}")
    return 0


def _loaded(folder: Path) -> HeadCheckpoint:
    """The heads of an ensemble of 0.1 as one head, read with all checks; this imports torch."""
    from dinoneck.checkpoint.head_checkpoint import HeadCheckpoint

    return HeadCheckpoint.load(folder)
