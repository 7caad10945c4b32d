"""``dinoneck verify``: check every byte of head files, their folders, and feature stores."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dinoneck.checkpoint.format import head_files, is_file, read_header
from dinoneck.cli.arguments import Paths
from dinoneck.cli.text import Row, each, good, show_rows
from dinoneck.errors import ConfigError


def verify(files: Paths) -> dict[str, Any]:
    """Check every byte of head files and feature stores; exit 1 if anything is refused.

    Example: dinoneck verify head.safetensors

    Args:
        files: head files, folders of them (config.json and README.md must name the same head), feature stores, or Hub
            repositories.
    """
    if not files:
        raise ConfigError("no files are named; name head files, folders of them, feature stores or Hub repositories")
    rows = show_rows(each(files, _check))
    return {"ok": good(rows), "checked": rows}


def _check(path: Path) -> Iterator[Row]:
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
        if path.is_dir() and good(rows):
            yield from _derived(path)


def _head(file: Path) -> Iterator[Row]:
    from dinoneck.checkpoint.head_checkpoint import HeadCheckpoint

    meta = HeadCheckpoint.load(file).meta
    about = {key: meta[key] for key in ("head_type", "digest", "schema")}
    yield {"state": "ok", "path": file, "kind": "head", **about}


def _derived(folder: Path) -> Iterator[Row]:
    """Check that config.json and README.md name the head that lies next to them."""
    from dinoneck.checkpoint.card import HEAD_NAME, names_another

    head = folder / HEAD_NAME
    for file in (folder / "config.json", folder / "README.md") if head.is_file() else ():
        if file.is_file() and (other := names_another(file, read_header(head).meta["digest"])):
            message = f"it names another head, {other}; the head file decides"
            yield {"state": "differs", "path": file, "kind": "derived file", "message": message}


def check_store(path: Path) -> Iterator[Row]:
    """Check a feature store; the ids whose bytes are wrong are in the row."""
    from dinoneck.store.feature_store import FeatureStore

    store = FeatureStore.open(path)
    bad = dict(sorted(store.damaged().items()))
    about = {"images": len(store), "views": len(store.views), "dtype": store.dtype}
    row = {"state": "damaged" if bad else "ok", "path": path, "kind": "feature store", **about}
    hint = "delete the files that are named, and extract again"
    yield {**row, "damaged": bad, "message": hint} if bad else row
