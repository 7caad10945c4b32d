"""``dinoneck verify``: check every byte of head files, ensembles and feature stores."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dinoneck.checkpoint.file import head_files, is_file, read_header
from dinoneck.checkpoint.schema import SCHEMA
from dinoneck.cli.arguments import Paths
from dinoneck.cli.text import Row, each, good, show_rows


def verify(files: Paths) -> dict[str, Any]:
    """Check every byte of head files and feature stores; exit 1 if anything is refused.

    Example: dinoneck verify head.safetensors

    Args:
        files: head files, folders of them (their config.json and README.md must name the same head), ensembles,
            feature stores, or Hub repositories (user/name).
    """
    rows = show_rows(each(files, _check))
    return {"ok": good(rows), "checked": rows}


def _check(path: Path) -> Iterator[Row]:
    from dinoneck.checkpoint.ensemble_folder import is_ensemble
    from dinoneck.checkpoint.head_checkpoint import HeadCheckpoint
    from dinoneck.checkpoint.hub import names_a_repo

    if is_file(path / "store.json"):
        yield from check_store(path)
    elif names_a_repo(path):
        head = HeadCheckpoint.load(path)
        yield {"state": "ok", "path": path, "kind": "hub repository", "commit": head.revision}
    else:
        rows = []
        for row in each(head_files(path), _head):
            rows.append(row)
            yield row
        if is_ensemble(path):  # of version 0.1: its heads must be those that its list names, and fit together
            count = len(HeadCheckpoint.load(path).config["members"])
            hint = "'dinoneck migrate' makes one file of it"
            yield {"state": "ok", "path": path, "kind": "ensemble", "heads": count, "message": hint}
        elif path.is_dir() and good(rows):
            yield from _derived(path)


def _head(file: Path) -> Iterator[Row]:
    from dinoneck.checkpoint.head_checkpoint import HeadCheckpoint

    head, schema = HeadCheckpoint.load(file), read_header(file).meta["schema"]
    about = {"head_type": head.head_type, "digest": head.file_digest, "schema": schema}
    hint = {} if schema == SCHEMA else {"message": f"'dinoneck migrate' rewrites it in schema {SCHEMA}"}
    yield {"state": "ok", "path": file, "kind": "head", **about, **hint}


def _derived(folder: Path) -> Iterator[Row]:
    """Check that config.json and README.md name the head that lies next to them."""
    from dinoneck.checkpoint.card import HEAD_NAME, names_another

    head = folder / HEAD_NAME
    for file in (folder / "config.json", folder / "README.md") if head.is_file() else ():
        if file.is_file() and (other := names_another(file, read_header(head).file_digest)):
            message = f"it names another head, {other}; the head file decides"
            yield {"state": "differs", "path": file, "kind": "derived file", "message": message}


def check_store(path: Path) -> Iterator[Row]:
    """Check a feature store; the ids whose bytes are wrong are in the row."""
    from dinoneck.store.feature_store import FeatureStore
    from dinoneck.store.reading import damaged_shards

    store = FeatureStore.open(path)
    bad = dict(sorted(damaged_shards(store.reader).items()))
    about = {"images": len(store), "patterns": len(store.patterns), "dtype": store.dtype}
    row = {"state": "damaged" if bad else "ok", "path": path, "kind": "feature store", **about}
    hint = "delete the files that are named, and extract again"
    yield {**row, "damaged": bad, "message": hint} if bad else row
