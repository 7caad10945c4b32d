"""``dinoneck verify``: check every byte of head files."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

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
    for file in _files(options.files):
        try:
            checkpoint = HeadCheckpoint.load(file)
            print(f"ok       {file}  {checkpoint.head_type}  {checkpoint.meta['digest']}")
        except CheckpointError as error:
            refused += 1
            print(f"refused  {file}  at step {error.step!r}: {error}", file=sys.stderr)
    return 1 if refused else 0


def _files(given: list[Path]) -> list[Path]:
    files: list[Path] = []
    for path in given:
        inside = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
        if not inside:
            raise CheckpointError(f"the folder {path} holds no .safetensors files")
        files.extend(inside)
    return files
