"""``dinoneck verify``: check every byte of head files, their folders, and feature stores."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from dinoneck.checkpoint.format import files_in, is_file
from dinoneck.cli.arguments import Paths
from dinoneck.cli.text import in_line, show
from dinoneck.errors import CheckpointError, ConfigError, DinoneckError

Row = dict[str, Any]


def verify(files: Paths) -> dict[str, Any]:
    """Check every byte of head files and feature stores; exit 1 if anything is refused.

    Example: dinoneck verify head.safetensors

    Args:
        files: head files, folders of them (config.json and README.md must name the same head), feature stores, or Hub
            repositories.
    """
    if not files:
        raise ConfigError("no files are named; name head files, folders of them, feature stores or Hub repositories")
    rows = []
    for row in chain.from_iterable(map(_rows, files)):
        rows.append(row)
        about = in_line({key: value for key, value in row.items() if key not in ("state", "path", "message")})
        text = ": ".join(filter(None, (about, row.get("message"))))
        show(f"{row['state']:<8} {row['path']}  {text}", None if row["state"] == "ok" else sys.stderr)
    return {"ok": all(row["state"] == "ok" for row in rows), "checked": rows}


def _rows(path: Path) -> Iterator[Row]:
    """A row for a file or store, or for every head file of a folder."""
    from dinoneck.checkpoint.hub import names_a_repo

    try:
        is_store, is_repo = is_file(path / "store.json"), names_a_repo(path)
        parts = [path] if is_store or is_repo else files_in(path) if path.is_dir() else [path]
    except DinoneckError as error:
        yield {"state": "refused", "path": path, "step": "file", "message": str(error)}
        return
    for part in parts:
        try:
            row = {"state": "ok", "path": part, **(_store(part) if is_store else _head(part))}
        except (DinoneckError, OSError) as error:
            row = {"state": "refused", "path": part, "message": str(error)}
            row |= {"step": error.step} if isinstance(error, CheckpointError) else {}
        yield row


def _head(file: Path) -> Row:
    from dinoneck.checkpoint.head_checkpoint import HeadCheckpoint

    head = HeadCheckpoint.load(file)
    about = {key: head.meta[key] for key in ("head_type", "digest", "schema")}
    return {"kind": "hub repository", "commit": head.revision, **about} if head.revision else {"kind": "head", **about}


def _store(path: Path) -> Row:
    """The facts of a feature store; the ids whose bytes are wrong are in the row."""
    from dinoneck.store.feature_store import FeatureStore

    store = FeatureStore.open(path)
    about = {"kind": "feature store", "images": len(store), "views": len(store.views), "dtype": store.dtype}
    if not (damaged := dict(sorted(store.damaged().items()))):
        return about
    hint = "delete the files that are named, and extract again"
    return {**about, "state": "damaged", "damaged": damaged, "message": hint}
