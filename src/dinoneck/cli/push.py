"""``dinoneck push``: a head file to the hub, checked first, with its page, in one commit."""

from __future__ import annotations

import argparse
from pathlib import Path

from dinoneck.cli.answers import add_json, answer

HELP = "publish a head file on the Hugging Face hub, with its page, in one commit"
EXAMPLE = "dinoneck push head.safetensors user/name --private"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument(
        "file",
        type=Path,
        help="a head file, or the folder of an ensemble of 0.1; every byte is checked before anything is sent",
    )
    parser.add_argument("repo", metavar="USER/NAME", help="the repository; made if it is missing")
    parser.add_argument("--private", action="store_true", help="a new repository is private; a public one is refused")
    parser.add_argument("--revision", metavar="BRANCH", help="the branch (default: main)")
    parser.add_argument("--message", metavar="TEXT", help="the first line of the commit")
    parser.add_argument("--figure", type=Path, action="append", default=[], help="a picture for the page; repeatable")
    parser.add_argument("--no-create", action="store_true", help="refuse if the repository or branch is missing")
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Push, then print the commit. The access token is the stored login's: 'hf auth login', or HF_TOKEN."""
    from dinoneck.checkpoint.hub import push_to_hub

    pushed = push_to_hub(
        options.file,
        options.repo,
        private=options.private,
        revision=options.revision,
        commit_message=options.message,
        create=not options.no_create,
        figures=options.figure,
    )
    answer(options, pushed=options.file, repo=options.repo, commit=pushed.commit, page=pushed.url)
    print(f"pushed   {options.file}\ncommit   {pushed.commit}\npage     {pushed.url}")
    return 0
