"""The state of a run in one file, and what identifies the run."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dinoneck.atomic import write_whole
from dinoneck.errors import CheckpointError, DinoneckError
from dinoneck.weight_files import read_any

STATE, LOG = "state.pt", "log.jsonl"
_REMEDY = "replace it: fit(..., resume=False), --no-resume"


def write_file(path: Path, content: bytes) -> None:
    """Write a file of a run, whole or not at all; make its folder.

    Raises:
        CheckpointError: if it cannot be written; a file that is there stays.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, content)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be written: {error}", step="write") from error


def load_state(path: Path, run: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the state of a run, its tensors on the CPU; None where the file does not exist.

    Raises:
        CheckpointError: if the file is damaged, or that of another run.
    """
    if not path.exists():
        return None
    try:
        with zipfile.ZipFile(path) as file:
            damaged = file.testzip()  # torch does not compare the checksums of tensors
        if damaged is not None:
            raise ValueError(f"{damaged} does not fit its checksum")
        state: dict[str, Any] = read_any(path)
        there = state["run"]
    except (DinoneckError, OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise CheckpointError(
            f"{path} is not the state of a training run, or is damaged ({type(error).__name__}). Restore it from a "
            f"copy, or {_REMEDY}"
        ) from error
    check_same(there, run, str(path))
    return state


def check_same(there: Mapping[str, Any], here: Mapping[str, Any], where: str) -> None:
    """Refuse to resume from the state of another run.

    Raises:
        CheckpointError: naming the first difference.
    """
    old, new = _flat(there), _flat(here)
    for name in {**new, **old}:
        if old.get(name) != new.get(name):
            raise CheckpointError(
                f"{where} holds the state of another run: {name} is {old.get(name)!r} there and {new.get(name)!r} "
                f"here. Give this run a folder of its own, or {_REMEDY}",
                step="pairing",
            )


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """The values of nested dicts, each by its path; empty dicts stay as they are."""
    if not isinstance(value, Mapping) or not value:
        return {name: value}
    parts = [_flat(part, f"{name}.{key}" if name else str(key)) for key, part in value.items()]
    return {key: x for part in parts for key, x in part.items()}
