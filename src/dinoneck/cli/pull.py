"""``dinoneck pull``: the head file of a hub repository into a file, checked."""

from __future__ import annotations

import argparse
from pathlib import Path

from dinoneck.cli.answers import add_json, answer

HELP = "fetch the head file of a Hugging Face hub repository and check every byte"
EXAMPLE = "dinoneck pull user/name --out head.safetensors"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("repo", metavar="USER/NAME", help="the repository")
    parser.add_argument("--revision", help="a branch, tag or commit (default: main)")
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        help="the file; whole and checked, or not at all",
    )
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Fetch, check, write, and say which commit it is."""
    from dinoneck.checkpoint.hub_pull import pull_from_hub

    commit = pull_from_hub(options.repo, options.out, options.revision)
    answer(options, written=options.out, repo=options.repo, commit=commit)
    print(f"wrote    {options.out}\ncommit   {commit}")
    return 0
