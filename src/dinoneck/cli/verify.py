"""``dinoneck verify``: check every byte of head files and feature stores."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from dinoneck.checkpoint.header import head_files
from dinoneck.errors import CheckpointError, StoreError

HELP = "check every byte of head files and feature stores; exit 1 if anything is refused"
EXAMPLE = "dinoneck verify head.safetensors"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("files", type=Path, nargs="+", help="head files, folders of them, or feature stores")


def run(options: argparse.Namespace) -> int:
    """Load every file with all checks."""
    from dinoneck.checkpoint.head_checkpoint import HeadCheckpoint

    stores = [path for path in options.files if (path / "store.json").is_file()]
    refused = sum(not _is_sound(path) for path in stores)
    for file in [file for path in options.files if path not in stores for file in head_files(path)]:
        try:
            checkpoint = HeadCheckpoint.load(file)
            print(f"ok       {file}  {checkpoint.head_type}  {checkpoint.meta['digest']}")
        except CheckpointError as error:
            refused += 1
            print(f"refused  {file}  at step {error.step!r}: {error}", file=sys.stderr)
    return 1 if refused else 0


def _is_sound(path: Path) -> bool:
    """Check a feature store and list the ids whose bytes are wrong."""
    from dinoneck.store.feature_store import FeatureStore

    try:
        store = FeatureStore.open(path)
        bad = store.verify()
    except StoreError as error:
        print(f"refused  {path}  {error}", file=sys.stderr)
        return False
    for image_id in bad:
        print(f"damaged  {path}  {image_id}  {store.shard_of(image_id)}", file=sys.stderr)
    if bad:
        print("delete these shards and extract their photos again", file=sys.stderr)
    else:
        print(f"ok       {path}  feature store  {len(store)} images x {len(store.patterns)} patterns")
    return not bad
