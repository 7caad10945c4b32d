"""How verbs tell the folder of a feature store from other folders, without torch."""

from __future__ import annotations

from pathlib import Path

from dinoneck.checkpoint.file import is_file


def is_store(path: Path) -> bool:
    """Say whether a path is the folder of a feature store."""
    return is_file(path / "store.json")
