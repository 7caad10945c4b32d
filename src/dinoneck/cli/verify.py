"""``dinoneck verify``: check every byte of head files and feature stores."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from dinoneck.checkpoint.header import SCHEMA, head_files, read_header
from dinoneck.errors import CheckpointError, StoreError

HELP = "check every byte of head files and feature stores; exit 1 if anything is refused"
EXAMPLE = "dinoneck verify head.safetensors"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("files", type=Path, nargs="+", help="head files, folders of them, or feature stores")


def run(options: argparse.Namespace) -> int:
    """Load every file with all checks."""
    from dinoneck.checkpoint.ensemble_folder import is_ensemble
    from dinoneck.checkpoint.head_checkpoint import HeadCheckpoint

    stores = [path for path in options.files if (path / "store.json").is_file()]
    refused = sum(not _is_sound(path) for path in stores)
    refused += sum(not _is_whole(path) for path in options.files if is_ensemble(path))
    for file in [file for path in options.files if path not in stores for file in head_files(path)]:
        try:
            checkpoint = HeadCheckpoint.load(file)
            schema = read_header(file).meta["schema"]
            older = "" if schema == SCHEMA else f"  schema {schema}: 'dinoneck migrate' brings it to {SCHEMA}"
            print(f"ok       {file}  {checkpoint.head_type}  {checkpoint.file_digest}{older}")
        except CheckpointError as error:
            refused += 1
            print(f"refused  {file}  at step {error.step!r}: {error}", file=sys.stderr)
    return 1 if refused else 0


def _is_whole(path: Path) -> bool:
    """Check that an ensemble's heads are those that its list names, and go together."""
    from dinoneck.checkpoint.ensemble_folder import EnsembleFolder

    try:
        print(f"ok       {path}  {EnsembleFolder.load(path)!r}")
    except CheckpointError as error:
        print(f"refused  {path}  at step {error.step!r}: {error}", file=sys.stderr)
        return False
    return True


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
