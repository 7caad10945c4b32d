"""An ensemble's folder while others write it: what may be replaced, and how to read past a writer."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from dinoneck.checkpoint.header import HEADS, LISTING
from dinoneck.errors import CheckpointError, some_of

DERIVED = ("config.json", "README.md")
Read = TypeVar("Read")
_PAUSES_S = (0.005, 0.02, 0.08)
_SHOWN = 5


def settled(folder: str | os.PathLike[str], read: Callable[[], Read]) -> Read:
    """Return what ``read`` makes of a folder; again, a few times, where another has taken its place meanwhile.

    Raises:
        CheckpointError: what ``read`` raises of a folder that stays as it is, or that is replaced again and again.
    """
    for pause in _PAUSES_S:
        before = _identity(folder)
        try:
            return read()
        except CheckpointError:
            if (after := _identity(folder)) == before and after is not None:
                raise
            time.sleep(pause)
            if _identity(folder) is None and before is None:  # there never was one
                raise
    return read()


def check_target(target: Path, overwrite: bool) -> None:
    """Refuse to replace anything but an ensemble, and that only where it is meant.

    Raises:
        CheckpointError: naming what is there.
    """
    if not target.exists():
        return
    if not target.is_dir():
        raise CheckpointError(f"{target} is no folder", step="write")
    try:
        there = sorted(entry.name for entry in target.iterdir())
        inside = sorted((target / HEADS).iterdir()) if (target / HEADS).is_dir() else []
    except FileNotFoundError:  # another writer is replacing it
        return
    if there and not overwrite:
        raise CheckpointError(
            f"the folder {target} is not empty; pass overwrite=True to replace an ensemble that is there", step="write"
        )
    strange = [name for name in there if name not in (LISTING, HEADS, *DERIVED)]
    strange += [f"{HEADS}/{path.name}" for path in inside if path.suffix != ".safetensors"]
    if strange:
        raise CheckpointError(
            f"{target} holds {some_of(strange, _SHOWN)}, which are no part of an ensemble; it is not replaced",
            step="write",
        )


def _identity(folder: str | os.PathLike[str]) -> tuple[int, ...] | None:
    """Which folder this is, None if there is none; the time also changes when one is moved aside."""
    try:
        found = os.stat(folder)  # noqa: PTH116 - as it is given
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_ctime_ns
