"""The state of a run in one file, and what identifies the run."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from dinoneck.atomic import write_whole
from dinoneck.errors import CheckpointError, DinoneckError
from dinoneck.weight_files import read_any

STATE, LOG = "state.pt", "log.jsonl"
_REMEDY = "replace it: fit(..., resume=False), --no-resume"


def save_state(path: str | os.PathLike[str], run: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Write the state of a run, whole or not at all.

    Args:
        path: of the file.
        run: plain values that identify the run.
        state: dicts, lists, numbers, strings, None and tensors.

    Raises:
        CheckpointError: if it cannot be written; a state that is there stays.
    """
    content = io.BytesIO()
    torch.save({"run": dict(run), **state}, content)
    try:
        write_whole(path, content.getvalue())
    except OSError as error:
        raise CheckpointError(f"the state of the run cannot be written to {path}: {error}", step="write") from error


def load_state(path: str | os.PathLike[str], run: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the state of a run, its tensors on the CPU; None where there is no file.

    Raises:
        CheckpointError: if the file is damaged, or that of another run.
    """
    if not Path(path).exists():
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
    old, new = dict(_flat(there)), dict(_flat(here))
    differences = [name for name in {**new, **old} if old.get(name) != new.get(name)]
    if differences:
        more = f" (and {len(differences) - 1} more)" if len(differences) > 1 else ""
        name = differences[0]
        raise CheckpointError(
            f"{where} holds the state of another run: {name} is {old.get(name)!r} there and {new.get(name)!r} here"
            f"{more}. Give this run a folder of its own, or {_REMEDY}",
            step="pairing",
        )


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The plain values of nested dicts and lists, each by its name; empty ones stay as they are."""
    if isinstance(value, Mapping) and value:
        for key, each in value.items():
            yield from _flat(each, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple) and value:
        for i, each in enumerate(value):
            yield from _flat(each, f"{name}[{i}]")
    else:
        yield name, value
