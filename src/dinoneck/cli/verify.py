"""``dinoneck verify``: check every byte of head files, ensembles and feature stores."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

from dinoneck.checkpoint.file import head_files, read_header
from dinoneck.checkpoint.schema import SCHEMA
from dinoneck.cli.answers import add_json, answer
from dinoneck.cli.one_by_one import Rows, refused
from dinoneck.cli.stores import is_store
from dinoneck.cli.text import say

HELP = "check every byte of head files and feature stores; exit 1 if anything is refused"
EXAMPLE = "dinoneck verify head.safetensors"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument(
        "files",
        type=Path,
        nargs="+",
        help="head files, folders of them (config.json and README.md may name no other head), ensembles, feature "
        "stores, or hub repositories (user/name)",
    )
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Load everything with all checks, one after the other; a refusal does not end it."""
    rows: Rows = []
    bad = sum(refused(path, partial(_all, path, rows), rows) for path in options.files)
    answer(options, checked=rows)
    return 1 if bad else 0


def _all(path: Path, rows: Rows) -> int:
    """How many things in a path are refused."""
    from dinoneck.checkpoint.ensemble_folder import is_ensemble
    from dinoneck.checkpoint.hub import names_a_repo

    if is_store(path):
        return check_store(path, rows)
    if names_a_repo(path):
        return _pulled(path, rows)
    bad = sum(refused(file, partial(_head, file, rows), rows) for file in head_files(path))
    if is_ensemble(path):
        return bad + refused(path, partial(_ensemble, path, rows), rows)
    return bad if bad or not path.is_dir() else _compared(path, rows)


def _head(file: Path, rows: Rows) -> int:
    from dinoneck.checkpoint.head_checkpoint import HeadCheckpoint

    checkpoint = HeadCheckpoint.load(file)
    schema = read_header(file).meta["schema"]
    older = "" if schema == SCHEMA else f"  schema {schema}: 'dinoneck migrate' brings it to {SCHEMA}"
    say(f"ok       {file}  {checkpoint.head_type}  {checkpoint.file_digest}{older}")
    found = {"head_type": checkpoint.head_type, "digest": checkpoint.file_digest, "schema": schema}
    rows.append({"path": file, "state": "ok", "kind": "head", **found})
    return 0


def _ensemble(path: Path, rows: Rows) -> int:
    """Check that the heads of an ensemble of version 0.1 are those that its list names, and fit together."""
    from dinoneck.checkpoint.head_checkpoint import HeadCheckpoint

    ensemble = HeadCheckpoint.load(path)
    count = len(ensemble.config["members"])
    say(f"ok       {path}  ensemble of {count} heads  {ensemble.file_digest}  'dinoneck migrate' makes one file of it")
    rows.append({"path": path, "state": "ok", "kind": "ensemble", "heads": count})
    return 0


def _compared(folder: Path, rows: Rows) -> int:
    """How many of config.json and README.md name another head than the one next to them."""
    from dinoneck.checkpoint.card import HEAD_NAME, names_another

    head, wrong = folder / HEAD_NAME, 0
    for file in (folder / "config.json", folder / "README.md") if head.is_file() else ():
        if file.is_file() and (other := names_another(file, read_header(head).file_digest)):
            reason = f"it names another head, {other}; the head file decides"
            say(f"differs  {file}  {reason}", sys.stderr)
            rows.append({"path": file, "state": "differs", "kind": "derived file", "told": reason})
            wrong += 1
    return wrong


def _pulled(repo: Path, rows: Rows) -> int:
    from dinoneck.checkpoint.head_checkpoint import HeadCheckpoint

    found = HeadCheckpoint.load(repo)
    say(f"ok       {repo}  {found!r}  commit {found.revision}")
    rows.append({"path": repo, "state": "ok", "kind": "hub repository", "commit": found.revision})
    return 0


def check_store(path: Path, rows: Rows) -> int:
    """Check a feature store and list the ids whose bytes are wrong; return 1 if there are any."""
    from dinoneck.store.feature_store import FeatureStore
    from dinoneck.store.verification import damaged_shards

    store = FeatureStore.open(path)
    bad = dict(sorted(damaged_shards(store.reader).items()))
    for image_id, shard in bad.items():
        unlisted = "" if image_id in store else "  (not in the index)"
        say(f"damaged  {path}  {image_id}  {shard}{unlisted}", sys.stderr)
    if bad:
        print("delete the files that are named, and extract again", file=sys.stderr)
    else:
        say(f"ok       {path}  feature store  {len(store)} images x {len(store.patterns)} patterns")
    found = {"images": len(store), "patterns": len(store.patterns), "dtype": store.dtype}
    row = {"path": path, "state": "damaged" if bad else "ok", "kind": "feature store", **found}
    rows.append({**row, "damaged": bad} if bad else row)
    return 1 if bad else 0
