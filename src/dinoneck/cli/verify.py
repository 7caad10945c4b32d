"""``dinoneck verify``: check every byte of head files."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from dinoneck.checkpoint.header import head_files
from dinoneck.errors import CheckpointError

HELP = "check every byte of head files; exit 1 if one is refused"
EXAMPLE = "dinoneck verify head.safetensors"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("files", type=Path, nargs="+", help="head files, or folders of them")


def run(options: argparse.Namespace) -> int:
    """Load every file with all checks."""
    from dinoneck.checkpoint.head_checkpoint import HeadCheckpoint

    refused = 0
    for file in [file for path in options.files for file in head_files(path)]:
        try:
            checkpoint = HeadCheckpoint.load(file)
            print(f"ok       {file}  {checkpoint.head_type}  {checkpoint.meta['digest']}")
        except CheckpointError as error:
            refused += 1
            print(f"refused  {file}  at step {error.step!r}: {error}", file=sys.stderr)
    return 1 if refused else 0
