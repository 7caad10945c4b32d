"""``dinoneck card``: the page of a head file, from its header alone, without torch."""

from __future__ import annotations

import argparse
from pathlib import Path

from dinoneck.atomic import write_text
from dinoneck.checkpoint.header import LISTING, is_file
from dinoneck.cli.answers import add_json, answer
from dinoneck.cli.outputs import check_output

HELP = "write the README.md that describes a head file"
EXAMPLE = "dinoneck card head.safetensors --out README.md"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("file", type=Path, help="a head file, or the folder of an ensemble")
    parser.add_argument("--repo", metavar="USER/NAME", help="the hub repository that the page speaks of")
    parser.add_argument("--out", type=Path, help="write it here; else it is printed")
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Print or write the page."""
    if options.out is not None:
        check_output(options.out, [options.file])
    page = _page(options.file, options.repo)
    answer(options, page=page, written=options.out)
    if options.out is None:
        print(page, end="")
    else:
        write_text(options.out, page)
        print(f"wrote {options.out}")
    return 0


def _page(file: Path, repo: str | None) -> str:
    """The page of a head, or of an ensemble, whose heads are read for it."""
    from dinoneck.checkpoint.card import model_card

    if is_file(file / LISTING):
        from dinoneck.checkpoint.head_checkpoint import HeadCheckpoint

        return model_card(HeadCheckpoint.load(file), repo)
    return model_card(file, repo)
