"""``dinoneck verify``: check every byte of head files, ensembles and feature stores."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from dinoneck.checkpoint.file import head_files, is_file, read_header
from dinoneck.checkpoint.schema import SCHEMA
from dinoneck.cli.arguments import Paths
from dinoneck.cli.one_by_one import Rows, each, good
from dinoneck.cli.text import show


def verify(files: Paths) -> dict[str, Any]:
    """Check every byte of head files and feature stores; exit 1 if anything is refused.

    Example: dinoneck verify head.safetensors

    Args:
        files: head files, folders of them (their config.json and README.md must name the same head), ensembles,
            feature stores, or Hub repositories (user/name).
    """
    rows = each(files, _look)
    return {"ok": good(rows), "checked": rows}


def _look(path: Path) -> Rows:
    from dinoneck.checkpoint.ensemble_folder import is_ensemble
    from dinoneck.checkpoint.head_checkpoint import HeadCheckpoint
    from dinoneck.checkpoint.hub import names_a_repo

    if is_file(path / "store.json"):
        return check_store(path)
    if names_a_repo(path):
        head = HeadCheckpoint.load(path)
        show(f"ok       {path}  {head!r}  commit {head.revision}")
        return [{"path": path, "state": "ok", "kind": "hub repository", "commit": head.revision}]
    rows = each(head_files(path), _head)
    if is_ensemble(path):
        return rows + each([path], _ensemble)
    return rows + (_derived(path) if path.is_dir() and good(rows) else [])


def _head(file: Path) -> Rows:
    from dinoneck.checkpoint.head_checkpoint import HeadCheckpoint

    head, schema = HeadCheckpoint.load(file), read_header(file).meta["schema"]
    older = "" if schema == SCHEMA else f"  schema {schema}: 'dinoneck migrate' rewrites it in {SCHEMA}"
    show(f"ok       {file}  {head.head_type}  {head.file_digest}{older}")
    about = {"head_type": head.head_type, "digest": head.file_digest, "schema": schema}
    return [{"path": file, "state": "ok", "kind": "head", **about}]


def _ensemble(path: Path) -> Rows:
    """Check that the heads of an ensemble of version 0.1 are those that its list names, and fit together."""
    from dinoneck.checkpoint.head_checkpoint import HeadCheckpoint

    head = HeadCheckpoint.load(path)
    count = len(head.config["members"])
    show(f"ok       {path}  ensemble of {count} heads  {head.file_digest}  'dinoneck migrate' makes one file of it")
    return [{"path": path, "state": "ok", "kind": "ensemble", "heads": count}]


def _derived(folder: Path) -> Rows:
    """Check that config.json and README.md name the head that lies next to them."""
    from dinoneck.checkpoint.card import HEAD_NAME, names_another

    head, rows = folder / HEAD_NAME, []
    for file in (folder / "config.json", folder / "README.md") if head.is_file() else ():
        if file.is_file() and (other := names_another(file, read_header(head).file_digest)):
            message = f"it names another head, {other}; the head file decides"
            show(f"differs  {file}  {message}", sys.stderr)
            rows.append({"path": file, "state": "differs", "kind": "derived file", "message": message})
    return rows


def check_store(path: Path) -> Rows:
    """Check a feature store and list the ids whose bytes are wrong."""
    from dinoneck.store.feature_store import FeatureStore
    from dinoneck.store.verification import damaged_shards

    store = FeatureStore.open(path)
    bad = dict(sorted(damaged_shards(store.reader).items()))
    for image_id, shard in bad.items():
        unlisted = "" if image_id in store else "  (not in the index)"
        show(f"damaged  {path}  {image_id}  {shard}{unlisted}", sys.stderr)
    if bad:
        print("delete the files that are named, and extract again", file=sys.stderr)
    else:
        show(f"ok       {path}  feature store  {len(store)} images x {len(store.patterns)} patterns")
    about = {"images": len(store), "patterns": len(store.patterns), "dtype": store.dtype}
    row = {"path": path, "state": "damaged" if bad else "ok", "kind": "feature store", **about}
    return [{**row, "damaged": bad} if bad else row]
